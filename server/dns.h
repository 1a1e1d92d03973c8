/* Names to addresses, with c-ares on the caller's own event loop: never blocks, no threads.
 *
 * Bounded cache (least recently used out first), TTL-aware, negative answers kept for a short
 * time; one query in flight per name however many ask. /etc/hosts and resolv.conf are honoured.
 * One struct dns per fetcher thread, used by that thread only. Time comes in as an argument. */
#ifndef SERVER_DNS_H
#define SERVER_DNS_H

#include <sys/socket.h>

#include "server/base.h"

struct dns;

enum { DNS_ADDRS_MAX = 16 }; /* addresses kept of one answer */

struct dns_addr {
    sa_family_t family; /* AF_INET or AF_INET6 */
    uint8_t addr[16];   /* network byte order */
};

struct dns_answer {
    int rc;            /* 0, or E_NOTFOUND (no such name), E_IO (servers failed or timed out) */
    const char *error; /* with rc: static text, e.g. "no such host" */
    size_t n;          /* with rc 0: 1 .. DNS_ADDRS_MAX */
    struct dns_addr addr[DNS_ADDRS_MAX]; /* in the order to be tried: RFC 6724 as c-ares sorts */
    int64_t expires_us;                  /* monotonic; ask again after this */
};

/* Called once for each dns_resolve that returned 1, from within dns_event or dns_tick. The answer
 * is valid during the call only. May call dns_resolve. */
typedef void dns_fn(void *arg, const struct dns_answer *a);
/* Asks the event loop to watch fd for reading and/or writing; neither: stop watching. */
typedef void dns_watch_fn(void *arg, int fd, bool rd, bool wr);

struct dns_options {
    const char *servers; /* "ip[:port],…"; NULL: resolv.conf */
    size_t cache_max;    /* names kept; 0: 65536 */
    size_t inflight_max; /* queries sent in the last 100 ms and not answered; more wait
                            in line; 0: 128 */
    int timeout_ms;      /* first try of one query, doubled by each further one; 0: 2000 */
    int tries;           /* 0: 3 */
};

int dns_new(struct dns **out, const struct dns_options *o, dns_watch_fn *watch,
            void *arg) MUSTCHECK;
void dns_free(struct dns *d); /* no callbacks are called; NULL is fine */

/* Looks up a host name (never an address literal), lower case. Returns 0 with *a filled in when
 * the cache knows it, 1 when fn will be called later, or E_NOMEM. */
int dns_resolve(struct dns *d, const char *name, int64_t now, dns_fn *fn, void *arg,
                struct dns_answer *a) MUSTCHECK;
/* The watched fd is ready. */
void dns_event(struct dns *d, int fd, bool rd, bool wr, int64_t now);
/* Handles timeouts that are due; returns when to call again at the latest (monotonic µs), or
 * INT64_MAX. */
int64_t dns_tick(struct dns *d, int64_t now);
/* Of a name that an answer is waited for: whether the servers have been asked. It may be in line
 * behind others. */
bool dns_asked(const struct dns *d, const char *name);
/* No socket can be had at the moment: look-ups wait for a reason of this machine's. */
bool dns_short(const struct dns *d, int64_t now);

#endif
