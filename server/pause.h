/* Pausing and resuming a batch. The fetchers forget what they have not begun of it, and go on with
 * the rest: these requests, its flights, are known here one by one, so that the batch can be fed
 * again from the disk before they are over without any of them being fetched twice. A paused batch
 * takes next to no memory. Keeper thread. */
#ifndef SERVER_PAUSE_H
#define SERVER_PAUSE_H

#include "server/keeper_int.h"

/* When the state is on disk: nothing more of it is handed out. Every fetcher must be told (halting
 * counts these rounds). */
void pause_begin(struct live *l);
/* A fetcher's report. Takes m. */
void pause_report(struct keeper *k, struct msg_flying *m);
/* It is to go on. */
void pause_end(struct live *l);
/* It was paused when the service stopped. */
void pause_recover(struct live *l);
/* Once a turn, for a paused batch: lets it go on when that is wanted and all its flights are
 * known. */
void pause_turn(struct keeper *k, struct live *l);

/* Whether the request is under way since before the pause. */
bool pause_flies(const struct live *l, uint64_t index);
/* It came back, with its result or to wait for another attempt. */
void pause_landed(struct live *l, uint64_t index);
/* Calls fn for each flight that waiting.c had handed out. */
void pause_each_handed(struct live *l, void (*fn)(void *arg, uint64_t lane), void *arg);
void pause_free(struct live *l);

#endif
