/* Requests that wait for another thread, without holding the api thread up.
 *
 * libmicrohttpd can suspend a connection from within its own callback only, and a resume that
 * comes before the suspend would be lost. So the two meet in request.park, under api->lock:
 *
 *     if (!park_arm(r)) …               stopping: answer busy
 *     engine_something(…, done, r);     done() calls park_wake(r), now or later, on any thread
 *     if (park_suspend(r))
 *         return MHD_YES;               the handler is called again after the wake
 *     …                                 it was woken already: go on at once
 */
#ifndef API_PARK_H
#define API_PARK_H

#include "api/http.h"

bool park_arm(struct request *r) MUSTCHECK;
/* The callback will not come after all. */
void park_disarm(struct request *r);
bool park_suspend(struct request *r);
void park_wake(struct request *r); /* any thread; exactly once for each park_arm */
/* Whether it is suspended and not yet woken. */
bool park_is_suspended(struct request *r);

/* Arms r to be woken when its batch (r->id) ends, or at the deadline. Look at the batch after this
 * call and before park_suspend: then its end can't be missed. E_BUSY: too many are waiting;
 * E_STOPPING. */
int park_wait(struct request *r, int64_t deadline_us) MUSTCHECK;
void park_wait_cancel(struct request *r);
/* An engine_end_fn; arg: the struct api. keeper */
void park_batch_ended(void *arg, const char *batch_id);

/* Keeps the socket open for a while, so that a client that is still sending gets to read the
 * answer: closing with unread data would reset the connection and destroy it. */
void park_linger(struct api *api, int fd);

/* The library found no descriptor for a client and would accept the next one only when another one
 * leaves, which may be never: it is made to look again soon. On the api thread. */
void park_accept_later(struct api *api);

/* The thread that wakes waiters and drains lingering sockets. It sleeps while there are none. */
int park_start(struct api *api) MUSTCHECK;
void park_stop(struct api *api);

#endif
