/* Files of a tmpfs that the spec mounts: contents, kinds, modes, owners, times, names; mapped and open ones, too. */
#include "row.h"
#include <dirent.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>

static int is_mapped_file_shared(char *map) {
    int fd = open("/dev/shm/mapped", O_RDWR);
    char byte = 0;
    return fd >= 0 && pwrite(fd, "Z", 1, 100) == 1 && map[100] == 'Z' && pread(fd, &byte, 1, 4096) == 1 && byte == 'M';
}

int main(void) {
    struct stat st;
    struct timespec times[2] = { { 1000000000, 1 }, { 1234567890, 987654321 } };
    int fd = open("/dev/shm/plain", O_CREAT | O_RDWR, 0640);
    CHECK(fd >= 0 && write(fd, "content", 7) == 7);
    CHECK(fchown(fd, 11, 22) == 0 && fchmod(fd, 0640) == 0);
    CHECK(mkdir("/dev/shm/dir", 0700) == 0 && chmod("/dev/shm/dir", 01777) == 0);
    CHECK(link("/dev/shm/plain", "/dev/shm/dir/same") == 0);
    CHECK(symlink("../plain", "/dev/shm/dir/link") == 0);
    CHECK(mkfifo("/dev/shm/fifo", 0622) == 0 && chmod("/dev/shm/fifo", 0622) == 0);
    CHECK(mknod("/dev/shm/null", S_IFCHR | 0600, makedev(1, 3)) == 0);
    int sparse = open("/dev/shm/sparse", O_CREAT | O_RDWR, 0600);
    CHECK(sparse >= 0 && ftruncate(sparse, 1 << 30) == 0 && pwrite(sparse, "end", 3, (1 << 30) - 3) == 3);
    /* As shm_open(3) has it. */
    int shared = open("/dev/shm/mapped", O_CREAT | O_RDWR, 0600);
    CHECK(shared >= 0 && ftruncate(shared, 8192) == 0);
    char *map = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, shared, 0);
    CHECK(map != MAP_FAILED);
    map[4096] = 'M';
    CHECK(lseek(fd, 3, SEEK_SET) == 3);
    CHECK(utimensat(AT_FDCWD, "/dev/shm/plain", times, 0) == 0);
    /* The container's own changes to /dev. */
    CHECK(unlink("/dev/full") == 0 && symlink("null", "/dev/full") == 0 && mkdir("/dev/mine", 0711) == 0);

    ready();

    char text[16] = "";
    EXPECT(read(fd, text, 15) == 4 && strcmp(text, "tent") == 0);
    EXPECT(stat("/dev/shm/plain", &st) == 0);
    SAME(st.st_mode, S_IFREG | 0640);
    SAME(st.st_uid, 11);
    SAME(st.st_gid, 22);
    SAME(st.st_nlink, 2);
    SAME(st.st_mtim.tv_sec, 1234567890);
    SAME(st.st_mtim.tv_nsec, 987654321);
    ino_t inode = st.st_ino;
    EXPECT(stat("/dev/shm/dir/same", &st) == 0 && st.st_ino == inode);
    EXPECT(fstat(fd, &st) == 0 && st.st_ino == inode);
    EXPECT(readlink("/dev/shm/dir/link", text, 15) == 8 && memcmp(text, "../plain", 8) == 0);
    EXPECT(stat("/dev/shm/dir", &st) == 0);
    SAME(st.st_mode, S_IFDIR | 01777);
    EXPECT(lstat("/dev/shm/fifo", &st) == 0);
    SAME(st.st_mode, S_IFIFO | 0622);
    EXPECT(lstat("/dev/shm/null", &st) == 0);
    SAME(st.st_rdev, makedev(1, 3));
    EXPECT(fstat(sparse, &st) == 0);
    SAME(st.st_size, 1 << 30);
    EXPECT(st.st_blocks < 100);
    EXPECT(pread(sparse, text, 3, (1 << 30) - 3) == 3 && memcmp(text, "end", 3) == 0);
    EXPECT(is_mapped_file_shared(map));
    EXPECT(readlink("/dev/full", text, 15) == 4 && memcmp(text, "null", 4) == 0);
    EXPECT(stat("/dev/mine", &st) == 0 && (st.st_mode & 07777) == 0711);
    EXPECT(stat("/dev/zero", &st) == 0 && st.st_rdev == makedev(1, 5));
    return done();
}
