/* A limit shared by the fetcher threads (the global one; max_parallel of a batch): a count of free
 * slots that is never overdrawn, without a lock, and fair: a fetcher that waits gets its share
 * from those that hold more. Pure but for its atomics. */
#ifndef SERVER_QUOTA_H
#define SERVER_QUOTA_H

#include <stdatomic.h>

#include "server/base.h"

enum { QUOTA_MEMBERS_MAX = 32 };

struct quota {
    _Atomic int32_t free;
    _Atomic uint32_t waiters;                   /* bit i: member i wanted a slot and got none */
    _Atomic uint32_t last;                      /* the member that took the last slot */
    _Atomic uint64_t weight[QUOTA_MEMBERS_MAX]; /* 0 counts as 1 */
    _Atomic uint32_t limit;
};

void quota_init(struct quota *q, uint32_t limit);
/* Any thread, one at a time. When it is lowered, what is held beyond it is given back in its own
 * time. When it is raised, the caller wakes all members. */
void quota_set_limit(struct quota *q, uint32_t limit);
/* Takes a slot for member `me`, which holds `held` of them now. When it gets none it is noted as
 * waiting, and some other member will be told to wake it (quota_wake). */
bool quota_take(struct quota *q, unsigned me, uint32_t held);
void quota_give(struct quota *q);
/* What member `me` counts for, compared with the others, while they wait together. */
void quota_weigh(struct quota *q, unsigned me, uint64_t weight);
/* Member `me` waits. Follow with quota_wake. */
void quota_wait(struct quota *q, unsigned me);
/* Member `me` no longer waits: others need not leave it a share. Follow with quota_wake. */
void quota_unwait(struct quota *q, unsigned me);
/* Called by member `me` when it has taken all that it wants for now: the members to wake, as a
 * bit set, since slots are free that they wait for. `me` in the set: try again yourself. */
uint32_t quota_wake(struct quota *q, unsigned me);

#endif
