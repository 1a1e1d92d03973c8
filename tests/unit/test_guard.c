/* Tests of guard.c: each block by its first and last address and their outer neighbours. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <arpa/inet.h>
#include <cmocka.h>
#include <ifaddrs.h>
#include <sys/un.h>

#include "server/guard.h"

static const struct guard none; /* no own addresses, nothing allowed */

static const char *check_bytes(const struct guard *g, int family, const uint8_t *addr,
                               uint32_t scope)
{
    struct sockaddr_storage ss;
    struct sockaddr_in *in = (struct sockaddr_in *)&ss;
    struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)&ss;

    memset(&ss, 0, sizeof(ss));
    ss.ss_family = (sa_family_t)family;
    if (family == AF_INET) {
        memcpy(&in->sin_addr, addr, 4);
    } else {
        memcpy(&in6->sin6_addr, addr, 16);
        in6->sin6_scope_id = scope;
    }
    return guard_check(g, (struct sockaddr *)&ss);
}

static const char *check(const struct guard *g, const char *text)
{
    uint8_t addr[16];
    int family = strchr(text, ':') != NULL ? AF_INET6 : AF_INET;

    assert_int_equal(inet_pton(family, text, addr), 1);
    return check_bytes(g, family, addr, 0);
}

static void expect(const struct guard *g, const char *text, const char *want)
{
    const char *got = check(g, text);

    if ((got == NULL) != (want == NULL) || (got != NULL && strcmp(got, want) != 0))
        fail_msg("%s: got %s, wanted %s", text, got != NULL ? got : "allowed",
                 want != NULL ? want : "allowed");
}

struct block {
    const char *net;
    const char *name;
    const char *before, *after; /* verdict on the neighbours outside; NULL: allowed */
};

static const struct block blocks4[] = {
    {"0.0.0.0/8", "this_network", "-", NULL},
    {"10.0.0.0/8", "private", NULL, NULL},
    {"100.64.0.0/10", "shared", NULL, NULL},
    {"127.0.0.0/8", "loopback", NULL, NULL},
    {"169.254.0.0/16", "link_local", NULL, NULL},
    {"172.16.0.0/12", "private", NULL, NULL},
    {"192.0.0.0/24", "ietf", NULL, NULL},
    {"192.0.2.0/24", "documentation", NULL, NULL},
    {"192.31.196.0/24", "as112", NULL, NULL},
    {"192.52.193.0/24", "amt", NULL, NULL},
    {"192.88.99.0/24", "6to4_relay", NULL, NULL},
    {"192.168.0.0/16", "private", NULL, NULL},
    {"192.175.48.0/24", "as112", NULL, NULL},
    {"198.18.0.0/15", "benchmarking", NULL, NULL},
    {"198.51.100.0/24", "documentation", NULL, NULL},
    {"203.0.113.0/24", "documentation", NULL, NULL},
    {"224.0.0.0/4", "multicast", NULL, "reserved"},
    {"240.0.0.0/5", "reserved", "multicast", "reserved"},
    {"255.255.255.255/32", "broadcast", "reserved", "-"},
    {"168.63.129.16/32", "metadata", NULL, NULL},
};

