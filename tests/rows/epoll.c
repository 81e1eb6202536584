/* epoll: targets of all kinds, events and data, edge-triggered and one-shot ones, targets whose numbers mean something
 * else now or are closed, one target under two numbers, an instance in an instance, an instance that two processes share. */
#include "row.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/wait.h>

static void add(int epoll, int fd, uint32_t events, uint64_t data) {
    struct epoll_event event = {.events = events, .data.u64 = data};
    CHECK(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0);
}

static int found(struct epoll_event *events, int n, uint64_t data, uint32_t expected) {
    for (int i = 0; i < n; i++)
        if (events[i].data.u64 == data) {
            if (events[i].events != expected)
                printf("data %llx: events %x, not %x\n", (unsigned long long)data, events[i].events, expected);
            return events[i].events == expected;
        }
    return 0;
}

int main(void) {
    int epoll = epoll_create1(EPOLL_CLOEXEC), p[2], q[2], s[2], edge = eventfd(1, 0), once = eventfd(1, 0);
    uint64_t value = 1;
    struct epoll_event events[16];
    CHECK(epoll >= 0 && pipe(p) == 0 && pipe(q) == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, s) == 0);
    add(epoll, p[0], EPOLLIN, 0xfeedfacecafebeef);
    add(epoll, p[1], EPOLLOUT | EPOLLET, 2);
    add(epoll, edge, EPOLLIN | EPOLLET, 3);
    add(epoll, once, EPOLLIN | EPOLLONESHOT, 4);
    /* Added, moved away, and the number given to something else. */
    int moved = fcntl(q[0], F_DUPFD, 300);
    CHECK(moved >= 300);
    add(epoll, q[0], EPOLLIN, 5);
    CHECK(dup2(s[0], q[0]) == q[0]);
    add(epoll, q[0], EPOLLIN, 6);
    /* Closed; the description lives on. */
    int closed = dup(s[1]);
    add(epoll, closed, EPOLLIN | EPOLLRDHUP, 7);
    CHECK(close(closed) == 0);
    int timer = timerfd_create(CLOCK_MONOTONIC, 0);
    add(epoll, timer, EPOLLIN, 8);
    int inner = epoll_create1(0), event = eventfd(0, 0);
    add(inner, event, EPOLLIN, 9);
    add(epoll, inner, EPOLLIN, 10);
    int exclusive = eventfd(0, 0);
    add(epoll, exclusive, EPOLLIN | EPOLLEXCLUSIVE, 11);
    /* Takes what is there at the beginning: disarms the one-shot one. */
    int n = epoll_wait(epoll, events, 16, 0);
    CHECK(n == 3);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        /* Edges may be told again. */
        do
            n = epoll_wait(epoll, events, 1, -1);
        while (n == 1 && (events[0].data.u64 == 2 || events[0].data.u64 == 3));
        _exit(n == 1 && events[0].data.u64 == 0xfeedfacecafebeef ? 7 : 1);
    }
    usleep(10000);

    ready();

    SAME(fcntl(epoll, F_GETFD), FD_CLOEXEC);
    /* One-shot targets are not told again. */
    for (int i = 0; i < 3; i++) {
        n = epoll_wait(epoll, events, 16, 0);
        for (int j = 0; j < n; j++)
            EXPECT(events[j].data.u64 == 2 || events[j].data.u64 == 3);
    }
    SAME(epoll_wait(epoll, events, 16, 0), 0);
    SAME(write(p[1], "x", 1), 1);
    int status = -1;
    SAME(waitpid(child, &status, 0), child);
    SAME(WEXITSTATUS(status), 7);
    SAME(write(q[1], "x", 1), 1);
    SAME(write(s[1], "x", 1), 1);
    SAME(write(s[0], "x", 1), 1);
    SAME(write(event, &value, 8), 8);
    SAME(write(edge, &value, 8), 8);
    SAME(write(exclusive, &value, 8), 8);
    struct itimerspec soon = {{0, 0}, {0, 1000}};
    EXPECT(timerfd_settime(timer, 0, &soon, NULL) == 0);
    usleep(5000);
    n = epoll_wait(epoll, events, 16, 1000);
    SAME(n, 8);
    EXPECT(found(events, n, 0xfeedfacecafebeef, EPOLLIN));
    EXPECT(found(events, n, 3, EPOLLIN));
    EXPECT(found(events, n, 5, EPOLLIN));
    EXPECT(found(events, n, 6, EPOLLIN));
    EXPECT(found(events, n, 7, EPOLLIN));
    EXPECT(found(events, n, 8, EPOLLIN));
    EXPECT(found(events, n, 10, EPOLLIN));
    EXPECT(found(events, n, 11, EPOLLIN));
    SAME(epoll_wait(inner, events, 16, 0), 1);
    EXPECT(found(events, 1, 9, EPOLLIN));
    struct epoll_event again = {.events = EPOLLIN | EPOLLONESHOT, .data.u64 = 44};
    SAME(epoll_ctl(epoll, EPOLL_CTL_MOD, once, &again), 0);
    n = epoll_wait(epoll, events, 16, 0);
    EXPECT(found(events, n, 44, EPOLLIN));
    SAME(epoll_ctl(epoll, EPOLL_CTL_DEL, q[0], NULL), 0);
    SAME(epoll_ctl(epoll, EPOLL_CTL_DEL, edge, NULL), 0);
    SAME(epoll_ctl(epoll, EPOLL_CTL_DEL, moved, NULL), -1); /* was not added under this number */
    return done();
}
