/* A fetcher's thread: its loop, its messages, and the lists that transfers, lanes, hosts and
 * batches stand in. */
#define _GNU_SOURCE
#include "server/fetch.h"

#ifdef CURL_MIMALLOC
#include <mimalloc.h>
#endif
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "server/fetch_int.h"

enum {
    LANE_LOW = 32,        /* ask for more when fewer requests wait than this … */
    LANE_LOW_MAX = 4096,  /* … or, for a host with much parallelism, up to this */
    IN_PAGES_MAX = 65536, /* requests waiting in memory, above which only the low mark counts */
    FULL_US = 10 * 1000,  /* then look whether others have given descriptors back */
    RECORD_MAX = 64 * 1024 * 1024,
    SPARES_MAX = 1024,
};

int fetch_global_init(void)
{
#ifdef CURL_MIMALLOC
    /* A transfer is some 40 allocations of libcurl's; with the C library's malloc they are a sixth
     * of the fetcher's time in user mode. */
    CURLcode rc = curl_global_init_mem(CURL_GLOBAL_DEFAULT, mi_malloc, mi_free, mi_realloc,
                                       mi_strdup, mi_calloc);
#else
    CURLcode rc = curl_global_init(CURL_GLOBAL_DEFAULT);
#endif
    return rc == CURLE_OK ? 0 : E_NOMEM;
}

void fetch_global_fini(void)
{
    curl_global_cleanup();
}

int fetch_trust(struct tls_trust **out, const struct config *cfg, char *why, size_t why_size)
{
    char cause[400];
    if (cfg->ca_file != NULL) {
        int rc = tls_trust_new(out, cfg->ca_file, NULL, cause, sizeof(cause));
        if (rc != 0)
            snprintf(why, why_size, "--ca-file: %s", cause);
        return rc;
    }
    const curl_version_info_data *v = curl_version_info(CURLVERSION_NOW);
    int rc = tls_trust_new(out, v->cainfo, v->capath, cause, sizeof(cause));
    if (rc == E_INVAL) {
        log_line(LOG_WARN, "tls", "%s: nobody is trusted, so every https URL will fail", cause);
        rc = tls_trust_none(out);
    }
    return rc;
}

uint32_t fetch_overhead_fds(unsigned n)
{
    /* each multi has a socket pair; epoll, the inbox, the resolver's sockets */
    return n * (ALL_SHARDS * 2 + 2 + 32);
}

/* ---- timers: a binary heap by due time ---- */

static void heap_put(struct fetcher *f, size_t i, struct transfer *t)
{
    f->heap[i] = t;
    t->heap_pos = i;
}

static void heap_up(struct fetcher *f, size_t i)
{
    struct transfer *t = f->heap[i];
    while (i > 0 && f->heap[(i - 1) / 2]->due_us > t->due_us) {
        heap_put(f, i, f->heap[(i - 1) / 2]);
        i = (i - 1) / 2;
    }
    heap_put(f, i, t);
}

static void heap_down(struct fetcher *f, size_t i)
{
    struct transfer *t = f->heap[i];
    for (;;) {
        size_t c = 2 * i + 1;
        if (c >= f->heap_n)
            break;
        if (c + 1 < f->heap_n && f->heap[c + 1]->due_us < f->heap[c]->due_us)
            c++;
        if (f->heap[c]->due_us >= t->due_us)
            break;
        heap_put(f, i, f->heap[c]);
        i = c;
    }
    heap_put(f, i, t);
}

void timer_set(struct transfer *t, int64_t due_us)
{
    struct fetcher *f = t->f;
    if (t->due_us != INT64_MAX) {
        size_t i = t->heap_pos;
        struct transfer *last = f->heap[--f->heap_n];
        if (last != t) {
            heap_put(f, i, last);
            heap_up(f, i);
            heap_down(f, last->heap_pos);
        }
    }
    t->due_us = due_us;
    if (due_us == INT64_MAX)
        return;
    if (f->heap_n == f->heap_cap) {
        f->heap_cap = f->heap_cap == 0 ? 64 : f->heap_cap * 2;
        f->heap = xrealloc(f->heap, f->heap_cap * sizeof(struct transfer *));
    }
    heap_put(f, f->heap_n++, t);
    heap_up(f, f->heap_n - 1);
}

