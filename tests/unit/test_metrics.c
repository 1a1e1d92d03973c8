/* server/metrics.c, server/health.c and api/exposition.c. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/exposition.h"
#include "server/health.h"
#include "server/metrics.h"
#include "server/pulse.h"

static char *exposition(void)
{
    static int64_t values[METRIC_CELLS];
    struct buf b;
    buf_init(&b, 4 << 20);
    metric_snapshot(values);
    assert_int_equal(exposition_write(&b, values), 0);
    assert_int_equal(buf_addc(&b, '\0'), 0);
    return b.data;
}

/* A line of its own, whole. */
static void has(const char *text, const char *line)
{
    char want[300];
    snprintf(want, sizeof(want), "\n%s\n", line);
    if (strstr(text, want) == NULL)
        fail_msg("no line %s", line);
}

static void test_counts(void **state)
{
    (void)state;
    metric_add(METRIC_ATTEMPTS, 3);
    metric_add(METRIC_ATTEMPTS, 4);
    metric_add(METRIC_RESULTS + METRIC_RESULT_CANCELLED, 2);
    metric_set(METRIC_WAL_SIZE, 4096);
    metric_change(METRIC_API_CONNECTIONS, 5);
    metric_change(METRIC_API_CONNECTIONS, -6);
    metric_set(METRIC_PROCESS_START, 1234567890123456);
    metric_set(METRIC_PROCESS_CPU, 1500000);
    char *text = exposition();
    has(text, "batchfetch_attempts_total 7");
    has(text, "# TYPE batchfetch_attempts_total counter");
    has(text, "batchfetch_results_total{status=\"cancelled\",error=\"none\"} 2");
    has(text, "batchfetch_results_total{status=\"succeeded\",error=\"none\"} 0");
    has(text, "batchfetch_wal_bytes 4096");
    has(text, "# TYPE batchfetch_wal_bytes gauge");
    has(text, "batchfetch_api_connections -1");
    has(text, "process_start_time_seconds 1234567890.123456");
    has(text, "process_cpu_seconds_total 1.500000");
    free(text);
}

static void test_histograms(void **state)
{
    (void)state;
    metric_observe_us(METRIC_COMMIT_TIME, METRIC_SYNC_FULL, -5); /* a clock that went back: 0 */
    metric_observe_us(METRIC_COMMIT_TIME, METRIC_SYNC_FULL, 100);
    metric_observe_us(METRIC_COMMIT_TIME, METRIC_SYNC_FULL, 101);
    metric_observe_us(METRIC_COMMIT_TIME, METRIC_SYNC_FULL, 3600000000);
    metric_observe(METRIC_COMMIT_RESULTS, 0, 20);
    metric_observe(METRIC_COMMIT_RESULTS, 0, 100000);
    char *text = exposition();
    has(text, "# TYPE batchfetch_commit_seconds histogram");
    has(text, "batchfetch_commit_seconds_bucket{sync=\"full\",le=\"0.0001\"} 2");
    has(text, "batchfetch_commit_seconds_bucket{sync=\"full\",le=\"0.0005\"} 3");
    has(text, "batchfetch_commit_seconds_bucket{sync=\"full\",le=\"60\"} 3");
    has(text, "batchfetch_commit_seconds_bucket{sync=\"full\",le=\"+Inf\"} 4");
    has(text, "batchfetch_commit_seconds_sum{sync=\"full\"} 3600.000201");
    has(text, "batchfetch_commit_seconds_count{sync=\"full\"} 4");
    has(text, "batchfetch_commit_seconds_count{sync=\"none\"} 0");
    has(text, "batchfetch_commit_results_bucket{le=\"10\"} 0");
    has(text, "batchfetch_commit_results_bucket{le=\"20\"} 1");
    has(text, "batchfetch_commit_results_bucket{le=\"10000\"} 1");
    has(text, "batchfetch_commit_results_bucket{le=\"+Inf\"} 2");
    has(text, "batchfetch_commit_results_sum 100020");
    has(text, "batchfetch_commit_results_count 2");
    free(text);
}

/* The cells of two metrics, or of two series, are never the same. */
static void test_cells_do_not_overlap(void **state)
{
    (void)state;
    unsigned next = 0;
    for (unsigned i = 0; i < metric_n_families; i++) {
        const struct metric_family *f = &metric_families[i];
        unsigned width = f->type == METRIC_TIME   ? METRIC_CELLS_TIME
                         : f->type == METRIC_SIZE ? METRIC_CELLS_SIZE
                                                  : 1;
        assert_int_equal(f->first, next);
        assert_int_equal(f->last + 1 - f->first, width * f->n_labels[0] * f->n_labels[1]);
        next = f->last + 1;
    }
    assert_int_equal(next, METRIC_CELLS);
}

