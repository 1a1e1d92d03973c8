/* Name look-ups with c-ares on the caller's event loop. Each name that is known or being asked for
 * is an entry: in a hash table by name, and on one list for the state it is in (known: by last use;
 * waiting: in line for a free slot; asked: on none). All on one fetcher's thread, no locks.
 *
 * c-ares calls back from within ares_getaddrinfo() too, and answers of other names can end there
 * (a socket that breaks). So its callback only notes the answer; waiters are called from
 * dns_event() and dns_tick() alone, when c-ares is not on the stack. */
#include "server/dns.h"

#include <ares.h>
#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <unistd.h>

#include "server/metrics.h"

enum {
    CACHE_MAX = 65536,
    INFLIGHT_MAX = 128, /* a small server's socket buffer holds some 250 packets */
    SLOW_MAX = 4096,
    SLOW_US = 100 * 1000, /* what servers take to answer when they know */
    TIMEOUT_MS = 2000,
    TRIES = 3,
    EDNS_SIZE = 1232,     /* what passes without fragments everywhere (DNS flag day 2020) */
    RCVBUF = 1024 * 1024, /* all answers of a burst come in on one socket */
    FIRST_BUCKETS = 256,
};

#define SECOND ((int64_t)1000000)
#define HOLD (SECOND / 20) /* no socket: ask again after this */
#define TTL_MIN (1 * SECOND)
#define TTL_MAX (3600 * SECOND)
#define TTL_HOSTS (60 * SECOND) /* of /etc/hosts, which has none */
#define TTL_NEGATIVE (5 * SECOND)
#define TTL_FAILED (1 * SECOND) /* servers that fail may be back soon; but not within a burst */

struct waiter {
    struct waiter *next;
    dns_fn *fn;
    void *arg;
};

enum state {
    FRESH,   /* on no list: just made, or its answer has run out */
    WAITING, /* in line */
    ASKED,   /* c-ares has it */
    SLOW,    /* likewise, but for long: it takes no place any more that another name could have */
    DONE,    /* answered, waiters not called yet */
    KNOWN,
};

struct entry {
    struct entry *chain;       /* next in the bucket */
    struct entry *prev, *next; /* on the list of its state */
    struct dns *d;
    enum state state;
    int64_t asked_us;
    uint64_t hash;
    struct waiter *waiters, **waiters_end;
    int rc;
    const char *error;
    int64_t expires;
    size_t n;
    struct dns_addr *addr; /* of n: far smaller than a whole struct dns_answer */
    char name[];
};

struct list {
    struct entry *first, *last;
};

struct dns {
    ares_channel channel;
    dns_watch_fn *watch;
    void *watch_arg;
    struct entry **buckets;
    size_t n_buckets, n_entries, cache_max;
    struct list known, waiting, done; /* known: least recently used first */
    struct list asked, slow;          /* in the order of asking */
    size_t inflight, inflight_max;    /* ASKED */
    size_t n_slow;
    int64_t no_socket_us;   /* when one could not be had; 0: never */
    int64_t hold_until;     /* nothing is asked before */
    struct entry *starting; /* ares_getaddrinfo() is running for it */
    int64_t now;            /* of the call that is running */
    int64_t due;            /* when c-ares wants to be called again; may be too early */
    int64_t timeout_us;
    bool closing;
};

/* ---- lists and table ---- */

static void list_add(struct list *l, struct entry *e)
{
    e->next = NULL;
    e->prev = l->last;
    *(l->last != NULL ? &l->last->next : &l->first) = e;
    l->last = e;
}

static void list_remove(struct list *l, struct entry *e)
{
    *(e->prev != NULL ? &e->prev->next : &l->first) = e->next;
    *(e->next != NULL ? &e->next->prev : &l->last) = e->prev;
    e->prev = e->next = NULL;
}

static struct list *list_of(struct dns *d, enum state s)
{
    switch (s) {
    case WAITING: return &d->waiting;
    case ASKED: return &d->asked;
    case SLOW: return &d->slow;
    case DONE: return &d->done;
    case KNOWN: return &d->known;
    default: return NULL;
    }
}

