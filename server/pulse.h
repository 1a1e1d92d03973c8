/* Whether the threads of the service turn. Each one that runs a loop says when a turn begins and when
 * it waits again; who asks learns which one has been in a turn for how long. No lock. */
#ifndef SERVER_PULSE_H
#define SERVER_PULSE_H

#include "server/base.h"

/* The calling thread; `name` for people, a constant. Before it loops. */
void pulse_register(const char *name);
void pulse_begin(int64_t now_us); /* monotonic; not 0. Nothing if the thread is not registered */
void pulse_end(void);
/* The thread whose turn has lasted longest; NULL: all wait. *for_us: how long. Any thread. */
const char *pulse_slowest(int64_t now_us, int64_t *for_us);

#endif
