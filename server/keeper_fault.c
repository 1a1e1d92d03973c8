/* What the keeper does where the database is damaged. A batch with requests that cannot be read is
 * its own fault, nobody else's: its other requests are fetched, these end as failed. */
#include <unistd.h>

#include "server/keeper_int.h"
#include "server/outcome.h"

enum {
    SWEEP_RESULTS = 2000, /* a group */
    SWEEP_BITS = 1000000, /* looked at, a group */
};

static const char UNREADABLE[] = "the part of the database that held this request is damaged";

void keeper_give_up(struct keeper *k)
{
    log_event(LOG_ERROR, "data_lost", LOG_S("msg", "ending, to start again from what is stored"),
              LOG_S("error", store_error(k->e->store)));
    _exit(KEEPER_LOST);
}

void keeper_damaged(struct keeper *k, struct live *l)
{
    if (!l->damaged)
        log_event(LOG_ERROR, "batch_damaged", LOG_S("batch", l->b.id),
                  LOG_S("error", store_error(k->e->store)),
                  LOG_S("msg", "requests that cannot be read end as failed (internal): "
                               "stop, and look at --check"));
    l->damaged = true;
    feeder_plain(l);
}

void keeper_sweep(struct keeper *k, struct live *l)
{
    if (!l->damaged || l->clearing || l->outstanding > 0 || !feeder_over(l) ||
        atomic_load(&l->retry_wait) > 0 || l->done == l->b.total)
        return;
    l->clearing = l->sweep = true;
    l->cancel_page = -1;
    l->cancel_next = k->cancelling;
    k->cancelling = l;
}

int keeper_sweep_slice(struct keeper *k, struct live *l)
{
    unsigned added = 0, seen = 0;
    int64_t waited = now_us() - l->accept_us;
    while (added < SWEEP_RESULTS && seen++ < SWEEP_BITS) {
        uint64_t i = (uint64_t)(k->cancel_page + 1);
        if (i >= l->b.total) {
            k->cancel_over = true;
            return 0;
        }
        k->cancel_page++;
        if ((l->done_bits[i / 8] >> (i % 8)) & 1)
            continue;
        struct result r = {
            .index = i,
            .status = RESULT_FAILED,
            .error = OUTCOME_INTERNAL,
            .error_message = {UNREADABLE, sizeof(UNREADABLE) - 1},
            .url = {"", 0},
            .completed_ms = wall_ms(),
        };
        r.timing_us[TIMING_QUEUED] = waited > 0 ? (uint64_t)waited : 0;
        int rc = keeper_add_result(k, l, &r);
        if (rc == E_EXISTS) /* fetched, in this very group */
            continue;
        if (rc != 0)
            return rc;
        keeper_note_done(k, i);
        added++;
    }
    return 0;
}

void keeper_note_done(struct keeper *k, uint64_t index)
{
    if (k->n_cancelled == k->cap_cancelled) {
        k->cap_cancelled = k->cap_cancelled == 0 ? 1024 : k->cap_cancelled * 2;
        k->cancelled = xrealloc(k->cancelled, k->cap_cancelled * sizeof(*k->cancelled));
    }
    k->cancelled[k->n_cancelled++] = index;
}
