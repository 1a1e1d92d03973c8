/* Submissions on their way in: items are gathered into pieces of some thousand, grouped by host
 * into pages, and given to the keeper, which stages them on disk. Runs on the api thread, but for
 * upload_piece_done and the reference count. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/budget.h"
#include "server/metrics.h"
#include "storage/fault.h"

enum {
    PIECE_ITEMS = 16384, /* large enough to group by host, small beside the memory bound */
    PIECE_BYTES = 4 * 1024 * 1024,
    PIECE_SHORT = 8 * 1024, /* … when memory is short */
    PIECE_BYTES_MAX = 64 * 1024 * 1024,
    FIRST_ENTRIES = 64,
    RESERVE = 65536, /* requests that room is made for at once */
    PENDING_MAX = 2, /* pieces on their way to the disk before the client is stopped */
    PAGE_ITEMS = 32, /* a slow host's first page fills this much of the window */
    PAGE_BYTES = 64 * 1024,
};

uint64_t lane_of_host(const char *host, size_t len)
{
    uint64_t h = hash64(host, len, 0);
    return h == LANE_INVALID ? 1 : h;
}

int upload_new(struct engine *e, struct upload **out)
{
    *out = NULL;
    if (atomic_load(&e->draining) || atomic_load(&e->stopping))
        return E_STOPPING;
    disk_look(e->disk);
    int rc = disk_refuses(e->disk);
    if (rc != 0)
        return rc;
    if (atomic_fetch_add(&e->uploads, 1) >= e->memory.max_uploads ||
        atomic_load(&e->live_bytes) + budget_batch_cost(0) > (int64_t)e->memory.batches) {
        atomic_fetch_sub(&e->uploads, 1);
        metric_add(METRIC_PRESSURE + METRIC_PRESSURE_BATCHES, 1);
        return E_BUSY;
    }
    struct upload *u = xcalloc(1, sizeof(*u));
    atomic_init(&u->refs, 1);
    u->engine = e;
    buf_init(&u->chunk, PIECE_BYTES_MAX);
    pthread_mutex_init(&u->mutex, NULL);
    *out = u;
    return 0;
}

static void upload_ref(struct upload *u)
{
    atomic_fetch_add(&u->refs, 1);
}

void upload_charge(struct upload *u, size_t *mine, size_t now)
{
    atomic_fetch_add(&u->engine->upload_bytes, (int64_t)now - (int64_t)*mine);
    *mine = now;
}

static void charge_buffers(struct upload *u)
{
    upload_charge(u, &u->charged, u->chunk.cap + u->cap_entries * sizeof(*u->entries));
}

static void drop_buffers(struct upload *u)
{
    buf_fini(&u->chunk);
    free(u->entries);
    u->entries = NULL;
    u->cap_entries = 0;
    charge_buffers(u);
}

bool upload_crowded(const struct upload *u, size_t mine)
{
    return atomic_load(&u->engine->upload_bytes) - (int64_t)mine >
           (int64_t)(u->engine->memory.uploads / 2);
}

void upload_unref(struct upload *u)
{
    if (atomic_fetch_sub(&u->refs, 1) != 1)
        return;
    drop_buffers(u);
    atomic_fetch_sub(&u->engine->live_bytes, u->reserved);
    atomic_fetch_sub(&u->engine->uploads, 1);
    pthread_mutex_destroy(&u->mutex);
    free(u);
}

/* Stable: by lane, then in order of arrival (positions ascend). */
static int by_lane(const void *a, const void *b)
{
    const struct entry *x = a, *y = b;
    if (x->lane != y->lane)
        return x->lane < y->lane ? -1 : 1;
    return x->pos < y->pos ? -1 : x->pos > y->pos;
}

/* Turns the gathered records into a message of pages. NULL: there are none. */
static struct msg_pages *make_piece(struct upload *u)
{
    if (u->n_entries == 0)
        return NULL;
    qsort(u->entries, u->n_entries, sizeof(*u->entries), by_lane);

    struct msg_pages *m = xcalloc(1, sizeof(*m));
    m->m.type = KEEPER_PAGES;
    m->upload = u;
    upload_ref(u);
    m->pages = xcalloc(u->n_entries, sizeof(*m->pages));
    buf_init(&m->buf, PIECE_BYTES_MAX);
    int rc = buf_reserve(&m->buf, u->chunk.len); /* pointers into it must stay */
    ASSERT(rc == 0);

    struct page *p = NULL;
    for (size_t i = 0; i < u->n_entries; i++) {
        const struct entry *en = &u->entries[i];
        if (p == NULL || p->lane != en->lane || p->count >= PAGE_ITEMS ||
            p->len + en->len > PAGE_BYTES) {
            p = &m->pages[m->n++];
            p->no = u->pages++;
            p->lane = en->lane;
            p->data = m->buf.data + m->buf.len;
        }
        memcpy(m->buf.data + m->buf.len, u->chunk.data + en->pos, en->len);
        m->buf.len += en->len;
        p->len += en->len;
        p->count++;
    }
    m->pages = xrealloc(m->pages, m->n * sizeof(*m->pages));
    buf_reset(&u->chunk);
    u->n_entries = 0;
    if (upload_crowded(u, u->charged))
        drop_buffers(u);
    upload_charge(u, &m->charged, m->buf.cap + m->n * sizeof(*m->pages));
    atomic_fetch_add(&u->under_way, m->charged);
    return m;
}

static void send_piece(struct upload *u)
{
    struct msg_pages *m = make_piece(u);
    if (m == NULL)
        return;
    FAULT_POINT("submission.piece.before");
    pthread_mutex_lock(&u->mutex);
    u->pending++;
    pthread_mutex_unlock(&u->mutex);
    inbox_put(&u->engine->inbox, &m->m);
}

