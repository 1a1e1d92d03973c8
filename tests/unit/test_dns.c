/* Tests of dns.c against a real dnsmasq on a loopback port, which its log tells the queries of; and
 * against sockets of our own that never answer. Time is invented where it is about the cache. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <arpa/inet.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "server/dns.h"

#define DNSMASQ "/usr/sbin/dnsmasq"
#define SEC INT64_C(1000000)

static pid_t server_pid;
static char server[64], log_path[64], conf_path[64];

/* ---- a loop on poll(2) ---- */

enum { FDS = 4096 };

struct loop {
    struct dns *dns;
    bool rd[FDS], wr[FDS];
    int64_t shift; /* invented time ahead of the clock */
};

static void on_watch(void *arg, int fd, bool rd, bool wr)
{
    struct loop *l = arg;

    assert_in_range(fd, 0, FDS - 1);
    l->rd[fd] = rd;
    l->wr[fd] = wr;
}

static void loop_open(struct loop *l, const struct dns_options *o)
{
    *l = (struct loop){0};
    assert_int_equal(dns_new(&l->dns, o, on_watch, l), 0);
}

static int64_t loop_now(const struct loop *l)
{
    return now_us() + l->shift;
}

/* Turns until *count reaches want; fails after ten seconds. */
static void loop_until(struct loop *l, const int *count, int want)
{
    int64_t limit = now_us() + 10 * SEC;

    while (*count < want) {
        struct pollfd p[FDS];
        nfds_t n = 0;
        int64_t due = dns_tick(l->dns, loop_now(l)), now = loop_now(l);
        if (*count >= want)
            break;
        if (now_us() > limit)
            fail_msg("%d of %d answers after ten seconds", *count, want);
        for (int fd = 0; fd < FDS; fd++)
            if (l->rd[fd] || l->wr[fd])
                p[n++] = (struct pollfd){
                    fd, (short)((l->rd[fd] ? POLLIN : 0) | (l->wr[fd] ? POLLOUT : 0)), 0};
        int64_t wait = due == INT64_MAX ? SEC : due - now;
        wait = wait < 0 ? 0 : wait > SEC ? SEC : wait;
        assert_true(poll(p, n, (int)((wait + 999) / 1000)) >= 0);
        for (nfds_t i = 0; i < n; i++)
            if (p[i].revents != 0)
                dns_event(l->dns, p[i].fd, (p[i].revents & ~POLLOUT) != 0,
                          (p[i].revents & POLLOUT) != 0, loop_now(l));
    }
}

struct got {
    int count;
    struct dns_answer last;
};

static void on_answer(void *arg, const struct dns_answer *a)
{
    struct got *g = arg;

    g->count++;
    g->last = *a;
}

/* Asks and waits; returns whether the cache knew it. */
static bool ask(struct loop *l, const char *name, struct dns_answer *a)
{
    struct got g = {0};
    int rc = dns_resolve(l->dns, name, loop_now(l), on_answer, &g, a);

    if (rc == 0) {
        assert_int_equal(g.count, 0);
        return true;
    }
    assert_int_equal(rc, 1);
    assert_int_equal(g.count, 0);
    loop_until(l, &g.count, 1);
    assert_int_equal(g.count, 1);
    *a = g.last;
    return false;
}

static bool has(const struct dns_answer *a, const char *text)
{
    uint8_t addr[16] = {0};
    int family = strchr(text, ':') != NULL ? AF_INET6 : AF_INET;

    assert_int_equal(inet_pton(family, text, addr), 1);
    for (size_t i = 0; i < a->n; i++)
        if (a->addr[i].family == family &&
            memcmp(a->addr[i].addr, addr, family == AF_INET ? 4 : 16) == 0)
            return true;
    return false;
}

/* ---- dnsmasq ---- */

static uint16_t free_port(int *keep, int type)
{
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof(in);
    int fd = socket(AF_INET, type | SOCK_CLOEXEC, 0);

    assert_true(fd >= 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&in, sizeof(in)), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&in, &len), 0);
    if (keep != NULL)
        *keep = fd;
    else
        close(fd);
    return ntohs(in.sin_port);
}

