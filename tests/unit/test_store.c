/* The database through storage/store.h: opening, transactions and their durability, batches and
 * their pages. In real files, in a directory of each test's own; what store.h does not show (rows
 * left over) is looked at with SQLite itself. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/unit/store_fixture.h"

/* ---- open and close ---- */

static mode_t mode_of(const char *path)
{
    struct stat st;
    if (stat(path, &st) != 0)
        fail_msg("%s is missing", path);
    return st.st_mode & 0777;
}

static void test_modes(void **state)
{
    (void)state;
    mode_t old = umask(0);
    struct store *s = open_store(STORE_WRITE);
    assert_int_equal(umask(old), 0);
    OK(store_begin(s, true));
    add_batch(s, 1, BATCH_OPEN, NULL);
    OK(store_commit(s));
    char parent[80];
    snprintf(parent, sizeof(parent), "%s/a", base);
    assert_int_equal(mode_of(parent), 0700);
    assert_int_equal(mode_of(dir), 0700);
    static const char *const names[] = {"lock", "batchfetch.db", "batchfetch.db-wal",
                                        "batchfetch.db-shm"};
    for (size_t i = 0; i < 4; i++)
        assert_int_equal(mode_of(file(names[i])), 0600);
    assert_int_equal(number("PRAGMA page_size"), 8192); /* settable before the first write only */
    assert_int_equal(number("PRAGMA auto_vacuum"), 2);
    assert_non_null(store_error(s));
    store_close(s);
    store_close(NULL);
}

static int child_opens(void)
{
    struct store *s;
    char why[256] = "";
    int rc = store_open(&s, dir, STORE_WRITE, why, sizeof(why));
    if (rc != 0 && (s != NULL || why[0] == '\0'))
        return 99;
    store_close(s);
    return -rc;
}

static void test_second_writer(void **state)
{
    (void)state;
    struct store *s = open_store(STORE_WRITE), *two = s;
    char why[256] = "";
    assert_int_equal(store_open(&two, dir, STORE_WRITE, why, sizeof(why)), E_BUSY);
    assert_null(two);
    assert_non_null(strstr(why, "in use"));
    assert_int_equal(in_child(child_opens), -E_BUSY);
    /* The refused ones took nothing from the first. */
    OK(store_begin(s, true));
    add_batch(s, 1, BATCH_OPEN, NULL);
    OK(store_commit(s));
    assert_int_equal(in_child(child_opens), -E_BUSY);
    store_close(s);
    OK(in_child(child_opens));
    store_close(open_store(STORE_WRITE));
}

static char *contents(const char *path, size_t *n)
{
    int fd = open(path, O_RDONLY);
    struct stat st;
    assert_true(fd >= 0);
    OK(fstat(fd, &st));
    char *p = malloc((size_t)st.st_size + 1);
    assert_non_null(p);
    assert_int_equal(read(fd, p, (size_t)st.st_size), st.st_size);
    close(fd);
    *n = (size_t)st.st_size;
    return p;
}

/* The database, as it stands in `dir`, is refused with `expected` and not changed by a byte. */
static void refused(int expected)
{
    size_t n, n2;
    char why[256] = "", *before = contents(file("batchfetch.db"), &n);
    struct store *s;
    assert_int_equal(store_open(&s, dir, STORE_WRITE, why, sizeof(why)), expected);
    assert_null(s);
    assert_true(why[0] != '\0');
    assert_int_equal(store_open(&s, dir, STORE_WRITE, NULL, 0), expected);
    char *after = contents(file("batchfetch.db"), &n2);
    assert_int_equal(n, n2);
    assert_memory_equal(before, after, n);
    free(before);
    free(after);
}

