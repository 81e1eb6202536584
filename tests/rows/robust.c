/* Robust futexes: whoever dies holding one leaves word, also after a restore. */
#include "row.h"
#include <pthread.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>

int main(void) {
    pthread_mutex_t *mutex = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    volatile int *locked = (int *)(mutex + 4);
    pthread_mutexattr_t attr;
    void *head, *again;
    size_t len, len_again;
    CHECK(mutex != MAP_FAILED);
    pthread_mutexattr_init(&attr);
    CHECK(pthread_mutexattr_setpshared(&attr, PTHREAD_PROCESS_SHARED) == 0);
    CHECK(pthread_mutexattr_setrobust(&attr, PTHREAD_MUTEX_ROBUST) == 0);
    for (int i = 0; i < 2; i++)
        CHECK(pthread_mutex_init(&mutex[i], &attr) == 0);
    CHECK(syscall(SYS_get_robust_list, 0, &head, &len) == 0);
    pid_t holder = fork();
    CHECK(holder >= 0);
    if (holder == 0) {
        CHECK(pthread_mutex_lock(&mutex[0]) == 0);
        *locked = 1;
        for (;;)
            pause();
    }
    while (!*locked)
        usleep(1000);
    CHECK(pthread_mutex_lock(&mutex[1]) == 0);
    CHECK(pthread_mutex_trylock(&mutex[0]) == EBUSY);
    ready();
    CHECK(syscall(SYS_get_robust_list, 0, &again, &len_again) == 0);
    EXPECT(again == head);
    SAME(len_again, len);
    SAME(pthread_mutex_trylock(&mutex[0]), EBUSY);
    SAME(pthread_mutex_unlock(&mutex[1]), 0);
    CHECK(kill(holder, SIGKILL) == 0 && waitpid(holder, NULL, 0) == holder);
    SAME(pthread_mutex_lock(&mutex[0]), EOWNERDEAD);
    SAME(pthread_mutex_consistent(&mutex[0]), 0);
    return done();
}
