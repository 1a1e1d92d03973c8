/* The keeper's second phase, after the commit or its failure: counts, answers and batches' ends are
 * let out, and pages go to the fetchers. */
#include <inttypes.h>
#include <stdlib.h>

#include "server/budget.h"
#include "server/fetch.h"
#include "server/keeper_int.h"
#include "server/metrics.h"
#include "server/pause.h"
#include "server/waiting.h"
#include "storage/fault.h"

static void tell_end(struct engine *e, const char *id)
{
    pthread_mutex_lock(&e->mutex);
    engine_end_fn *fn = e->end_fn;
    void *arg = e->end_arg;
    pthread_mutex_unlock(&e->mutex);
    if (fn != NULL)
        fn(arg, id);
}

static void count_done(struct live *l, uint64_t n, int64_t now)
{
    int64_t second = now / 1000000;
    unsigned i = (unsigned)(second % RATE_SLOTS);
    if (l->rate[i].second != second) {
        l->rate[i].second = second;
        l->rate[i].n = 0;
    }
    l->rate[i].n += (uint32_t)n;
}

static void finish_results(struct keeper *k, struct msg_results *m, bool stored)
{
    for (struct done *d = m->first, *next; d != NULL; d = next) {
        next = d->next;
        struct live *l = d->live;
        if (d->handed)
            waiting_back(l, d);
        pause_landed(l, d->r.index);
        if (stored && !d->skip && d->again)
            waiting_added(l, d);
        else if (stored && !d->skip)
            l->done_bits[d->r.index / 8] |= (uint8_t)(1U << (d->r.index % 8));
        budget_back(k->e, l, 1);
        out_done_free(k->e, d);
        live_unref(l);
    }
    int64_t was = atomic_fetch_sub(&k->e->unwritten, (int64_t)m->bytes);
    int64_t half = (int64_t)(k->e->memory.unwritten / 2);
    if (was >= half && was - (int64_t)m->bytes < half) {
        for (unsigned i = 0; i < k->e->n_fetchers; i++)
            fetcher_wake(k->e->fetchers[i]);
    }
    out_block_free(k->e, m);
}

void keeper_publish(struct keeper *k)
{
    FAULT_POINT("group.publish.before");
    k->n_touched = 0;
    struct engine *e = k->e;
    int64_t now = now_us();
    pthread_mutex_lock(&e->mutex);
    keeper_count_group(k);
    for (struct live *l = k->touched; l != NULL; l = l->touched_next) {
        k->n_touched++;
        l->next_n += l->group_done;
        l->done += l->group_done;
        l->b.succeeded += l->group_succeeded;
        l->b.failed += l->group_failed;
        l->b.cancelled += l->group_cancelled;
        l->b.bytes_received += l->group_bytes;
        l->b.started_ms = atomic_load(&l->started_ms);
        atomic_fetch_sub(&l->in_flight, l->group_flown);
        atomic_fetch_add(&l->retry_wait, l->group_waits);
        count_done(l, l->group_done, now);
        if (l->group_state >= 0)
            l->b.state = (enum batch_state)l->group_state;
        if (l->ending) {
            l->b.state = l->b.cancelled > 0 ? BATCH_CANCELLED : BATCH_COMPLETED;
            l->b.ended_ms = l->ended_ms;
            engine_remove(e, l);
            keeper_count_end(l);
        }
    }
    pthread_mutex_unlock(&e->mutex);
    for (struct live *l = k->touched, *next; l != NULL; l = next) {
        next = l->touched_next;
        bool ending = l->ending;
        keeper_clear_group(l);
        if (ending) {
            log_event(LOG_INFO, "batch_ended", LOG_S("batch", l->b.id), LOG_U("total", l->b.total),
                      LOG_U("succeeded", l->b.succeeded), LOG_U("failed", l->b.failed),
                      LOG_U("cancelled", l->b.cancelled),
                      LOG_I("took_ms", l->b.ended_ms - l->b.created_ms));
            if (l->waiting != NULL && (l->b.cancelled > 0 || l->damaged))
                keeper_remove_later(k, l->b.no, true);
            keeper_ended(k, &l->b);
            keeper_forget(k, l);
            tell_end(e, l->b.id);
            live_unref(l); /* the table's */
        }
    }
    k->touched = NULL;
}

void keeper_clear_group(struct live *l)
{
    l->held = 0;
    l->touched = l->ending = false;
    l->group_state = -1;
    l->group_flown = l->group_waits = 0;
    l->group_done = l->group_succeeded = l->group_failed = l->group_cancelled = 0;
    l->group_bytes = 0;
}

static void finish_pages(struct msg_pages *m, int rc)
{
    atomic_fetch_sub(&m->upload->under_way, m->charged);
    upload_charge(m->upload, &m->charged, 0);
    upload_piece_done(m->upload, rc);
    upload_unref(m->upload);
    buf_fini(&m->buf);
    free(m->pages);
    free(m);
}