static void test_foreign(void **state)
{
    (void)state;
    store_close(open_store(STORE_WRITE));
    change("PRAGMA user_version=1000");
    refused(E_TOONEW);
    change("PRAGMA user_version=-1");
    refused(E_CORRUPT);
    change("PRAGMA user_version=2; PRAGMA application_id=7");
    refused(E_CORRUPT);
    OK(unlink(file("batchfetch.db")));
    change("CREATE TABLE theirs(x); INSERT INTO theirs VALUES(1)");
    refused(E_CORRUPT);
    FILE *f = fopen(file("batchfetch.db"), "w");
    assert_non_null(f);
    for (int i = 0; i < 1000; i++)
        fputs("Not a database, but a text.\n", f);
    OK(fclose(f));
    refused(E_CORRUPT);
    struct store *s;
    assert_int_equal(store_open(&s, dir, STORE_READ, NULL, 0), E_CORRUPT);
    OK(unlink(file("batchfetch.db")));
    store_close(open_store(STORE_WRITE));
}

static void test_unusable_directory(void **state)
{
    (void)state;
    struct store *s;
    char why[256] = "", path[128];
    assert_int_equal(store_open(&s, dir, STORE_READ, why, sizeof(why)), E_IO); /* nothing there */
    assert_true(why[0] != '\0');
    assert_int_equal(store_open(&s, "", STORE_WRITE, NULL, 0), E_IO);
    snprintf(path, sizeof(path), "%s/plain", base);
    int fd = open(path, O_CREAT | O_WRONLY, 0600);
    assert_true(fd >= 0);
    close(fd);
    why[0] = '\0';
    assert_int_equal(store_open(&s, path, STORE_WRITE, why, sizeof(why)), E_IO);
    assert_true(why[0] != '\0');
    snprintf(path, sizeof(path), "%s/plain/data", base);
    assert_int_equal(store_open(&s, path, STORE_WRITE, NULL, 0), E_IO);
    assert_null(s);
    if (geteuid() != 0) { /* the modes of a directory do not bind root */
        OK(chmod(base, 0500));
        assert_int_equal(store_open(&s, dir, STORE_WRITE, NULL, 0), E_IO);
        OK(chmod(base, 0700));
    }
}

/* ---- transactions ---- */

static void test_transactions(void **state)
{
    (void)state;
    struct store *s = open_store(STORE_WRITE), *r = open_store(STORE_READ);
    struct batch b;
    int64_t no;
    OK(store_last_batch_no(s, &no));
    assert_int_equal(no, 0);
    OK(store_begin(s, true));
    add_batch(s, 1, BATCH_OPEN, NULL);
    OK(store_find(s, "b1", &b)); /* its own writes */
    batch_fini(&b);
    assert_int_equal(store_find(r, "b1", &b), E_NOTFOUND);
    store_rollback(s);
    store_rollback(s); /* none is open: fine */
    assert_int_equal(store_find(s, "b1", &b), E_NOTFOUND);
    for (int durable = 0; durable < 2; durable++) {
        OK(store_begin(s, durable));
        add_batch(s, 2 + durable, BATCH_OPEN, NULL);
        OK(store_commit(s));
        OK(store_last_batch_no(r, &no));
        assert_int_equal(no, 2 + durable);
    }
    /* A reader can't write, and harms nobody by trying. */
    b = batch_of(9, BATCH_OPEN);
    assert_true(store_add_batch(r, &b) < 0);
    assert_true(store_begin(r, true) < 0 || store_add_batch(r, &b) < 0);
    store_rollback(r);
    bool over;
    assert_true(store_remove_step(r, 2, 10, UINT64_MAX, &over) < 0);
    assert_true(store_error(r)[0] != '\0');
    assert_true(store_commit(s) < 0); /* none is open */
    store_close(r);
    store_close(s);
    s = open_store(STORE_WRITE);
    OK(store_last_batch_no(s, &no));
    assert_int_equal(no, 3);
    assert_int_equal(number("SELECT count(*) FROM batch"), 2);
    store_close(s);
}

/* Every durable commit is synced, and no other: whatever the order of them. */
static void test_syncs(void **state)
{
    (void)state;
    static const bool order[] = {true, false, false, true, false, true, true, false, false, true};
    struct store *s = open_store(STORE_WRITE);
    OK(store_begin(s, true)); /* the first write to a new log syncs its header */
    add_batch(s, 1, BATCH_OPEN, NULL);
    OK(store_commit(s));
    for (size_t i = 0; i < 10; i++) {
        OK(store_begin(s, order[i]));
        OK(add_plain(s, 1, i + 1));
        syncs = 0;
        OK(store_commit(s));
        if ((syncs > 0) != order[i])
            fail_msg("commit %zu: %u syncs, durable %d", i, syncs, order[i]);
    }
    store_close(s);
}

