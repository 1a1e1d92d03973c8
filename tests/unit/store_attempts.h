/* For the tests of stored attempts: puts some, and tells what is due. */
#ifndef TESTS_STORE_ATTEMPTS_H
#define TESTS_STORE_ATTEMPTS_H

#include "tests/unit/store_fixture.h"

static const struct attempt_mark FIRST = {INT64_MIN, 0};

static inline int put_attempt(struct store *s, int64_t batch, uint64_t index, uint64_t lane,
                              int64_t due, const char *data)
{
    struct attempt a = {.at = {due, index},
                        .lane = lane,
                        .page = (uint32_t)index / 2,
                        .data = data,
                        .len = strlen(data)};
    return store_put_attempt(s, batch, &a);
}

static inline int see_index(void *arg, uint64_t index)
{
    return see(arg, (int64_t)index);
}

/* What is due between two places, as index + 1000 * lane; of one lane unless it is NULL. */
static inline void due(struct store *s, struct seen *l, int64_t batch, const uint64_t *lane,
                       struct attempt_mark after, struct attempt_mark upto, size_t max)
{
    struct attempt v[16];
    size_t n;
    assert_true(max <= 16);
    if (lane != NULL)
        OK(store_lane_due(s, batch, *lane, after, upto, v, max, &n));
    else
        OK(store_due(s, batch, after, upto, v, max, &n));
    for (size_t i = 0; i < n; i++) {
        struct attempt a;
        OK(store_attempt(s, batch, v[i].at.index, &a));
        assert_int_equal(a.at.due_ms, v[i].at.due_ms);
        assert_int_equal(a.lane, v[i].lane);
        see(l, (int64_t)(v[i].at.index + 1000 * v[i].lane));
    }
}

#endif
