/* Bodies as they come in, and results on their way to the keeper: written into one block of
 * memory for all that ends in a turn. Runs on the fetcher's thread. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>

#include "server/fetch.h"
#include "server/fetch_int.h"
#include "server/metrics.h"
#include "storage/fault.h"

enum {
    BLOCK_BYTES = 128 * 1024,
    BLOCKS_KEPT = 32,
    FLUSH_US = 2000, /* between two messages to the keeper, which each wake it */
    BLOCK_TOUCHED = 8 * 1024,
    SPILLED_COST = 16 * 1024,                  /* not memory, but work for the disk */
    COPY_BODY = 16 * 1024,                     /* a larger body's memory is handed over instead */
    STORABLE = 1000 * 1000 * 1000 - 64 * 1024, /* SQLite's longest row, 10^9 bytes, less the rest */
};

/* ---- bodies ---- */

static size_t counted(const struct buf *b)
{
    return b->cap > BODY_SMALL ? b->cap : 0;
}

bool body_charge(struct transfer *t)
{
    struct engine *e = t->f->e;
    size_t now = counted(&t->body) + counted(&t->fields_in) + counted(&t->redirects);
    if (now != t->charged) {
        atomic_fetch_add(&e->bodies, (int64_t)now - (int64_t)t->charged);
        t->charged = now;
    }
    return atomic_load_explicit(&e->bodies, memory_order_relaxed) < (int64_t)e->memory.bodies;
}

/* How much of a body stays in memory before it goes to the file. */
static size_t held_most(const struct transfer *t)
{
    const struct engine *e = t->f->e;
    int64_t used = atomic_load_explicit(&e->bodies, memory_order_relaxed);
    if (used >= (int64_t)e->memory.bodies)
        return BODY_SMALL;
    bool some = used >= (int64_t)(e->memory.bodies / 2) || t->spill.len > 0;
    return some ? HELD_SOME : HELD_MOST;
}

uint64_t body_max(const struct transfer *t)
{
    uint64_t max = t->item.has_max_body_bytes ? t->item.max_body_bytes
                                              : t->f->e->cfg->max_body_bytes;
    return max < STORABLE ? max : STORABLE;
}

/* What is announced and has not come, so that it is reckoned with (disk.h). */
static void announce(struct transfer *t)
{
    uint64_t max = body_max(t), length = t->length < max ? t->length : max;
    uint64_t comes = t->has_length && length > t->body_len ? length - t->body_len : 0;
    if (comes <= HELD_MOST)
        comes = 0;
    if (comes != t->announced) {
        disk_announce(t->f->e->disk, (int64_t)(comes - t->announced));
        t->announced = comes;
    }
}

static int keep(struct transfer *t, const char *p, size_t n)
{
    size_t most = held_most(t);
    int rc = 0;
    if (t->body.len + n <= most) {
        rc = buf_add(&t->body, p, n);
    } else {
        if (most == BODY_SMALL)
            metric_add(METRIC_PRESSURE + METRIC_PRESSURE_BODIES, 1);
        if (!disk_may_spill(t->f->e->disk, t->body.len + n)) {
            t->space_refused = true;
            return E_FULL;
        }
        if (t->body.len > 0)
            rc = spill_add(&t->spill, t->body.data, t->body.len);
        if (rc == 0)
            rc = spill_add(&t->spill, p, n);
        if (t->body.cap > most)
            buf_fini(&t->body);
        buf_reset(&t->body);
    }
    (void)body_charge(t);
    return rc;
}

size_t body_write(struct transfer *t, const char *p, size_t n)
{
    uint64_t max = body_max(t);
    size_t take = n;
    if (take > max - t->body_len) {
        take = (size_t)(max - t->body_len);
        t->too_large = true;
    }
    if (t->body_len == 0 || t->announced > 0)
        announce(t);
    int rc = take > 0 ? keep(t, p, take) : 0;
    if (rc != 0) {
        t->no_space = rc;
        return 0;
    }
    t->body_len += take;
    return t->too_large ? 0 : n;
}

/* Nothing more of it comes. */
static void body_settle(struct transfer *t)
{
    if (t->announced > 0)
        disk_announce(t->f->e->disk, -(int64_t)t->announced);
    t->announced = 0;
}

void body_drop(struct transfer *t)
{
    body_settle(t);
    t->body_len = 0;
    buf_reset(&t->body);
    spill_free(&t->spill);
}

/* ---- results ---- */

