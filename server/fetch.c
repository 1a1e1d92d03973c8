/* A fetcher's thread: its start and end, its loop, and its messages. */
#define _GNU_SOURCE
#include "server/fetch.h"

#ifdef HAVE_MIMALLOC
#include <mimalloc.h>
#endif
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "server/budget.h"
#include "server/fetch_int.h"
#include "server/metrics.h"
#include "server/pulse.h"

enum {
    DISK_US = 50 * 1000,        /* then look whether there is room on the disk */
    FULL_US = 10 * 1000,        /* then look whether others have given descriptors back */
    GIVE_BACK_US = 1000 * 1000, /* without a transfer */
    SCRATCH_MAX = 64 * 1024 * 1024,
};

int fetch_global_init(void)
{
#ifdef HAVE_MIMALLOC
    /* A transfer is some 40 allocations of libcurl's; with the C library's malloc they are a sixth
     * of the fetcher's time in user mode. */
    CURLcode rc = curl_global_init_mem(CURL_GLOBAL_DEFAULT, mi_malloc, mi_free, mi_realloc,
                                       mi_strdup, mi_calloc);
#else
    CURLcode rc = curl_global_init(CURL_GLOBAL_DEFAULT);
#endif
    return rc == CURLE_OK ? h2_global_init() : E_NOMEM;
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
        log_line(LOG_WARN, "tls_no_trust", "%s: nobody is trusted, so every https URL will fail",
                 cause);
        rc = tls_trust_none(out);
    }
    return rc;
}

uint32_t fetch_overhead_fds(unsigned n)
{
    /* each multi has a socket pair; epoll, the inbox, the resolver's sockets */
    return n * (ALL_SHARDS * 2 + 2 + 32);
}

/* ---- transfers that come and go ---- */

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
    atomic_fetch_add(&f->e->hops_on_their_way, 1);
    atomic_fetch_add(&f->e->hops_sent, 1);
    fetcher_put(to, &t->m);
}

/* ---- messages ---- */

/* Requests whose URL can't be fetched have their result at once. */
static void take_invalid(struct fetcher *f, struct msg_page *m)
{
    size_t pos = 0;
    struct item it;
    live_begun(m->live);
    while (pos < m->len) {
        int rc = item_decode(m->data, m->len, &pos, &it);
        ASSERT(rc == 0);
        live_ref(m->live);
        atomic_fetch_add(&m->live->in_flight, 1);
        out_invalid(f, m->live, &it);
    }
}

/* A page that is not what was accepted, though its form is right (the keeper has seen to that). */
static void fail_page(struct fetcher *f, const struct msg_page *m)
{
    size_t again = m->m.type == FETCH_AGAIN ? sizeof(struct again) : 0;
    struct item it;
    log_event(LOG_ERROR, "page_damaged", LOG_S("batch", m->live->b.id), LOG_U("page", m->no));
    for (size_t pos = again; pos < m->len; pos += again) {
        int rc = item_decode(m->data, m->len, &pos, &it);
        ASSERT(rc == 0);
        live_ref(m->live);
        live_begun(m->live);
        atomic_fetch_add(&m->live->in_flight, 1);
        out_damaged(f, m, &it);
    }
}

/* As the lane itself would. */
static void ask_on(struct fetcher *f, const struct msg_page *m)
{
    if (!m->ask || m->last)
        return;
    struct msg_want *w = xcalloc(1, sizeof(*w));
    w->m.type = KEEPER_WANT;
    w->live = m->live;
    live_ref(w->live);
    w->lane = m->lane;
    w->n = LANE_LOW_MAX;
    inbox_put(&f->e->inbox, &w->m);
}

