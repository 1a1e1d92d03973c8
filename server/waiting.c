/* See waiting.h. */
#include "server/waiting.h"

#include <stdlib.h>
#include <string.h>
#include <uthash.h>

#include "server/budget.h"
#include "server/pause.h"

enum {
    CHUNK = 256,            /* attempts read at once */
    CHUNKS_MAX = 16,        /* of one batch a turn */
    LANE_MIN = 512,         /* attempts of one lane with its fetcher … */
    LANE_MAX = 8192,        /* … by what its host may have in flight, */
    LANE_CROWDED = 16,      /* and when half of the window is taken */
    OWN_PART = 4,           /* of the window: attempts may have as much though it is full */
    DATA_MAX = 16 + 9 * 10, /* varints */
};

static const struct attempt_mark FIRST = {.due_ms = INT64_MIN};

/* A lane that attempts were handed out of, or are left behind in. */
struct wait_lane {
    uint64_t lane;
    UT_hash_handle hh;
    uint32_t out;    /* with the fetchers */
    uint32_t taking; /* feed_due: about to be */
    bool behind;     /* in waiting.behind: attempts between these two marks are not handed out */
    struct attempt_mark after; /* … waiting.passed */
    struct wait_lane *prev, *next;
};

struct waiting {
    uint8_t *known;             /* a bit for each request: it has an attempt on disk */
    uint8_t *here;              /* … that was not handed out */
    struct attempt_mark passed; /* up to here all were handed out, or their lanes are behind */
    int64_t next_ms;            /* nothing beyond it is due earlier than this */
    uint64_t out;               /* with the fetchers */
    struct wait_lane *lanes;    /* uthash */
    struct wait_lane behind;    /* sentinel of a ring */
};

/* One attempt on its way out. */
struct wait_out {
    uint64_t index, lane;
    struct again again;
};

static bool bit(const uint8_t *bits, uint64_t i)
{
    return (bits[i / 8] >> (i % 8)) & 1;
}

static void set_bit(uint8_t *bits, uint64_t i, bool on)
{
    uint8_t mask = (uint8_t)(1U << (i % 8));
    bits[i / 8] = (uint8_t)(on ? bits[i / 8] | mask : bits[i / 8] & ~mask);
}

bool waiting_has(const struct live *l, uint64_t index)
{
    return l->waiting != NULL && bit(l->waiting->known, index);
}

static struct waiting *waiting_get(struct live *l)
{
    struct waiting *w = l->waiting;
    if (w != NULL)
        return w;
    w = xcalloc(1, sizeof(*w));
    w->known = xcalloc(l->b.total / 8 + 1, 1);
    w->here = xcalloc(l->b.total / 8 + 1, 1);
    w->passed = FIRST;
    w->next_ms = INT64_MAX;
    w->behind.prev = w->behind.next = &w->behind;
    l->waiting = w;
    return w;
}

/* ---- lanes ---- */

static struct wait_lane *lane_get(struct waiting *w, uint64_t lane)
{
    struct wait_lane *p;
    HASH_FIND(hh, w->lanes, &lane, sizeof(lane), p);
    if (p != NULL)
        return p;
    p = xcalloc(1, sizeof(*p));
    p->lane = lane;
    HASH_ADD(hh, w->lanes, lane, sizeof(lane), p);
    return p;
}

static void lane_release(struct waiting *w, struct wait_lane *p)
{
    if (p->out > 0 || p->behind)
        return;
    ASSERT(w->lanes != NULL);
    HASH_DEL(w->lanes, p);
    free(p);
}

static void leave_behind(struct waiting *w, struct wait_lane *p, struct attempt_mark after)
{
    p->behind = true;
    p->after = after;
    p->prev = w->behind.prev;
    p->next = &w->behind;
    p->prev->next = p->next->prev = p;
}

static void caught_up(struct wait_lane *p)
{
    p->behind = false;
    p->prev->next = p->next;
    p->next->prev = p->prev;
}

/* After a failure: all is gone through again; the bits say what is still here. */
static void start_over(struct waiting *w)
{
    while (w->behind.next != &w->behind) {
        struct wait_lane *p = w->behind.next;
        caught_up(p);
        lane_release(w, p);
    }
    w->passed = FIRST;
    w->next_ms = INT64_MIN;
}

static void free_lanes(struct waiting *w)
{
    struct wait_lane *p, *tmp;
    HASH_ITER(hh, w->lanes, p, tmp)
    {
        HASH_DEL(w->lanes, p);
        free(p);
    }
}

static void count_out(void *arg, uint64_t lane)
{
    struct waiting *w = arg;
    lane_get(w, lane)->out++;
    w->out++;
}

