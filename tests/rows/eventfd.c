/* eventfd: counters, semaphores, flags, sharing. */
#include "row.h"
#include <sys/eventfd.h>
#include <sys/wait.h>

int main(void) {
    uint64_t value = 0;
    int counter = eventfd(7, EFD_CLOEXEC), semaphore = eventfd(3, EFD_SEMAPHORE | EFD_NONBLOCK);
    int zero = eventfd(0, EFD_NONBLOCK), huge = eventfd(0, EFD_NONBLOCK);
    CHECK(counter >= 0 && semaphore >= 0 && zero >= 0 && huge >= 0);
    value = UINT64_MAX - 1;
    CHECK(write(huge, &value, 8) == 8);
    int copy = dup(counter), back = eventfd(0, 0);
    pid_t child = fork();
    CHECK(copy >= 0 && back >= 0 && child >= 0);
    if (child == 0) {
        /* Waits for the parent through one, answers through the other. */
        uint64_t got;
        do {
            usleep(1000);
        } while (read(zero, &got, 8) != 8);
        got += 100;
        _exit(write(back, &got, 8) == 8 ? 0 : 1);
    }

    ready();

    SAME(fcntl(counter, F_GETFD), FD_CLOEXEC);
    SAME(read(copy, &value, 8), 8);
    SAME(value, 7);
    SAME(fcntl(semaphore, F_GETFL) & O_NONBLOCK, O_NONBLOCK);
    for (int i = 0; i < 3; i++) {
        SAME(read(semaphore, &value, 8), 8);
        SAME(value, 1);
    }
    SAME(read(semaphore, &value, 8), -1);
    SAME(read(huge, &value, 8), 8);
    EXPECT(value == UINT64_MAX - 1);
    value = 5;
    SAME(write(zero, &value, 8), 8);
    SAME(read(back, &value, 8), 8);
    SAME(value, 105);
    int status = -1;
    SAME(waitpid(child, &status, 0), child);
    SAME(status, 0);
    return done();
}
