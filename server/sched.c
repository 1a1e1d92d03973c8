/* Limits and fairness; see sched.h. A state change means moving between lists, and lane_settle
 * and host_settle are the only functions that do it. */
#include "server/sched.h"

static void list_init(struct sched_link *l)
{
    l->prev = l->next = l;
}

static bool list_empty(const struct sched_link *l)
{
    return l->next == l;
}

static void list_remove(struct sched_link *l)
{
    l->prev->next = l->next;
    l->next->prev = l->prev;
    list_init(l);
}

static void list_append(struct sched_link *list, struct sched_link *l)
{
    ASSERT(list_empty(l));
    l->prev = list->prev;
    l->next = list;
    list->prev->next = l;
    list->prev = l;
}

#define HOST_OF(p) CONTAINER_OF(p, struct sched_host, link)
#define LANE_OF(p) CONTAINER_OF(p, struct sched_lane, link)
#define BATCH_OF(p) CONTAINER_OF(p, struct sched_batch, link)

void sched_init(struct sched *s, struct quota *global, unsigned me)
{
    list_init(&s->ready);
    list_init(&s->blocked);
    list_init(&s->notify);
    s->global = global;
    s->me = me;
    s->in_flight = 0;
    s->wake = 0;
}

void sched_host_init(struct sched_host *h, uint32_t limit)
{
    ASSERT(limit > 0);
    list_init(&h->link);
    list_init(&h->lanes);
    h->limit = limit;
    h->in_flight = 0;
    h->n_lanes = 0;
}

void sched_batch_init(struct sched_batch *b, struct quota *quota, uint32_t max_per_host)
{
    list_init(&b->link);
    list_init(&b->notify);
    list_init(&b->parked);
    b->quota = quota;
    b->max_per_host = max_per_host;
    b->in_flight = 0;
}

void sched_lane_init(struct sched_lane *l, struct sched_host *h, struct sched_batch *b)
{
    list_init(&l->link);
    l->host = h;
    l->batch = b;
    l->state = LANE_EMPTY;
    l->queued = 0;
    l->in_flight = 0;
    h->n_lanes++;
}

void sched_lane_fini(struct sched_lane *l)
{
    ASSERT(l->queued == 0 && l->in_flight == 0);
    ASSERT(list_empty(&l->link));
    l->host->n_lanes--;
}

void sched_batch_fini(struct sched *s, struct sched_batch *b)
{
    ASSERT(list_empty(&b->parked) && list_empty(&b->link) && b->in_flight == 0);
    if (list_empty(&b->notify))
        return;
    list_remove(&b->notify);
    s->wake |= quota_wake(b->quota, s->me);
}

/* The host stands in the ready ring exactly while it has a slot and a READY lane. */
static void host_settle(struct sched *s, struct sched_host *h)
{
    bool startable = h->in_flight < h->limit && !list_empty(&h->lanes);
    bool in_ring = !list_empty(&h->link);
    if (startable && !in_ring)
        list_append(&s->ready, &h->link);
    else if (!startable && in_ring)
        list_remove(&h->link);
}

static void notify(struct sched *s, struct sched_batch *b)
{
    if (list_empty(&b->notify))
        list_append(&s->notify, &b->notify);
}

/* The last parked lane is gone. Whoever left slots to us has to be told. */
static void stop_waiting(struct sched *s, struct sched_batch *b)
{
    list_remove(&b->link);
    quota_unwait(b->quota, s->me);
    notify(s, b);
}

/* Moves the lane to where its numbers say it belongs; `park`: the batch's quota had no slot. */
static void lane_settle(struct sched *s, struct sched_lane *l, bool park)
{
    struct sched_batch *b = l->batch;
    enum sched_lane_state state = LANE_READY;
    if (l->queued == 0)
        state = LANE_EMPTY;
    else if (b->max_per_host != 0 && l->in_flight >= b->max_per_host)
        state = LANE_CAPPED;
    else if (park)
        state = LANE_PARKED;

    if (state != l->state) {
        if (!list_empty(&l->link))
            list_remove(&l->link);
        if (state == LANE_READY)
            list_append(&l->host->lanes, &l->link);
        else if (state == LANE_PARKED)
            list_append(&b->parked, &l->link);
        l->state = state;
        bool blocked = !list_empty(&b->link);
        if (!list_empty(&b->parked) && !blocked)
            list_append(&s->blocked, &b->link);
        else if (list_empty(&b->parked) && blocked)
            stop_waiting(s, b);
    }
    host_settle(s, l->host);
}