static int die_inside(bool killed)
{
    struct store *s;
    static char body[512 * 1024];
    if (store_open(&s, dir, STORE_WRITE, NULL, 0) != 0)
        return 1;
    struct batch b = batch_of(1, BATCH_OPEN);
    struct page p = {.lane = 7, .count = 3, .data = "abc", .len = 3};
    int rc = store_begin(s, true);
    rc = rc != 0 ? rc : store_add_batch(s, &b);
    rc = rc != 0 ? rc : store_add_page(s, 1, &p);
    for (uint64_t n = 1; n <= 50; n++)
        rc = rc != 0 ? rc : add_plain(s, 1, n);
    rc = rc != 0 ? rc : store_commit(s);
    rc = rc != 0 ? rc : store_begin(s, false);
    for (uint64_t n = 51; n <= 100; n++)
        rc = rc != 0 ? rc : add_plain(s, 1, n);
    rc = rc != 0 ? rc : store_commit(s);
    /* More than the page cache holds, so that some of it is in the log without its commit. */
    rc = rc != 0 ? rc : store_begin(s, true);
    b.state = BATCH_COMPLETED;
    rc = rc != 0 ? rc : store_update_batch(s, &b);
    for (uint64_t n = 101; n <= 150; n++) {
        struct result r = result_of(n, n - 1);
        memset(body, (int)n, sizeof(body));
        r.body = (struct span){body, sizeof(body)};
        r.body_len = sizeof(body);
        rc = rc != 0 ? rc : store_add_result(s, 1, &r);
    }
    if (rc == 0 && killed)
        raise(SIGKILL);
    return rc == 0 ? 42 : 2;
}

static int die_by_exit(void)
{
    return die_inside(false);
}

static int die_by_signal(void)
{
    return die_inside(true);
}

static void test_died_inside(void **state)
{
    (void)state;
    for (int killed = 0; killed < 2; killed++) {
        assert_int_equal(in_child(killed ? die_by_signal : die_by_exit),
                         killed ? 1000 + SIGKILL : 42);
        struct stat st;
        OK(stat(file("batchfetch.db-wal"), &st));
        assert_true(st.st_size > 1024 * 1024); /* what was not committed had reached the log */
        struct store *s = open_store(STORE_WRITE);
        struct seen l = {0};
        uint64_t last;
        OK(store_done(s, 1, see_done, &l, &last));
        assert_int_equal(last, 100);
        assert_int_equal(l.n, 100);
        struct batch b;
        OK(store_find(s, "b1", &b));
        assert_int_equal(b.state, BATCH_OPEN);
        batch_fini(&b);
        struct page p;
        OK(store_lane_page(s, 1, 7, -1, &p));
        assert_memory_equal(p.data, "abc", 3);
        assert_int_equal(number("SELECT count(*) FROM body"), 100);
        assert_int_equal(number("SELECT count(*)=1 AND max(integrity_check)='ok' "
                                "FROM pragma_integrity_check"),
                         1);
        store_close(s);
        OK(tear_down(NULL));
        OK(set_up(NULL));
    }
}

/* Commits groups of ten for ever, and tells the parent after each. */
static void commit_for_ever(int out)
{
    struct store *s;
    uint64_t last = 0, n;
    struct seen l = {0};
    int rc = store_open(&s, dir, STORE_WRITE, NULL, 0);
    rc = rc != 0 ? rc : store_done(s, 1, see_done, &l, &last);
    for (n = last; rc == 0;) {
        rc = store_begin(s, n % 20 == 0);
        for (int i = 0; rc == 0 && i < 10; i++)
            rc = add_plain(s, 1, ++n);
        rc = rc != 0 ? rc : store_commit(s);
        if (rc == 0 && write(out, &n, sizeof(n)) != sizeof(n))
            break;
        if (n % 50 == 0)
            store_checkpoint(s, true);
    }
    _exit(1);
}

