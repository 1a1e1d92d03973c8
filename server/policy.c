/* See policy.h. */
#include "server/policy.h"

#include "server/item.h"
#include "server/outcome.h"

enum { STATUS_FIRST = 100, STATUS_LAST = 599 };

void policy_add_status(struct retry_policy *p, int status)
{
    ASSERT(status >= STATUS_FIRST && status <= STATUS_LAST);
    unsigned bit = (unsigned)(status - STATUS_FIRST);
    p->on_status[bit / 8] = (uint8_t)(p->on_status[bit / 8] | 1u << bit % 8);
}

bool policy_has_status(const struct retry_policy *p, int status)
{
    if (status < STATUS_FIRST || status > STATUS_LAST)
        return false;
    unsigned bit = (unsigned)(status - STATUS_FIRST);
    return (p->on_status[bit / 8] >> bit % 8 & 1u) != 0;
}

void policy_init(struct retry_policy *p)
{
    *p = (struct retry_policy){
        .max_attempts = POLICY_ATTEMPTS_ALONE,
        .min_backoff_ms = POLICY_MIN_BACKOFF_MS,
        .max_backoff_ms = POLICY_MAX_BACKOFF_MS,
        .max_retry_after_ms = POLICY_MAX_RETRY_AFTER_MS,
        .has_on_status = true,
    };
    for (int status = STATUS_FIRST; status <= STATUS_LAST; status++) {
        if (outcome_retryable(OUTCOME_HTTP_STATUS, status))
            policy_add_status(p, status);
    }
}

void policy_complete(struct retry_policy *p)
{
    if (p->max_attempts == 0)
        policy_init(p);
}

uint32_t policy_attempts(const struct retry_policy *p, uint32_t given, struct span method)
{
    static const char *const unsafe[] = {"POST", "PATCH"}; /* RFC 9110 9.2.2, RFC 5789 2 */
    if (given != 0)
        return given;
    for (size_t i = 0; i < ARRAY_LEN(unsafe) && !p->non_idempotent; i++) {
        if (span_is(method, unsafe[i]))
            return 1;
    }
    return p->max_attempts;
}
