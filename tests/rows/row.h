/* What the programs of this folder share; see README. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static int problems;

/* Cannot be set up at all. */
#define CHECK(what)                                                                       \
    do {                                                                                  \
        if (!(what)) {                                                                    \
            printf("%s:%d: %s: %s\n", __FILE__, __LINE__, #what, strerror(errno));        \
            fflush(stdout);                                                               \
            _exit(2);                                                                     \
        }                                                                                 \
    } while (0)

/* Is not as it was. */
#define EXPECT(what)                                                                      \
    do {                                                                                  \
        if (!(what) && problems++ < 20) {                                                 \
            printf("%s:%d: not as it was: %s (errno %d)\n", __FILE__, __LINE__, #what, errno); \
        }                                                                                 \
    } while (0)

/* As EXPECT(a == b), and tells both. */
#define SAME(a, b)                                                                        \
    do {                                                                                  \
        long long row_a = (long long)(a), row_b = (long long)(b);                         \
        if (row_a != row_b && problems++ < 20) {                                          \
            printf("%s:%d: %s is %lld, was %lld\n", __FILE__, __LINE__, #a, row_a, row_b); \
        }                                                                                 \
    } while (0)

/* In all threads, from the start: an init's thread that does not block a signal without a handler loses it. */
__attribute__((constructor)) static void block_usr1(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    CHECK(sigprocmask(SIG_BLOCK, &set, NULL) == 0);
}

/* Says that all is set up, and waits until it is to be verified. */
static void ready(void) {
    sigset_t set;
    int signal = 0;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    printf("ready\n");
    fflush(stdout);
    while (signal != SIGUSR1)
        sigwait(&set, &signal);
}

static int done(void) {
    if (problems == 0)
        printf("ok\n");
    fflush(stdout);
    return problems != 0;
}

/* Where files are made: a directory that may be given; otherwise one that no other container sees. */
__attribute__((unused)) static char base[100] = "/dev/shm";

__attribute__((unused)) static void go_to_base(int argc, char **argv) {
    if (argc > 1)
        snprintf(base, sizeof base, "%s", argv[1]);
    CHECK(chdir(base) == 0);
}