static void write_conf(uint16_t port)
{
    FILE *f = fopen(conf_path, "w");

    assert_non_null(f);
    fprintf(f,
            "port=%u\nlisten-address=127.0.0.1\nbind-interfaces\nno-resolv\nno-hosts\n"
            "keep-in-foreground\nlog-queries\nlog-facility=%s\nlocal=/test/\n"
            "cache-size=0\nuser=\ngroup=\npid-file=\n"
            "host-record=a.test,192.0.2.1,30\n"
            "host-record=aaaa.test,2001:db8::2,30\n"
            "host-record=both.test,192.0.2.3,2001:db8::3,40\n"
            "host-record=long.test,192.0.2.4,1000000\n"
            "host-record=zero.test,192.0.2.5,0\n"
            "host-record=local6.test,127.0.0.1,::1,40\n"
            "cname=alias.test,both.test,20\n"
            "txt-record=empty.test,text\n"
            "server=/refused.example/#\n"
            "address=/wild.test/192.0.2.9\nlocal-ttl=30\n",
            port, log_path);
    for (int i = 1; i <= 20; i++)
        fprintf(f, "host-record=many.test,198.51.100.%d,2001:db8:1::%d\n", i, i);
    /* Large enough to need TCP or a large datagram. */
    for (int i = 1; i <= 200; i++)
        fprintf(f, "host-record=huge.test,198.51.100.%d\n", i);
    assert_int_equal(fclose(f), 0);
}

/* How often a type of query was asked for name; type NULL: any. */
static int queries(const char *type, const char *name)
{
    char line[1024], want[320];
    int n = 0;
    FILE *f = fopen(log_path, "r");

    assert_non_null(f);
    snprintf(want, sizeof(want), "] %s from ", name);
    while (fgets(line, sizeof(line), f) != NULL) {
        char *q = strstr(line, "query[");
        if (q == NULL)
            continue;
        char *end = strchr(q, ']');
        if (end == NULL || strncmp(end, want, strlen(want)) != 0)
            continue;
        if (type == NULL || (strlen(type) == (size_t)(end - q - 6) &&
                             strncmp(q + 6, type, (size_t)(end - q - 6)) == 0))
            n++;
    }
    fclose(f);
    return n;
}

/* 0; 1: it ended, since somebody else took the port meanwhile; -1. */
static int start_server(void)
{
    uint16_t port = free_port(NULL, SOCK_DGRAM);
    write_conf(port);
    server_pid = fork();
    if (server_pid < 0)
        return -1;
    if (server_pid == 0) {
        char conf[80];
        snprintf(conf, sizeof(conf), "--conf-file=%s", conf_path);
        execl(DNSMASQ, DNSMASQ, conf, (char *)NULL);
        _exit(127);
    }
    snprintf(server, sizeof(server), "127.0.0.1:%u", (unsigned)port);

    /* Ready when it answers; a query to a port that nobody has is refused at once. */
    for (int64_t limit = now_us() + 5 * SEC; now_us() < limit;) {
        struct loop l;
        struct dns_answer a;
        loop_open(&l, &(struct dns_options){.servers = server, .timeout_ms = 100, .tries = 1});
        ask(&l, "a.test", &a);
        dns_free(l.dns);
        if (a.rc == 0)
            return 0;
        if (waitpid(server_pid, NULL, WNOHANG) == server_pid) {
            server_pid = 0;
            return 1;
        }
        nanosleep(&(struct timespec){0, 10000000}, NULL);
    }
    return -1;
}

static int group_setup(void **state)
{
    (void)state;
    if (access(DNSMASQ, X_OK) != 0) {
        fprintf(stderr, "test_dns: %s is missing (package dnsmasq-base)\n", DNSMASQ);
        return -1;
    }
    snprintf(log_path, sizeof(log_path), "/tmp/test_dns.%d.log", (int)getpid());
    snprintf(conf_path, sizeof(conf_path), "/tmp/test_dns.%d.conf", (int)getpid());
    int rc = 1;
    for (int tries = 0; rc == 1 && tries < 5; tries++)
        rc = start_server();
    if (rc == 1)
        fprintf(stderr, "test_dns: dnsmasq ended\n");
    return rc == 0 ? 0 : -1;
}

static int group_teardown(void **state)
{
    (void)state;
    if (server_pid > 0) {
        kill(server_pid, SIGTERM);
        waitpid(server_pid, NULL, 0);
    }
    unlink(log_path);
    unlink(conf_path);
    return 0;
}

