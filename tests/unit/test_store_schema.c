/* Databases of earlier versions: made by hand with the statements of their time, then opened by
 * the store of today. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <sqlite3.h>
#include <string.h>

#include "server/policy.h"
#include "tests/unit/store_fixture.h"

/* Version 1 as it was released; never to be changed. */
static const char version_1[] =
    "PRAGMA page_size=8192; PRAGMA auto_vacuum=INCREMENTAL; PRAGMA journal_mode=WAL;"
    "CREATE TABLE batch(no INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, state INTEGER NOT NULL,"
    " pages INTEGER NOT NULL, total INTEGER NOT NULL, succeeded INTEGER NOT NULL,"
    " failed INTEGER NOT NULL, cancelled INTEGER NOT NULL, bytes INTEGER NOT NULL,"
    " created INTEGER NOT NULL, started INTEGER NOT NULL, ended INTEGER NOT NULL,"
    " max_parallel INTEGER NOT NULL, max_per_host INTEGER NOT NULL,"
    " max_redirects INTEGER NOT NULL, defaults BLOB, name TEXT, metadata TEXT, idem_key TEXT,"
    " idem_hash BLOB) STRICT;"
    "CREATE UNIQUE INDEX batch_key ON batch(idem_key) WHERE idem_key IS NOT NULL AND state<>5;"
    "CREATE INDEX batch_unfinished ON batch(no) WHERE state IN (0,1,2,5);"
    "CREATE TABLE page(id INTEGER PRIMARY KEY, lane INTEGER NOT NULL, count INTEGER NOT NULL,"
    " data BLOB NOT NULL) STRICT;"
    "CREATE INDEX page_lane ON page(lane);"
    "CREATE TABLE result(id INTEGER PRIMARY KEY, key INTEGER NOT NULL, status INTEGER NOT NULL,"
    " http_status INTEGER NOT NULL, http_version INTEGER NOT NULL, error INTEGER NOT NULL,"
    " message TEXT, attempts INTEGER NOT NULL, truncated INTEGER NOT NULL, url TEXT,"
    " final_url TEXT, custom_id TEXT, headers BLOB, redirects BLOB, remote_ip TEXT,"
    " timing BLOB NOT NULL, completed INTEGER NOT NULL, body_len INTEGER NOT NULL,"
    " has_body INTEGER NOT NULL) STRICT;"
    "CREATE UNIQUE INDEX result_key ON result(key);"
    "CREATE INDEX result_status ON result(status) WHERE status<>0;"
    "CREATE INDEX result_custom ON result(custom_id) WHERE custom_id IS NOT NULL;"
    "CREATE TABLE body(id INTEGER PRIMARY KEY, data BLOB NOT NULL) STRICT;"
    "PRAGMA application_id=0x62666368; PRAGMA user_version=1;"
    /* one that is running, with two pages in one lane and one in another, and two results */
    "INSERT INTO batch VALUES(3,'b_run',1,3,500,1,1,0,7,1001,1002,0,20,4,10,x'00ff64','n','{}',"
    "'key',zeroblob(32));"
    /* (a lane is kept as its number xor the batch's times 0x9e3779b97f4a7c15) */
    "INSERT INTO page VALUES(3<<32,-2691343689449507778,200,CAST('page 0' AS BLOB)),"
    "((3<<32)+1,-2691343689449507779,200,CAST('page 1' AS BLOB)),"
    "((3<<32)+2,-2691343689449507778,100,CAST('page 2' AS BLOB));"
    "INSERT INTO result VALUES((3<<32)+1,3<<32,0,200,11,0,NULL,1,0,'http://a/','http://b/','c',"
    "CAST('A: b' AS BLOB),NULL,'127.0.0.1',zeroblob(64),1500,7,1);"
    "INSERT INTO result VALUES((3<<32)+2,(3<<32)+399,1,503,11,1,'message',2,0,'http://c/',NULL,"
    "NULL,NULL,NULL,NULL,zeroblob(64),1600,0,0);"
    "INSERT INTO body VALUES((3<<32)+1,CAST('content' AS BLOB));"
    /* one that has ended, and one that is deleted, whose rows are yet to go */
    "INSERT INTO batch VALUES(4,'b_end',3,0,1,1,0,0,0,2001,2002,2003,0,0,0,NULL,NULL,NULL,NULL,"
    "NULL);"
    "INSERT INTO batch VALUES(5,'b_del',5,0,1,1,0,0,0,3001,3002,3003,0,0,0,NULL,NULL,NULL,'key2',"
    "NULL);";

