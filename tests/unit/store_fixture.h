/* For test_store*.c: a store in a directory of each test's own, a look at its database with SQLite
 * itself, rows to put in, and a list of what came out. */
#ifndef TESTS_STORE_FIXTURE_H
#define TESTS_STORE_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <ftw.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "storage/store.h"

#define OK(call) assert_int_equal(call, 0)

static char base[64]; /* of the test that runs; removed after it */
static char dir[96];

/* SQLite's syncs come through here: counted, and done. */
static unsigned syncs;
static unsigned failing_syncs; /* so many next ones of data fail … */
static unsigned passing_syncs; /* … after so many */

int fdatasync(int fildes)
{
    syncs++;
    if (failing_syncs > 0 && passing_syncs > 0) {
        passing_syncs--;
    } else if (failing_syncs > 0) {
        failing_syncs--;
        errno = EIO;
        return -1;
    }
    return (int)syscall(SYS_fdatasync, fildes);
}

int fsync(int fd)
{
    syncs++;
    return (int)syscall(SYS_fsync, fd);
}

static inline int set_up(void **state)
{
    (void)state;
    snprintf(base, sizeof(base), "%s/test_store.XXXXXX", P_tmpdir);
    if (mkdtemp(base) == NULL)
        return -1;
    snprintf(dir, sizeof(dir), "%s/a/data", base);
    return 0;
}

static inline int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st;
    (void)type;
    (void)ftw;
    return remove(path);
}

static inline int tear_down(void **state)
{
    (void)state;
    return nftw(base, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

static inline const char *file(const char *name)
{
    static char path[128];
    snprintf(path, sizeof(path), "%s/%s", dir, name);
    return path;
}

static inline struct store *open_store(enum store_mode mode)
{
    struct store *s;
    char why[256] = "";
    int rc = store_open(&s, dir, mode, why, sizeof(why));
    if (rc != 0)
        fail_msg("store_open: %d: %s", rc, why);
    return s;
}

/* A connection beside the store's; it changes nothing, not even by closing. */
static inline sqlite3 *look(void)
{
    sqlite3 *db;
    OK(sqlite3_open_v2(file("batchfetch.db"), &db, SQLITE_OPEN_READONLY, NULL));
    sqlite3_db_config(db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, NULL);
    return db;
}

/* The first column of the first row. */
static inline int64_t number(const char *sql)
{
    sqlite3 *db = look();
    sqlite3_stmt *q;
    OK(sqlite3_prepare_v2(db, sql, -1, &q, NULL));
    assert_int_equal(sqlite3_step(q), SQLITE_ROW);
    int64_t v = sqlite3_column_int64(q, 0);
    sqlite3_finalize(q);
    sqlite3_close(db);
    return v;
}

/* Changes a database that no store has open. */
static inline void change(const char *sql)
{
    sqlite3 *db;
    OK(sqlite3_open(file("batchfetch.db"), &db));
    OK(sqlite3_exec(db, sql, NULL, NULL, NULL));
    OK(sqlite3_close(db));
}

static inline struct batch batch_of(int64_t no, enum batch_state state)
{
    struct batch b = {.no = no, .state = state, .created_ms = 1000 + no};
    snprintf(b.id, sizeof(b.id), "b%lld", (long long)no);
    return b;
}

static inline void add_batch(struct store *s, int64_t no, enum batch_state state, const char *key)
{
    struct batch b = batch_of(no, state);
    b.idem_key = (char *)(uintptr_t)key;
    OK(store_add_batch(s, &b));
}

static inline struct result result_of(uint64_t n, uint64_t index)
{
    return (struct result){.n = n, .index = index, .url = {"http://a.example/", 17}, .attempts = 1};
}

static inline int add_plain(struct store *s, int64_t batch, uint64_t n)
{
    struct result r = result_of(n, n - 1);
    r.body = (struct span){"body", 4};
    r.body_len = 4;
    return store_add_result(s, batch, &r);
}

struct seen {
    int64_t v[2000];
    size_t n;
    size_t stop_at; /* fn answers `answer` at this many; 0: never */
    int answer;
};

static inline int see(struct seen *l, int64_t v)
{
    assert_true(l->n < sizeof(l->v) / sizeof(l->v[0]));
    l->v[l->n++] = v;
    return l->stop_at > 0 && l->n == l->stop_at ? l->answer : 0;
}

static inline int see_batch(void *arg, const struct batch *b)
{
    return see(arg, b->no);
}

static inline int see_n(void *arg, const struct result *r)
{
    return see(arg, (int64_t)r->n);
}

static inline int see_done(void *arg, uint64_t index, enum result_status status, uint64_t body_len)
{
    return see(arg, (int64_t)(index * 1000 + (uint64_t)status * 100 + body_len));
}

static inline void seen_are(struct seen *l, const int64_t *want, size_t n)
{
    assert_int_equal(l->n, n);
    for (size_t i = 0; i < n; i++)
        assert_int_equal(l->v[i], want[i]);
    l->n = 0;
}

/* Exactly these, or none; and begins anew. */
#define SEEN(l, ...)                                                     \
    do {                                                                 \
        const int64_t want_[] = {-1, ##__VA_ARGS__};                     \
        seen_are(&(l), want_ + 1, sizeof(want_) / sizeof(want_[0]) - 1); \
    } while (0)

/* Runs fn in a child, which answers 0 to 99; 1000 + signal if that ended it. The parent must have
 * no database open that the child uses. */
static inline int in_child(int (*fn)(void))
{
    int status;
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0)
        _exit(fn());
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFSIGNALED(status) ? 1000 + WTERMSIG(status) : WEXITSTATUS(status);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

#endif
