/* Whose turn it is: a queue of users (batches in a fetcher, lanes at a host) that want slots,
 * each with a weight. Pure; O(log n).
 *
 * Turns go by start-time fair queueing: each start moves a user's tag on by 1/weight, and the
 * lowest tag is next, so that starts are shared by the weights and everybody advances. Two things
 * come before the tags:
 * - Who holds its weighted share of the slots already waits for those who hold less. Else a user
 *   of slow servers would, start for start, end up with nearly all slots.
 * - A newcomer's first starts (fresh) come first, but for every fourth turn: small work does not
 *   stand behind large. It is a loan: the tag moves on as for any start. */
#ifndef SERVER_FAIR_H
#define SERVER_FAIR_H

#include "server/heap.h"

enum { FAIR_PRIORITY_MAX = 9 };

enum fair_class { FAIR_FRESH, FAIR_UNDER, FAIR_OVER, FAIR_CLASSES };

struct fair_user {
    struct heap_node node; /* in a queue: in the heap of its class */
    enum fair_class class;
    int64_t tag;
    uint8_t priority; /* 0 to 9: the weight is 2^priority */
    bool fresh;       /* set before fair_add */
    uint32_t held;    /* slots */
};

struct fair {
    struct heap heaps[FAIR_CLASSES];
    int64_t clock;    /* the highest tag that had its turn */
    uint64_t weights; /* of the users in the queue */
    uint32_t slots;   /* that are shared out; set by the owner, at least 1 */
    uint32_t turns;
};

void fair_add(struct fair *q, struct fair_user *u);
void fair_remove(struct fair *q, struct fair_user *u);
static inline bool fair_has(const struct fair_user *u)
{
    return heap_has(&u->node);
}
static inline bool fair_empty(const struct fair *q)
{
    return q->weights == 0;
}
/* u is the only one in the queue. */
bool fair_alone(const struct fair *q, const struct fair_user *u);
/* Whose turn it is; stays in the queue. NULL: nobody is in it. */
struct fair_user *fair_next(struct fair *q);
/* u, in the queue or not, takes a slot. */
void fair_take(struct fair *q, struct fair_user *u);
/* It gives a slot back. */
void fair_give(struct fair *q, struct fair_user *u);
/* The same for n slots that it could not use after all: they cost it nothing. */
void fair_undo(struct fair *q, struct fair_user *u, uint32_t n);

#endif
