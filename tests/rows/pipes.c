/* Pipes: unread data, sizes, packets, ends in several processes, ends that are closed, ends opened anew. */
#include "row.h"
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

static char big[1 << 20];

int main(void) {
    int empty[2], full[2], large[2], packet[2], noreader[2], nowriter[2], child_to[2], child_from[2], again;
    char path[64], buffer[8192];
    signal(SIGPIPE, SIG_IGN);
    CHECK(pipe(empty) == 0);
    CHECK(pipe2(full, O_NONBLOCK | O_CLOEXEC) == 0);
    for (size_t i = 0; i < sizeof big; i++)
        big[i] = (char)(i * 31 + i / 4096);
    size_t held = 0;
    for (ssize_t n; (n = write(full[1], big + held, 1000)) > 0;)
        held += n;
    CHECK(held > 50000);
    CHECK(pipe2(large, O_NONBLOCK) == 0);
    CHECK(fcntl(large[1], F_SETPIPE_SZ, sizeof big) == sizeof big);
    CHECK(write(large[1], big, sizeof big) == sizeof big);
    CHECK(pipe2(packet, O_DIRECT | O_NONBLOCK) == 0);
    CHECK(write(packet[1], "one", 3) == 3 && write(packet[1], "three", 5) == 5 && write(packet[1], "x", 1) == 1);
    CHECK(pipe(noreader) == 0 && close(noreader[0]) == 0);
    CHECK(pipe(nowriter) == 0 && write(nowriter[1], "last", 4) == 4 && close(nowriter[1]) == 0);
    /* Another description of the same pipe. */
    snprintf(path, sizeof path, "/proc/self/fd/%d", empty[1]);
    CHECK((again = open(path, O_WRONLY | O_NONBLOCK)) >= 0);
    CHECK(pipe(child_to) == 0 && pipe(child_from) == 0);
    int high = fcntl(full[0], F_DUPFD_CLOEXEC, 700);
    CHECK(high == 700);
    CHECK(fchown(empty[0], 12, 34) == 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        close(child_to[1]);
        close(child_from[0]);
        while (read(child_to[0], buffer, 1) == 1) {
            buffer[0]++;
            if (write(child_from[1], buffer, 1) != 1)
                _exit(1);
        }
        _exit(42);
    }
    close(child_to[0]);
    close(child_from[1]);
    CHECK(write(child_to[1], "a", 1) == 1 && read(child_from[0], buffer, 1) == 1 && buffer[0] == 'b');

    ready();

    int n = -1;
    SAME(ioctl(empty[0], FIONREAD, &n), 0);
    SAME(n, 0);
    SAME(fcntl(full[0], F_GETFL) & O_NONBLOCK, O_NONBLOCK);
    SAME(fcntl(full[0], F_GETFD), FD_CLOEXEC);
    SAME(fcntl(empty[0], F_GETFD), 0);
    SAME(fcntl(empty[1], F_GETFL) & (O_NONBLOCK | O_ACCMODE), O_WRONLY);
    SAME(fcntl(again, F_GETFL) & (O_NONBLOCK | O_ACCMODE), O_WRONLY | O_NONBLOCK);
    SAME(write(again, "via", 3), 3);
    SAME(read(empty[0], buffer, sizeof buffer), 3);
    EXPECT(memcmp(buffer, "via", 3) == 0);
    struct stat status;
    EXPECT(fstat(empty[1], &status) == 0);
    SAME(status.st_uid, 12);
    SAME(status.st_gid, 34);
    /* The copy of the descriptor reads the same pipe. */
    for (size_t at = 0; at < held;) {
        ssize_t got = read(high, buffer, sizeof buffer);
        EXPECT(got > 0 && memcmp(buffer, big + at, got) == 0);
        if (got <= 0)
            break;
        at += got;
    }
    SAME(read(full[0], buffer, 1), -1);
    SAME(fcntl(large[0], F_GETPIPE_SZ), sizeof big);
    static char out[sizeof big];
    SAME(read(large[0], out, sizeof out), sizeof out);
    EXPECT(memcmp(out, big, sizeof big) == 0);
    SAME(fcntl(packet[1], F_GETFL) & O_DIRECT, O_DIRECT);
    SAME(read(packet[0], buffer, 100), 3);
    SAME(read(packet[0], buffer, 2), 2); /* the rest of a packet is lost */
    SAME(read(packet[0], buffer, 100), 1);
    SAME(write(noreader[1], "x", 1), -1);
    SAME(errno, EPIPE);
    SAME(read(nowriter[0], buffer, 100), 4);
    SAME(read(nowriter[0], buffer, 100), 0);
    SAME(write(child_to[1], "x", 1), 1);
    SAME(read(child_from[0], buffer, 1), 1);
    SAME(buffer[0], 'y');
    close(child_to[1]);
    int end = 0;
    SAME(waitpid(child, &end, 0), child);
    SAME(WEXITSTATUS(end), 42);
    SAME(read(child_from[0], buffer, 1), 0);
    return done();
}