static void test_killed_anywhere(void **state)
{
    (void)state;
    struct store *s = open_store(STORE_WRITE);
    OK(store_begin(s, true));
    add_batch(s, 1, BATCH_OPEN, NULL);
    OK(store_commit(s));
    store_close(s);
    for (int round = 0; round < 6; round++) {
        int to[2], status;
        OK(pipe(to));
        pid_t pid = fork();
        assert_true(pid >= 0);
        if (pid == 0) {
            close(to[0]);
            commit_for_ever(to[1]);
        }
        close(to[1]);
        uint64_t told = 0, last;
        for (int i = 0; i < 5 + round; i++)
            assert_int_equal(read(to[0], &told, sizeof(told)), sizeof(told));
        OK(kill(pid, SIGKILL));
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_true(WIFSIGNALED(status));
        for (uint64_t v; read(to[0], &v, sizeof(v)) == sizeof(v);)
            told = v;
        close(to[0]);
        s = open_store(STORE_WRITE);
        struct seen l = {0};
        OK(store_done(s, 1, see_done, &l, &last));
        assert_true(last == told || last == told + 10); /* committed, but not yet told */
        assert_int_equal(l.n, last);
        assert_int_equal(number("SELECT count(*) FROM body"), (int64_t)last);
        store_close(s);
    }
}

/* Folded back when asked, and by the writer's close though a reader is still there. */
static void test_checkpoint(void **state)
{
    (void)state;
    struct stat st;
    struct store *s = open_store(STORE_WRITE), *r = open_store(STORE_READ);
    OK(store_begin(s, false));
    add_batch(s, 1, BATCH_OPEN, NULL);
    for (uint64_t n = 1; n <= 500; n++)
        OK(add_plain(s, 1, n));
    OK(store_commit(s));
    OK(stat(file("batchfetch.db"), &st));
    off_t size = st.st_size;
    store_checkpoint(s, false); /* too small to be worth it */
    OK(stat(file("batchfetch.db"), &st));
    assert_int_equal(st.st_size, size);
    OK(stat(file("batchfetch.db-wal"), &st));
    assert_true(st.st_size > 0);
    store_checkpoint(s, true);
    OK(stat(file("batchfetch.db-wal"), &st));
    assert_int_equal(st.st_size, 0);
    struct batch b;
    OK(store_find(r, "b1", &b));
    batch_fini(&b);
    OK(store_begin(s, false));
    add_batch(s, 2, BATCH_OPEN, NULL);
    OK(store_commit(s));
    store_close(s);
    OK(stat(file("batchfetch.db-wal"), &st));
    assert_int_equal(st.st_size, 0);
    OK(store_find(r, "b2", &b));
    batch_fini(&b);
    store_close(r);
}

/* A log grown beyond the bounds is used again from its start, not longer for ever. */
static void test_log_is_bounded(void **state)
{
    (void)state;
    static char body[1 << 20];
    struct store *s = open_store(STORE_WRITE);
    OK(store_begin(s, false));
    add_batch(s, 1, BATCH_OPEN, NULL);
    OK(store_commit(s));
    for (uint64_t n = 1; n <= 120; n++) {
        struct result r = result_of(n, n);
        r.body = (struct span){body, sizeof(body)};
        r.body_len = sizeof(body);
        OK(store_begin(s, false));
        OK(store_add_result(s, 1, &r));
        OK(store_commit(s));
        store_checkpoint(s, false);
    }
    struct stat st;
    OK(stat(file("batchfetch.db-wal"), &st));
    assert_in_range(st.st_size, 1, 48 << 20);
    store_close(s);
}

/* A log that is begun anew with more than was in it before is seen to be: what is in it counts as not
 * folded back, and is folded at the same bound. */
static void test_new_log_longer_than_the_old(void **state)
{
    (void)state;
    static char body[1 << 20];
    static const uint64_t upto[] = {33, 33 + 40, 33 + 40 + 52};
    struct store *s = open_store(STORE_WRITE);
    OK(store_begin(s, false));
    add_batch(s, 1, BATCH_OPEN, NULL);
    OK(store_commit(s));
    for (uint64_t i = 0, n = 1; i < 3; i++) {
        uint64_t first = n;
        OK(store_begin(s, false));
        for (; n <= upto[i]; n++) {
            struct result r = result_of(n, n);
            r.body = (struct span){body, sizeof(body)};
            r.body_len = sizeof(body);
            OK(store_add_result(s, 1, &r));
        }
        OK(store_commit(s));
        assert_in_range(store_unfolded(s), (n - first) << 20, (n - first + 1) << 20);
        store_checkpoint(s, false);
        assert_int_equal(store_unfolded(s), 0);
    }
    store_close(s);
}