/* An upload that became no batch: its rows go in the background. */
static void give_up(struct keeper *k, struct upload *u)
{
    int64_t no = atomic_load(&u->no);
    if (no != 0)
        keeper_remove_later(k, no, false);
}

static void finish_commit(struct keeper *k, struct msg_commit *m, int rc)
{
    struct engine *e = k->e;
    if (rc != 0) /* E_EXISTS may have been for a batch of this very group */
        m->rc = rc;
    struct batch_view v = {0};
    struct live *l = NULL;
    if (m->rc == 0) {
        FAULT_POINT("submission.committed");
        l = keeper_take_up(k, &m->b, false);
        FAULT_POINT("submission.taken_up");
        pthread_mutex_lock(&e->mutex);
        engine_view(l, &v);
        pthread_mutex_unlock(&e->mutex);
        log_event(LOG_INFO, "batch_accepted", LOG_OPT("request", m->request),
                  LOG_S("batch", l->b.id), LOG_U("total", l->b.total));
    } else {
        give_up(k, m->upload);
        if (m->rc == E_EXISTS) {
            pthread_mutex_lock(&e->mutex);
            struct live *old = engine_shown(e, m->existing.id);
            if (old != NULL)
                engine_view(old, &v);
            pthread_mutex_unlock(&e->mutex);
            struct batch now; /* it may have ended in this very group, after it was found */
            if (old == NULL && store_find(e->store, m->existing.id, &now) == 0) {
                batch_fini(&m->existing);
                m->existing = now;
            }
            if (old == NULL) {
                v.b = m->existing;
                engine_stored(&v);
            }
        }
    }
    if (rc == 0 && m->expired_no != 0)
        keeper_remove_later(k, m->expired_no, false);
    m->fn(m->arg, m->rc, m->rc == 0 || m->rc == E_EXISTS ? &v : NULL);
    upload_unref(m->upload);
    batch_fini(&m->b);
    batch_fini(&m->existing);
    free(m);
}

static void finish_steer(struct keeper *k, struct msg_steer *m, int rc)
{
    struct engine *e = k->e;
    struct live *l = m->live;
    if (rc != 0) /* E_NOTFOUND may have been by another message of the group */
        m->rc = rc;
    bool removes = m->verb == STEER_DELETE;
    if (m->rc != 0 || (l == NULL && !removes)) {
        keeper_steered(k, m);
        return;
    }
    if (removes)
        keeper_remove_later(k, m->no, false);
    if (l == NULL || l->all_next == NULL) { /* not live, or ended in this very group */
        if (removes)
            tell_end(e, m->id);
        keeper_steered(k, m);
        return;
    }
    if (m->verb == STEER_RESUME) {
        pause_end(l);
        keeper_steered(k, m);
        return;
    }
    if (m->verb == STEER_PAUSE)
        pause_begin(l);
    else
        atomic_store(&l->stopped, true);
    if (removes) {
        atomic_store(&l->deleted, true);
        pthread_mutex_lock(&e->mutex);
        engine_remove(e, l);
        keeper_count_deleted(l);
        pthread_mutex_unlock(&e->mutex);
        keeper_forget(k, l);
        tell_end(e, l->b.id);
        live_unref(l); /* the table's; m has its own */
    } else if (m->verb == STEER_CANCEL && !l->clearing) {
        l->clearing = true;
        l->cancel_page = -1;
        l->cancel_next = k->cancelling;
        k->cancelling = l;
    }
    FAULT_POINT("steer.committed");
    m->halted = m->verb == STEER_PAUSE;
    /* Answered when every fetcher has dropped it: nothing is started after the answer. */
    atomic_store(&m->left, (int)e->n_fetchers);
    for (unsigned i = 0; i < e->n_fetchers; i++) {
        m->drops[i].m.type = FETCH_DROP;
        m->drops[i].steer = m;
        fetcher_put(e->fetchers[i], &m->drops[i].m);
    }
}

void keeper_steered(struct keeper *k, struct msg_steer *m)
{
    static const char *const verbs[] = {[STEER_CANCEL] = "cancel",
                                        [STEER_DELETE] = "delete",
                                        [STEER_PAUSE] = "pause",
                                        [STEER_RESUME] = "resume"};
    (void)k;
    if (m->rc == 0)
        log_event(LOG_INFO, "batch_steered", LOG_OPT("request", m->request), LOG_S("batch", m->id),
                  LOG_S("verb", verbs[m->verb]));
    FAULT_POINT("steer.answer.before");
    m->fn(m->arg, m->rc);
    FAULT_POINT("steer.answer.after");
    if (m->live != NULL) {
        m->live->halting -= m->halted;
        live_unref(m->live);
    }
    free(m);
}

