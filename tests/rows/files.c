/* Files by path: positions, flags, sharing, numbers; removed ones, small and large; directories; devices; a working
 * directory that was removed; umask. */
#include "row.h"
#include <dirent.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>

static char large[300000];

static int make(const char *path, const char *text, int flags) {
    int fd = open(path, O_RDWR | O_CREAT | flags, 0640);
    CHECK(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text));
    return fd;
}

static int holds(int fd, const char *text) {
    char buffer[100] = "";
    ssize_t n = pread(fd, buffer, sizeof buffer - 1, 0);
    return n == (ssize_t)strlen(text) && memcmp(buffer, text, n) == 0;
}

int main(int argc, char **argv) {
    struct stat status, other;
    char text[200] = "";
    go_to_base(argc, argv);
    umask(027);
    for (size_t i = 0; i < sizeof large; i++)
        large[i] = (char)(i * 13 + i / 4096);
    CHECK(mkdir("f", 0700) == 0 && mkdir("f/d", 0700) == 0 && mkdir("f/cwd", 0700) == 0);
    int at = make("f/position", "0123456789", O_CLOEXEC), dup_at = dup(at);
    CHECK(lseek(at, 4, SEEK_SET) == 4);
    int append = make("f/append", "start", O_APPEND);
    int writer = open("f/append", O_WRONLY | O_NONBLOCK | O_SYNC | O_NOFOLLOW), far = fcntl(writer, F_DUPFD, 900);
    CHECK(writer >= 0 && far == 900);
    int beyond = make("f/beyond", "x", 0);
    CHECK(lseek(beyond, 1 << 20, SEEK_SET) == 1 << 20);
    int removed = make("f/removed", "still here", 0), removed_ro = open("f/removed", O_RDONLY);
    CHECK(unlink("f/removed") == 0);
    int replaced = make("f/replaced", "old", 0);
    CHECK(unlink("f/replaced") == 0 && close(make("f/replaced", "new", 0)) == 0);
    int bulk = make("f/bulk", "", 0);
    CHECK(write(bulk, large, sizeof large) == sizeof large && unlink("f/bulk") == 0);
    int linked = make("f/linked", "two names", 0);
    CHECK(link("f/linked", "f/d/the other name") == 0 && unlink("f/linked") == 0);
    int mapped = make("f/mapped", "", 0);
    CHECK(ftruncate(mapped, 8192) == 0);
    char *view = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, mapped, 0);
    CHECK(view != MAP_FAILED && unlink("f/mapped") == 0);
    strcpy(view + 5000, "seen through the mapping");
    int moved = make("f/before", "moved", 0);
    CHECK(rename("f/before", "f/after (deleted)") == 0);
    int unnamed = open("f", O_TMPFILE | O_RDWR, 0600);
    CHECK(unnamed >= 0 && write(unnamed, "no name", 7) == 7);
    CHECK(mkdir("f/rmdir", 0750) == 0);
    int dir = open("f", O_RDONLY | O_DIRECTORY | O_CLOEXEC), gone_dir = open("f/rmdir", O_RDONLY | O_DIRECTORY);
    CHECK(dir >= 0 && gone_dir >= 0 && rmdir("f/rmdir") == 0);
    CHECK(symlink("position", "f/link") == 0);
    int path_only = open("f/position", O_PATH), to_link = open("f/link", O_PATH | O_NOFOLLOW);
    int null = open("/dev/null", O_RDWR), zero = open("/dev/zero", O_RDONLY), dev_random = open("/dev/urandom", O_RDONLY);
    CHECK(path_only >= 0 && to_link >= 0 && null >= 0 && zero >= 0 && dev_random >= 0);
    int p[2];
    CHECK(pipe(p) == 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        /* The position is shared; the table and the umask are not. */
        umask(077);
        close(append);
        close(p[1]);
        if (read(p[0], text, 1) != 1 || lseek(at, 0, SEEK_CUR) != 6)
            _exit(1);
        _exit(fcntl(append, F_GETFD) == -1 && umask(0) == 077 ? 11 : 2);
    }
    CHECK(chdir("f/cwd") == 0 && rmdir("../cwd") == 0);

    ready();

    SAME(getcwd(text, sizeof text) == NULL, 1);
    SAME(open("x", O_CREAT | O_RDWR, 0600), -1);
    SAME(chdir(base), 0);
    SAME(lseek(at, 0, SEEK_CUR), 4);
    SAME(read(dup_at, text, 2), 2);
    EXPECT(memcmp(text, "45", 2) == 0);
    SAME(lseek(at, 0, SEEK_CUR), 6);
    SAME(fcntl(at, F_GETFD), FD_CLOEXEC);
    SAME(fcntl(dup_at, F_GETFD), 0);
    SAME(fcntl(append, F_GETFL) & (O_APPEND | O_ACCMODE), O_APPEND | O_RDWR);
    SAME(write(append, "!", 1), 1);
    SAME(fcntl(far, F_GETFL) & (O_ACCMODE | O_NONBLOCK | O_SYNC), O_WRONLY | O_NONBLOCK | O_SYNC);
    SAME(lseek(far, 0, SEEK_CUR), 0);
    SAME(lseek(writer, 3, SEEK_SET), 3);
    SAME(lseek(far, 0, SEEK_CUR), 3);
    SAME(lseek(beyond, 0, SEEK_CUR), 1 << 20);

    EXPECT(holds(removed, "still here") && holds(removed_ro, "still here"));
    SAME(pwrite(removed, "S", 1, 0), 1);
    EXPECT(holds(removed_ro, "Still here"));
    SAME(lseek(removed, 0, SEEK_CUR), 10);
    SAME(fstat(removed, &status), 0);
    SAME(status.st_nlink, 0);
    SAME(status.st_mode & 07777, 0640);
    SAME(access("f/removed", F_OK), -1);
    SAME(readlink("/proc/self/fd/3", text, sizeof text) > 0, 1);
    EXPECT(holds(replaced, "old"));
    int now = open("f/replaced", O_RDONLY);
    EXPECT(holds(now, "new"));
    static char read_back[sizeof large];
    SAME(pread(bulk, read_back, sizeof large, 0), sizeof large);
    EXPECT(memcmp(read_back, large, sizeof large) == 0);
    EXPECT(fstat(linked, &status) == 0 && stat("f/d/the other name", &other) == 0);
    SAME(status.st_ino, other.st_ino);
    EXPECT(holds(linked, "two names"));
    EXPECT(strcmp(view + 5000, "seen through the mapping") == 0);
    SAME(pread(mapped, text, 24, 5000), 24);
    EXPECT(memcmp(text, "seen through the mapping", 24) == 0);
    SAME(pwrite(mapped, "SEEN", 4, 5000), 4);
    EXPECT(memcmp(view + 5000, "SEEN", 4) == 0);
    EXPECT(holds(moved, "moved"));
    EXPECT(holds(unnamed, "no name"));
    SAME(fstat(unnamed, &status), 0);
    SAME(status.st_nlink, 0);
    snprintf(text, sizeof text, "/proc/self/fd/%d", unnamed);
    SAME(linkat(AT_FDCWD, text, dir, "named", AT_SYMLINK_FOLLOW), 0);

    SAME(fcntl(dir, F_GETFD), FD_CLOEXEC);
    SAME(faccessat(dir, "position", F_OK, 0), 0);
    SAME(openat(gone_dir, "new", O_CREAT | O_RDWR, 0600), -1);
    SAME(fstat(gone_dir, &status), 0);
    SAME(status.st_nlink, 0);
    SAME(fcntl(path_only, F_GETFL) & O_PATH, O_PATH);
    SAME(read(path_only, text, 1), -1);
    memset(text, 0, sizeof text);
    SAME(readlinkat(to_link, "", text, sizeof text), 8);
    EXPECT(strcmp(text, "position") == 0);
    SAME(write(null, "x", 1), 1);
    text[0] = 1;
    SAME(read(zero, text, 1), 1);
    SAME(text[0], 0);
    SAME(read(dev_random, text, 16), 16);
    SAME(fstat(null, &status), 0);
    SAME(status.st_rdev, makedev(1, 3));

    SAME(umask(0), 027);
    SAME(write(p[1], "x", 1), 1);
    int end = 0;
    SAME(waitpid(child, &end, 0), child);
    SAME(WEXITSTATUS(end), 11);
    for (const char **name = (const char *[]){"position", "append", "beyond", "replaced", "d/the other name", "after (deleted)",
                                              "link", "named", NULL};
         *name; name++) {
        snprintf(text, sizeof text, "%s/f/%s", base, *name);
        EXPECT(unlink(text) == 0);
    }
    SAME(rmdir("f/d"), 0);
    SAME(rmdir("f"), 0);
    return done();
}
