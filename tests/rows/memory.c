/* Mappings of all kinds: protections, pieces, guards, advice, locks, keys, names, what forks and stacks get of them. */
#include "row.h"
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#define MADV_GUARD 102
enum { P = 4096, HUGE = 2 << 20 };

static char *map(size_t pages, int flags) {
    char *at = mmap(NULL, pages * P, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | flags, -1, 0);
    CHECK(at != MAP_FAILED);
    return at;
}

/* Whether the page can be read (written): by a call that fails instead of a signal. */
static int readable(const char *at) {
    int fds[2];
    CHECK(pipe(fds) == 0);
    int can = write(fds[1], at, 1) == 1;
    close(fds[0]);
    close(fds[1]);
    return can;
}
static int writable(char *at) {
    int fds[2];
    CHECK(pipe(fds) == 0 && write(fds[1], readable(at) ? at : "", 1) == 1);
    int can = read(fds[0], at, 1) == 1;
    close(fds[0]);
    close(fds[1]);
    return can;
}

/* A line of /proc/self/smaps of the mapping that begins at `at`. */
static const char *smaps(const void *at, const char *field) {
    static char line[512];
    char start[32];
    int inside = 0, len = snprintf(start, sizeof start, "%lx-", (unsigned long)at);
    FILE *file = fopen("/proc/self/smaps", "r");
    CHECK(file);
    while (fgets(line, sizeof line, file)) {
        if (strncmp(line, start, len) == 0)
            inside = 1;
        else if (inside && strncmp(line, field, strlen(field)) == 0)
            break;
        else if (inside && strncmp(line, "VmFlags", 7) == 0) {
            line[0] = 0;
            break;
        }
    }
    fclose(file);
    return line;
}

