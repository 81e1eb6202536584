/* timerfd: time that remains, intervals, expirations that nobody has read, absolute times, disarmed ones. */
#include "row.h"
#include <poll.h>
#include <sys/timerfd.h>
#include <time.h>

static int make(int clock, int flags, long value_ms, long interval_ms, int settime) {
    int fd = timerfd_create(clock, flags);
    struct itimerspec spec = {{interval_ms / 1000, interval_ms % 1000 * 1000000}, {value_ms / 1000, value_ms % 1000 * 1000000}};
    if (settime & TFD_TIMER_ABSTIME) {
        struct timespec now;
        clock_gettime(clock, &now);
        spec.it_value.tv_sec += now.tv_sec;
        spec.it_value.tv_nsec += now.tv_nsec;
        if (spec.it_value.tv_nsec >= 1000000000) {
            spec.it_value.tv_nsec -= 1000000000;
            spec.it_value.tv_sec++;
        }
    }
    CHECK(fd >= 0 && timerfd_settime(fd, settime, &spec, NULL) == 0);
    return fd;
}

static double left(int fd) {
    struct itimerspec spec = {{0, 0}, {0, 0}};
    EXPECT(timerfd_gettime(fd, &spec) == 0);
    return spec.it_value.tv_sec + spec.it_value.tv_nsec / 1e9;
}

int main(void) {
    uint64_t ticks = 0;
    int disarmed = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    int far_away = make(CLOCK_MONOTONIC, 0, 100000, 0, 0);
    int periodic = make(CLOCK_BOOTTIME, TFD_NONBLOCK, 100000, 7000, 0);
    int expired = make(CLOCK_MONOTONIC, TFD_NONBLOCK, 1, 0, 0);
    int many = make(CLOCK_REALTIME, 0, 1, 1, 0);
    int absolute = make(CLOCK_REALTIME, TFD_NONBLOCK, 200000, 0, TFD_TIMER_ABSTIME);
    int monotonic = make(CLOCK_MONOTONIC, TFD_NONBLOCK, 300000, 0, TFD_TIMER_ABSTIME);
    usleep(30000);
    struct timespec set;
    clock_gettime(CLOCK_REALTIME, &set);
    double before[] = {left(far_away), left(periodic), left(monotonic)};

    ready();

    SAME(fcntl(disarmed, F_GETFD), FD_CLOEXEC);
    EXPECT(left(disarmed) == 0);
    SAME(read(disarmed, &ticks, 8), -1);
    /* It may have stood still for long, but not gone on meanwhile: the monotonic clock has not either. */
    EXPECT(left(far_away) <= before[0] && left(far_away) > before[0] - 60);
    EXPECT(left(periodic) <= before[1] && left(periodic) > before[1] - 60);
    EXPECT(left(monotonic) <= before[2] && left(monotonic) > before[2] - 60);
    struct itimerspec spec;
    EXPECT(timerfd_gettime(periodic, &spec) == 0);
    SAME(spec.it_interval.tv_sec, 7);
    SAME(read(expired, &ticks, 8), 8);
    SAME(ticks, 1);
    SAME(read(expired, &ticks, 8), -1);
    SAME(read(many, &ticks, 8), 8);
    EXPECT(ticks >= 20);
    SAME(read(many, &ticks, 8), 8); /* goes on */
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    double passed = now.tv_sec - set.tv_sec + (now.tv_nsec - set.tv_nsec) / 1e9;
    EXPECT(left(absolute) > 200 - passed - 1 && left(absolute) < 200 - passed + 1);
    /* One that expires after all. */
    struct itimerspec soon = {{0, 0}, {0, 2000000}};
    EXPECT(timerfd_settime(far_away, 0, &soon, NULL) == 0);
    struct pollfd poll_fd = {far_away, POLLIN, 0};
    SAME(poll(&poll_fd, 1, 5000), 1);
    return done();
}
