/* Processes that are stopped stay so; those of which their parent has been told are not told again. */
#include "row.h"
#include <pthread.h>
#include <sys/mman.h>
#include <sys/wait.h>

static volatile int *counters;
static int chlds;
static void handler(int signal) { (void)signal, chlds++; }
__attribute__((noreturn)) static void *count(void *n) {
    for (;;) {
        counters[(long)n]++;
        usleep(500);
    }
}

int main(void) {
    enum { N = 4 };
    /* Told; not told; by job control, with a handler for later; with threads. */
    int signals[N] = {SIGSTOP, SIGSTOP, SIGTSTP, SIGSTOP};
    pid_t pids[N];
    counters = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(counters != MAP_FAILED);
    CHECK(signal(SIGCHLD, handler) != SIG_ERR);
    for (long i = 0; i < N; i++) {
        pids[i] = fork();
        CHECK(pids[i] >= 0);
        if (pids[i] == 0) {
            /* A group of its own in the session of its parent, so that job control works. */
            setpgid(0, 0);
            if (i == 3) {
                pthread_t t;
                for (int n = 0; n < 3; n++)
                    pthread_create(&t, NULL, count, (void *)i);
            }
            count((void *)i);
        }
    }
    siginfo_t info;
    for (int i = 0; i < N; i++) {
        while (counters[i] < 10)
            usleep(1000);
        CHECK(kill(pids[i], signals[i]) == 0);
        CHECK(waitid(P_PID, pids[i], &info, WSTOPPED | (i == 1 ? WNOWAIT : 0)) == 0);
        CHECK(info.si_code == CLD_STOPPED && info.si_status == signals[i]);
    }
    int values[N];
    for (int i = 0; i < N; i++)
        values[i] = counters[i];
    int before = chlds;
    ready();
    SAME(chlds, before);
    for (int i = 0; i < N; i++)
        SAME(counters[i], values[i]);
    for (int i = 0; i < N; i++) {
        info.si_pid = 0;
        CHECK(waitid(P_PID, pids[i], &info, WSTOPPED | WNOHANG) == 0);
        SAME(info.si_pid, i == 1 ? pids[i] : 0);
        if (i == 1) {
            SAME(info.si_code, CLD_STOPPED);
            SAME(info.si_status, SIGSTOP);
        }
    }
    for (int i = 0; i < N; i++) {
        CHECK(kill(pids[i], SIGCONT) == 0);
        while (counters[i] == values[i])
            usleep(1000);
        CHECK(waitid(P_PID, pids[i], &info, WCONTINUED) == 0);
        CHECK(kill(pids[i], SIGKILL) == 0);
        CHECK(waitpid(pids[i], NULL, 0) == pids[i]);
    }
    return done();
}