/* Every change of state goes through here. */
static void set_state(struct entry *e, enum state s)
{
    struct list *l = list_of(e->d, e->state);

    if (l != NULL)
        list_remove(l, e);
    e->state = s;
    l = list_of(e->d, s);
    if (l != NULL)
        list_add(l, e);
}

static void entry_free(struct entry *e)
{
    while (e->waiters != NULL) {
        struct waiter *w = e->waiters;
        e->waiters = w->next;
        free(w);
    }
    free(e->addr);
    free(e);
}

static void grow(struct dns *d)
{
    size_t n = d->n_buckets * 2;
    struct entry **buckets = calloc(n, sizeof(*buckets));

    if (buckets == NULL) /* longer chains, then */
        return;
    for (size_t i = 0; i < d->n_buckets; i++) {
        for (struct entry *e = d->buckets[i], *next; e != NULL; e = next) {
            next = e->chain;
            e->chain = buckets[e->hash & (n - 1)];
            buckets[e->hash & (n - 1)] = e;
        }
    }
    free(d->buckets);
    d->buckets = buckets;
    d->n_buckets = n;
}

static void forget(struct dns *d, struct entry *e)
{
    struct entry **p = &d->buckets[e->hash & (d->n_buckets - 1)];

    while (*p != e)
        p = &(*p)->chain;
    *p = e->chain;
    d->n_entries--;
    set_state(e, FRESH);
    entry_free(e);
}

static struct entry *find(const struct dns *d, const char *name, uint64_t hash)
{
    struct entry *e = d->buckets[hash & (d->n_buckets - 1)];

    while (e != NULL && (e->hash != hash || strcmp(e->name, name) != 0))
        e = e->chain;
    return e;
}

/* The entry of a name, made if it is new. */
static struct entry *look_up(struct dns *d, const char *name, size_t len)
{
    uint64_t hash = hash64(name, len, 0);
    struct entry *e = find(d, name, hash);

    if (e != NULL)
        return e;

    /* Names that somebody waits for are never put out; there are as many as the callers bound. */
    if (d->n_entries >= d->cache_max && d->known.first != NULL)
        forget(d, d->known.first);
    if (d->n_entries >= d->n_buckets)
        grow(d);
    e = calloc(1, sizeof(*e) + len + 1);
    if (e == NULL)
        return NULL;
    e->d = d;
    e->hash = hash;
    e->waiters_end = &e->waiters;
    memcpy(e->name, name, len + 1);
    e->chain = d->buckets[hash & (d->n_buckets - 1)];
    d->buckets[hash & (d->n_buckets - 1)] = e;
    d->n_entries++;
    return e;
}

/* ---- answers ---- */

static void copy_answer(const struct entry *e, struct dns_answer *a)
{
    a->rc = e->rc;
    a->error = e->error;
    a->n = e->n;
    if (e->n > 0)
        memcpy(a->addr, e->addr, e->n * sizeof(*e->addr));
    a->expires_us = e->expires;
}

static void set_error(struct entry *e, int status)
{
    e->rc = E_IO;
    switch (status) {
    case ARES_ENOTFOUND:
        e->rc = E_NOTFOUND;
        e->error = "no such host";
        break;
    case ARES_ENODATA:
        e->rc = E_NOTFOUND;
        e->error = "the name has no address";
        break;
    case ARES_EBADNAME:
        e->rc = E_NOTFOUND;
        e->error = "not a valid host name";
        break;
    case ARES_ETIMEOUT: e->error = "the name servers did not answer in time"; break;
    case ARES_ECONNREFUSED: e->error = "no name server could be reached"; break;
    case ARES_ESERVFAIL:
    case ARES_EREFUSED:
    case ARES_ENOTIMP:
    case ARES_EFORMERR: e->error = "the name servers answered with an error"; break;
    case ARES_EBADRESP: e->error = "the name servers sent a malformed answer"; break;
    case ARES_ENOMEM: e->error = "out of memory"; break;
    default: e->error = "the look-up failed"; break;
    }
    e->expires = e->d->now + (e->rc == E_NOTFOUND ? TTL_NEGATIVE : TTL_FAILED);
}

