/* POSIX message queues: descriptors, messages with their priorities, attributes. */
#include "row.h"
#include <mqueue.h>
#include <sys/stat.h>

int main(void) {
    struct mq_attr want = {.mq_maxmsg = 5, .mq_msgsize = 64}, now;
    char buffer[64];
    unsigned priority = 0;
    mqd_t both = mq_open("/row", O_RDWR | O_CREAT | O_EXCL, 0640, &want);
    CHECK(both != (mqd_t)-1);
    mqd_t reader = mq_open("/row", O_RDONLY | O_NONBLOCK);
    mqd_t empty = mq_open("/empty", O_RDWR | O_CREAT, 0600, &want);
    CHECK(reader != (mqd_t)-1 && empty != (mqd_t)-1);
    CHECK(mq_send(both, "low", 3, 1) == 0 && mq_send(both, "high", 4, 9) == 0 && mq_send(both, "low too", 7, 1) == 0);

    ready();

    EXPECT(mq_getattr(both, &now) == 0);
    SAME(now.mq_maxmsg, 5);
    SAME(now.mq_msgsize, 64);
    SAME(now.mq_curmsgs, 3);
    SAME(now.mq_flags, 0);
    EXPECT(mq_getattr(reader, &now) == 0);
    SAME(now.mq_flags, O_NONBLOCK);
    SAME(mq_receive(reader, buffer, sizeof buffer, &priority), 4);
    SAME(priority, 9);
    EXPECT(memcmp(buffer, "high", 4) == 0);
    SAME(mq_receive(reader, buffer, sizeof buffer, &priority), 3);
    SAME(mq_receive(reader, buffer, sizeof buffer, &priority), 7);
    SAME(priority, 1);
    SAME(mq_receive(reader, buffer, sizeof buffer, &priority), -1);
    SAME(errno, EAGAIN);
    struct stat status;
    EXPECT(fstat((int)both, &status) == 0);
    SAME(status.st_mode & 0777, 0640);
    EXPECT(mq_getattr(empty, &now) == 0);
    SAME(now.mq_curmsgs, 0);
    SAME(mq_send(both, "x", 1, 0), 0);
    SAME(mq_receive(reader, buffer, sizeof buffer, &priority), 1);
    SAME(mq_unlink("/row"), 0);
    SAME(mq_unlink("/empty"), 0);
    return done();
}
