/* What the keeper counts for /metrics. What a group stores is counted when it is committed, in the
 * same moment (engine.mutex) in which the batches' own counts change: so the sums always fit. */
#include <string.h>

#include "server/keeper_int.h"

void keeper_count_result(struct keeper *k, const struct result *r)
{
    unsigned i = METRIC_RESULT_SUCCEEDED;
    if (r->status == RESULT_CANCELLED)
        i = METRIC_RESULT_CANCELLED;
    else if (r->status == RESULT_FAILED)
        i = r->error > OUTCOME_NONE && r->error <= OUTCOME_INTERNAL ? (unsigned)r->error
                                                                    : METRIC_RESULT_INTERNAL;
    k->group_results[i]++;
    k->group_bytes += r->body_len;
}

void keeper_count_nothing(struct keeper *k)
{
    memset(k->group_results, 0, sizeof(k->group_results));
    k->group_bytes = 0;
}

void keeper_count_group(struct keeper *k)
{
    for (unsigned i = 0; i < ARRAY_LEN(k->group_results); i++)
        metric_add(METRIC_RESULTS + i, k->group_results[i]);
    metric_add(METRIC_RECEIVED, k->group_bytes);
    keeper_count_nothing(k);
}

static uint64_t pending(const struct live *l)
{
    return l->b.total - l->b.succeeded - l->b.failed - l->b.cancelled;
}

void keeper_count_accepted(const struct live *l)
{
    metric_add(METRIC_REQUESTS_ACCEPTED, l->b.total);
}

void keeper_count_recovered(const struct live *l)
{
    metric_add(METRIC_BATCHES_RECOVERED, 1);
    metric_add(METRIC_REQUESTS_RECOVERED, pending(l));
}

void keeper_count_end(const struct live *l)
{
    bool cancelled = l->b.state == BATCH_CANCELLED;
    metric_add(METRIC_BATCHES_ENDED + (cancelled ? METRIC_ENDED_CANCELLED : METRIC_ENDED_COMPLETED),
               1);
}

void keeper_count_deleted(const struct live *l)
{
    metric_add(METRIC_BATCHES_ENDED + METRIC_ENDED_DELETED, 1);
    metric_add(METRIC_REQUESTS_DROPPED, pending(l));
}

int keeper_commit(struct keeper *k, bool durable)
{
    uint64_t results = 0;
    for (unsigned i = 0; i < ARRAY_LEN(k->group_results); i++)
        results += k->group_results[i];
    unsigned sync = durable ? METRIC_SYNC_FULL : METRIC_SYNC_NONE;
    int64_t begin = now_us();
    int rc = store_commit(k->e->store);
    metric_observe_us(METRIC_COMMIT_TIME, sync, now_us() - begin);
    if (rc == 0) {
        metric_add(METRIC_COMMITS + sync, 1);
        metric_observe(METRIC_COMMIT_RESULTS, 0, results);
    }
    return rc;
}

static void checkpoint(struct keeper *k, bool force)
{
    uint64_t done, failed, done_now, failed_now;
    store_checkpoints(k->e->store, &done, &failed);
    int64_t begin = now_us();
    store_checkpoint(k->e->store, force);
    store_checkpoints(k->e->store, &done_now, &failed_now);
    if (done_now + failed_now == done + failed) /* nothing was to be done */
        return;
    metric_observe_us(METRIC_CHECKPOINT_TIME, 0, now_us() - begin);
    metric_add(METRIC_CHECKPOINTS + METRIC_OUTCOME_OK, done_now - done);
    metric_add(METRIC_CHECKPOINTS + METRIC_OUTCOME_FAILED, failed_now - failed);
}

void keeper_checkpoint(struct keeper *k)
{
    bool force = disk_fold(k->e->disk);
    if (store_checkpoint_due(k->e->store, force) && disk_may_fold(k->e->disk))
        checkpoint(k, force);
}

bool keeper_fold(struct keeper *k)
{
    checkpoint(k, true);
    return store_unfolded(k->e->store) == 0;
}
