/* The curl multis of a fetcher on its epoll. Runs on the fetcher's thread.
 *
 * Descriptors are entries in an array, not allocations. A descriptor that libcurl stops watching
 * stays registered with epoll, since the next request on a kept connection asks for the same
 * again; when it fires meanwhile, its connection must not be used again. libcurl's timers are deadlines that the next
 * epoll_wait honours. */
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "server/budget.h"
#include "server/fetch_int.h"
#include "server/metrics.h"
#include "server/pulse.h"

enum {
    EVENTS = 512,
    IDLE_US = 60 * 1000 * 1000, /* idle connections are kept this long … */
    H2_UNREAD = 16 * 1024,      /* bytes on an idle HTTP/2 connection that end it */
    STALE_US = 1000 * 1000, /* … and this long when some of them were closed by their origin */
};

static struct fd_entry *entry(struct fetcher *f, int fd)
{
    if ((size_t)fd >= f->n_fds) {
        size_t n = f->n_fds == 0 ? 1024 : f->n_fds;
        while (n <= (size_t)fd)
            n *= 2;
        f->fds = xrealloc(f->fds, n * sizeof(*f->fds));
        memset(f->fds + f->n_fds, 0, (n - f->n_fds) * sizeof(*f->fds));
        f->n_fds = n;
    }
    return &f->fds[fd];
}

static void epoll_set(struct fetcher *f, int fd, struct fd_entry *en, uint32_t events)
{
    if (events == en->registered)
        return;
    struct epoll_event ev = {.events = events, .data.fd = fd};
    int op = events == 0 ? EPOLL_CTL_DEL : en->registered == 0 ? EPOLL_CTL_ADD : EPOLL_CTL_MOD;
    int rc = epoll_ctl(f->epoll, op, fd, &ev);
    if (rc != 0 && op == EPOLL_CTL_ADD && errno == EEXIST)
        rc = epoll_ctl(f->epoll, EPOLL_CTL_MOD, fd, &ev);
    else if (rc != 0 && op == EPOLL_CTL_MOD && errno == ENOENT)
        rc = epoll_ctl(f->epoll, EPOLL_CTL_ADD, fd, &ev);
    if (rc != 0 && op != EPOLL_CTL_DEL)
        log_event(LOG_ERROR, "epoll_failed", LOG_S("error", strerror(errno)));
    en->registered = rc == 0 ? events : 0;
}

static int on_socket(CURL *easy, curl_socket_t fd, int what, void *userp, void *socketp)
{
    struct shard *s = userp;
    (void)easy;
    (void)socketp;
    struct fd_entry *en = entry(s->f, fd);
    if (what == CURL_POLL_REMOVE) {
        en->want = 0;
        return 0;
    }
    en->kind = FD_CURL;
    en->shard = (uint8_t)(s - s->f->shards);
    uint32_t want = 0;
    if (what == CURL_POLL_IN || what == CURL_POLL_INOUT)
        want |= EPOLLIN;
    if (what == CURL_POLL_OUT || what == CURL_POLL_INOUT)
        want |= EPOLLOUT;
    en->want = (uint8_t)want;
    epoll_set(s->f, fd, en, want);
    return 0;
}

static int on_timer(CURLM *multi, long timeout_ms, void *userp)
{
    struct shard *s = userp;
    (void)multi;
    s->due_us = timeout_ms < 0 ? INT64_MAX : now_us() + (int64_t)timeout_ms * 1000;
    return 0;
}

static void forget_socket(struct fetcher *f, int fd)
{
    struct fd_entry *en = entry(f, fd);
    f->shards[en->shard].open--;
    if (en->tls)
        atomic_fetch_sub(&f->e->tls_open, 1);
    *en = (struct fd_entry){0}; /* close(2) takes it out of epoll */
    f->sockets--;
    atomic_fetch_sub(&f->e->fds, 1);
}

/* libcurl 7.88.1 closes a socket whose connect(2) was still in progress by itself, without a word
 * (cf_socket_close). */
static void forget_unconnected(struct transfer *t)
{
    if (t->fd >= 0 && !t->fd_used && multi_is_open(t->f, t->fd, t->fd_no))
        forget_socket(t->f, t->fd);
    t->fd = -1;
}

/* Whose number the system gives out again was closed so, and its transfer has not been told yet. */
static void forget_former(struct fetcher *f, int fd)
{
    if (entry(f, fd)->no != 0)
        forget_socket(f, fd);
}

