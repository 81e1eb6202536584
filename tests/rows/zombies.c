/* Children that have ended, whose parents have not asked yet; and what a wait tells of them. */
#include "row.h"
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>

static int chlds;
static void handler(int signal) { (void)signal, chlds++; }

int main(void) {
    enum { N = 6 };
    int how[N] = {0, 3, 255, -SIGKILL, -SIGTERM, -SIGSEGV};
    pid_t pids[N];
    siginfo_t info;
    struct rlimit none = {0, 0};
    CHECK(setrlimit(RLIMIT_CORE, &none) == 0);
    CHECK(signal(SIGCHLD, handler) != SIG_ERR);
    for (int i = 0; i < N; i++) {
        pids[i] = fork();
        CHECK(pids[i] >= 0);
        if (pids[i] == 0) {
            prctl(PR_SET_NAME, "ended");
            if (how[i] >= 0)
                _exit(how[i]);
            signal(-how[i], SIG_DFL);
            kill(getpid(), -how[i]);
            _exit(99);
        }
    }
    /* One whose parent is not init, and one that is a zombie and the leader of a session with a member. */
    pid_t parent = fork();
    CHECK(parent >= 0);
    if (parent == 0) {
        sigset_t set;
        pid_t below = fork();
        int signal, status = 0;
        if (below == 0)
            _exit(44);
        sigemptyset(&set);
        sigaddset(&set, SIGUSR2);
        sigprocmask(SIG_BLOCK, &set, NULL);
        sigwait(&set, &signal);
        EXPECT(waitpid(below, &status, 0) == below && WIFEXITED(status) && WEXITSTATUS(status) == 44);
        _exit(problems);
    }
    pid_t leader = fork();
    CHECK(leader >= 0);
    if (leader == 0) {
        setsid();
        if (fork() == 0)
            for (;;)
                pause();
        _exit(5);
    }
    for (int i = 0; i < N; i++)
        CHECK(waitid(P_PID, pids[i], &info, WEXITED | WNOWAIT) == 0);
    CHECK(waitid(P_PID, leader, &info, WEXITED | WNOWAIT) == 0);
    char path[64], text[256];
    do {
        usleep(1000);
        snprintf(path, sizeof path, "/proc/%d/task/%d/children", parent, parent);
        int fd = open(path, O_RDONLY);
        ssize_t n = fd < 0 ? 0 : read(fd, text, sizeof text - 1);
        close(fd);
        text[n > 0 ? n : 0] = 0;
        snprintf(path, sizeof path, "/proc/%d/stat", atoi(text));
        fd = open(path, O_RDONLY);
        n = fd < 0 ? 0 : read(fd, text, sizeof text - 1);
        close(fd);
        text[n > 0 ? n : 0] = 0;
    } while (!strstr(text, ") Z "));
    int before = chlds;
    ready();
    SAME(chlds, before);
    for (int i = 0; i < N; i++) {
        int status = 0;
        CHECK(waitid(P_PID, pids[i], &info, WEXITED | WNOWAIT) == 0);
        SAME(info.si_pid, pids[i]);
        SAME(info.si_code, how[i] < 0 ? CLD_KILLED : CLD_EXITED);
        SAME(info.si_status, abs(how[i]));
        SAME(waitpid(pids[i], &status, 0), pids[i]);
        if (how[i] >= 0)
            EXPECT(WIFEXITED(status) && WEXITSTATUS(status) == how[i]);
        else
            EXPECT(WIFSIGNALED(status) && WTERMSIG(status) == -how[i]);
        EXPECT(waitpid(pids[i], &status, 0) == -1);
    }
    int status = -1;
    SAME(waitpid(leader, &status, 0), leader);
    EXPECT(WIFEXITED(status) && WEXITSTATUS(status) == 5);
    kill(parent, SIGUSR2);
    SAME(waitpid(parent, &status, 0), parent);
    SAME(status, 0);
    return done();
}