/* The host of a page's first request names the lane; NULL: the page is damaged. */
static struct lane *lane_of_page(struct fetcher *f, const struct msg_page *m)
{
    struct item it;
    size_t pos = m->m.type == FETCH_AGAIN ? sizeof(struct again) : 0;
    const char *why;
    struct url u = {0};
    if (item_decode(m->data, m->len, &pos, &it) != 0 ||
        url_parse(&u, it.url.ptr, it.url.len, &why) != 0)
        return NULL;
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
    bool drop = f->draining || atomic_load(&live->stopped);
    struct lane *l = drop ? NULL : lane_of_page(f, m);
    if (l == NULL && !drop)
        fail_page(f, m);
    if (l != NULL)
        queue_page(f, l, m);
    else
        budget_free_page(f->e, m);
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
    if (f->draining || atomic_load(&live->stopped))
        goto out;
    if (m->count > 0 && m->lane == LANE_INVALID) {
        take_invalid(f, m);
        ask_on(f, m);
        goto out;
    }
    l = m->count > 0 ? lane_of_page(f, m) : lane_by_key(f, live, m->lane);
    if (l == NULL && m->count > 0) {
        fail_page(f, m);
        ask_on(f, m);
    }
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
    budget_free_page(f->e, m);
}

static void free_pages(struct fetcher *f, struct page_in **list, struct page_in ***tail)
{
    while (*list != NULL) {
        struct page_in *p = *list;
        *list = p->next;
        budget_free_page(f->e, p->m);
        free(p);
    }
    *tail = list;
}

