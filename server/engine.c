/* The engine's facade: start and stop, and what the api thread asks of running batches. */
#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "server/engine_int.h"
#include "server/fetch.h"
#include "server/retain.h"
#include "server/tls.h"
#include "storage/fault.h"

enum {
    MANY_FDS = 16384,
    OTHER_FDS = 64, /* database, log, listening socket, spilled bodies' headroom */
};

/* ---- the table of live batches; engine.mutex held ---- */

static struct live **bucket(struct engine *e, const char *id)
{
    return &e->buckets[hash64(id, strlen(id), 0) % LIVE_BUCKETS];
}

struct live *engine_lookup(struct engine *e, const char *id)
{
    struct live *l = *bucket(e, id);
    while (l != NULL && strcmp(l->b.id, id) != 0)
        l = l->bucket_next;
    return l;
}

struct live *engine_shown(struct engine *e, const char *id)
{
    struct live *l = engine_lookup(e, id);
    return l != NULL && l->b.state != BATCH_DELETED ? l : NULL;
}

void engine_insert(struct engine *e, struct live *l)
{
    struct live **p = bucket(e, l->b.id);
    l->bucket_next = *p;
    *p = l;
}

void engine_remove(struct engine *e, struct live *l)
{
    for (struct live **p = bucket(e, l->b.id); *p != NULL; p = &(*p)->bucket_next) {
        if (*p == l) {
            *p = l->bucket_next;
            return;
        }
    }
}

static double rate(const struct live *l)
{
    int64_t now = now_us() / 1000000;
    int64_t age = now - l->accept_us / 1000000;
    uint64_t n = 0;
    /* whole seconds only, but for a batch that has not run one yet */
    for (unsigned i = 0; i < RATE_SLOTS; i++) {
        int64_t ago = now - l->rate[i].second;
        if (ago < RATE_SLOTS - 1 && (ago >= 1 || age < 1))
            n += l->rate[i].n;
    }
    int64_t span = age < 1 ? 1 : age < RATE_SLOTS - 2 ? age : RATE_SLOTS - 2;
    return (double)n / (double)span;
}

void engine_view(struct live *l, struct batch_view *v)
{
    v->b = l->b;
    uint64_t done = l->b.succeeded + l->b.failed + l->b.cancelled;
    uint64_t left = l->b.total - done;
    /* A cancelled request may have its result while it is still being dropped. */
    v->in_flight = atomic_load(&l->in_flight);
    v->b.started_ms = atomic_load(&l->started_ms); /* after: it is set before the other grows */
    if (v->in_flight > left)
        v->in_flight = left;
    left -= v->in_flight;
    v->retry_wait = atomic_load(&l->stopped) ? 0 : atomic_load(&l->retry_wait);
    if (v->retry_wait > left)
        v->retry_wait = left;
    v->queued = left - v->retry_wait;
    v->rate_per_s = rate(l);
}

struct fetcher *engine_fetcher(const struct engine *e, uint64_t lane)
{
    return e->fetchers[(lane >> 32) % e->n_fetchers];
}

/* ---- start and stop ---- */

static unsigned cores(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof(set), &set) != 0)
        return 1;
    return (unsigned)CPU_COUNT(&set);
}

static unsigned count_fetchers(const struct config *cfg)
{
    unsigned n = cfg->fetchers != 0 ? cfg->fetchers : cores();
    return n > FETCHERS_MAX ? FETCHERS_MAX : n;
}

/* As many transfers as there are descriptors for. Raises the soft limit to the hard one. *clients:
 * how many API connections were reckoned with. */
static uint32_t share_descriptors(const struct config *cfg, unsigned fetchers, uint32_t *clients)
{
    struct rlimit r;
    *clients = cfg->max_connections;
    if (getrlimit(RLIMIT_NOFILE, &r) != 0)
        return 256;
    if (r.rlim_cur < r.rlim_max) {
        r.rlim_cur = r.rlim_max;
        if (setrlimit(RLIMIT_NOFILE, &r) != 0)
            (void)getrlimit(RLIMIT_NOFILE, &r);
    }
    rlim_t limit = r.rlim_cur == RLIM_INFINITY ? 1000000 : r.rlim_cur;
    /* A low limit is shared out: the API's clients don't get all of it. */
    rlim_t most = limit >= MANY_FDS ? limit / 2 : limit / 4;
    if (*clients > most)
        *clients = (uint32_t)most;
    rlim_t reserve = *clients + fetch_overhead_fds(fetchers) + OTHER_FDS;
    if (limit <= reserve + 16)
        return 16;
    return (uint32_t)(limit - reserve < 1000000 ? limit - reserve : 1000000);
}

