/* Why the service is not ready, or not quite well: a set of named causes. Whoever finds a cause sets
 * it, and clears it when it is over; /readyz and the metric batchfetch_health show them. Any thread.
 *
 * "Not ready" means that new batches would be refused (reading may well go on). */
#ifndef SERVER_HEALTH_H
#define SERVER_HEALTH_H

#include "server/base.h"

/*        symbol, name, whether the service is not ready, Retry-After in s, what it means */
#define HEALTH_CAUSES(X)                                                                         \
    X(HEALTH_STARTING, "starting", true, 1, "the service is starting")                           \
    X(HEALTH_DRAINING, "draining", true, 10, "the service is stopping")                          \
    X(HEALTH_DISK_FULL, "disk_full", true, 30, "no space is left for the service's data")        \
    X(HEALTH_QUOTA, "quota", true, 30, "the service's data has reached --max-disk")              \
    X(HEALTH_READ_ONLY, "read_only", true, 30, "the service's data directory cannot be written") \
    X(HEALTH_STORE_FAILED, "store_failed", true, 30, "the service's storage failed")             \
    X(HEALTH_STUCK, "stuck", true, 5, "a thread of the service does not answer")                 \
    X(HEALTH_DESCRIPTORS, "descriptors", false, 0, "descriptors are short: work is held back")   \
    X(HEALTH_RELOAD_FAILED, "reload_failed", false, 0, "the last reload of settings failed")

enum health_cause {
#define X(sym, name, unready, retry, text) sym,
    HEALTH_CAUSES(X)
#undef X
        HEALTH_CAUSES_N
};

enum { HEALTH_DETAIL_SIZE = 200 };

struct health_entry {
    const char *name;
    bool unready;
    int64_t since_ms; /* wall clock, Unix time in ms */
    char detail[HEALTH_DETAIL_SIZE];
};

/* Sets the cause, or gives it another detail: a clause for people, without secrets (a path of the
 * data directory is none). NULL: the usual one. Logs when it was not set before. */
void health_set(enum health_cause c, const char *fmt, ...) PRINTF_LIKE(2, 3);
/* Nothing if it is not set: cheap enough to be called after each success. */
void health_clear(enum health_cause c);
bool health_is(enum health_cause c);
/* Sets or clears HEALTH_STUCK by pulse.h; to be called before health is read. `now_us`: monotonic.
 * False: a thread has been stuck for so long that a new start is the only help left. */
bool health_watch(int64_t now_us);
/* Whether no cause of those that make the service not ready is set. Cheap. */
bool health_ready(void);
/* The causes that are set, worst first. Returns their number; *retry_after_s: when to ask again,
 * 0 if ready. */
unsigned health_read(struct health_entry out[HEALTH_CAUSES_N], unsigned *retry_after_s);

#endif