/* ---- hosts, batches, lanes ---- */

static struct host *host_get(struct fetcher *f, const char *name, size_t len)
{
    struct host *h;
    HASH_FIND(hh, f->hosts, name, (unsigned)len, h);
    if (h != NULL)
        return h;
    h = xcalloc(1, sizeof(*h) + len + 1);
    memcpy(h->name, name, len);
    h->f = f;
    h->key = lane_of_host(name, len);
    sched_host_init(&h->s, f->e->cfg->max_per_host, sched_rate_of(f->e->cfg->rate_per_host));
    HASH_ADD_KEYPTR(hh, f->hosts, h->name, (unsigned)len, h);
    return h;
}

void host_release(struct host *h)
{
    struct fetcher *f = h->f;
    if (h->s.n_lanes > 0 || h->state == HOST_ASKING)
        return;
    ASSERT(h->s.in_flight == 0 && h->wait_head == NULL);
    if (!f->draining && sched_host_keep(&f->sched, &h->s))
        return; /* take_forgotten() comes back to it */
    sched_host_fini(&f->sched, &h->s);
    start_forget(h);
    HASH_DEL(f->hosts, h);
    free(h);
}

static struct fbatch *batch_get(struct fetcher *f, struct live *l)
{
    struct fbatch *b;
    HASH_FIND_PTR(f->batches, &l, b);
    if (b != NULL)
        return b;
    b = xcalloc(1, sizeof(*b));
    live_ref(l);
    b->live = l;
    sched_batch_init(&b->s, l->has_quota ? &l->quota : NULL, l->b.max_per_host,
                     sched_rate_of(l->b.rate_per_host), l->b.priority);
    HASH_ADD_PTR(f->batches, live, b);
    return b;
}

struct lane *lane_get(struct fetcher *f, struct live *live, const char *host, size_t len)
{
    struct host *h = host_get(f, host, len);
    struct fbatch *b = batch_get(f, live);
    /* few batches are at one host, but a batch may be at many */
    struct lane *l;
    struct lane_key key = {.host = h, .batch = b};
    HASH_FIND(hh, f->lanes, &key, sizeof(key), l);
    if (l != NULL)
        return l;
    l = xcalloc(1, sizeof(*l));
    l->key = key;
    l->host = h;
    l->batch = b;
    l->pages_tail = &l->pages;
    l->again_tail = &l->again;
    l->front_tail = &l->front;
    sched_lane_init(&l->s, &h->s, &b->s);
    l->next = b->lanes;
    if (b->lanes != NULL)
        b->lanes->prev = l;
    b->lanes = l;
    HASH_ADD(hh, f->lanes, key, sizeof(key), l);
    return l;
}

void lane_release(struct fetcher *f, struct lane *l)
{
    struct fbatch *b = l->batch;
    struct host *h = l->host;
    bool stopped = atomic_load(&b->live->stopped);
    bool over = stopped || !l->fed || l->last;
    if (l->s.queued > 0 || l->transfers > 0 || l->in_pages > 0 || !over)
        return;
    if (!stopped && !f->draining && sched_lane_keep(&f->sched, &l->s))
        return; /* a redirect or a further attempt may come, and is bound by the rate too */
    sched_lane_fini(&f->sched, &l->s);
    if (l->prev != NULL)
        l->prev->next = l->next;
    else
        b->lanes = l->next;
    if (l->next != NULL)
        l->next->prev = l->prev;
    HASH_DEL(f->lanes, l);
    free(l);
    host_release(h);
    if (b->lanes == NULL) {
        sched_batch_fini(&f->sched, &b->s);
        HASH_DEL(f->batches, b);
        live_unref(b->live);
        free(b);
    }
}

