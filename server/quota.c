/* Shared limits; see quota.h. All operations are sequentially consistent: "set my waiting bit,
 * then look at free" against "add to free, then look at the bits" must not both miss. */
#include "server/quota.h"

void quota_init(struct quota *q, uint32_t limit)
{
    ASSERT(limit > 0 && limit <= INT32_MAX);
    atomic_init(&q->limit, limit);
    atomic_init(&q->free, (int32_t)limit);
    atomic_init(&q->waiters, 0);
    atomic_init(&q->last, UINT32_MAX);
    for (unsigned i = 0; i < QUOTA_MEMBERS_MAX; i++)
        atomic_init(&q->weight[i], 0);
}

void quota_set_limit(struct quota *q, uint32_t limit)
{
    ASSERT(limit > 0 && limit <= INT32_MAX);
    uint32_t was = atomic_load(&q->limit);
    if (limit > was) { /* in this order: never more free than the limit says */
        atomic_store(&q->limit, limit);
        atomic_fetch_add(&q->free, (int32_t)(limit - was));
    } else {
        atomic_fetch_sub(&q->free, (int32_t)(was - limit));
        atomic_store(&q->limit, limit);
    }
}

static uint64_t weight(const struct quota *q, unsigned member)
{
    uint64_t w = atomic_load(&q->weight[member]);
    return w != 0 ? w : 1;
}

void quota_weigh(struct quota *q, unsigned me, uint64_t w)
{
    if (atomic_load(&q->weight[me]) != w)
        atomic_store(&q->weight[me], w);
}

/* Whether `me` may have one more while others wait: below its share always; at its share (what an
 * uneven division leaves over) by turns. */
static bool within_share(const struct quota *q, unsigned me, uint32_t held)
{
    uint32_t others = atomic_load(&q->waiters) & ~(1U << me);
    if (others == 0)
        return true;
    uint64_t mine = weight(q, me), all = mine;
    for (; others != 0; others &= others - 1)
        all += weight(q, (unsigned)__builtin_ctz(others));
    uint64_t share = atomic_load(&q->limit) * mine / all;
    return held < share || (held == share && atomic_load(&q->last) != me);
}

static bool try_take(struct quota *q, unsigned me, uint32_t held)
{
    if (!within_share(q, me, held))
        return false;
    int32_t n = atomic_load(&q->free);
    while (n > 0) {
        if (atomic_compare_exchange_weak(&q->free, &n, n - 1)) {
            atomic_store(&q->last, me);
            return true;
        }
    }
    return false;
}

bool quota_take(struct quota *q, unsigned me, uint32_t held)
{
    if (try_take(q, me, held))
        return true;
    atomic_fetch_or(&q->waiters, 1U << me);
    if (!try_take(q, me, held))
        return false;
    atomic_fetch_and(&q->waiters, ~(1U << me));
    return true;
}

void quota_give(struct quota *q)
{
    int32_t was = atomic_fetch_add(&q->free, 1);
    ASSERT(was < (int32_t)atomic_load(&q->limit));
}

void quota_wait(struct quota *q, unsigned me)
{
    if (!(atomic_load(&q->waiters) & (1U << me)))
        atomic_fetch_or(&q->waiters, 1U << me);
}

void quota_unwait(struct quota *q, unsigned me)
{
    atomic_fetch_and(&q->waiters, ~(1U << me));
}

uint32_t quota_wake(struct quota *q, unsigned me)
{
    uint32_t waiting = atomic_load(&q->waiters);
    if (waiting == 0 || atomic_load(&q->free) <= 0)
        return 0;
    uint32_t others = waiting & ~(1U << me);
    /* While others wait, they come first: they wake us when they leave something. */
    uint32_t mask = others != 0 ? others : waiting;
    atomic_fetch_and(&q->waiters, ~mask);
    return mask;
}