/* The test's own directory becomes the store's. */
static void make_version_1(void)
{
    snprintf(dir, sizeof(dir), "%s", base);
    change(version_1);
}

static int result_1(void *arg, const struct result *r)
{
    (void)arg;
    assert_int_equal(r->n, 1);
    assert_int_equal(r->http_status, 200);
    assert_int_equal(r->attempts, 1);
    assert_int_equal(r->body_len, 7);
    assert_memory_equal(r->final_url.ptr, "http://b/", 9);
    assert_memory_equal(r->custom_id.ptr, "c", 1);
    assert_memory_equal(r->headers.ptr, "A: b", 4);
    return 7;
}

static int result_2(void *arg, const struct result *r)
{
    (void)arg;
    assert_int_equal(r->n, 2);
    assert_int_equal(r->status, RESULT_FAILED);
    assert_int_equal(r->http_status, 503);
    assert_memory_equal(r->error_message.ptr, "message", 7);
    return 7;
}

/* What was not known in version 1 has the meaning it had then. */
static void check_defaults(const struct batch *b)
{
    struct retry_policy given = b->retry, usual;
    assert_int_equal(b->rate_per_host, 0);
    assert_int_equal(b->priority, 5);
    assert_int_equal(b->http_version, 11);
    assert_null(b->retry_of);
    assert_int_equal(b->expires_after_s, 0);
    assert_int_equal(b->expires_ms, 0);
    policy_complete(&given);
    policy_init(&usual);
    assert_memory_equal(&given, &usual, sizeof(usual));
}

static void check_batches(struct store *s)
{
    struct batch b;
    struct seen l = {0};
    OK(store_find(s, "b_run", &b));
    assert_int_equal(b.no, 3);
    assert_int_equal(b.state, BATCH_OPEN);
    assert_int_equal(b.pages, 3);
    assert_int_equal(b.total, 500);
    assert_int_equal(b.succeeded, 1);
    assert_int_equal(b.failed, 1);
    assert_int_equal(b.bytes_received, 7);
    assert_int_equal(b.created_ms, 1001);
    assert_int_equal(b.started_ms, 1002);
    assert_int_equal(b.max_parallel, 20);
    assert_int_equal(b.max_per_host, 4);
    assert_int_equal(b.max_redirects, 10);
    assert_int_equal(b.defaults_len, 3);
    assert_memory_equal(b.defaults,
                        "\0\xff"
                        "d",
                        3);
    assert_string_equal(b.name, "n");
    assert_string_equal(b.metadata, "{}");
    check_defaults(&b);
    batch_fini(&b);
    OK(store_find_key(s, "key", &b));
    assert_string_equal(b.id, "b_run");
    batch_fini(&b);
    OK(store_find(s, "b_end", &b));
    assert_int_equal(b.ended_ms, 2003);
    assert_null(b.name);
    check_defaults(&b);
    batch_fini(&b);
    assert_int_equal(store_find(s, "b_del", &b), E_NOTFOUND);
    OK(store_open_batches(s, see_batch, &l));
    SEEN(l, 3, 5);
}

