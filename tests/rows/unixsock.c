/* Unix sockets: pairs and connections of all types, names of all kinds, what waits to be read (descriptors included) and
 * to be accepted, shutdown, options, ends that are closed. */
#include "row.h"
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

/* A path in the directory of the sockets. */
static const char *P(const char *name) {
    static char paths[4][200];
    static int next;
    char *to = paths[next++ % 4];
    snprintf(to, sizeof paths[0], "%s/s/%s", strcmp(base, "/") == 0 ? "" : base, name);
    return to;
}

static socklen_t address(struct sockaddr_un *to, const char *name) {
    memset(to, 0, sizeof *to);
    to->sun_family = AF_UNIX;
    size_t len = strlen(name);
    memcpy(to->sun_path, name, len);
    if (name[0] == '@') {
        to->sun_path[0] = 0;
        return offsetof(struct sockaddr_un, sun_path) + len;
    }
    return offsetof(struct sockaddr_un, sun_path) + len + 1;
}

static int named(int type, const char *name) {
    struct sockaddr_un at;
    socklen_t len = address(&at, name);
    int fd = socket(AF_UNIX, type, 0);
    CHECK(fd >= 0 && bind(fd, (void *)&at, len) == 0);
    return fd;
}

static int connected(int type, const char *name) {
    struct sockaddr_un at;
    socklen_t len = address(&at, name);
    int fd = socket(AF_UNIX, type, 0);
    CHECK(fd >= 0 && connect(fd, (void *)&at, len) == 0);
    return fd;
}

/* The name of a socket (or of its peer) as text. */
static const char *name_of(int fd, int peer) {
    static char text[2][200];
    struct sockaddr_un at;
    socklen_t len = sizeof at;
    memset(&at, 0, sizeof at);
    char *to = text[peer];
    if ((peer ? getpeername : getsockname)(fd, (void *)&at, &len) != 0)
        return "error";
    size_t n = len - offsetof(struct sockaddr_un, sun_path);
    if (n == 0)
        return "";
    if (at.sun_path[0] == 0) {
        to[0] = '@';
        memcpy(to + 1, at.sun_path + 1, n - 1);
        to[n] = 0;
    } else {
        snprintf(to, sizeof text[0], "%s", at.sun_path);
    }
    return to;
}

static void send_fds(int fd, const char *text, int *fds, int n) {
    char control[CMSG_SPACE(sizeof(int) * 8)] = {0};
    struct iovec part = {(void *)text, strlen(text)};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = CMSG_SPACE(sizeof(int) * n)};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int) * n);
    memcpy(CMSG_DATA(header), fds, sizeof(int) * n);
    CHECK(sendmsg(fd, &message, 0) == (ssize_t)strlen(text));
}

