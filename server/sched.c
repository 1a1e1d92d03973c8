/* Limits, rates and fairness; see sched.h. A state change means moving between lists and queues:
 * lane_settle, host_settle and batch_settle are the functions that do it. */
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

#define LANE_OF(p) CONTAINER_OF(p, struct sched_lane, link)
#define OFFERED_LANE(p) CONTAINER_OF(p, struct sched_lane, offer)
#define BATCH_OF(p) CONTAINER_OF(p, struct sched_batch, link)

/* ---- token buckets (GCRA) ---- */

struct sched_rate sched_rate_of(uint32_t per_1000_s)
{
    if (per_1000_s == 0)
        return (struct sched_rate){0, 0};
    uint32_t burst = per_1000_s / 20000;
    return (struct sched_rate){(1000000000000 + per_1000_s - 1) / per_1000_s,
                               burst > 0 ? burst : 1};
}

static uint32_t tokens(const struct sched_rate *r, int64_t tat_ns, int64_t now_us)
{
    if (r->interval_ns == 0)
        return UINT32_MAX;
    int64_t n = (now_us * 1000 - tat_ns + r->burst * r->interval_ns) / r->interval_ns;
    return n <= 0 ? 0 : n > r->burst ? r->burst : (uint32_t)n;
}

/* When there will be n tokens, µs; INT64_MAX: there never are so many. */
static int64_t tokens_at(const struct sched_rate *r, int64_t tat_ns, uint32_t n)
{
    if (r->interval_ns == 0)
        return 0;
    if (n > r->burst)
        return INT64_MAX;
    int64_t ns = tat_ns - (int64_t)(r->burst - n) * r->interval_ns;
    return ns <= 0 ? 0 : (ns + 999) / 1000;
}

static void take_token(const struct sched_rate *r, int64_t *tat_ns, int64_t now_us)
{
    if (r->interval_ns == 0)
        return;
    if (*tat_ns < now_us * 1000)
        *tat_ns = now_us * 1000;
    *tat_ns += r->interval_ns;
}

/* ---- timers ---- */

static void timer_arm(struct sched *s, struct sched_timer *t, int64_t due_us)
{
    if (heap_has(&t->node)) {
        if (t->node.key == due_us)
            return;
        heap_remove(&s->timers, &t->node);
    }
    if (due_us != INT64_MAX)
        heap_add(&s->timers, &t->node, due_us);
}

static void timer_stop(struct sched *s, struct sched_timer *t)
{
    timer_arm(s, t, INT64_MAX);
}

int64_t sched_due(const struct sched *s)
{
    return s->timers.root != NULL ? s->timers.root->key : INT64_MAX;
}

/* ---- made and forgotten ---- */

void sched_init(struct sched *s, struct quota *global, unsigned me)
{
    *s = (struct sched){.global = global, .me = me, .batches.slots = 1, .kept_max = SCHED_KEPT_MAX};
    list_init(&s->blocked);
    list_init(&s->notify);
    list_init(&s->forget_hosts);
    list_init(&s->forget_lanes);
}

void sched_host_init(struct sched_host *h, uint32_t limit, struct sched_rate rate)
{
    ASSERT(limit > 0);
    *h = (struct sched_host){.limit = limit, .rate = rate, .waiting.slots = limit};
    h->timer.is_host = true;
    list_init(&h->forget);
}

void sched_batch_init(struct sched_batch *b, struct quota *quota, uint32_t max_per_host,
                      struct sched_rate rate, uint8_t priority)
{
    ASSERT(priority <= FAIR_PRIORITY_MAX);
    *b = (struct sched_batch){.quota = quota, .max_per_host = max_per_host, .rate = rate};
    b->user.priority = priority;
    b->head_start = priority >= SCHED_PRIORITY ? SCHED_HEAD_START : 0;
    b->user.fresh = b->head_start > 0;
    list_init(&b->link);
    list_init(&b->notify);
    list_init(&b->ready);
    list_init(&b->offered);
}