void lane_push_front(struct lane *l, struct transfer *t)
{
    t->state = TRANSFER_QUEUED;
    t->list_next = NULL;
    *l->front_tail = t;
    l->front_tail = &t->list_next;
}

static uint32_t min_given(uint32_t a, uint32_t b)
{
    return b != 0 && b < a ? b : a;
}

/* Asks for more before the lane runs dry: as much as its host may have in flight. */
void lane_settle_want(struct fetcher *f, struct lane *l)
{
    if (!l->fed || l->last || l->asked)
        return;
    const struct batch *b = &l->batch->live->b;
    uint32_t low = min_given(min_given(l->host->s.limit, b->max_per_host), b->max_parallel);
    low = low < LANE_LOW ? LANE_LOW : low > LANE_LOW_MAX ? LANE_LOW_MAX : low;
    if (f->in_pages > IN_PAGES_MAX) /* very many lanes: none of them needs its whole limit */
        low = LANE_LOW;
    if (l->in_pages >= low)
        return;
    struct msg_want *m = xcalloc(1, sizeof(*m));
    m->m.type = KEEPER_WANT;
    m->live = l->batch->live;
    live_ref(m->live);
    m->lane = l->host->key;
    m->n = low;
    l->asked = true;
    inbox_put(&f->e->inbox, &m->m);
}

/* ---- transfers ---- */

struct transfer *transfer_new(struct fetcher *f, struct live *l)
{
    struct transfer *t = f->spare;
    if (t != NULL) {
        f->spare = t->next;
        f->n_spares--;
        struct buf keep[] = {t->record,    t->joined,   t->redirects,
                             t->fields_in, t->location, t->body};
        memset(t, 0, sizeof(*t));
        t->record = keep[0];
        t->joined = keep[1];
        t->redirects = keep[2];
        t->fields_in = keep[3];
        t->location = keep[4];
        t->body = keep[5];
    } else {
        t = xcalloc(1, sizeof(*t));
        buf_init(&t->record, RECORD_MAX);
        buf_init(&t->joined, RECORD_MAX);
        buf_init(&t->redirects, 1024 * 1024);
        buf_init(&t->fields_in, HEADER_BYTES + 2 * HEADER_LINES);
        buf_init(&t->location, URL_MAX);
        buf_init(&t->body, SPILL_BYTES);
    }
    t->magic = TRANSFER_MAGIC;
    t->live = l;
    t->due_us = INT64_MAX;
    t->spill_fd = -1;
    t->retry_after_ms = -1;
    t->new_attempt = true;
    return t;
}

void transfer_attach(struct fetcher *f, struct transfer *t, struct lane *l)
{
    t->f = f;
    t->lane = l;
    l->transfers++;
    t->prev = NULL;
    t->next = f->transfers;
    if (t->next != NULL)
        t->next->prev = t;
    f->transfers = t;
    f->n_transfers++;
}

void transfer_detach(struct transfer *t)
{
    struct fetcher *f = t->f;
    struct lane *l = t->lane;
    timer_set(t, INT64_MAX);
    if (t->prev != NULL)
        t->prev->next = t->next;
    else
        f->transfers = t->next;
    if (t->next != NULL)
        t->next->prev = t->prev;
    f->n_transfers--;
    t->lane = NULL;
    l->transfers--;
    lane_release(f, l);
}

static void fini_keep(struct buf *b)
{
    if (b->cap > 16 * 1024)
        buf_fini(b);
    else
        buf_reset(b);
}