void sched_queue(struct sched *s, struct sched_lane *l, uint32_t n)
{
    l->queued += n;
    lane_settle(s, l, l->state == LANE_PARKED);
}

void sched_drop_queued(struct sched *s, struct sched_lane *l)
{
    l->queued = 0;
    lane_settle(s, l, false);
}

/* Lanes that waited for their batch's quota go back to their hosts' rings, no more of them than
 * there are slots. Returns whether any did. */
static bool unpark(struct sched *s)
{
    bool any = false;
    struct sched_link *p = s->blocked.next;
    while (p != &s->blocked) {
        struct sched_batch *b = BATCH_OF(p);
        p = p->next; /* b may leave the list below */
        int32_t room = atomic_load(&b->quota->free);
        while (room-- > 0 && !list_empty(&b->parked)) {
            lane_settle(s, LANE_OF(b->parked.next), false);
            any = true;
        }
    }
    return any;
}

void sched_turn(struct sched *s)
{
    (void)unpark(s);
}

static void take(struct sched *s, struct sched_lane *l)
{
    struct sched_host *h = l->host;
    l->queued--;
    l->in_flight++;
    l->batch->in_flight++;
    h->in_flight++;
    s->in_flight++;
    /* Round robin: lane and host go to the end of their rings, if they stay in them. */
    list_remove(&l->link);
    list_append(&h->lanes, &l->link);
    lane_settle(s, l, false);
    if (!list_empty(&h->link)) {
        list_remove(&h->link);
        list_append(&s->ready, &h->link);
    }
}

struct sched_lane *sched_pick(struct sched *s)
{
    for (;;) {
        while (list_empty(&s->ready)) { /* unparked lanes may find their hosts full */
            if (!unpark(s))
                return NULL;
        }
        if (!quota_take(s->global, s->me, s->in_flight))
            return NULL;
        struct sched_lane *l = LANE_OF(HOST_OF(s->ready.next)->lanes.next);
        struct sched_batch *b = l->batch;
        if (b->quota == NULL || quota_take(b->quota, s->me, b->in_flight)) {
            take(s, l);
            return l;
        }
        quota_give(s->global);
        lane_settle(s, l, true);
        /* The batch's slots that are free are kept for another fetcher's turn: without this the
         * same lane would be unparked and parked for ever. */
        if (list_empty(&s->ready))
            return NULL;
    }
}

void sched_release(struct sched *s, struct sched_lane *l)
{
    ASSERT(l->in_flight > 0 && l->host->in_flight > 0 && s->in_flight > 0);
    l->in_flight--;
    l->batch->in_flight--;
    l->host->in_flight--;
    s->in_flight--;
    quota_give(s->global);
    if (l->batch->quota != NULL) {
        quota_give(l->batch->quota);
        notify(s, l->batch);
    }
    lane_settle(s, l, l->state == LANE_PARKED);
}

uint32_t sched_wake_others(struct sched *s, bool *again)
{
    uint32_t me = 1U << s->me;
    uint32_t mask = quota_wake(s->global, s->me) | s->wake;
    s->wake = 0;
    while (!list_empty(&s->notify)) {
        struct sched_batch *b = CONTAINER_OF(s->notify.next, struct sched_batch, notify);
        list_remove(&b->notify);
        mask |= quota_wake(b->quota, s->me);
    }
    for (struct sched_link *p = s->blocked.next; p != &s->blocked; p = p->next) {
        /* Parked lanes are woken by our bit alone, and whoever woke us took it away. */
        quota_wait(BATCH_OF(p)->quota, s->me);
        mask |= quota_wake(BATCH_OF(p)->quota, s->me);
    }
    *again = (mask & me) != 0;
    return mask & ~me;
}