static bool same_addr(const struct dns_addr *a, const struct dns_addr *b)
{
    return a->family == b->family && memcmp(a->addr, b->addr, sizeof(a->addr)) == 0;
}

/* The first addresses of the sorted answer; where these are all of one family, the last place goes
 * to the first address of the other, so that there is always another family to fall back to. */
static size_t take_addrs(const struct ares_addrinfo *ai, struct dns_addr *out, int *ttl)
{
    size_t n = 0;
    bool both = false;

    *ttl = INT32_MAX;
    for (struct ares_addrinfo_cname *c = ai->cnames; c != NULL; c = c->next)
        if (c->ttl < *ttl)
            *ttl = c->ttl;
    for (struct ares_addrinfo_node *i = ai->nodes; i != NULL; i = i->ai_next) {
        struct dns_addr a = {0};
        if (i->ai_family == AF_INET) {
            struct sockaddr_in in;
            memcpy(&in, i->ai_addr, sizeof(in));
            memcpy(a.addr, &in.sin_addr, 4);
        } else if (i->ai_family == AF_INET6) {
            struct sockaddr_in6 in6;
            memcpy(&in6, i->ai_addr, sizeof(in6));
            memcpy(a.addr, &in6.sin6_addr, 16);
        } else {
            continue;
        }
        a.family = (sa_family_t)i->ai_family;
        if (i->ai_ttl < *ttl)
            *ttl = i->ai_ttl;
        size_t k = 0;
        while (k < n && !same_addr(&out[k], &a))
            k++;
        if (k < n)
            continue;
        bool other = n > 0 && a.family != out[0].family;
        if (n < DNS_ADDRS_MAX)
            out[n++] = a;
        else if (other && !both)
            out[n - 1] = a;
        both = both || other;
    }
    return n;
}

static void set_answer(struct entry *e, const struct ares_addrinfo *ai, bool from_file)
{
    struct dns_addr addr[DNS_ADDRS_MAX];
    int ttl;
    size_t n = take_addrs(ai, addr, &ttl);

    if (n == 0) {
        set_error(e, ARES_ENODATA);
        return;
    }
    e->addr = malloc(n * sizeof(*addr));
    if (e->addr == NULL) {
        set_error(e, ARES_ENOMEM);
        return;
    }
    memcpy(e->addr, addr, n * sizeof(*addr));
    e->n = n;
    e->rc = 0;
    e->error = NULL;
    int64_t keep = from_file ? TTL_HOSTS : ttl * SECOND;
    e->expires = e->d->now + (keep < TTL_MIN ? TTL_MIN : keep > TTL_MAX ? TTL_MAX : keep);
}

static void hold(struct dns *d)
{
    d->hold_until = d->now + HOLD;
    if (d->hold_until < d->due)
        d->due = d->hold_until;
}

static void count_lookup(const struct entry *e, int status)
{
    enum metric_label_DNS l = METRIC_DNS_FAILED;
    if (e->rc == 0)
        l = METRIC_DNS_OK;
    else if (e->rc == E_NOTFOUND)
        l = METRIC_DNS_NOT_FOUND;
    else if (status == ARES_ETIMEOUT)
        l = METRIC_DNS_TIMEOUT;
    metric_add(METRIC_DNS_LOOKUPS + (unsigned)l, 1);
    metric_observe_us(METRIC_DNS_TIME, 0, e->d->now - e->asked_us);
}

static void on_ares(void *arg, int status, int timeouts, struct ares_addrinfo *ai)
{
    struct entry *e = arg;
    struct dns *d = e->d;

    (void)timeouts;
    if (!d->closing) {
        ASSERT(e->state == ASKED || e->state == SLOW);
        size_t *count = e->state == ASKED ? &d->inflight : &d->n_slow;
        ASSERT(*count > 0);
        --*count;
        /* "No data" too: it may be the answer for IPv6 alone, when there was no socket to ask for
         * IPv4 by. */
        if (status != ARES_SUCCESS && d->no_socket_us >= e->asked_us) {
            set_state(e, WAITING); /* our own limit, not the servers' fault */
            hold(d);
        } else {
            /* Only a file can answer before the question is on its way. */
            if (status == ARES_SUCCESS && ai != NULL)
                set_answer(e, ai, d->starting == e);
            else
                set_error(e, status);
            count_lookup(e, status);
            set_state(e, d->starting == e ? KNOWN : DONE);
        }
        /* Ended by a question about another name, from dns_resolve() perhaps: its waiters are
         * called by the next dns_tick(). */
        if (e->state == DONE && d->starting != NULL)
            d->due = d->now;
    }
    if (ai != NULL)
        ares_freeaddrinfo(ai);
}

