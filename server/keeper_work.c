/* The keeper's other work: taking batches up (new ones, and all unfinished ones at start), giving
 * cancelled requests their results, and removing rows, in slices, so that nothing else waits. */
#include <stdlib.h>
#include <string.h>

#include "server/budget.h"
#include "server/fetch.h"
#include "server/keeper_int.h"
#include "server/pause.h"
#include "server/policy.h"
#include "server/waiting.h"
#include "storage/fault.h"

void live_ref(struct live *l)
{
    atomic_fetch_add(&l->refs, 1);
}

void live_unref(struct live *l)
{
    if (atomic_fetch_sub(&l->refs, 1) != 1)
        return;
    waiting_free(l);
    pause_free(l);
    batch_fini(&l->b);
    free(l->done_bits);
    free(l);
}

/* The wall clock may be set back: a batch is not begun before it was made. */
void live_begun(struct live *l)
{
    int64_t none = 0;
    if (atomic_load(&l->started_ms) != 0)
        return;
    int64_t now = wall_ms();
    atomic_compare_exchange_strong(&l->started_ms, &none,
                                   now > l->b.created_ms ? now : l->b.created_ms);
}

struct live *keeper_take_up(struct keeper *k, const struct batch *b, bool recovered)
{
    struct live *l = xcalloc(1, sizeof(*l));
    atomic_init(&l->refs, 1);
    int rc = batch_copy(&l->b, b);
    ASSERT(rc == 0);
    if (b->defaults_len > 0) {
        size_t pos = 0;
        rc = item_decode(l->b.defaults, l->b.defaults_len, &pos, &l->defaults);
        if (rc != 0) {
            l->damaged = l->no_defaults = true;
            log_event(LOG_ERROR, "defaults_damaged", LOG_S("batch", b->id));
            memset(&l->defaults, 0, sizeof(l->defaults));
        }
    }
    l->retry = b->retry;
    policy_complete(&l->retry);
    if (b->max_parallel != 0) {
        l->has_quota = true;
        quota_init(&l->quota, b->max_parallel);
    }
    int64_t age_ms = wall_ms() - b->created_ms;
    l->accept_us = now_us() - (recovered && age_ms > 0 ? age_ms * 1000 : 0);
    atomic_init(&l->started_ms, b->started_ms);
    l->latest_ms = b->started_ms > b->created_ms ? b->started_ms : b->created_ms;
    l->next_n = 1;
    l->done_bits = xcalloc(b->total / 8 + 1, 1);
    l->recovered = recovered;
    keeper_clear_group(l);
    rc = feeder_open(k->e, l);
    ASSERT(rc == 0);

    l->all_prev = k->all.all_prev;
    l->all_next = &k->all;
    k->all.all_prev->all_next = l;
    k->all.all_prev = l;
    k->n_live++;
    atomic_fetch_add(&k->e->live_bytes, budget_batch_cost(b->total));
    pthread_mutex_lock(&k->e->mutex);
    engine_insert(k->e, l);
    if (!recovered)
        keeper_count_accepted(l);
    pthread_mutex_unlock(&k->e->mutex);
    return l;
}

void keeper_unfeed(struct live *l)
{
    feeder_close(l);
    while (l->parked != NULL) {
        struct msg *m = l->parked;
        l->parked = m->next;
        free(m);
        live_unref(l); /* never the last: the caller has one */
    }
}

void keeper_forget(struct keeper *k, struct live *l)
{
    l->all_prev->all_next = l->all_next;
    l->all_next->all_prev = l->all_prev;
    l->all_prev = l->all_next = NULL;
    k->n_live--;
    budget_forget(k->e, l);
    atomic_fetch_sub(&k->e->live_bytes, budget_batch_cost(l->b.total));
    keeper_unfeed(l);
    waiting_free(l);
    for (struct live **p = &k->cancelling; l->clearing && *p != NULL; p = &(*p)->cancel_next) {
        if (*p == l) {
            *p = l->cancel_next;
            break;
        }
    }
    l->clearing = false;
}

/* ---- at start ---- */

static int on_done(void *arg, uint64_t index, enum result_status status, uint64_t body_len)
{
    struct live *l = arg;
    if (index >= l->b.total)
        return E_CORRUPT;
    l->done_bits[index / 8] |= (uint8_t)(1U << (index % 8));
    l->done++;
    l->b.bytes_received += body_len;
    if (status == RESULT_SUCCEEDED)
        l->b.succeeded++;
    else if (status == RESULT_FAILED)
        l->b.failed++;
    else
        l->b.cancelled++;
    return 0;
}

struct unfinished {
    struct batch *v;
    size_t n, cap;
};

static int on_unfinished(void *arg, const struct batch *b)
{
    struct unfinished *u = arg;
    if (u->n == u->cap) {
        u->cap = u->cap == 0 ? 16 : u->cap * 2;
        u->v = xrealloc(u->v, u->cap * sizeof(*u->v));
    }
    return batch_copy(&u->v[u->n++], b);
}

