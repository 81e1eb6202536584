/* A process that shares its parent's memory, and one that shares its descriptors and its directory too. */
#include "row.h"
#include <sched.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>

static volatile int phase[2], opened = -1;
static int counter;

static int memory(void *unused) {
    (void)unused;
    counter++;
    phase[0] = 1;
    while (phase[0] != 2)
        usleep(1000);
    counter += 10;
    /* A descriptor table of its own. */
    EXPECT(fcntl(opened, F_GETFD) == -1);
    return 41;
}
static int everything(void *unused) {
    (void)unused;
    counter++;
    phase[1] = 1;
    while (phase[1] != 2)
        usleep(1000);
    counter += 100;
    opened = open("/proc/self/stat", O_RDONLY);
    EXPECT(opened >= 0);
    CHECK(chdir("/bin") == 0);
    phase[1] = 3;
    while (phase[1] != 4)
        usleep(1000);
    return 42;
}

int main(void) {
    enum { STACK = 1 << 18 };
    char *stacks = malloc(2 * STACK), path[64];
    struct stat here, bin;
    CHECK(stacks != NULL);
    pid_t first = clone(memory, stacks + STACK, CLONE_VM | SIGCHLD, NULL);
    pid_t second = clone(everything, stacks + 2 * STACK, CLONE_VM | CLONE_FILES | CLONE_FS | CLONE_SIGHAND | SIGCHLD, NULL);
    CHECK(first > 0 && second > 0);
    while (!phase[0] || !phase[1])
        usleep(1000);
    SAME(counter, 2);
    ready();
    phase[1] = 2;
    while (phase[1] != 3)
        usleep(1000);
    SAME(counter, 102);
    EXPECT(fcntl(opened, F_GETFD) >= 0);
    CHECK(stat(".", &here) == 0 && stat("/bin", &bin) == 0);
    SAME(here.st_ino, bin.st_ino);
    /* Signal actions are common too. */
    CHECK(signal(SIGWINCH, SIG_IGN) != SIG_ERR);
    unsigned long long ignored = 0;
    snprintf(path, sizeof path, "/proc/%d/status", second);
    FILE *f = fopen(path, "r");
    char line[256];
    while (f && fgets(line, sizeof line, f))
        sscanf(line, "SigIgn: %llx", &ignored);
    if (f)
        fclose(f);
    EXPECT(ignored & 1ull << (SIGWINCH - 1));
    phase[0] = 2;
    phase[1] = 4;
    int status = -1;
    SAME(waitpid(first, &status, 0), first);
    EXPECT(WIFEXITED(status) && WEXITSTATUS(status) == 41);
    SAME(waitpid(second, &status, 0), second);
    EXPECT(WIFEXITED(status) && WEXITSTATUS(status) == 42);
    SAME(counter, 112);
    return done();
}
