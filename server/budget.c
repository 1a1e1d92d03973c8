/* See budget.h. */
#include "server/budget.h"

#include <stdlib.h>

#include "server/fetch.h"
#include "server/metrics.h"

enum {
    WINDOW_MAX = 65536, /* requests of one batch with the fetchers */
    WINDOW_MIN = 2048,  /* … while there is room, however many batches there are */
    IDLE_CONNECTION = 4096,
};

/* ---- requests with the fetchers ---- */

void budget_send_page(struct engine *e, struct msg_page *m)
{
    m->cost = sizeof(*m) + m->len + MEMORY_LANE;
    atomic_fetch_add(&e->queued_bytes, (int64_t)m->cost);
    fetcher_put(engine_fetcher(e, m->lane), &m->m);
}

void budget_free_page(struct engine *e, struct msg_page *m)
{
    if (m != NULL && m->cost > 0)
        atomic_fetch_sub(&e->queued_bytes, (int64_t)m->cost);
    free(m);
}

void budget_sent(struct engine *e, struct live *l, uint64_t n)
{
    l->outstanding += n;
    atomic_fetch_add(&e->queued, (int64_t)n);
}

void budget_back(struct engine *e, struct live *l, uint64_t n)
{
    if (n > l->outstanding) /* it was forgotten before they came */
        n = l->outstanding;
    l->outstanding -= n;
    atomic_fetch_sub(&e->queued, (int64_t)n);
}

void budget_forget(struct engine *e, struct live *l)
{
    budget_back(e, l, l->outstanding);
}

bool budget_crowded(const struct engine *e)
{
    return atomic_load(&e->queued) >= e->memory.window_requests / 2 ||
           atomic_load(&e->queued_bytes) >= (int64_t)(e->memory.window / 2);
}

bool budget_full(const struct engine *e)
{
    return atomic_load(&e->queued_bytes) >= (int64_t)e->memory.window;
}

uint64_t budget_window(const struct engine *e, uint64_t n_live)
{
    uint64_t all = e->memory.window_requests, part = all / n_live;
    if (atomic_load(&e->queued) >= (int64_t)all) /* parts were larger when batches were fewer */
        return 1;
    if (budget_crowded(e))
        return part / 2 > 0 ? part / 2 : 1;
    uint64_t least = all < WINDOW_MIN ? all : WINDOW_MIN;
    return part > WINDOW_MAX ? WINDOW_MAX : part < least ? least : part;
}

/* ---- unfinished batches ---- */

int64_t budget_batch_cost(uint64_t requests)
{
    /* Bits: done; failed once, waiting for another attempt; and one a page, of which there may be
     * as many as requests. */
    return MEMORY_BATCH + (int64_t)(requests / 2);
}

/* ---- transfers ---- */

static int64_t in_use(const struct engine *e)
{
    int64_t running = (int64_t)e->global.limit - atomic_load(&e->global.free);
    int64_t idle = atomic_load(&e->fds) - running;
    int64_t tls = atomic_load(&e->tls_open), tls_running = atomic_load(&e->tls_running);
    return running * MEMORY_TRANSFER + (idle > 0 ? idle : 0) * IDLE_CONNECTION +
           (tls > tls_running ? tls : tls_running) * MEMORY_TLS;
}

bool budget_transfers_full(const struct engine *e)
{
    return in_use(e) > (int64_t)atomic_load(&e->transfer_bytes);
}

bool budget_transfers_tight(const struct engine *e)
{
    uint64_t all = atomic_load(&e->transfer_bytes);
    return in_use(e) > (int64_t)(all - all / 8);
}

/* ---- for people ---- */

void budget_show(const struct engine *e)
{
    const struct memory_plan *p = &e->memory;
    const int64_t rows[][3] = {
        {METRIC_BUDGET_TRANSFERS, (int64_t)p->transfers, in_use(e)},
        {METRIC_BUDGET_BODIES, (int64_t)p->bodies, atomic_load(&e->bodies)},
        {METRIC_BUDGET_WINDOW, (int64_t)p->window, atomic_load(&e->queued_bytes)},
        {METRIC_BUDGET_BATCHES, (int64_t)p->batches, atomic_load(&e->live_bytes)},
        {METRIC_BUDGET_UNWRITTEN, (int64_t)p->unwritten, atomic_load(&e->unwritten)},
        {METRIC_BUDGET_UPLOADS, (int64_t)p->uploads, atomic_load(&e->upload_bytes)},
    };
    for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
        metric_set(METRIC_MEMORY_BUDGET + (unsigned)rows[i][0], rows[i][1]);
        metric_set(METRIC_MEMORY_USED + (unsigned)rows[i][0], rows[i][2]);
    }
    metric_set(METRIC_MEMORY_BUDGET + METRIC_BUDGET_ANSWERS, (int64_t)p->answers);
}
