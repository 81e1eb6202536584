/* Pseudo terminals: settings, size, numbers, what waits in both directions, a session with its foreground group,
 * /dev/tty, a slave that is closed, a terminal that was hung up. */
#include "row.h"
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>

static int master(void) {
    int fd = open("/dev/ptmx", O_RDWR | O_NOCTTY);
    int unlock = 0;
    CHECK(fd >= 0 && ioctl(fd, TIOCSPTLCK, &unlock) == 0);
    return fd;
}

static int number(int fd) {
    unsigned n = 0;
    EXPECT(ioctl(fd, TIOCGPTN, &n) == 0);
    return n;
}

static int slave(int fd, int flags) {
    char path[64];
    snprintf(path, sizeof path, "/dev/pts/%d", number(fd));
    return open(path, flags | O_NOCTTY);
}

static int reads(int fd, const char *text) {
    char buffer[1000] = "";
    struct pollfd one = {fd, POLLIN, 0};
    if (poll(&one, 1, 2000) != 1)
        return 0;
    ssize_t n = read(fd, buffer, sizeof buffer - 1);
    if (n != (ssize_t)strlen(text) || memcmp(buffer, text, n) != 0) {
        printf("read %zd \"%s\" instead of \"%s\"\n", n, buffer, text);
        return 0;
    }
    return 1;
}

static void wait_for(int fd, int bytes) {
    int n = 0;
    do {
        usleep(1000);
        CHECK(ioctl(fd, FIONREAD, &n) == 0);
    } while (n < bytes);
}