/* Hands e to c-ares; afterwards e is ASKED, or KNOWN if it was answered at once. */
static void start(struct dns *d, struct entry *e)
{
    static const struct ares_addrinfo_hints hints = {.ai_family = AF_UNSPEC};

    set_state(e, ASKED);
    e->asked_us = d->now;
    d->inflight++;
    d->starting = e;
    ares_getaddrinfo(d->channel, e->name, NULL, &hints, on_ares, e);
    d->starting = NULL;
    if (d->due > d->now + d->timeout_us)
        d->due = d->now + d->timeout_us;
}

/* Calls everybody who waits for e, which is KNOWN. They may ask for more, and that may put e out of
 * the cache: nothing of it is touched once the first was called. */
static void call_waiters(struct entry *e)
{
    struct dns_answer a;
    struct waiter *w = e->waiters, *next;

    e->waiters = NULL;
    e->waiters_end = &e->waiters;
    copy_answer(e, &a);
    for (; w != NULL; w = next) {
        next = w->next;
        w->fn(w->arg, &a);
        free(w);
    }
}

/* Names whose servers don't answer must not keep the others waiting: the bound is for what is on
 * its way to our own server at a time. Returns when to look again. */
static int64_t age(struct dns *d)
{
    while (d->asked.first != NULL && d->n_slow < SLOW_MAX) {
        struct entry *e = d->asked.first;
        if (e->asked_us + SLOW_US > d->now)
            return e->asked_us + SLOW_US;
        set_state(e, SLOW);
        d->inflight--;
        d->n_slow++;
    }
    return INT64_MAX;
}

static void wait_in_line(struct dns *d, struct entry *e)
{
    set_state(e, WAITING);
    int64_t aged = age(d);
    if (aged == INT64_MAX) /* there is room now, or nothing can make it */
        aged = d->n_slow < SLOW_MAX ? d->now : d->due;
    if (aged < d->due)
        d->due = aged;
}

static bool may_ask(const struct dns *d)
{
    return d->inflight < d->inflight_max && d->hold_until <= d->now;
}

/* What is to be done after c-ares had its turn: tell of answers, use the free slots. */
static void settle(struct dns *d)
{
    (void)age(d);
    for (;;) {
        struct entry *e = d->done.first;
        if (e != NULL) {
            set_state(e, KNOWN);
        } else if (may_ask(d) && d->waiting.first != NULL) {
            e = d->waiting.first;
            start(d, e);
            if (e->state != KNOWN)
                continue;
        } else {
            break;
        }
        call_waiters(e);
    }
}

/* ---- the public functions ---- */

static pthread_once_t library_once = PTHREAD_ONCE_INIT;

static void library_init(void)
{
    ASSERT(ares_library_init(ARES_LIB_INIT_ALL) == ARES_SUCCESS);
}

static void on_socket(void *arg, ares_socket_t fd, int rd, int wr)
{
    struct dns *d = arg;

    if (!d->closing)
        d->watch(d->watch_arg, fd, rd != 0, wr != 0);
}

/* c-ares' sockets, to learn when there are none to be had; it would call that a failed look-up. */
static ares_socket_t sock_open(int family, int type, int protocol, void *arg)
{
    struct dns *d = arg;
    int size = RCVBUF, fd = socket(family, type | SOCK_NONBLOCK | SOCK_CLOEXEC, protocol);
    if (fd >= 0)
        (void)setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof(size));
    else if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM)
        d->no_socket_us = d->now;
    return fd;
}