void waiting_halted(struct live *l)
{
    struct waiting *w = l->waiting;
    if (w == NULL)
        return;
    start_over(w);
    free_lanes(w);
    w->out = 0;
    pause_each_handed(l, count_out, w);
    for (uint64_t byte = 0; byte <= l->b.total / 8; byte++) {
        uint8_t out = (uint8_t)(w->known[byte] & ~w->here[byte] & ~l->done_bits[byte]);
        for (unsigned i = 0; out >> i != 0; i++) {
            if (!((out >> i) & 1) || pause_flies(l, byte * 8 + i))
                continue;
            set_bit(w->here, byte * 8 + i, true);
            atomic_fetch_add(&l->retry_wait, 1);
        }
    }
}

void waiting_abandon(struct live *l)
{
    struct waiting *w = l->waiting;
    if (w == NULL)
        return;
    start_over(w);
    for (uint64_t i = 0; i < l->b.total; i++) {
        if (!bit(w->here, i))
            continue;
        set_bit(w->here, i, false);
        atomic_fetch_sub(&l->retry_wait, 1);
    }
    w->next_ms = INT64_MAX;
}

void waiting_free(struct live *l)
{
    struct waiting *w = l->waiting;
    if (w == NULL)
        return;
    free_lanes(w);
    free(w->known);
    free(w->here);
    free(w);
    l->waiting = NULL;
}

/* ---- what is stored of the attempts so far ---- */

static size_t put_varint(unsigned char *p, uint64_t v)
{
    size_t n = 0;
    for (; v >= 0x80; v >>= 7)
        p[n++] = (unsigned char)(v | 0x80);
    p[n++] = (unsigned char)v;
    return n;
}

static size_t encode(const struct keeper *k, const struct done *d, unsigned char *p)
{
    size_t n = put_varint(p, d->r.attempts);
    n += put_varint(p + n, (uint64_t)(d->since_us + k->clock_us));
    for (size_t i = 0; i < STORE_TIMINGS; i++)
        n += put_varint(p + n, d->r.timing_us[i]);
    return n;
}

static bool get_varint(const unsigned char **p, const unsigned char *end, uint64_t *v)
{
    *v = 0;
    for (unsigned shift = 0; *p < end && shift < 64; shift += 7) {
        unsigned char c = *(*p)++;
        *v |= (uint64_t)(c & 0x7f) << shift;
        if (!(c & 0x80))
            return true;
    }
    return false;
}

static int decode(const struct keeper *k, const struct attempt *a, struct again *out)
{
    const unsigned char *p = a->data, *end = p + a->len;
    uint64_t attempts, since;
    bool fine = get_varint(&p, end, &attempts) && get_varint(&p, end, &since);
    for (size_t i = 0; fine && i < STORE_TIMINGS; i++)
        fine = get_varint(&p, end, &out->timing_us[i]);
    if (!fine || p != end || attempts > UINT32_MAX)
        return E_CORRUPT;
    out->page = a->page;
    out->attempts = (uint32_t)attempts;
    out->since_us = (int64_t)since - k->clock_us;
    return 0;
}

/* ---- in and back ---- */

static int64_t clock_ms(const struct keeper *k, int64_t us)
{
    return (us + k->clock_us) / 1000;
}

int waiting_add(struct keeper *k, struct live *l, struct done *d)
{
    /* After every mark: those are of times that have been. */
    int64_t now = clock_ms(k, now_us());
    d->due_ms = clock_ms(k, d->due_us + 999);
    if (d->due_ms <= now)
        d->due_ms = now + 1;
    unsigned char data[DATA_MAX];
    struct attempt a = {
        .at = {.due_ms = d->due_ms, .index = d->r.index},
        .lane = d->lane,
        .page = d->page,
        .data = data,
        .len = encode(k, d, data),
    };
    return store_put_attempt(k->e->store, l->b.no, &a);
}

void waiting_added(struct live *l, const struct done *d)
{
    struct waiting *w = waiting_get(l);
    set_bit(w->known, d->r.index, true);
    set_bit(w->here, d->r.index, true);
    if (d->due_ms < w->next_ms)
        w->next_ms = d->due_ms;
}

void waiting_back(struct live *l, const struct done *d)
{
    struct waiting *w = l->waiting;
    struct wait_lane *p = NULL;
    if (w != NULL)
        HASH_FIND(hh, w->lanes, &d->lane, sizeof(d->lane), p);
    if (p == NULL)
        return;
    ASSERT(p->out > 0 && w->out > 0);
    p->out--;
    w->out--;
    lane_release(w, p);
}

