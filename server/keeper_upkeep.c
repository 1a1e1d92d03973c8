/* What the keeper does for the size of the database: ended batches expire, the rows of removed ones
 * go, and free pages are given back to the file system. In slices of some milliseconds with pauses
 * between them, each a transaction of its own that is not synced: nobody waits long for one, and
 * what is lost of it is done again. */
#include <stdlib.h>
#include <string.h>

#include "server/keeper_int.h"
#include "storage/fault.h"

enum {
    SLICE_US = 5 * 1000,
    STEP_ROWS = 200,
    STEP_BYTES = 1024 * 1024,
    STEP_PAGES = 8, /* given back at once */
    EXPIRE_MAX = 100,
    QUEUE_LOW = 32, /* no more batches expire before so few wait for removal */
    PACE_BUSY = 3,  /* pauses, in slices, while there are batches to fetch */
    PACE_IDLE = 1,
    LOOK_US = 60 * 1000 * 1000,
    RETRY_US = 1000 * 1000,
    GIVE_BACK_US = 1000 * 1000, /* without a batch: its memory goes back to the system */
    /* Free pages are used again first. They are given back when there are more than both of … */
    UNUSED_BYTES = 64 * 1024 * 1024,
    UNUSED_PART = 5,  /* (one so-manyth of the file) */
    RESERVE_PART = 10 /* … until they are less than this, or half the bytes */
};

/* ---- time ---- */

void keeper_tell_time(struct keeper *k)
{
    struct upkeep *u = &k->upkeep;
    int64_t boot = retain_boot_ms(), stepped;
    struct store_horizon h = {.retain_ms = atomic_load(&k->e->retain_ms)};
    h.now_ms = retain_clock_now(&u->clock, wall_ms(), boot, &stepped);
    if (stepped > 0)
        log_event(LOG_WARN, "clock_stepped", LOG_I("ahead_s", stepped / 1000),
                  LOG_S("effect", "batches expire by the time before until it held for an hour"));
    atomic_store(&k->e->expiry_offset_ms, u->clock.offset_ms);
    store_set_horizon(k->e->store, &h);
    u->horizon = h;
}

bool keeper_expired(const struct keeper *k, const struct batch *b)
{
    return (b->state == BATCH_COMPLETED || b->state == BATCH_CANCELLED) &&
           store_expires(&k->upkeep.horizon, b) <= k->upkeep.horizon.now_ms;
}

int upkeep_open(struct keeper *k)
{
    int64_t last;
    int rc = store_last_time(k->e->store, &last);
    if (rc != 0)
        return rc;
    retain_clock_init(&k->upkeep.clock, wall_ms(), retain_boot_ms(), last);
    keeper_tell_time(k);
    return 0;
}

void upkeep_close(struct keeper *k)
{
    free(k->upkeep.v);
}

/* A batch has ended: it may be the next to expire. */
void keeper_ended(struct keeper *k, const struct batch *b)
{
    struct upkeep *u = &k->upkeep;
    int64_t left_ms = store_expires(&u->horizon, b) - u->horizon.now_ms;
    if (left_ms > LOOK_US / 1000)
        return;
    int64_t due = now_us() + (left_ms > 0 ? left_ms : 0) * 1000;
    if (due < u->due_us)
        u->due_us = due;
}

/* ---- the queue of batches whose rows go ---- */

void keeper_remove_later(struct keeper *k, int64_t no, bool attempts_only)
{
    struct upkeep *u = &k->upkeep;
    if (u->n == u->cap && u->head > 0) {
        memmove(u->v, u->v + u->head, (u->n - u->head) * sizeof(*u->v));
        u->n -= u->head;
        u->head = 0;
    }
    if (u->n == u->cap) {
        u->cap = u->cap == 0 ? 16 : u->cap * 2;
        u->v = xrealloc(u->v, u->cap * sizeof(*u->v));
    }
    u->v[u->n++] = (struct removal){.no = no, .attempts = attempts_only};
    if (!u->failed)
        u->due_us = 0;
}

/* ---- slices; in a transaction ---- */

/* Removes rows until `until`. *done: batches of the queue that are through. */
static int remove_rows(struct keeper *k, int64_t until, size_t *done)
{
    const struct upkeep *u = &k->upkeep;
    int rc = 0;
    *done = 0;
    while (rc == 0 && u->head + *done < u->n && now_us() < until) {
        const struct removal *r = &u->v[u->head + *done];
        bool over;
        rc = r->attempts ? store_remove_attempts(k->e->store, r->no, STEP_ROWS, &over)
                         : store_remove_step(k->e->store, r->no, STEP_ROWS, STEP_BYTES, &over);
        *done += rc == 0 && over;
    }
    return rc;
}

static bool worth_it(const struct keeper *k, uint64_t size, uint64_t unused)
{
    const struct upkeep *u = &k->upkeep;
    if (disk_tight(k->e->disk))
        return unused >= UPKEEP_WORTH;
    if (u->shrinking)
        return unused > UNUSED_BYTES / 2 && unused > size / RESERVE_PART;
    return unused > UNUSED_BYTES && unused > size / UNUSED_PART;
}