/* ---- the tests ---- */

static void test_answers(void **state)
{
    struct loop l;
    struct dns_answer a;

    (void)state;
    loop_open(&l, &(struct dns_options){.servers = server});
    assert_false(ask(&l, "a.test", &a));
    assert_int_equal(a.rc, 0);
    assert_int_equal(a.n, 1);
    assert_true(has(&a, "192.0.2.1"));
    int64_t left = a.expires_us - loop_now(&l);
    assert_in_range(left, 25 * SEC, 30 * SEC);

    assert_false(ask(&l, "aaaa.test", &a));
    assert_int_equal(a.n, 1);
    assert_true(has(&a, "2001:db8::2"));

    assert_false(ask(&l, "both.test", &a));
    assert_int_equal(a.n, 2);
    assert_true(has(&a, "192.0.2.3") && has(&a, "2001:db8::3"));

    assert_false(ask(&l, "alias.test", &a));
    assert_true(has(&a, "192.0.2.3") && has(&a, "2001:db8::3"));
    assert_true(a.expires_us - loop_now(&l) <= 20 * SEC); /* the alias's own TTL */

    assert_false(ask(&l, "wild.test", &a));
    assert_true(has(&a, "192.0.2.9"));

    assert_false(ask(&l, "local6.test", &a));
    assert_int_equal(a.n, 2);
    assert_true(has(&a, "127.0.0.1") && has(&a, "::1"));
    dns_free(l.dns);
}

static void test_many_addresses(void **state)
{
    struct loop l;
    struct dns_answer a;
    size_t v4 = 0;

    (void)state;
    loop_open(&l, &(struct dns_options){.servers = server});
    assert_false(ask(&l, "many.test", &a));
    assert_int_equal(a.rc, 0);
    assert_int_equal(a.n, DNS_ADDRS_MAX);
    for (size_t i = 0; i < a.n; i++) {
        v4 += a.addr[i].family == AF_INET;
        for (size_t k = 0; k < i; k++)
            assert_false(a.addr[i].family == a.addr[k].family &&
                         memcmp(a.addr[i].addr, a.addr[k].addr, 16) == 0);
    }
    assert_true(v4 >= 1 && v4 < a.n); /* neither family is crowded out */
    assert_false(ask(&l, "huge.test", &a));
    assert_int_equal(a.rc, 0);
    assert_int_equal(a.n, DNS_ADDRS_MAX);
    dns_free(l.dns);
}

static void test_negative(void **state)
{
    struct loop l;
    struct dns_answer a;

    (void)state;
    loop_open(&l, &(struct dns_options){.servers = server});
    assert_false(ask(&l, "nothing.test", &a));
    assert_int_equal(a.rc, E_NOTFOUND);
    assert_string_equal(a.error, "no such host");
    assert_int_equal(a.n, 0);
    assert_true(ask(&l, "nothing.test", &a));
    assert_int_equal(a.rc, E_NOTFOUND);
    assert_int_equal(queries("A", "nothing.test"), 1);
    l.shift = 4 * SEC;
    assert_true(ask(&l, "nothing.test", &a));
    l.shift = 6 * SEC;
    assert_false(ask(&l, "nothing.test", &a));
    assert_int_equal(queries("A", "nothing.test"), 2);

    assert_false(ask(&l, "empty.test", &a));
    assert_int_equal(a.rc, E_NOTFOUND);
    assert_string_equal(a.error, "the name has no address");

    /* Not for us: dnsmasq has no server to ask. */
    assert_false(ask(&l, "somewhere.example", &a));
    assert_int_equal(a.rc, E_IO);
    assert_non_null(a.error);
    assert_true(ask(&l, "somewhere.example", &a));
    dns_free(l.dns);
}

static void test_expiry(void **state)
{
    static const struct {
        const char *name;
        int64_t known, gone; /* seconds */
    } rows[] = {{"both.test", 38, 41}, {"zero.test", 0, 2}, {"long.test", 3598, 3602}};

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
        struct loop l;
        struct dns_answer a;
        int before = queries("A", rows[i].name);
        loop_open(&l, &(struct dns_options){.servers = server});
        assert_false(ask(&l, rows[i].name, &a));
        assert_int_equal(a.rc, 0);
        assert_true(ask(&l, rows[i].name, &a));
        l.shift = rows[i].known * SEC;
        assert_true(ask(&l, rows[i].name, &a));
        assert_int_equal(queries("A", rows[i].name), before + 1);
        l.shift = rows[i].gone * SEC;
        assert_false(ask(&l, rows[i].name, &a));
        assert_int_equal(a.rc, 0);
        assert_int_equal(queries("A", rows[i].name), before + 2);
        assert_int_equal(queries("AAAA", rows[i].name), before + 2);
        dns_free(l.dns);
    }
}

