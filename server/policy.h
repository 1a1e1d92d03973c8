/* What a batch's retry policy says: its defaults, its list of statuses, and the attempts that a
 * request has. Pure; also for api/. */
#ifndef SERVER_POLICY_H
#define SERVER_POLICY_H

#include "server/base.h"
#include "storage/store.h"

enum {
    POLICY_ATTEMPTS_ALONE = 1, /* of a batch without `retry` */
    POLICY_ATTEMPTS = 3,       /* with `retry`, when it gives no number */
    POLICY_MIN_BACKOFF_MS = 500,
    POLICY_MAX_BACKOFF_MS = 30000,
    POLICY_MAX_RETRY_AFTER_MS = 60000,
};

/* The policy of a batch that gives none: every member set. */
void policy_init(struct retry_policy *p);
/* As read from the store: max_attempts 0 means that nothing was given (the batch is of schema 1),
 * and makes it what policy_init makes; else it is as the API stored it, every member as it stands:
 * a max_retry_after_ms of 0 then is a bound, not "the default". */
void policy_complete(struct retry_policy *p);

/* Whether a response of this status is tried again; p is complete. */
bool policy_has_status(const struct retry_policy *p, int status);
void policy_add_status(struct retry_policy *p, int status); /* 100 to 599 */

/* How often a request is tried at most, the first time counted. `given`: the request's own
 * max_attempts, else the one of `defaults`, else 0 (so it is in an item after
 * item_apply_defaults). A given number holds for every method; the policy's holds for POST and
 * PATCH only if it says non_idempotent. */
uint32_t policy_attempts(const struct retry_policy *p, uint32_t given, struct span method);

#endif
