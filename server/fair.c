/* Weighted turns; see fair.h. */
#include "server/fair.h"

static uint64_t weight(const struct fair_user *u)
{
    return (uint64_t)1 << u->priority;
}

static int64_t stride(const struct fair_user *u)
{
    return (int64_t)1 << (FAIR_PRIORITY_MAX - u->priority);
}

/* Who holds nothing is never over its share, so nobody starves behind it. */
static bool over(const struct fair *q, const struct fair_user *u)
{
    return u->held > 0 && u->held * q->weights >= q->slots * weight(u);
}

static void put(struct fair *q, struct fair_user *u, enum fair_class class)
{
    u->class = class;
    heap_add(&q->heaps[class], &u->node, u->tag);
}

static void move(struct fair *q, struct fair_user *u, enum fair_class class)
{
    heap_remove(&q->heaps[u->class], &u->node);
    put(q, u, class);
}

void fair_add(struct fair *q, struct fair_user *u)
{
    if (u->tag < q->clock) /* turns that it did not want are not saved up */
        u->tag = q->clock;
    q->weights += weight(u);
    put(q, u, u->fresh ? FAIR_FRESH : FAIR_UNDER);
}

void fair_remove(struct fair *q, struct fair_user *u)
{
    heap_remove(&q->heaps[u->class], &u->node);
    q->weights -= weight(u);
}

bool fair_alone(const struct fair *q, const struct fair_user *u)
{
    return q->weights == weight(u);
}

static struct fair_user *top(const struct fair *q, enum fair_class class)
{
    struct heap_node *n = q->heaps[class].root;
    return n == NULL ? NULL : CONTAINER_OF(n, struct fair_user, node);
}

struct fair_user *fair_next(struct fair *q)
{
    struct fair_user *fresh = top(q, FAIR_FRESH), *u;
    if (fresh != NULL && q->turns % 4 != 3)
        return fresh;
    /* A share shrinks while others come: found out when the turn comes. It grows again by
     * fair_give, or counts as over a little longer, which costs turns only while others hold
     * less. */
    while ((u = top(q, FAIR_UNDER)) != NULL && over(q, u))
        move(q, u, FAIR_OVER);
    if (u == NULL)
        u = top(q, FAIR_OVER);
    return u != NULL ? u : fresh;
}

void fair_take(struct fair *q, struct fair_user *u)
{
    bool queued = fair_has(u);
    q->turns++;
    u->held++;
    if (u->tag < q->clock)
        u->tag = q->clock;
    if (!u->fresh)
        q->clock = u->tag;
    u->tag += stride(u);
    if (queued)
        move(q, u, u->fresh ? FAIR_FRESH : over(q, u) ? FAIR_OVER : FAIR_UNDER);
}

void fair_give(struct fair *q, struct fair_user *u)
{
    ASSERT(u->held > 0);
    u->held--;
    if (fair_has(u) && u->class == FAIR_OVER && !over(q, u))
        move(q, u, FAIR_UNDER);
}

void fair_undo(struct fair *q, struct fair_user *u, uint32_t n)
{
    ASSERT(u->held >= n);
    u->held -= n;
    u->tag -= n * stride(u);
    if (fair_has(u))
        move(q, u, u->fresh ? FAIR_FRESH : FAIR_UNDER);
}