static void drop_pages(struct fetcher *f, struct lane *l)
{
    f->in_pages -= l->in_pages;
    free_pages(f, &l->pages, &l->pages_tail);
    free_pages(f, &l->again, &l->again_tail);
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

/* Tells the keeper which requests of a paused batch are under way here. */
static void report(struct fetcher *f, struct live *live, const struct transfer *only,
                   uint64_t forgotten)
{
    size_t n = 0;
    for (struct transfer *t = f->transfers; only == NULL && t != NULL; t = t->next)
        n += t->live == live;
    struct msg_flying *m = xcalloc(1, sizeof(*m) + (n + 1) * sizeof(m->v[0]));
    m->m.type = KEEPER_FLYING;
    m->live = live;
    live_ref(live);
    m->dropped = forgotten;
    for (const struct transfer *t = only != NULL ? only : f->transfers; t != NULL; t = t->next) {
        if (t->live == live) {
            m->v[m->n].index = t->item.index;
            m->v[m->n].lane = t->home;
            m->v[m->n++].handed = t->handed;
        }
        if (t == only)
            break;
    }
    inbox_put(&f->e->inbox, &m->m);
}

/* Forgets what is not begun of a batch. Hops of what is under way go on. */
static uint64_t forget(struct fetcher *f, struct fbatch *b)
{
    uint64_t forgotten = 0;
    for (struct lane *l = b->lanes, *next; l != NULL; l = next) {
        next = l->next; /* releasing the last lane frees b */
        uint32_t hops = l->s.queued - l->in_pages;
        forgotten += l->in_pages;
        f->in_pages -= l->in_pages;
        l->in_pages = 0;
        free_pages(f, &l->pages, &l->pages_tail);
        free_pages(f, &l->again, &l->again_tail);
        sched_drop_queued(&f->sched, &l->s);
        if (hops > 0)
            sched_queue(&f->sched, &l->s, hops);
        l->last = true;
        l->asked = false;
        lane_release(f, l);
    }
    return forgotten;
}

static void halt(struct fetcher *f, struct live *live)
{
    struct fbatch *b;
    HASH_FIND_PTR(f->batches, &live, b);
    report(f, live, NULL, b != NULL ? forget(f, b) : 0);
}

static void begin_drain(struct fetcher *f)
{
    struct fbatch *b, *tmp;
    f->draining = true;
    HASH_ITER(hh, f->batches, b, tmp)
    {
        (void)forget(f, b);
    }
}

/* At the end of a turn. In this order, so that no hop is in neither (engine_is_idle). */
static void tell_whether_busy(struct fetcher *f)
{
    atomic_store(&f->busy, !f->draining || f->n_transfers > 0);
    if (f->arrived > 0)
        atomic_fetch_sub(&f->e->hops_on_their_way, f->arrived);
    f->arrived = 0;
}

static void dropped(struct fetcher *f, struct msg_drop *m)
{
    struct msg_steer *s = m->steer;
    if (s->verb == STEER_PAUSE)
        halt(f, s->live);
    else
        drop(f, s->live);
    out_flush(f); /* what it had finished before reaches the keeper before the answer does */
    if (atomic_fetch_sub(&s->left, 1) == 1) {
        s->m.type = KEEPER_STEERED;
        inbox_put(&f->e->inbox, &s->m);
    }
}

static void reload(struct fetcher *f, struct msg_reload *m)
{
    const struct config *cfg = f->e->cfg;
    struct host *h, *tmp;
    HASH_ITER(hh, f->hosts, h, tmp)
    {
        sched_host_limit(&f->sched, &h->s, cfg->max_per_host);
        sched_host_rate(&f->sched, &h->s, sched_rate_of(cfg->rate_per_host));
    }
    atomic_store(&f->woken, true); /* the limit of all may have slots again */
    if (m->trust != NULL)
        tls_set_trust(f->tls, m->trust);
    tls_trust_unref(m->trust);
    free(m);
}

static void take_messages(struct fetcher *f)
{
    for (struct msg *m = inbox_take(&f->inbox), *next; m != NULL; m = next) {
        next = m->next;
        switch ((enum msg_type)m->type) {
        case FETCH_PAGE: take_page(f, (struct msg_page *)m); break;
        case FETCH_AGAIN: take_again(f, (struct msg_page *)m); break;
        case FETCH_HOP: {
            struct transfer *t = (struct transfer *)m;
            if (atomic_load(&t->live->paused)) /* it may have been in no fetcher when they told */
                report(f, t->live, t, 0);
            arrive(f, t);
            f->arrived++;
            break;
        }
        case FETCH_DROP: dropped(f, (struct msg_drop *)m); break;
        case FETCH_RELOAD: reload(f, (struct msg_reload *)m); break;
        case FETCH_DRAIN:
        case FETCH_STOP:
            f->stopping = m->type == FETCH_STOP;
            begin_drain(f);
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

/* Whether starts are held back; counts the times that it begins, if there is something to start. */
static bool held(const struct fetcher *f, bool now, bool *before, enum metric_label_PRESSURE cause)
{
    metric_add(METRIC_PRESSURE + (unsigned)cause, now && !*before && f->in_pages > 0);
    *before = now;
    return now;
}

/* Starts what may start; returns whether there may be more. */
static bool start_some(struct fetcher *f)
{
    struct engine *e = f->e;
    sched_turn(&f->sched, f->now, atomic_exchange(&f->woken, false));
    take_forgotten(f);
    if (f->in_pages > 0)
        disk_look(e->disk);
    for (unsigned n = 0; n < STARTS_PER_TURN; n++) {
        if (held(f, atomic_load(&f->e->unwritten) > (int64_t)f->e->memory.unwritten, &f->unwritten,
                 METRIC_PRESSURE_UNWRITTEN))
            return false; /* the keeper wakes us */
        uint32_t running = e->global.limit - (uint32_t)atomic_load(&e->global.free);
        if (held(f, !disk_may_start(e->disk, running), &f->no_disk, METRIC_PRESSURE_DISK))
            return false;
        if (held(f, multi_full(f), &f->full,
                 budget_transfers_full(f->e) ? METRIC_PRESSURE_MEMORY
                                             : METRIC_PRESSURE_DESCRIPTORS))
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

/* Nobody tells when there is room on the disk again. */
static int64_t wait_for_disk(const struct fetcher *f, int64_t until)
{
    int64_t back = f->now + DISK_US;
    return f->no_disk && back < until ? back : until;
}

/* What a burst took is not kept for the next one, which may be far off. Returns when to come back at
 * the latest. */
static int64_t give_back(struct fetcher *f, int64_t until)
{
    if (f->n_transfers > 0) {
        f->give_back_us = f->now + GIVE_BACK_US;
    } else if (f->give_back_us <= f->now) {
        f->give_back_us = INT64_MAX;
        memory_give_back();
    }
    return f->n_transfers == 0 && f->give_back_us < until ? f->give_back_us : until;
}

static void *fetcher_main(void *arg)
{
    struct fetcher *f = arg;
    char name[16]; /* as perf and top show it */
    snprintf(name, sizeof(name), "fetch-%u", f->no);
    (void)pthread_setname_np(pthread_self(), name);
    pulse_register("fetcher");
    f->socket_share = f->e->fd_budget / f->e->n_fetchers; /* all are there by now */
    for (;;) {
        f->now = now_us();
        take_messages(f);
        fire_timers(f);
        h2_serve(f);
        bool again = false, more = false, may_start = f->no_starts_before <= f->now;
        if (may_start)
            more = start_some(f);
        f->asked = false;
        int64_t until = dns_tick(f->dns, f->now); /* after new questions: it sends them */
        if (may_start && !more)
            more = start_some(f); /* what ended with the answers made room */
        more = more || f->asked;
        until = end_late(f, give_back(f, wait_for_disk(f, spare_descriptors(f, until))));
        if (may_start && sched_due(&f->sched) < until)
            until = sched_due(&f->sched);
        int64_t flush = out_turn(f);
        until = flush < until ? flush : until;
        wake_others(f, &again);
        tell_whether_busy(f);
        if (f->stopping)
            break;
        if (f->heap_n > 0 && f->heap[0]->due_us < until)
            until = f->heap[0]->due_us;
        multi_turn(f, more || again ? f->now : until);
    }
    drop(f, NULL);
    out_flush(f);
    pulse_end();
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
            budget_free_page(f->e, (struct msg_page *)m);
            break;
        case FETCH_HOP: {
            struct transfer *t = (struct transfer *)m;
            t->f = f;
            transfer_drop(t);
            break;
        }
        case FETCH_DROP: dropped(f, (struct msg_drop *)m); break;
        case FETCH_RELOAD:
            tls_trust_unref(((struct msg_reload *)m)->trust);
            free(m);
            break;
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
    atomic_init(&f->busy, true);
    buf_init(&f->scratch, SCRATCH_MAX);
    sched_init(&f->sched, &e->global, no);
    f->sched.kept_max = e->memory.kept_max;
    f->spares_max = e->memory.spares_max;
    ssize_t n = getrandom(&f->random, sizeof(f->random), 0);
    ASSERT(n == (ssize_t)sizeof(f->random));
    int rc = inbox_init(&f->inbox);
    if (rc == 0)
        rc = decode_pool_new(&f->decoders);
    if (rc == 0)
        rc = multi_init(f);
    if (rc == 0)
        rc = easy_init(f);
    if (rc == 0) {
        struct dns_options o = {.servers = e->cfg->dns_servers, .cache_max = e->memory.names_max};
        rc = dns_new(&f->dns, &o, multi_watch, f);
    }
    if (rc != 0) {
        fetcher_free(f);
        return rc;
    }
    *out = f;
    return 0;
}

static void tell(struct fetcher *f, enum msg_type type)
{
    struct msg *m = xcalloc(1, sizeof(*m));
    m->type = (int)type;
    fetcher_put(f, m);
}

void fetcher_reload(struct fetcher *f, struct tls_trust *trust)
{
    struct msg_reload *m = xcalloc(1, sizeof(*m));
    m->m.type = FETCH_RELOAD;
    m->trust = trust != NULL ? tls_trust_ref(trust) : NULL;
    fetcher_put(f, &m->m);
}

void fetcher_drain(struct fetcher *f)
{
    tell(f, FETCH_DRAIN);
}

bool fetcher_is_busy(const struct fetcher *f)
{
    return atomic_load(&f->busy);
}

void fetcher_stop(struct fetcher *f)
{
    tell(f, FETCH_STOP);
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
    decode_pool_free(f->decoders);
    struct host *h, *tmp;
    HASH_ITER(hh, f->hosts, h, tmp)
    { /* those whose names were being resolved */
        HASH_DEL(f->hosts, h);
        free(h);
    }
    multi_fini(f);
    easy_fini(f);
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