static int recover_one(struct keeper *k, struct batch *b)
{
    FAULT_POINT("recovery.batch");
    if (b->state == BATCH_STAGING || b->state == BATCH_DELETED) {
        keeper_remove_later(k, b->no, false);
        return 0;
    }
    b->succeeded = b->failed = b->cancelled = b->bytes_received = 0; /* counted again */
    struct live *l = keeper_take_up(k, b, true);
    uint64_t last_n;
    int rc = store_done(k->e->store, b->no, on_done, l, &last_n);
    if (rc != 0)
        return rc;
    l->next_n = last_n + 1;
    keeper_count_recovered(l);
    rc = waiting_recover(k, l);
    if (rc != 0)
        return rc;
    if (l->no_defaults)
        waiting_abandon(l);
    if (b->state == BATCH_PAUSED)
        pause_recover(l);
    if (b->state == BATCH_CANCELLING) {
        atomic_store(&l->stopped, true);
        l->clearing = true;
        l->cancel_page = -1;
        l->cancel_next = k->cancelling;
        k->cancelling = l;
    }
    log_event(LOG_INFO, "batch_recovered", LOG_S("batch", b->id), LOG_U("requests", b->total),
              LOG_U("done", l->done), LOG_U("retry_wait", atomic_load(&l->retry_wait)));
    return 0;
}

/* What is left of the attempts of batches that had ended: it goes in the background, which was cut
 * short. */
static int recover_attempts(struct keeper *k, const struct unfinished *u)
{
    size_t i = 0; /* both are in order of number */
    int64_t no = 0;
    int rc;
    while ((rc = store_attempts_next(k->e->store, no, &no)) == 0) {
        while (i < u->n && u->v[i].no < no)
            i++;
        if (i == u->n || u->v[i].no != no)
            keeper_remove_later(k, no, true);
    }
    return rc == E_NOTFOUND ? 0 : rc;
}

int keeper_recover(struct keeper *k)
{
    struct unfinished u = {0};
    int64_t last_no;
    int rc = store_last_batch_no(k->e->store, &last_no);
    if (rc == 0)
        k->next_no = last_no + 1;
    if (rc == 0)
        rc = store_open_batches(k->e->store, on_unfinished, &u);
    if (rc == 0)
        rc = recover_attempts(k, &u);
    for (size_t i = 0; i < u.n; i++) {
        if (rc == 0)
            rc = recover_one(k, &u.v[i]);
        batch_fini(&u.v[i]);
    }
    free(u.v);
    return rc;
}

/* ---- in the background ---- */

/* Outside a transaction, as one in which SQLite meets a damaged page can't be committed any more:
 * the pages that keeper_background goes through. */
int keeper_load(struct keeper *k)
{
    struct live *l = k->cancelling;
    k->cancels = keeper_has_background(k);
    k->n_slice = 0;
    buf_reset(&k->scratch);
    if (!k->cancels || l->sweep)
        return 0;
    k->cancel_page = l->cancel_page;
    while (k->n_slice < CANCEL_PAGES && k->cancel_page + 1 < (int64_t)l->b.pages) {
        struct page p;
        int rc = store_page(k->e->store, l->b.no, (uint32_t)(k->cancel_page + 1), &p);
        if (rc == 0)
            rc = buf_add(&k->scratch, p.data, p.len);
        if (rc == E_CORRUPT || rc == E_NOTFOUND)
            keeper_damaged(k, l);
        else if (rc != 0)
            return rc;
        k->slice[k->n_slice++] = k->scratch.len;
        k->cancel_page++;
    }
    return 0;
}

/* Results for the requests of one page that have none. */
static int cancel_page(struct keeper *k, struct live *l, size_t pos, size_t end)
{
    int64_t waited = now_us() - l->accept_us;
    while (pos < end) {
        struct item it;
        int rc = item_decode(k->scratch.data, end, &pos, &it);
        if (rc != 0 || it.index >= l->b.total) {
            keeper_damaged(k, l);
            return 0;
        }
        if ((l->done_bits[it.index / 8] >> (it.index % 8)) & 1)
            continue;
        struct result r = {
            .index = it.index,
            .status = RESULT_CANCELLED,
            .url = it.url,
            .custom_id = it.custom_id,
            .completed_ms = wall_ms(),
        };
        r.timing_us[TIMING_QUEUED] = waited > 0 ? (uint64_t)waited : 0;
        if (waiting_has(l, it.index))
            rc = waiting_cancelled(k, l, &r);
        if (rc == 0 || rc == E_NOTFOUND) /* its result of this very group took the attempt away */
            rc = keeper_add_result(k, l, &r);
        if (rc == E_EXISTS) /* fetched, in this very group */
            continue;
        if (rc != 0)
            return rc;
        keeper_note_done(k, it.index);
    }
    return 0;
}

static int cancel_slice(struct keeper *k)
{
    struct live *l = k->cancelling;
    if (l->sweep)
        return keeper_sweep_slice(k, l);
    size_t from = 0;
    for (unsigned i = 0; i < k->n_slice; i++) {
        int rc = cancel_page(k, l, from, k->slice[i]);
        if (rc != 0)
            return rc;
        from = k->slice[i];
    }
    if (k->cancel_page + 1 >= (int64_t)l->b.pages) {
        k->cancel_over = !l->damaged;
        k->cancel_sweeps = l->damaged;
    }
    return 0;
}

