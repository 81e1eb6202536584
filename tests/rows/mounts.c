/* Mounts that the program made itself: a tmpfs with content, a bind inside the container, a procfs; one made read-only. */
#include "row.h"
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>

static void make(const char *path, const char *text) {
    int fd = open(path, O_CREAT | O_WRONLY, 0600);
    CHECK(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text) && close(fd) == 0);
}

static int has(const char *path, const char *text) {
    char buffer[64] = "";
    int fd = open(path, O_RDONLY);
    ssize_t n = fd < 0 ? -1 : read(fd, buffer, 63);
    if (fd >= 0)
        close(fd);
    return n == (ssize_t)strlen(text) && strcmp(buffer, text) == 0;
}

int main(void) {
    struct statfs fs;
    CHECK(mkdir("/dev/mnt", 0755) == 0 && mkdir("/dev/bound", 0755) == 0 && mkdir("/dev/procfs", 0755) == 0);
    CHECK(mount("mine", "/dev/mnt", "tmpfs", MS_NOSUID | MS_NOEXEC, "size=1m,mode=710,uid=5") == 0);
    make("/dev/mnt/file", "in my own tmpfs");
    CHECK(mkdir("/dev/mnt/sub", 0700) == 0);
    make("/dev/mnt/sub/file", "bound");
    CHECK(mount("/dev/mnt/sub", "/dev/bound", NULL, MS_BIND, NULL) == 0);
    CHECK(mount("proc", "/dev/procfs", "proc", MS_RDONLY, NULL) == 0);
    CHECK(mount(NULL, "/dev/mqueue", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY, NULL) == 0);

    ready();

    EXPECT(has("/dev/mnt/file", "in my own tmpfs"));
    EXPECT(has("/dev/bound/file", "bound"));
    EXPECT(statfs("/dev/mnt", &fs) == 0 && fs.f_type == 0x01021994);
    SAME(fs.f_blocks * fs.f_bsize, 1 << 20);
    EXPECT((fs.f_flags & (ST_NOSUID | ST_NOEXEC)) == (ST_NOSUID | ST_NOEXEC));
    struct stat st;
    EXPECT(stat("/dev/mnt", &st) == 0 && st.st_uid == 5 && (st.st_mode & 07777) == 0710);
    EXPECT(unlink("/dev/mnt/sub/file") == 0 && access("/dev/bound/file", F_OK) < 0);
    EXPECT(access("/dev/procfs/1/status", F_OK) == 0 && access("/dev/procfs/self", F_OK) == 0);
    EXPECT(statfs("/dev/procfs", &fs) == 0 && (fs.f_flags & ST_RDONLY));
    EXPECT(statfs("/dev/mqueue", &fs) == 0 && (fs.f_flags & ST_RDONLY));
    return done();
}
