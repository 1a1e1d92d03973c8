/* server/disk.c: the pure part of the disk's state machine. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "server/disk.h"

#define MIB ((uint64_t)1 << 20)

static struct disk_space space(uint64_t total, uint64_t free)
{
    return (struct disk_space){
        .total = total * MIB, .free = free * MIB, .max = DISK_NONE, .reserve = 2 * MIB};
}

static void the_reserve_follows_the_smaller_bound(void **state)
{
    (void)state;
    struct disk_space s = space(32, 32);
    assert_int_equal(disk_reserve_size(&s), 2 * MIB);
    s.total = 256 * MIB;
    assert_int_equal(disk_reserve_size(&s), 8 * MIB);
    s.total = 1024 * 1024 * MIB;
    assert_int_equal(disk_reserve_size(&s), 32 * MIB);
    s.max = 128 * MIB;
    assert_int_equal(disk_reserve_size(&s), 4 * MIB);
    s.max = DISK_AUTO;
    assert_int_equal(disk_reserve_size(&s), 32 * MIB);
}

static void what_is_left_is_by_disk_and_option(void **state)
{
    (void)state;
    struct disk_space s = space(1000, 300);
    s.used = 60 * MIB;
    assert_int_equal(disk_left(&s), 300 * MIB);
    s.max = 100 * MIB;
    assert_int_equal(disk_left(&s), 40 * MIB);
    s.free = 10 * MIB;
    assert_int_equal(disk_left(&s), 10 * MIB);
    s.used = 101 * MIB;
    assert_int_equal(disk_left(&s), 0);
    s.max = DISK_AUTO; /* a twentieth of the disk is others' */
    s.free = 300 * MIB;
    assert_int_equal(disk_left(&s), 250 * MIB);
    s.free = 49 * MIB;
    assert_int_equal(disk_left(&s), 0);
    s = space(1024 * 1024, 5000); /* … at most 1 GiB */
    s.max = DISK_AUTO;
    assert_int_equal(disk_left(&s), (5000 - 1024) * MIB);
}

static void what_was_fetched_counts_in_log_and_database(void **state)
{
    (void)state;
    struct disk_space s = space(32, 32);
    assert_int_equal(disk_need(&s), 2 * MIB);
    s.pending = 5 * MIB;
    assert_int_equal(disk_need(&s), (2 + 5 + 5) * MIB);
    s.unused = 3 * MIB; /* free pages take up some of it */
    assert_int_equal(disk_need(&s), (2 + 5 + 2) * MIB);
    s.log = 4 * MIB; /* a log that is folded is written over */
    assert_int_equal(disk_need(&s), (2 + 1 + 2) * MIB);
    s.unfolded = MIB;
    s.grows = MIB;
    assert_int_equal(disk_need(&s), (2 + 5 + 1 + 2) * MIB);
    s.pending = 500 * MIB; /* the log does not grow by all of it at once */
    assert_int_equal(disk_need(&s), (2 + 64 + 1 + 497) * MIB);
}

static void full_and_well_have_a_gap(void **state)
{
    (void)state;
    struct disk_space s = space(32, 2);
    assert_int_equal(disk_judge(DISK_WELL, 0, &s), DISK_WELL);
    s.free = 2 * MIB - 1;
    assert_int_equal(disk_judge(DISK_WELL, 0, &s), DISK_FULL);
    s.free = 3 * MIB - 1;
    assert_int_equal(disk_judge(DISK_FULL, 0, &s), DISK_FULL);
    s.free = 3 * MIB;
    assert_int_equal(disk_judge(DISK_FULL, 0, &s), DISK_WELL);
    s.reserve = 0; /* it was given up: first it must be had again */
    assert_int_equal(disk_judge(DISK_FULL, 0, &s), DISK_FULL);
    s.free = 5 * MIB;
    assert_int_equal(disk_judge(DISK_FULL, 0, &s), DISK_WELL);
}

static void the_option_and_the_disk_are_told_apart(void **state)
{
    (void)state;
    struct disk_space s = space(1000, 500);
    s.max = 64 * MIB;
    s.used = 60 * MIB;
    assert_int_equal(disk_judge(DISK_WELL, 0, &s), DISK_WELL);
    s.used = 63 * MIB;
    assert_int_equal(disk_judge(DISK_WELL, 0, &s), DISK_QUOTA);
    assert_int_equal(disk_judge(DISK_QUOTA, 0, &s), DISK_QUOTA);
    s.free = MIB;
    assert_int_equal(disk_judge(DISK_QUOTA, 0, &s), DISK_FULL);
    s.free = 500 * MIB;
    s.used = 50 * MIB;
    assert_int_equal(disk_judge(DISK_FULL, 0, &s), DISK_WELL);
}

static void an_error_stands_until_a_write_works(void **state)
{
    static const struct {
        int error;
        enum disk_state state;
    } rows[] = {
        {E_FULL, DISK_FULL},      {E_READONLY, DISK_READ_ONLY}, {E_IO, DISK_FAILED},
        {E_CORRUPT, DISK_FAILED}, {E_NOMEM, DISK_FAILED},
    };
    (void)state;
    struct disk_space s = space(1000, 900);
    for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
        for (enum disk_state was = DISK_WELL; was <= DISK_FAILED; was++)
            assert_int_equal(disk_judge(was, rows[i].error, &s), rows[i].state);
        assert_int_equal(disk_judge(rows[i].state, 0, &s), DISK_WELL);
    }
}

static void tries_become_rarer_but_not_too_rare(void **state)
{
    (void)state;
    assert_int_equal(disk_backoff_us(1), 250 * 1000);
    assert_int_equal(disk_backoff_us(2), 500 * 1000);
    assert_int_equal(disk_backoff_us(4), 2000 * 1000);
    assert_int_equal(disk_backoff_us(UINT32_MAX), 2000 * 1000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_reserve_follows_the_smaller_bound),
        cmocka_unit_test(what_is_left_is_by_disk_and_option),
        cmocka_unit_test(what_was_fetched_counts_in_log_and_database),
        cmocka_unit_test(full_and_well_have_a_gap),
        cmocka_unit_test(the_option_and_the_disk_are_told_apart),
        cmocka_unit_test(an_error_stands_until_a_write_works),
        cmocka_unit_test(tries_become_rarer_but_not_too_rare),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