/* The series of an error code is that of its number. */
static void test_error_codes_are_the_outcomes(void **state)
{
    (void)state;
    for (int o = 1; o < METRIC_SET_ERROR_SIZE; o++) {
        char want[64];
        snprintf(want, sizeof(want), "error=\"%s\"", outcome_name(o));
        for (unsigned i = 0; i < metric_n_families; i++) {
            const struct metric_family *f = &metric_families[i];
            if (f->first == METRIC_RESULTS)
                assert_non_null(strstr(f->labels[0][o], want));
            if (f->first == METRIC_RETRIES && f->labels[0][o] != NULL)
                assert_string_equal(f->labels[0][o], want);
        }
    }
    assert_int_equal(METRIC_SET_ERROR_SIZE, OUTCOME_INTERNAL + 1);
    assert_int_equal(METRIC_SET_RESULT_SIZE, OUTCOME_INTERNAL + 2);
}

enum { THREADS = 100, TIMES = 1000 };

static void *count(void *arg)
{
    (void)arg;
    for (int i = 0; i < TIMES; i++)
        metric_add(METRIC_REDIRECTS, 1);
    return NULL;
}

/* More threads than have cells of their own. */
static void test_threads(void **state)
{
    (void)state;
    pthread_t t[THREADS];
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&t[i], NULL, count, NULL), 0);
    for (int i = 0; i < THREADS; i++)
        pthread_join(t[i], NULL);
    assert_int_equal(metric_value(METRIC_REDIRECTS), THREADS * TIMES);
}

static void test_health(void **state)
{
    (void)state;
    struct health_entry v[HEALTH_CAUSES_N];
    unsigned retry_s;
    log_set_level(LOG_ERROR);
    assert_true(health_ready());
    assert_int_equal(health_read(v, &retry_s), 0);
    assert_int_equal(retry_s, 0);

    health_set(HEALTH_DESCRIPTORS, NULL);
    assert_true(health_ready()); /* that alone is no reason */
    health_set(HEALTH_DISK_FULL, "%d bytes are left", 17);
    assert_false(health_ready());
    assert_true(health_is(HEALTH_DISK_FULL));
    assert_int_equal(health_read(v, &retry_s), 2);
    assert_int_equal(retry_s, 30);
    assert_string_equal(v[0].name, "disk_full");
    assert_string_equal(v[0].detail, "17 bytes are left");
    assert_true(v[0].unready && v[0].since_ms > 0);
    assert_string_equal(v[1].name, "descriptors");
    assert_false(v[1].unready);
    char *text = exposition();
    has(text, "batchfetch_ready 0");
    has(text, "batchfetch_health{cause=\"disk_full\"} 1");
    has(text, "batchfetch_health{cause=\"descriptors\"} 1");
    has(text, "batchfetch_health{cause=\"quota\"} 0");
    free(text);

    health_set(HEALTH_DISK_FULL, "%d bytes are left", 16); /* another detail, the same time */
    int64_t since = v[0].since_ms;
    assert_int_equal(health_read(v, &retry_s), 2);
    assert_string_equal(v[0].detail, "16 bytes are left");
    assert_int_equal(v[0].since_ms, since);
    health_clear(HEALTH_DISK_FULL);
    health_clear(HEALTH_DISK_FULL);
    assert_true(health_ready());
    health_clear(HEALTH_DESCRIPTORS);
    assert_int_equal(health_read(v, &retry_s), 0);
    text = exposition();
    has(text, "batchfetch_ready 1");
    has(text, "batchfetch_health{cause=\"disk_full\"} 0");
    free(text);
}

static void test_a_thread_that_does_not_turn(void **state)
{
    (void)state;
    struct health_entry v[HEALTH_CAUSES_N];
    unsigned retry_s;
    int64_t s = 1000000, us;
    log_set_level(LOG_ERROR);
    pulse_begin(s); /* of nobody */
    assert_null(pulse_slowest(5 * s, &us));
    pulse_register("tester");
    assert_true(health_watch(100 * s));
    pulse_begin(100 * s);
    assert_string_equal(pulse_slowest(103 * s, &us), "tester");
    assert_int_equal(us, 3 * s);
    assert_true(health_watch(104 * s) && health_ready());
    assert_true(health_watch(106 * s));
    assert_false(health_ready());
    assert_int_equal(health_read(v, &retry_s), 1);
    assert_string_equal(v[0].detail, "the tester has been at one thing for 6 s");
    assert_true(health_watch(160 * s));
    assert_false(health_watch(161 * s));
    pulse_end();
    assert_true(health_watch(162 * s) && health_ready());
    log_set_level(LOG_INFO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_counts),
        cmocka_unit_test(test_histograms),
        cmocka_unit_test(test_cells_do_not_overlap),
        cmocka_unit_test(test_error_codes_are_the_outcomes),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_health),
        cmocka_unit_test(test_a_thread_that_does_not_turn),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
