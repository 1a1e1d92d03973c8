/* A fetcher: one thread with an epoll loop, some curl multi handles, its own scheduler and its own
 * resolver. It fetches the requests of the hosts that are its own (by hash), under the limits, and
 * sends the results to the keeper. */
#ifndef SERVER_FETCH_H
#define SERVER_FETCH_H

#include "server/engine_int.h"

/* Once per process, before the first thread. */
int fetch_global_init(void) MUSTCHECK;
void fetch_global_fini(void);

/* The certificates of --ca-file, or the system's where libcurl was built to find them. A missing
 * bundle of the system is no failure: http works without. */
int fetch_trust(struct tls_trust **out, const struct config *cfg, char *why,
                size_t why_size) MUSTCHECK;

/* Descriptors that n fetchers need beside one for each transfer. */
uint32_t fetch_overhead_fds(unsigned n);

int fetcher_new(struct fetcher **out, struct engine *e, unsigned no) MUSTCHECK;
/* Starts its thread, once all of the engine's fetchers are made: they wake one another. */
int fetcher_start(struct fetcher *f) MUSTCHECK;
/* The configuration has changed; trust: the certificates from now on (it takes a reference), or NULL. */
void fetcher_reload(struct fetcher *f, struct tls_trust *trust);
/* It forgets what is not begun, and goes on with what is. */
void fetcher_drain(struct fetcher *f);
/* Whether something is in flight there, or was until a moment ago. True until fetcher_drain has been
 * heard. */
bool fetcher_is_busy(const struct fetcher *f);
/* Asks the thread to end: what is in flight is dropped (and fetched again at the next start). */
void fetcher_stop(struct fetcher *f);
/* Waits for that. Results have gone to the keeper when this returns. */
void fetcher_join(struct fetcher *f);
void fetcher_free(struct fetcher *f); /* NULL is fine */

/* Gives back what a result holds beside its block. Keeper. */
void out_done_free(struct engine *e, struct done *d);
/* Gives the memory of a message of results back, once all in it is released. Any thread. */
void out_block_free(struct engine *e, struct msg_results *m);

/* Any thread. */
void fetcher_put(struct fetcher *f, struct msg *m);
void fetcher_wake(struct fetcher *f);

#endif
