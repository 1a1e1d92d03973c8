/* Results and bodies through storage/store.h, their removal, and the plans of all queries. As in
 * test_store.c in real files. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tests/unit/store_attempts.h"

/* ---- results ---- */

static bool same(struct span a, struct span b)
{
    if (a.ptr == NULL || b.ptr == NULL)
        return a.ptr == b.ptr && a.len == b.len;
    return a.len == b.len && memcmp(a.ptr, b.ptr, a.len) == 0;
}

static int compare(void *arg, const struct result *r)
{
    const struct result *w = arg;
    assert_true(r->n == w->n && r->index == w->index && r->status == w->status);
    assert_true(r->http_status == w->http_status && r->http_version == w->http_version);
    assert_true(r->error == w->error && r->attempts == w->attempts);
    assert_true(r->truncated == w->truncated && r->completed_ms == w->completed_ms);
    assert_true(same(r->error_message, w->error_message) && same(r->url, w->url));
    assert_true(same(r->final_url, w->final_url) && same(r->custom_id, w->custom_id));
    assert_true(same(r->headers, w->headers) && same(r->redirects, w->redirects));
    assert_true(same(r->remote_ip, w->remote_ip));
    assert_memory_equal(r->timing_us, w->timing_us, sizeof(r->timing_us));
    assert_int_equal(r->body_len, w->body_len);
    assert_int_equal(r->body.ptr != NULL, w->body.ptr != NULL); /* only that there is one */
    assert_null(r->body_read);
    return 7;
}

static void test_result_fields(void **state)
{
    (void)state;
    struct result full = {.n = UINT32_MAX,
                          .index = UINT32_MAX,
                          .status = RESULT_CANCELLED,
                          .http_status = 599,
                          .http_version = 20,
                          .error = 12,
                          .error_message = {"m\0x", 3},
                          .attempts = UINT32_MAX,
                          .truncated = true,
                          .url = {"http://\xc3\xa4/", 10},
                          .final_url = {"http://b/", 9},
                          .custom_id = {"c\0d", 3},
                          .headers = {"A: \xff\r\n", 6},
                          .redirects = {"301 x\n", 6},
                          .remote_ip = {"::1", 3},
                          .timing_us = {1, 2, 3, 4, 5, 6, 7, UINT64_MAX},
                          .completed_ms = INT64_MAX,
                          .body_len = 3,
                          .body = {"\0b\0", 3}};
    struct result none = {.n = 1, .index = 0}; /* no body, nothing */
    struct result empty = {.n = 2,
                           .index = 1,
                           .url = {"", 0},
                           .custom_id = {"", 0},
                           .headers = {"", 0},
                           .body = {"", 0}};
    struct store *s = open_store(STORE_WRITE);
    OK(store_begin(s, true));
    OK(store_add_result(s, 1, &full));
    OK(store_add_result(s, 1, &none));
    OK(store_add_result(s, 1, &empty));
    OK(store_commit(s));
    store_close(s);
    s = open_store(STORE_READ);
    assert_int_equal(store_result(s, 1, UINT32_MAX, compare, &full), 7);
    assert_int_equal(store_result(s, 1, 0, compare, &none), 7);
    assert_int_equal(store_result(s, 1, 1, compare, &empty), 7);
    assert_int_equal(store_result(s, 1, 2, compare, &none), E_NOTFOUND);
    assert_int_equal(store_result(s, 2, 0, compare, &none), E_NOTFOUND);
    assert_int_equal(store_result(s, 1, (uint64_t)1 << 32, compare, &none), E_NOTFOUND);
    char buf[8];
    size_t got;
    OK(store_body_read(s, 1, UINT32_MAX, 0, buf, sizeof(buf), &got));
    assert_int_equal(got, 3);
    assert_memory_equal(buf, "\0b\0", 3);
    store_close(s);
}

