/* The keeper: the thread that owns the database. It takes all messages that came in during its
 * last commit, applies them in one transaction, commits, and only then lets the effects be seen:
 * counts, answers, pages to the fetchers. So a group's size follows the load by itself, and
 * whatever was answered is on disk. */
#define _GNU_SOURCE
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "server/engine_int.h"
#include "server/fetch.h"
#include "server/keeper_int.h"
#include "server/waiting.h"

enum {
    WINDOW_MAX = 65536, /* requests of one batch with the fetchers */
    WINDOW_MIN = 2048,
    WINDOW_ALL = 262144,            /* of all batches, about */
    CANCEL_PAGES = 64,              /* pages of cancelled requests a group: some 2,000 results */
    REMOVE_ROWS = 4000,             /* rows of removed batches a group */
    GROUP_BYTES = 64 * 1024 * 1024, /* of results */
    GATHER_EACH_US = 2 * 1000,      /* … more for each batch that has some */
    GATHER_MAX_US = 200 * 1000,
    GATHER_BYTES = 8 * 1024 * 1024, /* of results that wait for others */
    RETRY_STORE_MS = 500,           /* after a failed commit */
    GATHER_US = 10 * 1000,          /* between commits of results alone: each rewrites the last
                                       page of every table, so many small ones cost more */
};

/* ---- phase 1: into the transaction ---- */

static void touch(struct keeper *k, struct live *l)
{
    if (l->touched)
        return;
    l->touched = true;
    l->touched_next = k->touched;
    k->touched = l;
}

int keeper_add_result(struct keeper *k, struct live *l, struct result *r)
{
    r->n = l->next_n + l->group_done;
    int rc = store_add_result(k->e->store, l->b.no, r);
    if (rc != 0)
        return rc;
    touch(k, l);
    l->group_done++;
    l->group_bytes += r->body_len;
    if (r->status == RESULT_SUCCEEDED)
        l->group_succeeded++;
    else if (r->status == RESULT_FAILED)
        l->group_failed++;
    else
        l->group_cancelled++;
    return 0;
}

static bool is_done(const struct live *l, uint64_t index)
{
    return (l->done_bits[index / 8] >> (index % 8)) & 1;
}

static int apply_done(struct keeper *k, struct live *l, struct done *d)
{
    int rc = d->again ? waiting_add(k, l, d) : keeper_add_result(k, l, &d->r);
    if (rc == 0 && d->again)
        l->group_waits++;
    else if (rc == 0 && waiting_has(l, d->r.index))
        rc = store_drop_attempt(k->e->store, l->b.no, d->r.index);
    return rc;
}

static int apply_results(struct keeper *k, struct msg_results *m)
{
    for (struct done *d = m->first; d != NULL; d = d->next) {
        struct live *l = d->live;
        ASSERT(d->r.index < l->b.total);
        touch(k, l);
        l->group_flown++;
        d->skip = atomic_load(&l->deleted) || l->group_state == BATCH_DELETED ||
                  is_done(l, d->r.index) || (d->again && atomic_load(&l->stopped));
        if (d->skip)
            continue;
        int rc = apply_done(k, l, d);
        if (rc == E_EXISTS)
            d->skip = true;
        else if (rc != 0)
            return rc;
    }
    return 0;
}

/* The 48-bit time in ms first, so that ids sort by it, then 128 random bits: Crockford's base 32
 * in lower case. */
static void make_id(char *out, int64_t ms)
{
    static const char digits[] = "0123456789abcdefghjkmnpqrstvwxyz";
    unsigned char rnd[16];
    ssize_t n = getrandom(rnd, sizeof(rnd), 0);
    ASSERT(n == (ssize_t)sizeof(rnd));
    char *p = out;
    *p++ = 'b';
    *p++ = '_';
    for (int shift = 45; shift >= 0; shift -= 5)
        *p++ = digits[(ms >> shift) & 31];
    unsigned acc = 0, bits = 0;
    for (size_t i = 0; i < sizeof(rnd); i++) {
        acc = (acc << 8) | rnd[i];
        bits += 8;
        while (bits >= 5) {
            bits -= 5;
            *p++ = digits[(acc >> bits) & 31];
        }
    }
    *p++ = digits[(acc << (5 - bits)) & 31];
    *p = '\0';
    ASSERT(p - out < STORE_BATCH_ID_SIZE);
}

static int64_t next_created(struct keeper *k)
{
    int64_t now = wall_ms();
    if (now <= k->last_created_ms) /* the clock was set back, or two in one ms: keep the order */
        now = k->last_created_ms + 1;
    k->last_created_ms = now;
    return now;
}