static int sock_close(ares_socket_t fd, void *arg)
{
    (void)arg;
    return close(fd);
}

static int sock_connect(ares_socket_t fd, const struct sockaddr *sa, ares_socklen_t len, void *arg)
{
    struct dns *d = arg;
    int type = 0, rc = connect(fd, sa, len);
    socklen_t size = sizeof(type);
    if (rc != 0 && errno == EAGAIN && getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) == 0 &&
        type == SOCK_DGRAM)
        errno = ENOBUFS; /* no port is free; c-ares would take EAGAIN for "soon" */
    if (rc != 0 && (errno == ENOBUFS || errno == ENOMEM))
        d->no_socket_us = d->now;
    return rc;
}

static ares_ssize_t sock_recv(ares_socket_t fd, void *p, size_t n, int flags, struct sockaddr *sa,
                              ares_socklen_t *len, void *arg)
{
    (void)arg;
    return recvfrom(fd, p, n, flags, sa, len);
}

static ares_ssize_t sock_send(ares_socket_t fd, const struct iovec *v, int n, void *arg)
{
    (void)arg;
    return writev(fd, v, n);
}

static const struct ares_socket_functions sock_functions = {sock_open, sock_close, sock_connect,
                                                            sock_recv, sock_send};

int dns_new(struct dns **out, const struct dns_options *o, dns_watch_fn *watch, void *arg)
{
    char lookups[] = "fb"; /* files first, as everywhere; then DNS */
    struct ares_options ao = {
        /* Without ARES_FLAG_STAYOPEN: a new socket, and so a new random port, after each pause. */
        .flags = ARES_FLAG_EDNS | (o->servers != NULL ? ARES_FLAG_NOSEARCH : 0),
        .timeout = o->timeout_ms > 0 ? o->timeout_ms : TIMEOUT_MS,
        .tries = o->tries > 0 ? o->tries : TRIES,
        .lookups = lookups,
        .ednspsz = EDNS_SIZE,
        .sock_state_cb = on_socket,
    };
    int mask = ARES_OPT_FLAGS | ARES_OPT_TIMEOUTMS | ARES_OPT_TRIES | ARES_OPT_LOOKUPS |
               ARES_OPT_EDNSPSZ | ARES_OPT_SOCK_STATE_CB;
    struct dns *d;
    int rc = E_NOMEM, status;

    *out = NULL;
    pthread_once(&library_once, library_init);
    d = calloc(1, sizeof(*d));
    if (d == NULL)
        return E_NOMEM;
    d->watch = watch;
    d->watch_arg = arg;
    d->cache_max = o->cache_max > 0 ? o->cache_max : CACHE_MAX;
    d->inflight_max = o->inflight_max > 0 ? o->inflight_max : INFLIGHT_MAX;
    d->timeout_us = ao.timeout * (int64_t)1000;
    d->due = INT64_MAX;
    d->n_buckets = FIRST_BUCKETS;
    d->buckets = calloc(d->n_buckets, sizeof(*d->buckets));
    if (d->buckets == NULL)
        goto fail;
    ao.sock_state_cb_data = d;
    status = ares_init_options(&d->channel, &ao, mask);
    if (status != ARES_SUCCESS) {
        rc = status == ARES_ENOMEM ? E_NOMEM : E_IO;
        d->channel = NULL;
        goto fail;
    }
    ares_set_socket_functions(d->channel, &sock_functions, d);
    if (o->servers != NULL) {
        status = ares_set_servers_ports_csv(d->channel, o->servers);
        if (status != ARES_SUCCESS) {
            rc = status == ARES_ENOMEM ? E_NOMEM : E_INVAL;
            goto fail;
        }
    }
    *out = d;
    return 0;
fail:
    dns_free(d);
    return rc;
}

void dns_free(struct dns *d)
{
    if (d == NULL)
        return;
    d->closing = true;
    if (d->channel != NULL)
        ares_destroy(d->channel);
    for (size_t i = 0; d->buckets != NULL && i < d->n_buckets; i++) {
        while (d->buckets[i] != NULL) {
            struct entry *e = d->buckets[i];
            d->buckets[i] = e->chain;
            entry_free(e);
        }
    }
    free(d->buckets);
    free(d);
}

