/* A container that has filled its limit of processes, and tries to make more all the time. */
#include "row.h"
#include <sys/wait.h>

enum { LIMIT = 24 };

static int make(pid_t *children) {
    int made = 0;
    while (made < LIMIT) {
        pid_t child = fork();
        if (child == 0)
            for (;;)
                pause();
        if (child < 0)
            break;
        children[made++] = child;
    }
    return made;
}

int main(void) {
    pid_t children[2 * LIMIT], trying = fork();
    CHECK(trying >= 0);
    if (trying == 0)
        for (;;) {
            pid_t child = fork();
            if (child == 0)
                _exit(0);
            if (child > 0)
                waitpid(child, NULL, 0);
        }
    int made = make(children);
    CHECK(made > 0 && made < LIMIT && errno == EAGAIN);

    ready();

    for (int i = 0; i < made; i++)
        SAME(waitpid(children[i], NULL, WNOHANG), 0);
    CHECK(kill(trying, SIGKILL) == 0 && waitpid(trying, NULL, 0) == trying);
    /* The places of that one and of what it made, if the sandbox has not taken them. */
    int more = make(children + made);
    EXPECT(more <= 4 && errno == EAGAIN);
    return done();
}
