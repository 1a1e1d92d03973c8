/* Backoff and Retry-After; see retry.h. */
#define _GNU_SOURCE
#include "server/retry.h"

#include <string.h>
#include <time.h>

int64_t retry_delay_ms(const struct retry_policy *p, uint32_t attempt, int64_t retry_after_ms,
                       uint64_t random)
{
    uint64_t span = p->min_backoff_ms;
    for (uint32_t i = 1; i < attempt && span > 0 && span < p->max_backoff_ms; i++)
        span *= 2;
    if (span > p->max_backoff_ms)
        span = p->max_backoff_ms;
    int64_t wait = span > 0 ? (int64_t)(random % span) + 1 : 0;
    if (retry_after_ms > p->max_retry_after_ms)
        retry_after_ms = p->max_retry_after_ms;
    return wait > retry_after_ms ? wait : retry_after_ms;
}

int64_t retry_parse_after(const char *value, size_t len, int64_t now_s)
{
    while (len > 0 && (*value == ' ' || *value == '\t')) {
        value++;
        len--;
    }
    while (len > 0 && (value[len - 1] == ' ' || value[len - 1] == '\t'))
        len--;
    if (len == 0)
        return -1;

    size_t digits = 0;
    int64_t seconds = 0;
    while (digits < len && value[digits] >= '0' && value[digits] <= '9') {
        if (seconds < RETRY_MAX_AFTER_MS)
            seconds = seconds * 10 + (value[digits] - '0');
        digits++;
    }
    if (digits < len) {
        char text[64];
        struct tm tm = {0};
        if (digits > 0 || len >= sizeof(text))
            return -1;
        memcpy(text, value, len);
        text[len] = '\0';
        const char *end = strptime(text, "%a, %d %b %Y %H:%M:%S GMT", &tm);
        if (end == NULL || *end != '\0')
            return -1;
        seconds = (int64_t)timegm(&tm) - now_s;
    }
    if (seconds <= 0)
        return 0;
    return seconds > RETRY_MAX_AFTER_MS / 1000 ? RETRY_MAX_AFTER_MS : seconds * 1000;
}
