/* The scheduler of one fetcher: which request may start next, under the global limit, the limit
 * of each host, the limits and rates of each batch and host, and fairly. Pure: no clock (the time
 * is an argument, monotonic, in µs), no I/O, no curl.
 *
 * A lane is one batch at one host. A pick chooses the batch first (fair.h: by priority), then the
 * next of its lanes that may start something, in turn. A lane whose host has no slot or token
 * left waits at the host, and when the host has one again it is offered to the lanes that wait
 * there (fair.h again); an offer is a slot that is held for the lane. So a host or a batch at its
 * limit costs nothing, and each operation costs O(log n), amortised, however many there are.
 * What waits for time to pass stands in a heap: sched_due tells when to come back.
 *
 * A host belongs to one fetcher only, so its count is exact without a lock; limits that span the
 * fetchers are `struct quota`.
 *
 * One thread. */
#ifndef SERVER_SCHED_H
#define SERVER_SCHED_H

#include "server/fair.h"
#include "server/quota.h"

enum {
    SCHED_PRIORITY = 5,    /* a batch's, unless it says otherwise */
    SCHED_HEAD_START = 16, /* first starts of a batch of at least that priority are `fresh` */
    SCHED_KEPT_MAX = 50000 /* sched.kept_max, unless it is set */
};

struct sched_link {
    struct sched_link *prev, *next; /* self-linked: in no list */
};

/* A token bucket's size and speed. interval_ns 0: no bound. */
struct sched_rate {
    int64_t interval_ns;
    uint32_t burst; /* 50 ms' worth, at least 1: starts are spaced, not bunched */
};

/* Something that waits for time to pass. */
struct sched_timer {
    struct heap_node node;
    bool is_host;
};

enum sched_lane_state {
    LANE_EMPTY,   /* nothing queued beyond what has been offered a slot */
    LANE_READY,   /* in its batch's ring */
    LANE_WAITING, /* in its host's queue, for a slot or a token of the host */
    LANE_CAPPED,  /* at the batch's own limit for one host */
    LANE_TIMED,   /* for a token of its own */
};

struct sched_host {
    struct fair waiting;      /* WAITING lanes */
    struct sched_timer timer; /* it opens again; or, without lanes: it may be forgotten */
    struct sched_link forget; /* in sched.forget_hosts */
    struct sched_rate rate;
    int64_t tat_ns;    /* the bucket, as GCRA's theoretical arrival time */
    int64_t paused_us; /* nothing starts before */
    uint32_t limit;    /* change it by sched_host_limit */
    uint32_t in_flight;
    uint32_t offered; /* slots held for lanes that will start */
    uint32_t n_lanes; /* lanes that exist, in any state */
    bool kept;
    bool held; /* nothing starts until it is let go */
};

struct sched_batch {
    struct fair_user user;
    struct sched_link link;    /* in sched.blocked: its quota had no slot */
    struct sched_link notify;  /* in sched.notify: it gave a slot back that others may wait for */
    struct sched_link ready;   /* ring of READY lanes */
    struct sched_link offered; /* lanes that were offered slots: go first */
    struct quota *quota;       /* NULL: no max_parallel of its own */
    struct sched_rate rate;    /* to each host */
    uint32_t max_per_host;     /* 0: none of its own */
    uint32_t in_flight;        /* in this fetcher */
    uint32_t head_start;       /* starts left that are fresh */
};

struct sched_lane {
    struct sched_link link;  /* in the batch's ring, or in sched.forget_lanes */
    struct sched_link offer; /* in the batch's list of offered lanes */
    struct fair_user user;   /* at the host; held: in flight and offered */
    struct sched_timer timer;
    struct sched_host *host;
    struct sched_batch *batch;
    enum sched_lane_state state;
    int64_t tat_ns;
    uint32_t queued;
    uint32_t in_flight;
    uint32_t offered;
    bool kept;
};

