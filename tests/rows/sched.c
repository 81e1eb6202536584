/* Scheduling: nice values, policies, CPUs, I/O priorities, timer slack. */
#include "row.h"
#include <pthread.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>

static volatile int phase, verified;
struct says {
    int policy, nice, ioprio, slack;
    unsigned long cpus[16];
};
static struct says says(void) {
    struct says s = {0};
    s.policy = sched_getscheduler(0);
    s.nice = getpriority(PRIO_PROCESS, 0);
    s.ioprio = syscall(SYS_ioprio_get, 1, 0);
    s.slack = prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0);
    syscall(SYS_sched_getaffinity, 0, sizeof s.cpus, s.cpus);
    return s;
}
static void *thread(void *argument) {
    long n = (long)argument;
    sigset_t set;
    sigfillset(&set);
    pthread_sigmask(SIG_SETMASK, &set, NULL);
    struct sched_param none = {0};
    setpriority(PRIO_PROCESS, syscall(SYS_gettid), 3 + n);
    CHECK(sched_setscheduler(0, n == 0 ? SCHED_BATCH : n == 1 ? SCHED_IDLE : SCHED_OTHER, &none) == 0);
    CHECK(syscall(SYS_ioprio_set, 1, 0, 2 << 13 | (n + 1)) == 0);
    CHECK(prctl(PR_SET_TIMERSLACK, 70000 + n, 0, 0, 0) == 0);
    if (n == 2) {
        unsigned long cpus[16] = {0};
        int cpu = sched_getcpu();
        cpus[cpu / 64] = 1ul << (cpu % 64);
        CHECK(syscall(SYS_sched_setaffinity, 0, sizeof cpus, cpus) == 0);
    }
    struct says before = says();
    __atomic_add_fetch(&phase, 1, __ATOMIC_SEQ_CST);
    while (phase < 100)
        usleep(1000);
    struct says after = says();
    SAME(after.policy, before.policy);
    SAME(after.nice, before.nice);
    SAME(after.ioprio, before.ioprio);
    SAME(after.slack, before.slack);
    for (int i = 0; i < 16; i++)
        SAME(after.cpus[i], before.cpus[i]);
    __atomic_add_fetch(&verified, 1, __ATOMIC_SEQ_CST);
    return NULL;
}

int main(void) {
    pthread_t t;
    for (long n = 0; n < 3; n++)
        CHECK(pthread_create(&t, NULL, thread, (void *)n) == 0);
    while (phase != 3)
        usleep(1000);
    struct says before = says();
    ready();
    struct says after = says();
    EXPECT(memcmp(&before, &after, sizeof after) == 0);
    phase = 100;
    while (verified != 3)
        usleep(1000);
    return done();
}