static void test_second_result(void **state)
{
    (void)state;
    struct store *s = open_store(STORE_WRITE);
    struct result r = result_of(1, 0), again = result_of(2, 0);
    r.body = again.body = (struct span){"first", 5};
    r.body_len = again.body_len = 5;
    OK(store_begin(s, false));
    OK(store_add_result(s, 1, &r));
    again.status = RESULT_FAILED;
    again.body.ptr = "other";
    assert_int_equal(store_add_result(s, 1, &again), E_EXISTS);
    OK(store_add_result(s, 2, &again)); /* of another batch: apart */
    OK(add_plain(s, 1, 3));             /* the transaction goes on */
    OK(store_commit(s));
    OK(store_begin(s, false));
    assert_int_equal(store_add_result(s, 1, &again), E_EXISTS); /* in a later one too */
    OK(store_commit(s));
    assert_int_equal(store_result(s, 1, 0, compare, &r), 7);
    char buf[8];
    size_t got;
    OK(store_body_read(s, 1, 1, 0, buf, sizeof(buf), &got));
    assert_memory_equal(buf, "first", 5);
    assert_int_equal(number("SELECT count(*) FROM result"), 3);
    assert_int_equal(number("SELECT count(*) FROM body"), 3);
    store_close(s);
}

/* ---- reading results, against a model ---- */

enum { ROWS = 120 };

static const char *const customs[] = {NULL, "x", "y", ""};

struct model {
    int64_t n, index;
    int status;
    int custom; /* in customs */
};

/* Three batches with the same results but for the order, so that a query that leaves its batch
 * is seen. */
static void fill(struct store *s, struct model *m)
{
    OK(store_begin(s, false));
    for (int64_t batch = 1; batch <= 3; batch++) {
        for (int64_t i = 0; i < ROWS; i++) {
            m[i] = (struct model){.n = i + 1, .index = i * 77 % ROWS, .custom = (int)(i * i % 4)};
            m[i].index = i * 77 % ROWS;
            m[i].status = i % 40 == 39 ? RESULT_CANCELLED : i % 7 == 0;
            struct result r = result_of((uint64_t)m[i].n, (uint64_t)m[i].index);
            r.status = (enum result_status)m[i].status;
            const char *id = customs[m[i].custom];
            r.custom_id = (struct span){id, id != NULL ? strlen(id) : 0};
            OK(store_add_result(s, batch, &r));
        }
    }
    OK(store_commit(s));
}

static bool model_fits(const struct model *m, const struct result_query *w)
{
    const char *id = customs[m->custom];
    return (w->status < 0 || w->status == m->status) &&
           (w->custom_id.ptr == NULL || (id != NULL && strlen(id) == w->custom_id.len &&
                                         memcmp(id, w->custom_id.ptr, w->custom_id.len) == 0));
}

/* In the order asked for: the first row after `key`, of those that fit if `fitting`; or NULL. */
static const struct model *model_next(const struct model *m, const struct result_query *w,
                                      int64_t key, bool fitting)
{
    const struct model *best = NULL;
    bool by_index = w->order == ORDER_INDEX;
    for (int i = 0; i < ROWS; i++) {
        int64_t k = by_index ? m[i].index : m[i].n;
        if (k > key && (!fitting || model_fits(&m[i], w)) &&
            (best == NULL || k < (by_index ? best->index : best->n)))
            best = &m[i];
    }
    return best;
}

static void walk(struct store *s, const struct model *m, struct result_query w)
{
    int64_t at = -1; /* where the model is */
    bool more = true;
    for (int pages = 0; more; pages++) {
        struct seen l = {0};
        int64_t next;
        assert_true(pages <= ROWS + 1);
        OK(store_results(s, 2, &w, see_n, &l, &next, &more));
        assert_true(l.n <= w.limit);
        for (size_t i = 0; i < l.n; i++) {
            const struct model *x = model_next(m, &w, at, true);
            assert_non_null(x);
            assert_int_equal(l.v[i], x->n);
            at = w.order == ORDER_INDEX ? x->index : x->n;
        }
        assert_true(next >= at); /* skipped rows only, behind the last one given */
        const struct model *skipped = model_next(m, &w, at, true);
        assert_true(skipped == NULL ||
                    (w.order == ORDER_INDEX ? skipped->index : skipped->n) > next);
        assert_true(more || skipped == NULL);
        assert_true(!more || model_next(m, &w, next, false) != NULL);
        if (more && w.scan_limit >= ROWS)
            assert_int_equal(l.n, w.limit);
        w.after = next;
    }
    assert_null(model_next(m, &w, at, true));
}