static void test_without_servers(void **state)
{
    static const char *const names[] = {"localhost", "a.localhost", "x.y.localhost"};
    int silent;
    uint16_t port = free_port(&silent, SOCK_DGRAM);
    char to[64];
    struct loop l;
    struct dns_answer a;
    char big[400];

    (void)state;
    snprintf(to, sizeof(to), "127.0.0.1:%u", (unsigned)port);
    loop_open(&l, &(struct dns_options){.servers = to});
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        assert_true(ask(&l, names[i], &a));
        assert_int_equal(a.rc, 0);
        assert_int_equal(a.n, 2);
        assert_true(has(&a, "127.0.0.1") && has(&a, "::1"));
    }
    memset(big, 'a', sizeof(big));
    big[300] = '\0';
    assert_true(ask(&l, big, &a));
    assert_int_equal(a.rc, E_NOTFOUND);
    assert_true(ask(&l, "", &a));
    assert_int_equal(a.rc, E_NOTFOUND);
    big[100] = '\0'; /* a label that is too long: c-ares itself refuses it, at once */
    assert_true(ask(&l, big, &a));
    assert_int_equal(a.rc, E_NOTFOUND);
    assert_true(recv(silent, big, sizeof(big), MSG_DONTWAIT) < 0);
    close(silent);
    dns_free(l.dns);
}

/* A name of /etc/hosts that is not a loopback one, if the file of this machine has any. */
static void test_hosts_file(void **state)
{
    FILE *f = fopen("/etc/hosts", "r");
    char line[1024], name[256] = "", ip[64] = "";
    struct loop l;
    struct dns_answer a;

    (void)state;
    assert_non_null(f);
    while (fgets(line, sizeof(line), f) != NULL) {
        char addr[64], host[256];
        uint8_t bin[16];
        if (sscanf(line, "%63s %255s", addr, host) == 2 && addr[0] != '#' && host[0] != '#' &&
            inet_pton(AF_INET, addr, bin) == 1 && strstr(host, "localhost") == NULL) {
            snprintf(name, sizeof(name), "%s", host);
            snprintf(ip, sizeof(ip), "%s", addr);
        }
    }
    fclose(f);
    if (name[0] == '\0') {
        print_message("/etc/hosts has no name to test with\n");
        skip();
    }
    loop_open(&l, &(struct dns_options){.servers = server});
    for (char *p = name; *p != '\0'; p++)
        *p = (char)(*p >= 'A' && *p <= 'Z' ? *p + 32 : *p);
    int before = queries(NULL, name);
    assert_true(ask(&l, name, &a)); /* at once, and not from within */
    assert_int_equal(a.rc, 0);
    assert_true(has(&a, ip));
    assert_in_range(a.expires_us - loop_now(&l), 55 * SEC, 60 * SEC);
    assert_int_equal(queries(NULL, name), before);
    dns_free(l.dns);
}

static void test_coalescing(void **state)
{
    enum { N = 500 };
    struct loop l;
    struct dns_answer a;
    struct got g = {0};
    int before = queries("A", "a.test");

    (void)state;
    loop_open(&l, &(struct dns_options){.servers = server});
    for (int i = 0; i < N; i++)
        assert_int_equal(dns_resolve(l.dns, "a.test", loop_now(&l), on_answer, &g, &a), 1);
    loop_until(&l, &g.count, N);
    assert_int_equal(g.count, N);
    assert_true(has(&g.last, "192.0.2.1"));
    assert_int_equal(queries("A", "a.test"), before + 1);
    assert_int_equal(queries("AAAA", "a.test"), before + 1);
    dns_free(l.dns);
}

/* 1000 names under a cap of 8, in the order asked. */
struct order {
    int *count, *last;
    int mine;
};