static int give_back(struct keeper *k, int64_t until)
{
    struct upkeep *u = &k->upkeep;
    uint64_t size, unused;
    bool done = false;
    int rc = store_space(k->e->store, &size, &unused);
    if (rc != 0)
        return rc;
    bool begun = !u->shrinking;
    u->shrinking = worth_it(k, size, unused);
    u->shrunk = u->shrunk || (!begun && !u->shrinking);
    if (u->shrinking && begun)
        log_event(LOG_INFO, "database_shrinks", LOG_U("bytes", size),
                  LOG_U("unused_bytes", unused));
    while (rc == 0 && u->shrinking && !done && now_us() < until)
        rc = store_shrink(k->e->store, STEP_PAGES, &done);
    return rc;
}

static int64_t slice_us(const struct keeper *k)
{
    return disk_tight(k->e->disk) ? SLICE_US / 5 : SLICE_US;
}

static int slice(struct keeper *k, int64_t begin, size_t *n_expired, size_t *done)
{
    struct upkeep *u = &k->upkeep;
    int64_t no[EXPIRE_MAX];
    *n_expired = *done = 0;
    int rc = store_begin(k->e->store, false);
    if (rc == 0 && u->n - u->head < QUEUE_LOW) {
        rc = store_expire(k->e->store, no, EXPIRE_MAX, n_expired, &u->next_ms);
        if (rc == 0 && *n_expired > 0)
            log_event(LOG_INFO, "batches_expired", LOG_U("batches", *n_expired));
    }
    if (rc == 0)
        rc = remove_rows(k, begin + slice_us(k), done);
    if (rc == 0 && u->head + *done == u->n && *n_expired == 0)
        rc = give_back(k, begin + slice_us(k));
    FAULT_POINT("upkeep.commit.before");
    if (rc == 0)
        rc = store_commit(k->e->store);
    FAULT_POINT("upkeep.commit.after");
    if (rc != 0)
        return rc;
    for (size_t i = 0; i < *n_expired; i++)
        keeper_remove_later(k, no[i], false);
    metric_add(METRIC_BATCHES_EXPIRED, *n_expired);
    return 0;
}

/* The batch whose rows could not be removed goes to the end: others are not to wait for it. */
static void put_last(struct upkeep *u)
{
    if (u->n - u->head < 2)
        return;
    struct removal first = u->v[u->head];
    memmove(u->v + u->head, u->v + u->head + 1, (u->n - u->head - 1) * sizeof(*u->v));
    u->v[u->n - 1] = first;
}

/* It is what frees space when there is none, but not for an end to other failures. */
bool keeper_may_upkeep(const struct keeper *k)
{
    return !disk_broken(k->e->disk) || disk_refuses(k->e->disk) == E_FULL;
}

static void failed(struct keeper *k, int rc)
{
    store_rollback(k->e->store);
    if (store_lost(k->e->store))
        keeper_give_up(k);
    if (rc == E_FULL || rc == E_READONLY || rc == E_IO)
        disk_failed(k->e->disk, rc, store_error(k->e->store));
    else
        log_event(LOG_ERROR, "remove_failed", LOG_S("error", store_error(k->e->store)));
}

/* The file itself gets shorter when the log is folded back, all of it: a reader may be in the way. */
static void fold_shrunk(struct keeper *k, int64_t now)
{
    struct upkeep *u = &k->upkeep;
    u->shrunk = !keeper_fold(k);
    u->fold_us = u->shrunk ? now + RETRY_US : 0;
}

static void give_back_memory(struct keeper *k, int64_t now)
{
    if (k->n_live > 0) {
        k->give_back_us = now + GIVE_BACK_US;
    } else if (k->give_back_us <= now) {
        k->give_back_us = INT64_MAX;
        memory_give_back();
    }
}

void keeper_upkeep(struct keeper *k)
{
    struct upkeep *u = &k->upkeep;
    int64_t begin = now_us();
    size_t n_expired, done;
    give_back_memory(k, begin);
    if (begin < u->due_us || !keeper_may_upkeep(k) || k->stop)
        return;
    int rc = slice(k, begin, &n_expired, &done);
    int64_t end = now_us();
    u->failed = rc != 0;
    if (rc != 0) {
        failed(k, rc);
        put_last(u);
        u->due_us = end + RETRY_US;
        return;
    }
    if (u->shrunk && end >= u->fold_us)
        fold_shrunk(k, end);
    u->head += done;
    if (disk_tight(k->e->disk) && disk_may_fold(k->e->disk))
        keeper_fold(k); /* what it wrote to the log takes space, too */
    if (u->head < u->n || u->shrinking) {
        bool busy = k->n_live > 0 && !disk_tight(k->e->disk);
        u->due_us = end + (end - begin) * (busy ? PACE_BUSY : PACE_IDLE);
        return;
    }
    /* One slice more after the last removal looks at the free pages. */
    int64_t left_ms = done > 0 || n_expired > 0 ? 0 : u->next_ms - u->horizon.now_ms;
    u->due_us = end + (left_ms < LOOK_US / 1000 ? (left_ms > 0 ? left_ms : 0) * 1000 : LOOK_US);
    if (u->shrunk && u->fold_us < u->due_us)
        u->due_us = u->fold_us;
}
