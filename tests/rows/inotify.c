/* inotify: watches of files and directories with their numbers and masks; one whose file was removed while open. */
#include "row.h"
#include <sys/inotify.h>
#include <sys/stat.h>

static char buffer[8192] __attribute__((aligned(8)));

/* Reads all events that are there; tells whether there was one for `wd` with all bits of `mask` and that name. */
static int event(int fd, int wd, uint32_t mask, const char *name) {
    int seen = 0;
    ssize_t n = read(fd, buffer, sizeof buffer);
    for (ssize_t at = 0; at < n;) {
        struct inotify_event *e = (struct inotify_event *)(buffer + at);
        const char *is = e->len ? e->name : "";
        if (e->wd == wd && (e->mask & mask) == mask && strcmp(is, name) == 0)
            seen++;
        at += sizeof *e + e->len;
    }
    return seen;
}

static void touch(const char *path) {
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND, 0600);
    CHECK(fd >= 0 && write(fd, "x", 1) == 1 && close(fd) == 0);
}

int main(int argc, char **argv) {
    go_to_base(argc, argv);
    int fd = inotify_init1(IN_NONBLOCK | IN_CLOEXEC), lazy = inotify_init1(IN_NONBLOCK);
    CHECK(fd >= 0 && lazy >= 0);
    CHECK(mkdir("watched", 0700) == 0 && mkdir("watched/deep down", 0700) == 0);
    touch("watched/file");
    touch("watched/deep down/other");
    touch("removed");
    int dir = inotify_add_watch(fd, "watched", IN_CREATE | IN_DELETE | IN_ISDIR);
    int gone = inotify_add_watch(fd, "watched/deep down/other", IN_ALL_EVENTS);
    CHECK(inotify_rm_watch(fd, gone) == 0);
    int file = inotify_add_watch(fd, "watched/file", IN_MODIFY | IN_CLOSE_WRITE);
    for (int i = 0; i < 5; i++)
        CHECK(inotify_rm_watch(fd, inotify_add_watch(fd, "/", IN_OPEN)) == 0);
    int deep = inotify_add_watch(fd, "watched/deep down/other", IN_ATTRIB | IN_ONESHOT);
    int open_file = open("removed", O_RDWR);
    int removed = inotify_add_watch(fd, "removed", IN_MODIFY);
    CHECK(dir == 1 && file == 3 && deep == 9 && removed == 10 && open_file >= 0);
    CHECK(unlink("removed") == 0);
    while (read(fd, buffer, sizeof buffer) > 0)
        ;
    CHECK(inotify_add_watch(lazy, "watched", IN_CREATE) == 1);

    ready();

    SAME(fcntl(fd, F_GETFD), FD_CLOEXEC);
    /* What making the files and watches again did is not told. */
    SAME(read(fd, buffer, sizeof buffer), -1);
    touch("watched/new");
    EXPECT(event(fd, dir, IN_CREATE, "new") == 1);
    EXPECT(event(lazy, 1, IN_CREATE, "new") == 1);
    touch("watched/file");
    SAME(read(lazy, buffer, sizeof buffer), -1);
    EXPECT(event(fd, file, IN_MODIFY, "") >= 1);
    EXPECT(chmod("watched/deep down/other", 0640) == 0);
    EXPECT(event(fd, deep, IN_ATTRIB, "") == 1);
    EXPECT(chmod("watched/deep down/other", 0600) == 0);
    SAME(event(fd, deep, IN_ATTRIB, ""), 0); /* once */
    SAME(write(open_file, "y", 1), 1);
    EXPECT(event(fd, removed, IN_MODIFY, "") == 1);
    /* The same file gives the same number, another one a new one. */
    SAME(inotify_add_watch(fd, "watched/file", IN_MODIFY), file);
    EXPECT(inotify_add_watch(fd, "/bin", IN_OPEN) > removed);
    SAME(inotify_rm_watch(fd, dir), 0);
    unlink("watched/new");
    unlink("watched/file");
    unlink("watched/deep down/other");
    rmdir("watched/deep down");
    rmdir("watched");
    return done();
}