static void on_ordered(void *arg, const struct dns_answer *a)
{
    struct order *o = arg;

    assert_int_equal(a->rc, 0);
    assert_true(has(a, "192.0.2.9"));
    /* Names may overtake each other within the cap only. */
    assert_true(o->mine > *o->last - 2 * 8);
    if (o->mine > *o->last)
        *o->last = o->mine;
    (*o->count)++;
}

static void test_cap(void **state)
{
    enum { N = 1000 };
    static struct order orders[N];
    static const size_t caps[] = {8, 0};

    (void)state;
    for (size_t c = 0; c < ARRAY_LEN(caps); c++) {
        struct loop l;
        struct dns_answer a;
        struct got g = {0};
        int count = 0, last = 0, known;
        loop_open(&l, &(struct dns_options){.servers = server, .inflight_max = caps[c]});
        for (int i = 0; i < N; i++) {
            char name[64];
            snprintf(name, sizeof(name), "n%d.cap%zu.wild.test", i, c);
            orders[i] = (struct order){&count, &last, i};
            assert_int_equal(dns_resolve(l.dns, name, loop_now(&l),
                                         caps[c] == 8 ? on_ordered : on_answer,
                                         caps[c] == 8 ? (void *)&orders[i] : &g, &a),
                             1);
        }
        loop_until(&l, caps[c] == 8 ? &count : &g.count, N);
        for (int i = 0; i < N; i++) {
            char name[64];
            snprintf(name, sizeof(name), "n%d.cap%zu.wild.test", i, c);
            known = dns_resolve(l.dns, name, loop_now(&l), on_answer, &g, &a);
            assert_int_equal(known, 0);
            assert_int_equal(a.rc, 0);
        }
        dns_free(l.dns);
    }
    assert_int_equal(queries("A", "n0.cap0.wild.test"), 1);
    assert_int_equal(queries("A", "n999.cap0.wild.test"), 1);
}

static void test_lru(void **state)
{
    struct loop l;
    struct dns_answer a;
    char name[64];

    (void)state;
    loop_open(&l, &(struct dns_options){.servers = server, .cache_max = 10});
    for (int i = 0; i < 10; i++) {
        snprintf(name, sizeof(name), "lru%d.wild.test", i);
        assert_false(ask(&l, name, &a));
    }
    assert_true(ask(&l, "lru0.wild.test", &a)); /* used: 1 is the oldest now */
    assert_false(ask(&l, "lru10.wild.test", &a));
    assert_true(ask(&l, "lru0.wild.test", &a));
    assert_true(ask(&l, "lru2.wild.test", &a));
    assert_false(ask(&l, "lru1.wild.test", &a));
    assert_int_equal(queries("A", "lru0.wild.test"), 1);
    assert_int_equal(queries("A", "lru1.wild.test"), 2);
    for (int i = 0; i < 2000; i++) { /* many buckets, many evictions */
        snprintf(name, sizeof(name), "more%d.wild.test", i);
        assert_false(ask(&l, name, &a));
    }
    assert_true(ask(&l, "more1999.wild.test", &a));
    dns_free(l.dns);
}

static void test_silent_server(void **state)
{
    int silent;
    uint16_t port = free_port(&silent, SOCK_DGRAM);
    char to[64], packet[2000];
    struct loop l;
    struct dns_answer a;
    struct got g = {0};
    int packets = 0;

    (void)state;
    snprintf(to, sizeof(to), "127.0.0.1:%u", (unsigned)port);
    loop_open(
        &l, &(struct dns_options){.servers = to, .timeout_ms = 100, .tries = 2, .inflight_max = 2});
    int64_t start = now_us();
    /* Two go out, the third waits in line, and each ends. */
    assert_int_equal(dns_resolve(l.dns, "t1.test", loop_now(&l), on_answer, &g, &a), 1);
    assert_int_equal(dns_resolve(l.dns, "t1.test", loop_now(&l), on_answer, &g, &a), 1);
    assert_int_equal(dns_resolve(l.dns, "t2.test", loop_now(&l), on_answer, &g, &a), 1);
    assert_int_equal(dns_resolve(l.dns, "t3.test", loop_now(&l), on_answer, &g, &a), 1);
    assert_true(dns_asked(l.dns, "t1.test") && dns_asked(l.dns, "t2.test"));
    assert_false(dns_asked(l.dns, "t3.test") || dns_asked(l.dns, "t4.test"));
    loop_until(&l, &g.count, 3);
    int64_t took = now_us() - start;
    assert_in_range(took, 250000, 1500000); /* 100 + 200 ms */
    assert_int_equal(g.last.rc, E_IO);
    assert_string_equal(g.last.error, "the name servers did not answer in time");
    while (recv(silent, packet, sizeof(packet), MSG_DONTWAIT) > 0)
        packets++;
    assert_in_range(packets, 8, 12); /* two names, two types, two tries; then the third's first */
    loop_until(&l, &g.count, 4);
    assert_int_equal(g.count, 4);
    /* A failure is not forgotten at once, but soon. */
    assert_true(ask(&l, "t3.test", &a));
    assert_int_equal(a.rc, E_IO);
    assert_int_equal(dns_tick(l.dns, loop_now(&l)), INT64_MAX);

    /* With questions out and in line, dns_free calls nobody. */
    for (int i = 0; i < 5; i++) {
        char name[32];
        snprintf(name, sizeof(name), "u%d.test", i);
        assert_int_equal(dns_resolve(l.dns, name, loop_now(&l), on_answer, &g, &a), 1);
    }
    dns_free(l.dns);
    assert_int_equal(g.count, 4);
    close(silent);
}