/* Gives an upload its number and its row, at its first piece. */
static int stage(struct keeper *k, struct upload *u)
{
    struct batch b = {.no = k->next_no, .state = BATCH_STAGING};
    b.created_ms = wall_ms();
    make_id(b.id, b.created_ms);
    int rc = store_add_batch(k->e->store, &b);
    if (rc == 0) {
        k->next_no++;
        atomic_store(&u->no, b.no);
    }
    return rc;
}

static int apply_pages(struct keeper *k, struct msg_pages *m)
{
    struct upload *u = m->upload;
    if (atomic_load(&u->rc) != 0)
        return 0; /* an earlier piece failed: the upload is lost already */
    int rc = atomic_load(&u->no) != 0 ? 0 : stage(k, u);
    for (size_t i = 0; rc == 0 && i < m->n; i++)
        rc = store_add_page(k->e->store, atomic_load(&u->no), &m->pages[i]);
    return rc;
}

static int apply_commit(struct keeper *k, struct msg_commit *m)
{
    struct batch *b = &m->b;
    m->rc = atomic_load(&m->upload->rc);
    if (m->rc != 0)
        return 0;
    if (atomic_load(&k->e->stopping)) {
        m->rc = E_STOPPING;
        return 0;
    }
    if (b->idem_key != NULL) {
        batch_fini(&m->existing);
        int rc = store_find_key(k->e->store, b->idem_key, &m->existing);
        if (rc == 0) {
            bool same = memcmp(m->existing.idem_hash, b->idem_hash, sizeof(b->idem_hash)) == 0;
            m->rc = same ? E_EXISTS : E_CONFLICT;
            return 0;
        }
        if (rc != E_NOTFOUND)
            return rc;
    }
    b->no = atomic_load(&m->upload->no);
    ASSERT(b->no != 0);
    b->created_ms = next_created(k);
    make_id(b->id, b->created_ms);
    return store_update_batch(k->e->store, b);
}

/* The row is written by settle_touched, with what else the group changes of it. */
static int steer_live(struct keeper *k, struct msg_steer *m, struct live *l)
{
    if (l->group_state == BATCH_DELETED) { /* by another message of this group */
        m->rc = E_NOTFOUND;
        return 0;
    }
    touch(k, l);
    l->group_state = m->remove ? BATCH_DELETED : BATCH_CANCELLING;
    m->no = l->b.no;
    return 0;
}

static int steer_ended(struct keeper *k, struct msg_steer *m)
{
    struct batch b;
    m->rc = store_find(k->e->store, m->id, &b);
    if (m->rc != 0)
        return m->rc == E_NOTFOUND ? 0 : m->rc;
    int rc = 0;
    if (m->remove) {
        m->no = b.no;
        b.state = BATCH_DELETED;
        rc = store_update_batch(k->e->store, &b);
    } else {
        m->rc = E_CONFLICT;
    }
    batch_fini(&b);
    return rc;
}

static int apply_steer(struct keeper *k, struct msg_steer *m)
{
    struct engine *e = k->e;
    pthread_mutex_lock(&e->mutex);
    struct live *l = engine_lookup(e, m->id);
    pthread_mutex_unlock(&e->mutex);
    m->rc = 0;
    if (l != NULL && m->live == NULL) {
        live_ref(l);
        m->live = l;
    }
    return l != NULL ? steer_live(k, m, l) : steer_ended(k, m);
}

static int apply(struct keeper *k, struct msg *m)
{
    switch ((enum msg_type)m->type) {
    case KEEPER_PAGES: return apply_pages(k, (struct msg_pages *)m);
    case KEEPER_COMMIT: return apply_commit(k, (struct msg_commit *)m);
    case KEEPER_RESULTS: return apply_results(k, (struct msg_results *)m);
    case KEEPER_STEER: return apply_steer(k, (struct msg_steer *)m);
    default: return 0;
    }
}

/* Batches that the group steers, starts or brings to their end get their rows. */
static int settle_touched(struct keeper *k)
{
    for (struct live *l = k->touched; l != NULL; l = l->touched_next) {
        if (l->all_next == NULL) /* ended before: a late result of a cancelled request */
            continue;
        struct batch b = l->b;
        int64_t started = atomic_load(&l->started_ms);
        if (l->group_state >= 0)
            b.state = (enum batch_state)l->group_state;
        l->ending = l->done + l->group_done == b.total && b.state != BATCH_DELETED;
        if (!l->ending && l->group_state < 0 && (b.started_ms != 0 || started == 0))
            continue;
        b.started_ms = started;
        b.succeeded += l->group_succeeded;
        b.failed += l->group_failed;
        b.cancelled += l->group_cancelled;
        b.bytes_received += l->group_bytes;
        if (l->ending) {
            b.state = b.cancelled > 0 ? BATCH_CANCELLED : BATCH_COMPLETED;
            b.ended_ms = wall_ms();
            if (b.ended_ms < b.created_ms)
                b.ended_ms = b.created_ms;
            l->ended_ms = b.ended_ms;
        }
        int rc = store_update_batch(k->e->store, &b);
        if (rc != 0)
            return rc;
    }
    return 0;
}