static void share_memory(struct memory_plan *p, const struct config *cfg, unsigned fetchers,
                         uint32_t transfers, uint32_t clients, char *text, size_t size)
{
    struct memory_want want = {
        .transfers = transfers, .connections = clients, .fetchers = fetchers};
    memory_plan_make(p, memory_limit(cfg->memory_limit), &want);
    memory_plan_text(p, text, size);
}

/* How much of everything there may be at once, by descriptors and memory. */
static void share_out(struct engine *e, unsigned fetchers)
{
    const struct config *cfg = e->cfg;
    char text[512];
    uint32_t most = e->fd_budget = share_descriptors(cfg, fetchers, &e->max_clients);
    uint32_t wanted = cfg->max_parallel != 0 && cfg->max_parallel < most ? cfg->max_parallel : most;
    const struct memory_plan *p = &e->memory;
    share_memory(&e->memory, cfg, fetchers, wanted, e->max_clients, text, sizeof(text));
    log_line(LOG_INFO, "memory_plan", "%s", text);
    if (cfg->max_parallel > p->max_transfers)
        log_line(LOG_WARN, "limit_lowered", "max-parallel %u is more than the %s limit allows: %u",
                 cfg->max_parallel, p->max_transfers < most ? "memory" : "descriptor",
                 p->max_transfers);
    if (cfg->max_connections > p->max_connections)
        log_line(LOG_WARN, "limit_lowered", "the %s limit allows %u API connections, not %u",
                 p->max_connections < e->max_clients ? "memory" : "descriptor", p->max_connections,
                 cfg->max_connections);
    e->max_parallel = p->max_transfers;
    atomic_init(&e->transfer_bytes, p->transfers);
    e->max_clients = p->max_connections;
    quota_init(&e->global, e->max_parallel);
}

void engine_print_memory(const struct config *cfg)
{
    struct memory_plan p;
    char text[512];
    unsigned n = count_fetchers(cfg);
    uint32_t clients, most = share_descriptors(cfg, n, &clients);
    if (cfg->max_parallel != 0 && cfg->max_parallel < most)
        most = cfg->max_parallel;
    share_memory(&p, cfg, n, most, clients, text, sizeof(text));
    printf("# %s\n", text);
}

int engine_start(struct engine **out, const struct config *cfg, char *why, size_t why_size)
{
    *out = NULL;
    struct engine *e = xcalloc(1, sizeof(*e));
    e->cfg = cfg;
    pthread_mutex_init(&e->mutex, NULL);
    pthread_mutex_init(&e->block_mutex, NULL);
    e->inbox.fd = -1;
    atomic_init(&e->retain_ms, (int64_t)cfg->retain_s * 1000);
    unsigned n = count_fetchers(cfg);
    share_out(e, n);

    int rc = guard_init(&e->guard, cfg->allow_net, cfg->n_allow_net);
    if (rc != 0) {
        snprintf(why, why_size, "reading this machine's addresses failed");
        goto out;
    }
    rc = fetch_trust(&e->trust, cfg, why, why_size);
    if (rc != 0)
        goto out;
    e->disk = disk_new(cfg->data, cfg->max_disk);
    rc = store_open(&e->store, cfg->data, STORE_WRITE, why, why_size);
    if (rc == E_FULL && disk_give_up_reserve(e->disk)) /* others have filled the disk meanwhile */
        rc = store_open(&e->store, cfg->data, STORE_WRITE, why, why_size);
    if (rc != 0)
        goto out;
    rc = spill_open(&e->spill, cfg->data, why, why_size);
    if (rc != 0)
        goto out;
    disk_watch(e->disk, e);
    snprintf(why, why_size, "starting a thread failed: %s", strerror(errno));
    rc = inbox_init(&e->inbox);
    if (rc != 0)
        goto out;
    for (unsigned i = 0; rc == 0 && i < n; i++) {
        rc = fetcher_new(&e->fetchers[i], e, i);
        e->n_fetchers += rc == 0;
    }
    for (unsigned i = 0; rc == 0 && i < n; i++) {
        rc = fetcher_start(e->fetchers[i]);
        e->n_running += rc == 0;
    }
    if (rc == 0)
        rc = keeper_start(e);
    if (rc == E_CORRUPT || rc == E_IO)
        snprintf(why, why_size, "taking up unfinished batches failed: %s", store_error(e->store));
    if (rc != 0)
        goto out;
    log_line(LOG_INFO, "started", "at most %u transfers in parallel, %u a host, %u fetchers",
             e->max_parallel, cfg->max_per_host, n);
    *out = e;
    e = NULL;
out:
    engine_stop(e);
    return rc;
}