static const struct block blocks6[] = {
    {"::/128", "unspecified", "-", "loopback"},
    {"::1/128", "loopback", "unspecified", "embedded_ipv4"},
    {"::8.0.0.0/104", "embedded_ipv4", "embedded_ipv4", "embedded_ipv4"},
    {"::ffff:0:0:0/96", "embedded_ipv4", "not_global", "not_global"},
    {"64:ff9b::/96", "embedded_ipv4", "not_global", "not_global"},
    {"64:ff9b:1::/48", "embedded_ipv4", "not_global", "not_global"},
    {"100::/64", "discard", "not_global", "dummy"},
    {"100:0:0:1::/64", "dummy", "discard", "not_global"},
    {"5f00::/16", "segment_routing", "not_global", "not_global"},
    {"fc00::/7", "private", "not_global", "not_global"},
    {"fe80::/10", "link_local", "not_global", "site_local"},
    {"fec0::/10", "site_local", "link_local", "multicast"},
    {"ff00::/8", "multicast", "site_local", "-"},
    {"2000::/16", NULL, "not_global", "embedded_ipv4"},
    {"2001::/32", "embedded_ipv4", NULL, "ietf"},
    {"2001:1::/32", "ietf", "embedded_ipv4", "ietf"},
    {"2001:100::/24", "ietf", "ietf", NULL},
    {"2001:200::/24", NULL, "ietf", NULL},
    {"2001:db8::/32", "documentation", NULL, NULL},
    {"2002::/16", "embedded_ipv4", NULL, NULL},
    {"2620:4f:8000::/48", "as112", NULL, NULL},
    {"3fff::/20", "documentation", NULL, NULL},
    {"3fff:f000::/20", NULL, NULL, "not_global"},
    {"4000::/3", "not_global", NULL, "not_global"},
};

/* Adds +1 or -1; false when it runs over the end. */
static bool step(uint8_t *addr, size_t n, int by)
{
    for (size_t i = n; i-- > 0;) {
        addr[i] = (uint8_t)(addr[i] + by);
        if (addr[i] != (by > 0 ? 0 : 255))
            return true;
    }
    return false;
}

static void expect_bytes(const struct block *b, int family, const uint8_t *addr, const char *want)
{
    char text[INET6_ADDRSTRLEN];

    inet_ntop(family, addr, text, sizeof(text));
    if (want != NULL && strcmp(want, "-") == 0)
        fail_msg("%s: the table has no neighbour, but %s is one", b->net, text);
    expect(&none, text, want);
    if (family == AF_INET) { /* and so must its mapped form */
        char wrapped[INET6_ADDRSTRLEN + 8];
        snprintf(wrapped, sizeof(wrapped), "::ffff:%s", text);
        expect(&none, wrapped, want);
    }
}

static void run_block(const struct block *b)
{
    struct guard_net net;
    const char *why;
    uint8_t addr[16];

    assert_int_equal(guard_parse_net(b->net, &net, &why), 0);
    size_t n = net.family == AF_INET ? 4 : 16;
    memcpy(addr, net.addr, sizeof(addr));
    expect_bytes(b, net.family, addr, b->name);
    if (step(addr, n, -1))
        expect_bytes(b, net.family, addr, b->before);

    memcpy(addr, net.addr, sizeof(addr));
    for (size_t i = net.prefix; i < 8 * n; i++)
        addr[i / 8] |= (uint8_t)(0x80 >> (i % 8));
    expect_bytes(b, net.family, addr, b->name);
    if (step(addr, n, 1))
        expect_bytes(b, net.family, addr, b->after);

    /* One within: the free bits in turns. */
    memcpy(addr, net.addr, sizeof(addr));
    for (size_t i = net.prefix; i < 8 * n; i += 2)
        addr[i / 8] |= (uint8_t)(0x80 >> (i % 8));
    if (net.prefix + 2 < 8 * n)
        expect_bytes(b, net.family, addr, b->name);
}

static void test_blocks(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(blocks4); i++)
        run_block(&blocks4[i]);
    for (size_t i = 0; i < ARRAY_LEN(blocks6); i++)
        run_block(&blocks6[i]);
}

static void test_known(void **state)
{
    static const char *const denied[] = {
        "169.254.169.254",
        "169.254.170.2",
        "100.100.100.200",
        "192.0.0.192",
        "fd00:ec2::254",
        "192.0.0.9",
        "192.0.0.10",
        "::ffff:169.254.169.254",
        "::ffff:127.0.0.1",
        "::127.0.0.1",
        "::ffff:0:127.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b::808:808",
        "64:ff9b:1::a00:1",
        "2002:7f00:1::",
        "2002:808:808::1",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2",
        "2001:10::1",
        "2001:20::1",
        "fe80::1",
        "ff02::1",
        "::2",
        "64:ff9c::1",
        "100:0:0:2::",
        "8000::",
        "1fff::",
    };
    static const char *const allowed[] = {
        "8.8.8.8",
        "1.1.1.1",
        "93.184.216.34",
        "223.255.255.255",
        "168.63.129.15",
        "::ffff:8.8.8.8",
        "2606:4700:4700::1111",
        "2001:4860:4860::8888",
        "2a00:1450:4001:81b::200e",
        "2400::1",
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(denied); i++)
        if (check(&none, denied[i]) == NULL)
            fail_msg("%s is allowed", denied[i]);
    for (size_t i = 0; i < ARRAY_LEN(allowed); i++)
        expect(&none, allowed[i], NULL);
}