/* Room for the bits of a batch that goes on growing. */
static int reserve(struct upload *u)
{
    struct engine *e = u->engine;
    int64_t more = budget_batch_cost(u->count + RESERVE) - u->reserved;
    if (atomic_fetch_add(&e->live_bytes, more) + more > (int64_t)e->memory.batches) {
        atomic_fetch_sub(&e->live_bytes, more);
        metric_add(METRIC_PRESSURE + METRIC_PRESSURE_BATCHES, 1);
        return E_BUSY;
    }
    u->reserved += more;
    return 0;
}

/* Small pieces make many small pages, so it takes others to make them small. */
static size_t piece_bytes(const struct upload *u)
{
    size_t part = u->engine->memory.uploads / 8;
    if (u->chunk.len >= PIECE_SHORT && upload_crowded(u, u->charged + atomic_load(&u->under_way)))
        return PIECE_SHORT;
    return part < PIECE_BYTES ? part : PIECE_BYTES;
}

static void add_entry(struct upload *u, struct entry en)
{
    if (u->n_entries == u->cap_entries) {
        u->cap_entries = u->cap_entries == 0 ? FIRST_ENTRIES : u->cap_entries * 2;
        u->entries = xrealloc(u->entries, u->cap_entries * sizeof(*u->entries));
    }
    u->entries[u->n_entries++] = en;
}

int upload_add(struct upload *u, const struct item *it, const char *host)
{
    int rc = atomic_load(&u->rc);
    if (rc != 0)
        return rc;
    if (u->count >= u->engine->cfg->max_urls)
        return E_LIMIT;
    if (u->count > 0 && u->count % RESERVE == 0)
        rc = reserve(u);
    if (rc != 0)
        return rc;
    struct item copy = *it;
    copy.index = u->count;
    size_t pos = u->chunk.len;
    rc = item_encode(&u->chunk, &copy);
    if (rc != 0)
        return rc;
    add_entry(u,
              (struct entry){
                  .lane = it->invalid.ptr != NULL ? LANE_INVALID : lane_of_host(host, strlen(host)),
                  .pos = (uint32_t)pos,
                  .len = (uint32_t)(u->chunk.len - pos),
              });
    u->count++;
    charge_buffers(u);
    if (u->n_entries == PIECE_ITEMS || u->chunk.len >= piece_bytes(u))
        send_piece(u);
    return 0;
}

bool upload_wait(struct upload *u, upload_fn *fn, void *arg)
{
    pthread_mutex_lock(&u->mutex);
    bool wait = u->pending >= PENDING_MAX || (u->pending > 0 && upload_crowded(u, 0));
    if (wait) {
        u->wait_fn = fn;
        u->wait_arg = arg;
    }
    pthread_mutex_unlock(&u->mutex);
    metric_add(METRIC_PRESSURE + METRIC_PRESSURE_UPLOAD, wait);
    return wait;
}

void upload_piece_done(struct upload *u, int rc)
{
    int ok = 0;
    if (rc != 0)
        atomic_compare_exchange_strong(&u->rc, &ok, rc);
    pthread_mutex_lock(&u->mutex);
    u->pending--;
    upload_fn *fn = u->wait_fn;
    void *arg = u->wait_arg;
    u->wait_fn = NULL;
    pthread_mutex_unlock(&u->mutex);
    if (fn != NULL)
        fn(arg);
}

uint64_t upload_count(const struct upload *u)
{
    return u->count;
}

void upload_commit(struct upload *u, const struct upload_settings *s, upload_done_fn *fn, void *arg)
{
    send_piece(u);
    u->ended = true;

    struct msg_commit *m = xcalloc(1, sizeof(*m));
    m->m.type = KEEPER_COMMIT;
    m->upload = u;
    upload_ref(u);
    m->fn = fn;
    m->arg = arg;

    snprintf(m->request, sizeof(m->request), "%s", log_request_id());

    struct batch *b = &m->b;
    b->state = BATCH_OPEN;
    b->total = u->count;
    b->pages = u->pages;
    b->max_parallel = s->max_parallel;
    b->max_per_host = s->max_per_host;
    b->max_redirects = s->max_redirects;
    b->rate_per_host = s->rate_per_host;
    b->priority = s->priority;
    b->http_version = s->http_version;
    b->retry = s->retry;
    b->expires_after_s = s->expires_after_s;
    b->name = s->name != NULL ? xstrdup(s->name) : NULL;
    b->metadata = s->metadata != NULL ? xstrdup(s->metadata) : NULL;
    b->idem_key = s->idem_key != NULL ? xstrdup(s->idem_key) : NULL;
    b->retry_of = s->retry_of != NULL ? xstrdup(s->retry_of) : NULL;
    memcpy(b->idem_hash, s->idem_hash, sizeof(b->idem_hash));

    struct buf defaults;
    buf_init(&defaults, PIECE_BYTES_MAX);
    int rc = item_encode(&defaults, &s->defaults);
    ASSERT(rc == 0); /* the parser's bounds are far below */
    b->defaults = defaults.data;
    b->defaults_len = defaults.len;
    inbox_put(&u->engine->inbox, &m->m);
}

void upload_release(struct upload *u)
{
    if (u == NULL)
        return;
    if (!u->ended) {
        struct msg_abort *m = xcalloc(1, sizeof(*m));
        m->m.type = KEEPER_ABORT;
        m->upload = u; /* our reference goes with it */
        inbox_put(&u->engine->inbox, &m->m);
        return;
    }
    upload_unref(u);
}
