/* Asynchronous I/O: a context goes on under its number, with events that nobody has fetched yet. */
#include "row.h"
#include <linux/aio_abi.h>
#include <sys/mman.h>
#include <sys/syscall.h>

static aio_context_t context, other;

static long submit(int fd, int op, char *buffer, size_t len, long long offset, uint64_t data) {
    struct iocb block = { .aio_fildes = fd, .aio_lio_opcode = op, .aio_buf = (uintptr_t)buffer,
                          .aio_nbytes = len, .aio_offset = offset, .aio_data = data };
    struct iocb *blocks[] = { &block };
    return syscall(SYS_io_submit, context, 1, blocks);
}
static long fetch(aio_context_t from, struct io_event *events, long least, long most) {
    return syscall(SYS_io_getevents, from, least, most, events, NULL);
}

int main(void) {
    char buffer[512] = "", text[] = "written asynchronously";
    struct io_event events[8];
    int fd = memfd_create("file", 0);
    CHECK(fd >= 0 && syscall(SYS_io_setup, 16, &other) == 0 && syscall(SYS_io_setup, 64, &context) == 0);
    for (int i = 0; i < 100; i++) {
        CHECK(submit(fd, IOCB_CMD_PWRITE, text, sizeof text, 0, 7) == 1);
        CHECK(fetch(context, events, 1, 8) == 1 && events[0].res == sizeof text);
    }
    /* Done, and not fetched. */
    CHECK(submit(fd, IOCB_CMD_PREAD, buffer, sizeof text, 0, 42) == 1);
    CHECK(submit(fd, IOCB_CMD_PREAD, buffer + 256, 7, 0, 43) == 1);

    ready();

    SAME(fetch(context, events, 2, 8), 2);
    SAME(events[0].data, 42);
    SAME(events[0].res, sizeof text);
    SAME(events[1].data, 43);
    SAME(events[1].res, 7);
    EXPECT(strcmp(buffer, text) == 0);
    for (int i = 0; i < 200; i++) {
        SAME(submit(fd, IOCB_CMD_PREAD, buffer, 5, 1, i), 1);
        SAME(fetch(context, events, 1, 8), 1);
        SAME(events[0].data, i);
    }
    EXPECT(strncmp(buffer, text + 1, 5) == 0);
    SAME(fetch(other, events, 0, 8), 0);
    SAME(syscall(SYS_io_destroy, context), 0);
    SAME(syscall(SYS_io_destroy, other), 0);
    return done();
}