/* ---- batches ---- */

static void same_batch(const struct batch *a, const struct batch *b)
{
    assert_int_equal(a->no, b->no);
    assert_string_equal(a->id, b->id);
    assert_int_equal(a->state, b->state);
    assert_int_equal(a->pages, b->pages);
    assert_int_equal(a->total, b->total);
    assert_int_equal(a->succeeded, b->succeeded);
    assert_int_equal(a->failed, b->failed);
    assert_int_equal(a->cancelled, b->cancelled);
    assert_int_equal(a->bytes_received, b->bytes_received);
    assert_int_equal(a->created_ms, b->created_ms);
    assert_int_equal(a->started_ms, b->started_ms);
    assert_int_equal(a->ended_ms, b->ended_ms);
    assert_int_equal(a->expires_after_s, b->expires_after_s);
    assert_int_equal(a->max_parallel, b->max_parallel);
    assert_int_equal(a->max_per_host, b->max_per_host);
    assert_int_equal(a->max_redirects, b->max_redirects);
    assert_int_equal(a->rate_per_host, b->rate_per_host);
    assert_int_equal(a->priority, b->priority);
    assert_int_equal(a->http_version, b->http_version);
    assert_int_equal(a->retry.max_attempts, b->retry.max_attempts);
    assert_int_equal(a->retry.min_backoff_ms, b->retry.min_backoff_ms);
    assert_int_equal(a->retry.max_backoff_ms, b->retry.max_backoff_ms);
    assert_int_equal(a->retry.max_retry_after_ms, b->retry.max_retry_after_ms);
    assert_int_equal(a->retry.non_idempotent, b->retry.non_idempotent);
    assert_int_equal(a->retry.has_on_status, b->retry.has_on_status);
    assert_memory_equal(a->retry.on_status, b->retry.on_status, sizeof(a->retry.on_status));
    assert_int_equal(a->defaults_len, b->defaults_len);
    assert_int_equal(a->defaults != NULL, b->defaults != NULL);
    if (a->defaults != NULL)
        assert_memory_equal(a->defaults, b->defaults, a->defaults_len);
    char *const left[] = {a->name, a->metadata, a->idem_key, a->retry_of};
    char *const right[] = {b->name, b->metadata, b->idem_key, b->retry_of};
    for (size_t i = 0; i < 4; i++) {
        assert_int_equal(left[i] != NULL, right[i] != NULL);
        if (left[i] != NULL)
            assert_string_equal(left[i], right[i]);
    }
    assert_memory_equal(a->idem_hash, b->idem_hash, sizeof(a->idem_hash));
}