static void test_results_by_model(void **state)
{
    (void)state;
    static const uint32_t limits[] = {1, 2, 7, ROWS - 1, ROWS, ROWS + 1};
    static const uint32_t scans[] = {0, 1, 5, ROWS}; /* more than the limit */
    static struct model m[ROWS];
    struct store *s = open_store(STORE_WRITE);
    fill(s, m);
    struct store *r = open_store(STORE_READ);
    for (int order = 0; order < 2; order++) {
        for (int status = -1; status <= 2; status++) {
            for (size_t c = 0; c < 5; c++) {
                const char *id = c < 4 ? customs[c] : "absent";
                for (size_t i = 0; i < 24; i++)
                    walk(r, m,
                         (struct result_query){.order = (enum result_order)order,
                                               .after = -1,
                                               .status = status,
                                               .custom_id = {id, id != NULL ? strlen(id) : 0},
                                               .limit = limits[i / 4],
                                               .scan_limit = limits[i / 4] + scans[i % 4]});
            }
        }
    }
    store_close(r);
    store_close(s);
}

static void test_results_stops(void **state)
{
    (void)state;
    static struct model m[ROWS];
    struct store *s = open_store(STORE_WRITE);
    fill(s, m);
    int64_t next;
    bool more;
    struct result_query w = {.after = -1, .status = -1, .limit = 50, .scan_limit = 50};
    struct seen l = {.stop_at = 3, .answer = 1};
    OK(store_results(s, 2, &w, see_n, &l, &next, &more)); /* stopped by fn, with more behind */
    SEEN(l, 1, 2, 3);
    assert_true(more && next == 3);
    w.after = ROWS - 3;
    OK(store_results(s, 2, &w, see_n, &l, &next, &more)); /* at the very end: none behind */
    SEEN(l, ROWS - 2, ROWS - 1, ROWS);
    assert_true(!more && next == ROWS);
    w.after = ROWS;
    OK(store_results(s, 2, &w, see_n, &l, &next, &more));
    SEEN(l);
    assert_true(!more && next == ROWS);
    w.after = 0; /* by completion the same as from the first */
    l.answer = E_INVAL;
    assert_int_equal(store_results(s, 2, &w, see_n, &l, &next, &more), E_INVAL);
    SEEN(l, 1, 2, 3);
    l.stop_at = 0;
    static const int64_t beyond[] = {UINT32_MAX, (int64_t)UINT32_MAX + 1, INT64_MAX};
    for (size_t i = 0; i < 6; i++) { /* no cursor leads into another batch */
        w.order = (enum result_order)(i % 2);
        w.after = beyond[i / 2];
        OK(store_results(s, 2, &w, see_n, &l, &next, &more));
        SEEN(l);
        assert_false(more);
    }
    /* A rare status in order of index: fewer rows than the limit, and more behind. */
    w = (struct result_query){.order = ORDER_INDEX,
                              .after = -1,
                              .status = RESULT_CANCELLED,
                              .limit = 2,
                              .scan_limit = 10};
    OK(store_results(s, 2, &w, see_n, &l, &next, &more));
    assert_true(l.n < 2 && more && next == 9);
    store_close(s);
}

static void test_results_while_appended(void **state)
{
    (void)state;
    struct store *s = open_store(STORE_WRITE), *r = open_store(STORE_READ);
    struct seen all = {0};
    struct result_query w = {.after = -1, .status = -1, .limit = 7, .scan_limit = 7};
    uint64_t n = 0;
    bool more;
    do {
        if (n < 1000) {
            OK(store_begin(s, false));
            for (int i = 0; i < 10; i++)
                OK(add_plain(s, 1, ++n));
            OK(store_commit(s));
        }
        OK(store_results(r, 1, &w, see_n, &all, &w.after, &more));
        if (n % 50 == 0)
            store_checkpoint(s, true); /* under a reader */
    } while (more || n < 1000);
    assert_int_equal(all.n, 1000);
    for (size_t i = 0; i < all.n; i++)
        assert_int_equal(all.v[i], i + 1);
    store_close(r);
    store_close(s);
}

/* ---- bodies ---- */

static int read_fd(void *fd, uint64_t at, void *p, size_t len)
{
    return pread(*(int *)fd, p, len, (off_t)at) == (ssize_t)len ? 0 : E_IO;
}