void sched_lane_init(struct sched_lane *l, struct sched_host *h, struct sched_batch *b)
{
    *l = (struct sched_lane){.host = h, .batch = b, .state = LANE_EMPTY};
    l->user.priority = b->user.priority;
    list_init(&l->link);
    list_init(&l->offer);
    h->n_lanes++;
}

static void unkeep(struct sched *s, bool *kept)
{
    s->kept -= *kept;
    *kept = false;
}

void sched_lane_fini(struct sched *s, struct sched_lane *l)
{
    ASSERT(l->queued == 0 && l->in_flight == 0 && l->offered == 0);
    unkeep(s, &l->kept);
    timer_stop(s, &l->timer);
    list_remove(&l->link);
    l->host->n_lanes--;
}

void sched_host_fini(struct sched *s, struct sched_host *h)
{
    ASSERT(h->in_flight == 0 && h->offered == 0 && fair_empty(&h->waiting));
    unkeep(s, &h->kept);
    timer_stop(s, &h->timer);
    list_remove(&h->forget);
}

void sched_batch_fini(struct sched *s, struct sched_batch *b)
{
    ASSERT(list_empty(&b->ready) && list_empty(&b->offered) && list_empty(&b->link));
    ASSERT(b->in_flight == 0 && !fair_has(&b->user));
    if (list_empty(&b->notify))
        return;
    list_remove(&b->notify);
    s->wake |= quota_wake(b->quota, s->me);
}

static bool keep(struct sched *s, struct sched_timer *t, bool *kept, int64_t until)
{
    if (until <= s->now || (!*kept && s->kept >= s->kept_max))
        return false;
    s->kept += !*kept;
    *kept = true;
    timer_arm(s, t, until);
    return true;
}

bool sched_lane_keep(struct sched *s, struct sched_lane *l)
{
    ASSERT(l->queued == 0 && l->in_flight == 0);
    return keep(s, &l->timer, &l->kept,
                tokens_at(&l->batch->rate, l->tat_ns, l->batch->rate.burst));
}

bool sched_host_keep(struct sched *s, struct sched_host *h)
{
    ASSERT(h->n_lanes == 0);
    int64_t until = tokens_at(&h->rate, h->tat_ns, h->rate.burst);
    return keep(s, &h->timer, &h->kept, until > h->paused_us ? until : h->paused_us);
}

struct sched_lane *sched_forgotten_lane(struct sched *s)
{
    if (list_empty(&s->forget_lanes))
        return NULL;
    struct sched_lane *l = LANE_OF(s->forget_lanes.next);
    list_remove(&l->link);
    return l;
}

struct sched_host *sched_forgotten_host(struct sched *s)
{
    if (list_empty(&s->forget_hosts))
        return NULL;
    struct sched_host *h = CONTAINER_OF(s->forget_hosts.next, struct sched_host, forget);
    list_remove(&h->forget);
    return h;
}

/* ---- where things belong ---- */

static bool blocked(const struct sched_batch *b)
{
    return !list_empty(&b->link);
}

static void notify(struct sched *s, struct sched_batch *b)
{
    if (list_empty(&b->notify))
        list_append(&s->notify, &b->notify);
}

/* It is no longer blocked. Whoever left slots to us has to be told. */
static void stop_waiting(struct sched *s, struct sched_batch *b)
{
    list_remove(&b->link);
    quota_unwait(b->quota, s->me);
    notify(s, b);
}

/* A batch with something to start stands in the queue of batches, or among the blocked ones. */
static void batch_settle(struct sched *s, struct sched_batch *b)
{
    bool any = !list_empty(&b->ready) || !list_empty(&b->offered);
    if (blocked(b)) {
        if (any)
            return;
        stop_waiting(s, b);
    } else if (any && !fair_has(&b->user)) {
        fair_add(&s->batches, &b->user);
    } else if (!any && fair_has(&b->user)) {
        fair_remove(&s->batches, &b->user);
    }
}

/* Slots that the host has for starts that nothing was offered to yet, whatever its rate says. */
static uint32_t free_slots(const struct sched_host *h)
{
    uint32_t used = h->in_flight + h->offered;
    return used < h->limit ? h->limit - used : 0;
}

