/* Descriptor tables and directories: threads with their own, processes that share one. */
#include "row.h"
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

static volatile int phase;
static int problems_elsewhere, fd, own_fd;

static void *apart(void *unused) {
    (void)unused;
    CHECK(unshare(CLONE_FILES) == 0);
    CHECK(unshare(CLONE_FS) == 0);
    CHECK(chdir("/proc") == 0);
    umask(011);
    CHECK(close(fd) == 0);
    CHECK((own_fd = open("/dev/zero", O_RDONLY)) == fd);
    CHECK(fcntl(own_fd, F_DUPFD_CLOEXEC, 200) == 200);
    phase = 1;
    while (phase < 2)
        usleep(1000);
    char byte = 1, cwd[100] = "";
    problems_elsewhere += read(own_fd, &byte, 1) != 1 || byte != 0;
    problems_elsewhere += fcntl(200, F_GETFD) != FD_CLOEXEC;
    problems_elsewhere += getcwd(cwd, sizeof cwd) == NULL || strcmp(cwd, "/proc") != 0;
    problems_elsewhere += umask(0) != 011;
    phase = 3;
    while (phase < 4)
        usleep(1000);
    return NULL;
}

static int sharer(void *unused) {
    (void)unused;
    char byte;
    int *pipes = unused;
    if (read(pipes[0], &byte, 1) != 1)
        _exit(1);
    /* Seen by the other process, since the table is one. */
    if (dup2(pipes[0], 400) != 400 || write(pipes[3], "x", 1) != 1 || chdir("/dev") != 0)
        _exit(2);
    _exit(21);
}

int main(void) {
    pthread_t thread;
    char byte = 1, cwd[100] = "";
    CHECK((fd = open("/dev/null", O_RDONLY)) >= 0);
    int pipes[4];
    CHECK(pipe(pipes) == 0 && pipe(pipes + 2) == 0);
    CHECK(pthread_create(&thread, NULL, apart, NULL) == 0);
    while (phase != 1)
        usleep(1000);
    char *stack = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(stack != MAP_FAILED);
    /* Descriptors shared, memory not; directories shared. */
    pid_t child = clone(sharer, stack + 65536, CLONE_FILES | CLONE_FS | SIGCHLD, pipes);
    CHECK(child > 0);

    ready();

    SAME(read(fd, &byte, 1), 0);
    SAME(fcntl(200, F_GETFD), -1);
    EXPECT(getcwd(cwd, sizeof cwd) != NULL && strcmp(cwd, "/") == 0);
    phase = 2;
    while (phase != 3)
        usleep(1000);
    SAME(problems_elsewhere, 0);
    SAME(fcntl(400, F_GETFD), -1);
    SAME(write(pipes[1], "x", 1), 1);
    SAME(read(pipes[2], &byte, 1), 1);
    int status = 0;
    SAME(waitpid(child, &status, 0), child);
    SAME(WEXITSTATUS(status), 21);
    SAME(fcntl(400, F_GETFD), 0);
    EXPECT(getcwd(cwd, sizeof cwd) != NULL && strcmp(cwd, "/dev") == 0);
    phase = 4;
    pthread_join(thread, NULL);
    return done();
}