static void test_bodies(void **state)
{
    (void)state;
    enum { SIZE = 1 << 20 };
    unsigned char *want = malloc(SIZE), *buf = malloc(SIZE + 100);
    assert_non_null(want);
    assert_non_null(buf);
    for (size_t i = 0; i < SIZE; i++)
        want[i] = (unsigned char)(i * 2654435761U >> 13);
    struct store *s = open_store(STORE_WRITE);
    int fd = memfd_create("body", MFD_CLOEXEC);
    assert_int_equal(write(fd, want, SIZE),
                     SIZE); /* its offset is at the end: that must not count */
    struct result memory = result_of(1, 0), spilled = result_of(2, 1), cut = result_of(3, 2);
    memory.body = (struct span){(const char *)want, SIZE};
    spilled.body_read = cut.body_read = read_fd;
    spilled.body_arg = cut.body_arg = &fd;
    memory.body_len = spilled.body_len = SIZE;
    cut.body_len = SIZE - 3;
    OK(store_begin(s, false));
    OK(store_add_result(s, 1, &memory));
    OK(store_add_result(s, 1, &spilled));
    OK(store_add_result(s, 1, &cut));
    OK(store_commit(s));
    cut.n = 4;
    cut.index = 3;
    cut.body_len = SIZE + 1; /* shorter than said */
    OK(store_begin(s, false));
    assert_int_equal(store_add_result(s, 1, &cut), E_IO);
    assert_true(store_error(s)[0] != '\0');
    store_rollback(s);
    OK(add_plain(s, 1, 5));
    struct store *r = open_store(STORE_READ);
    for (uint64_t n = 1; n <= 3; n++) {
        size_t size = n < 3 ? SIZE : SIZE - 3, got, at = 0;
        for (int piece = 0; piece < 3; piece++, at += got)
            OK(store_body_read(r, 1, n, at, buf + at, piece < 2 ? SIZE / 3 : SIZE, &got));
        assert_int_equal(at, size);
        assert_memory_equal(buf, want, size);
        OK(store_body_read(r, 1, n, size - 1, buf, 10, &got));
        assert_int_equal(got, 1);
        static const uint64_t beyond[] = {0, 1, INT32_MAX, (uint64_t)UINT32_MAX + 1, INT64_MAX};
        for (size_t i = 0; i < 5; i++) {
            OK(store_body_read(r, 1, n, size + beyond[i], buf, 10, &got));
            assert_int_equal(got, 0);
        }
        OK(store_body_read(r, 1, n, 0, buf, 0, &got));
        assert_int_equal(got, 0);
    }
    size_t got = 1;
    assert_int_equal(store_body_read(r, 1, 4, 0, buf, 10, &got), E_NOTFOUND);
    assert_int_equal(got, 0);
    assert_int_equal(store_body_read(r, 2, 1, 0, buf, 10, &got), E_NOTFOUND);
    store_close(r);
    store_close(s);
    close(fd);
    free(want);
    free(buf);
}

/* ---- recovery ---- */

static void test_done(void **state)
{
    (void)state;
    struct store *s = open_store(STORE_WRITE);
    struct seen l = {0};
    uint64_t last = 9;
    OK(store_done(s, 2, see_done, &l, &last));
    SEEN(l);
    assert_int_equal(last, 0);
    static const uint64_t order[] = {5, 0, 9, 2};
    for (int64_t batch = 1; batch <= 3; batch++) {
        for (uint64_t i = 0; i < (batch == 2 ? 4 : 2); i++) {
            struct result r = result_of(i + (batch == 3 ? 91 : 1), order[i]);
            r.status = (enum result_status)(i % 3);
            r.body = (struct span){"abcdef", i};
            r.body_len = i;
            OK(store_add_result(s, batch, &r));
        }
    }
    OK(store_done(s, 2, see_done, &l, &last));
    SEEN(l, 101, 2003, 5000, 9202);
    assert_int_equal(last, 4);
    OK(store_done(s, 3, see_done, &l, &last));
    SEEN(l, 101, 5000);
    assert_int_equal(last, 92);
    l.stop_at = 2;
    l.answer = E_NOMEM;
    assert_int_equal(store_done(s, 2, see_done, &l, &last), E_NOMEM);
    SEEN(l, 101, 2003);
    store_close(s);
}

/* ---- removal ---- */