/* ---- phase 2: after the commit ---- */

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
        if (stored && !d->skip && d->again)
            waiting_added(l, d);
        else if (stored && !d->skip)
            l->done_bits[d->r.index / 8] |= (uint8_t)(1U << (d->r.index % 8));
        if (l->outstanding > 0)
            l->outstanding--;
        free(d->owned_body);
        if (d->r.body_fd >= 0) {
            close(d->r.body_fd);
            atomic_fetch_sub(&k->e->fds, 1);
        }
        live_unref(l);
    }
    int64_t was = atomic_fetch_sub(&k->e->unwritten, (int64_t)m->bytes);
    if (was >= UNWRITTEN_MAX / 2 && was - (int64_t)m->bytes < UNWRITTEN_MAX / 2) {
        for (unsigned i = 0; i < k->e->n_fetchers; i++)
            fetcher_wake(k->e->fetchers[i]);
    }
    out_block_free(k->e, m);
}

static void publish_touched(struct keeper *k)
{
    k->n_touched = 0;
    struct engine *e = k->e;
    int64_t now = now_us();
    for (struct live *l = k->touched, *next; l != NULL; l = next) {
        next = l->touched_next;
        k->n_touched++;
        pthread_mutex_lock(&e->mutex);
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
        }
        pthread_mutex_unlock(&e->mutex);
        bool ending = l->ending;
        keeper_clear_group(l);
        if (ending) {
            log_line(LOG_INFO, "keeper",
                     "batch %s ended: total=%" PRIu64 " succeeded=%" PRIu64 " failed=%" PRIu64
                     " cancelled=%" PRIu64,
                     l->b.id, l->b.total, l->b.succeeded, l->b.failed, l->b.cancelled);
            if (l->waiting != NULL && l->b.cancelled > 0)
                keeper_remove_later(k, l->b.no, true);
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
        l = keeper_take_up(k, &m->b, false);
        pthread_mutex_lock(&e->mutex);
        engine_view(l, &v);
        pthread_mutex_unlock(&e->mutex);
        log_line(LOG_INFO, "keeper", "batch %s accepted: %" PRIu64 " requests", l->b.id,
                 l->b.total);
    } else {
        give_up(k, m->upload);
        if (m->rc == E_EXISTS) {
            pthread_mutex_lock(&e->mutex);
            struct live *old = engine_lookup(e, m->existing.id);
            if (old != NULL)
                engine_view(old, &v);
            else
                v.b = m->existing;
            pthread_mutex_unlock(&e->mutex);
        }
    }
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
    if (m->rc != 0 || (l == NULL && !m->remove)) {
        keeper_steered(k, m);
        return;
    }
    if (m->remove)
        keeper_remove_later(k, m->no, false);
    if (l == NULL || l->all_next == NULL) { /* not live, or ended in this very group */
        if (m->remove)
            tell_end(e, m->id);
        keeper_steered(k, m);
        return;
    }
    atomic_store(&l->stopped, true);
    if (m->remove) {
        atomic_store(&l->deleted, true);
        pthread_mutex_lock(&e->mutex);
        engine_remove(e, l);
        pthread_mutex_unlock(&e->mutex);
        keeper_forget(k, l);
        tell_end(e, l->b.id);
        live_unref(l); /* the table's; m has its own */
    } else if (!l->clearing) {
        l->clearing = true;
        l->cancel_page = -1;
        l->cancel_next = k->cancelling;
        k->cancelling = l;
    }
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
    (void)k;
    m->fn(m->arg, m->rc);
    if (m->live != NULL)
        live_unref(m->live);
    free(m);
}

/* Requests of one batch that the fetchers may have at a time. */
static uint64_t window(const struct keeper *k)
{
    uint64_t n = WINDOW_ALL / (k->n_live > 0 ? k->n_live : 1);
    return n > WINDOW_MAX ? WINDOW_MAX : n < WINDOW_MIN ? WINDOW_MIN : n;
}

