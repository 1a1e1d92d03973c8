/* Batches that expire, rows that go in bounded steps, and pages that are given back. */
#define _GNU_SOURCE
#include "tests/unit/store_fixture.h"

#include "server/base.h"

enum { BODY = 100000 };

static void add_ended(struct store *s, int64_t no, int64_t ended_ms, uint32_t expires_after_s)
{
    struct batch b = batch_of(no, no % 2 ? BATCH_COMPLETED : BATCH_CANCELLED);
    char key[16];
    snprintf(key, sizeof(key), "k%d", (int)no);
    b.ended_ms = ended_ms;
    b.expires_after_s = expires_after_s;
    b.idem_key = key;
    OK(store_add_batch(s, &b));
}

static struct store *with_batches(void)
{
    struct store *s = open_store(STORE_WRITE);
    OK(store_begin(s, true));
    add_ended(s, 1, 10000, 0);
    add_ended(s, 2, 20000, 0);
    add_ended(s, 3, 5000, 30); /* at 35000 */
    add_ended(s, 4, 30000, 1); /* at 31000 */
    add_batch(s, 5, BATCH_OPEN, NULL);
    add_batch(s, 6, BATCH_PAUSED, NULL);
    OK(store_commit(s));
    return s;
}

static void horizon(struct store *s, int64_t now_ms, int64_t retain_ms)
{
    store_set_horizon(s, &(struct store_horizon){.now_ms = now_ms, .retain_ms = retain_ms});
}

static void sees(struct store *s, const char *list)
{
    struct seen l = {0};
    char got[64] = "", id[8];
    size_t n = 0;
    OK(store_list(s, 0, 0, 100, see_batch, &l));
    for (size_t i = 0; i < l.n; i++)
        n += (size_t)snprintf(got + n, sizeof(got) - n, "%d ", (int)l.v[i]);
    assert_string_equal(got, list);
    for (int no = 1; no <= 6; no++) { /* by id, too */
        struct batch b;
        snprintf(id, sizeof(id), "b%d", no);
        snprintf(got, sizeof(got), "%d ", no);
        int rc = store_find(s, id, &b);
        assert_int_equal(rc, strstr(list, got) != NULL ? 0 : E_NOTFOUND);
        batch_fini(&b);
    }
}

static void test_gone_for_readers_at_once(void **state)
{
    (void)state;
    struct store *s = with_batches(), *r = open_store(STORE_READ);
    struct batch b;
    sees(r, "6 5 4 3 2 1 ");
    horizon(r, INT64_MAX / 2, 0); /* those without a time of their own stay */
    sees(r, "6 5 2 1 ");
    horizon(r, 30999, 0);
    sees(r, "6 5 4 3 2 1 ");
    horizon(r, 31000, 0);
    sees(r, "6 5 3 2 1 ");
    horizon(r, 34999, 25000);
    sees(r, "6 5 2 1 "); /* 3: at 30000, before its own time */
    horizon(r, 35000, 25000);
    sees(r, "6 5 2 ");
    horizon(r, 35000, 3000000); /* kept for longer: they are there again */
    sees(r, "6 5 2 1 ");
    OK(store_find_key(r, "k3", &b)); /* the key is held until the batch is removed */
    assert_int_equal(b.no, 3);
    assert_int_equal(b.expires_ms, 35000);
    batch_fini(&b);
    OK(store_find(r, "b1", &b));
    assert_int_equal(b.expires_ms, 3010000);
    batch_fini(&b);
    horizon(r, 0, 0);
    OK(store_find(r, "b1", &b));
    assert_int_equal(b.expires_ms, 0);
    batch_fini(&b);
    OK(store_find(r, "b5", &b));
    assert_int_equal(b.expires_ms, 0);
    batch_fini(&b);
    store_close(r);
    store_close(s);
}

static void test_expire(void **state)
{
    (void)state;
    struct store *s = with_batches();
    int64_t no[8], next;
    size_t n;
    struct seen l = {0};
    horizon(s, 30999, 0);
    OK(store_expire(s, no, 8, &n, &next));
    assert_int_equal(n, 0);
    assert_int_equal(next, 31000);
    horizon(s, 30999, 20999);
    OK(store_expire(s, no, 8, &n, &next));
    assert_int_equal(n, 2); /* 3 and 1 */
    assert_int_equal(no[0], 3);
    assert_int_equal(no[1], 1);
    assert_int_equal(next, 31000);
    OK(store_open_batches(s, see_batch, &l)); /* the rows are yet to go: also after a restart */
    SEEN(l, 1, 3, 5, 6);
    horizon(s, 100000, 20000); /* 4 by both rules: once */
    OK(store_expire(s, no, 8, &n, &next));
    assert_int_equal(n, 2);
    assert_int_equal(next, INT64_MAX);
    OK(store_expire(s, no, 8, &n, &next));
    assert_int_equal(n, 0);
    struct batch b; /* the key is free again */
    assert_int_equal(store_find_key(s, "k4", &b), E_NOTFOUND);
    store_close(s);
}

