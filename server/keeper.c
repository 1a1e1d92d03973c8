/* The keeper: the thread that owns the database. It takes all messages that came in during its
 * last commit, applies them in one transaction (keeper_apply.c), commits, and only then lets the
 * effects be seen: counts, answers, pages to the fetchers (keeper_finish.c). So a group's size
 * follows the load by itself, and whatever was answered is on disk. */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stdlib.h>

#include "server/keeper_int.h"
#include "server/pulse.h"

enum {
    GROUP_BYTES = 64 * 1024 * 1024, /* of results */
    GATHER_EACH_US = 2 * 1000,      /* … more for each batch that has some */
    GATHER_MAX_US = 200 * 1000,
    GATHER_BYTES = 8 * 1024 * 1024, /* of results that wait for others */
    GATHER_US = 10 * 1000,          /* between commits of results alone: each rewrites the last
                                       page of every table, so many small ones cost more */
};

/* Whatever others see after the commit is on the disk by then: a result that was read, or an end that
 * was shown, is there after a loss of power too. Measured: no CPU time and no throughput more, as
 * groups grow with the time that a sync takes. Pages wait for the commit of their batch. */
static bool needs_sync(const struct keeper *k, const struct msg *list)
{
    for (; list != NULL; list = list->next) {
        if (list->type != KEEPER_PAGES && list->type != KEEPER_WANT)
            return true;
    }
    return k->cancelling != NULL;
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
static int commit_group(struct keeper *k, struct msg *list, bool background)
{
    struct engine *e = k->e;
    background = background && keeper_has_background(k);
    if (!background && !needs_transaction(list))
        return 0;
    bool durable = needs_sync(k, list);
    int rc = background ? keeper_load(k) : 0;
    if (rc == 0)
        rc = store_begin(e->store, durable);
    if (rc != 0)
        goto out;
    for (struct msg *m = list; rc == 0 && m != NULL; m = m->next)
        rc = keeper_apply(k, m);
    if (rc == 0 && background)
        rc = keeper_background(k);
    if (rc == 0)
        rc = keeper_settle(k);
    if (rc == 0)
        rc = keeper_commit(k, durable);
    else
        store_rollback(e->store);
    if (rc == E_NOTFOUND || rc == E_EXISTS || rc == E_CONFLICT)
        rc = E_IO; /* what went wrong for one message says nothing to those of the others */
out:
    if (rc != 0) {
        if (store_lost(e->store))
            keeper_give_up(k);
        for (struct live *l = k->touched; l != NULL; l = l->touched_next)
            keeper_clear_group(l);
        k->touched = NULL;
        metric_add(METRIC_COMMITS_FAILED, 1);
        keeper_count_nothing(k);
        keeper_background_undo(k);
    }
    return rc;
}

int keeper_attempt(struct keeper *k, struct msg *list, bool background)
{
    int rc = commit_group(k, list, background);
    if (rc == 0) {
        if (list != NULL) /* before fetchers see that what they brought in is stored */
            (void)keeper_note(k);
        keeper_background_done(k);
        keeper_publish(k);
    } else {
        disk_failed(k->e->disk, rc, store_error(k->e->store));
    }
    return rc;
}

static void turn(struct keeper *k, struct msg *list)
{
    keeper_tell_time(k);
    bool broken = disk_broken(k->e->disk);
    int rc = keeper_attempt(k, list, !broken);
    if (rc == E_FULL) {
        keeper_turn_full(k, list);
        list = NULL;
    }
    bool reading = store_read_begin(k->e->store) == 0; /* if not: one by one */
    for (struct msg *m = list, *next; m != NULL; m = next) {
        next = m->next;
        keeper_finish(k, m, rc);
    }
    if (!k->stop)
        keeper_feed(k);
    if (reading)
        store_read_end(k->e->store);
    keeper_upkeep(k);
    keeper_checkpoint(k);
    if (broken && rc == 0 && disk_try(k->e->disk))
        keeper_probe(k);
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
    bool broken = disk_broken(k->e->disk);
    if (!broken && keeper_has_background(k))
        return 0;
    int64_t due = k->kept != NULL && k->results_due < k->wake_us && !broken ? k->results_due
                                                                            : k->wake_us;
    if (k->upkeep.due_us < due && keeper_may_upkeep(k))
        due = k->upkeep.due_us;
    int64_t left = due - now_us(), pace = disk_pace_us(k->e->disk);
    left = left < pace ? left : pace;
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
    if (now_us() >= k->results_due || keeper_has_background(k) ||
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
    pulse_register("keeper");
    while (!k->stop) {
        struct pollfd p = {.fd = k->e->inbox.fd, .events = POLLIN};
        if (poll(&p, 1, wait_ms(k)) < 0)
            ASSERT(errno == EINTR);
        int64_t begin = now_us();
        pulse_begin(begin);
        keeper_watch(k);
        bool hold = disk_broken(k->e->disk) && !disk_try(k->e->disk);
        struct msg *list = inbox_take(&k->e->inbox);
        if (!hold) {
            list = join(k->kept, list);
            k->kept = NULL;
            k->kept_tail = &k->kept;
        }
        if (hold || may_gather(k, list)) {
            turn(k, hold_results(k, list));
        } else {
            turn(k, bound_group(k, list));
            k->results_begin = now_us();
            k->results_due = k->kept != NULL ? 0 : k->results_begin + gather_us(k);
        }
        metric_observe_us(METRIC_LOOP_LAG, METRIC_THREAD_KEEPER, now_us() - begin);
        pulse_end();
    }
    keeper_drain(k);
    free(k);
    return NULL;
}