uint32_t engine_max_clients(const struct engine *e)
{
    return e->max_clients;
}

void engine_totals(struct engine *e, uint64_t *queued, uint64_t *in_flight)
{
    *queued = *in_flight = 0;
    pthread_mutex_lock(&e->mutex);
    for (size_t i = 0; i < LIVE_BUCKETS; i++) {
        for (struct live *l = e->buckets[i]; l != NULL; l = l->bucket_next) {
            struct batch_view v;
            engine_view(l, &v);
            *queued += v.queued + v.retry_wait;
            *in_flight += v.in_flight;
        }
    }
    pthread_mutex_unlock(&e->mutex);
}

const struct memory_plan *engine_memory(const struct engine *e)
{
    return &e->memory;
}

int engine_reload(struct engine *e, char *why, size_t why_size)
{
    struct tls_trust *trust = NULL;
    struct memory_plan plan;
    char text[512];
    uint32_t wanted = e->cfg->max_parallel;
    if (wanted == 0 || wanted > e->fd_budget)
        wanted = e->fd_budget;
    share_memory(&plan, e->cfg, e->n_fetchers, wanted, e->max_clients, text, sizeof(text));
    quota_set_limit(&e->global, plan.max_transfers);
    atomic_store(&e->transfer_bytes, plan.transfers);
    atomic_store(&e->retain_ms, (int64_t)e->cfg->retain_s * 1000);
    int rc = fetch_trust(&trust, e->cfg, why, why_size);
    for (unsigned i = 0; i < e->n_running; i++)
        fetcher_reload(e->fetchers[i], trust);
    tls_trust_unref(trust);
    log_event(LOG_INFO, "reloaded", LOG_U("max_parallel", plan.max_transfers));
    return rc;
}

void engine_drain(struct engine *e)
{
    atomic_store(&e->draining, true);
    for (unsigned i = 0; i < e->n_running; i++)
        fetcher_drain(e->fetchers[i]);
}

bool engine_is_idle(struct engine *e)
{
    /* A hop may go to a fetcher that was looked at already: then one was sent meanwhile. */
    uint64_t sent = atomic_load(&e->hops_sent);
    if (atomic_load(&e->hops_on_their_way) != 0 || atomic_load(&e->uploads) != 0)
        return false;
    for (unsigned i = 0; i < e->n_running; i++) {
        if (fetcher_is_busy(e->fetchers[i]))
            return false;
    }
    return atomic_load(&e->hops_sent) == sent;
}

void engine_stop(struct engine *e)
{
    if (e == NULL)
        return;
    atomic_store(&e->stopping, true);
    for (unsigned i = 0; i < e->n_running; i++)
        fetcher_stop(e->fetchers[i]);
    for (unsigned i = 0; i < e->n_running; i++)
        fetcher_join(e->fetchers[i]);
    FAULT_POINT("stop.fetchers_ended");
    if (e->keeper_runs)
        keeper_stop(e);
    FAULT_POINT("stop.keeper_ended");
    for (unsigned i = 0; i < e->n_fetchers; i++)
        fetcher_free(e->fetchers[i]);
    if (e->inbox.fd >= 0)
        inbox_fini(&e->inbox);
    store_close(e->store);
    spill_close(e->spill);
    disk_free(e->disk);
    tls_trust_unref(e->trust);
    guard_fini(&e->guard);
    while (e->blocks != NULL) {
        struct msg_results *m = e->blocks;
        e->blocks = (struct msg_results *)m->m.next;
        free(m);
    }
    pthread_mutex_destroy(&e->block_mutex);
    pthread_mutex_destroy(&e->mutex);
    free(e);
}