int main(void) {
    /* Pieces of one mapping with other protections, one of them gone. */
    char *pieces = map(8, MAP_PRIVATE);
    for (int i = 0; i < 8; i++)
        memset(pieces + i * P, 'a' + i, P);
    CHECK(mprotect(pieces + P, P, PROT_READ) == 0 && mprotect(pieces + 3 * P, P, PROT_NONE) == 0);
    CHECK(mprotect(pieces + 5 * P, P, PROT_READ | PROT_EXEC) == 0);
    /* Touched nowhere, here and there, given up again. */
    char *sparse = map(3000, MAP_PRIVATE | MAP_NORESERVE);
    for (int i = 0; i < 3000; i += 2)
        sparse[i * P] = i;
    CHECK(madvise(sparse + 100 * P, 100 * P, MADV_DONTNEED) == 0);
    /* Moved, so that its offsets are not those of its place; and a second view of shared memory. */
    char *shared = map(4, MAP_SHARED);
    for (int i = 0; i < 4; i++)
        shared[i * P] = 'A' + i;
    char *view = mremap(shared + 2 * P, 0, 2 * P, MREMAP_MAYMOVE);
    CHECK(view != MAP_FAILED && view[0] == 'C');
    char *moved = map(4, MAP_PRIVATE);
    strcpy(moved + P, "moved");
    char *place = map(16, MAP_PRIVATE);
    moved = mremap(moved, 4 * P, 8 * P, MREMAP_MAYMOVE | MREMAP_FIXED, place + 4 * P);
    CHECK(moved == place + 4 * P);
    /* Guards, in an area with content around them. */
    char *guarded = map(8, MAP_PRIVATE);
    memset(guarded, 'g', 8 * P);
    int guards = madvise(guarded + 2 * P, 2 * P, MADV_GUARD) == 0;
    /* Huge pages, and none. */
    char *huge = mmap(NULL, 3 * HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    huge = (char *)(((unsigned long)huge + HUGE - 1) & -(unsigned long)HUGE);
    int thp = madvise(huge, HUGE, MADV_HUGEPAGE) == 0;
    CHECK(madvise(huge + HUGE, HUGE, MADV_NOHUGEPAGE) == 0 || errno == EINVAL);
    for (int i = 0; i < 2 * HUGE; i += P)
        huge[i] = i / P;
    /* What children do not get, or get empty; what is not dumped; what is locked; what has a name. */
    char *unforked = map(1, MAP_PRIVATE), *wiped = map(1, MAP_PRIVATE), *undumped = map(1, MAP_PRIVATE);
    *unforked = *wiped = *undumped = 'u';
    CHECK(madvise(unforked, P, MADV_DONTFORK) == 0 && madvise(wiped, P, MADV_WIPEONFORK) == 0);
    CHECK(madvise(undumped, P, MADV_DONTDUMP) == 0);
    char *locked = map(2, MAP_PRIVATE);
    CHECK(mlock(locked, P) == 0);
    *locked = 'l';
    char *named = map(1, MAP_PRIVATE);
    int names = prctl(0x53564d41, 0, named, P, "a name") == 0;
    *named = 'n';
    /* Protection keys. */
    char *keyed = map(1, MAP_PRIVATE);
    *keyed = 'k';
    int first = pkey_alloc(0, 0), key = pkey_alloc(0, PKEY_DISABLE_WRITE);
    CHECK(key < 0 || pkey_mprotect(keyed, P, PROT_READ | PROT_WRITE, key) == 0);
    /* The break, and a stack that grows. */
    char *end = sbrk(64 * P);
    CHECK(end != (char *)-1);
    strcpy(end + 63 * P, "heap");
    /* Last: whatever is mapped next goes there. */
    CHECK(munmap(pieces + 6 * P, P) == 0);

    ready();

    for (int i = 0; i < 8; i++) {
        int expected_read = i != 3 && i != 6, expected_write = expected_read && i != 1 && i != 5;
        SAME(readable(pieces + i * P), expected_read);
        SAME(writable(pieces + i * P), expected_write);
        if (expected_read)
            SAME(pieces[i * P + 17], 'a' + i);
    }
    SAME(mprotect(pieces + 3 * P, P, PROT_READ), 0);
    SAME(pieces[3 * P + P - 1], 'd');
    for (int i = 0; i < 3000; i++)
        SAME(sparse[i * P], (char)(i % 2 == 0 && (i < 100 || i >= 200) ? i : 0));
    EXPECT(strstr(smaps(sparse, "VmFlags"), " nr") != NULL);
    shared[2 * P] = 'z';
    EXPECT(view[0] == 'z' && view[P] == 'D' && shared[0] == 'A');
    EXPECT(strcmp(moved + P, "moved") == 0 && moved[7 * P] == 0);
    if (guards) {
        for (int i = 0; i < 8; i++)
            SAME(readable(guarded + i * P), i != 2 && i != 3);
        SAME(guarded[4 * P], 'g');
    }
    for (int i = 0; i < 2 * HUGE; i += P)
        if (huge[i] != (char)(i / P))
            EXPECT(!"huge pages");
    EXPECT(!thp || strstr(smaps(huge, "VmFlags"), " hg") != NULL);
    EXPECT(!thp || strstr(smaps(huge + HUGE, "VmFlags"), " nh") != NULL);
    pid_t child = fork();
    if (child == 0)
        _exit(readable(unforked) ? 1 : *wiped ? 2 : *undumped != 'u' ? 3 : 0);
    int status = -1;
    EXPECT(waitpid(child, &status, 0) == child && status == 0);
    EXPECT(*unforked == 'u' && *wiped == 'u');
    EXPECT(strstr(smaps(undumped, "VmFlags"), " dd") != NULL);
    EXPECT(strncmp(smaps(locked, "Locked:"), "Locked:", 7) == 0 && strstr(smaps(locked, "Locked:"), " 4 kB") != NULL);
    EXPECT(*locked == 'l' && *named == 'n');
    if (names) {
        char text[16384];
        int fd = open("/proc/self/maps", O_RDONLY), n, found = 0;
        while ((n = read(fd, text, sizeof text - 1)) > 0) {
            text[n] = 0;
            found |= strstr(text, "[anon:a name]") != NULL;
        }
        close(fd);
        EXPECT(found);
    }
    if (key >= 0) {
        EXPECT(*keyed == 'k');
        SAME(pkey_get(key), PKEY_DISABLE_WRITE);
        SAME(writable(keyed), 0);
        SAME(pkey_set(key, 0), 0);
        SAME(writable(keyed), 1);
        int next = pkey_alloc(0, 0);
        EXPECT(next != first && next != key);
    }
    EXPECT(sbrk(0) == end + 64 * P && strcmp(end + 63 * P, "heap") == 0);
    EXPECT(sbrk(P) == end + 64 * P);
    end[64 * P] = 1;
    return done();
}
