/* Requests that wait for another attempt, through storage/store.h: their order in time, changes and
 * removal. As in test_store.c in real files. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <string.h>

#include "tests/unit/store_attempts.h"

#define HIGH_LANE (UINT64_MAX - 1)

/* Four of each of three batches: what is of the others is never seen. */
static void put_attempts(struct store *s)
{
    for (int64_t batch = 1; batch <= 3; batch++) {
        OK(put_attempt(s, batch, 7, 1, 500, "seven"));
        OK(put_attempt(s, batch, 3, 2, 500, ""));
        OK(put_attempt(s, batch, 9, 1, -40, "nine"));
        OK(put_attempt(s, batch, UINT32_MAX, HIGH_LANE, 600, "last"));
    }
}

static void test_attempts(void **state)
{
    (void)state;
    struct store *s = open_store(STORE_WRITE);
    struct seen l = {0};
    struct attempt a;
    assert_int_equal(store_attempt(s, 2, 7, &a), E_NOTFOUND);
    OK(store_drop_attempt(s, 2, 7));
    put_attempts(s);
    OK(store_attempt(s, 2, UINT32_MAX, &a));
    assert_true(a.lane == HIGH_LANE && a.at.due_ms == 600 && a.at.index == UINT32_MAX);
    assert_int_equal(a.page, UINT32_MAX / 2);
    assert_int_equal(a.len, 4);
    assert_memory_equal(a.data, "last", 4);
    OK(store_attempt(s, 2, 3, &a));
    assert_int_equal(a.len, 0);
    OK(store_drop_attempt(s, 2, UINT32_MAX));

    const struct attempt_mark end = {INT64_MAX, UINT64_MAX}, now = {500, UINT64_MAX};
    due(s, &l, 2, NULL, FIRST, now, 16);
    SEEN(l, 1009, 2003, 1007);
    due(s, &l, 2, NULL, FIRST, (struct attempt_mark){500, 3}, 16); /* up to and with */
    SEEN(l, 1009, 2003);
    due(s, &l, 2, NULL, (struct attempt_mark){500, 3}, now, 16); /* after */
    SEEN(l, 1007);
    due(s, &l, 2, NULL, FIRST, end, 1); /* the earliest */
    SEEN(l, 1009);
    due(s, &l, 2, NULL, FIRST, (struct attempt_mark){-41, UINT64_MAX}, 16);
    SEEN(l);
    const uint64_t one = 1;
    due(s, &l, 2, &one, FIRST, end, 16);
    SEEN(l, 1009, 1007);
    due(s, &l, 2, &one, (struct attempt_mark){-40, 9}, end, 16);
    SEEN(l, 1007);
    due(s, &l, 2, &one, FIRST, (struct attempt_mark){500, 6}, 16);
    SEEN(l, 1009);
    store_close(s);
}

static void test_attempts_change(void **state)
{
    (void)state;
    struct store *s = open_store(STORE_WRITE);
    struct seen l = {0};
    struct attempt a;
    const struct attempt_mark end = {INT64_MAX, UINT64_MAX};
    put_attempts(s);
    OK(store_drop_attempt(s, 2, UINT32_MAX));

    OK(put_attempt(s, 2, 9, 1, 700, "again")); /* another time */
    due(s, &l, 2, NULL, FIRST, end, 16);
    SEEN(l, 2003, 1007, 1009);
    OK(store_attempt(s, 2, 9, &a));
    assert_memory_equal(a.data, "again", 5);
    OK(store_bound_due(s, 2, 600));
    OK(store_attempt(s, 2, 9, &a));
    assert_int_equal(a.at.due_ms, 600);
    OK(store_attempt(s, 2, 7, &a));
    assert_int_equal(a.at.due_ms, 400);
    OK(store_bound_due(s, 2, 600)); /* none is later now */
    OK(store_attempt(s, 2, 7, &a));
    assert_int_equal(a.at.due_ms, 400);
    OK(store_attempt(s, 1, 9, &a)); /* another batch's */
    assert_int_equal(a.at.due_ms, -40);
    OK(store_drop_attempt(s, 2, 7));
    OK(store_attempts(s, 2, see_index, &l));
    SEEN(l, 3, 9);
    l.stop_at = 1;
    l.answer = E_NOMEM;
    assert_int_equal(store_attempts(s, 2, see_index, &l), E_NOMEM);
    int64_t no = 0;
    OK(store_attempts_next(s, no, &no));
    assert_int_equal(no, 1);
    OK(store_attempts_next(s, no, &no));
    assert_int_equal(no, 2);
    SEEN(l, 3);
    l.stop_at = 0;

    bool over = true;
    OK(store_remove_attempts(s, 2, 1, &over));
    assert_false(over);
    OK(store_remove_attempts(s, 2, 9, &over));
    assert_true(over);
    OK(store_attempts(s, 2, see_index, &l));
    SEEN(l);
    store_close(s); /* and they are on disk */
    s = open_store(STORE_WRITE);
    due(s, &l, 1, NULL, FIRST, end, 3);
    SEEN(l, 1009, 2003, 1007);
    store_close(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_attempts),
        TEST(test_attempts_change),
    };
    return cmocka_run_group_tests_name("store_attempt", tests, NULL, NULL);
}
