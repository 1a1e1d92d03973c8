/* The scheduler of one fetcher: which request may start next, under the global limit, the limit
 * of each host, the limits of each batch, and fairly. Pure: no clock, no I/O, no curl; it counts
 * and moves lists, and each operation costs O(1) (amortised).
 *
 * A lane is one batch at one host. Hosts with something to start stand in a ring, and so do the
 * lanes of a host; each pick takes the first host and its first lane and moves both to the end.
 * A host belongs to one fetcher only, so its count is exact without a lock; limits that span the
 * fetchers are `struct quota`.
 *
 * One thread. */
#ifndef SERVER_SCHED_H
#define SERVER_SCHED_H

#include "server/base.h"
#include "server/quota.h"

struct sched_link {
    struct sched_link *prev, *next; /* self-linked: in no list */
};

enum sched_lane_state {
    LANE_EMPTY,  /* nothing queued */
    LANE_READY,  /* in its host's ring */
    LANE_CAPPED, /* at the batch's own limit for one host */
    LANE_PARKED, /* the batch's quota had no slot: in the batch's parked list */
};

struct sched_host {
    struct sched_link link;  /* in sched.ready: it may start something now */
    struct sched_link lanes; /* ring of READY lanes */
    uint32_t limit;
    uint32_t in_flight;
    uint32_t n_lanes; /* lanes that exist, in any state */
};

struct sched_batch {
    struct sched_link link;   /* in sched.blocked: it has parked lanes */
    struct sched_link notify; /* in sched.notify: it gave a slot back that others may wait for */
    struct sched_link parked; /* PARKED lanes */
    struct quota *quota;      /* NULL: no max_parallel of its own */
    uint32_t max_per_host;    /* 0: none of its own */
    uint32_t in_flight;       /* in this fetcher */
};

struct sched_lane {
    struct sched_link link; /* in the host's ring or the batch's parked list */
    struct sched_host *host;
    struct sched_batch *batch;
    enum sched_lane_state state;
    uint32_t queued;
    uint32_t in_flight;
};

struct sched {
    struct sched_link ready;   /* hosts */
    struct sched_link blocked; /* batches with parked lanes */
    struct sched_link notify;  /* batches whose quota others may have to be told about */
    struct quota *global;
    unsigned me; /* this fetcher's number: member of the quotas */
    uint32_t in_flight;
    uint32_t wake; /* fetchers to wake at the end of the turn, found earlier */
};

void sched_init(struct sched *s, struct quota *global, unsigned me);
void sched_host_init(struct sched_host *h, uint32_t limit);
void sched_batch_init(struct sched_batch *b, struct quota *quota, uint32_t max_per_host);
void sched_lane_init(struct sched_lane *l, struct sched_host *h, struct sched_batch *b);
/* Nothing may be queued or in flight. */
void sched_lane_fini(struct sched_lane *l);
/* All its lanes must be gone. */
void sched_batch_fini(struct sched *s, struct sched_batch *b);

/* Before the first pick of a turn: lets lanes try again whose batch has slots again. */
void sched_turn(struct sched *s);

/* n more requests wait in the lane. */
void sched_queue(struct sched *s, struct sched_lane *l, uint32_t n);
/* Takes all waiting requests of the lane away (cancel); what is in flight stays counted. */
void sched_drop_queued(struct sched *s, struct sched_lane *l);
/* The lane whose next request starts now; its slots are taken. NULL: nothing may start. */
struct sched_lane *sched_pick(struct sched *s);
/* A request of this lane gives its slots back. */
void sched_release(struct sched *s, struct sched_lane *l);
/* After the last pick of a turn: which other fetchers to wake, as slots of shared limits are free
 * that they wait for. *again: pick again, a slot came free for us. */
uint32_t sched_wake_others(struct sched *s, bool *again);

#endif
