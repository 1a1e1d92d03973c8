/* Bodies as they come in, and results on their way to the keeper: written into one block of
 * memory for all that ends in a turn. Runs on the fetcher's thread. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "server/fetch.h"
#include "server/fetch_int.h"

enum {
    BLOCK_BYTES = 128 * 1024,
    BLOCKS_KEPT = 32,
    FLUSH_US = 2000, /* between two messages to the keeper, which each wake it */
    BLOCK_TOUCHED = 8 * 1024,
    IN_MEMORY_MAX = 32 * 1024 * 1024, /* of large bodies for which there is no descriptor */
    COPY_BODY = 16 * 1024,            /* a larger body's memory is handed over instead */
    STORABLE = 1000 * 1000 * 1000 - 64 * 1024, /* SQLite's longest row, 10^9 bytes, less the rest */
};

/* ---- bodies ---- */

/* No descriptor is free for a file. The body stays in memory while not too many do; else the
 * request is made again later, if it may be. */
static int stay(struct transfer *t)
{
    struct fetcher *f = t->f;
    if (f->in_memory > IN_MEMORY_MAX && may_repeat(t)) {
        t->no_descriptor = true;
        return E_IO;
    }
    t->in_memory = true;
    t->body.max = STORABLE;
    f->in_memory += t->body.len;
    return 0;
}

/* It is not of this transfer any more. */
static void leave_memory(struct transfer *t)
{
    if (t->in_memory)
        t->f->in_memory -= t->body.len;
    t->in_memory = false;
    t->body.max = SPILL_BYTES;
}

/* From memory to a file without a name in the data directory, so that many large bodies at once
 * don't fill the memory. */
static int spill(struct transfer *t)
{
    t->spill_fd = open(t->f->e->cfg->data, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (t->spill_fd < 0)
        return errno == EMFILE || errno == ENFILE || errno == ENOMEM ? stay(t) : E_IO;
    atomic_fetch_add(&t->f->e->fds, 1);
    size_t done = 0;
    while (done < t->body.len) {
        ssize_t n = write(t->spill_fd, t->body.data + done, t->body.len - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return E_IO;
        done += (size_t)n;
    }
    buf_reset(&t->body);
    return 0;
}

static int keep(struct transfer *t, const char *p, size_t n)
{
    if (t->spill_fd < 0 && !t->in_memory && t->body.len + n > SPILL_BYTES) {
        int rc = spill(t);
        if (rc != 0)
            return rc;
    }
    if (t->spill_fd < 0) {
        int rc = buf_add(&t->body, p, n);
        if (rc == 0 && t->in_memory)
            t->f->in_memory += n;
        return rc;
    }
    while (n > 0) {
        ssize_t w = write(t->spill_fd, p, n);
        if (w < 0 && errno == EINTR)
            continue;
        if (w <= 0)
            return E_IO;
        p += w;
        n -= (size_t)w;
    }
    return 0;
}

uint64_t body_max(const struct transfer *t)
{
    uint64_t max = t->item.has_max_body_bytes ? t->item.max_body_bytes
                                              : t->f->e->cfg->max_body_bytes;
    return max < STORABLE ? max : STORABLE;
}

size_t body_write(struct transfer *t, const char *p, size_t n)
{
    uint64_t max = body_max(t);
    size_t take = n;
    if (take > max - t->body_len) {
        take = (size_t)(max - t->body_len);
        t->too_large = true;
    }
    if (take > 0 && keep(t, p, take) != 0) {
        t->no_space = true;
        return 0;
    }
    t->body_len += take;
    return t->too_large ? 0 : n;
}

void body_drop(struct transfer *t)
{
    if (t->in_memory) {
        leave_memory(t);
        buf_fini(&t->body);
    }
    t->body_len = 0;
    buf_reset(&t->body);
    if (t->spill_fd >= 0) {
        close(t->spill_fd);
        atomic_fetch_sub(&t->f->e->fds, 1);
    }
    t->spill_fd = -1;
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
    d->r.body_fd = -1;
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

static void put_body(struct transfer *t, struct done *d)
{
    struct result *r = &d->r;
    r->body_len = t->body_len;
    if (t->spill_fd >= 0) {
        r->body_fd = t->spill_fd;
        t->spill_fd = -1;
        t->f->out->bytes += SPILL_BYTES; /* not memory, but a descriptor and work for the disk */
    } else if (t->body.len > COPY_BODY) {
        d->owned_body = t->body.data;
        r->body = (struct span){t->body.data, t->body.len};
        t->f->out->bytes += t->body.cap;
        leave_memory(t);
        buf_init(&t->body, SPILL_BYTES);
    } else if (t->status != 0) { /* an empty body is a body too */
        r->body = put(t->f, (struct span){t->body.len > 0 ? t->body.data : "", t->body.len});
    }
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
    size_t small_body = t->body.len <= COPY_BODY ? t->body.len : 0;
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

void out_invalid(struct fetcher *f, struct live *l, const struct item *it)
{
    struct done *d = reserve(f, it->url.len + it->custom_id.len + it->invalid.len);
    struct result *r = &d->r;
    d->live = l;
    r->index = it->index;
    r->status = RESULT_FAILED;
    r->error = OUTCOME_INVALID_URL;
    r->error_message = put(f, it->invalid);
    r->url = put(f, it->url);
    r->custom_id = put(f, it->custom_id);
    int64_t waited = f->now - l->accept_us;
    r->timing_us[TIMING_QUEUED] = waited > 0 ? (uint64_t)waited : 0;
    r->completed_ms = wall_ms();
}
