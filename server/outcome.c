/* The table of outcome.h as two lookups. No state; any thread. */
#include "server/outcome.h"

const char *outcome_name(int o)
{
    switch (o) {
#define X(sym, num, name, retry) \
    case sym: return name;
        OUTCOMES(X)
#undef X
    default: return "internal";
    }
}

bool outcome_retryable(int o, int http_status)
{
    if (o == OUTCOME_HTTP_STATUS) {
        switch (http_status) {
        case 408: /* request timeout */
        case 425: /* too early */
        case 429: /* too many requests */
        case 500:
        case 502:
        case 503:
        case 504: return true;
        default: return false;
        }
    }
    switch (o) {
#define X(sym, num, name, retry) \
    case sym: return retry;
        OUTCOMES(X)
#undef X
    default: return true; /* a number that we do not know shows as "internal" */
    }
}