static void test_zone_and_family(void **state)
{
    struct sockaddr_un un = {.sun_family = AF_UNIX};
    struct guard g = {0};
    struct guard_net all;
    const char *why;
    uint8_t addr[16] = {0x26, 0x06};

    (void)state;
    assert_string_equal(guard_check(&none, (struct sockaddr *)&un), "address_family");
    assert_null(check_bytes(&none, AF_INET6, addr, 0));
    assert_string_equal(check_bytes(&none, AF_INET6, addr, 1), "zone");
    assert_int_equal(guard_parse_net("::/0", &all, &why), 0);
    g.allow = &all;
    g.n_allow = 1;
    assert_string_equal(check_bytes(&g, AF_INET6, addr, 1), "zone");
    /* Unaligned, as a packed structure may have it. */
    char raw[sizeof(struct sockaddr_in) + 1];
    struct sockaddr_in in = {.sin_family = AF_INET};
    memcpy(raw + 1, &in, sizeof(in));
    assert_string_equal(guard_check(&none, (struct sockaddr *)(void *)(raw + 1)), "this_network");
}

static void test_allow(void **state)
{
    static const char *const nets[] = {"10.1.0.0/16", "127.0.0.1", "fd00::/8", "64:ff9b::/96",
                                       "::ffff:192.168.4.0/118"};
    struct guard_net allow[ARRAY_LEN(nets)];
    const char *why;
    struct guard g;

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(nets); i++)
        assert_int_equal(guard_parse_net(nets[i], &allow[i], &why), 0);
    assert_int_equal(guard_init(&g, allow, ARRAY_LEN(allow)), 0);
    memset(allow, 0, sizeof(allow)); /* it was copied */
    expect(&g, "10.1.0.0", NULL);
    expect(&g, "10.1.255.255", NULL);
    expect(&g, "10.0.255.255", "private");
    expect(&g, "10.2.0.0", "private");
    expect(&g, "127.0.0.1", NULL);
    expect(&g, "::ffff:127.0.0.1", NULL);
    expect(&g, "127.0.0.2", "loopback");
    expect(&g, "::1", "loopback");
    expect(&g, "::127.0.0.1", "embedded_ipv4");
    expect(&g, "2002:7f00:1::", "embedded_ipv4");
    expect(&g, "fd12::1", NULL);
    expect(&g, "fc12::1", "private");
    expect(&g, "64:ff9b::a00:1", NULL);
    expect(&g, "192.168.3.255", "private");
    expect(&g, "192.168.4.1", NULL);
    expect(&g, "192.168.7.255", NULL);
    expect(&g, "192.168.8.0", "private");
    expect(&g, "8.8.8.8", NULL);
    guard_fini(&g);
    guard_fini(&g);

    /* All of IPv4, and nothing of IPv6. */
    assert_int_equal(guard_parse_net("0.0.0.0/0", &allow[0], &why), 0);
    assert_int_equal(guard_init(&g, allow, 1), 0);
    expect(&g, "0.0.0.0", NULL);
    expect(&g, "255.255.255.255", NULL);
    expect(&g, "::1", "loopback");
    guard_fini(&g);
    assert_int_equal(guard_parse_net("::/0", &allow[0], &why), 0);
    assert_int_equal(guard_init(&g, allow, 1), 0);
    expect(&g, "::1", NULL);
    expect(&g, "::ffff:127.0.0.1", "loopback");
    guard_fini(&g);
}