void transfer_free(struct transfer *t)
{
    struct fetcher *f = t->f;
    ASSERT(t->easy == NULL && t->lane == NULL && t->live == NULL);
    t->magic = 0;
    url_fini(&t->url);
    free(t->hop_url);
    body_drop(t);
    struct buf *bufs[] = {&t->record,    &t->joined,   &t->redirects,
                          &t->fields_in, &t->location, &t->body};
    bool spare = f->n_spares < SPARES_MAX;
    for (size_t i = 0; i < ARRAY_LEN(bufs); i++) {
        if (spare)
            fini_keep(bufs[i]);
        else
            buf_fini(bufs[i]);
    }
    if (!spare) {
        free(t);
        return;
    }
    t->next = f->spare;
    f->spare = t;
    f->n_spares++;
}

/* Away without a result: its batch was stopped, or the service stops. */
static void transfer_drop(struct transfer *t)
{
    atomic_fetch_sub(&t->live->in_flight, 1);
    live_unref(t->live);
    t->live = NULL;
    transfer_free(t);
}

static void arrive(struct fetcher *f, struct transfer *t)
{
    t->f = f;
    if (atomic_load(&t->live->stopped)) {
        transfer_drop(t);
        return;
    }
    struct lane *l = lane_get(f, t->live, t->url.host, strlen(t->url.host));
    transfer_attach(f, t, l);
    lane_push_front(l, t);
    sched_queue(&f->sched, &l->s, 1);
}

void transfer_send(struct transfer *t)
{
    struct fetcher *f = t->f;
    transfer_detach(t);
    struct fetcher *to = engine_fetcher(f->e, lane_of_host(t->url.host, strlen(t->url.host)));
    if (to == f) {
        arrive(f, t);
        return;
    }
    t->m.type = FETCH_HOP;
    fetcher_put(to, &t->m);
}

/* ---- messages ---- */

/* Requests whose URL can't be fetched have their result at once. */
static void take_invalid(struct fetcher *f, struct msg_page *m)
{
    size_t pos = 0;
    struct item it;
    while (pos < m->len) {
        int rc = item_decode(m->data, m->len, &pos, &it);
        ASSERT(rc == 0);
        live_ref(m->live);
        atomic_fetch_add(&m->live->in_flight, 1);
        out_invalid(f, m->live, &it);
    }
    int64_t none = 0;
    atomic_compare_exchange_strong(&m->live->started_ms, &none, wall_ms());
}

/* The host of a page's first request names the lane; NULL: the page is damaged. */
static struct lane *lane_of_page(struct fetcher *f, const struct msg_page *m)
{
    struct item it;
    size_t pos = m->m.type == FETCH_AGAIN ? sizeof(struct again) : 0;
    const char *why;
    struct url u = {0};
    if (item_decode(m->data, m->len, &pos, &it) != 0 ||
        url_parse(&u, it.url.ptr, it.url.len, &why) != 0) {
        log_line(LOG_ERROR, "fetch", "batch %s: a page cannot be read", m->live->b.id);
        return NULL;
    }
    struct lane *l = lane_get(f, m->live, u.host, strlen(u.host));
    url_fini(&u);
    return l;
}

/* Takes m. */
static void queue_page(struct fetcher *f, struct lane *l, struct msg_page *m)
{
    struct page_in *p = xcalloc(1, sizeof(*p));
    struct page_in ***tail = m->m.type == FETCH_AGAIN ? &l->again_tail : &l->pages_tail;
    p->m = m;
    p->arrived_us = f->now;
    **tail = p;
    *tail = &p->next;
    l->in_pages += m->count;
    f->in_pages += m->count;
    sched_queue(&f->sched, &l->s, m->count);
}

static void take_again(struct fetcher *f, struct msg_page *m)
{
    struct live *live = m->live;
    struct lane *l = atomic_load(&live->stopped) ? NULL : lane_of_page(f, m);
    if (l != NULL)
        queue_page(f, l, m);
    else
        free(m);
    live_unref(live);
}

/* The lane that asked, found by the keeper's number of it. */
static struct lane *lane_by_key(struct fetcher *f, struct live *live, uint64_t key)
{
    struct fbatch *b;
    HASH_FIND_PTR(f->batches, &live, b);
    if (b == NULL)
        return NULL;
    for (struct lane *l = b->lanes; l != NULL; l = l->next) {
        if (l->host->key == key && l->fed)
            return l;
    }
    return NULL;
}

