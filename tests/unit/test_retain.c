/* The clock by which batches expire. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "server/retain.h"

#define WALL 1800000000000LL /* any day */
#define BOOT 5000000LL
#define DAY (24 * 3600 * 1000LL)
#define HOUR (3600 * 1000LL)

static struct retain_clock c;

/* After `ms` of boot time, with the system's clock `off` ahead of where it began. */
static void expect(int64_t ms, int64_t off, int64_t believed, int64_t stepped)
{
    int64_t by = -1;
    assert_int_equal(retain_clock_now(&c, WALL + ms + off, BOOT + ms, &by), WALL + ms + believed);
    assert_int_equal(by, stepped);
}

static int begin(void **state)
{
    (void)state;
    retain_clock_init(&c, WALL, BOOT, WALL - DAY);
    return 0;
}

static void follows_what_is_small(void **state)
{
    (void)state;
    expect(0, 0, 0, 0);
    expect(1000, 500, 500, 0); /* drift, or slewing */
    expect(2000, 2500, 2500, 0);
    expect(9 * DAY, 2500, 2500, 0); /* suspended: both clocks go on */
}

static void a_step_forward_waits_an_hour(void **state)
{
    (void)state;
    expect(0, 0, 0, 0);
    expect(1000, 365 * DAY, 0, 365 * DAY);
    expect(2000, 365 * DAY, 0, 0); /* said once */
    expect(1000 + HOUR - 1, 365 * DAY + 900, 0, 0);
    expect(1000 + HOUR, 365 * DAY + 900, 365 * DAY + 900, 0);
    expect(2000 + HOUR, 365 * DAY + 900, 365 * DAY + 900, 0);
}

static void a_step_that_is_taken_back_never_was(void **state)
{
    (void)state;
    expect(1000, 365 * DAY, 0, 365 * DAY);
    expect(50 * 60000, 0, 0, 0);                 /* set right after 50 minutes */
    expect(55 * 60000, 365 * DAY, 0, 365 * DAY); /* and wrong again: the hour begins anew */
    expect(90 * 60000, 365 * DAY, 0, 0);
    expect(100 * 60000, 700 * DAY, 0, 700 * DAY); /* another step: anew */
    expect(150 * 60000, 700 * DAY, 0, 0);
    expect(160 * 60000, 700 * DAY, 700 * DAY, 0);
}

static void a_step_back_is_followed(void **state)
{
    (void)state;
    expect(1000, -DAY, -DAY, 0);
    expect(2000, 0, -DAY, DAY); /* then forward is a step */
    expect(2000 + HOUR, 0, 0, 0);
}

static void the_start_after_a_long_stop(void **state)
{
    (void)state;
    retain_clock_init(&c, WALL, BOOT, WALL - RETAIN_GAP_MS);
    expect(0, 0, 0, 0);
    retain_clock_init(&c, WALL, BOOT, WALL - 1000 * DAY);
    expect(0, 0, -1000 * DAY, 1000 * DAY);
    expect(HOUR - 1, 0, -1000 * DAY, 0);
    expect(HOUR, 0, 0, 0);
    retain_clock_init(&c, WALL, BOOT, 0); /* nothing was recorded */
    expect(0, 0, 0, 0);
    retain_clock_init(&c, WALL, BOOT, WALL + 1000 * DAY); /* the clock was ahead, or is behind */
    expect(0, 0, 0, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(follows_what_is_small, begin),
        cmocka_unit_test_setup(a_step_forward_waits_an_hour, begin),
        cmocka_unit_test_setup(a_step_that_is_taken_back_never_was, begin),
        cmocka_unit_test_setup(a_step_back_is_followed, begin),
        cmocka_unit_test_setup(the_start_after_a_long_stop, begin),
    };
    return cmocka_run_group_tests_name("retain", tests, NULL, NULL);
}