static int receive_fds(int fd, char *text, int size, int *fds, struct ucred *creds) {
    char control[512];
    struct iovec part = {text, size - 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    ssize_t n = recvmsg(fd, &message, MSG_DONTWAIT);
    int count = 0;
    text[n > 0 ? n : 0] = 0;
    for (struct cmsghdr *h = CMSG_FIRSTHDR(&message); n >= 0 && h; h = CMSG_NXTHDR(&message, h)) {
        if (h->cmsg_type == SCM_RIGHTS) {
            count = (h->cmsg_len - CMSG_LEN(0)) / sizeof(int);
            memcpy(fds, CMSG_DATA(h), count * sizeof(int));
        }
        if (h->cmsg_type == SCM_CREDENTIALS && creds)
            memcpy(creds, CMSG_DATA(h), sizeof *creds);
    }
    return n < 0 ? -1 : count;
}

static int reads(int fd, const char *text) {
    char buffer[300] = "";
    ssize_t n = recv(fd, buffer, sizeof buffer - 1, MSG_DONTWAIT);
    if (n != (ssize_t)strlen(text) || memcmp(buffer, text, n) != 0) {
        printf("read %zd %s instead of %s\n", n, n > 0 ? buffer : "", text);
        return 0;
    }
    return 1;
}

int main(int argc, char **argv) {
    int stream[2], packets[2], datagrams[2], half[2], closed[2], inner[2], one = 1, fds[8];
    char text[300];
    struct sockaddr_un at;
    socklen_t len;
    go_to_base(argc, argv);
    signal(SIGPIPE, SIG_IGN);
    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, stream) == 0);
    CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, packets) == 0);
    CHECK(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0, datagrams) == 0);
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, half) == 0);
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, closed) == 0);
    CHECK(write(stream[0], "one way", 7) == 7 && write(stream[1], "and back", 8) == 8);
    CHECK(send(packets[0], "first", 5, 0) == 5 && send(packets[0], "second packet", 13, 0) == 13);
    CHECK(send(datagrams[1], "a", 1, 0) == 1 && send(datagrams[1], "bcd", 3, 0) == 3);
    CHECK(write(half[0], "before", 6) == 6 && shutdown(half[0], SHUT_WR) == 0);
    CHECK(write(closed[1], "last words", 10) == 10 && close(closed[1]) == 0);

    /* Descriptors on their way: a file that nobody else has open, a pipe, a socket with a message of its own. */
    int file = open("in-flight", O_RDWR | O_CREAT, 0600), p[2], carrier[2];
    CHECK(write(file, "carried", 7) == 7 && pipe(p) == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, inner) == 0);
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, carrier) == 0);
    send_fds(inner[0], "inside", (int[]){p[0]}, 1);
    CHECK(write(carrier[0], "plain", 5) == 5);
    send_fds(carrier[0], "with", (int[]){file, inner[1]}, 2);
    CHECK(write(carrier[0], "after", 5) == 5);
    CHECK(write(p[1], "through", 7) == 7);
    CHECK(close(file) == 0 && close(inner[1]) == 0 && close(inner[0]) == 0 && close(p[0]) == 0);

    /* Names: a path, a relative one, an abstract one, one whose file was removed, one that the kernel chose. */
    CHECK(mkdir("s", 0700) == 0 && chdir("s") == 0);
    int listener = named(SOCK_STREAM, P("listener")), relative = named(SOCK_SEQPACKET, "./relative");
    int abstract = named(SOCK_STREAM, "@abstract"), removed = named(SOCK_STREAM, P("removed")), idle = named(SOCK_STREAM, P("idle"));
    CHECK(chmod(P("listener"), 0623) == 0 && chown(P("listener"), 12, 34) == 0);
    CHECK(listen(listener, 5) == 0 && listen(relative, 3) == 0 && listen(abstract, 3) == 0 && listen(removed, 3) == 0);
    int client = connected(SOCK_STREAM, P("listener")), server = accept(listener, NULL, NULL);
    int seq_client = connected(SOCK_SEQPACKET, "relative"), seq_server = accept(relative, NULL, NULL);
    int abs_client = socket(AF_UNIX, SOCK_STREAM, 0);
    len = address(&at, "@client");
    CHECK(bind(abs_client, (void *)&at, len) == 0);
    len = address(&at, "@abstract");
    CHECK(connect(abs_client, (void *)&at, len) == 0);
    int abs_server = accept(abstract, NULL, NULL), rem_client = connected(SOCK_STREAM, P("removed"));
    int rem_server = accept(removed, NULL, NULL);
    CHECK(server >= 0 && seq_server >= 0 && abs_server >= 0 && rem_server >= 0);
    CHECK(unlink(P("removed")) == 0);
    /* A connection whose listener is closed, and whose name somebody else has now. */
    int old = named(SOCK_STREAM, P("reused"));
    CHECK(listen(old, 1) == 0);
    int old_client = connected(SOCK_STREAM, P("reused")), old_server = accept(old, NULL, NULL);
    CHECK(old_server >= 0 && close(old) == 0 && unlink(P("reused")) == 0);
    int reused = named(SOCK_STREAM, P("reused"));
    CHECK(listen(reused, 1) == 0);
    CHECK(write(client, "to the server", 13) == 13);

    /* Two that wait to be accepted, in their order. */
    int waiting = connected(SOCK_STREAM, P("listener")), waiting2 = connected(SOCK_STREAM, P("listener"));
    CHECK(fcntl(listener, F_SETFL, O_NONBLOCK) == 0);

    /* Datagram sockets with names: one hears from several; one is connected. */
    int hub = named(SOCK_DGRAM, P("hub")), spoke = named(SOCK_DGRAM, "@spoke"), nameless = socket(AF_UNIX, SOCK_DGRAM, 0);
    len = address(&at, P("hub"));
    CHECK(connect(spoke, (void *)&at, len) == 0);
    CHECK(send(spoke, "from spoke", 10, 0) == 10);
    CHECK(sendto(nameless, "from nobody", 11, 0, (void *)&at, len) == 11);
    int brief = named(SOCK_DGRAM, P("brief"));
    CHECK(sendto(brief, "from brief", 10, 0, (void *)&at, len) == 10 && close(brief) == 0 && unlink(P("brief")) == 0);
    int autobound = socket(AF_UNIX, SOCK_DGRAM, 0);
    CHECK(bind(autobound, (void *)&at, sizeof(sa_family_t)) == 0);
    char chosen[200];
    snprintf(chosen, sizeof chosen, "%s", name_of(autobound, 0));

    int options = socket(AF_UNIX, SOCK_DGRAM, 0), value = 98304, twice = 0;
    len = sizeof twice;
    struct timeval patience = {3, 500000};
    CHECK(setsockopt(options, SOL_SOCKET, SO_PASSCRED, &one, sizeof one) == 0);
    CHECK(setsockopt(options, SOL_SOCKET, SO_SNDBUF, &value, sizeof value) == 0);
    CHECK(getsockopt(options, SOL_SOCKET, SO_SNDBUF, &twice, &len) == 0);
    CHECK(setsockopt(options, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience) == 0);
    int credentials[2];
    CHECK(socketpair(AF_UNIX, SOCK_DGRAM, 0, credentials) == 0);
    CHECK(setsockopt(credentials[1], SOL_SOCKET, SO_PASSCRED, &one, sizeof one) == 0);
    CHECK(send(credentials[0], "who", 3, 0) == 3);

    ready();

    SAME(fcntl(stream[0], F_GETFD), FD_CLOEXEC);
    EXPECT(reads(stream[1], "one way") && reads(stream[0], "and back"));
    SAME(write(stream[0], "more", 4), 4);
    EXPECT(reads(stream[1], "more"));
    EXPECT(reads(packets[1], "first") && reads(packets[1], "second packet"));
    SAME(fcntl(datagrams[0], F_GETFL) & O_NONBLOCK, O_NONBLOCK);
    EXPECT(reads(datagrams[0], "a") && reads(datagrams[0], "bcd"));
    SAME(recv(datagrams[0], text, 10, MSG_DONTWAIT), -1);
    EXPECT(reads(half[1], "before"));
    SAME(recv(half[1], text, 10, MSG_DONTWAIT), 0);
    SAME(write(half[0], "x", 1), -1);
    SAME(write(half[1], "back", 4), 4);
    EXPECT(reads(half[0], "back"));
    EXPECT(reads(closed[0], "last words"));
    SAME(recv(closed[0], text, 10, MSG_DONTWAIT), 0);
    SAME(write(closed[0], "x", 1), -1);
    SAME(errno, EPIPE);

    /* Descriptors come with the byte that they were sent with. */
    int got[8];
    SAME(recv(carrier[1], text, 5, MSG_DONTWAIT), 5);
    EXPECT(memcmp(text, "plain", 5) == 0);
    SAME(receive_fds(carrier[1], text, 5, got, NULL), 2);
    EXPECT(strcmp(text, "with") == 0);
    SAME(pread(got[0], text, 10, 0), 7);
    EXPECT(memcmp(text, "carried", 7) == 0);
    SAME(lseek(got[0], 0, SEEK_CUR), 7);
    SAME(receive_fds(got[1], text, 100, fds, NULL), 1);
    EXPECT(strcmp(text, "inside") == 0);
    SAME(read(fds[0], text, 100), 7);
    SAME(write(p[1], "on", 2), 2);
    SAME(read(fds[0], text, 100), 2);
    SAME(recv(got[1], text, 1, MSG_DONTWAIT), 0); /* its other end is closed */
    EXPECT(reads(carrier[1], "after"));

    EXPECT(strcmp(name_of(listener, 0), P("listener")) == 0);
    EXPECT(strcmp(name_of(relative, 0), "./relative") == 0);
    EXPECT(strcmp(name_of(abstract, 0), "@abstract") == 0);
    EXPECT(strcmp(name_of(removed, 0), P("removed")) == 0);
    EXPECT(strcmp(name_of(idle, 0), P("idle")) == 0);
    EXPECT(strcmp(name_of(client, 0), "") == 0 && strcmp(name_of(client, 1), P("listener")) == 0);
    EXPECT(strcmp(name_of(server, 0), P("listener")) == 0 && strcmp(name_of(server, 1), "") == 0);
    EXPECT(strcmp(name_of(seq_client, 1), "./relative") == 0 && strcmp(name_of(seq_server, 0), "./relative") == 0);
    EXPECT(strcmp(name_of(abs_client, 0), "@client") == 0 && strcmp(name_of(abs_client, 1), "@abstract") == 0);
    EXPECT(strcmp(name_of(abs_server, 0), "@abstract") == 0 && strcmp(name_of(abs_server, 1), "@client") == 0);
    EXPECT(strcmp(name_of(rem_client, 1), P("removed")) == 0 && strcmp(name_of(rem_server, 0), P("removed")) == 0);
    EXPECT(strcmp(name_of(old_client, 1), P("reused")) == 0 && strcmp(name_of(old_server, 0), P("reused")) == 0);
    EXPECT(strcmp(name_of(autobound, 0), chosen) == 0);
    EXPECT(reads(server, "to the server"));
    SAME(write(server, "answer", 6), 6);
    EXPECT(reads(client, "answer"));
    SAME(send(seq_client, "pkt", 3, 0), 3);
    EXPECT(reads(seq_server, "pkt"));
    SAME(write(old_client, "still", 5), 5);
    EXPECT(reads(old_server, "still"));
    SAME(write(rem_server, "too", 3), 3);
    EXPECT(reads(rem_client, "too"));
    struct stat status;
    EXPECT(stat(P("listener"), &status) == 0 && S_ISSOCK(status.st_mode));
    SAME(status.st_mode & 07777, 0623);
    SAME(status.st_uid, 12);
    SAME(status.st_gid, 34);
    SAME(access(P("removed"), F_OK), -1);

    /* Those who waited come first. */
    SAME(write(waiting, "1", 1), 1);
    SAME(write(waiting2, "2", 1), 1);
    int fresh = connected(SOCK_STREAM, P("listener"));
    int a = accept(listener, NULL, NULL), b = accept(listener, NULL, NULL), c = accept(listener, NULL, NULL);
    EXPECT(reads(a, "1") && reads(b, "2"));
    SAME(write(fresh, "3", 1), 1);
    EXPECT(reads(c, "3"));
    SAME(accept(listener, NULL, NULL), -1);
    SAME(errno, EAGAIN);
    struct ucred peer = {0};
    len = sizeof peer;
    SAME(getsockopt(fresh, SOL_SOCKET, SO_PEERCRED, &peer, &len), 0);
    SAME(peer.pid, getpid());
    int later = connected(SOCK_STREAM, "@abstract");
    SAME(write(later, "x", 1), 1);
    a = accept(abstract, NULL, NULL);
    EXPECT(reads(a, "x"));
    int to_reused = connected(SOCK_STREAM, P("reused"));
    EXPECT(to_reused >= 0 && accept(reused, NULL, NULL) >= 0);
    int named_now = connected(SOCK_SEQPACKET, P("relative"));
    EXPECT(named_now >= 0);

    const char *senders[][2] = {{"from spoke", "@spoke"}, {"from nobody", ""}, {"from brief", NULL}};
    for (int i = 0; i < 3; i++) {
        struct sockaddr_un from;
        memset(&from, 0, sizeof from);
        len = sizeof from;
        ssize_t n = recvfrom(hub, text, sizeof text, MSG_DONTWAIT, (void *)&from, &len);
        SAME(n, strlen(senders[i][0]));
        EXPECT(n > 0 && memcmp(text, senders[i][0], n) == 0);
        const char *name = senders[i][1] ? senders[i][1] : P("brief");
        if (name[0] == '@')
            EXPECT(len == offsetof(struct sockaddr_un, sun_path) + strlen(name) && memcmp(from.sun_path + 1, name + 1, strlen(name) - 1) == 0);
        else if (name[0])
            EXPECT(strcmp(from.sun_path, name) == 0);
        else
            EXPECT(len <= offsetof(struct sockaddr_un, sun_path));
    }
    SAME(send(spoke, "again", 5, 0), 5);
    EXPECT(reads(hub, "again"));
    EXPECT(strcmp(name_of(spoke, 1), P("hub")) == 0);

    len = sizeof value;
    EXPECT(getsockopt(options, SOL_SOCKET, SO_PASSCRED, &value, &len) == 0);
    SAME(value, 1);
    EXPECT(getsockopt(options, SOL_SOCKET, SO_SNDBUF, &value, &len) == 0);
    SAME(value, twice);
    struct timeval now;
    len = sizeof now;
    EXPECT(getsockopt(options, SOL_SOCKET, SO_RCVTIMEO, &now, &len) == 0);
    SAME(now.tv_sec * 1000000 + now.tv_usec, 3500000);
    struct ucred sender = {0};
    EXPECT(receive_fds(credentials[1], text, 100, fds, &sender) == 0 && strcmp(text, "who") == 0);
    SAME(sender.pid, getpid());
    SAME(sender.uid, getuid());

    for (const char **name = (const char *[]){"listener", "relative", "idle", "reused", "hub", NULL}; *name; name++)
        EXPECT(unlink(*name) == 0);
    EXPECT(chdir("..") == 0 && rmdir("s") == 0 && unlink("in-flight") == 0);
    return done();
}
