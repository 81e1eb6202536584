/* Locks on files: of processes, of open file descriptions, flock and leases; who is told of events. */
#include "row.h"
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/wait.h>

static int lock(int fd, int command, short type, off_t start, off_t len) {
    struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = len};
    return fcntl(fd, command, &lock);
}

/* Who holds what would be in the way of a write lock there; 0 for nobody, -1 for a description. */
static pid_t holder(int fd, off_t at, short *type) {
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = at, .l_len = 1};
    EXPECT(fcntl(fd, F_GETLK, &lock) == 0);
    *type = lock.l_type;
    return lock.l_type == F_UNLCK ? 0 : lock.l_pid;
}

static volatile sig_atomic_t told, told_fd;
static void tell(int signal, siginfo_t *info, void *context) {
    (void)context;
    told = signal;
    told_fd = info->si_fd;
}

int main(int argc, char **argv) {
    go_to_base(argc, argv);
    int to[2], from[2], s[2], s2[2];
    char byte;
    int posix = open("locks", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    CHECK(posix >= 0 && pipe(to) == 0 && pipe(from) == 0);
    CHECK(lock(posix, F_SETLK, F_WRLCK, 10, 5) == 0 && lock(posix, F_SETLK, F_RDLCK, 100, 0) == 0);
    int ofd = open("locks", O_RDWR), ofd_copy = dup(ofd);
    CHECK(ofd_copy >= 0 && lock(ofd, F_OFD_SETLK, F_WRLCK, 50, 7) == 0);
    int whole = open("whole", O_RDONLY | O_CREAT, 0600), shared = open("shared", O_RDWR | O_CREAT, 0600);
    CHECK(flock(whole, LOCK_EX) == 0 && flock(shared, LOCK_SH) == 0);
    int shared_too = open("shared", O_RDWR);
    CHECK(flock(shared_too, LOCK_SH) == 0);
    int lease = open("lease", O_RDONLY | O_CREAT, 0600);
    int leased = fcntl(lease, F_SETLEASE, F_RDLCK);
    CHECK(leased == 0 || errno == EAGAIN || errno == EINVAL);

    /* Another process with a lock of its own on the same file, through an inherited descriptor. */
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        if (lock(posix, F_SETLK, F_WRLCK, 200, 1) == 0 || lock(posix, F_SETLK, F_WRLCK, 30, 2) != 0)
            _exit(3);
        short type;
        close(to[1]);
        if (write(from[1], "l", 1) != 1 || read(to[0], &byte, 1) != 1)
            _exit(4);
        _exit(holder(posix, 12, &type) == getppid() && type == F_WRLCK ? 9 : 5);
    }
    CHECK(read(from[0], &byte, 1) == 1);

    struct sigaction action = {.sa_sigaction = tell, .sa_flags = SA_SIGINFO};
    CHECK(sigaction(SIGRTMIN + 1, &action, NULL) == 0 && sigaction(SIGIO, &action, NULL) == 0);
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, s) == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, s2) == 0);
    CHECK(fcntl(s[0], F_SETOWN, getpid()) == 0 && fcntl(s[0], F_SETSIG, SIGRTMIN + 1) == 0);
    CHECK(fcntl(s[0], F_SETFL, O_ASYNC | O_NONBLOCK) == 0);
    CHECK(fcntl(s2[0], F_SETOWN, -getpgrp()) == 0);

    ready();

    short type = 0;
    SAME(holder(posix, 31, &type), child);
    SAME(type, F_WRLCK);
    int check = open("locks", O_RDWR);
    SAME(lock(check, F_OFD_SETLK, F_WRLCK, 12, 1), -1);
    SAME(lock(check, F_OFD_SETLK, F_RDLCK, 5000, 1), 0);
    SAME(lock(check, F_OFD_SETLK, F_WRLCK, 5000, 1), -1);
    SAME(lock(check, F_OFD_SETLK, F_WRLCK, 56, 1), -1);
    SAME(lock(check, F_OFD_SETLK, F_WRLCK, 57, 3), 0);
    SAME(lock(ofd_copy, F_OFD_SETLK, F_UNLCK, 50, 7), 0); /* the same description */
    SAME(lock(check, F_OFD_SETLK, F_WRLCK, 50, 7), 0);
    int other = open("whole", O_RDONLY);
    SAME(flock(other, LOCK_SH | LOCK_NB), -1);
    SAME(flock(whole, LOCK_UN), 0);
    SAME(flock(other, LOCK_EX | LOCK_NB), 0);
    other = open("shared", O_RDONLY);
    SAME(flock(other, LOCK_SH | LOCK_NB), 0);
    SAME(flock(other, LOCK_EX | LOCK_NB), -1);
    SAME(flock(shared, LOCK_UN), 0);
    SAME(flock(shared_too, LOCK_UN), 0);
    SAME(flock(other, LOCK_EX | LOCK_NB), 0);
    if (leased == 0)
        SAME(fcntl(lease, F_GETLEASE), F_RDLCK);
    SAME(write(to[1], "x", 1), 1);
    int status = -1;
    SAME(waitpid(child, &status, 0), child);
    SAME(WEXITSTATUS(status), 9);

    SAME(fcntl(s[0], F_GETOWN), getpid());
    SAME(fcntl(s[0], F_GETSIG), SIGRTMIN + 1);
    SAME(fcntl(s[0], F_GETFL) & (O_ASYNC | O_NONBLOCK), O_ASYNC | O_NONBLOCK);
    /* Groups are told as negative numbers, which the C library takes for errors. */
    struct f_owner_ex owner = {0, 0};
    SAME(fcntl(s2[0], F_GETOWN_EX, &owner), 0);
    SAME(owner.type, F_OWNER_PGRP);
    SAME(owner.pid, getpgrp());
    SAME(write(s[1], "x", 1), 1);
    SAME(told, SIGRTMIN + 1);
    SAME(told_fd, s[0]);
    unlink("locks");
    unlink("whole");
    unlink("shared");
    unlink("lease");
    return done();
}