static struct msg_results *block_new(struct engine *e, size_t cap)
{
    struct msg_results *m = NULL;
    if (cap == BLOCK_BYTES) {
        pthread_mutex_lock(&e->block_mutex);
        m = e->blocks;
        if (m != NULL) {
            e->blocks = (struct msg_results *)m->m.next;
            e->n_blocks--;
        }
        pthread_mutex_unlock(&e->block_mutex);
    }
    if (m == NULL)
        m = xmalloc(sizeof(*m) + cap);
    memset(m, 0, sizeof(*m));
    m->m.type = KEEPER_RESULTS;
    m->cap = cap;
    m->tail = &m->first;
    m->soonest_us = INT64_MAX;
    return m;
}

void out_block_free(struct engine *e, struct msg_results *m)
{
    bool keep = m->cap == BLOCK_BYTES;
    if (keep) {
        pthread_mutex_lock(&e->block_mutex);
        keep = e->n_blocks < BLOCKS_KEPT;
        if (keep) {
            m->m.next = (struct msg *)e->blocks;
            e->blocks = m;
            e->n_blocks++;
        }
        pthread_mutex_unlock(&e->block_mutex);
    }
    if (!keep)
        free(m);
}

void out_flush(struct fetcher *f)
{
    FAULT_POINT("completion.flush.before");
    struct msg_results *m = f->out;
    if (m == NULL)
        return;
    f->out = NULL;
    f->flush_due = f->now + FLUSH_US;
    /* What it stands for is pages that were touched, however little is in it. */
    m->bytes += (sizeof(*m) + m->used + BLOCK_TOUCHED - 1) / BLOCK_TOUCHED * BLOCK_TOUCHED;
    atomic_fetch_add(&f->e->unwritten, (int64_t)m->bytes);
    inbox_put(&f->e->inbox, &m->m);
}

int64_t out_turn(struct fetcher *f)
{
    if (f->out == NULL)
        return INT64_MAX;
    if (f->now < f->flush_due)
        return f->flush_due;
    out_flush(f);
    return INT64_MAX;
}

/* Room for a result whose strings take `need` bytes. */
static struct done *reserve(struct fetcher *f, size_t need)
{
    need += sizeof(struct done) + 16;
    if (f->out != NULL && f->out->cap - f->out->used < need)
        out_flush(f);
    if (f->out == NULL)
        f->out = block_new(f->e, need > BLOCK_BYTES ? need : BLOCK_BYTES);
    struct msg_results *m = f->out;
    m->used = (m->used + 15) & ~(size_t)15;
    struct done *d = (struct done *)(void *)(m->mem + m->used);
    memset(d, 0, sizeof(*d));
    m->used += sizeof(*d);
    *m->tail = d;
    m->tail = &d->next;
    return d;
}

static struct span put(struct fetcher *f, struct span s)
{
    if (s.ptr == NULL)
        return s;
    struct msg_results *m = f->out;
    char *to = m->mem + m->used;
    ASSERT(s.len <= m->cap - m->used);
    if (s.len > 0)
        memcpy(to, s.ptr, s.len);
    m->used += s.len;
    return (struct span){to, s.len};
}

static struct span text(const char *s)
{
    return s == NULL || *s == '\0' ? (struct span){0} : (struct span){s, strlen(s)};
}

static struct span of_buf(const struct buf *b)
{
    return b->len == 0 ? (struct span){0} : (struct span){b->data, b->len};
}

/* store_read_fn: first what was spilled, then what was still in memory. */
static int read_body(void *arg, uint64_t at, void *p, size_t len)
{
    const struct done *d = arg;
    char *to = p;
    if (at < d->spill.len) {
        uint64_t left = d->spill.len - at;
        size_t n = len < left ? len : (size_t)left;
        int rc = spill_read(&d->spill, at, to, n);
        if (rc != 0)
            return rc;
        to += n;
        at += n;
        len -= n;
    }
    if (len == 0)
        return 0;
    at -= d->spill.len;
    if (at > d->r.body.len || len > d->r.body.len - at)
        return E_IO;
    memcpy(to, d->r.body.ptr + at, len);
    return 0;
}

/* The body's memory goes with the result, and stays counted. */
static void give_body(struct transfer *t, struct done *d)
{
    d->owned_body = t->body.data;
    d->owned_bytes = counted(&t->body);
    d->r.body = (struct span){t->body.data, t->body.len};
    t->f->out->bytes += t->body.cap;
    t->charged -= d->owned_bytes;
    buf_init(&t->body, HELD_MOST);
}

