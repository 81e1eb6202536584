/* Signal actions, masks, and signals that wait: of the process and of a thread, with their values and in their order. */
#include "row.h"
#include <pthread.h>
#include <sys/syscall.h>
#include <sys/wait.h>

static volatile sig_atomic_t seen[65];
static int order[32], orders, values[32];

static void handler(int signal, siginfo_t *info, void *context) {
    (void)context;
    seen[signal]++;
    if (orders < 32) {
        values[orders] = info->si_value.sival_int;
        order[orders++] = signal;
    }
}
static void plain(int signal) { seen[signal]++; }

static pthread_t other;
static volatile int phase;

static void *thread(void *unused) {
    sigset_t set, now;
    (void)unused;
    sigfillset(&set);
    pthread_sigmask(SIG_SETMASK, &set, NULL);
    syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), SIGUSR2);
    phase = 1;
    while (phase != 2)
        usleep(1000);
    sigpending(&now);
    EXPECT(sigismember(&now, SIGUSR2));
    pthread_sigmask(SIG_SETMASK, NULL, &now);
    for (int s = 1; s < 32; s++)
        if (s != SIGKILL && s != SIGSTOP)
            EXPECT(sigismember(&now, s) == 1);
    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    siginfo_t info;
    struct timespec zero = {0, 0};
    /* The C library would hide the code. */
    SAME(syscall(SYS_rt_sigtimedwait, &set, &info, &zero, 8), SIGUSR2);
    SAME(info.si_code, SI_TKILL);
    SAME(info.si_pid, getpid());
    return NULL;
}

int main(void) {
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigset_t blocked, now;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGUSR1);
    sigaddset(&blocked, SIGTERM);
    sigaddset(&blocked, SIGHUP);
    sigaddset(&blocked, SIGRTMIN + 1);
    sigaddset(&blocked, SIGRTMIN + 2);
    sigaddset(&blocked, SIGURG);
    CHECK(sigprocmask(SIG_BLOCK, &blocked, NULL) == 0);
    sigfillset(&action.sa_mask);
    sigdelset(&action.sa_mask, SIGQUIT);
    CHECK(sigaction(SIGTERM, &action, NULL) == 0);
    for (int s = SIGRTMIN; s <= SIGRTMAX; s++)
        CHECK(sigaction(s, &action, NULL) == 0);
    CHECK(signal(SIGPIPE, SIG_IGN) != SIG_ERR);
    CHECK(signal(SIGHUP, SIG_IGN) != SIG_ERR);
    CHECK(signal(SIGWINCH, plain) != SIG_ERR);
    struct sigaction child = {.sa_handler = plain, .sa_flags = SA_NOCLDSTOP | SA_RESETHAND | SA_NODEFER};
    CHECK(sigaction(SIGCHLD, &child, NULL) == 0);
    struct sigaction before[65];
    for (int s = 1; s <= 64; s++)
        sigaction(s, NULL, &before[s]);

    CHECK(pthread_create(&other, NULL, thread, NULL) == 0);
    while (phase != 1)
        usleep(1000);
    /* What a thread has got rid of is handled by itself; what is ignored may wait while it is blocked. */
    for (int i = 0; i < 3; i++)
        CHECK(sigqueue(getpid(), SIGRTMIN + 2, (union sigval){.sival_int = 100 + i}) == 0);
    CHECK(sigqueue(getpid(), SIGRTMIN + 1, (union sigval){.sival_int = 7}) == 0);
    CHECK(kill(getpid(), SIGTERM) == 0);
    CHECK(kill(getpid(), SIGHUP) == 0);
    CHECK(syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), SIGURG) == 0);
    ready();

    for (int s = 1; s <= 64; s++) {
        struct sigaction after;
        if (sigaction(s, NULL, &after) != 0)
            continue;
        EXPECT(after.sa_handler == before[s].sa_handler);
        SAME(after.sa_flags, before[s].sa_flags);
        EXPECT(memcmp(&after.sa_mask, &before[s].sa_mask, 8) == 0);
    }
    CHECK(sigprocmask(SIG_BLOCK, NULL, &now) == 0);
    for (int s = 1; s <= 64; s++)
        SAME(sigismember(&now, s), sigismember(&blocked, s));
    CHECK(sigpending(&now) == 0);
    for (int s = 1; s <= 64; s++)
        SAME(sigismember(&now, s), s == SIGTERM || s == SIGHUP || s == SIGURG || s == SIGRTMIN + 1 || s == SIGRTMIN + 2);
    SAME(orders, 0);
    CHECK(sigprocmask(SIG_UNBLOCK, &blocked, NULL) == 0);
    SAME(seen[SIGTERM], 1);
    SAME(orders, 5);
    int expected[] = {SIGTERM, SIGRTMIN + 1, SIGRTMIN + 2, SIGRTMIN + 2, SIGRTMIN + 2}, value[] = {0, 7, 100, 101, 102};
    for (int i = 1; i < 5; i++) {
        SAME(order[i], expected[i]);
        SAME(values[i], value[i]);
    }
    phase = 2;
    pthread_join(other, NULL);
    /* No end of a child and no stop was told that had not been told before. */
    SAME(seen[SIGCHLD], 0);
    return done();
}