static int64_t rows_of(int64_t batch)
{
    char sql[512];
    snprintf(sql, sizeof(sql),
             "SELECT (SELECT count(*) FROM page WHERE id>>32=%d)+(SELECT count(*) FROM result "
             "WHERE id>>32=%d OR key>>32=%d)+(SELECT count(*) FROM body WHERE id>>32=%d)+"
             "(SELECT count(*) FROM attempt WHERE id>>32=%d OR batch=%d)+"
             "(SELECT count(*) FROM batch WHERE no=%d)",
             (int)batch, (int)batch, (int)batch, (int)batch, (int)batch, (int)batch, (int)batch);
    return number(sql);
}

static void test_remove(void **state)
{
    (void)state;
    struct store *s = open_store(STORE_WRITE);
    struct page p = {.lane = 1, .count = 1, .data = "p", .len = 1};
    for (int64_t batch = 1; batch <= 3; batch++) {
        OK(store_begin(s, false));
        add_batch(s, batch, batch == 2 ? BATCH_DELETED : BATCH_OPEN, NULL);
        for (uint32_t no = 0; no < 20; no++) {
            p.no = no;
            OK(store_add_page(s, batch, &p));
            OK(put_attempt(s, batch, no, 1, 1, "again"));
        }
        for (uint64_t n = 1; n <= 53; n++)
            OK(add_plain(s, batch, n));
        OK(put_attempt(s, batch, UINT32_MAX, 1, 1, "again"));
        p.no = UINT32_MAX; /* the ends of the range of keys */
        OK(store_add_page(s, batch, &p));
        OK(add_plain(s, batch, UINT32_MAX));
        OK(store_commit(s));
    }
    int64_t before = rows_of(2), one = rows_of(1), three = rows_of(3);
    assert_int_equal(before, 21 + 54 + 54 + 21 + 1);
    bool over = false;
    for (int steps = 0; !over; steps++) {
        assert_int_equal(number("SELECT count(*) FROM batch WHERE no=2"), 1); /* it goes last */
        OK(store_begin(s, false));
        OK(store_remove_step(s, 2, 5, UINT64_MAX, &over));
        OK(store_commit(s));
        int64_t left = rows_of(2);
        assert_in_range(before - left, 1, 21); /* "about" max_rows: at most that of each table */
        before = left;
        assert_true(steps < 100);
    }
    assert_int_equal(before, 0);
    assert_int_equal(rows_of(1), one);
    assert_int_equal(rows_of(3), three);
    OK(store_remove_step(s, 2, 5, UINT64_MAX, &over)); /* nothing there: done at once */
    assert_true(over);
    for (over = false; !over;)
        OK(store_remove_step(s, 1, 0, UINT64_MAX, &over)); /* 0 is taken for 1: it ends */
    for (over = false; !over;)
        OK(store_remove_step(s, 3, UINT32_MAX, UINT64_MAX, &over));
    assert_int_equal(number("SELECT count(*) FROM page"), 0);
    assert_int_equal(number("SELECT count(*) FROM result"), 0);
    assert_int_equal(number("SELECT count(*) FROM body"), 0);
    assert_int_equal(number("SELECT count(*) FROM attempt"), 0);
    store_close(s);
}

/* ---- query plans ---- */

static sqlite3 *opened; /* the connection that was opened last */

static int on_open(sqlite3 *db, char **error, const void *api)
{
    (void)error;
    (void)api;
    opened = db;
    return SQLITE_OK;
}

/* What the plan of a statement must say; the first entry whose `sql` it contains. A statement that
 * reads and is not here fails the test. */
