/* Threads: ids, names, thread-local storage, stacks, floating point, and what they wait in. */
#include "row.h"
#include <pthread.h>
#include <semaphore.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

enum { N = 24 };
static __thread unsigned local[64];
static pthread_t threads[N];
static pid_t tids[N];
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
static pthread_barrier_t barrier;
static pthread_rwlock_t rwlock = PTHREAD_RWLOCK_INITIALIZER;
static sem_t sem;
static int go, finished, pipes[2];
static volatile int started;

static void *thread(void *argument) {
    long n = (long)argument;
    char name[16], now[16];
    unsigned on_stack[256];
    double x = n * 1.5, y = n / 7.0;
    tids[n] = syscall(SYS_gettid);
    snprintf(name, sizeof name, "thread-%ld", n);
    pthread_setname_np(pthread_self(), name);
    for (int i = 0; i < 64; i++)
        local[i] = n * 1000 + i;
    for (int i = 0; i < 256; i++)
        on_stack[i] = n * 77 + i;
    __atomic_add_fetch(&started, 1, __ATOMIC_SEQ_CST);
    switch (n % 6) {
    case 0:
        pthread_mutex_lock(&mutex);
        while (!go)
            pthread_cond_wait(&cond, &mutex);
        pthread_mutex_unlock(&mutex);
        break;
    case 1:
        pthread_barrier_wait(&barrier);
        break;
    case 2:
        while (sem_wait(&sem) != 0)
            EXPECT(!"sem_wait was interrupted");
        break;
    case 3: {
        char byte;
        SAME(read(pipes[0], &byte, 1), 1);
        break;
    }
    case 4:
        pthread_rwlock_rdlock(&rwlock);
        pthread_rwlock_unlock(&rwlock);
        break;
    default:
        /* One that runs. */
        while (!__atomic_load_n(&go, __ATOMIC_SEQ_CST))
            x = x * 0.5 + n * 0.75;
        EXPECT(x == n * 1.5);
    }
    SAME(syscall(SYS_gettid), tids[n]);
    EXPECT(pthread_equal(pthread_self(), threads[n]));
    prctl(PR_GET_NAME, now);
    EXPECT(strcmp(name, now) == 0);
    for (int i = 0; i < 64; i++)
        SAME(local[i], n * 1000 + i);
    for (int i = 0; i < 256; i++)
        SAME(on_stack[i], n * 77 + i);
    EXPECT(x == n * 1.5 && y == n / 7.0);
    __atomic_add_fetch(&finished, 1, __ATOMIC_SEQ_CST);
    return (void *)(n * 3);
}

int main(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    CHECK(sigprocmask(SIG_BLOCK, &set, NULL) == 0);
    CHECK(pipe(pipes) == 0);
    CHECK(sem_init(&sem, 0, 0) == 0);
    CHECK(pthread_barrier_init(&barrier, NULL, N / 6 + 1) == 0);
    CHECK(pthread_rwlock_wrlock(&rwlock) == 0);
    for (int i = 0; i < 64; i++)
        local[i] = 12345 + i;
    for (long i = 0; i < N; i++)
        CHECK(pthread_create(&threads[i], NULL, thread, (void *)i) == 0);
    while (started != N)
        usleep(1000);
    pid_t me = syscall(SYS_gettid), process = getpid();
    ready();
    SAME(syscall(SYS_gettid), me);
    SAME(getpid(), process);
    for (int i = 0; i < 64; i++)
        SAME(local[i], 12345 + i);
    SAME(finished, 0);
    pthread_mutex_lock(&mutex);
    __atomic_store_n(&go, 1, __ATOMIC_SEQ_CST);
    pthread_cond_broadcast(&cond);
    pthread_mutex_unlock(&mutex);
    pthread_barrier_wait(&barrier);
    for (int i = 0; i < N / 6; i++) {
        sem_post(&sem);
        CHECK(write(pipes[1], "x", 1) == 1);
    }
    pthread_rwlock_unlock(&rwlock);
    for (long i = 0; i < N; i++) {
        void *result;
        CHECK(pthread_join(threads[i], &result) == 0);
        SAME((long)result, i * 3);
    }
    /* More of them can be made. */
    pthread_t again;
    void *result;
    pthread_t none[1];
    (void)none;
    threads[11] = 0;
    CHECK(pthread_create(&threads[11], NULL, thread, (void *)11) == 0);
    again = threads[11];
    CHECK(pthread_join(again, &result) == 0);
    return done();
}