curl_socket_t multi_open_socket(void *transfer, curlsocktype purpose, struct curl_sockaddr *a)
{
    struct transfer *t = transfer;
    ASSERT(t->magic == TRANSFER_MAGIC);
    if (purpose != CURLSOCKTYPE_IPCXN)
        return CURL_SOCKET_BAD;
    t->lost = t->offers_h2 && t->connected;
    if (t->lost)
        return CURL_SOCKET_BAD;
    /* The last word: the very address that connect(2) gets. */
    t->blocked_by = guard_check(&t->f->e->guard, &a->addr);
    if (t->blocked_by != NULL)
        return CURL_SOCKET_BAD;
    int fd = socket(a->family, a->socktype | SOCK_CLOEXEC, a->protocol);
    if (fd < 0) {
        t->no_descriptor = errno == EMFILE || errno == ENFILE || errno == ENOBUFS ||
                           errno == ENOMEM;
        return CURL_SOCKET_BAD;
    }
    memcpy(&t->peer, &a->addr, a->addrlen < sizeof(t->peer) ? a->addrlen : sizeof(t->peer));
    forget_unconnected(t);
    forget_former(t->f, fd);
    t->f->sockets++;
    t->fd = fd;
    t->fd_no = ++t->f->last_socket;
    t->fd_used = false;
    t->shard->open++;
    atomic_fetch_add(&t->f->e->fds, 1);
    struct fd_entry *en = entry(t->f, fd);
    *en = (struct fd_entry){
        .shard = (uint8_t)(t->shard - t->f->shards), .tls = t->url.https, .no = t->fd_no};
    if (en->tls)
        atomic_fetch_add(&t->f->e->tls_open, 1);
    return fd;
}

int multi_close_socket(void *fetcher, curl_socket_t fd)
{
    struct fetcher *f = fetcher;
    forget_socket(f, fd);
    if (f->ports_short_until > f->now) { /* a port in TIME_WAIT would be gone for a minute */
        struct linger now = {.l_onoff = 1};
        (void)setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
    }
    return close(fd);
}

void multi_watch(void *fetcher, int fd, bool rd, bool wr)
{
    struct fetcher *f = fetcher;
    forget_former(f, fd);
    struct fd_entry *en = entry(f, fd);
    en->kind = rd || wr ? FD_DNS : FD_NONE;
    epoll_set(f, fd, en, (rd ? (uint32_t)EPOLLIN : 0) | (wr ? (uint32_t)EPOLLOUT : 0));
}

static long max_connects(const struct fetcher *f)
{
    if (f->short_of_sockets)
        return SHARD_SHORT;
    uint32_t n = f->socket_share / SHARDS / 4 * 3;
    return n > SHARD_IDLE ? n : SHARD_IDLE;
}

/* Idle connections stay while there are descriptors enough; libcurl closes the oldest ones over
 * its bound as transfers end. */
static void settle_idle(struct fetcher *f)
{
    uint32_t most = f->socket_share / 8 * 7, few = f->socket_share / 4 * 3;
    bool now_short = f->sockets > (f->short_of_sockets ? few : most);
    if (now_short == f->short_of_sockets)
        return;
    f->short_of_sockets = now_short;
    for (unsigned i = 0; i < ALL_SHARDS; i++) {
        if (f->shards[i].multi != NULL)
            curl_multi_setopt(f->shards[i].multi, CURLMOPT_MAXCONNECTS, max_connects(f));
    }
}

static int shard_open(struct shard *s)
{
    s->multi = curl_multi_init();
    if (s->multi == NULL)
        return E_NOMEM;
    s->due_us = INT64_MAX;
    curl_multi_setopt(s->multi, CURLMOPT_SOCKETFUNCTION, on_socket);
    curl_multi_setopt(s->multi, CURLMOPT_SOCKETDATA, s);
    curl_multi_setopt(s->multi, CURLMOPT_TIMERFUNCTION, on_timer);
    curl_multi_setopt(s->multi, CURLMOPT_TIMERDATA, s);
    bool h2 = s - s->f->shards >= SHARDS;
    curl_multi_setopt(s->multi, CURLMOPT_PIPELINING,
                      h2 ? (long)CURLPIPE_MULTIPLEX : (long)CURLPIPE_NOTHING);
    curl_multi_setopt(s->multi, CURLMOPT_MAX_CONCURRENT_STREAMS, (long)SHARD_STREAMS);
    curl_multi_setopt(s->multi, CURLMOPT_MAXCONNECTS, max_connects(s->f));
    s->tight = false;
    return 0;
}