static const struct {
    const char *sql, *plan;
} plans[] = {
    {"DELETE FROM batch", "SEARCH batch USING INTEGER PRIMARY KEY (rowid=?)"},
    {"DELETE FROM page", "SEARCH page USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)"},
    {"DELETE FROM result", "SEARCH result USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)"},
    {"DELETE FROM body", "SEARCH body USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)"},
    {"DELETE FROM attempt WHERE id=?", "SEARCH attempt USING INTEGER PRIMARY KEY (rowid=?)"},
    {"DELETE FROM attempt", "SEARCH attempt USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)"},
    {"UPDATE attempt", "SEARCH attempt USING INDEX attempt_due (batch=?)"},
    {"FROM attempt WHERE id=?", "SEARCH attempt USING INTEGER PRIMARY KEY (rowid=?)"},
    {"WHERE batch=?1 AND (due,idx)>",
     "USING COVERING INDEX attempt_due (batch=? AND (due,idx)>(?,?) AND (due,idx)<(?,?))"},
    {"WHERE lane=?1 AND (due,idx)>",
     "USING COVERING INDEX attempt_lane (lane=? AND (due,idx)>(?,?) AND (due,idx)<(?,?))"},
    {"batch>?", "SEARCH attempt USING COVERING INDEX attempt_due (batch>?)"},
    {"FROM attempt", "SEARCH attempt USING COVERING INDEX attempt_due (batch=?)"},
    {"UPDATE batch", "SEARCH batch USING INTEGER PRIMARY KEY (rowid=?)"},
    {"SELECT max(no)", "SEARCH batch"}, /* one step to its end */
    {"SELECT max(id)", "SEARCH result USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)"},
    {"AND status<>0", "SEARCH result USING INDEX result_status (status=? AND rowid>? AND rowid<?)"},
    {"custom_id=?",
     "SEARCH result USING INDEX result_custom (custom_id=? AND rowid>? AND rowid<?)"},
    {"WHERE key=?", "SEARCH result USING INDEX result_key (key=?)"},
    {"ORDER BY key", "SEARCH result USING INDEX result_key (key>? AND key<?)"},
    {"FROM result", "SEARCH result USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)"},
    {"WHERE lane=?", "SEARCH page USING INDEX page_lane (lane=? AND rowid>? AND rowid<?)"},
    {"FROM page", "SEARCH page USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)"},
    {"no<?", "SEARCH batch USING INTEGER PRIMARY KEY (rowid<?)"},
    {" id=?", "SEARCH batch USING INDEX sqlite_autoindex_batch_1 (id=?)"},
    {"idem_key=?", "SEARCH batch USING INDEX batch_key (idem_key=?)"},
    {"SELECT max(ifnull", "SCAN batch"}, /* one step each */
    {"INDEXED BY batch_ended", "SCAN batch USING INDEX batch_ended"},
    {"INDEXED BY batch_expires", "SCAN batch USING INDEX batch_expires"},
    {"state IN", "SCAN batch USING INDEX batch_unfinished"}, /* partial: it holds no others */
};

static void check_plan(sqlite3 *db, const char *statement)
{
    char sql[1024], plan[1024] = "";
    size_t n = 0, i = 0;
    while (i < sizeof(plans) / sizeof(plans[0]) && strstr(statement, plans[i].sql) == NULL)
        i++;
    if (i == sizeof(plans) / sizeof(plans[0]))
        fail_msg("no plan is expected of: %s", statement);
    snprintf(sql, sizeof(sql), "EXPLAIN QUERY PLAN %s", statement);
    sqlite3_stmt *q;
    OK(sqlite3_prepare_v2(db, sql, -1, &q, NULL));
    while (sqlite3_step(q) == SQLITE_ROW && n < sizeof(plan))
        n += (size_t)snprintf(plan + n, sizeof(plan) - n, "%s; ",
                              (const char *)sqlite3_column_text(q, 3));
    sqlite3_finalize(q);
    bool scan = strstr(plan, "SCAN") != NULL && strncmp(plans[i].plan, "SCAN", 4) != 0;
    if (strstr(plan, plans[i].plan) == NULL || scan || strstr(plan, "TEMP B-TREE") != NULL)
        fail_msg("%s\nplan: %s", statement, plan);
}

static int no_page(void *arg, const struct page *p)
{
    (void)arg;
    (void)p;
    return E_EXISTS;
}

