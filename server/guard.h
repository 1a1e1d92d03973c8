/* The guard against server-side request forgery: which addresses may be connected to.
 *
 * A pure function of the socket address and a policy; DESIGN.md part 6.1. It judges addresses,
 * never the text of a host. fetch asks it three times: for the resolver's answers, in
 * CURLOPT_OPENSOCKETFUNCTION (the last word before connect) and in CURLOPT_PREREQFUNCTION (reused
 * connections). */
#ifndef SERVER_GUARD_H
#define SERVER_GUARD_H

#include <netinet/in.h>
#include <sys/socket.h>

#include "server/base.h"

/* A network in CIDR form; IPv4 ones have family AF_INET. */
struct guard_net {
    int family;
    unsigned prefix;
    uint8_t addr[16]; /* network byte order; IPv4 in the first four */
};

struct guard {
    struct guard_net *allow; /* win over every rule, for their net only */
    size_t n_allow;
    struct guard_net *own; /* this machine's own addresses: denied unless allowed */
    size_t n_own;
};

/* Parses "10.0.0.0/8", "127.0.0.1", "fd00::/8". Returns 0, or E_INVAL with *why. Bits behind the
 * prefix must be zero. */
int guard_parse_net(const char *s, struct guard_net *out, const char **why) MUSTCHECK;

/* Copies the allow list; reads the machine's own addresses with getifaddrs(3). */
int guard_init(struct guard *g, const struct guard_net *allow, size_t n_allow) MUSTCHECK;
void guard_fini(struct guard *g);

/* NULL: may be connected to. Otherwise a stable short name of the rule that denies it
 * ("loopback", "private", "link_local", "multicast", "own_address", ...). Any thread. */
const char *guard_check(const struct guard *g, const struct sockaddr *sa);

#endif
