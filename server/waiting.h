/* Requests that failed and wait for another attempt. They are on disk (storage/store.h, struct
 * attempt), whatever their number; in memory a batch has two bits for each of its requests, and
 * the lanes that attempts were handed out of. So they survive a restart.
 *
 * What is due goes to the fetchers in order of time, within the batch's window, and of one lane
 * only so much at a time: a lane that has enough is left behind, with a mark of its own, and the
 * others go on. Keeper thread. */
#ifndef SERVER_WAITING_H
#define SERVER_WAITING_H

#include "server/keeper_int.h"

/* Whether the request has an attempt on disk. */
bool waiting_has(const struct live *l, uint64_t index);

/* In a transaction: an attempt that failed and is to be followed by another; sets d->due_ms. */
int waiting_add(struct keeper *k, struct live *l, struct done *d) MUSTCHECK;
/* When that was committed. */
void waiting_added(struct live *l, const struct done *d);
/* A request that was handed out came back, to wait again or with its result. */
void waiting_back(struct live *l, const struct done *d);
/* In a transaction: what the attempts so far put into the result of a cancelled request. */
int waiting_cancelled(struct keeper *k, struct live *l, struct result *r) MUSTCHECK;

/* Takes up what is on disk after a restart. */
int waiting_recover(struct keeper *k, struct live *l) MUSTCHECK;
/* Hands out what is due, while the batch has less than `window` requests with the fetchers, or a
 * small part of that of these. */
int waiting_feed(struct keeper *k, struct live *l, uint64_t window) MUSTCHECK;
/* When to call it again (monotonic), if nothing else happens; INT64_MAX: never. */
int64_t waiting_wake(const struct keeper *k, const struct live *l, uint64_t window);
/* The batch is paused, and but for its flights (pause.h) nothing of it is with the fetchers any
 * more: what had been handed out waits here again. */
void waiting_halted(struct live *l);
/* What waits here cannot be read: it is forgotten, and left to keeper_fault.c. */
void waiting_abandon(struct live *l);
void waiting_free(struct live *l);

#endif
