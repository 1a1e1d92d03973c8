/* Backoff and the Retry-After field. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "server/outcome.h"
#include "server/retry.h"

static void delays_grow_and_are_spread(void **state)
{
    (void)state;
    static const struct retry_policy rows[] = {
        {.min_backoff_ms = 500, .max_backoff_ms = 30000},
        {.min_backoff_ms = 10, .max_backoff_ms = 10},
        {.min_backoff_ms = 1, .max_backoff_ms = 86400000},
        {.min_backoff_ms = UINT32_MAX, .max_backoff_ms = UINT32_MAX},
        {.min_backoff_ms = 700, .max_backoff_ms = 3},
    };
    for (size_t row = 0; row < ARRAY_LEN(rows); row++) {
        const struct retry_policy *p = &rows[row];
        uint64_t span = p->min_backoff_ms < p->max_backoff_ms ? p->min_backoff_ms
                                                              : p->max_backoff_ms;
        for (uint32_t attempt = 1; attempt <= 40; attempt++) {
            assert_int_equal(retry_delay_ms(p, attempt, -1, 0), 1);
            assert_int_equal(retry_delay_ms(p, attempt, -1, span - 1), span);
            for (uint64_t r = 0; r < 100; r++) {
                int64_t ms = retry_delay_ms(p, attempt, -1, r * 0x9e3779b97f4a7c15ULL);
                assert_in_range(ms, 1, span);
            }
            span = span * 2 < p->max_backoff_ms ? span * 2 : p->max_backoff_ms;
        }
        assert_int_equal(retry_delay_ms(p, UINT32_MAX, -1, p->max_backoff_ms - 1ULL), span);
    }
    const struct retry_policy none = {0};
    assert_int_equal(retry_delay_ms(&none, 7, -1, 12345), 0);
}

static void retry_after_is_a_lower_bound_with_a_ceiling(void **state)
{
    (void)state;
    struct retry_policy p = {
        .min_backoff_ms = 500, .max_backoff_ms = 30000, .max_retry_after_ms = 60000};
    assert_int_equal(retry_delay_ms(&p, 1, 2000, 0), 2000);
    assert_int_equal(retry_delay_ms(&p, 1, 100, 400), 401);
    assert_int_equal(retry_delay_ms(&p, 1, INT64_MAX, 0), 60000);
    p.max_retry_after_ms = 0;
    assert_int_equal(retry_delay_ms(&p, 1, 2000, 6), 7);
}

static void retry_after_values(void **state)
{
    (void)state;
    static const struct {
        const char *value;
        int64_t ms;
    } rows[] = {
        {"0", 0},
        {"5", 5000},
        {" 7\t", 7000},
        {"86400", RETRY_MAX_AFTER_MS},
        {"86399", RETRY_MAX_AFTER_MS - 1000},
        {"86401", RETRY_MAX_AFTER_MS},
        {"99999999999999999999999", RETRY_MAX_AFTER_MS},
        {"-1", -1},
        {"1.5", -1},
        {"5s", -1},
        {"", -1},
        {"soon", -1},
        {"Sun, 06 Nov 1994 08:49:47 GMT", 10000},
        {"Sun, 06 Nov 1994 08:49:36 GMT", 0},
        {"Fri, 31 Dec 9999 23:59:59 GMT", RETRY_MAX_AFTER_MS},
        {"Sun, 06 Nov 1994 08:49:47 GMT and more than that, much more, and still more", -1},
        {"Sun, 06 Nov 1994 08:49:47", -1},
    };
    for (size_t i = 0; i < ARRAY_LEN(rows); i++)
        assert_int_equal(retry_parse_after(rows[i].value, strlen(rows[i].value), 784111777),
                         rows[i].ms);
}

static void some_statuses_may_be_tried_again(void **state)
{
    (void)state;
    static const int yes[] = {408, 425, 429, 500, 502, 503, 504};
    for (int status = 400; status < 600; status++) {
        bool want = false;
        for (size_t i = 0; i < ARRAY_LEN(yes); i++)
            want = want || yes[i] == status;
        assert_int_equal(outcome_retryable(OUTCOME_HTTP_STATUS, status), want);
    }
    assert_true(outcome_retryable(OUTCOME_CONNECT, 0));
    assert_false(outcome_retryable(OUTCOME_BLOCKED_ADDRESS, 0));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(delays_grow_and_are_spread),
        cmocka_unit_test(retry_after_is_a_lower_bound_with_a_ceiling),
        cmocka_unit_test(retry_after_values),
        cmocka_unit_test(some_statuses_may_be_tried_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
