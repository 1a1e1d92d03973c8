/* The stable error codes of a result (DESIGN.md 1.2) in one table: their number on disk, their
 * name in the API, and whether trying again may help. Numbers are never reused. */
#ifndef SERVER_OUTCOME_H
#define SERVER_OUTCOME_H

#include "server/base.h"

/*        number, name, retryable by nature */
#define OUTCOMES(X)                                               \
    X(OUTCOME_NONE, 0, "", false)                                 \
    X(OUTCOME_HTTP_STATUS, 1, "http_status", false)               \
    X(OUTCOME_INVALID_URL, 2, "invalid_url", false)               \
    X(OUTCOME_BLOCKED_ADDRESS, 3, "blocked_address", false)       \
    X(OUTCOME_DNS, 4, "dns", true)                                \
    X(OUTCOME_CONNECT, 5, "connect", true)                        \
    X(OUTCOME_TLS, 6, "tls", false)                               \
    X(OUTCOME_TIMEOUT, 7, "timeout", true)                        \
    X(OUTCOME_TOO_LARGE, 8, "too_large", false)                   \
    X(OUTCOME_TOO_MANY_REDIRECTS, 9, "too_many_redirects", false) \
    X(OUTCOME_PROTOCOL, 10, "protocol", true)                     \
    X(OUTCOME_DECODE, 11, "decode", false)                        \
    X(OUTCOME_DEADLINE, 12, "deadline", false)                    \
    X(OUTCOME_INTERNAL, 13, "internal", true)

enum outcome {
#define X(sym, num, name, retry) sym = num,
    OUTCOMES(X)
#undef X
};

/* The API's name; "" for OUTCOME_NONE, "internal" for a number that we do not know. */
const char *outcome_name(int o);
/* For http_status the status decides: 408, 425, 429, 500, 502, 503 and 504 may be tried again. */
bool outcome_retryable(int o, int http_status);

#endif
