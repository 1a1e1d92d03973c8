/* The guard's rules as two tables of networks and one walk over them. IPv4 is allowed unless a row
 * denies it; IPv6 is denied unless it is global unicast (2000::/3) and no row denies it, because
 * what is not assigned today may mean anything tomorrow. No state but the policy, which is constant
 * after guard_init: any thread. */
#include "server/guard.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <stdlib.h>
#include <string.h>

struct rule4 {
    uint32_t net; /* host byte order */
    unsigned prefix;
    const char *name;
};

#define IP4(a, b, c, d) ((uint32_t)(a) << 24 | (uint32_t)(b) << 16 | (uint32_t)(c) << 8 | (d))

/* The IANA special-purpose registry whether "globally reachable" or not (there is nothing to fetch
 * in any of it), and what the registry does not hold. */
static const struct rule4 rules4[] = {
    {IP4(0, 0, 0, 0), 8, "this_network"}, /* Linux dials 0.0.0.0 as loopback */
    {IP4(10, 0, 0, 0), 8, "private"},
    {IP4(100, 64, 0, 0), 10, "shared"}, /* carrier NAT; 100.100.100.200 is metadata at one cloud */
    {IP4(127, 0, 0, 0), 8, "loopback"},
    {IP4(169, 254, 0, 0), 16, "link_local"}, /* most clouds' metadata services */
    {IP4(172, 16, 0, 0), 12, "private"},
    {IP4(192, 0, 0, 0), 24, "ietf"}, /* 192.0.0.192: metadata too */
    {IP4(192, 0, 2, 0), 24, "documentation"},
    {IP4(192, 31, 196, 0), 24, "as112"},
    {IP4(192, 52, 193, 0), 24, "amt"},
    {IP4(192, 88, 99, 0), 24, "6to4_relay"},
    {IP4(192, 168, 0, 0), 16, "private"},
    {IP4(192, 175, 48, 0), 24, "as112"},
    {IP4(198, 18, 0, 0), 15, "benchmarking"},
    {IP4(198, 51, 100, 0), 24, "documentation"},
    {IP4(203, 0, 113, 0), 24, "documentation"},
    {IP4(224, 0, 0, 0), 4, "multicast"},
    {IP4(255, 255, 255, 255), 32, "broadcast"},
    {IP4(240, 0, 0, 0), 4, "reserved"},
    {IP4(168, 63, 129, 16), 32, "metadata"}, /* a public address that a cloud answers itself */
};

struct rule6 {
    uint8_t net[16];
    unsigned prefix;
    const char *name;
};

/* The first row that holds the address decides. Those outside 2000::/3 only give the denial its
 * name. */
static const struct rule6 rules6[] = {
    {{0}, 128, "unspecified"},
    {{[15] = 1}, 128, "loopback"},
    {{0}, 96, "embedded_ipv4"},                            /* ::/96, IPv4-compatible */
    {{[8] = 0xff, [9] = 0xff}, 96, "embedded_ipv4"},       /* ::ffff:0:0:0/96, SIIT */
    {{0x00, 0x64, 0xff, 0x9b}, 96, "embedded_ipv4"},       /* 64:ff9b::/96, NAT64 */
    {{0x00, 0x64, 0xff, 0x9b, 0, 1}, 48, "embedded_ipv4"}, /* 64:ff9b:1::/48, local NAT64 */
    {{0x01, 0x00}, 64, "discard"},                         /* 100::/64 */
    {{0x01, 0x00, 0, 0, 0, 0, 0, 1}, 64, "dummy"},         /* 100:0:0:1::/64 */
    {{0x5f, 0x00}, 16, "segment_routing"},
    {{0xfc, 0x00}, 7, "private"},
    {{0xfe, 0x80}, 10, "link_local"},
    {{0xfe, 0xc0}, 10, "site_local"},
    {{0xff, 0x00}, 8, "multicast"},
    {{0x20, 0x01, 0x00, 0x00}, 32, "embedded_ipv4"}, /* Teredo */
    {{0x20, 0x01, 0x00, 0x00}, 23, "ietf"},
    {{0x20, 0x01, 0x0d, 0xb8}, 32, "documentation"},
    {{0x20, 0x02}, 16, "embedded_ipv4"}, /* 6to4 */
    {{0x26, 0x20, 0x00, 0x4f, 0x80, 0x00}, 48, "as112"},
    {{0x3f, 0xff, 0x00}, 20, "documentation"},
};

static const uint8_t global_unicast[16] = {0x20};
static const uint8_t mapped[12] = {[10] = 0xff, [11] = 0xff}; /* ::ffff:0:0/96 */

static bool in_net(const uint8_t *addr, const uint8_t *net, unsigned prefix)
{
    unsigned whole = prefix / 8, rest = prefix % 8;

    if (memcmp(addr, net, whole) != 0)
        return false;
    return rest == 0 || ((addr[whole] ^ net[whole]) >> (8 - rest)) == 0;
}

/* An address as it is judged: IPv4-mapped IPv6 addresses reach IPv4 hosts, so they are IPv4. */
static void unwrap(int family, const uint8_t *addr, struct guard_net *out)
{
    *out = (struct guard_net){.family = family};
    if (family == AF_INET6 && memcmp(addr, mapped, sizeof(mapped)) == 0) {
        out->family = AF_INET;
        addr += 12;
    }
    out->prefix = out->family == AF_INET ? 32 : 128;
    memcpy(out->addr, addr, out->family == AF_INET ? 4 : 16);
}

