/* The retry policy: its defaults, old rows, every status, and who may be tried how often. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <string.h>

#include "server/policy.h"

static void test_defaults(void **state)
{
    (void)state;
    static const int listed[] = {408, 425, 429, 500, 502, 503, 504};
    struct retry_policy p, old = {0};
    policy_init(&p);
    assert_int_equal(p.max_attempts, 1);
    assert_int_equal(p.min_backoff_ms, 500);
    assert_int_equal(p.max_backoff_ms, 30000);
    assert_int_equal(p.max_retry_after_ms, 60000);
    assert_false(p.non_idempotent);
    size_t n = 0;
    for (int status = -1; status < 1100; status++) {
        bool in = n < ARRAY_LEN(listed) && listed[n] == status;
        assert_int_equal(policy_has_status(&p, status), in);
        n += in;
    }
    assert_int_equal(n, ARRAY_LEN(listed));
    policy_complete(&old);
    assert_memory_equal(&old, &p, sizeof(p));
}

/* What the API stored stays, its zeros too. */
static void test_complete(void **state)
{
    (void)state;
    struct retry_policy p = {.max_attempts = 3, .min_backoff_ms = 1, .has_on_status = true}, q;
    memcpy(&q, &p, sizeof(q));
    policy_complete(&p);
    assert_memory_equal(&p, &q, sizeof(p));
    assert_false(policy_has_status(&p, 503));
}

static void test_statuses(void **state)
{
    (void)state;
    for (int status = 100; status <= 599; status++) {
        struct retry_policy p = {0};
        policy_add_status(&p, status);
        for (int other = 90; other < 610; other++)
            assert_int_equal(policy_has_status(&p, other), other == status);
    }
}

static void test_attempts(void **state)
{
    (void)state;
    static const struct {
        const char *method;
        uint32_t given;
        bool non_idempotent;
        uint32_t expected;
    } rows[] = {
        {NULL, 0, false, 4},      {"GET", 0, false, 4},  {"PUT", 0, false, 4},
        {"DELETE", 0, false, 4},  {"POST", 0, false, 1}, {"PATCH", 0, false, 1},
        {"POST", 0, true, 4},     {"PATCH", 0, true, 4}, {"POST", 2, false, 2},
        {"PATCH", 20, false, 20}, {"POST", 1, true, 1},  {"GET", 1, true, 1},
        {"GET", 7, false, 7},
    };
    for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
        struct retry_policy p = {.max_attempts = 4, .non_idempotent = rows[i].non_idempotent};
        struct span method = {rows[i].method, rows[i].method != NULL ? strlen(rows[i].method) : 0};
        assert_int_equal(policy_attempts(&p, rows[i].given, method), rows[i].expected);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_complete),
        cmocka_unit_test(test_statuses),
        cmocka_unit_test(test_attempts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