static void put_body(struct transfer *t, struct done *d)
{
    struct result *r = &d->r;
    body_settle(t);
    r->body_len = t->status != 0 ? t->body_len : 0; /* a length without a body cannot be stored */
    if (t->spill.len > 0) {
        if (t->body.len > 0)
            give_body(t, d);
        d->spill = t->spill;
        spill_init(&t->spill, d->spill.file);
        r->body_read = read_body;
        r->body_arg = d;
        t->f->out->bytes += SPILLED_COST;
    } else if (t->body.len > COPY_BODY) {
        give_body(t, d);
    } else if (t->status != 0) { /* an empty body is a body too */
        r->body = put(t->f, (struct span){t->body.len > 0 ? t->body.data : "", t->body.len});
    }
}

void out_done_free(struct engine *e, struct done *d)
{
    free(d->owned_body);
    if (d->owned_bytes > 0)
        atomic_fetch_sub(&e->bodies, (int64_t)d->owned_bytes);
    if (d->spill.file != NULL)
        spill_free(&d->spill);
}

static void put_origin(struct done *d, const struct transfer *t)
{
    d->handed = t->handed;
    d->lane = t->home;
    d->page = t->page;
    d->r.index = t->item.index;
    d->r.attempts = t->attempts;
    memcpy(d->r.timing_us, t->timing, sizeof(d->r.timing_us));
}

void out_again(struct transfer *t, int64_t due_us)
{
    struct fetcher *f = t->f;
    struct done *d = reserve(f, 0);
    d->live = t->live;
    t->live = NULL;
    put_origin(d, t);
    d->again = true;
    d->since_us = f->now;
    d->due_us = due_us;
    if (due_us < f->out->soonest_us)
        f->out->soonest_us = due_us;
}

void out_result(struct transfer *t, const struct verdict *v)
{
    struct fetcher *f = t->f;
    struct span message = text(v->message), ip = text(t->remote_ip);
    struct span fields = t->status != 0 ? of_buf(&t->fields_in) : (struct span){0};
    struct span redirects = of_buf(&t->redirects);
    bool fetched = t->attempts > 0;
    struct span final = fetched ? t->url.text : (struct span){0};
    if (fetched && final.len == t->item.url.len &&
        memcmp(final.ptr, t->item.url.ptr, final.len) == 0)
        final = (struct span){0}; /* the same */
    bool copied = t->spill.len == 0 && t->body.len <= COPY_BODY;
    size_t small_body = copied ? t->body.len : 0;
    struct done *d = reserve(f, message.len + ip.len + fields.len + redirects.len + final.len +
                                    t->item.url.len + t->item.custom_id.len + small_body);
    struct result *r = &d->r;
    d->live = t->live;
    t->live = NULL;
    put_origin(d, t);
    r->status = v->outcome == OUTCOME_NONE ? RESULT_SUCCEEDED : RESULT_FAILED;
    r->http_status = t->status;
    r->http_version = t->version;
    r->error = (int)v->outcome;
    r->error_message = put(f, message);
    r->truncated = t->truncated;
    r->url = put(f, t->item.url);
    r->final_url = put(f, final);
    r->custom_id = put(f, t->item.custom_id);
    r->headers = put(f, fields);
    r->redirects = put(f, redirects);
    r->remote_ip = put(f, ip);
    r->completed_ms = wall_ms();
    put_body(t, d);
}

static struct done *out_failed(struct fetcher *f, struct live *l, const struct item *it,
                               enum outcome error, struct span message)
{
    struct done *d = reserve(f, it->url.len + it->custom_id.len + message.len);
    struct result *r = &d->r;
    d->live = l;
    r->index = it->index;
    r->status = RESULT_FAILED;
    r->error = (int)error;
    r->error_message = put(f, message);
    r->url = put(f, it->url);
    r->custom_id = put(f, it->custom_id);
    int64_t waited = f->now - l->accept_us;
    r->timing_us[TIMING_QUEUED] = waited > 0 ? (uint64_t)waited : 0;
    r->completed_ms = wall_ms();
    return d;
}

void out_invalid(struct fetcher *f, struct live *l, const struct item *it)
{
    (void)out_failed(f, l, it, OUTCOME_INVALID_URL, it->invalid);
}

void out_damaged(struct fetcher *f, const struct msg_page *m, const struct item *it)
{
    static const char why[] = "the request as stored cannot be read: its page is damaged";
    struct done *d = out_failed(f, m->live, it, OUTCOME_INTERNAL,
                                (struct span){why, sizeof(why) - 1});
    d->handed = m->m.type == FETCH_AGAIN;
    d->lane = m->lane;
}