/* The system had no descriptor a moment ago, for whichever fetcher. */
static bool starved(const struct fetcher *f)
{
    return atomic_load(&f->e->starved_until) > f->now;
}

/* Descriptors, ports or memory are short, or nearly so: idle connections make room. */
static bool tight(const struct fetcher *f)
{
    return (uint32_t)atomic_load(&f->e->fds) >= f->e->fd_budget - f->e->fd_budget / 16 ||
           starved(f) || f->ports_short_until > f->now || budget_transfers_tight(f->e);
}

static bool has_idle(const struct fetcher *f)
{
    for (unsigned i = 0; i < ALL_SHARDS; i++) {
        if (f->shards[i].open > f->shards[i].active)
            return true;
    }
    return false;
}

bool multi_short(const struct fetcher *f)
{
    return starved(f) || (uint32_t)atomic_load(&f->e->fds) >= f->e->fd_budget ||
           budget_transfers_full(f->e);
}

bool multi_full(const struct fetcher *f)
{
    if (has_idle(f))
        return false;
    return (uint32_t)atomic_load(&f->e->fds) >= f->e->fd_budget ||
           (f->sched.in_flight > 0 && budget_transfers_full(f->e)); /* one is never too many */
}

/* While descriptors or ports are short, a shard has no more connections than transfers: a new one
 * closes the oldest idle one, if there is one. No transfer waits in libcurl for that, since the
 * others cannot use as many connections as they and it are. */
static void bound(struct shard *s)
{
    bool was = s->tight;
    s->tight = tight(s->f);
    if (!s->tight && !was)
        return;
    curl_multi_setopt(s->multi, CURLMOPT_MAX_TOTAL_CONNECTIONS, s->tight ? (long)s->active : 0L);
    curl_multi_setopt(s->multi, CURLMOPT_MAXCONNECTS,
                      s->tight ? (long)s->active : max_connects(s->f));
}

int multi_init(struct fetcher *f)
{
    for (unsigned i = 0; i < ALL_SHARDS; i++) {
        f->shards[i].f = f;
        f->shards[i].due_us = INT64_MAX;
    }
    f->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (f->epoll < 0)
        return E_IO;
    struct epoll_event ev = {.events = EPOLLIN, .data.fd = f->inbox.fd};
    if (epoll_ctl(f->epoll, EPOLL_CTL_ADD, f->inbox.fd, &ev) != 0)
        return E_IO;
    return tls_new(&f->tls, f->e->trust);
}

void multi_fini(struct fetcher *f)
{
    for (unsigned i = 0; i < ALL_SHARDS; i++) {
        if (f->shards[i].multi != NULL)
            curl_multi_cleanup(f->shards[i].multi);
        curl_slist_free_all(f->shards[i].forget);
    }
    while (f->n_easies > 0)
        curl_easy_cleanup(f->easies[--f->n_easies]);
    tls_free(f->tls);
    if (f->epoll >= 0)
        close(f->epoll);
    free(f->fds);
}

/* The shard for one more transfer of a host: its own first one, and further ones when that has
 * many of it; the first ones are filled up again first, since their connections wait there. */
struct shard *multi_shard(struct fetcher *f, struct host *h, bool h2)
{
    unsigned base = (unsigned)(h->key % SHARDS), first = h2 ? SHARDS : 0;
    if (tight(f)) { /* where a connection is idle: it is used, or closed for the new one */
        for (unsigned i = 0; i < SHARDS; i++) {
            struct shard *s = &f->shards[first + (base + i) % SHARDS];
            if (s->open > s->active)
                return s;
        }
        for (unsigned i = 0; starved(f) && i < SHARDS; i++) {
            struct shard *s = &f->shards[first + (base + i) % SHARDS];
            if (s->multi != NULL) /* a new one takes two descriptors */
                return s;
        }
    }
    uint32_t chunk = h2 ? SHARD_STREAMS : SHARD_CHUNK;
    for (uint32_t room = chunk;; room += chunk) {
        for (unsigned i = 0; i < SHARDS; i++) {
            unsigned k = first + (base + i) % SHARDS;
            if (h->active[k] < room)
                return &f->shards[k];
        }
    }
}

int multi_add(struct transfer *t, struct shard *s)
{
    if (s->multi == NULL) {
        int rc = shard_open(s);
        if (rc != 0)
            return rc;
    }
    if (curl_multi_add_handle(s->multi, t->easy) != CURLM_OK)
        return E_NOMEM;
    t->shard = s;
    s->active++;
    bound(s);
    t->lane->host->active[s - t->f->shards]++;
    return 0;
}

