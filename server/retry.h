/* Whether and when a failed attempt is made again. Pure: randomness and time are arguments. */
#ifndef SERVER_RETRY_H
#define SERVER_RETRY_H

#include "server/base.h"
#include "storage/store.h"

enum { RETRY_MAX_AFTER_MS = 24 * 60 * 60 * 1000 }; /* what is read of a Retry-After at most */

/* Milliseconds until attempt number `attempt` + 1 (attempts count from 1): full jitter over a span
 * that grows exponentially from min_backoff_ms to max_backoff_ms; `random` is 64 random bits.
 * retry_after_ms: what the origin asked for, or -1; up to max_retry_after_ms it is a lower bound of
 * the wait. */
int64_t retry_delay_ms(const struct retry_policy *p, uint32_t attempt, int64_t retry_after_ms,
                       uint64_t random);

/* The value of a Retry-After field (RFC 9110 10.2.3), both forms, in ms from now_s (Unix time in
 * seconds); -1: not understood, so not given. Negative waits are 0; long ones are cut. */
int64_t retry_parse_after(const char *value, size_t len, int64_t now_s);

#endif
