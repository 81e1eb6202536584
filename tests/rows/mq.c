/* POSIX message queues: opened ones, one that nobody has open, messages by priority. */
#include "row.h"
#include <mqueue.h>
#include <sys/stat.h>

static void expect(mqd_t queue, const char *text, unsigned priority) {
    char buffer[64] = "";
    unsigned got = 0;
    ssize_t n = mq_receive(queue, buffer, sizeof buffer, &got);
    SAME(n, strlen(text));
    SAME(got, priority);
    EXPECT(n < 0 || memcmp(buffer, text, n) == 0);
}

int main(void) {
    struct mq_attr attributes = { .mq_maxmsg = 5, .mq_msgsize = 64 };
    mqd_t queue = mq_open("/row", O_RDWR | O_CREAT | O_NONBLOCK, 0640, &attributes);
    mqd_t writer = mq_open("/row", O_WRONLY);
    mqd_t other = mq_open("/nobody", O_RDWR | O_CREAT, 0600, &attributes);
    CHECK(queue >= 0 && writer >= 0 && other >= 0 && fchmod(queue, 0640) == 0);
    CHECK(mq_send(writer, "low one", 7, 1) == 0 && mq_send(writer, "high", 4, 30) == 0);
    CHECK(mq_send(writer, "low two", 7, 1) == 0 && mq_send(writer, "", 0, 7) == 0);
    CHECK(mq_send(other, "kept", 4, 3) == 0 && mq_close(other) == 0);

    ready();

    struct mq_attr now;
    EXPECT(mq_getattr(queue, &now) == 0);
    SAME(now.mq_curmsgs, 4);
    SAME(now.mq_maxmsg, 5);
    SAME(now.mq_msgsize, 64);
    SAME(now.mq_flags, O_NONBLOCK);
    EXPECT(mq_getattr(writer, &now) == 0);
    SAME(now.mq_flags, 0);
    struct stat st;
    EXPECT(fstat(queue, &st) == 0);
    SAME(st.st_mode & 0777, 0640);
    expect(queue, "high", 30);
    expect(queue, "", 7);
    expect(queue, "low one", 1);
    expect(queue, "low two", 1);
    EXPECT(mq_receive(queue, (char[64]){ 0 }, 64, NULL) < 0 && errno == EAGAIN);
    EXPECT(mq_send(writer, "again", 5, 2) == 0);
    expect(queue, "again", 2);
    other = mq_open("/nobody", O_RDONLY);
    EXPECT(other >= 0);
    expect(other, "kept", 3);
    return done();
}