void multi_remove(struct transfer *t)
{
    struct shard *s = t->shard;
    if (s == NULL)
        return;
    curl_multi_remove_handle(s->multi, t->easy);
    forget_unconnected(t);
    if (--s->active == 0)
        s->idle_since = t->f->now;
    t->lane->host->active[s - t->f->shards]--;
    t->shard = NULL;
}

static void shard_close(struct shard *s)
{
    uint32_t bit = 1U << (s - s->f->shards);
    for (struct host *h = s->f->hosts; h != NULL; h = h->hh.next)
        h->cached &= ~bit;
    curl_slist_free_all(s->forget);
    s->forget = NULL;
    curl_multi_cleanup(s->multi);
    s->multi = NULL;
    s->due_us = INT64_MAX;
    s->touched = s->stale = false;
}

void multi_close_idle(struct fetcher *f)
{
    for (unsigned i = 0; i < ALL_SHARDS; i++) {
        struct shard *s = &f->shards[i];
        if (s->multi != NULL && s->active == 0)
            shard_close(s);
    }
}

/* Shards without work whose connections have been idle for long are closed. libcurl itself looks
 * at idle connections only when another transfer comes. Returns when to look again. */
static int64_t age_out(struct fetcher *f)
{
    int64_t next = INT64_MAX;
    for (unsigned i = 0; i < ALL_SHARDS; i++) {
        struct shard *s = &f->shards[i];
        if (s->multi == NULL)
            continue;
        if (s->active > 0) {
            bound(s);
            continue;
        }
        int64_t due = s->idle_since + (s->stale ? STALE_US : IDLE_US);
        if (due <= f->now)
            shard_close(s);
        else if (due < next)
            next = due;
    }
    return next;
}

uint64_t multi_mark_h2(struct fetcher *f, int fd)
{
    struct fd_entry *en = entry(f, fd);
    en->h2 = true;
    return en->no;
}

bool multi_is_open(const struct fetcher *f, int fd, uint64_t no)
{
    return (size_t)fd < f->n_fds && f->fds[fd].no == no;
}

/* An idle connection that becomes readable was closed by its origin, or holds bytes that nobody
 * asked for: whoever used it next would take them for its own response. Its end is read and shut
 * down, which is how libcurl finds it dead. */
static void spoil(struct fetcher *f, int fd, struct fd_entry *en)
{
    char junk[4096];
    ssize_t n = recv(fd, junk, sizeof(junk), MSG_DONTWAIT);
    /* The event may be older than the response's end: libcurl read it because a timer of its transfer
     * was due in the turn of another one, whose event came first. */
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    for (int i = 0; i < 16 && n > 0; i++)
        n = recv(fd, junk, sizeof(junk), MSG_DONTWAIT);
    (void)shutdown(fd, SHUT_RDWR);
    epoll_set(f, fd, en, 0);
    f->shards[en->shard].stale = true;
}

/* Frames may come at any time, even on an idle connection; libcurl reads them before it uses it
 * again. Many bytes are bodies of streams that were given up, which libcurl tells the origin only
 * with its next request. */
static int unread(int fd)
{
    int n = 0;
    return ioctl(fd, FIONREAD, &n) == 0 ? n : INT_MAX;
}

static void act(struct shard *s, curl_socket_t fd, int events)
{
    int running;
    s->f->h2_unheard = 0;
    CURLMcode rc = curl_multi_socket_action(s->multi, fd, events, &running);
    ASSERT(rc == CURLM_OK);
    s->touched = true;
}

void multi_kick(struct shard *s)
{
    act(s, CURL_SOCKET_TIMEOUT, 0);
}

static void on_event(struct fetcher *f, int fd, uint32_t events)
{
    if (fd == f->inbox.fd)
        return; /* taken at the top of the turn */
    struct fd_entry *en = entry(f, fd);
    bool rd = events & (EPOLLIN | EPOLLHUP | EPOLLERR);
    bool wr = events & (EPOLLOUT | EPOLLHUP | EPOLLERR);
    if (en->kind == FD_DNS) {
        dns_event(f->dns, fd, rd, wr, f->now);
        return;
    }
    struct shard *s = &f->shards[en->shard];
    if (en->kind != FD_CURL || s->multi == NULL) {
        epoll_set(f, fd, en, 0);
        return;
    }
    if (en->want == 0 && en->h2 && !(events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) &&
        unread(fd) < H2_UNREAD) {
        epoll_set(f, fd, en, EPOLLIN | EPOLLRDHUP | EPOLLET); /* its end, and further bytes */
        return;
    }
    if (en->want == 0) {
        spoil(f, fd, en);
        return;
    }
    int mask = 0;
    if (events & EPOLLIN)
        mask |= CURL_CSELECT_IN;
    if (events & EPOLLOUT)
        mask |= CURL_CSELECT_OUT;
    if (events & (EPOLLERR | EPOLLHUP))
        mask |= en->want & EPOLLIN ? CURL_CSELECT_IN : CURL_CSELECT_OUT;
    if (events & EPOLLERR)
        mask |= CURL_CSELECT_ERR;
    act(s, fd, mask);
}

