/* FIFOs: by path, with data, opened in both directions and twice, removed while open. */
#include "row.h"
#include <sys/ioctl.h>
#include <sys/stat.h>

int main(int argc, char **argv) {
    char buffer[4096];
    go_to_base(argc, argv);
    CHECK(mkfifo("fifo", 0640) == 0 && mkfifo("gone", 0600) == 0 && mkfifo("alone", 0600) == 0);
    int r = open("fifo", O_RDONLY | O_NONBLOCK), w = open("fifo", O_WRONLY), w2 = open("fifo", O_WRONLY | O_NONBLOCK);
    CHECK(r >= 0 && w >= 0 && w2 >= 0);
    CHECK(fcntl(r, F_SETFL, 0) == 0);
    CHECK(fcntl(r, F_SETPIPE_SZ, 8192) == 8192);
    CHECK(write(w, "hello ", 6) == 6 && write(w2, "fifo", 4) == 4);
    int both = open("gone", O_RDWR);
    CHECK(both >= 0 && write(both, "kept", 4) == 4 && unlink("gone") == 0);
    int alone = open("alone", O_RDONLY | O_NONBLOCK);
    CHECK(alone >= 0);

    ready();

    SAME(fcntl(r, F_GETPIPE_SZ), 8192);
    SAME(fcntl(r, F_GETFL) & O_NONBLOCK, 0);
    SAME(fcntl(w2, F_GETFL) & (O_NONBLOCK | O_ACCMODE), O_NONBLOCK | O_WRONLY);
    SAME(read(r, buffer, sizeof buffer), 10);
    EXPECT(memcmp(buffer, "hello fifo", 10) == 0);
    close(w);
    close(w2);
    SAME(read(r, buffer, sizeof buffer), 0);
    int w3 = open("fifo", O_WRONLY | O_NONBLOCK);
    SAME(write(w3, "again", 5), 5);
    SAME(read(r, buffer, sizeof buffer), 5);
    SAME(read(both, buffer, sizeof buffer), 4);
    SAME(write(both, "more", 4), 4);
    SAME(read(both, buffer, sizeof buffer), 4);
    struct stat status;
    SAME(fstat(both, &status), 0);
    SAME(status.st_nlink, 0);
    SAME(access("gone", F_OK), -1);
    SAME(read(alone, buffer, 1), 0); /* nobody writes */
    int to = open("alone", O_WRONLY | O_NONBLOCK);
    SAME(write(to, "x", 1), 1);
    SAME(read(alone, buffer, 10), 1);
    unlink("fifo");
    unlink("alone");
    return done();
}
