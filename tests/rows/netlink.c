/* Netlink, packet and raw sockets. */
#include "row.h"
#include <linux/if_packet.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/ethernet.h>
#include <netinet/in.h>
#include <netinet/ip_icmp.h>
#include <sys/socket.h>

int main(void) {
    struct sockaddr_nl at = { .nl_family = AF_NETLINK, .nl_pid = 4242, .nl_groups = RTMGRP_LINK }, got;
    struct sockaddr_ll link = { .sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_IP), .sll_ifindex = 1 }, bound;
    socklen_t len;
    int value = 0;
    int netlink = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
    CHECK(netlink >= 0 && bind(netlink, (struct sockaddr *)&at, sizeof at) == 0);
    int on = 1;
    CHECK(setsockopt(netlink, SOL_NETLINK, NETLINK_EXT_ACK, &on, sizeof on) == 0);
    int packet = socket(AF_PACKET, SOCK_DGRAM, 0);
    CHECK(packet >= 0 && bind(packet, (struct sockaddr *)&link, sizeof link) == 0);
    int raw = socket(AF_INET, SOCK_RAW, IPPROTO_ICMP);
    CHECK(raw >= 0 && setsockopt(raw, IPPROTO_IP, IP_HDRINCL, &on, sizeof on) == 0);

    ready();

    len = sizeof got;
    EXPECT(getsockname(netlink, (struct sockaddr *)&got, &len) == 0);
    SAME(got.nl_pid, 4242);
    SAME(got.nl_groups, RTMGRP_LINK);
    len = sizeof value;
    EXPECT(getsockopt(netlink, SOL_NETLINK, NETLINK_EXT_ACK, &value, &len) == 0 && value == 1);
    struct {
        struct nlmsghdr header;
        struct rtgenmsg body;
    } request = { { sizeof request, RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, 7, 0 }, { AF_UNSPEC } };
    char answer[16384];
    EXPECT(send(netlink, &request, sizeof request, 0) == sizeof request);
    ssize_t n = recv(netlink, answer, sizeof answer, 0);
    EXPECT(n > 0 && ((struct nlmsghdr *)answer)->nlmsg_type == RTM_NEWLINK);
    len = sizeof bound;
    EXPECT(getsockname(packet, (struct sockaddr *)&bound, &len) == 0);
    SAME(bound.sll_ifindex, 1);
    SAME(bound.sll_protocol, htons(ETH_P_IP));
    EXPECT(getsockopt(raw, IPPROTO_IP, IP_HDRINCL, &value, &len) == 0 && value == 1);
    /* What goes over the loopback interface is seen. */
    int udp = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(9), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    EXPECT(sendto(udp, "seen", 4, 0, (struct sockaddr *)&to, sizeof to) == 4);
    EXPECT(recv(packet, answer, sizeof answer, 0) >= 32);
    return done();
}
