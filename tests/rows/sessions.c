/* Sessions and process groups: with leaders that live, that are gone, and older than their members' parents. */
#include "row.h"
#include <sys/prctl.h>
#include <sys/wait.h>

/* What each process says of itself. */
struct says {
    pid_t pid, ppid, pgid, sid;
};
enum { N = 9 };
static struct {
    struct says before[N], after[N];
    volatile int told, verify, verified;
} *shared;

static void member(int n) {
    prctl(PR_SET_NAME, "member");
    shared->before[n] = (struct says){getpid(), getppid(), getpgrp(), getsid(0)};
    __atomic_add_fetch(&shared->told, 1, __ATOMIC_SEQ_CST);
    while (!shared->verify)
        usleep(1000);
    shared->after[n] = (struct says){getpid(), getppid(), getpgrp(), getsid(0)};
    __atomic_add_fetch(&shared->verified, 1, __ATOMIC_SEQ_CST);
    for (;;)
        pause();
}
/* Until everybody before has told: whose parents end meanwhile have new ones then. */
static void told(int n) {
    while (shared->told < n)
        usleep(1000);
}
static pid_t child(void) {
    pid_t pid = fork();
    CHECK(pid >= 0);
    return pid;
}
static void reap(pid_t pid) { CHECK(waitpid(pid, NULL, 0) == pid); }

#include <sys/mman.h>
int main(void) {
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(shared != MAP_FAILED);
    /* 0: a plain child. 1: it leads a group. */
    if (child() == 0)
        member(0);
    told(1);
    if (child() == 0) {
        setpgid(0, 0);
        member(1);
    }
    told(2);
    /* 2: a daemon: its session's leader is gone. 3: a child of it. */
    pid_t leader = child();
    if (leader == 0) {
        setsid();
        if (child() == 0) {
            while (getppid() != 1)
                usleep(1000);
            if (child() == 0)
                member(3);
            told(3);
            member(2);
        }
        _exit(0);
    }
    reap(leader);
    told(4);
    /* 4: a group whose leader is gone. */
    leader = child();
    if (leader == 0) {
        setpgid(0, 0);
        if (child() == 0) {
            while (getppid() != 1)
                usleep(1000);
            member(4);
        }
        _exit(0);
    }
    reap(leader);
    told(5);
    /* 5: in the session that its parent 6 has left. 7: an orphan in the session of 6. */
    if (child() == 0) {
        if (child() == 0)
            member(5);
        told(6);
        setsid();
        pid_t middle = child();
        if (middle == 0) {
            if (child() == 0) {
                while (getppid() != 1)
                    usleep(1000);
                member(7);
            }
            _exit(0);
        }
        reap(middle);
        told(7);
        member(6);
    }
    told(8);
    /* 8: an orphan of a subreaper other than init is adopted by that. */
    pid_t reaper = child();
    if (reaper == 0) {
        prctl(PR_SET_CHILD_SUBREAPER, 1);
        pid_t middle = child();
        if (middle == 0) {
            setsid();
            middle = getpid();
            if (child() == 0) {
                while (getppid() == middle)
                    usleep(1000);
                member(8);
            }
            _exit(0);
        }
        reap(middle);
        for (;;)
            pause();
    }
    told(9);
    ready();
    shared->verify = 1;
    while (shared->verified < N)
        usleep(1000);
    for (int n = 0; n < N; n++) {
        SAME(shared->after[n].pid, shared->before[n].pid);
        SAME(shared->after[n].ppid, shared->before[n].ppid);
        SAME(shared->after[n].pgid, shared->before[n].pgid);
        SAME(shared->after[n].sid, shared->before[n].sid);
    }
    return done();
}
