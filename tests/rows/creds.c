/* Users, groups and capabilities of processes and of a single thread. Run with CAP_SETUID, CAP_SETGID, CAP_SETPCAP. */
#include "row.h"
#include <grp.h>
#include <pthread.h>
#include <sys/fsuid.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define CAP_CHOWN 0
#define CAP_KILL 5
#define CAP_SETGID 6
#define CAP_SETUID 7
#define CAP_NET_BIND 10
static volatile int *phase;

struct says {
    uid_t uids[4];
    gid_t gids[4], groups[32];
    int count, securebits, nnp;
    unsigned caps[6], bounding[41], ambient[41];
};
static struct says says(void) {
    struct says s;
    unsigned header[2] = {0x20080522, 0};
    memset(&s, 0, sizeof s);
    getresuid(&s.uids[0], &s.uids[1], &s.uids[2]);
    getresgid(&s.gids[0], &s.gids[1], &s.gids[2]);
    s.uids[3] = syscall(SYS_setfsuid, -1);
    s.gids[3] = syscall(SYS_setfsgid, -1);
    s.count = getgroups(32, s.groups);
    s.securebits = prctl(PR_GET_SECUREBITS, 0, 0, 0, 0);
    s.nnp = prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0);
    syscall(SYS_capget, header, s.caps);
    for (int i = 0; i < 41; i++) {
        s.bounding[i] = prctl(PR_CAPBSET_READ, i, 0, 0, 0);
        s.ambient[i] = prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, i, 0, 0);
    }
    return s;
}
static void capset(unsigned effective, unsigned permitted, unsigned inheritable) {
    unsigned header[2] = {0x20080522, 0}, data[6] = {effective, permitted, inheritable, 0, 0, 0};
    CHECK(syscall(SYS_capset, header, data) == 0);
}
static void compare(int who, struct says *before) {
    struct says after = says();
    problems += memcmp(before, &after, sizeof after) != 0;
    if (memcmp(before, &after, sizeof after) == 0)
        return;
    printf("of %d:\n", who);
    for (int i = 0; i < 4; i++) {
        SAME(after.uids[i], before->uids[i]);
        SAME(after.gids[i], before->gids[i]);
    }
    SAME(after.count, before->count);
    SAME(after.securebits, before->securebits);
    SAME(after.nnp, before->nnp);
    for (int i = 0; i < 6; i++)
        SAME(after.caps[i], before->caps[i]);
    for (int i = 0; i < 41; i++) {
        SAME(after.bounding[i], before->bounding[i]);
        SAME(after.ambient[i], before->ambient[i]);
    }
    fflush(stdout);
}
static void wait_for(int value) {
    while (*phase < value)
        usleep(1000);
}

static void *thread(void *unused) {
    sigset_t set;
    (void)unused;
    sigfillset(&set);
    pthread_sigmask(SIG_SETMASK, &set, NULL);
    /* The raw calls, which change this thread alone. */
    CHECK(syscall(SYS_setresgid, 501, 502, 503) == 0);
    CHECK(syscall(SYS_setresuid, 601, 602, 603) == 0);
    struct says before = says();
    __atomic_add_fetch(phase, 1, __ATOMIC_SEQ_CST);
    wait_for(100);
    compare(1, &before);
    __atomic_add_fetch(phase, 1, __ATOMIC_SEQ_CST);
    return NULL;
}

int main(void) {
    pthread_t t;
    phase = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(phase != MAP_FAILED);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        gid_t groups[] = {10, 20, 30};
        CHECK(setgroups(3, groups) == 0);
        CHECK(prctl(PR_CAPBSET_DROP, CAP_CHOWN, 0, 0, 0) == 0);
        CHECK(prctl(PR_SET_SECUREBITS, 1 << 2 | 1 << 3, 0, 0, 0) == 0);
        CHECK(setresgid(1001, 1002, 1003) == 0);
        CHECK(setresuid(2001, 2002, 2003) == 0);
        setfsgid(1003);
        setfsuid(2003);
        capset(1 << CAP_KILL, 1 << CAP_KILL | 1 << CAP_NET_BIND, 1 << CAP_NET_BIND);
        CHECK(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_NET_BIND, 0, 0) == 0);
        struct says before = says();
        __atomic_add_fetch(phase, 1, __ATOMIC_SEQ_CST);
        wait_for(100);
        compare(2, &before);
        CHECK(setuid(0) == -1 && errno == EPERM);
        __atomic_add_fetch(phase, 1, __ATOMIC_SEQ_CST);
        _exit(problems);
    }
    CHECK(pthread_create(&t, NULL, thread, NULL) == 0);
    wait_for(2);
    struct says before = says();
    ready();
    compare(0, &before);
    *phase = 100;
    wait_for(102);
    int status = -1;
    SAME(waitpid(child, &status, 0), child);
    SAME(status, 0);
    return done();
}
