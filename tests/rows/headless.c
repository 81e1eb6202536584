/* A process whose first thread has ended; a child, since that of a container's first process must not. */
#include "row.h"
#include <pthread.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <sys/syscall.h>

static pthread_t others[2];
static pid_t tids[2];
static volatile int go, *phase;

static void *second(void *unused) {
    (void)unused;
    tids[1] = syscall(SYS_gettid);
    while (!go)
        usleep(1000);
    SAME(syscall(SYS_gettid), tids[1]);
    return NULL;
}

static int leader_state(void) {
    char text[512], *end;
    int fd = open("/proc/self/stat", O_RDONLY);
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    if (n <= 0)
        return 0;
    text[n] = 0;
    end = strrchr(text, ')');
    return end ? end[2] : 0;
}

static void *first(void *unused) {
    (void)unused;
    tids[0] = syscall(SYS_gettid);
    CHECK(pthread_create(&others[1], NULL, second, NULL) == 0);
    while (leader_state() != 'Z' || !tids[1])
        usleep(1000);
    phase[0] = 1;
    while (phase[0] != 2)
        usleep(1000);
    SAME(leader_state(), 'Z');
    SAME(syscall(SYS_gettid), tids[0]);
    EXPECT(getpid() != tids[0]);
    go = 1;
    pthread_join(others[1], NULL);
    fflush(stdout);
    exit(problems);
}

int main(void) {
    int status = -1;
    phase = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(phase != MAP_FAILED);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        CHECK(pthread_create(&others[0], NULL, first, NULL) == 0);
        pthread_exit(NULL);
    }
    while (phase[0] != 1)
        usleep(1000);
    ready();
    phase[0] = 2;
    SAME(waitpid(child, &status, 0), child);
    SAME(status, 0);
    return done();
}