/* Whether it may start something more now. */
static bool host_open(const struct sched *s, const struct sched_host *h)
{
    return free_slots(h) > 0 && !h->held && h->paused_us <= s->now &&
           tokens(&h->rate, h->tat_ns, s->now) > h->offered;
}

static void lane_leave(struct sched *s, struct sched_lane *l)
{
    switch (l->state) {
    case LANE_EMPTY: /* perhaps kept for its rate, or to be forgotten */
        unkeep(s, &l->kept);
        timer_stop(s, &l->timer);
        list_remove(&l->link);
        break;
    case LANE_READY: list_remove(&l->link); break;
    case LANE_WAITING: fair_remove(&l->host->waiting, &l->user); break;
    case LANE_TIMED: timer_stop(s, &l->timer); break;
    case LANE_CAPPED: break;
    }
}

static void lane_move(struct sched *s, struct sched_lane *l, enum sched_lane_state state)
{
    if (state == l->state)
        return;
    lane_leave(s, l);
    l->state = state;
    if (state == LANE_READY)
        list_append(&l->batch->ready, &l->link);
    if (state == LANE_WAITING) {
        l->user.fresh = l->batch->head_start > 0;
        fair_add(&l->host->waiting, &l->user);
    }
}

/* Moves the lane to where its numbers say that it belongs. Follow with host_settle. */
static void lane_settle(struct sched *s, struct sched_lane *l)
{
    const struct sched_batch *b = l->batch;
    if (l->queued == l->offered) {
        lane_move(s, l, LANE_EMPTY);
    } else if (b->max_per_host != 0 && l->in_flight + l->offered >= b->max_per_host) {
        lane_move(s, l, LANE_CAPPED);
    } else if (tokens(&b->rate, l->tat_ns, s->now) <= l->offered) {
        lane_move(s, l, LANE_TIMED);
        timer_arm(s, &l->timer, tokens_at(&b->rate, l->tat_ns, l->offered + 1));
    } else if (blocked(b)) { /* would only have to let offers pass */
        lane_move(s, l, LANE_READY);
    } else if (!fair_empty(&l->host->waiting) || !host_open(s, l->host)) {
        lane_move(s, l, LANE_WAITING);
    } else {
        lane_move(s, l, LANE_READY);
    }
}

/* Offers that the lane cannot use now pass to others. Follow with lane_settle, host_settle. */
static void give_up(struct sched_lane *l)
{
    if (l->offered == 0)
        return;
    fair_undo(&l->host->waiting, &l->user, l->offered);
    l->host->offered -= l->offered;
    l->offered = 0;
    list_remove(&l->offer);
}

/* Offers what the host has to the lanes that wait there, and sees to its timer. */
static void host_settle(struct sched *s, struct sched_host *h)
{
    while (!fair_empty(&h->waiting) && host_open(s, h)) {
        struct sched_lane *l = CONTAINER_OF(fair_next(&h->waiting), struct sched_lane, user);
        struct sched_batch *b = l->batch;
        if (blocked(b) || fair_alone(&h->waiting, &l->user)) {
            /* Nothing is held for one that cannot use it; nor where nobody competes: it may be
             * long until its batch's turn comes. */
            lane_move(s, l, LANE_READY);
        } else {
            if (l->offered++ == 0)
                list_append(&b->offered, &l->offer);
            h->offered++;
            l->user.fresh = b->head_start > l->offered;
            fair_take(&h->waiting, &l->user);
            lane_settle(s, l);
        }
        batch_settle(s, b);
    }
    if (fair_empty(&h->waiting) || free_slots(h) == 0 || h->held) {
        if (!h->kept)
            timer_stop(s, &h->timer);
        return;
    }
    unkeep(s, &h->kept);
    int64_t token = tokens_at(&h->rate, h->tat_ns, h->offered + 1);
    timer_arm(s, &h->timer, token > h->paused_us ? token : h->paused_us);
}