static void test_batch_fields(void **state)
{
    (void)state;
    struct batch b = {.no = INT32_MAX,
                      .id = "019536a0-0000-7000-8000-0123456789ab",
                      .state = BATCH_OPEN,
                      .pages = UINT32_MAX,
                      .total = 1,
                      .succeeded = 2,
                      .failed = 3,
                      .cancelled = 4,
                      .bytes_received = (uint64_t)1 << 50,
                      .created_ms = 5,
                      .started_ms = 6,
                      .ended_ms = 7,
                      .max_parallel = UINT32_MAX,
                      .max_per_host = 9,
                      .max_redirects = 10,
                      .rate_per_host = UINT32_MAX,
                      .priority = 9,
                      .http_version = 20,
                      .retry = {.max_attempts = 11,
                                .min_backoff_ms = 12,
                                .max_backoff_ms = UINT32_MAX,
                                .max_retry_after_ms = 14,
                                .non_idempotent = true,
                                .has_on_status = true,
                                .on_status = {1, 0, 128, [63] = 255}},
                      .defaults = "\0\xff"
                                  "d",
                      .defaults_len = 3,
                      .name = "n\xc3\xa4me",
                      .metadata = "{\"a\":1}",
                      .idem_key = "key",
                      .retry_of = "b_other",
                      .expires_after_s = UINT32_MAX,
                      .idem_hash = {1, 0, 255}},
                 got;
    struct batch bare = batch_of(2, BATCH_COMPLETED);
    struct store *s = open_store(STORE_WRITE);
    OK(store_begin(s, true));
    OK(store_add_batch(s, &b));
    OK(store_add_batch(s, &bare));
    OK(store_commit(s));
    store_close(s);
    s = open_store(STORE_WRITE);
    OK(store_find(s, b.id, &got));
    same_batch(&b, &got);
    batch_fini(&got);
    OK(store_find_key(s, "key", &got));
    same_batch(&b, &got);
    batch_fini(&got);
    OK(store_find(s, "b2", &got));
    same_batch(&bare, &got);
    batch_fini(&got);
    b.name = NULL;
    b.defaults = NULL;
    b.defaults_len = 0;
    b.state = BATCH_CANCELLED;
    b.rate_per_host = 1;
    b.priority = 0;
    b.http_version = 11;
    b.retry = (struct retry_policy){.max_attempts = 1, .has_on_status = true};
    b.ended_ms = INT64_MAX;
    b.idem_key = "other";
    OK(store_update_batch(s, &b));
    OK(store_find_key(s, "other", &got));
    same_batch(&b, &got);
    batch_fini(&got);
    assert_int_equal(store_find_key(s, "key", &got), E_NOTFOUND);
    bare.no = 3;
    assert_int_equal(store_update_batch(s, &bare), E_NOTFOUND);
    assert_int_equal(store_add_batch(s, &b), E_EXISTS);
    assert_int_equal(store_find(s, "", &got), E_NOTFOUND);
    assert_int_equal(store_find(s, "b2' OR 1 --", &got), E_NOTFOUND);
    int64_t no;
    OK(store_last_batch_no(s, &no));
    assert_int_equal(no, INT32_MAX);
    store_close(s);
}

static void test_visibility_and_list(void **state)
{
    (void)state;
    static const char *const keys[] = {"k0", "k1", "k2", "k3", "k4", "k5", "k6"};
    struct store *s = open_store(STORE_WRITE);
    struct batch b;
    struct seen l = {0};
    OK(store_begin(s, true));
    for (int i = 0; i < 7; i++) /* no 1 to 6: STAGING to PAUSED, then once more from 8 */
        add_batch(s, 1 + i, (enum batch_state)i, keys[i]);
    for (int i = 0; i < 7; i++)
        add_batch(s, 8 + i, (enum batch_state)i, NULL);
    OK(store_commit(s));
    for (int i = 0; i < 7; i++) {
        struct batch one = batch_of(1 + i, BATCH_OPEN);
        int expected = i == BATCH_STAGING || i == BATCH_DELETED ? E_NOTFOUND : 0;
        assert_int_equal(store_find(s, one.id, &b), expected);
        batch_fini(&b);
        assert_int_equal(store_find_key(s, keys[i], &b), expected);
        batch_fini(&b);
    }
    OK(store_open_batches(s, see_batch, &l));
    SEEN(l, 1, 2, 3, 6, 7, 8, 9, 10, 13, 14);
    OK(store_list(s, 0, 0, 100, see_batch, &l));
    SEEN(l, 14, 12, 11, 10, 9, 7, 5, 4, 3, 2);
    OK(store_list(s, 0, 0, 3, see_batch, &l));
    SEEN(l, 14, 12, 11);
    OK(store_list(s, 9, 0, 3, see_batch, &l));
    SEEN(l, 7, 5, 4);
    OK(store_list(s, 2, 0, 3, see_batch, &l));
    SEEN(l);
    OK(store_list(s, 0, 0, 0, see_batch, &l));
    SEEN(l);
    OK(store_list(s, 0, 1U << BATCH_OPEN | 1U << BATCH_CANCELLED, 3, see_batch, &l));
    SEEN(l, 12, 9, 5);
    OK(store_list(s, 5, 1U << BATCH_OPEN | 1U << BATCH_CANCELLED, 3, see_batch, &l));
    SEEN(l, 2);
    OK(store_list(s, 0, 1U << BATCH_STAGING | 1U << BATCH_DELETED, 9, see_batch, &l));
    SEEN(l);
    OK(store_list(s, 0, 1U << BATCH_PAUSED, 9, see_batch, &l));
    SEEN(l, 14, 7);
    l = (struct seen){.stop_at = 2, .answer = E_LIMIT};
    assert_int_equal(store_list(s, 0, 0, 9, see_batch, &l), E_LIMIT);
    SEEN(l, 14, 12);
    l.answer = 5;
    assert_int_equal(store_open_batches(s, see_batch, &l), 5);
    SEEN(l, 1, 2);
    store_close(s);
}