static void serve_want(struct keeper *k, struct msg_want *m)
{
    struct live *l = m->live;
    if (!atomic_load(&l->stopped) && l->feed != NULL) {
        if (l->outstanding > 2 * window(k)) { /* hops fill the memory too */
            m->m.next = l->parked;
            l->parked = &m->m;
            return;
        }
        int rc = feeder_want(k->e, l, m->lane, m->n);
        if (rc != 0) {
            log_line(LOG_ERROR, "keeper", "batch %s: reading its pages: %s", l->b.id,
                     store_error(k->e->store));
            m->m.next = k->wants_again;
            k->wants_again = &m->m;
            k->store_failed = true;
            return;
        }
    }
    live_unref(l);
    free(m);
}

/* After the commit (rc 0) or its failure: what each message brings about. */
static void finish(struct keeper *k, struct msg *m, int rc)
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
    case KEEPER_STOP:
        k->stop = true;
        free(m);
        break;
    default: ASSERT(m->type == KEEPER_STOP); /* no other is ours */
    }
}

/* ---- the loop ---- */

static bool needs_sync(const struct msg *list)
{
    for (; list != NULL; list = list->next) {
        if (list->type == KEEPER_COMMIT || list->type == KEEPER_STEER)
            return true;
    }
    return false;
}

static bool needs_transaction(const struct msg *list)
{
    for (; list != NULL; list = list->next) {
        if (list->type == KEEPER_COMMIT || list->type == KEEPER_STEER ||
            list->type == KEEPER_PAGES || list->type == KEEPER_RESULTS)
            return true;
    }
    return false;
}