static void lane_changed(struct sched *s, struct sched_lane *l)
{
    lane_settle(s, l);
    host_settle(s, l->host);
    batch_settle(s, l->batch);
}

/* The batch's quota has no slot. What was offered to it must not stand idle. */
static void block(struct sched *s, struct sched_batch *b)
{
    fair_remove(&s->batches, &b->user);
    list_append(&s->blocked, &b->link);
    notify(s, b); /* a slot that is free may be kept for another fetcher */
    while (!list_empty(&b->offered)) {
        struct sched_lane *l = OFFERED_LANE(b->offered.next);
        give_up(l);
        lane_settle(s, l);
        host_settle(s, l->host);
    }
    batch_settle(s, b);
}

/* If its quota has slots, it stands in line again. */
static void unblock(struct sched *s, struct sched_batch *b)
{
    if (!blocked(b) || atomic_load(&b->quota->free) <= 0)
        return;
    stop_waiting(s, b);
    batch_settle(s, b);
}

/* The same for all. Only after another fetcher has woken us: our own slots, and what is found free
 * while a batch is being blocked, lead to that batch alone. */
static void unblock_all(struct sched *s)
{
    for (struct sched_link *p = s->blocked.next, *next; p != &s->blocked; p = next) {
        next = p->next;
        unblock(s, BATCH_OF(p));
    }
}

/* ---- what happens ---- */

static void fire(struct sched *s, struct sched_timer *t)
{
    heap_remove(&s->timers, &t->node);
    if (!t->is_host) {
        struct sched_lane *l = CONTAINER_OF(t, struct sched_lane, timer);
        if (l->kept && list_empty(&l->link))
            list_append(&s->forget_lanes, &l->link);
        unkeep(s, &l->kept);
        if (l->state == LANE_TIMED)
            lane_changed(s, l);
        return;
    }
    struct sched_host *h = CONTAINER_OF(t, struct sched_host, timer);
    if (h->n_lanes == 0 && list_empty(&h->forget))
        list_append(&s->forget_hosts, &h->forget);
    unkeep(s, &h->kept);
    host_settle(s, h);
}

void sched_turn(struct sched *s, int64_t now, bool woken)
{
    ASSERT(now >= s->now);
    s->now = now;
    while (sched_due(s) <= now)
        fire(s, CONTAINER_OF(s->timers.root, struct sched_timer, node));
    s->woken = s->woken || woken;
    if (s->woken)
        unblock_all(s);
}

void sched_queue(struct sched *s, struct sched_lane *l, uint32_t n)
{
    l->queued += n;
    lane_changed(s, l);
}

void sched_drop_queued(struct sched *s, struct sched_lane *l)
{
    l->queued = 0;
    give_up(l);
    lane_changed(s, l);
}

/* The batch's next lane that may start something; the others go to where they have to wait. NULL:
 * it has none; then it has left the queue. */
static struct sched_lane *next_lane(struct sched *s, struct sched_batch *b)
{
    while (!list_empty(&b->offered)) {
        struct sched_lane *l = OFFERED_LANE(b->offered.next);
        if (l->host->paused_us <= s->now && !l->host->held)
            return l;
        give_up(l); /* paused since */
        lane_changed(s, l);
    }
    while (!list_empty(&b->ready)) {
        struct sched_lane *l = LANE_OF(b->ready.next);
        lane_settle(s, l);
        if (l->state == LANE_READY)
            return l;
        host_settle(s, l->host); /* it may have to come back by time */
        batch_settle(s, b);
    }
    return NULL;
}

static void start(struct sched *s, struct sched_lane *l)
{
    struct sched_host *h = l->host;
    struct sched_batch *b = l->batch;
    if (l->offered > 0) {
        h->offered--;
        if (--l->offered == 0)
            list_remove(&l->offer);
    } else {
        l->user.fresh = b->head_start > 0;
        fair_take(&h->waiting, &l->user);
        list_remove(&l->link); /* round robin */
        list_append(&b->ready, &l->link);
    }
    l->queued--;
    l->in_flight++;
    b->in_flight++;
    h->in_flight++;
    s->in_flight++;
    take_token(&b->rate, &l->tat_ns, s->now);
    take_token(&h->rate, &h->tat_ns, s->now);
    s->batches.slots = s->in_flight + 1;
    if (b->head_start > 0)
        b->head_start--;
    fair_take(&s->batches, &b->user);
    b->user.fresh = b->head_start > 0;
    lane_changed(s, l);
}

