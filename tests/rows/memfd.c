/* memfds: contents, seals, sharing through descriptors and mappings, other descriptions of the same memory. */
#include "row.h"
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define SIZE (3 * 4096 + 100)

static unsigned char pattern(size_t i) { return i * 7 + i / 4096; }

static void fill(int fd) {
    unsigned char all[SIZE];
    for (size_t i = 0; i < SIZE; i++)
        all[i] = pattern(i);
    CHECK(pwrite(fd, all, SIZE, 0) == SIZE);
}

static int intact(int fd) {
    unsigned char all[SIZE + 1];
    if (pread(fd, all, SIZE + 1, 0) != SIZE)
        return 0;
    for (size_t i = 0; i < SIZE; i++)
        if (all[i] != pattern(i))
            return 0;
    return 1;
}

int main(void) {
    int plain = memfd_create("a name with spaces", 0), sealed = memfd_create("sealed", MFD_ALLOW_SEALING | MFD_CLOEXEC);
    int mapped = memfd_create("mapped", MFD_ALLOW_SEALING), closed = memfd_create("closed", 0);
    int empty = memfd_create("", MFD_ALLOW_SEALING), sparse = memfd_create("sparse", 0);
    CHECK(plain >= 0 && sealed >= 0 && mapped >= 0 && closed >= 0 && empty >= 0 && sparse >= 0);
    fill(plain);
    fill(sealed);
    fill(mapped);
    fill(closed);
    CHECK(lseek(plain, 77, SEEK_SET) == 77);
    CHECK(fcntl(sealed, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL) == 0);
    CHECK(ftruncate(sparse, 1 << 30) == 0 && pwrite(sparse, "end", 3, (1 << 30) - 3) == 3);
    CHECK(fchmod(plain, 0640) == 0);
    unsigned char *view = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, mapped, 0);
    unsigned char *private = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE, mapped, 0);
    unsigned char *only = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, closed, 0);
    CHECK(view != MAP_FAILED && private != MAP_FAILED && only != MAP_FAILED && close(closed) == 0);
    private[5] = 200;
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", plain);
    int reader = open(path, O_RDONLY);
    CHECK(reader >= 0 && lseek(reader, 9, SEEK_SET) == 9);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        while (view[0] == pattern(0))
            usleep(1000);
        _exit(view[0]);
    }

    ready();

    SAME(lseek(plain, 0, SEEK_CUR), 77);
    SAME(lseek(reader, 0, SEEK_CUR), 9);
    SAME(fcntl(reader, F_GETFL) & O_ACCMODE, O_RDONLY);
    EXPECT(intact(plain) && intact(sealed) && intact(mapped) && intact(reader));
    SAME(fcntl(sealed, F_GET_SEALS), F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL);
    SAME(fcntl(plain, F_GET_SEALS), F_SEAL_SEAL);
    SAME(fcntl(mapped, F_GET_SEALS), 0);
    SAME(fcntl(empty, F_GET_SEALS), 0);
    SAME(fcntl(sealed, F_GETFD), FD_CLOEXEC);
    SAME(write(sealed, "x", 1), -1);
    struct stat status;
    SAME(fstat(plain, &status), 0);
    SAME(status.st_mode & 07777, 0640);
    SAME(fstat(empty, &status), 0);
    SAME(status.st_size, 0);
    SAME(fstat(sparse, &status), 0);
    SAME(status.st_size, 1 << 30);
    EXPECT(status.st_blocks < 100);
    char end[4] = "";
    SAME(pread(sparse, end, 3, (1 << 30) - 3), 3);
    EXPECT(strcmp(end, "end") == 0);
    SAME(private[5], 200);
    SAME(private[6], pattern(6));
    SAME(only[SIZE - 1], pattern(SIZE - 1));
    SAME(pwrite(plain, "Z", 1, 3), 1);
    SAME(pread(reader, end, 1, 3), 1);
    SAME(end[0], 'Z');
    SAME(pwrite(mapped, "Y", 1, 4000), 1);
    SAME(view[4000], 'Y');
    view[0] = 99;
    SAME(pread(mapped, end, 1, 0), 1);
    SAME(end[0], 99);
    int end_status = 0;
    SAME(waitpid(child, &end_status, 0), child);
    SAME(WEXITSTATUS(end_status), 99);
    char name[100] = "";
    snprintf(path, sizeof path, "/proc/self/fd/%d", plain);
    EXPECT(readlink(path, name, sizeof name - 1) > 0 && strcmp(name, "/memfd:a name with spaces (deleted)") == 0);
    return done();
}