static void check_rows(struct store *s)
{
    struct page heads[4], p;
    struct seen l = {0};
    size_t n, got;
    uint64_t last;
    char body[16];
    OK(store_page_heads(s, 3, -1, heads, 4, &n));
    assert_int_equal(n, 3);
    OK(store_lane_page(s, 3, 1, 0, &p));
    assert_int_equal(p.count, 100);
    assert_int_equal(p.len, 6);
    assert_memory_equal(p.data, "page 2", 6);
    assert_int_equal(store_result(s, 3, 0, result_1, NULL), 7);
    assert_int_equal(store_result(s, 3, 399, result_2, NULL), 7);
    OK(store_done(s, 3, see_done, &l, &last));
    assert_int_equal(last, 2);
    SEEN(l, 7, 399100);
    OK(store_body_read(s, 3, 1, 0, body, sizeof(body), &got));
    assert_int_equal(got, 7);
    assert_memory_equal(body, "content", 7);
}

/* Of all tables and indexes, as a number to compare. */
static int64_t schema(void)
{
    return number("SELECT sum(length(sql)) FROM sqlite_schema");
}

static void test_from_version_1(void **state)
{
    (void)state;
    store_close(open_store(STORE_WRITE)); /* a new database, to compare with */
    int64_t version = number("PRAGMA user_version"), columns = schema();
    assert_true(version > 1);
    assert_int_equal(tear_down(NULL), 0);
    assert_int_equal(set_up(NULL), 0);
    make_version_1();
    assert_int_equal(number("PRAGMA user_version"), 1);
    for (int i = 0; i < 2; i++) { /* the second time there is nothing to bring up to date */
        struct store *s = open_store(STORE_WRITE);
        check_batches(s);
        check_rows(s);
        struct store *reader = open_store(STORE_READ);
        check_batches(reader);
        check_rows(reader);
        store_close(reader);
        store_close(s);
        assert_int_equal(number("PRAGMA user_version"), version);
        assert_int_equal(schema(), columns);
    }
    assert_int_equal(number("SELECT count(*) FROM pragma_integrity_check WHERE "
                            "integrity_check<>'ok'"),
                     0);
}

/* New batches and results go beside the old ones. */
static void test_writes_after_version_1(void **state)
{
    (void)state;
    make_version_1();
    struct store *s = open_store(STORE_WRITE);
    struct batch b = batch_of(6, BATCH_OPEN), got;
    b.priority = 9;
    b.rate_per_host = 500;
    b.http_version = 20;
    policy_init(&b.retry);
    b.retry.max_retry_after_ms = 0;
    OK(store_begin(s, true));
    OK(store_add_batch(s, &b));
    OK(add_plain(s, 3, 3));
    OK(store_commit(s));
    OK(store_find(s, b.id, &got));
    assert_int_equal(got.priority, 9);
    assert_int_equal(got.rate_per_host, 500);
    assert_int_equal(got.http_version, 20);
    assert_memory_equal(&got.retry, &b.retry, sizeof(b.retry));
    batch_fini(&got);
    OK(store_find(s, "b_run", &got));
    got.priority = 1;
    OK(store_update_batch(s, &got));
    batch_fini(&got);
    OK(store_find(s, "b_run", &got));
    assert_int_equal(got.priority, 1);
    batch_fini(&got);
    assert_int_equal(number("SELECT count(*) FROM result WHERE id>>32=3"), 3);
    store_close(s);
}

/* A migration that fails leaves the database as it was. */
static void test_failed_migration(void **state)
{
    (void)state;
    struct store *s;
    char why[256] = "";
    make_version_1();
    change("ALTER TABLE batch ADD COLUMN retry_status BLOB"); /* the last of version 2 */
    int64_t columns = schema();
    assert_true(store_open(&s, dir, STORE_WRITE, why, sizeof(why)) < 0);
    assert_true(why[0] != '\0');
    assert_int_equal(number("PRAGMA user_version"), 1);
    assert_int_equal(schema(), columns);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_from_version_1),
        TEST(test_writes_after_version_1),
        TEST(test_failed_migration),
    };
    return cmocka_run_group_tests_name("store_schema", tests, NULL, NULL);
}