/* Nobody listens: the socket breaks (ICMP), and c-ares opens another in the same call. */
static void test_no_server(void **state)
{
    char to[64];
    struct loop l;
    struct dns_answer a;

    (void)state;
    snprintf(to, sizeof(to), "127.0.0.1:%u", (unsigned)free_port(NULL, SOCK_DGRAM));
    loop_open(&l, &(struct dns_options){.servers = to, .timeout_ms = 100, .tries = 3});
    int64_t start = now_us();
    ask(&l, "a.test", &a);
    assert_int_equal(a.rc, E_IO);
    assert_true(now_us() - start < 2 * SEC);
    dns_free(l.dns);
}

/* Callbacks that ask on: the same name (known now) and new ones. */
struct chain {
    struct loop *l;
    int count, next, sync;
};

static void on_chain(void *arg, const struct dns_answer *a)
{
    struct chain *c = arg;
    struct dns_answer again;
    char name[64];

    assert_int_equal(a->rc, 0);
    c->count++;
    snprintf(name, sizeof(name), "chain%d.wild.test", c->next - 1);
    if (c->next > 0 && dns_resolve(c->l->dns, name, loop_now(c->l), on_chain, c, &again) == 0)
        c->sync++;
    if (c->next < 50) {
        snprintf(name, sizeof(name), "chain%d.wild.test", c->next++);
        assert_int_equal(dns_resolve(c->l->dns, name, loop_now(c->l), on_chain, c, &again), 1);
    }
}

static void test_reentrancy(void **state)
{
    struct loop l;
    struct chain c = {.l = &l};
    struct dns_answer a;

    (void)state;
    loop_open(&l, &(struct dns_options){.servers = server, .cache_max = 1, .inflight_max = 1});
    assert_int_equal(dns_resolve(l.dns, "first.wild.test", loop_now(&l), on_chain, &c, &a), 1);
    loop_until(&l, &c.count, 51);
    assert_int_equal(c.count, 51);
    assert_int_equal(c.sync, 50);
    dns_free(l.dns);
}

static void test_options(void **state)
{
    struct dns *d = NULL;

    (void)state;
    assert_int_equal(
        dns_new(&d, &(struct dns_options){.servers = "not an address"}, on_watch, NULL), E_INVAL);
    assert_null(d);
    assert_int_equal(dns_new(&d, &(struct dns_options){0}, on_watch, NULL), 0);
    assert_int_equal(dns_tick(d, now_us()), INT64_MAX);
    dns_free(d);
    dns_free(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_answers),
        cmocka_unit_test(test_many_addresses),
        cmocka_unit_test(test_negative),
        cmocka_unit_test(test_expiry),
        cmocka_unit_test(test_without_servers),
        cmocka_unit_test(test_hosts_file),
        cmocka_unit_test(test_coalescing),
        cmocka_unit_test(test_cap),
        cmocka_unit_test(test_lru),
        cmocka_unit_test(test_silent_server),
        cmocka_unit_test(test_no_server),
        cmocka_unit_test(test_reentrancy),
        cmocka_unit_test(test_options),
    };

    return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