struct sched {
    struct fair batches;       /* with lanes that are ready or offered a slot, and not blocked */
    struct sched_link blocked; /* batches that would start something but for their quota */
    struct sched_link notify;  /* batches whose quota others may have to be told about */
    struct heap timers;
    struct sched_link forget_hosts, forget_lanes;
    struct quota *global;
    int64_t now;
    unsigned me; /* this fetcher's number: member of the quotas */
    uint32_t in_flight;
    uint32_t kept;     /* hosts and lanes, for their pause or rate alone */
    uint32_t kept_max; /* beyond that they are forgotten early */
    bool woken;        /* blocked batches have to look at their quotas, and wait on */
    uint32_t wake;     /* fetchers to wake at the end of the turn, found earlier */
};

/* From thousandths of a request a second; 0: no bound. */
struct sched_rate sched_rate_of(uint32_t per_1000_s);

void sched_init(struct sched *s, struct quota *global, unsigned me);
void sched_host_init(struct sched_host *h, uint32_t limit, struct sched_rate rate);
/* All its lanes must be gone. */
void sched_host_fini(struct sched *s, struct sched_host *h);
void sched_batch_init(struct sched_batch *b, struct quota *quota, uint32_t max_per_host,
                      struct sched_rate rate, uint8_t priority);
/* All its lanes must be gone. */
void sched_batch_fini(struct sched *s, struct sched_batch *b);
void sched_lane_init(struct sched_lane *l, struct sched_host *h, struct sched_batch *b);
/* Nothing may be queued or in flight. */
void sched_lane_fini(struct sched *s, struct sched_lane *l);

/* For a lane with nothing queued or in flight, or a host without lanes, that the caller would
 * forget: whether it must be kept for now, since its rate or its pause is still to be obeyed. Then
 * sched_forgotten_… gives it back when that has passed; call it after each sched_turn until it
 * returns NULL, and ask again. */
bool sched_lane_keep(struct sched *s, struct sched_lane *l);
bool sched_host_keep(struct sched *s, struct sched_host *h);
struct sched_lane *sched_forgotten_lane(struct sched *s);
struct sched_host *sched_forgotten_host(struct sched *s);

/* Before the first pick of a turn: the time, and what it makes possible. woken: another fetcher was
 * told to wake us (sched_wake_others) since the last turn; batches whose quota has slots again then
 * try again. */
void sched_turn(struct sched *s, int64_t now, bool woken);
/* When sched_turn has something to do though nothing else happened; INT64_MAX: never. */
int64_t sched_due(const struct sched *s);

/* n more requests wait in the lane. */
void sched_queue(struct sched *s, struct sched_lane *l, uint32_t n);
/* Takes all waiting requests of the lane away (cancel); what is in flight stays counted. */
void sched_drop_queued(struct sched *s, struct sched_lane *l);
/* The lane whose next request starts now; its slots and tokens are taken. NULL: none may. */
struct sched_lane *sched_pick(struct sched *s);
/* A request of this lane gives its slots back. */
void sched_release(struct sched *s, struct sched_lane *l);
/* Nothing starts at the host before until_us. A pause is never shortened. */
void sched_pause_host(struct sched *s, struct sched_host *h, int64_t until_us);
/* Nothing starts at the host until it is let go by on = false. */
void sched_hold_host(struct sched *s, struct sched_host *h, bool on);
/* Another limit and rate. What is in flight beyond the limit ends in its own time; what the new rate
 * lets go waits no longer for the old one. */
void sched_host_limit(struct sched *s, struct sched_host *h, uint32_t limit);
void sched_host_rate(struct sched *s, struct sched_host *h, struct sched_rate rate);
/* After the last pick of a turn: which other fetchers to wake, as slots of shared limits are free
 * that they wait for. *again: pick again, a slot came free for us. */
uint32_t sched_wake_others(struct sched *s, bool *again);

#endif
