/* Interval timers and POSIX timers: ids with gaps, all ways to tell, what is left of their times. */
#include "row.h"
#include <pthread.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>

#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

static int kernel_timer(clockid_t clock, int notify, int signal, int value, int tid) {
    struct sigevent event = {.sigev_notify = notify, .sigev_signo = signal, .sigev_value.sival_int = value};
    int id = -1;
    event.sigev_notify_thread_id = tid;
    CHECK(syscall(SYS_timer_create, clock, &event, &id) == 0);
    return id;
}
static void set(int id, double first, double interval) {
    struct itimerspec spec = {.it_value = {(time_t)first, (long)((first - (time_t)first) * 1e9)},
                              .it_interval = {(time_t)interval, (long)((interval - (time_t)interval) * 1e9)}};
    CHECK(syscall(SYS_timer_settime, id, 0, &spec, NULL) == 0);
}
static struct itimerspec get(int id) {
    struct itimerspec spec = {{-1, -1}, {-1, -1}};
    EXPECT(syscall(SYS_timer_gettime, id, &spec) == 0);
    return spec;
}

int main(void) {
    sigset_t all;
    siginfo_t info;
    struct timespec patience = {20, 0}, zero = {0, 0};
    sigfillset(&all);
    CHECK(sigprocmask(SIG_SETMASK, &all, NULL) == 0);
    int ids[8];
    for (int i = 0; i < 8; i++)
        ids[i] = kernel_timer(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGRTMIN + 4, 40 + i, 0);
    CHECK(syscall(SYS_timer_delete, ids[0]) == 0 && syscall(SYS_timer_delete, ids[3]) == 0);
    int targeted = kernel_timer(CLOCK_REALTIME, SIGEV_THREAD_ID, SIGRTMIN + 5, 77, getpid());
    int silent = kernel_timer(CLOCK_BOOTTIME, SIGEV_NONE, 0, 0, 0);
    int cpu = kernel_timer(CLOCK_PROCESS_CPUTIME_ID, SIGEV_SIGNAL, SIGRTMIN + 6, 78, 0);
    int thread_cpu = kernel_timer(CLOCK_THREAD_CPUTIME_ID, SIGEV_SIGNAL, SIGRTMIN + 6, 79, 0);
    set(ids[1], 1000, 0.25);
    set(ids[2], 2000.5, 0);
    set(targeted, 3000, 30);
    set(silent, 4000, 0);
    set(cpu, 5000, 0);
    set(thread_cpu, 6000, 0);
    /* One that has fired, which waits. */
    set(ids[5], 0.001, 0);
    while (get(ids[5]).it_value.tv_sec != 0 || get(ids[5]).it_value.tv_nsec != 0)
        usleep(1000);
    struct itimerval real = {{3, 500000}, {1500, 0}}, virtual = {{0, 0}, {1600, 0}}, prof = {{0, 7000}, {1700, 0}}, now;
    CHECK(setitimer(ITIMER_REAL, &real, NULL) == 0);
    CHECK(setitimer(ITIMER_VIRTUAL, &virtual, NULL) == 0);
    CHECK(setitimer(ITIMER_PROF, &prof, NULL) == 0);
    ready();

    struct {
        int id;
        long left;
        double interval;
    } timers[] = {{ids[1], 1000, 0.25}, {ids[2], 2000, 0}, {ids[4], 0, 0},    {ids[5], 0, 0},      {ids[6], 0, 0},        {ids[7], 0, 0},
                  {targeted, 3000, 30}, {silent, 4000, 0}, {cpu, 5000, 0}, {thread_cpu, 6000, 0}};
    for (unsigned i = 0; i < sizeof timers / sizeof *timers; i++) {
        struct itimerspec spec = get(timers[i].id);
        EXPECT(spec.it_value.tv_sec <= timers[i].left && spec.it_value.tv_sec >= timers[i].left - 200);
        EXPECT((timers[i].left == 0) == (spec.it_value.tv_sec == 0 && spec.it_value.tv_nsec == 0));
        EXPECT(spec.it_interval.tv_sec + spec.it_interval.tv_nsec / 1e9 == timers[i].interval);
    }
    EXPECT(syscall(SYS_timer_delete, ids[0]) != 0 && syscall(SYS_timer_delete, ids[3]) != 0);
    CHECK(getitimer(ITIMER_REAL, &now) == 0);
    EXPECT(now.it_value.tv_sec > 1200 && now.it_value.tv_sec < 1500 && now.it_interval.tv_sec == 3 && now.it_interval.tv_usec == 500000);
    CHECK(getitimer(ITIMER_VIRTUAL, &now) == 0);
    EXPECT(now.it_value.tv_sec > 1300 && now.it_interval.tv_sec == 0);
    CHECK(getitimer(ITIMER_PROF, &now) == 0);
    EXPECT(now.it_value.tv_sec > 1400 && now.it_interval.tv_usec == 7000);

    sigset_t one;
    sigemptyset(&one);
    sigaddset(&one, SIGRTMIN + 4);
    SAME(sigtimedwait(&one, &info, &zero), SIGRTMIN + 4);
    SAME(info.si_code, SI_TIMER);
    SAME(info.si_value.sival_int, 45);
    SAME(info.si_timerid, ids[5]);
    /* They fire, and tell as they were told to. */
    set(ids[7], 0.01, 0);
    SAME(sigtimedwait(&one, &info, &patience), SIGRTMIN + 4);
    SAME(info.si_value.sival_int, 47);
    SAME(info.si_timerid, ids[7]);
    sigaddset(&one, SIGRTMIN + 5);
    set(targeted, 0.01, 0);
    SAME(sigtimedwait(&one, &info, &patience), SIGRTMIN + 5);
    SAME(info.si_value.sival_int, 77);
    sigaddset(&one, SIGRTMIN + 6);
    set(cpu, 0.01, 0);
    for (volatile long i = 0; i < 200000000; i++)
        ;
    SAME(sigtimedwait(&one, &info, &patience), SIGRTMIN + 6);
    SAME(info.si_value.sival_int, 78);
    sigaddset(&one, SIGALRM);
    real.it_value = (struct timeval){0, 10000};
    CHECK(setitimer(ITIMER_REAL, &real, NULL) == 0);
    SAME(sigtimedwait(&one, &info, &patience), SIGALRM);
    /* New ones get ids that nobody has. */
    int fresh = kernel_timer(CLOCK_MONOTONIC, SIGEV_NONE, 0, 0, 0);
    for (unsigned i = 0; i < sizeof timers / sizeof *timers; i++)
        EXPECT(fresh != timers[i].id);
    return done();
}
