/* Seccomp filters: of the process, and more of a thread; they hold after a restore, and their order is kept. */
#include "row.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

static volatile int phase;

/* From now on, call `nr` fails with `error`. */
static void forbid(int nr, int error, unsigned flags) {
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, nr, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | error),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof code / sizeof *code, code};
    CHECK(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program) == 0);
}
static int count_of(pid_t tid) {
    char path[64], line[256];
    int count = -1;
    snprintf(path, sizeof path, "/proc/self/task/%d/status", tid);
    FILE *f = fopen(path, "r");
    while (f && fgets(line, sizeof line, f))
        sscanf(line, "Seccomp_filters: %d", &count);
    if (f)
        fclose(f);
    return count;
}
static void expect(int nr, int error) {
    errno = 0;
    syscall(nr, 0, 0, 0, 0, 0, 0);
    SAME(errno, error);
}

static void *thread(void *unused) {
    (void)unused;
    sigset_t set;
    sigfillset(&set);
    pthread_sigmask(SIG_SETMASK, &set, NULL);
    /* Calls that the dump and the restore themselves make. */
    forbid(SYS_sigaltstack, 79, 0);
    forbid(SYS_munmap, 78, 0);
    forbid(SYS_tkill, 77, 0);
    forbid(SYS_set_robust_list, 76, 0);
    int before = count_of(syscall(SYS_gettid));
    phase = 1;
    while (phase != 2)
        ;
    expect(SYS_sigaltstack, 79);
    expect(SYS_munmap, 78);
    expect(SYS_tkill, 77);
    expect(SYS_set_robust_list, 76);
    expect(SYS_getpgid, 71);
    SAME(count_of(syscall(SYS_gettid)), before);
    phase = 3;
    for (;;)
        pause();
    return NULL;
}

int main(void) {
    pthread_t other;
    CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    forbid(SYS_getpgid, 70, 0);
    /* The one that was installed last is asked first, and of two errors it is its that counts. */
    forbid(SYS_getpgid, 71, SECCOMP_FILTER_FLAG_LOG);
    forbid(SYS_prctl, 72, 0);
    CHECK(pthread_create(&other, NULL, thread, NULL) == 0);
    while (phase != 1)
        ;
    int before = count_of(getpid());
    ready();
    SAME(count_of(getpid()), before);
    expect(SYS_getpgid, 71);
    expect(SYS_prctl, 72);
    CHECK(sigaltstack(NULL, &(stack_t){0}) == 0);
    phase = 2;
    while (phase != 3)
        usleep(1000);
    return done();
}
