/* UDP, IPv4 and IPv6: bound and connected sockets, options, datagrams that wait. */
#include "row.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

int main(void) {
    struct sockaddr_in6 at = { .sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT }, from;
    struct sockaddr_in at4 = { .sin_family = AF_INET };
    socklen_t len = sizeof at;
    char buffer[256];
    int on = 1, value = 0;
    int server = socket(AF_INET6, SOCK_DGRAM, 0), client = socket(AF_INET6, SOCK_DGRAM, 0);
    CHECK(server >= 0 && client >= 0);
    CHECK(bind(server, (struct sockaddr *)&at, sizeof at) == 0);
    CHECK(getsockname(server, (struct sockaddr *)&at, &len) == 0);
    CHECK(connect(client, (struct sockaddr *)&at, sizeof at) == 0);
    CHECK(setsockopt(server, SOL_SOCKET, SO_BROADCAST, &on, sizeof on) == 0);
    CHECK(setsockopt(server, IPPROTO_IPV6, IPV6_RECVPKTINFO, &on, sizeof on) == 0);
    struct sockaddr_in6 own;
    len = sizeof own;
    CHECK(getsockname(client, (struct sockaddr *)&own, &len) == 0);
    CHECK(send(client, "one", 3, 0) == 3 && send(client, "", 0, 0) == 0 && send(client, "three", 5, 0) == 5);
    /* A member of a multicast group, on all addresses. */
    int group = socket(AF_INET, SOCK_DGRAM, 0);
    struct ip_mreqn member = { .imr_ifindex = 1 };
    at4.sin_port = htons(4000);
    CHECK(group >= 0 && bind(group, (struct sockaddr *)&at4, sizeof at4) == 0);
    CHECK(inet_pton(AF_INET, "239.7.7.7", &member.imr_multiaddr) == 1);
    CHECK(setsockopt(group, IPPROTO_IP, IP_ADD_MEMBERSHIP, &member, sizeof member) == 0);

    ready();

    struct pollfd wait = { .fd = server, .events = POLLIN };
    const char *texts[] = { "one", "", "three" };
    for (int i = 0; i < 3; i++) {
        EXPECT(poll(&wait, 1, 5000) == 1);
        len = sizeof from;
        ssize_t n = recvfrom(server, buffer, sizeof buffer, MSG_DONTWAIT, (struct sockaddr *)&from, &len);
        SAME(n, strlen(texts[i]));
        EXPECT(n < 0 || memcmp(buffer, texts[i], n) == 0);
        SAME(from.sin6_port, own.sin6_port);
    }
    EXPECT(recv(server, buffer, 1, MSG_DONTWAIT) < 0 && errno == EAGAIN);
    EXPECT(send(client, "more", 4, 0) == 4 && poll(&wait, 1, 5000) == 1 && recv(server, buffer, 9, 0) == 4);
    len = sizeof value;
    EXPECT(getsockopt(server, SOL_SOCKET, SO_BROADCAST, &value, &len) == 0 && value == 1);
    EXPECT(getsockopt(server, IPPROTO_IPV6, IPV6_RECVPKTINFO, &value, &len) == 0 && value == 1);
    /* It is a member already. */
    EXPECT(setsockopt(group, IPPROTO_IP, IP_ADD_MEMBERSHIP, &member, sizeof member) < 0 && errno == EADDRINUSE);
    struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(4000), .sin_addr = member.imr_multiaddr };
    int sender = socket(AF_INET, SOCK_DGRAM, 0);
    struct ip_mreqn via = { .imr_ifindex = 1 };
    EXPECT(setsockopt(sender, IPPROTO_IP, IP_MULTICAST_IF, &via, sizeof via) == 0);
    EXPECT(sendto(sender, "group", 5, 0, (struct sockaddr *)&to, sizeof to) == 5);
    wait.fd = group;
    EXPECT(poll(&wait, 1, 5000) == 1 && recv(group, buffer, sizeof buffer, 0) == 5);
    return done();
}