/* Nobody else waits for a batch whose pages cannot be read. */
static void feed_failed(struct keeper *k, struct live *l)
{
    if (l->feed_failures++ == 0)
        log_event(LOG_ERROR, "read_failed", LOG_S("batch", l->b.id),
                  LOG_S("error", store_error(k->e->store)));
    l->feed_after_us = now_us() + disk_backoff_us(l->feed_failures);
}

static void park(struct live *l, struct msg_want *m)
{
    m->m.next = l->parked;
    l->parked = &m->m;
}

static void serve_want(struct keeper *k, struct msg_want *m)
{
    struct live *l = m->live;
    if (!atomic_load(&l->stopped) && l->feed != NULL && !atomic_load(&k->e->draining)) {
        /* hops fill the memory too */
        if (l->feed_after_us != 0 || l->outstanding > 2 * budget_window(k->e, k->n_live) ||
            budget_full(k->e)) {
            park(l, m);
            return;
        }
        int rc = feeder_want(k->e, l, m->lane, m->n);
        if (rc == E_CORRUPT) {
            keeper_damaged(k, l);
            rc = feeder_want(k->e, l, m->lane, m->n); /* the lane is at its end */
        }
        if (rc != 0) {
            feed_failed(k, l);
            park(l, m);
            return;
        }
    }
    live_unref(l);
    free(m);
}

/* After the commit (rc 0) or its failure: what each message brings about. */
void keeper_finish(struct keeper *k, struct msg *m, int rc)
{
    switch ((enum msg_type)m->type) {
    case KEEPER_PAGES: finish_pages((struct msg_pages *)m, rc); break;
    case KEEPER_COMMIT: finish_commit(k, (struct msg_commit *)m, rc); break;
    case KEEPER_ABORT: {
        struct msg_abort *a = (struct msg_abort *)m;
        give_up(k, a->upload);
        upload_unref(a->upload);
        free(a);
        break;
    }
    case KEEPER_RESULTS:
        if (rc != 0) { /* kept, and stored when the disk is well again */
            m->next = NULL;
            *k->kept_tail = m;
            k->kept_tail = &m->next;
        } else {
            finish_results(k, (struct msg_results *)m, true);
        }
        break;
    case KEEPER_WANT: serve_want(k, (struct msg_want *)m); break;
    case KEEPER_STEER: finish_steer(k, (struct msg_steer *)m, rc); break;
    case KEEPER_STEERED: keeper_steered(k, (struct msg_steer *)m); break;
    case KEEPER_FLYING: pause_report(k, (struct msg_flying *)m); break;
    case KEEPER_STOP:
        k->stop = true;
        free(m);
        break;
    default: ASSERT(m->type == KEEPER_STOP); /* no other is ours */
    }
}

static void serve_parked(struct keeper *k, struct live *l)
{
    struct msg *list = l->parked;
    l->parked = NULL;
    while (list != NULL) {
        struct msg *m = list;
        list = m->next;
        serve_want(k, (struct msg_want *)m);
    }
}

/* Whether the time to read its pages has come, after a failure. */
static bool may_feed(struct keeper *k, struct live *l)
{
    if (l->feed_after_us == 0)
        return true;
    if (now_us() >= l->feed_after_us) {
        l->feed_after_us = 0;
        return true;
    }
    if (l->feed_after_us < k->wake_us)
        k->wake_us = l->feed_after_us;
    return false;
}

void keeper_feed(struct keeper *k)
{
    bool crowded = budget_crowded(k->e);
    metric_add(METRIC_PRESSURE + METRIC_PRESSURE_WINDOW, crowded && !k->crowded);
    k->crowded = crowded;
    k->wake_us = INT64_MAX;
    if (atomic_load(&k->e->draining))
        return;
    for (struct live *l = k->all.all_next; l != &k->all; l = l->all_next) {
        uint64_t most = budget_window(k->e, k->n_live);
        if (!may_feed(k, l))
            continue;
        if (l->parked != NULL && l->outstanding <= most && !budget_full(k->e))
            serve_parked(k, l);
        if (atomic_load(&l->paused))
            pause_turn(k, l);
        if (atomic_load(&l->stopped) || atomic_load(&l->paused))
            continue;
        int rc = waiting_feed(k, l, most);
        if (rc == E_CORRUPT) {
            keeper_damaged(k, l);
            waiting_abandon(l);
            rc = 0;
        }
        if (rc == 0 && l->outstanding * 4 <= most * 3)
            rc = feeder_scan(k->e, l, k->n_live);
        if (rc == E_CORRUPT) {
            keeper_damaged(k, l);
            rc = feeder_scan(k->e, l, k->n_live);
        }
        keeper_sweep(k, l);
        int64_t wake = waiting_wake(k, l, most);
        if (wake < k->wake_us)
            k->wake_us = wake;
        if (rc != 0)
            feed_failed(k, l);
        else if (l->feed_after_us == 0)
            l->feed_failures = 0;
    }
}