static void test_idem_key(void **state)
{
    (void)state;
    struct store *s = open_store(STORE_WRITE);
    struct batch b = batch_of(2, BATCH_OPEN), got;
    b.idem_key = "k";
    OK(store_begin(s, true));
    add_batch(s, 1, BATCH_COMPLETED, "k");
    assert_int_equal(store_add_batch(s, &b), E_EXISTS);
    b.idem_key = NULL;
    OK(store_add_batch(s, &b)); /* the transaction goes on */
    b.idem_key = "k";
    assert_int_equal(store_update_batch(s, &b), E_EXISTS);
    OK(store_commit(s));
    struct batch one = batch_of(1, BATCH_DELETED);
    one.idem_key = "k";
    OK(store_update_batch(s, &one));
    assert_int_equal(store_find_key(s, "k", &got), E_NOTFOUND);
    OK(store_update_batch(s, &b)); /* free again */
    OK(store_find_key(s, "k", &got));
    assert_int_equal(got.no, 2);
    batch_fini(&got);
    assert_int_equal(store_find_key(s, "K", &got), E_NOTFOUND);
    one.state = BATCH_COMPLETED;
    assert_int_equal(store_update_batch(s, &one), E_EXISTS);
    add_batch(s, 3, BATCH_DELETED, "k");
    add_batch(s, 4, BATCH_OPEN, NULL); /* none is not a key */
    store_close(s);
}

/* ---- pages ---- */

struct walk {
    int64_t batch;
    uint32_t next;
    int answer; /* at page 4 */
};

static int walk_page(void *arg, const struct page *p)
{
    static const uint64_t lanes[] = {UINT64_MAX, 0, (uint64_t)1 << 63};
    struct walk *w = arg;
    char text[16];
    int len = snprintf(text, sizeof(text), "%d/%u", (int)w->batch, w->next);
    assert_int_equal(p->no, w->next);
    assert_true(p->lane == lanes[p->no % 3]);
    assert_int_equal(p->count, p->no + 1);
    assert_int_equal(p->len, len);
    assert_memory_equal(p->data, text, p->len);
    w->next++;
    return p->no == 4 ? w->answer : 0;
}

static void check_walk(struct store *s)
{
    struct walk w = {.batch = 2};
    int64_t next = -1;
    bool more = true;
    OK(store_pages(s, 2, next, 3, walk_page, &w, &next, &more));
    assert_true(next == 2 && more && w.next == 3);
    OK(store_pages(s, 2, next, 4, walk_page, &w, &next, &more));
    assert_true(next == 6 && more && w.next == 7);
    OK(store_pages(s, 2, next, 4, walk_page, &w, &next, &more));
    assert_true(next == 6 && !more && w.next == 7);
    w = (struct walk){.batch = 2, .answer = 5};
    assert_int_equal(store_pages(s, 2, -1, 100, walk_page, &w, &next, &more), 5);
    assert_true(next == 4 && w.next == 5);
    OK(store_pages(s, 4, -1, 100, walk_page, &w, &next, &more));
    assert_true(next == -1 && !more);
}

