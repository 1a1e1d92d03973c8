/* Whether and when a failed attempt is made again. Pure: randomness and time are arguments. */
#ifndef SERVER_RETRY_H
#define SERVER_RETRY_H

#include "server/base.h"

enum {
    RETRY_MIN_BACKOFF_MS = 500,
    RETRY_MAX_BACKOFF_MS = 30000,
    RETRY_MAX_AFTER_MS = 60000, /* a longer Retry-After is cut to this */
};

/* Milliseconds until attempt number `attempt` + 1 (attempts count from 1): full jitter over an
 * exponentially growing span; `random` is 64 random bits. retry_after_ms: what the origin asked
 * for, or -1; it is a lower bound of the wait. */
int64_t retry_delay_ms(uint32_t attempt, int64_t retry_after_ms, uint64_t random);

/* The value of a Retry-After field (RFC 9110 10.2.3), both forms, in ms from now_s (Unix time in
 * seconds); -1: not understood, so not given. Negative waits are 0; long ones are cut. */
int64_t retry_parse_after(const char *value, size_t len, int64_t now_s);

#endif