/* Applies the list, and some background work, in one transaction. */
static int commit_group(struct keeper *k, struct msg *list)
{
    struct engine *e = k->e;
    bool background = !k->store_failed && (k->cancelling != NULL || k->n_removals > 0);
    if (!background && !needs_transaction(list))
        return 0;
    int rc = store_begin(e->store, needs_sync(list));
    if (rc != 0)
        goto out;
    for (struct msg *m = list; rc == 0 && m != NULL; m = m->next)
        rc = apply(k, m);
    if (rc == 0 && background)
        rc = keeper_background(k, CANCEL_PAGES, REMOVE_ROWS);
    if (rc == 0)
        rc = settle_touched(k);
    if (rc != 0) {
        log_line(LOG_ERROR, "keeper", "writing to the database: %s", store_error(e->store));
        store_rollback(e->store);
        goto out;
    }
    rc = store_commit(e->store);
    if (rc != 0)
        log_line(LOG_ERROR, "keeper", "committing to the database: %s", store_error(e->store));
out:
    if (rc != 0) {
        for (struct live *l = k->touched; l != NULL; l = l->touched_next)
            keeper_clear_group(l);
        k->touched = NULL;
        keeper_background_undo(k);
    }
    return rc;
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

static void feed_all(struct keeper *k)
{
    uint64_t most = window(k);
    k->wake_us = INT64_MAX;
    for (struct live *l = k->all.all_next; l != &k->all; l = l->all_next) {
        if (l->parked != NULL && l->outstanding <= most)
            serve_parked(k, l);
        if (atomic_load(&l->stopped))
            continue;
        int rc = waiting_feed(k, l, most);
        if (rc == 0 && l->outstanding * 4 <= most * 3)
            rc = feeder_scan(k->e, l, most);
        int64_t wake = waiting_wake(k, l, most);
        if (wake < k->wake_us)
            k->wake_us = wake;
        if (rc != 0) {
            log_line(LOG_ERROR, "keeper", "batch %s: reading its pages: %s", l->b.id,
                     store_error(k->e->store));
            k->store_failed = true;
        }
    }
}

static void turn(struct keeper *k, struct msg *list)
{
    int rc = commit_group(k, list);
    k->store_failed = rc != 0;
    if (rc == 0) {
        keeper_background_done(k);
        publish_touched(k);
    }
    bool reading = store_read_begin(k->e->store) == 0; /* if not: one by one */
    for (struct msg *m = list, *next; m != NULL; m = next) {
        next = m->next;
        finish(k, m, rc);
    }
    if (!k->stop)
        feed_all(k);
    if (reading)
        store_read_end(k->e->store);
    store_checkpoint(k->e->store, false);
}

static struct msg *join(struct msg *a, struct msg *b)
{
    if (a == NULL)
        return b;
    struct msg *last = a;
    while (last->next != NULL)
        last = last->next;
    last->next = b;
    return a;
}

static uint64_t weight(const struct msg_results *m)
{
    uint64_t n = m->used;
    for (const struct done *d = m->first; d != NULL; d = d->next)
        n += d->r.body_len;
    return n;
}

/* Submissions don't wait for more than so many bytes of results: they go first, and the results
 * beyond that into the next group. At the end nothing is left for a next one. */
static struct msg *bound_group(struct keeper *k, struct msg *list)
{
    struct msg *first = NULL, *results = NULL, **first_tail = &first, **results_tail = &results;
    uint64_t bytes = 0;
    bool stop = false;
    for (struct msg *m = list; m != NULL; m = m->next)
        stop = stop || m->type == KEEPER_STOP;
    for (struct msg *m = list, *next; m != NULL; m = next) {
        next = m->next;
        m->next = NULL;
        struct msg ***tail = &first_tail;
        if (m->type == KEEPER_RESULTS) {
            tail = bytes > GROUP_BYTES && !stop ? &k->kept_tail : &results_tail;
            bytes += weight((struct msg_results *)m);
        }
        **tail = m;
        *tail = &m->next;
    }
    *first_tail = results;
    return first;
}

static int wait_ms(const struct keeper *k)
{
    if (k->store_failed)
        return RETRY_STORE_MS;
    if (k->cancelling != NULL || k->n_removals > 0)
        return 0;
    int64_t due = k->kept != NULL && k->results_due < k->wake_us ? k->results_due : k->wake_us;
    if (due == INT64_MAX)
        return -1;
    int64_t left = due - now_us();
    if (left > INT_MAX)
        left = INT_MAX;
    return left <= 0 ? 0 : (int)(left / 1000) + 1;
}

/* A batch has last pages of its own: the more batches, the more results it takes to fill them. */
static int64_t gather_us(const struct keeper *k)
{
    uint64_t us = k->n_touched * GATHER_EACH_US;
    return us < GATHER_US ? GATHER_US : us > GATHER_MAX_US ? GATHER_MAX_US : (int64_t)us;
}

/* Whether this list is only results, and requests for more: then the results may wait for others,
 * if some were written a moment ago. The pages asked for never wait. */
static bool may_gather(const struct keeper *k, const struct msg *list)
{
    if (now_us() >= k->results_due || k->cancelling != NULL || k->n_removals > 0 ||
        atomic_load(&k->e->unwritten) > GATHER_BYTES)
        return false;
    for (; list != NULL; list = list->next) {
        if (list->type != KEEPER_RESULTS && list->type != KEEPER_WANT)
            return false;
        if (list->type == KEEPER_RESULTS &&
            ((const struct msg_results *)list)->soonest_us < k->results_due)
            return false;
    }
    return true;
}

/* Nobody waits long for the end of a batch. */
static void note_ends(struct keeper *k, struct msg_results *m)
{
    int64_t soon = k->results_begin + GATHER_US;
    if (m->held)
        return;
    m->held = true;
    for (const struct done *d = m->first; d != NULL; d = d->next) {
        if (++d->live->held + d->live->done >= d->live->b.total && soon < k->results_due)
            k->results_due = soon;
    }
}

/* Leaves the rest in the list; the results' order is kept. */
static struct msg *hold_results(struct keeper *k, struct msg *list)
{
    struct msg *rest = NULL, **tail = &rest;
    for (struct msg *m = list, *next; m != NULL; m = next) {
        next = m->next;
        m->next = NULL;
        struct msg ***to = &tail;
        if (m->type == KEEPER_RESULTS) {
            to = &k->kept_tail;
            note_ends(k, (struct msg_results *)m);
        }
        **to = m;
        *to = &m->next;
    }
    return rest;
}

void *keeper_main(void *arg)
{
    struct keeper *k = arg;
    (void)pthread_setname_np(pthread_self(), "keeper");
    while (!k->stop) {
        struct pollfd p = {.fd = k->e->inbox.fd, .events = POLLIN};
        if (k->store_failed) /* not at once again, however many messages come */
            (void)poll(NULL, 0, RETRY_STORE_MS);
        else if (poll(&p, 1, wait_ms(k)) < 0)
            ASSERT(errno == EINTR);
        struct msg *kept = k->kept;
        k->kept = NULL;
        k->kept_tail = &k->kept;
        struct msg *wants = k->wants_again;
        k->wants_again = NULL;
        struct msg *list = join(join(kept, wants), inbox_take(&k->e->inbox));
        if (may_gather(k, list)) {
            turn(k, hold_results(k, list));
        } else {
            turn(k, bound_group(k, list));
            k->results_begin = now_us();
            k->results_due = k->kept != NULL ? 0 : k->results_begin + gather_us(k);
        }
    }
    keeper_drain(k);
    free(k);
    return NULL;
}
