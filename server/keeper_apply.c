/* The keeper's first phase: what each message of a group writes, in the group's transaction. Nothing
 * of it may be seen by others before the commit: keeper_finish.c. */
#define _GNU_SOURCE
#include <string.h>
#include <sys/random.h>

#include "server/keeper_int.h"
#include "server/waiting.h"
#include "storage/fault.h"

static void touch(struct keeper *k, struct live *l)
{
    if (l->touched)
        return;
    l->touched = true;
    l->touched_next = k->touched;
    k->touched = l;
}

/* The times of a batch are in order though the wall clock be set back: no result before its begin,
 * and no end before a result. */
static int64_t result_time(struct live *l, int64_t ms)
{
    int64_t started = atomic_load(&l->started_ms);
    int64_t least = started > l->b.created_ms ? started : l->b.created_ms;
    ms = ms > least ? ms : least;
    if (ms > l->latest_ms)
        l->latest_ms = ms;
    return ms;
}

int keeper_add_result(struct keeper *k, struct live *l, struct result *r)
{
    r->completed_ms = result_time(l, r->completed_ms);
    r->n = l->next_n + l->group_done;
    int rc = store_add_result(k->e->store, l->b.no, r);
    if (rc != 0)
        return rc;
    touch(k, l);
    keeper_count_result(k, r);
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
    if (d->again)
        FAULT_POINT("completion.again.before");
    else
        FAULT_POINT("completion.result.before");
    int rc = d->again ? waiting_add(k, l, d) : keeper_add_result(k, l, &d->r);
    if (rc == 0 && d->again)
        l->group_waits++;
    else if (rc == 0 && waiting_has(l, d->r.index)) {
        rc = store_drop_attempt(k->e->store, l->b.no, d->r.index);
        if (rc == E_CORRUPT) { /* the result is there: the attempt goes with the batch */
            keeper_damaged(k, l);
            rc = 0;
        }
    }
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

/* Ids sort in the order of submission, though the clock be set back or two come in one ms. */
static int64_t next_id_ms(struct keeper *k)
{
    int64_t now = wall_ms();
    if (now <= k->last_id_ms)
        now = k->last_id_ms + 1;
    k->last_id_ms = now;
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
    FAULT_POINT("submission.pages.before");
    struct upload *u = m->upload;
    if (atomic_load(&u->rc) != 0)
        return 0; /* an earlier piece failed: the upload is lost already */
    int none = 0, no_room = disk_refuses(k->e->disk);
    if (no_room != 0) {
        atomic_compare_exchange_strong(&u->rc, &none, no_room);
        return 0;
    }
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
        if (rc == 0 && keeper_expired(k, &m->existing)) {
            m->expired_no = m->existing.no; /* its key goes with it */
            rc = store_mark_deleted(k->e->store, m->existing.no);
            if (rc != 0)
                return rc;
        } else if (rc == 0) {
            bool same = memcmp(m->existing.idem_hash, b->idem_hash, sizeof(b->idem_hash)) == 0;
            m->rc = same ? E_EXISTS : E_CONFLICT;
            return 0;
        }
        if (rc != 0 && rc != E_NOTFOUND)
            return rc;
    }
    b->no = atomic_load(&m->upload->no);
    ASSERT(b->no != 0);
    b->created_ms = wall_ms();
    make_id(b->id, next_id_ms(k));
    FAULT_POINT("submission.row.before");
    int rc = store_update_batch(k->e->store, b);
    FAULT_POINT("submission.row.after");
    return rc;
}

/* The row is written by settle_touched, with what else the group changes of it. */
static int steer_live(struct keeper *k, struct msg_steer *m, struct live *l)
{
    if (l->group_state == BATCH_DELETED) { /* by another message of this group */
        m->rc = E_NOTFOUND;
        return 0;
    }
    static const enum batch_state states[] = {
        [STEER_CANCEL] = BATCH_CANCELLING,
        [STEER_DELETE] = BATCH_DELETED,
        [STEER_PAUSE] = BATCH_PAUSED,
        [STEER_RESUME] = BATCH_OPEN,
    };
    int state = l->group_state >= 0 ? l->group_state : (int)l->b.state;
    if (state == BATCH_CANCELLING && (m->verb == STEER_PAUSE || m->verb == STEER_RESUME)) {
        m->rc = E_CONFLICT;
        return 0;
    }
    touch(k, l);
    l->group_state = (int)states[m->verb];
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
    if (m->verb == STEER_DELETE) {
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

int keeper_apply(struct keeper *k, struct msg *m)
{
    switch ((enum msg_type)m->type) {
    case KEEPER_PAGES: return apply_pages(k, (struct msg_pages *)m);
    case KEEPER_COMMIT: return apply_commit(k, (struct msg_commit *)m);
    case KEEPER_RESULTS: return apply_results(k, (struct msg_results *)m);
    case KEEPER_STEER: return apply_steer(k, (struct msg_steer *)m);
    default: return 0;
    }
}

int keeper_settle(struct keeper *k)
{
    FAULT_POINT("group.settle.before");
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
            if (b.ended_ms < l->latest_ms)
                b.ended_ms = l->latest_ms;
            l->ended_ms = b.ended_ms;
        }
        int rc = store_update_batch(k->e->store, &b);
        if (rc != 0)
            return rc;
    }
    return 0;
}
