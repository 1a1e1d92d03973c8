/* What a fetcher keeps its work in: hosts, batches and lanes, the transfers themselves, and the heap
 * of their timers. Runs on the fetcher's thread. */
#include <stdlib.h>
#include <string.h>

#include "server/budget.h"
#include "server/fetch_int.h"

enum {
    LANE_LOW = 32,        /* ask for more when fewer requests wait than this … */
    IN_PAGES_MAX = 65536, /* requests waiting in memory, above which only the low mark counts */
    RECORD_MAX = 64 * 1024 * 1024,
};

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
    easy_forget(h);
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
    if (budget_crowded(f->e)) /* when it is dry */
        low = 1;
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
        buf_init(&t->body, HELD_MOST);
    }
    t->magic = TRANSFER_MAGIC;
    t->live = l;
    t->due_us = INT64_MAX;
    spill_init(&t->spill, f->e->spill);
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
    if (b->cap > BODY_SMALL)
        buf_fini(b);
    else
        buf_reset(b);
}

void transfer_free(struct transfer *t)
{
    struct fetcher *f = t->f;
    ASSERT(t->easy == NULL && t->lane == NULL && t->live == NULL);
    t->magic = 0;
    atomic_fetch_sub(&f->e->queued_bytes, (int64_t)t->record_cost);
    t->record_cost = 0;
    url_fini(&t->url);
    free(t->hop_url);
    body_drop(t);
    atomic_fetch_sub(&f->e->bodies, (int64_t)t->charged);
    t->charged = 0;
    struct buf *bufs[] = {&t->record,    &t->joined,   &t->redirects,
                          &t->fields_in, &t->location, &t->body};
    bool spare = f->n_spares < f->spares_max;
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