static void take_page(struct fetcher *f, struct msg_page *m)
{
    struct live *live = m->live;
    struct lane *l = NULL;
    if (atomic_load(&live->stopped))
        goto out;
    if (m->count > 0 && m->lane == LANE_INVALID) {
        take_invalid(f, m);
        if (m->ask && !m->last) { /* as for any lane */
            struct msg_want *w = xcalloc(1, sizeof(*w));
            w->m.type = KEEPER_WANT;
            w->live = live;
            live_ref(live);
            w->n = LANE_LOW_MAX;
            inbox_put(&f->e->inbox, &w->m);
        }
        goto out;
    }
    l = m->count > 0 ? lane_of_page(f, m) : lane_by_key(f, live, m->lane);
    if (l == NULL)
        goto out;
    l->fed = true;
    l->last = m->last;
    l->asked = l->asked && m->count > 0 && !m->ask && !m->last; /* more of the answer follows */
    if (m->count > 0) {
        queue_page(f, l, m);
        m = NULL;
    }
    lane_settle_want(f, l);
    lane_release(f, l);
out:
    live_unref(live);
    free(m);
}

static void free_pages(struct page_in **list, struct page_in ***tail)
{
    while (*list != NULL) {
        struct page_in *p = *list;
        *list = p->next;
        free(p->m);
        free(p);
    }
    *tail = list;
}

static void drop_pages(struct fetcher *f, struct lane *l)
{
    f->in_pages -= l->in_pages;
    free_pages(&l->pages, &l->pages_tail);
    free_pages(&l->again, &l->again_tail);
    l->in_pages = 0;
    l->front = NULL; /* the transfers are in the fetcher's list */
    l->front_tail = &l->front;
}

/* Drops all of one batch (NULL: of all), in whatever state. */
static void drop(struct fetcher *f, const struct live *live)
{
    struct fbatch *b, *tmp;
    HASH_ITER(hh, f->batches, b, tmp)
    {
        if (live != NULL && b->live != live)
            continue;
        for (struct lane *l = b->lanes; l != NULL; l = l->next) {
            drop_pages(f, l);
            sched_drop_queued(&f->sched, &l->s);
        }
    }
    for (struct transfer *t = f->transfers, *next; t != NULL; t = next) {
        next = t->next;
        if (live != NULL && t->live != live)
            continue;
        bool slots = t->state == TRANSFER_RUNNING || t->state == TRANSFER_RESOLVING ||
                     t->state == TRANSFER_JOINING;
        start_undo(t);
        if (slots)
            start_release(t);
        t->state = TRANSFER_IDLE;
        transfer_detach(t);
        transfer_drop(t);
    }
    HASH_ITER(hh, f->batches, b, tmp)
    {
        if (live != NULL && b->live != live)
            continue;
        for (struct lane *l = b->lanes, *next; l != NULL; l = next) {
            next = l->next; /* releasing the last lane frees b */
            l->last = true;
            lane_release(f, l);
        }
    }
}

static void dropped(struct fetcher *f, struct msg_drop *m)
{
    struct msg_steer *s = m->steer;
    drop(f, s->live);
    out_flush(f); /* what it had finished before reaches the keeper before the answer does */
    if (atomic_fetch_sub(&s->left, 1) == 1) {
        s->m.type = KEEPER_STEERED;
        inbox_put(&f->e->inbox, &s->m);
    }
}

static void take_messages(struct fetcher *f)
{
    for (struct msg *m = inbox_take(&f->inbox), *next; m != NULL; m = next) {
        next = m->next;
        switch ((enum msg_type)m->type) {
        case FETCH_PAGE: take_page(f, (struct msg_page *)m); break;
        case FETCH_AGAIN: take_again(f, (struct msg_page *)m); break;
        case FETCH_HOP: arrive(f, (struct transfer *)m); break;
        case FETCH_DROP: dropped(f, (struct msg_drop *)m); break;
        case FETCH_STOP:
            f->draining = true;
            f->drain_until = f->now + ((struct msg_stop *)m)->drain_ms * 1000;
            free(m);
            break;
        default: ASSERT(m->type == FETCH_STOP); /* no other is ours */
        }
    }
}

