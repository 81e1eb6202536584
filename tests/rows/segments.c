/* Parts of System V segments, after some were unmapped, protected or moved. */
#include "row.h"
#include <sys/mman.h>
#include <sys/shm.h>

enum { P = 4096, PAGES = 16 };

int main(void) {
    int id = shmget(IPC_PRIVATE, PAGES * P, 0600);
    CHECK(id >= 0);
    char *one = shmat(id, NULL, 0), *two = shmat(id, NULL, 0), *whole = shmat(id, NULL, 0);
    CHECK(one != (void *)-1 && two != (void *)-1 && whole != (void *)-1);
    for (int i = 0; i < PAGES; i++)
        one[i * P] = 'a' + i;
    /* Advice, protection, a hole, something else in the hole. */
    CHECK(madvise(one, P, MADV_DONTDUMP) == 0 && mprotect(one + 3 * P, P, PROT_READ) == 0);
    CHECK(munmap(one + 5 * P, 2 * P) == 0 && mprotect(one + 9 * P, P, PROT_NONE) == 0);
    char *hole = mmap(one + 5 * P, P, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(hole == one + 5 * P);
    *hole = 'h';
    /* Nothing left but one page in the middle. */
    CHECK(munmap(two, 7 * P) == 0 && munmap(two + 8 * P, (PAGES - 8) * P) == 0);

    ready();

    whole[0] = 'A';
    whole[7 * P] = 'H';
    SAME(one[0], 'A');
    SAME(one[7 * P], 'H');
    SAME(two[7 * P], 'H');
    SAME(one[3 * P], 'd');
    SAME(*hole, 'h');
    for (int i = 10; i < PAGES; i++)
        SAME(one[i * P], 'a' + i);
    SAME(mprotect(one + 9 * P, P, PROT_READ | PROT_WRITE), 0);
    one[9 * P] = 'J';
    SAME(whole[9 * P], 'J');
    SAME(shmdt(whole), 0);
    SAME(shmdt(one), 0);
    SAME(two[7 * P], 'H');
    return done();
}
