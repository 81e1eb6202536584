/* What processes keep besides: limits, dumpability, personality, the death signal, subreapers, huge pages, barriers, names. */
#include "row.h"
#include <linux/membarrier.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

static long number(const char *path) {
    long value = -99999;
    FILE *f = fopen(path, "r");
    if (f) {
        if (fscanf(f, "%ld", &value) != 1)
            value = -99998;
        fclose(f);
    }
    return value;
}
static void put(const char *path, const char *text) {
    int fd = open(path, O_WRONLY);
    CHECK(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text));
    close(fd);
}
static long says(long *all) {
    int n = 0, value;
    struct rlimit limit;
    for (int i = 0; i < 16; i++) {
        getrlimit(i, &limit);
        all[n++] = limit.rlim_cur;
        all[n++] = limit.rlim_max;
    }
    all[n++] = prctl(PR_GET_DUMPABLE, 0, 0, 0, 0);
    all[n++] = personality(0xffffffff);
    prctl(PR_GET_PDEATHSIG, &value);
    all[n++] = value;
    prctl(PR_GET_CHILD_SUBREAPER, &value);
    all[n++] = value;
    all[n++] = prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0);
    all[n++] = prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0);
    all[n++] = prctl(PR_GET_SECUREBITS, 0, 0, 0, 0);
    all[n++] = prctl(PR_MCE_KILL_GET, 0, 0, 0, 0);
    all[n++] = number("/proc/self/oom_score_adj");
    all[n++] = number("/proc/self/coredump_filter");
    mode_t mask = umask(0);
    umask(mask);
    all[n++] = mask;
    all[n++] = syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0);
    all[n++] = syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE, 0);
    return n;
}

int main(void) {
    struct rlimit limit = {77, 222};
    long before[64], after[64];
    char name[17] = {0};
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    limit = (struct rlimit){1 << 20, 1 << 22};
    CHECK(setrlimit(RLIMIT_STACK, &limit) == 0);
    CHECK(setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0}) == 0);
    CHECK(prctl(PR_SET_NAME, "a name) R 1 (x") == 0);
    CHECK(personality(ADDR_NO_RANDOMIZE) != -1);
    CHECK(prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0) == 0);
    CHECK(prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0);
    prctl(PR_MCE_KILL, 1, 1, 0, 0);
    put("/proc/self/oom_score_adj", "321");
    put("/proc/self/coredump_filter", "0x7");
    umask(0123);
    syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0);
    /* A child that wants to die with its parent, and whose memory is nobody's business. */
    int pipes[2];
    CHECK(pipe(pipes) == 0);
    pid_t child = fork();
    if (child == 0) {
        sigset_t set;
        int signal;
        sigemptyset(&set);
        sigaddset(&set, SIGUSR2);
        sigprocmask(SIG_BLOCK, &set, NULL);
        prctl(PR_SET_PDEATHSIG, SIGTERM);
        prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
        long n = says(before);
        CHECK(write(pipes[1], "x", 1) == 1);
        sigwait(&set, &signal);
        says(after);
        for (long i = 0; i < n; i++)
            SAME(after[i], before[i]);
        fflush(stdout);
        _exit(problems);
    }
    CHECK(read(pipes[0], name, 1) == 1);
    long n = says(before);
    ready();
    says(after);
    for (long i = 0; i < n; i++)
        if (after[i] != before[i]) {
            printf("%ld: %ld was %ld\n", i, after[i], before[i]);
            problems++;
        }
    CHECK(prctl(PR_GET_NAME, name) == 0);
    EXPECT(strcmp(name, "a name) R 1 (x") == 0);
    int status = -1;
    kill(child, SIGUSR2);
    SAME(waitpid(child, &status, 0), child);
    SAME(status, 0);
    return done();
}