struct sched_lane *sched_pick(struct sched *s)
{
    while (!fair_empty(&s->batches)) {
        struct sched_batch *b = CONTAINER_OF(fair_next(&s->batches), struct sched_batch, user);
        struct sched_lane *l = next_lane(s, b);
        if (l == NULL)
            continue;
        quota_weigh(s->global, s->me, s->batches.weights);
        if (!quota_take(s->global, s->me, s->in_flight))
            return NULL;
        if (b->quota == NULL || quota_take(b->quota, s->me, b->in_flight)) {
            start(s, l);
            return l;
        }
        quota_give(s->global);
        block(s, b);
    }
    return NULL;
}

void sched_release(struct sched *s, struct sched_lane *l)
{
    struct sched_host *h = l->host;
    struct sched_batch *b = l->batch;
    ASSERT(l->in_flight > 0 && h->in_flight > 0 && s->in_flight > 0);
    l->in_flight--;
    b->in_flight--;
    h->in_flight--;
    s->in_flight--;
    s->batches.slots = s->in_flight + 1;
    fair_give(&s->batches, &b->user);
    fair_give(&h->waiting, &l->user);
    quota_give(s->global);
    if (b->quota != NULL) {
        quota_give(b->quota);
        notify(s, b);
        unblock(s, b);
    }
    lane_changed(s, l);
}

void sched_pause_host(struct sched *s, struct sched_host *h, int64_t until_us)
{
    if (until_us <= h->paused_us)
        return;
    h->paused_us = until_us;
    host_settle(s, h);
}

void sched_hold_host(struct sched *s, struct sched_host *h, bool on)
{
    h->held = on;
    host_settle(s, h);
}

void sched_host_limit(struct sched *s, struct sched_host *h, uint32_t limit)
{
    ASSERT(limit > 0);
    h->limit = h->waiting.slots = limit;
    host_settle(s, h);
}

void sched_host_rate(struct sched *s, struct sched_host *h, struct sched_rate rate)
{
    if (h->rate.interval_ns == rate.interval_ns && h->rate.burst == rate.burst)
        return;
    h->rate = rate;
    h->tat_ns = 0; /* as for a host never seen: a full bucket */
    host_settle(s, h);
}

/* Waits on for the batch's quota: a slot that came free meanwhile is found either here or by who
 * gave it. Returns whether the batch is to be tried again. */
static bool wait_on(struct sched *s, struct sched_batch *b, uint32_t *mask)
{
    while (blocked(b)) {
        quota_wait(b->quota, s->me);
        uint32_t wake = quota_wake(b->quota, s->me);
        *mask |= wake & ~(1U << s->me);
        if (!(wake & (1U << s->me)))
            return false;
        unblock(s, b);
    }
    return true;
}

uint32_t sched_wake_others(struct sched *s, bool *again)
{
    uint32_t me = 1U << s->me;
    uint32_t mask = quota_wake(s->global, s->me) | s->wake;
    s->wake = 0;
    *again = (mask & me) != 0;
    if (s->woken) {
        s->woken = false; /* whoever woke us took our mark off the quota, whichever it was */
        for (struct sched_link *p = s->blocked.next, *next; p != &s->blocked; p = next) {
            next = p->next;
            *again = wait_on(s, BATCH_OF(p), &mask) || *again;
        }
    }
    while (!list_empty(&s->notify)) {
        struct sched_batch *b = CONTAINER_OF(s->notify.next, struct sched_batch, notify);
        list_remove(&b->notify);
        if (blocked(b))
            *again = wait_on(s, b, &mask) || *again;
        else
            mask |= quota_wake(b->quota, s->me);
    }
    return mask & ~me;
}