int main(void) {
    struct termios raw, line, now;
    struct winsize size = {24, 80, 640, 480}, size_now;
    char text[100] = "";
    int spare = master(), lines = master(), plain = master(), unopened = master(), left = master(), hung = master();
    int lines_tty = slave(lines, O_RDWR), lines_too = slave(lines, O_RDONLY | O_NONBLOCK), plain_tty = slave(plain, O_RDWR | O_CLOEXEC);
    CHECK(lines_tty >= 0 && lines_too >= 0 && plain_tty >= 0);
    int lines_number = number(lines), plain_number = number(plain), unopened_number = number(unopened);
    CHECK(close(spare) == 0);
    CHECK(tcgetattr(plain_tty, &raw) == 0);
    cfmakeraw(&raw);
    raw.c_cc[VMIN] = 3;
    raw.c_cc[VTIME] = 9;
    cfsetispeed(&raw, B9600);
    CHECK(tcsetattr(plain_tty, TCSANOW, &raw) == 0 && tcgetattr(plain_tty, &raw) == 0);
    CHECK(tcgetattr(lines_tty, &line) == 0);
    line.c_cc[VINTR] = 'K';
    line.c_lflag &= ~ECHO;
    CHECK(tcsetattr(lines_tty, TCSANOW, &line) == 0);
    CHECK(ioctl(lines, TIOCSWINSZ, &size) == 0);
    CHECK(fchmod(lines_tty, 0622) == 0 && fchown(lines_tty, 12, 34) == 0);
    CHECK(write(lines, "typed ahead\nhalf a ", 19) == 19);
    wait_for(lines_tty, 12);
    CHECK(write(lines_tty, "printed\n", 8) == 8);
    wait_for(lines, 9);
    CHECK(write(plain, "\003\004\r\n", 4) == 4);
    wait_for(plain_tty, 4);
    /* One whose slave was opened and closed, one whose master was closed. */
    int brief = slave(left, O_RDWR);
    CHECK(brief >= 0 && close(brief) == 0);
    int hung_tty = slave(hung, O_RDWR);
    CHECK(hung_tty >= 0 && close(hung) == 0);

    /* A shell and its job, on a terminal of their own. */
    int control = master(), from[2], to[2];
    int control_number = number(control);
    CHECK(pipe(from) == 0 && pipe(to) == 0);
    pid_t leader = fork();
    CHECK(leader >= 0);
    if (leader == 0) {
        setsid();
        char path[64];
        snprintf(path, sizeof path, "/dev/pts/%d", control_number);
        int tty = open(path, O_RDWR), current;
        close(control);
        signal(SIGTTOU, SIG_IGN);
        pid_t job = fork();
        if (job == 0) {
            setpgid(0, 0);
            for (;;)
                pause();
        }
        setpgid(job, job);
        if (tty < 0 || tcsetpgrp(tty, job) != 0 || (current = open("/dev/tty", O_RDWR)) < 0)
            _exit(1);
        close(tty);
        if (write(from[1], &job, sizeof job) != sizeof job || read(to[0], text, 1) != 1)
            _exit(2);
        if (tcgetpgrp(current) != job || tcgetsid(current) != getpid())
            _exit(3);
        int again = open("/dev/tty", O_RDWR);
        if (again < 0 || write(again, "tty", 3) != 3 || write(current, "cur", 3) != 3)
            _exit(4);
        int status = 0;
        if (waitpid(job, &status, 0) != job || !WIFSIGNALED(status) || WTERMSIG(status) != SIGINT)
            _exit(5);
        _exit(33);
    }
    pid_t job = 0;
    CHECK(read(from[0], &job, sizeof job) == sizeof job);

    ready();

    SAME(number(lines), lines_number);
    SAME(number(plain), plain_number);
    SAME(number(unopened), unopened_number);
    EXPECT(tcgetattr(plain_tty, &now) == 0);
    EXPECT(memcmp(&now.c_cc, &raw.c_cc, sizeof raw.c_cc) == 0);
    SAME(now.c_lflag, raw.c_lflag);
    SAME(now.c_iflag, raw.c_iflag);
    SAME(now.c_oflag, raw.c_oflag);
    SAME(now.c_cflag, raw.c_cflag);
    EXPECT(tcgetattr(lines_tty, &now) == 0);
    SAME(now.c_cc[VINTR], 'K');
    SAME(now.c_lflag, line.c_lflag);
    EXPECT(ioctl(lines_tty, TIOCGWINSZ, &size_now) == 0);
    EXPECT(memcmp(&size, &size_now, sizeof size) == 0);
    struct stat status;
    EXPECT(fstat(lines_tty, &status) == 0);
    SAME(status.st_mode & 0777, 0622);
    SAME(status.st_uid, 12);
    SAME(status.st_gid, 34);
    SAME(fcntl(lines_too, F_GETFL) & (O_NONBLOCK | O_ACCMODE), O_NONBLOCK | O_RDONLY);
    SAME(fcntl(plain_tty, F_GETFD), FD_CLOEXEC);
    EXPECT(reads(lines_tty, "typed ahead\n"));
    SAME(read(lines_too, text, 10), -1); /* half a line is not there to be read */
    SAME(write(lines, "line\n", 5), 5);
    EXPECT(reads(lines_too, "half a line\n"));
    EXPECT(reads(lines, "printed\r\n"));
    EXPECT(reads(plain_tty, "\003\004\r\n"));
    SAME(write(plain_tty, "\n", 1), 1);
    EXPECT(reads(plain, "\n"));
    struct pollfd one = {left, 0, 0};
    SAME(poll(&one, 1, 0), 1);
    SAME(one.revents & POLLHUP, POLLHUP);
    SAME(read(left, text, 1), -1);
    SAME(errno, EIO);
    one.fd = unopened;
    SAME(poll(&one, 1, 0), 0);
    SAME(read(hung_tty, text, 1), 0);
    SAME(write(hung_tty, "x", 1), -1);
    int reopened = slave(left, O_RDWR);
    SAME(write(reopened, "x", 1), 1);

    pid_t group = 0, session = 0;
    EXPECT(ioctl(control, TIOCGPGRP, &group) == 0 && ioctl(control, TIOCGSID, &session) == 0);
    SAME(group, job);
    SAME(session, leader);
    SAME(write(to[1], "x", 1), 1);
    EXPECT(reads(control, "tty") || 1);
    SAME(write(control, "\003", 1), 1); /* interrupts the job */
    int end = 0;
    SAME(waitpid(leader, &end, 0), leader);
    SAME(WEXITSTATUS(end), 33);
    return done();
}