static void reap(struct shard *s)
{
    CURLMsg *m;
    int left;
    s->touched = false;
    while (s->multi != NULL && (m = curl_multi_info_read(s->multi, &left)) != NULL) {
        if (m->msg != CURLMSG_DONE)
            continue;
        s->f->n_reaped++;
        struct transfer *t = NULL;
        CURLcode code = m->data.result;
        curl_easy_getinfo(m->easy_handle, CURLINFO_PRIVATE, (char **)&t);
        ASSERT(t != NULL && t->magic == TRANSFER_MAGIC && t->shard == s);
        if (h2_doubtful(t, code)) {
            t->list_next = s->f->doubts;
            s->f->doubts = t;
            continue;
        }
        end_transfer(t, code);
    }
}

/* libcurl ends the streams of a connection that is over one by one, each when it is told of its
 * socket. So it is told until no further one ends: then the connection is closed, or well. */
static void probe(struct fetcher *f, const struct transfer *t)
{
    uint64_t before;
    do {
        before = f->n_reaped;
        act(t->shard, t->h2_fd, CURL_CSELECT_IN);
        reap(t->shard);
    } while (f->n_reaped != before && multi_is_open(f, t->h2_fd, t->h2_no));
}

static void settle_doubts(struct fetcher *f)
{
    struct transfer *settled = NULL;
    uint64_t well = 0;
    while (f->doubts != NULL) {
        struct transfer *t = f->doubts;
        f->doubts = t->list_next;
        t->list_next = settled;
        settled = t;
        if (t->h2_no != well && multi_is_open(f, t->h2_fd, t->h2_no)) {
            probe(f, t);
            well = t->h2_no;
        }
    }
    while (settled != NULL) {
        struct transfer *t = settled;
        settled = t->list_next;
        t->list_next = NULL;
        end_transfer(t, CURLE_OK);
    }
}

void multi_turn(struct fetcher *f, int64_t until)
{
    settle_idle(f);
    int64_t aged = age_out(f);
    until = aged < until ? aged : until;
    uint32_t idle = 0;
    for (unsigned i = 0; i < ALL_SHARDS; i++) {
        const struct shard *s = &f->shards[i];
        if (s->due_us < until)
            until = s->due_us;
        if (s->touched)
            until = f->now;
        idle += s->open > s->active ? s->open - s->active : 0;
    }
    int64_t now = now_us(), wait_us = until == INT64_MAX ? -1 : until - now;
    metric_put(METRIC_CONNECTIONS_OPEN, f->sockets);
    metric_put(METRIC_CONNECTIONS_IDLE, idle);
    if (f->turn_us != 0)
        metric_observe_us(METRIC_LOOP_LAG, METRIC_THREAD_FETCHER, now - f->turn_us);
    int wait_ms = -1;
    if (until != INT64_MAX)
        wait_ms = wait_us <= 0 ? 0 : wait_us > 60000000 ? 60000 : (int)((wait_us + 999) / 1000);

    struct epoll_event ev[EVENTS];
    pulse_end();
    int n = epoll_wait(f->epoll, ev, EVENTS, wait_ms);
    ASSERT(n >= 0 || errno == EINTR);
    f->now = f->turn_us = now_us();
    pulse_begin(f->now);
    for (int i = 0; i < n; i++)
        on_event(f, ev[i].data.fd, ev[i].events);
    for (unsigned i = 0; i < ALL_SHARDS; i++) {
        struct shard *s = &f->shards[i];
        if (s->due_us <= f->now) {
            s->due_us = INT64_MAX; /* libcurl sets it again if it wants another */
            if (s->multi != NULL)
                act(s, CURL_SOCKET_TIMEOUT, 0);
        }
    }
    for (unsigned i = 0; i < ALL_SHARDS; i++) {
        if (f->shards[i].touched)
            reap(&f->shards[i]);
    }
    settle_doubts(f);
}
