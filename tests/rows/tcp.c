/* TCP: a listener, connections with data on its way both ways, half closed, waiting to be accepted, full, and over. */
#include "row.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

static struct sockaddr_in at;

static int make(int type) {
    int fd = socket(AF_INET, type, 0);
    CHECK(fd >= 0);
    return fd;
}

static int number(int fd, int level, int name) {
    int value = -1;
    socklen_t len = sizeof value;
    EXPECT(getsockopt(fd, level, name, &value, &len) == 0);
    return value;
}

static void set(int fd, int level, int name, int value) {
    CHECK(setsockopt(fd, level, name, &value, sizeof value) == 0);
}

/* A client and its accepted end. */
static void pair(int listener, int *client, int *server) {
    *client = make(SOCK_STREAM);
    CHECK(connect(*client, (struct sockaddr *)&at, sizeof at) == 0);
    *server = accept(listener, NULL, NULL);
    CHECK(*server >= 0);
}

static void expect_text(int fd, const char *text) {
    char buffer[64] = "";
    size_t len = strlen(text), got = 0;
    while (got < len) {
        ssize_t n = recv(fd, buffer + got, len - got, 0);
        if (n <= 0)
            break;
        got += n;
    }
    EXPECT(got == len && memcmp(buffer, text, len) == 0);
}

static void expect_end(int fd) {
    char byte;
    EXPECT(recv(fd, &byte, 1, 0) == 0);
}

static size_t fill(int fd, unsigned seed) {
    static unsigned char block[65536];
    size_t total = 0;
    for (;;) {
        for (size_t i = 0; i < sizeof block; i++)
            block[i] = (unsigned char)((total + i) * seed >> 3);
        ssize_t n = send(fd, block, sizeof block, MSG_DONTWAIT);
        if (n < 0)
            break;
        total += n;
    }
    CHECK(errno == EAGAIN);
    return total;
}

static void drain(int fd, size_t total, unsigned seed) {
    static unsigned char block[65536];
    for (size_t at = 0; at < total;) {
        size_t want = total - at < sizeof block ? total - at : sizeof block;
        ssize_t n = recv(fd, block, want, 0);
        EXPECT(n > 0);
        if (n <= 0)
            return;
        for (ssize_t i = 0; i < n; i++)
            EXPECT(block[i] == (unsigned char)((at + i) * seed >> 3));
        at += n;
    }
}

int main(void) {
    int c, s, half_c, half_s, full_c, full_s, over_c, over_s, gone_c, gone_s, waiting[3];
    socklen_t len = sizeof at;
    struct timeval patience = { .tv_sec = 10 };
    at.sin_family = AF_INET;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int listener = make(SOCK_STREAM);
    set(listener, SOL_SOCKET, SO_REUSEADDR, 1);
    set(listener, SOL_SOCKET, SO_KEEPALIVE, 1);
    CHECK(bind(listener, (struct sockaddr *)&at, sizeof at) == 0 && listen(listener, 17) == 0);
    CHECK(getsockname(listener, (struct sockaddr *)&at, &len) == 0);

    pair(listener, &c, &s);
    set(c, IPPROTO_TCP, TCP_NODELAY, 1);
    set(c, IPPROTO_TCP, TCP_KEEPIDLE, 77);
    CHECK(send(c, "to server", 9, 0) == 9 && send(s, "to client", 9, 0) == 9);
    pair(listener, &half_c, &half_s);
    CHECK(send(half_c, "last", 4, 0) == 4 && shutdown(half_c, SHUT_WR) == 0);
    pair(listener, &full_c, &full_s);
    size_t up = fill(full_c, 3), down = fill(full_s, 5);
    pair(listener, &over_c, &over_s);
    CHECK(shutdown(over_c, SHUT_WR) == 0 && shutdown(over_s, SHUT_WR) == 0);
    pair(listener, &gone_c, &gone_s);
    CHECK(send(gone_c, "bye", 3, 0) == 3 && close(gone_c) == 0);
    for (int i = 0; i < 3; i++) {
        waiting[i] = make(SOCK_STREAM);
        CHECK(connect(waiting[i], (struct sockaddr *)&at, sizeof at) == 0);
    }
    CHECK(send(waiting[1], "hello", 5, 0) == 5);
    CHECK(send(waiting[2], "hello", 5, 0) == 5 && shutdown(waiting[2], SHUT_WR) == 0);
    struct sockaddr_in own, peer;
    len = sizeof own;
    CHECK(getsockname(c, (struct sockaddr *)&own, &len) == 0);

    ready();

    int all[] = { c, s, half_c, half_s, full_c, full_s, over_c, over_s, gone_s, waiting[0], waiting[1], waiting[2] };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        setsockopt(all[i], SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    SAME(number(listener, SOL_SOCKET, SO_REUSEADDR), 1);
    SAME(number(listener, SOL_SOCKET, SO_KEEPALIVE), 1);
    SAME(number(c, IPPROTO_TCP, TCP_NODELAY), 1);
    SAME(number(c, IPPROTO_TCP, TCP_KEEPIDLE), 77);
    SAME(number(s, IPPROTO_TCP, TCP_NODELAY), 0);
    len = sizeof peer;
    EXPECT(getpeername(s, (struct sockaddr *)&peer, &len) == 0);
    SAME(peer.sin_port, own.sin_port);
    expect_text(s, "to server");
    expect_text(c, "to client");
    EXPECT(send(c, "more", 4, 0) == 4);
    expect_text(s, "more");
    expect_text(half_s, "last");
    expect_end(half_s);
    EXPECT(send(half_s, "answer", 6, 0) == 6);
    expect_text(half_c, "answer");
    EXPECT(send(half_c, "x", 1, MSG_NOSIGNAL) < 0 && errno == EPIPE);
    drain(full_s, up, 3);
    drain(full_c, down, 5);
    EXPECT(recv(full_s, &own, 1, MSG_DONTWAIT) < 0 && errno == EAGAIN);
    expect_end(over_c);
    expect_end(over_s);
    expect_text(gone_s, "bye");
    expect_end(gone_s);
    for (int i = 0; i < 3; i++) {
        struct pollfd ready = { .fd = listener, .events = POLLIN };
        EXPECT(poll(&ready, 1, 10000) == 1);
        int fd = accept(listener, NULL, NULL);
        EXPECT(fd >= 0);
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
        if (i > 0)
            expect_text(fd, "hello");
        if (i == 2)
            expect_end(fd);
        EXPECT(send(fd, "welcome", 7, 0) == 7);
        expect_text(waiting[i], "welcome");
    }
    return done();
}
