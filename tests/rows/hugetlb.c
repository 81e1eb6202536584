/* Pages of a fixed huge size: private and shared mappings, memfds, segments. Without any set aside there is nothing to see. */
#include "row.h"
#include <sys/mman.h>
#include <sys/shm.h>

enum { HUGE = 2 << 20 };

int main(void) {
    int flags = MAP_ANONYMOUS | MAP_HUGETLB | (21 << MAP_HUGE_SHIFT);
    char *own = mmap(NULL, 2 * HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | flags, -1, 0);
    char *shared = mmap(NULL, HUGE, PROT_READ | PROT_WRITE, MAP_SHARED | flags, -1, 0);
    int fd = memfd_create("huge", MFD_HUGETLB | (21 << MAP_HUGE_SHIFT));
    char *file = MAP_FAILED;
    if (fd >= 0 && ftruncate(fd, HUGE) == 0)
        file = mmap(NULL, HUGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (own != MAP_FAILED)
        memset(own + HUGE, 'o', 4096);
    if (shared != MAP_FAILED)
        strcpy(shared, "shared");
    if (file != MAP_FAILED)
        strcpy(file + HUGE / 2, "file");

    ready();

    if (own != MAP_FAILED) {
        SAME(own[HUGE + 4095], 'o');
        SAME(own[HUGE + 4096], 0);
        SAME(own[0], 0);
        own[0] = 1;
        /* Only whole huge pages can be unmapped. */
        SAME(munmap(own, 4096), -1);
        SAME(munmap(own, HUGE), 0);
    }
    EXPECT(shared == MAP_FAILED || strcmp(shared, "shared") == 0);
    if (file != MAP_FAILED) {
        char text[8] = "";
        EXPECT(strcmp(file + HUGE / 2, "file") == 0);
        SAME(pread(fd, text, 5, HUGE / 2), 5);
        EXPECT(strcmp(text, "file") == 0);
    }
    return done();
}