/* Results of cancelled requests take space, so they wait for it. */
bool keeper_has_background(const struct keeper *k)
{
    return k->cancelling != NULL && disk_state(k->e->disk) == DISK_WELL;
}

int keeper_background(struct keeper *k)
{
    k->n_cancelled = 0;
    k->cancel_over = k->cancel_sweeps = false;
    int rc = 0;
    if (k->cancels) {
        if (k->cancelling->sweep)
            k->cancel_page = k->cancelling->cancel_page;
        if (k->cancelling->group_state != BATCH_DELETED)
            rc = cancel_slice(k);
        FAULT_POINT("cancel.slice");
    }
    k->worked = true;
    return rc;
}

void keeper_background_done(struct keeper *k)
{
    if (!k->worked)
        return;
    k->worked = false;
    struct live *l = k->cancelling;
    if (l != NULL && k->cancels) {
        for (size_t i = 0; i < k->n_cancelled; i++)
            l->done_bits[k->cancelled[i] / 8] |= (uint8_t)(1U << (k->cancelled[i] % 8));
        l->cancel_page = k->cancel_sweeps ? -1 : k->cancel_page;
        l->sweep = l->sweep || k->cancel_sweeps;
        if (k->cancel_over)
            k->cancelling = l->cancel_next; /* stays `clearing`: it is not begun twice */
    }
    k->n_cancelled = 0;
}

void keeper_background_undo(struct keeper *k)
{
    k->worked = false;
    k->n_cancelled = 0;
}

/* ---- at the end ---- */

static void drop_message(struct keeper *k, struct msg *m)
{
    switch ((enum msg_type)m->type) {
    case KEEPER_RESULTS: {
        struct msg_results *r = (struct msg_results *)m;
        for (struct done *d = r->first; d != NULL; d = d->next) {
            out_done_free(k->e, d);
            live_unref(d->live);
        }
        out_block_free(k->e, r);
        break;
    }
    case KEEPER_WANT:
        live_unref(((struct msg_want *)m)->live);
        free(m);
        break;
    case KEEPER_FLYING:
        live_unref(((struct msg_flying *)m)->live);
        free(m);
        break;
    case KEEPER_PAGES: {
        struct msg_pages *p = (struct msg_pages *)m;
        upload_piece_done(p->upload, E_STOPPING);
        upload_unref(p->upload);
        buf_fini(&p->buf);
        free(p->pages);
        free(p);
        break;
    }
    case KEEPER_COMMIT: {
        struct msg_commit *c = (struct msg_commit *)m;
        c->fn(c->arg, E_STOPPING, NULL);
        upload_unref(c->upload);
        batch_fini(&c->b);
        batch_fini(&c->existing);
        free(c);
        break;
    }
    case KEEPER_ABORT:
        upload_unref(((struct msg_abort *)m)->upload);
        free(m);
        break;
    case KEEPER_STEER:
    case KEEPER_STEERED:
        ((struct msg_steer *)m)->rc = E_STOPPING;
        keeper_steered(k, (struct msg_steer *)m);
        break;
    default: free(m);
    }
}

void keeper_drain(struct keeper *k)
{
    struct msg *lists[] = {k->kept, inbox_take(&k->e->inbox)};
    for (size_t i = 0; i < ARRAY_LEN(lists); i++) {
        for (struct msg *m = lists[i], *next; m != NULL; m = next) {
            next = m->next;
            drop_message(k, m);
        }
    }
    while (k->all.all_next != &k->all) {
        struct live *l = k->all.all_next;
        pthread_mutex_lock(&k->e->mutex);
        engine_remove(k->e, l);
        pthread_mutex_unlock(&k->e->mutex);
        keeper_forget(k, l);
        live_unref(l);
    }
    free(k->cancelled);
    upkeep_close(k);
    buf_fini(&k->scratch);
}

/* ---- the thread ---- */

int keeper_start(struct engine *e)
{
    struct keeper *k = xcalloc(1, sizeof(*k));
    k->e = e;
    k->all.all_prev = k->all.all_next = &k->all;
    k->kept_tail = &k->kept;
    k->wake_us = INT64_MAX;
    k->clock_us = wall_ms() * 1000 - now_us();
    buf_init(&k->scratch, SIZE_MAX / 2);
    int rc = upkeep_open(k);
    if (rc == 0)
        rc = keeper_recover(k);
    if (rc == 0) {
        inbox_wake(&e->inbox); /* a first turn feeds what was taken up */
        if (pthread_create(&e->keeper_thread, NULL, keeper_main, k) != 0)
            rc = E_NOMEM;
    }
    if (rc != 0) {
        keeper_drain(k);
        free(k);
        return rc;
    }
    e->keeper_runs = true;
    return 0;
}

void keeper_stop(struct engine *e)
{
    struct msg *m = xcalloc(1, sizeof(*m));
    m->type = KEEPER_STOP;
    inbox_put(&e->inbox, m);
    pthread_join(e->keeper_thread, NULL);
}
