/* Calls that wait go on waiting: none of them ends, or fails with EINTR, because its process was saved or restored. */
#include "row.h"
#include <poll.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <linux/futex.h>
#include <time.h>

static int event, epoll, pair[2], pipes[2], semaphores;
static unsigned word, word2;
static pid_t child, paused;
static volatile int waiting, woken, early;
static volatile long results[32];
static volatile int errors[32];

static long wait_in(int how) {
    struct epoll_event found;
    struct pollfd poller = {event, POLLIN, 0};
    struct timespec hour = {3600, 0}, forever = {100000, 0}, left = {100000, 0};
    char byte[16];
    fd_set set;
    siginfo_t info;
    sigset_t mask, now;
    sigprocmask(SIG_BLOCK, NULL, &now);
    FD_ZERO(&set);
    FD_SET(event, &set);
    switch (how) {
    case 0: return epoll_wait(epoll, &found, 1, -1);
    case 1: return epoll_pwait(epoll, &found, 1, -1, &now);
    case 2: return poll(&poller, 1, -1);
    case 3: return poll(&poller, 1, 3600000);
    case 4: return ppoll(&poller, 1, &hour, &now);
    case 5: return select(event + 1, &set, NULL, NULL, NULL);
    case 6: return pselect(event + 1, &set, NULL, NULL, &hour, &now);
    case 7: return read(pipes[0], byte, 1);
    case 8: return recv(pair[0], byte, 1, 0);
    case 9: return syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, NULL);
    case 10: return syscall(SYS_futex, &word2, FUTEX_WAIT_PRIVATE, 0, &hour);
    case 11: return semop(semaphores, &(struct sembuf){0, -1, 0}, 1);
    case 12: return waitpid(child, NULL, 0) == child;
    case 13:
        sigemptyset(&mask);
        sigaddset(&mask, SIGRTMIN + 3);
        return sigwaitinfo(&mask, &info);
    case 14: return nanosleep(&forever, &left);
    case 15: return nanosleep(&forever, NULL);
    case 16: return clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &(struct timespec){1 << 30, 0}, NULL);
    case 17: return sigsuspend(&now);
    default: return pause();
    }
}
enum { N = 19, WOKEN = 14 };

static void *thread(void *argument) {
    long n = (long)argument;
    __atomic_add_fetch(&waiting, 1, __ATOMIC_SEQ_CST);
    long result = wait_in(n);
    errors[n] = errno;
    results[n] = result;
    if (!word)
        early |= 1 << n;
    __atomic_add_fetch(&woken, 1, __ATOMIC_SEQ_CST);
    return NULL;
}
static void handler(int signal) { (void)signal; }

/* Until thread `tid` sleeps. */
static void asleep(pid_t pid, pid_t tid) {
    char path[64], text[512], *end;
    do {
        usleep(1000);
        snprintf(path, sizeof path, "/proc/%d/task/%d/stat", pid, tid);
        int fd = open(path, O_RDONLY);
        ssize_t n = fd < 0 ? 0 : read(fd, text, sizeof text - 1);
        close(fd);
        text[n > 0 ? n : 0] = 0;
        end = strrchr(text, ')');
    } while (!end || end[2] != 'S');
}

int main(void) {
    sigset_t set;
    pthread_t t[N];
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGUSR2);
    sigaddset(&set, SIGRTMIN + 3);
    CHECK(sigprocmask(SIG_BLOCK, &set, NULL) == 0);
    CHECK((event = eventfd(0, 0)) >= 0 && (epoll = epoll_create1(0)) >= 0);
    CHECK(epoll_ctl(epoll, EPOLL_CTL_ADD, event, &(struct epoll_event){.events = EPOLLIN}) == 0);
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0 && pipe(pipes) == 0);
    CHECK((semaphores = semget(IPC_PRIVATE, 1, 0600)) >= 0);
    if ((child = fork()) == 0)
        for (;;)
            pause();
    /* A process that waits for a signal with a handler, and must see EINTR for that one only. */
    if ((paused = fork()) == 0) {
        signal(SIGUSR2, handler);
        sigprocmask(SIG_UNBLOCK, &set, NULL);
        int result = pause();
        _exit(result == -1 && errno == EINTR ? 17 : 18);
    }
    for (long n = 0; n < N; n++)
        CHECK(pthread_create(&t[n], NULL, thread, (void *)n) == 0);
    while (waiting != N)
        usleep(1000);
    asleep(paused, paused);
    /* All threads but this one. */
    for (pid_t tid = getpid() + 1, seen = 0; seen < N && tid < getpid() + 1000; tid++) {
        char path[64];
        snprintf(path, sizeof path, "/proc/self/task/%d", tid);
        if (access(path, F_OK) == 0) {
            asleep(getpid(), tid);
            seen++;
        }
    }
    ready();
    /* Those that would end by themselves would have by now. */
    usleep(100000);
    SAME(woken, 0);
    SAME(early, 0);
    word = 1;
    CHECK(kill(child, SIGKILL) == 0);
    CHECK(eventfd_write(event, 1) == 0);
    CHECK(write(pipes[1], "x", 1) == 1 && write(pair[1], "x", 1) == 1);
    syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 1);
    syscall(SYS_futex, &word2, FUTEX_WAKE_PRIVATE, 1);
    CHECK(semctl(semaphores, 0, SETVAL, 1) == 0);
    CHECK(kill(getpid(), SIGRTMIN + 3) == 0);
    while (woken < WOKEN)
        usleep(1000);
    for (int n = 0; n < WOKEN; n++) {
        long expected = n == 9 || n == 10 || n == 11 ? 0 : n == 13 ? SIGRTMIN + 3 : 1;
        if (results[n] != expected) {
            printf("call %d ended with %ld (errno %d)\n", n, results[n], errors[n]);
            problems++;
        }
    }
    SAME(woken, WOKEN);
    int status = -1;
    CHECK(kill(paused, SIGUSR2) == 0);
    SAME(waitpid(paused, &status, 0), paused);
    EXPECT(WIFEXITED(status) && WEXITSTATUS(status) == 17);
    semctl(semaphores, 0, IPC_RMID);
    return done();
}