static bool in_list(const struct guard_net *list, size_t n, const struct guard_net *a)
{
    for (size_t i = 0; i < n; i++)
        if (list[i].family == a->family && in_net(a->addr, list[i].addr, list[i].prefix))
            return true;
    return false;
}

int guard_parse_net(const char *s, struct guard_net *out, const char **why)
{
    char text[INET6_ADDRSTRLEN + 1];
    uint8_t addr[16];
    const char *slash = strchr(s, '/');
    size_t n = slash != NULL ? (size_t)(slash - s) : strlen(s);

    *why = "it is not an IPv4 or IPv6 network such as 10.0.0.0/8 or fd00::/8";
    if (n >= sizeof(text))
        return E_INVAL;
    memcpy(text, s, n);
    text[n] = '\0';
    int family = strchr(text, ':') != NULL ? AF_INET6 : AF_INET;
    if (inet_pton(family, text, addr) != 1)
        return E_INVAL;

    unsigned bits = family == AF_INET ? 32 : 128, prefix = bits;
    if (slash != NULL) {
        size_t digits = strspn(slash + 1, "0123456789");
        *why = "the prefix length is out of range";
        if (digits == 0 || digits > 3 || slash[1 + digits] != '\0' ||
            (slash[1] == '0' && digits > 1))
            return E_INVAL;
        prefix = 0;
        for (size_t i = 0; i < digits; i++)
            prefix = prefix * 10 + (unsigned)(slash[1 + i] - '0');
        if (prefix > bits)
            return E_INVAL;
    }
    for (unsigned i = prefix; i < bits; i++) {
        if (addr[i / 8] & (0x80u >> (i % 8))) {
            *why = "there are bits set behind the prefix";
            return E_INVAL;
        }
    }
    /* Mapped addresses are judged as IPv4, so a mapped network must be one of IPv4 to ever match.
     * (A wider one, ::/0, stands for IPv6 only.) */
    *out = (struct guard_net){.family = family, .prefix = prefix};
    memcpy(out->addr, addr, bits / 8);
    if (family == AF_INET6 && prefix >= 96 && memcmp(addr, mapped, sizeof(mapped)) == 0) {
        unwrap(AF_INET6, addr, out);
        out->prefix = prefix - 96;
    }
    *why = NULL;
    return 0;
}

/* Reads family and address, with no assumption on alignment; false for what is neither. */
static bool from_sockaddr(const struct sockaddr *sa, struct guard_net *out, bool *scoped)
{
    sa_family_t family;

    *scoped = false;
    memcpy(&family, (const char *)sa + offsetof(struct sockaddr, sa_family), sizeof(family));
    if (family == AF_INET) {
        struct sockaddr_in in;
        memcpy(&in, sa, sizeof(in));
        unwrap(AF_INET, (const uint8_t *)&in.sin_addr, out);
        return true;
    }
    if (family == AF_INET6) {
        struct sockaddr_in6 in6;
        memcpy(&in6, sa, sizeof(in6));
        *scoped = in6.sin6_scope_id != 0;
        unwrap(AF_INET6, in6.sin6_addr.s6_addr, out);
        return true;
    }
    return false;
}

int guard_init(struct guard *g, const struct guard_net *allow, size_t n_allow)
{
    struct ifaddrs *list = NULL;
    size_t n = 0;
    bool scoped;

    *g = (struct guard){0};
    /* Without the list the guard would let requests through to ourselves: no start. */
    if (getifaddrs(&list) != 0)
        return E_IO;
    for (struct ifaddrs *i = list; i != NULL; i = i->ifa_next)
        n++;
    g->own = xcalloc(n, sizeof(*g->own));
    for (struct ifaddrs *i = list; i != NULL; i = i->ifa_next)
        if (i->ifa_addr != NULL && from_sockaddr(i->ifa_addr, &g->own[g->n_own], &scoped))
            g->n_own++;
    freeifaddrs(list);

    g->allow = xcalloc(n_allow, sizeof(*g->allow));
    if (n_allow > 0)
        memcpy(g->allow, allow, n_allow * sizeof(*allow));
    g->n_allow = n_allow;
    return 0;
}

void guard_fini(struct guard *g)
{
    free(g->allow);
    free(g->own);
    *g = (struct guard){0};
}

static const char *judge4(const uint8_t *addr)
{
    uint32_t ip = IP4(addr[0], addr[1], addr[2], addr[3]);

    for (size_t i = 0; i < ARRAY_LEN(rules4); i++)
        if ((ip ^ rules4[i].net) >> (32 - rules4[i].prefix) == 0)
            return rules4[i].name;
    return NULL;
}

static const char *judge6(const uint8_t *addr)
{
    for (size_t i = 0; i < ARRAY_LEN(rules6); i++)
        if (in_net(addr, rules6[i].net, rules6[i].prefix))
            return rules6[i].name;
    return in_net(addr, global_unicast, 3) ? NULL : "not_global";
}

const char *guard_check(const struct guard *g, const struct sockaddr *sa)
{
    struct guard_net a;
    bool scoped;

    if (!from_sockaddr(sa, &a, &scoped))
        return "address_family";
    /* A zone names one of our own interfaces; no allowed network can mean it. */
    if (scoped)
        return "zone";
    if (in_list(g->allow, g->n_allow, &a))
        return NULL;
    const char *rule = a.family == AF_INET ? judge4(a.addr) : judge6(a.addr);
    if (rule == NULL && in_list(g->own, g->n_own, &a))
        rule = "own_address";
    return rule;
}