static void test_own(void **state)
{
    struct guard g;
    struct ifaddrs *list;
    size_t n = 0;

    (void)state;
    assert_int_equal(guard_init(&g, NULL, 0), 0);
    assert_int_equal(getifaddrs(&list), 0);
    for (struct ifaddrs *i = list; i != NULL; i = i->ifa_next) {
        if (i->ifa_addr == NULL ||
            (i->ifa_addr->sa_family != AF_INET && i->ifa_addr->sa_family != AF_INET6))
            continue;
        assert_non_null(guard_check(&g, i->ifa_addr));
        n++;
    }
    assert_true(n > 0);
    assert_int_equal(g.n_own, n);
    freeifaddrs(list);
    guard_fini(&g);

    /* A public address of this machine, which the tables would allow. */
    struct guard_net own[2], allow;
    const char *why;
    assert_int_equal(guard_parse_net("8.8.4.4", &own[0], &why), 0);
    assert_int_equal(guard_parse_net("2606:4700::7", &own[1], &why), 0);
    g = (struct guard){.own = own, .n_own = 2};
    expect(&g, "8.8.4.4", "own_address");
    expect(&g, "::ffff:8.8.4.4", "own_address");
    expect(&g, "2606:4700::7", "own_address");
    expect(&g, "8.8.4.5", NULL);
    assert_int_equal(guard_parse_net("8.8.4.4/32", &allow, &why), 0);
    g.allow = &allow;
    g.n_allow = 1;
    expect(&g, "8.8.4.4", NULL);
}

static void test_parse_net(void **state)
{
    static const char *const bad[] = {
        "",
        "/",
        "/8",
        "10",
        "10.0.0",
        "10.0.0.0/",
        "10.0.0.0/33",
        "10.0.0.0/-1",
        "10.0.0.0/+8",
        "10.0.0.0/08",
        "10.0.0.0/8/8",
        "10.0.0.0/8 ",
        " 10.0.0.0/8",
        "10.0.0.0/9999999999",
        "10.0.0.1/8",
        "10.0.0.0/4",
        "010.0.0.0/8",
        "0x0a.0.0.0/8",
        "fd00::/129",
        "fd00::1/8",
        "fe80::1%lo/64",
        "[::1]/128",
        "example.com/8",
        "10.0.0.0/8,11.0.0.0/8",
        "::1/1280",
        "1111:2222:3333:4444:5555:6666:7777:8888:9999:aaaa:bbbb:cccc:dddd/128",
    };
    static const struct {
        const char *text;
        int family;
        unsigned prefix;
    } good[] = {
        {"10.0.0.0/8", AF_INET, 8},
        {"127.0.0.1", AF_INET, 32},
        {"0.0.0.0/0", AF_INET, 0},
        {"192.168.1.1/32", AF_INET, 32},
        {"fd00::/8", AF_INET6, 8},
        {"::/0", AF_INET6, 0},
        {"::1", AF_INET6, 128},
        {"2001:DB8::/32", AF_INET6, 32},
        {"::ffff:10.0.0.0/104", AF_INET, 8},
        {"::ffff:0:0/96", AF_INET, 0},
        {"128.0.0.0/1", AF_INET, 1},
    };
    struct guard_net net;
    const char *why;

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        why = NULL;
        if (guard_parse_net(bad[i], &net, &why) != E_INVAL || why == NULL)
            fail_msg("\"%s\" was taken", bad[i]);
    }
    for (size_t i = 0; i < ARRAY_LEN(good); i++) {
        assert_int_equal(guard_parse_net(good[i].text, &net, &why), 0);
        assert_int_equal(net.family, good[i].family);
        assert_int_equal(net.prefix, good[i].prefix);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_blocks),
        cmocka_unit_test(test_known),
        cmocka_unit_test(test_zone_and_family),
        cmocka_unit_test(test_allow),
        cmocka_unit_test(test_own),
        cmocka_unit_test(test_parse_net),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