int waiting_cancelled(struct keeper *k, struct live *l, struct result *r)
{
    struct attempt a;
    struct again g;
    int rc = store_attempt(k->e->store, l->b.no, r->index, &a);
    if (rc == 0)
        rc = decode(k, &a, &g);
    if (rc != 0)
        return rc;
    int64_t waited = now_us() - g.since_us;
    r->attempts = g.attempts;
    memcpy(r->timing_us, g.timing_us, sizeof(r->timing_us));
    r->timing_us[TIMING_RETRY_WAIT] += waited > 0 ? (uint64_t)waited : 0;
    return 0;
}

/* ---- out ---- */

static int by_place(const void *a, const void *b)
{
    const struct wait_out *x = a, *y = b;
    if (x->lane != y->lane)
        return x->lane < y->lane ? -1 : 1;
    if (x->again.page != y->again.page)
        return x->again.page < y->again.page ? -1 : 1;
    return x->index < y->index ? -1 : x->index > y->index;
}

/* The records of v[0 .. n), all of one page, into k->scratch. */
static int add_records(struct keeper *k, struct live *l, const struct wait_out *v, size_t n)
{
    struct page p;
    int64_t no = v->again.page;
    int rc = store_lane_page(k->e->store, l->b.no, v->lane, no - 1, &p);
    if (rc != 0 || p.no != no)
        return rc == 0 || rc == E_NOTFOUND ? E_CORRUPT : rc;
    size_t i = 0;
    for (size_t pos = 0, from = 0; i < n && pos < p.len; from = pos) {
        struct item it;
        rc = item_decode(p.data, p.len, &pos, &it);
        if (rc == 0 && it.index == v[i].index) { /* both are in order of index */
            rc = buf_add(&k->scratch, &v[i].again, sizeof(v[i].again));
            if (rc == 0)
                rc = buf_add(&k->scratch, (const char *)p.data + from, pos - from);
            i++;
        }
        if (rc != 0)
            return rc;
    }
    return i == n ? 0 : E_CORRUPT;
}

/* Sends v[0 .. n), all of one lane, to its fetcher. */
static int send_lane(struct keeper *k, struct live *l, const struct wait_out *v, size_t n)
{
    buf_reset(&k->scratch);
    for (size_t i = 0, from = 0; i < n; from = i) {
        while (i < n && v[i].again.page == v[from].again.page)
            i++;
        int rc = add_records(k, l, v + from, i - from);
        if (rc != 0)
            return rc;
    }
    struct msg_page *m = xmalloc(sizeof(*m) + k->scratch.len);
    *m = (struct msg_page){.m = {.type = FETCH_AGAIN},
                           .live = l,
                           .lane = v->lane,
                           .count = (uint32_t)n,
                           .len = k->scratch.len};
    memcpy(m->data, k->scratch.data, k->scratch.len);
    live_ref(l);
    for (size_t i = 0; i < n; i++)
        set_bit(l->waiting->here, v[i].index, false);
    lane_get(l->waiting, v->lane)->out += (uint32_t)n;
    l->waiting->out += n;
    budget_sent(k->e, l, n);
    atomic_fetch_sub(&l->retry_wait, n);
    budget_send_page(k->e, m);
    return 0;
}

static int send_all(struct keeper *k, struct live *l, const struct attempt *v, size_t n)
{
    struct wait_out out[CHUNK];
    size_t some = 0;
    for (size_t i = 0; i < n; i++) {
        if (v[i].at.index >= l->b.total)
            return E_CORRUPT;
        if (!bit(l->waiting->here, v[i].at.index))
            continue;
        struct attempt a;
        struct wait_out *o = &out[some++];
        *o = (struct wait_out){.index = v[i].at.index, .lane = v[i].lane};
        int rc = store_attempt(k->e->store, l->b.no, o->index, &a);
        if (rc == 0)
            rc = decode(k, &a, &o->again);
        if (rc != 0)
            return rc;
    }
    qsort(out, some, sizeof(*out), by_place);
    for (size_t i = 0, from = 0; i < some; from = i) {
        while (i < some && out[i].lane == out[from].lane)
            i++;
        int rc = send_lane(k, l, out + from, i - from);
        if (rc != 0)
            return rc;
    }
    return 0;
}

static uint32_t min_given(uint32_t a, uint32_t b)
{
    return b != 0 && b < a ? b : a;
}

/* Attempts of one lane that its fetcher may have: what it can start at once, and as
 * much again for the time until their results are stored. */
static uint32_t lane_most(const struct keeper *k, const struct live *l, uint64_t window)
{
    if (l->outstanding * 2 > window)
        return LANE_CROWDED;
    uint32_t n = 4 * min_given(min_given(k->e->cfg->max_per_host, l->b.max_per_host),
                               l->b.max_parallel);
    return n < LANE_MIN ? LANE_MIN : n > LANE_MAX ? LANE_MAX : n;
}

/* How many more may go out. The pages that fetchers ask for keep the window full for as long as the
 * batch has very many lanes: attempts don't wait for the end of that. */
