/* A sync that fails: what was committed is made sure of before anything else is, and what was not is
 * gone for good. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>
#include <sys/uio.h>

#include "tests/unit/store_fixture.h"

/* Writes of SQLite's come through here. */
static uint64_t written;

ssize_t pwrite64(int fd, const void *buf, size_t n, off64_t offset)
{
    written += n;
    return (ssize_t)syscall(SYS_pwrite64, fd, buf, n, offset);
}

static void commit(struct store *s, int64_t no, bool durable, int expected)
{
    OK(store_begin(s, durable));
    add_batch(s, no, BATCH_OPEN, NULL);
    assert_int_equal(store_commit(s), expected);
}

static void batches_are(struct store *s, const int64_t *want, size_t n)
{
    struct seen l = {0};
    OK(store_open_batches(s, see_batch, &l));
    seen_are(&l, want, n);
}
#define BATCHES(s, ...)                                          \
    do {                                                         \
        const int64_t want_[] = {__VA_ARGS__};                   \
        batches_are(s, want_, sizeof(want_) / sizeof(want_[0])); \
    } while (0)

static void copy_file(const char *name, const char *to)
{
    char command[512];
    snprintf(command, sizeof(command), "%s/copy", base);
    (void)mkdir(command, 0700);
    snprintf(command, sizeof(command), "%s/copy/%s", base, to);
    int in = open(file(name), O_RDONLY | O_CLOEXEC);
    int out = open(command, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    assert_true(in >= 0 && out >= 0);
    char buf[4096];
    ssize_t n;
    while ((n = read(in, buf, sizeof(buf))) > 0)
        assert_int_equal(write(out, buf, (size_t)n), n);
    close(in);
    close(out);
}

/* As a process would find it that starts now: the log is recovered. */
static struct store *open_copy(void)
{
    char copy[128], why[256];
    struct store *s;
    copy_file("batchfetch.db", "batchfetch.db");
    copy_file("batchfetch.db-wal", "batchfetch.db-wal");
    snprintf(copy, sizeof(copy), "%s/copy", base);
    OK(store_open(&s, copy, STORE_WRITE, why, sizeof(why)));
    return s;
}

static int64_t log_size(void)
{
    struct stat st;
    OK(stat(file("batchfetch.db-wal"), &st));
    return st.st_size;
}

/* Commit 1 is in the log, not synced; the sync of commit 2 fails. */
static void test_once(void **state)
{
    (void)state;
    struct store *s = open_store(STORE_WRITE);
    commit(s, 1, false, 0);
    failing_syncs = 1;
    commit(s, 2, true, E_IO);
    assert_int_equal(failing_syncs, 0);
    assert_false(store_lost(s));
    BATCHES(s, 1);
    struct store *other = open_copy(); /* 2 does not come back either */
    BATCHES(other, 1);
    store_close(other);
    commit(s, 3, true, 0);
    BATCHES(s, 1, 3);
    store_close(s);
    s = open_store(STORE_WRITE);
    BATCHES(s, 1, 3);
    store_close(s);
}

/* All that was committed is written again before it is synced, each time. */
static void test_again_and_again(void **state)
{
    (void)state;
    struct store *s = open_store(STORE_WRITE);
    commit(s, 1, false, 0);
    commit(s, 2, false, 0);
    uint64_t size = (uint64_t)log_size();
    failing_syncs = 3;
    commit(s, 3, true, E_IO); /* and one try to mend it */
    assert_int_equal(failing_syncs, 1);
    written = 0;
    assert_int_equal(store_begin(s, true), E_IO);
    assert_true(written >= size);
    written = 0;
    store_checkpoint(s, true); /* mends it first */
    assert_true(written >= size);
    BATCHES(s, 1, 2);
    commit(s, 4, true, 0);
    BATCHES(s, 1, 2, 4);
    store_close(s);
    s = open_store(STORE_WRITE);
    BATCHES(s, 1, 2, 4);
    store_close(s);
}

/* While it is not mended nothing goes from the log to the database, at the end neither. */
static void test_no_checkpoint(void **state)
{
    (void)state;
    struct store *s = open_store(STORE_WRITE);
    commit(s, 1, false, 0);
    failing_syncs = 1000;
    commit(s, 2, true, E_IO);
    store_checkpoint(s, true);
    int64_t size = log_size();
    assert_true(size > 0);
    store_close(s);
    failing_syncs = 0;
    assert_int_equal(log_size(), size);
    s = open_store(STORE_WRITE);
    BATCHES(s, 1);
    store_close(s);
}

/* The sync of the log with which a checkpoint begins. */
static void test_checkpoint(void **state)
{
    (void)state;
    struct store *s = open_store(STORE_WRITE);
    commit(s, 1, false, 0);
    failing_syncs = 1;
    store_checkpoint(s, true);
    assert_int_equal(failing_syncs, 0);
    written = 0;
    uint64_t size = (uint64_t)log_size();
    OK(store_begin(s, true));
    assert_true(written >= size);
    OK(store_commit(s));
    store_checkpoint(s, true);
    assert_int_equal(log_size(), 0);
    BATCHES(s, 1);
    store_close(s);
}

/* A checkpoint that a reader cut short has written pages and synced nothing; the sync of the next one,
 * which goes on behind them, fails, and the kernel drops all of them. */
static void test_two_checkpoints(void **state)
{
    (void)state;
    char copy[128];
    struct stat st;
    struct store *s = open_store(STORE_WRITE);
    store_checkpoint(s, true);
    commit(s, 1, true, 0);
    OK(store_begin(s, true));
    OK(store_add_page(s, 1, &(struct page){.count = 1, .data = "page", .len = 4}));
    OK(store_commit(s));
    sqlite3 *reader = look();
    OK(sqlite3_exec(reader, "BEGIN; SELECT * FROM batch", NULL, NULL, NULL));
    commit(s, 2, true, 0);
    copy_file("batchfetch.db", "synced.db");
    store_checkpoint(s, true);
    assert_true(log_size() > 0);
    OK(sqlite3_close(reader));
    passing_syncs = 1; /* the log's */
    failing_syncs = 1;
    store_checkpoint(s, true);
    assert_int_equal(failing_syncs, 0);
    assert_true(log_size() > 0);
    snprintf(copy, sizeof(copy), "%s/copy/synced.db", base);
    int in = open(copy, O_RDONLY | O_CLOEXEC);
    int out = open(file("batchfetch.db"), O_WRONLY | O_CLOEXEC);
    assert_true(in >= 0 && out >= 0);
    OK(fstat(in, &st));
    char *text = test_malloc((size_t)st.st_size);
    assert_int_equal(read(in, text, (size_t)st.st_size), st.st_size);
    assert_int_equal(syscall(SYS_pwrite64, out, text, st.st_size, 0), st.st_size);
    test_free(text);
    close(in);
    close(out);
    commit(s, 3, true, 0);
    store_checkpoint(s, true);
    assert_int_equal(log_size(), 0);
    store_close(s);
    s = open_store(STORE_WRITE);
    BATCHES(s, 1, 2, 3);
    assert_int_equal(number("SELECT count(*) FROM page WHERE data=x'70616765'"), 1);
    assert_int_equal(
        number("SELECT count(*) FROM pragma_integrity_check WHERE integrity_check='ok'"), 1);
    store_close(s);
}

/* The kernel gives back another page than was written. */
static void test_lost(void **state)
{
    (void)state;
    struct store *s = open_store(STORE_WRITE);
    commit(s, 1, false, 0);
    commit(s, 2, false, 0);
    failing_syncs = 2;
    commit(s, 3, true, E_IO);
    assert_false(store_lost(s));
    int fd = open(file("batchfetch.db-wal"), O_WRONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(syscall(SYS_pwrite64, fd, "x", 1, 32 + 24 + 100), 1);
    close(fd);
    assert_int_equal(store_begin(s, true), E_CORRUPT);
    assert_true(store_lost(s));
    assert_non_null(strstr(store_error(s), "the disk has lost data"));
    int64_t size = log_size();
    store_close(s);
    assert_int_equal(log_size(), size);
}

/* The log begins anew in the transaction whose sync fails. */
static void test_new_log(void **state)
{
    (void)state;
    struct store *s = open_store(STORE_WRITE);
    commit(s, 1, true, 0);
    for (int i = 0; i < 2; i++) {
        store_checkpoint(s, i == 0);
        failing_syncs = 1;
        commit(s, 2, true, E_IO);
        BATCHES(s, 1);
    }
    commit(s, 4, true, 0);
    struct store *other = open_copy();
    BATCHES(other, 1, 4);
    store_close(other);
    store_close(s);
}

/* A transaction that came to nothing has written to the log, as more than fits into the cache. */
static void test_cut(void **state)
{
    (void)state;
    enum { LARGE = 256 * 1024 };
    char *text = test_calloc(1, LARGE);
    struct store *s = open_store(STORE_WRITE);
    for (int64_t no = 1; no <= 2; no++) {
        commit(s, no, true, 0);
        int64_t size = log_size();
        OK(store_begin(s, true));
        for (uint32_t i = 0; i < 64; i++)
            OK(store_add_page(s, no,
                              &(struct page){.no = i, .data = text, .count = 1, .len = LARGE}));
        store_cut(s); /* not now */
        assert_true(log_size() > size);
        store_rollback(s);
        assert_true(log_size() > size);
        store_cut(s);
        assert_int_equal(log_size(), size);
        commit(s, no + 10, true, 0);
        struct store *other = open_copy();
        if (no == 1)
            BATCHES(other, 1, 11);
        else
            BATCHES(other, 1, 2, 11, 12);
        store_close(other);
        store_checkpoint(s, true);
    }
    store_close(s);
    test_free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_once),          TEST(test_again_and_again),
        TEST(test_no_checkpoint), TEST(test_checkpoint),
        TEST(test_lost),          TEST(test_new_log),
        TEST(test_cut),           TEST(test_two_checkpoints),
    };
    return cmocka_run_group_tests_name("store_sync", tests, NULL, NULL);
}
