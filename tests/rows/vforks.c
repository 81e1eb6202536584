/* Programs started with vfork all the time, and a child that has its parent's memory for good. */
#include "row.h"
#include <sched.h>
#include <sys/mman.h>
#include <sys/wait.h>

static volatile int shared, stop;
static volatile long started;

static int sharer(void *unused) {
    (void)unused;
    while (!stop)
        usleep(1000);
    shared = 77;
    _exit(5);
}

int main(void) {
    char *stack = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(stack != MAP_FAILED);
    pid_t with_memory = clone(sharer, stack + 65536, CLONE_VM | SIGCHLD, NULL), starter;
    volatile long *count = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(with_memory > 0 && count != MAP_FAILED);
    CHECK((starter = fork()) >= 0);
    if (starter == 0)
        for (;;) {
            pid_t child = vfork();
            if (child == 0) {
                execl("/bin/true", "true", NULL);
                _exit(9);
            }
            int status = -1;
            if (waitpid(child, &status, 0) != child || status != 0)
                _exit(1);
            ++*count;
        }
    while (*count < 3)
        usleep(1000);

    ready();

    for (long before = *count; *count < before + 3;) {
        if (waitpid(starter, NULL, WNOHANG) != 0) {
            EXPECT(!"programs are started");
            break;
        }
        usleep(1000);
    }
    int status = -1;
    stop = 1;
    SAME(waitpid(with_memory, &status, 0), with_memory);
    SAME(WEXITSTATUS(status), 5);
    SAME(shared, 77);
    return done();
}