static uint64_t room(const struct live *l, uint64_t window)
{
    uint64_t part = window / OWN_PART + 1, out = l->waiting->out;
    uint64_t own = out < part ? part - out : 0;
    uint64_t all = l->outstanding < window ? window - l->outstanding : 0;
    return all > own ? all : own;
}

/* Of lanes that were left behind, when their fetchers have little left of them. */
static int feed_behind(struct keeper *k, struct live *l, uint64_t window)
{
    struct waiting *w = l->waiting;
    for (struct wait_lane *p = w->behind.next, *next; p != &w->behind; p = next) {
        next = p->next;
        uint32_t most = lane_most(k, l, window);
        if (p->out > most / 2)
            continue;
        if (room(l, window) == 0)
            break;
        struct attempt v[CHUNK];
        size_t max = most - p->out < CHUNK ? most - p->out : CHUNK, n;
        int rc = store_lane_due(k->e->store, l->b.no, p->lane, p->after, w->passed, v, max, &n);
        if (rc == 0)
            rc = send_all(k, l, v, n);
        if (rc != 0)
            return rc;
        if (n < max) {
            caught_up(p);
            lane_release(w, p);
        } else {
            p->after = v[n - 1].at;
        }
    }
    return 0;
}

/* The next ones that are due. */
static int feed_due(struct keeper *k, struct live *l, uint64_t window, int64_t now_ms)
{
    struct waiting *w = l->waiting;
    struct attempt v[CHUNK];
    const struct attempt_mark now = {now_ms, UINT64_MAX};
    size_t max = room(l, window) < CHUNK ? (size_t)room(l, window) : CHUNK;
    size_t n, some = 0;
    int rc = store_due(k->e->store, l->b.no, w->passed, now, v, max, &n);
    if (rc != 0)
        return rc;
    uint32_t most = lane_most(k, l, window);
    for (size_t i = 0; i < n; i++) {
        struct attempt a = v[i];
        struct wait_lane *p = lane_get(w, a.lane);
        bool enough = p->out + p->taking >= most;
        if (!p->behind && enough)
            leave_behind(w, p, w->passed);
        w->passed = a.at;
        if (p->behind)
            continue;
        p->taking++;
        v[some++] = a;
    }
    for (size_t i = 0; i < some; i++)
        lane_get(w, v[i].lane)->taking = 0;
    rc = send_all(k, l, v, some);
    for (size_t i = 0; i < some; i++) /* those that nothing was sent of */
        lane_release(w, lane_get(w, v[i].lane));
    if (rc == 0 && n < max) {
        const struct attempt_mark never = {INT64_MAX, UINT64_MAX};
        rc = store_due(k->e->store, l->b.no, w->passed, never, v, 1, &n);
        w->next_ms = n > 0 ? v->at.due_ms : INT64_MAX;
    }
    return rc;
}

int waiting_feed(struct keeper *k, struct live *l, uint64_t window)
{
    struct waiting *w = l->waiting;
    if (w == NULL)
        return 0;
    int rc = feed_behind(k, l, window);
    int64_t now_ms = clock_ms(k, now_us());
    for (int i = 0; rc == 0 && i < CHUNKS_MAX && w->next_ms <= now_ms && room(l, window) > 0; i++)
        rc = feed_due(k, l, window, now_ms);
    if (rc != 0)
        start_over(w);
    return rc;
}

int64_t waiting_wake(const struct keeper *k, const struct live *l, uint64_t window)
{
    const struct waiting *w = l->waiting;
    if (w == NULL || w->next_ms == INT64_MAX || room(l, window) == 0)
        return INT64_MAX;
    int64_t now = now_us(), left = w->next_ms - clock_ms(k, now);
    return left <= 0 ? now : w->next_ms * 1000 - k->clock_us;
}

/* ---- at start ---- */

static int on_attempt(void *arg, uint64_t index)
{
    struct live *l = arg;
    if (index >= l->b.total)
        return E_CORRUPT;
    if ((l->done_bits[index / 8] >> (index % 8)) & 1)
        return 0;
    struct waiting *w = waiting_get(l);
    set_bit(w->known, index, true);
    set_bit(w->here, index, true);
    w->next_ms = INT64_MIN;
    atomic_fetch_add(&l->retry_wait, 1);
    return 0;
}

int waiting_recover(struct keeper *k, struct live *l)
{
    uint32_t longest = l->retry.max_backoff_ms > l->retry.max_retry_after_ms
                           ? l->retry.max_backoff_ms
                           : l->retry.max_retry_after_ms;
    int rc = store_bound_due(k->e->store, l->b.no, clock_ms(k, now_us()) + longest);
    return rc != 0 ? rc : store_attempts(k->e->store, l->b.no, on_attempt, l);
}
