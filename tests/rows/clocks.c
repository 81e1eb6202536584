/* Clocks that count from the machine's start go on; the time of day is that of the day. */
#include "row.h"
#include <sys/syscall.h>
#include <time.h>

static double now(clockid_t clock) {
    struct timespec t;
    EXPECT(clock_gettime(clock, &t) == 0);
    return t.tv_sec + t.tv_nsec / 1e9;
}

/* Not through the vdso. */
static double asked(clockid_t clock) {
    struct timespec t;
    EXPECT(syscall(SYS_clock_gettime, clock, &t) == 0);
    return t.tv_sec + t.tv_nsec / 1e9;
}

int main(void) {
    clockid_t clocks[] = { CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_MONOTONIC_RAW, CLOCK_MONOTONIC_COARSE };
    double before[4], day = now(CLOCK_REALTIME);
    for (int i = 0; i < 4; i++)
        before[i] = now(clocks[i]);

    ready();

    double today = now(CLOCK_REALTIME) - day;
    EXPECT(today >= 0 && today < 600);
    for (int i = 0; i < 4; i++) {
        double went = now(clocks[i]) - before[i];
        /* Neither backwards nor, as when restored on a machine that runs for longer or shorter, by hours. */
        EXPECT(went >= -0.01 && went <= today + 0.1);
        double differ = asked(clocks[i]) - now(clocks[i]);
        EXPECT(differ > -0.1 && differ < 0.1);
    }
    return done();
}
