/* More descriptors than most limits allow by default, all of them in one epoll instance, with high numbers; and a second
 * process that has them too. */
#include "row.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>

#define MOST 6000

static int fds[MOST];

int main(void) {
    struct rlimit limit;
    CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    limit.rlim_cur = limit.rlim_max;
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    int most = limit.rlim_cur < MOST + 50 ? (int)limit.rlim_cur - 50 : MOST;
    most -= most % 3;
    int epoll = epoll_create1(0);
    CHECK(epoll >= 0 && most > 300);
    for (int i = 0; i < most; i += 3) {
        int pair[2];
        CHECK((fds[i] = eventfd(i, EFD_NONBLOCK)) >= 0);
        CHECK(socketpair(AF_UNIX, i % 2 ? SOCK_STREAM : SOCK_DGRAM, 0, pair) == 0);
        fds[i + 1] = pair[0];
        fds[i + 2] = pair[1];
        CHECK(write(pair[0], &i, sizeof i) == sizeof i);
        for (int j = 0; j < 3; j++) {
            struct epoll_event event = {.events = EPOLLIN, .data.u32 = i + j};
            CHECK(epoll_ctl(epoll, EPOLL_CTL_ADD, fds[i + j], &event) == 0);
        }
    }
    int p[2];
    CHECK(pipe(p) == 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        char byte;
        close(p[1]);
        _exit(read(p[0], &byte, 1) == 1 && fcntl(fds[most - 1], F_GETFD) == 0 ? 3 : 4);
    }

    ready();

    /* All eventfds but the first are above zero; of each pair one end has something. */
    int expected = most / 3 * 2 - 1, seen = 0;
    static struct epoll_event events[MOST];
    seen = epoll_wait(epoll, events, MOST, 0);
    SAME(seen, expected);
    for (int i = 0; i < most; i += 3) {
        uint64_t value = 0;
        int number = -1;
        if (i > 0)
            SAME(read(fds[i], &value, 8), 8);
        SAME(value, i);
        SAME(read(fds[i + 2], &number, sizeof number), sizeof number);
        SAME(number, i);
    }
    SAME(epoll_wait(epoll, events, MOST, 0), 0);
    SAME(write(p[1], "x", 1), 1);
    int status = 0;
    SAME(waitpid(child, &status, 0), child);
    SAME(WEXITSTATUS(status), 3);
    return done();
}