static void test_pages(void **state)
{
    (void)state;
    static const uint64_t lanes[] = {UINT64_MAX, 0, (uint64_t)1 << 63};
    struct store *s = open_store(STORE_WRITE);
    struct page heads[8], p;
    char text[16];
    size_t n;
    OK(store_begin(s, false));
    for (int64_t batch = 1; batch <= 3; batch++) {
        for (uint32_t no = 0; no < 7; no++) {
            int len = snprintf(text, sizeof(text), "%d/%u", (int)batch, no);
            p = (struct page){
                .no = no, .lane = lanes[no % 3], .count = no + 1, .data = text, .len = (size_t)len};
            OK(store_add_page(s, batch, &p));
        }
    }
    assert_int_equal(store_add_page(s, 1, &p), E_EXISTS);
    OK(store_commit(s));
    check_walk(s);
    for (int64_t after = -1, at = 0; at < 7; at += (int64_t)n) {
        OK(store_page_heads(s, 2, after, heads, 3, &n));
        assert_int_equal(n, at < 6 ? 3 : 1);
        for (size_t i = 0; i < n; i++) {
            assert_int_equal(heads[i].no, at + (int64_t)i);
            assert_true(heads[i].lane == lanes[heads[i].no % 3]);
            assert_int_equal(heads[i].count, heads[i].no + 1);
            assert_null(heads[i].data);
        }
        after = heads[n - 1].no;
    }
    OK(store_page_heads(s, 2, 6, heads, 8, &n));
    assert_int_equal(n, 0);
    OK(store_page_heads(s, 3, -1, heads, 8, &n));
    assert_int_equal(n, 7);
    OK(store_page_heads(s, 4, -1, heads, 8, &n));
    assert_int_equal(n, 0);
    for (size_t lane = 0; lane < 3; lane++) {
        int64_t after = -1;
        for (uint32_t no = (uint32_t)lane; no < 7; no += 3) {
            OK(store_lane_page(s, 2, lanes[lane], after, &p));
            int len = snprintf(text, sizeof(text), "2/%u", no);
            assert_int_equal(p.no, no);
            assert_true(p.lane == lanes[lane]);
            assert_int_equal(p.count, no + 1);
            assert_int_equal(p.len, len);
            assert_memory_equal(p.data, text, p.len);
            after = no;
        }
        assert_int_equal(store_lane_page(s, 2, lanes[lane], after, &p), E_NOTFOUND);
    }
    assert_int_equal(store_lane_page(s, 2, 5, -1, &p), E_NOTFOUND);
    assert_int_equal(store_lane_page(s, 4, 0, -1, &p), E_NOTFOUND);
    store_close(s);
}

/* The keys of the last number of all reach the end of SQLite's integers. */
static void test_last_batch_number(void **state)
{
    (void)state;
    struct store *s = open_store(STORE_WRITE);
    struct page p = {.lane = 1, .count = 1, .data = "p", .len = 1};
    struct seen l = {0};
    struct result_query w = {.after = -1, .status = -1, .limit = 9, .scan_limit = 9};
    int64_t next;
    size_t n;
    bool more, over;
    add_batch(s, INT32_MAX, BATCH_OPEN, NULL);
    OK(store_add_page(s, INT32_MAX, &p));
    OK(add_plain(s, INT32_MAX, 1));
    OK(store_page_heads(s, INT32_MAX, -1, &p, 1, &n));
    assert_int_equal(n, 1);
    OK(store_lane_page(s, INT32_MAX, 1, -1, &p));
    OK(store_results(s, INT32_MAX, &w, see_n, &l, &next, &more));
    SEEN(l, 1);
    for (over = false; !over;)
        OK(store_remove_step(s, INT32_MAX, 9, UINT64_MAX, &over));
    assert_int_equal(number("SELECT count(*) FROM result"), 0);
    store_close(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_modes),
        TEST(test_second_writer),
        TEST(test_foreign),
        TEST(test_unusable_directory),
        TEST(test_transactions),
        TEST(test_syncs),
        TEST(test_died_inside),
        TEST(test_killed_anywhere),
        TEST(test_checkpoint),
        TEST(test_log_is_bounded),
        TEST(test_new_log_longer_than_the_old),
        TEST(test_batch_fields),
        TEST(test_visibility_and_list),
        TEST(test_idem_key),
        TEST(test_pages),
        TEST(test_last_batch_number),
    };
    return cmocka_run_group_tests_name("store", tests, NULL, NULL);
}