void engine_on_end(struct engine *e, engine_end_fn *fn, void *arg)
{
    pthread_mutex_lock(&e->mutex);
    e->end_arg = arg;
    e->end_fn = fn;
    pthread_mutex_unlock(&e->mutex);
}

/* ---- reading and steering ---- */

void batch_view_fini(struct batch_view *v)
{
    batch_fini(&v->b);
}

void engine_horizon(struct engine *e, struct store *reader)
{
    const struct store_horizon h = {
        .now_ms = retain_boot_ms() + atomic_load(&e->expiry_offset_ms),
        .retain_ms = atomic_load(&e->retain_ms),
    };
    store_set_horizon(reader, &h);
}

void engine_stored(struct batch_view *v)
{
    bool ended = v->b.state == BATCH_COMPLETED || v->b.state == BATCH_CANCELLED;
    v->queued = ended ? 0 : v->b.total - v->b.succeeded - v->b.failed - v->b.cancelled;
}

int engine_batch(struct engine *e, struct store *reader, const char *id, struct batch_view *out)
{
    memset(out, 0, sizeof(*out));
    pthread_mutex_lock(&e->mutex);
    struct live *l = engine_shown(e, id);
    int rc = E_NOTFOUND;
    if (l != NULL) {
        engine_view(l, out);
        struct batch shared = out->b;
        rc = batch_copy(&out->b, &shared);
    }
    pthread_mutex_unlock(&e->mutex);
    if (l == NULL) {
        rc = store_find(reader, id, &out->b);
        engine_stored(out);
    }
    return rc;
}

void engine_overlay(struct engine *e, struct store *reader, struct batch *b, struct batch_view *out)
{
    memset(out, 0, sizeof(*out));
    struct batch own = *b;
    memset(b, 0, sizeof(*b));
    pthread_mutex_lock(&e->mutex);
    struct live *l = engine_shown(e, own.id);
    if (l != NULL)
        engine_view(l, out);
    pthread_mutex_unlock(&e->mutex);
    if (l != NULL) { /* live numbers, own strings */
        own.state = out->b.state;
        own.succeeded = out->b.succeeded;
        own.failed = out->b.failed;
        own.cancelled = out->b.cancelled;
        own.bytes_received = out->b.bytes_received;
        own.started_ms = out->b.started_ms;
        own.ended_ms = out->b.ended_ms;
        own.expires_ms = out->b.expires_ms;
    } else if (own.state != BATCH_COMPLETED && own.state != BATCH_CANCELLED) {
        /* It ended after it was read, and before it was looked for: read it once more. */
        struct batch ended;
        if (store_find(reader, own.id, &ended) == 0) {
            batch_fini(&own);
            own = ended;
        } /* else deleted meanwhile: as it was read */
    }
    out->b = own;
    if (l == NULL)
        engine_stored(out);
}

static void steer(struct engine *e, const char *id, enum steer_verb verb, engine_done_fn *fn,
                  void *arg)
{
    struct msg_steer *m = xcalloc(1, sizeof(*m));
    m->m.type = KEEPER_STEER;
    snprintf(m->id, sizeof(m->id), "%s", id);
    m->verb = verb;
    snprintf(m->request, sizeof(m->request), "%s", log_request_id());
    m->fn = fn;
    m->arg = arg;
    inbox_put(&e->inbox, &m->m);
}

void engine_cancel(struct engine *e, const char *id, engine_done_fn *fn, void *arg)
{
    steer(e, id, STEER_CANCEL, fn, arg);
}

void engine_delete(struct engine *e, const char *id, engine_done_fn *fn, void *arg)
{
    steer(e, id, STEER_DELETE, fn, arg);
}

void engine_pause(struct engine *e, const char *id, engine_done_fn *fn, void *arg)
{
    steer(e, id, STEER_PAUSE, fn, arg);
}

void engine_resume(struct engine *e, const char *id, engine_done_fn *fn, void *arg)
{
    steer(e, id, STEER_RESUME, fn, arg);
}

void engine_disk_text(struct engine *e, char *out, size_t size)
{
    disk_text(e->disk, out, size);
}
