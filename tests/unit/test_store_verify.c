/* What --check finds, and what a start finds. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>

#include "tests/unit/store_fixture.h"

static char faults[4096];

static void on_fault(void *arg, const char *text)
{
    (void)arg;
    snprintf(faults + strlen(faults), sizeof(faults) - strlen(faults), "%s\n", text);
}

static int verify(struct store_summary *sum)
{
    char why[512] = "";
    faults[0] = '\0';
    return store_verify(dir, on_fault, NULL, sum, why, sizeof(why));
}

/* Two batches: one has ended with three results, one is open. */
static void fill(void)
{
    struct store *s = open_store(STORE_WRITE);
    OK(store_begin(s, true));
    struct batch b = batch_of(1, BATCH_COMPLETED);
    b.total = b.succeeded = 3;
    b.pages = 1;
    OK(store_add_batch(s, &b));
    struct page p = {.no = 0, .lane = 7, .count = 3, .data = "xyz", .len = 3};
    OK(store_add_page(s, 1, &p));
    for (uint64_t n = 1; n <= 3; n++)
        OK(add_plain(s, 1, n));
    b = batch_of(2, BATCH_OPEN);
    b.total = 3;
    b.pages = 1;
    OK(store_add_batch(s, &b));
    OK(store_add_page(s, 2, &p));
    OK(store_commit(s));
    store_close(s);
}

static bool there(const char *name)
{
    return access(file(name), F_OK) == 0;
}

static void test_sound(void **state)
{
    (void)state;
    struct store_summary sum;
    assert_int_equal(verify(&sum), E_NOTFOUND);
    fill();
    for (int i = 0; i < 2; i++) {
        assert_int_equal(verify(&sum), 0);
        assert_string_equal(faults, "");
        assert_int_equal(sum.batches, 2);
        assert_int_equal(sum.requests, 6);
        assert_int_equal(sum.results, 3);
        assert_false(there("batchfetch.db-wal") || there("batchfetch.db-shm"));
    }
    struct store *s = open_store(STORE_WRITE); /* while it runs */
    OK(store_begin(s, true));
    OK(store_commit(s));
    assert_int_equal(verify(&sum), 0);
    add_batch(s, 3, BATCH_OPEN, NULL);
    assert_int_equal(verify(&sum), 0);
    assert_int_equal(sum.batches, 3);
    assert_true(there("batchfetch.db-wal") && there("batchfetch.db-shm"));
    store_close(s);
}

static void found(const char *change_sql, const char *text)
{
    struct store_summary sum;
    assert_int_equal(tear_down(NULL), 0);
    assert_int_equal(set_up(NULL), 0);
    fill();
    change(change_sql);
    int n = verify(&sum);
    if (n < 1 || strstr(faults, text) == NULL)
        fail_msg("%s: %d: %s", change_sql, n, faults);
}

static void test_faults(void **state)
{
    (void)state;
    found("UPDATE batch SET succeeded=2 WHERE no=1",
          "batch b1: 3 requests, but its counts sum to 2");
    found("UPDATE batch SET succeeded=2,failed=1 WHERE no=1", "not those of its results");
    found("DELETE FROM result WHERE id=(1<<32)+2", "batch b1: 2 results stored, 3 expected");
    found("DELETE FROM body WHERE id=(1<<32)+2", "result 2 of batch number 1: its body is missing");
    found("UPDATE body SET data=x'00' WHERE id=(1<<32)+2", "its body is 1 bytes of 4");
    found("DELETE FROM page WHERE id=2<<32", "batch b2: 0 of 3 requests in 0 of 1 pages");
    found("UPDATE page SET count=2 WHERE id=2<<32", "batch b2: 2 of 3 requests in 1 of 1 pages");
    found("INSERT INTO body VALUES((1<<32)+9,x'00')", "1 bodies belong to no result");
    found("INSERT INTO page VALUES(9<<32,1,1,x'00')", "1 pages of requests belong to no batch");
    found("UPDATE result SET id=(9<<32)+1 WHERE id=(1<<32)+1", "1 results belong to no batch");
    found("UPDATE result SET key=(2<<32)+1 WHERE id=(1<<32)+1",
          "result 1 of batch number 1 is one of");
    found("INSERT INTO attempt VALUES(9<<32,9,0,1,1,0,x'00')", "1 attempts belong to no batch");
    found("DROP INDEX result_custom", "tables and indexes are not those");
    found("CREATE TABLE more(x)", "tables and indexes are not those");
    found("PRAGMA writable_schema=ON; UPDATE sqlite_schema SET rootpage=(SELECT rootpage FROM "
          "sqlite_schema WHERE name='page_lane') WHERE name='result_key'",
          "row");
}

/* Zeros over the root of a table, which every start reads. */
static void spoil(const char *table)
{
    char sql[128], zeros[100] = {0};
    snprintf(sql, sizeof(sql), "SELECT rootpage FROM sqlite_schema WHERE name='%s'", table);
    int64_t page = number(sql);
    int fd = open(file("batchfetch.db"), O_WRONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(pwrite(fd, zeros, sizeof(zeros), (page - 1) * 8192), sizeof(zeros));
    close(fd);
}

static void refused(const char *text)
{
    struct store *s;
    struct store_summary sum;
    char why[512] = "";
    assert_int_equal(store_open(&s, dir, STORE_WRITE, why, sizeof(why)), E_CORRUPT);
    assert_null(s);
    if (strstr(why, "is damaged") == NULL || strstr(why, "--check") == NULL ||
        strstr(why, "Restore a backup") == NULL || strstr(why, text) == NULL)
        fail_msg("%s", why);
    assert_true(verify(&sum) > 0);
}

static void test_start(void **state)
{
    static const char *const tables[] = {"batch",   "page",       "result",    "body",
                                         "attempt", "result_key", "page_lane", "attempt_due"};
    for (size_t i = 0; i < sizeof(tables) / sizeof(tables[0]); i++) {
        if (i > 0) {
            assert_int_equal(tear_down(state), 0);
            assert_int_equal(set_up(state), 0);
        }
        fill();
        spoil(tables[i]);
        refused("malformed");
    }
}

static int leave_open(void)
{
    struct store *s = open_store(STORE_WRITE);
    if (store_begin(s, true) != 0)
        return 1;
    add_batch(s, 3, BATCH_OPEN, NULL);
    return store_commit(s); /* and no store_close */
}

/* What only a look at every page finds, after a stop that was not clean. */
static void test_unclean_start(void **state)
{
    (void)state;
    fill();
    change("PRAGMA writable_schema=ON; UPDATE sqlite_schema SET rootpage=(SELECT rootpage FROM "
           "sqlite_schema WHERE name='result_custom') WHERE name='batch_ended'");
    store_close(open_store(STORE_WRITE)); /* after a clean one it is not looked for */
    assert_int_equal(in_child(leave_open), 0);
    assert_true(there("batchfetch.db-wal"));
    struct stat before, after;
    OK(stat(file("batchfetch.db"), &before));
    refused("2nd reference");
    OK(stat(file("batchfetch.db"), &after)); /* nothing was folded into it */
    assert_memory_equal(&before.st_mtim, &after.st_mtim, sizeof(before.st_mtim));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_sound),
        TEST(test_faults),
        TEST(test_start),
        TEST(test_unclean_start),
    };
    return cmocka_run_group_tests_name("store_verify", tests, NULL, NULL);
}