static void test_expire_some_at_a_time(void **state)
{
    (void)state;
    struct store *s = open_store(STORE_WRITE);
    int64_t no[10], next, seen = 0;
    size_t n;
    OK(store_begin(s, true));
    for (int64_t i = 1; i <= 95; i++)
        add_ended(s, i, 1000 * i, i % 3 == 0 ? 1 : 0);
    OK(store_commit(s));
    horizon(s, 1000000, 5000);
    do {
        OK(store_expire(s, no, 10, &n, &next));
        seen += (int64_t)n;
        assert_true(n == 10 || seen == 95);
        assert_true(seen == 95 ? next == INT64_MAX : next <= 1000000);
    } while (seen < 95);
    assert_int_equal(number("SELECT count(*) FROM batch WHERE state=5"), 95);
    store_close(s);
}

static void fill(struct store *s, int64_t batch, uint64_t n)
{
    char *body = calloc(1, BODY);
    OK(store_begin(s, false));
    add_batch(s, batch, BATCH_DELETED, NULL);
    for (uint64_t i = 1; i <= n; i++) {
        struct result r = result_of(i, i - 1);
        r.body = (struct span){body, BODY};
        r.body_len = BODY;
        OK(store_add_result(s, batch, &r));
        struct page p = {.no = (uint32_t)i, .count = 1, .data = body, .len = BODY / 2};
        OK(store_add_page(s, batch, &p));
    }
    OK(store_commit(s));
    free(body);
}

static void test_steps_are_bounded_by_bytes(void **state)
{
    (void)state;
    struct store *s = open_store(STORE_WRITE);
    bool over = false;
    fill(s, 1, 20);
    OK(store_remove_step(s, 1, 1000, 3 * BODY, &over));
    assert_int_equal(number("SELECT count(*) FROM result"), 17);
    assert_int_equal(number("SELECT count(*) FROM body"), 17);
    OK(store_remove_step(s, 1, 1000, 1, &over)); /* one at least */
    assert_int_equal(number("SELECT count(*) FROM body"), 16);
    OK(store_remove_step(s, 1, 2, UINT64_MAX, &over));
    assert_int_equal(number("SELECT count(*) FROM body"), 14);
    OK(store_remove_step(s, 1, 1000, UINT64_MAX, &over));
    assert_int_equal(number("SELECT count(*) FROM body"), 0);
    OK(store_remove_step(s, 1, 1000, 3 * BODY, &over));
    assert_int_equal(number("SELECT count(*) FROM page"), 14);
    assert_false(over);
    while (!over)
        OK(store_remove_step(s, 1, 1000, 3 * BODY, &over));
    assert_int_equal(number("SELECT count(*) FROM batch"), 0);
    store_close(s);
}

static int64_t file_size(void)
{
    struct stat st;
    OK(stat(file("batchfetch.db"), &st));
    return st.st_size;
}

static void test_shrink(void **state)
{
    (void)state;
    struct store *s = open_store(STORE_WRITE);
    uint64_t size, unused, before;
    bool over = false;
    fill(s, 1, 100);
    fill(s, 2, 10);
    store_checkpoint(s, true);
    int64_t full = file_size();
    OK(store_space(s, &size, &unused));
    assert_int_equal(size, full);
    assert_in_range(unused, 0, BODY);
    while (!over)
        OK(store_remove_step(s, 1, 1000, UINT64_MAX, &over));
    OK(store_space(s, &size, &unused));
    assert_int_equal(size, full);
    assert_in_range(unused, 100 * BODY * 3 / 2, full);
    before = unused;
    OK(store_begin(s, false));
    OK(store_shrink(s, 10, &over));
    assert_false(over);
    OK(store_commit(s));
    OK(store_space(s, &size, &unused));
    assert_int_equal(before - unused, 10 * 8192);
    for (over = false; !over;)
        OK(store_shrink(s, 64, &over));
    OK(store_space(s, &size, &unused));
    assert_int_equal(unused, 0);
    store_checkpoint(s, true);
    assert_int_equal(file_size(), size);
    assert_in_range(size, 1, full / 5);
    assert_int_equal(number("SELECT count(*) FROM body WHERE length(data)=100000"), 10);
    assert_int_equal(number("SELECT count(*) FROM pragma_integrity_check WHERE "
                            "integrity_check<>'ok'"),
                     0);
    OK(store_shrink(s, 1, &over)); /* nothing is left to give */
    assert_true(over);
    store_close(s);
}

static void test_last_time(void **state)
{
    (void)state;
    struct store *s = open_store(STORE_WRITE);
    int64_t last = -1;
    OK(store_last_time(s, &last));
    assert_int_equal(last, 0);
    add_batch(s, 7, BATCH_OPEN, NULL);
    OK(store_last_time(s, &last));
    assert_int_equal(last, 1007);
    add_ended(s, 3, 99999, 0);
    OK(store_last_time(s, &last));
    assert_int_equal(last, 99999);
    store_close(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_gone_for_readers_at_once),   TEST(test_expire), TEST(test_expire_some_at_a_time),
        TEST(test_steps_are_bounded_by_bytes), TEST(test_shrink), TEST(test_last_time),
    };
    return cmocka_run_group_tests_name("store_retain", tests, NULL, NULL);
}