/* ---- the loop ---- */

/* Lanes and hosts that were only kept for their rate or pause. */
static void take_forgotten(struct fetcher *f)
{
    struct sched_lane *l;
    struct sched_host *h;
    while ((l = sched_forgotten_lane(&f->sched)) != NULL)
        lane_release(f, CONTAINER_OF(l, struct lane, s));
    while ((h = sched_forgotten_host(&f->sched)) != NULL)
        host_release(CONTAINER_OF(h, struct host, s));
}

/* Starts what may start; returns whether there may be more. */
static bool start_some(struct fetcher *f)
{
    sched_turn(&f->sched, f->now, atomic_exchange(&f->woken, false));
    take_forgotten(f);
    for (unsigned n = 0; n < STARTS_PER_TURN; n++) {
        if (atomic_load(&f->e->unwritten) > UNWRITTEN_MAX)
            return false; /* the keeper wakes us */
        f->full = multi_full(f);
        if (f->full)
            return false;
        struct sched_lane *s = sched_pick(&f->sched);
        if (s == NULL)
            return false;
        start_next(f, CONTAINER_OF(s, struct lane, s));
    }
    return true;
}

static void wake_others(struct fetcher *f, bool *again)
{
    uint32_t mask = sched_wake_others(&f->sched, again);
    for (unsigned i = 0; i < f->e->n_fetchers; i++) {
        if (!(mask & (1U << i)))
            continue;
        struct fetcher *other = f->e->fetchers[i];
        atomic_store(&other->woken, true); /* before it can look */
        fetcher_wake(other);
    }
}

static void fire_timers(struct fetcher *f)
{
    while (f->heap_n > 0 && f->heap[0]->due_us <= f->now) {
        struct transfer *t = f->heap[0];
        timer_set(t, INT64_MAX);
        end_timer(t);
    }
}

/* When descriptors or ports are short: idle connections go, the other fetchers' too. Returns when to
 * come back at the latest. */
static int64_t spare_descriptors(struct fetcher *f, int64_t until)
{
    bool paused = f->no_starts_before > f->now;
    if (paused || f->full || f->ports_short_until > f->now || multi_short(f))
        multi_close_idle(f);
    if (!paused && !f->full)
        return until;
    for (unsigned i = 0; f->now >= f->spare_due && i < f->e->n_fetchers; i++) {
        if (i != f->no)
            fetcher_wake(f->e->fetchers[i]);
    }
    if (f->now >= f->spare_due)
        f->spare_due = f->now + FULL_US;
    int64_t back = paused ? f->no_starts_before : f->now + FULL_US;
    return back < until ? back : until;
}

static void *fetcher_main(void *arg)
{
    struct fetcher *f = arg;
    char name[16]; /* as perf and top show it */
    snprintf(name, sizeof(name), "fetch-%u", f->no);
    (void)pthread_setname_np(pthread_self(), name);
    f->socket_share = f->e->fd_budget / f->e->n_fetchers; /* all are there by now */
    for (;;) {
        f->now = now_us();
        take_messages(f);
        fire_timers(f);
        h2_serve(f);
        bool again = false, more = false, may_start = !f->draining && f->no_starts_before <= f->now;
        if (may_start)
            more = start_some(f);
        f->asked = false;
        int64_t until = dns_tick(f->dns, f->now); /* after new questions: it sends them */
        if (may_start && !more)
            more = start_some(f); /* what ended with the answers made room */
        more = more || f->asked;
        until = spare_descriptors(f, until);
        if (may_start && sched_due(&f->sched) < until)
            until = sched_due(&f->sched);
        int64_t flush = out_turn(f);
        until = flush < until ? flush : until;
        wake_others(f, &again);
        if (f->draining && (f->sched.in_flight == 0 || f->now >= f->drain_until))
            break;
        if (f->draining && f->drain_until < until)
            until = f->drain_until;
        if (f->heap_n > 0 && f->heap[0]->due_us < until)
            until = f->heap[0]->due_us;
        multi_turn(f, more || again ? f->now : until);
    }
    drop(f, NULL);
    out_flush(f);
    return NULL;
}