/* RFC 6761, 6.3: "localhost" and all below it are loopback, whatever servers say. IPv4 first: most
 * things that run on this machine listen there. */
static bool is_localhost(const char *name, size_t len)
{
    return len >= 9 && strcmp(name + len - 9, "localhost") == 0 &&
           (len == 9 || name[len - 10] == '.');
}

static void localhost(int64_t now, struct dns_answer *a)
{
    *a = (struct dns_answer){.n = 2, .expires_us = now + TTL_HOSTS};
    a->addr[0] = (struct dns_addr){AF_INET, {127, 0, 0, 1}};
    a->addr[1] = (struct dns_addr){AF_INET6, {[15] = 1}};
}

int dns_resolve(struct dns *d, const char *name, int64_t now, dns_fn *fn, void *arg,
                struct dns_answer *a)
{
    size_t len = strlen(name);

    if (is_localhost(name, len)) {
        localhost(now, a);
        return 0;
    }
    if (len == 0 || len > 253) {
        *a = (struct dns_answer){
            .rc = E_NOTFOUND, .error = "not a valid host name", .expires_us = now + TTL_HOSTS};
        return 0;
    }
    d->now = now;
    struct entry *e = look_up(d, name, len);
    if (e == NULL)
        return E_NOMEM;
    if ((e->state == KNOWN || e->state == DONE) && e->expires > now) {
        if (e->state == KNOWN)
            set_state(e, KNOWN); /* to the end: used last */
        metric_add(METRIC_DNS_CACHED, 1);
        copy_answer(e, a);
        return 0;
    }
    /* An answer that ran out before its waiters were called: they still get it. */
    if (e->state == DONE) {
        copy_answer(e, a);
        return 0;
    }

    if (e->state == FRESH || e->state == KNOWN) {
        set_state(e, FRESH);
        free(e->addr);
        e->addr = NULL;
        e->n = 0;
        if (may_ask(d) && d->waiting.first == NULL)
            start(d, e);
        else
            wait_in_line(d, e);
        if (e->state == KNOWN) {
            copy_answer(e, a);
            return 0;
        }
    }
    struct waiter *w = malloc(sizeof(*w));
    if (w == NULL)
        return E_NOMEM; /* the question goes on, for the cache */
    *w = (struct waiter){NULL, fn, arg};
    *e->waiters_end = w;
    e->waiters_end = &w->next;
    return 1;
}

void dns_event(struct dns *d, int fd, bool rd, bool wr, int64_t now)
{
    d->now = now;
    ares_process_fd(d->channel, rd ? fd : ARES_SOCKET_BAD, wr ? fd : ARES_SOCKET_BAD);
    settle(d);
}

int64_t dns_tick(struct dns *d, int64_t now)
{
    struct timeval tv;

    d->now = now;
    if (now < d->due)
        return d->due;
    ares_process_fd(d->channel, ARES_SOCKET_BAD, ARES_SOCKET_BAD);
    settle(d);
    /* ares_timeout() goes over all questions, so it is not asked on every turn of the loop, only
     * when the earliest time that it gave has come; its own clock ticks in milliseconds. */
    d->due = INT64_MAX;
    if (ares_timeout(d->channel, NULL, &tv) != NULL)
        d->due = now + (int64_t)tv.tv_sec * SECOND + tv.tv_usec + 1000;
    int64_t aged = d->waiting.first != NULL ? age(d) : INT64_MAX;
    if (aged < d->due)
        d->due = aged;
    if (d->waiting.first != NULL && d->hold_until > now && d->hold_until < d->due)
        d->due = d->hold_until;
    return d->due;
}

bool dns_asked(const struct dns *d, const char *name)
{
    const struct entry *e = find(d, name, hash64(name, strlen(name), 0));
    return e != NULL && e->state != WAITING;
}

bool dns_short(const struct dns *d, int64_t now)
{
    return d->no_socket_us != 0 && now < d->no_socket_us + 2 * HOLD;
}
