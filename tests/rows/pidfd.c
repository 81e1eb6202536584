/* pidfds: of a child, of oneself, of one that has ended, of one that was reaped; namespace files; files in /proc. */
#include "row.h"
#include <poll.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

static int pidfd(pid_t pid) { return syscall(SYS_pidfd_open, pid, 0); }

static int readable(int fd) {
    struct pollfd one = {fd, POLLIN, 0};
    return poll(&one, 1, 0) == 1 && one.revents & POLLIN;
}

int main(void) {
    pid_t living = fork();
    if (living == 0)
        for (;;)
            pause();
    pid_t zombie = fork();
    if (zombie == 0)
        _exit(5);
    pid_t gone = fork();
    if (gone == 0)
        _exit(6);
    int alive = pidfd(living), self = pidfd(getpid()), dead = pidfd(zombie), reaped = pidfd(gone), status;
    CHECK(alive >= 0 && self >= 0 && dead >= 0 && reaped >= 0);
    CHECK(waitpid(gone, &status, 0) == gone);
    while (!readable(dead))
        usleep(1000);
    int ns = open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC), proc = open("/proc/self/stat", O_RDONLY);
    char path[64], text[512], before[512] = "", after[512] = "";
    snprintf(path, sizeof path, "/proc/%d/cmdline", living);
    int cmdline = open(path, O_RDONLY);
    CHECK(ns >= 0 && proc >= 0 && cmdline >= 0);
    CHECK(pread(cmdline, before, sizeof before - 1, 0) > 0);

    ready();

    EXPECT(!readable(alive) && !readable(self) && readable(dead) && readable(reaped));
    SAME(syscall(SYS_pidfd_send_signal, self, 0, NULL, 0), 0);
    SAME(syscall(SYS_pidfd_send_signal, reaped, 0, NULL, 0), -1);
    SAME(errno, ESRCH);
    SAME(syscall(SYS_pidfd_send_signal, alive, SIGKILL, NULL, 0), 0);
    siginfo_t info;
    SAME(waitid(P_PIDFD, alive, &info, WEXITED), 0);
    SAME(info.si_pid, living);
    SAME(info.si_status, SIGKILL);
    SAME(waitid(P_PIDFD, dead, &info, WEXITED), 0);
    SAME(info.si_pid, zombie);
    SAME(info.si_status, 5);
    struct stat ours, theirs;
    EXPECT(fstat(ns, &ours) == 0 && stat("/proc/self/ns/mnt", &theirs) == 0 && ours.st_ino == theirs.st_ino);
    SAME(fcntl(ns, F_GETFD), FD_CLOEXEC);
    EXPECT(pread(proc, text, sizeof text - 1, 0) > 0 && atoi(text) == getpid());
    SAME(pread(cmdline, after, sizeof after, 0), -1);
    SAME(errno, ESRCH); /* it has ended, and was reaped */
    return done();
}
