/* Saved while a signal handler runs on an alternate stack; another thread has one that it is not on. */
#include "row.h"
#include <pthread.h>
#include <ucontext.h>

static char stacks[2][65536];
static volatile int phase, handled;

static void on_stack(int signal, siginfo_t *info, void *context) {
    stack_t now;
    ucontext_t *uc = context;
    volatile char here = 1;
    (void)info;
    ready();
    EXPECT((char *)&here > stacks[0] && (char *)&here < stacks[0] + sizeof stacks[0]);
    CHECK(sigaltstack(NULL, &now) == 0);
    SAME(now.ss_flags, SS_ONSTACK);
    EXPECT(now.ss_sp == (void *)stacks[0]);
    SAME(now.ss_size, sizeof stacks[0]);
    EXPECT(uc->uc_stack.ss_sp == (void *)stacks[0]);
    handled = signal;
}

static void *thread(void *unused) {
    stack_t mine = {.ss_sp = stacks[1], .ss_size = sizeof stacks[1]}, now;
    sigset_t set;
    (void)unused;
    sigfillset(&set);
    pthread_sigmask(SIG_SETMASK, &set, NULL);
    CHECK(sigaltstack(&mine, NULL) == 0);
    phase = 1;
    while (phase != 2)
        usleep(1000);
    CHECK(sigaltstack(NULL, &now) == 0);
    SAME(now.ss_flags, 0);
    EXPECT(now.ss_sp == (void *)stacks[1]);
    SAME(now.ss_size, sizeof stacks[1]);
    return NULL;
}

int main(void) {
    stack_t mine = {.ss_sp = stacks[0], .ss_size = sizeof stacks[0]}, now;
    struct sigaction action = {.sa_sigaction = on_stack, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    double x = 1.25;
    pthread_t other;
    CHECK(pthread_create(&other, NULL, thread, NULL) == 0);
    while (phase != 1)
        usleep(1000);
    CHECK(sigaltstack(&mine, NULL) == 0);
    CHECK(sigaction(SIGUSR2, &action, NULL) == 0);
    CHECK(raise(SIGUSR2) == 0);
    SAME(handled, SIGUSR2);
    EXPECT(x == 1.25);
    CHECK(sigaltstack(NULL, &now) == 0);
    SAME(now.ss_flags, 0);
    phase = 2;
    pthread_join(other, NULL);
    return done();
}