static void use_every_query(struct store *s)
{
    struct batch b;
    struct page p;
    struct seen l = {0};
    uint64_t last;
    int64_t no, next;
    size_t n;
    bool more;
    const uint64_t lane = 1;
    OK(put_attempt(s, 1, 1, lane, 1, "again"));
    due(s, &l, 1, NULL, FIRST, (struct attempt_mark){9, 9}, 9);
    due(s, &l, 1, &lane, FIRST, (struct attempt_mark){9, 9}, 9);
    OK(store_attempts(s, 1, see_index, &l));
    assert_int_equal(store_attempts_next(s, 1, &no), E_NOTFOUND);
    OK(store_bound_due(s, 1, 9));
    OK(store_drop_attempt(s, 1, 1));
    OK(store_last_batch_no(s, &no));
    OK(store_last_time(s, &no));
    store_set_horizon(s, &(struct store_horizon){.now_ms = 1, .retain_ms = 1});
    OK(store_expire(s, &no, 1, &n, &next));
    OK(store_mark_deleted(s, 1));
    OK(store_update_batch(s, &(struct batch){.no = 1, .id = "b1", .state = BATCH_OPEN}));
    OK(store_open_batches(s, see_batch, &l));
    OK(store_list(s, 0, 0, 9, see_batch, &l));
    OK(store_find(s, "b1", &b));
    OK(store_update_batch(s, &b));
    batch_fini(&b);
    assert_int_equal(store_find_key(s, "k", &b), E_NOTFOUND);
    OK(store_page_heads(s, 1, -1, &p, 1, &n));
    OK(store_pages(s, 1, -1, 1, no_page, NULL, &next, &more));
    assert_int_equal(store_lane_page(s, 1, 1, -1, &p), E_NOTFOUND);
    OK(store_done(s, 1, see_done, &l, &last));
    assert_int_equal(store_result(s, 1, 0, see_n, &l), 0);
    for (int i = 0; i < 4; i++) {
        struct result_query w = {.order = (enum result_order)(i == 3),
                                 .after = -1,
                                 .status = -1,
                                 .limit = 9,
                                 .scan_limit = 9};
        if (i == 1)
            w.status = RESULT_FAILED;
        if (i == 2)
            w.custom_id = (struct span){"x", 1};
        OK(store_results(s, 1, &w, see_n, &l, &next, &more));
    }
}

/* Of the store's own statements, as SQLite has them: no plan reads more than it hands out. */
static void test_plans(void **state)
{
    (void)state;
    static struct model m[ROWS];
    sqlite3_auto_extension((void (*)(void))on_open);
    struct store *s = open_store(STORE_WRITE);
    sqlite3_reset_auto_extension();
    sqlite3 *own = opened, *db = look();
    fill(s, m);
    add_batch(s, 1, BATCH_OPEN, NULL);
    use_every_query(s);
    bool over = false;
    OK(store_add_page(s, 1, &(struct page){.count = 1, .data = "p", .len = 1}));
    while (!over)
        OK(store_remove_step(s, 1, 1000, UINT64_MAX, &over)); /* prepares all of its own */
    int found = 0;
    for (sqlite3_stmt *q = NULL; (q = sqlite3_next_stmt(own, q)) != NULL;) {
        const char *sql = sqlite3_sql(q);
        if (strncmp(sql, "SELECT", 6) == 0 || strncmp(sql, "UPDATE", 6) == 0 ||
            strncmp(sql, "DELETE", 6) == 0) {
            found++;
            check_plan(db, sql);
        }
    }
    assert_int_equal(found, 34);
    sqlite3_close(db);
    store_close(s);
}

/* A step costs what it removes, not what is left: counted in SQLite's own steps. */
static void test_remove_is_cheap(void **state)
{
    (void)state;
    sqlite3_auto_extension((void (*)(void))on_open);
    struct store *s = open_store(STORE_WRITE);
    sqlite3_reset_auto_extension();
    OK(store_begin(s, false));
    struct page p = {.count = 1, .data = "p", .len = 1};
    for (uint32_t n = 1; n <= 3000; n++) {
        OK(add_plain(s, 1, n));
        p.no = n;
        OK(store_add_page(s, 1, &p));
    }
    OK(store_commit(s));
    bool over = false;
    for (int steps = 0; !over; steps++) {
        OK(store_remove_step(s, 1, 10, UINT64_MAX, &over));
        for (sqlite3_stmt *q = NULL; (q = sqlite3_next_stmt(opened, q)) != NULL;) {
            int cost = sqlite3_stmt_status(q, SQLITE_STMTSTATUS_VM_STEP, 1);
            if (steps > 0 && cost > 1000)
                fail_msg("step %d: %d for %s", steps, cost, sqlite3_sql(q));
        }
    }
    assert_int_equal(number("SELECT count(*) FROM body"), 0);
    store_close(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_result_fields),
        TEST(test_second_result),
        TEST(test_results_by_model),
        TEST(test_results_stops),
        TEST(test_results_while_appended),
        TEST(test_bodies),
        TEST(test_done),
        TEST(test_remove),
        TEST(test_plans),
        TEST(test_remove_is_cheap),
    };
    return cmocka_run_group_tests_name("store_result", tests, NULL, NULL);
}