void fetcher_put(struct fetcher *f, struct msg *m)
{
    inbox_put(&f->inbox, m);
}

void fetcher_wake(struct fetcher *f)
{
    inbox_wake(&f->inbox);
}

static void on_thread_end(struct fetcher *f)
{
    for (struct msg *m = inbox_take(&f->inbox), *next; m != NULL; m = next) {
        next = m->next;
        switch ((enum msg_type)m->type) {
        case FETCH_PAGE:
        case FETCH_AGAIN:
            live_unref(((struct msg_page *)m)->live);
            free(m);
            break;
        case FETCH_HOP: {
            struct transfer *t = (struct transfer *)m;
            t->f = f;
            transfer_drop(t);
            break;
        }
        case FETCH_DROP: dropped(f, (struct msg_drop *)m); break;
        default: free(m);
        }
    }
}

int fetcher_start(struct fetcher *f)
{
    return pthread_create(&f->thread, NULL, fetcher_main, f) == 0 ? 0 : E_NOMEM;
}

int fetcher_new(struct fetcher **out, struct engine *e, unsigned no)
{
    struct fetcher *f = xcalloc(1, sizeof(*f));
    *out = NULL;
    f->e = e;
    f->no = no;
    f->epoll = f->inbox.fd = -1;
    buf_init(&f->scratch, RECORD_MAX);
    sched_init(&f->sched, &e->global, no);
    ssize_t n = getrandom(&f->random, sizeof(f->random), 0);
    ASSERT(n == (ssize_t)sizeof(f->random));
    int rc = inbox_init(&f->inbox);
    if (rc == 0)
        rc = multi_init(f);
    if (rc == 0)
        rc = start_init(f);
    if (rc == 0) {
        struct dns_options o = {.servers = e->cfg->dns_servers};
        rc = dns_new(&f->dns, &o, multi_watch, f);
    }
    if (rc != 0) {
        fetcher_free(f);
        return rc;
    }
    *out = f;
    return 0;
}

void fetcher_stop(struct fetcher *f, int64_t drain_ms)
{
    struct msg_stop *m = xcalloc(1, sizeof(*m));
    m->m.type = FETCH_STOP;
    m->drain_ms = drain_ms;
    fetcher_put(f, &m->m);
}

void fetcher_join(struct fetcher *f)
{
    pthread_join(f->thread, NULL);
    f->now = now_us();
    on_thread_end(f);
}

void fetcher_free(struct fetcher *f)
{
    if (f == NULL)
        return;
    if (f->inbox.fd >= 0)
        on_thread_end(f); /* hops that another fetcher sent while it stopped */
    dns_free(f->dns);
    struct host *h, *tmp;
    HASH_ITER(hh, f->hosts, h, tmp)
    { /* those whose names were being resolved */
        HASH_DEL(f->hosts, h);
        free(h);
    }
    multi_fini(f);
    start_fini(f);
    while (f->spare != NULL) {
        struct transfer *t = f->spare;
        f->spare = t->next;
        struct buf *bufs[] = {&t->record,    &t->joined,   &t->redirects,
                              &t->fields_in, &t->location, &t->body};
        for (size_t i = 0; i < ARRAY_LEN(bufs); i++)
            buf_fini(bufs[i]);
        free(t);
    }
    free(f->heap);
    buf_fini(&f->scratch);
    if (f->inbox.fd >= 0)
        inbox_fini(&f->inbox);
    free(f);
}
