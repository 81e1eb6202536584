/* signalfd: its mask, signals that wait, and an epoll instance that tells of them. */
#include "row.h"
#include <sys/epoll.h>
#include <sys/signalfd.h>

int main(void) {
    sigset_t set;
    struct signalfd_siginfo info;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    sigaddset(&set, SIGRTMIN + 3);
    CHECK(sigprocmask(SIG_BLOCK, &set, NULL) == 0);
    int fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
    sigdelset(&set, SIGUSR2);
    int other = signalfd(-1, &set, SFD_NONBLOCK);
    CHECK(fd >= 0 && other >= 0);
    CHECK(sigqueue(getpid(), SIGRTMIN + 3, (union sigval){.sival_int = 4711}) == 0);
    int epoll = epoll_create1(0), moved = dup(fd), spare;
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = 77};
    CHECK(epoll >= 0 && epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0);
    /* Added under a number that is something else now. */
    event.data.u64 = 88;
    CHECK(moved >= 0 && epoll_ctl(epoll, EPOLL_CTL_ADD, moved, &event) == 0);
    CHECK((spare = open("/dev/null", O_RDONLY)) >= 0 && dup2(spare, moved) == moved);

    ready();

    struct epoll_event events[4];
    SAME(fcntl(fd, F_GETFD), FD_CLOEXEC);
    SAME(epoll_wait(epoll, events, 4, 0), 2);
    SAME(events[0].data.u64 + events[1].data.u64, 77 + 88);
    SAME(read(other, &info, sizeof info), sizeof info);
    SAME(info.ssi_signo, SIGRTMIN + 3);
    SAME(info.ssi_int, 4711);
    SAME(read(fd, &info, sizeof info), -1);
    SAME(epoll_wait(epoll, events, 4, 0), 0);
    EXPECT(kill(getpid(), SIGUSR2) == 0);
    SAME(read(other, &info, sizeof info), -1);
    SAME(epoll_wait(epoll, events, 4, 1000), 2);
    SAME(read(fd, &info, sizeof info), sizeof info);
    SAME(info.ssi_signo, SIGUSR2);
    /* The number is the other thing again. */
    char byte;
    SAME(read(moved, &byte, 1), 0);
    return done();
}
