/* The database on SQLite 3.40.1. A connection belongs to one thread; the writer makes every write
 * and every checkpoint (see store.h).
 *
 * Keys: a page is at id = batch << 32 | page number, a result and its body at batch << 32 |
 * completion number, so a batch's rows are one range, appended to at its end. result.key is
 * batch << 32 | index: its unique index is what makes a second result impossible. */
#define _GNU_SOURCE
#include "storage/store.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    APPLICATION_ID = 0x62666368, /* "bfch" */
    SCHEMA_VERSION = 1,
    PASSIVE_FRAMES = 4000,
    RESTART_FRAMES = 32000,
    BLOB_PIECE = 256 * 1024,
};

/* Every statement of this file, prepared when first used and kept. */
#define BATCH_COLUMNS                                                                             \
    "no,id,state,pages,total,succeeded,failed,cancelled,bytes,created,started,ended,"             \
    "max_parallel,max_per_host,max_redirects,defaults,name,metadata,idem_key,idem_hash"
#define RESULT_COLUMNS                                                                            \
    "id,key,status,http_status,http_version,error,message,attempts,truncated,url,final_url,"      \
    "custom_id,headers,redirects,remote_ip,timing,completed,body_len,has_body"

#define STATEMENTS(X)                                                                             \
    X(BEGIN, "BEGIN IMMEDIATE")                                                                   \
    X(BEGIN_READ, "BEGIN")                                                                        \
    X(COMMIT, "COMMIT")                                                                           \
    X(ROLLBACK, "ROLLBACK")                                                                       \
    X(SYNC_FULL, "PRAGMA synchronous=FULL")                                                       \
    X(SYNC_NORMAL, "PRAGMA synchronous=NORMAL")                                                   \
    X(LAST_NO, "SELECT max(no) FROM batch")                                                       \
    X(ADD_BATCH, "INSERT INTO batch(" BATCH_COLUMNS ") VALUES(?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,"    \
                 "?11,?12,?13,?14,?15,?16,?17,?18,?19,?20)")                                      \
    X(UPDATE_BATCH, "UPDATE batch SET id=?2,state=?3,pages=?4,total=?5,succeeded=?6,failed=?7,"   \
                    "cancelled=?8,bytes=?9,created=?10,started=?11,ended=?12,max_parallel=?13,"   \
                    "max_per_host=?14,max_redirects=?15,defaults=?16,name=?17,metadata=?18,"      \
                    "idem_key=?19,idem_hash=?20 WHERE no=?1")                                     \
    X(OPEN_BATCHES, "SELECT " BATCH_COLUMNS " FROM batch WHERE state IN (0,1,2,5) ORDER BY no")   \
    X(FIND, "SELECT " BATCH_COLUMNS " FROM batch WHERE id=?1 AND state NOT IN (0,5)")             \
    X(FIND_KEY, "SELECT " BATCH_COLUMNS " FROM batch WHERE idem_key=?1 AND idem_key IS NOT NULL " \
                "AND state<>5 AND state<>0")                                                      \
    X(LIST, "SELECT " BATCH_COLUMNS " FROM batch WHERE no<?1 AND state NOT IN (0,5) "             \
            "AND (?2=0 OR (?2>>state)&1) ORDER BY no DESC LIMIT ?3")                              \
    X(REMOVE_BATCH, "DELETE FROM batch WHERE no=?1")                                              \
    X(ADD_PAGE, "INSERT INTO page(id,lane,count,data) VALUES(?1,?2,?3,?4)")                       \
    X(PAGE_HEADS, "SELECT id,lane,count FROM page WHERE id>?1 AND id<?2 ORDER BY id LIMIT ?3")    \
    X(LANE_PAGE, "SELECT id,count,data FROM page WHERE lane=?1 AND id>?2 AND id<?3 "              \
                 "ORDER BY id LIMIT 1")                                                           \
    X(REMOVE_PAGES, "DELETE FROM page WHERE id>=?1 AND id<=ifnull((SELECT id FROM page "          \
                    "WHERE id>=?1 AND id<?2 ORDER BY id LIMIT 1 OFFSET ?3),?2-1)")                \
    X(REMOVE_RESULTS, "DELETE FROM result WHERE id>=?1 AND id<=ifnull((SELECT id FROM result "    \
                      "WHERE id>=?1 AND id<?2 ORDER BY id LIMIT 1 OFFSET ?3),?2-1)")              \
    X(REMOVE_BODIES, "DELETE FROM body WHERE id>=?1 AND id<=ifnull((SELECT id FROM body "         \
                     "WHERE id>=?1 AND id<?2 ORDER BY id LIMIT 1 OFFSET ?3),?2-1)")               \
    X(ADD_RESULT, "INSERT INTO result(" RESULT_COLUMNS ") VALUES(?1,?2,?3,?4,?5,?6,?7,?8,?9,"     \
                  "?10,?11,?12,?13,?14,?15,?16,?17,?18,?19)")                                     \
    X(ADD_BODY, "INSERT INTO body(id,data) VALUES(?1,?2)")                                        \
    X(ADD_BODY_ZERO, "INSERT INTO body(id,data) VALUES(?1,zeroblob(?2))")                         \
    X(DONE, "SELECT key,status,body_len FROM result INDEXED BY result_key "                       \
            "WHERE key>=?1 AND key<?2 ORDER BY key")                                              \
    X(LAST_N, "SELECT max(id) FROM result WHERE id>?1 AND id<?2")                                 \
    X(RESULTS, "SELECT " RESULT_COLUMNS " FROM result WHERE id>?1 AND id<?2 ORDER BY id LIMIT ?3")\
    X(RESULTS_BAD, "SELECT " RESULT_COLUMNS " FROM result INDEXED BY result_status "              \
                   "WHERE status=?4 AND status<>0 AND id>?1 AND id<?2 ORDER BY id LIMIT ?3")      \
    X(RESULTS_INDEX, "SELECT " RESULT_COLUMNS " FROM result INDEXED BY result_key "               \
                     "WHERE key>?1 AND key<?2 ORDER BY key LIMIT ?3")                             \
    X(RESULTS_CUSTOM, "SELECT " RESULT_COLUMNS " FROM result INDEXED BY result_custom "           \
                      "WHERE custom_id=?4 AND id>?1 AND id<?2 ORDER BY id LIMIT ?3")              \
    X(RESULT_ONE, "SELECT " RESULT_COLUMNS " FROM result WHERE key=?1")

enum statement {
#define X(name, sql) S_##name,
    STATEMENTS(X)
#undef X
    N_STATEMENTS
};

static const char *const sql_of[] = {
#define X(name, sql) sql,
    STATEMENTS(X)
#undef X
};

/* Forward-only; entry i brings version i to i + 1. */
static const char *const migrations[SCHEMA_VERSION] = {
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
    "CREATE TABLE body(id INTEGER PRIMARY KEY, data BLOB NOT NULL) STRICT;",
};

struct store {
    sqlite3 *db;
    bool writer, durable;
    bool folds;      /* a writer whose database was found to be ours: close checkpoints */
    int lock_fd;
    int frames;      /* of the write-ahead log, after the last commit */
    void *page;      /* the last one read */
    size_t page_cap;
    char error[256];
    sqlite3_stmt *stmt[N_STATEMENTS];
};

/* ---- errors ---- */

static int map_error(sqlite3 *db, int code)
{
    switch (code & 0xff) {
    case SQLITE_OK:
    case SQLITE_ROW:
    case SQLITE_DONE: return 0;
    case SQLITE_NOMEM: return E_NOMEM;
    case SQLITE_FULL: return E_FULL;
    case SQLITE_BUSY:
    case SQLITE_LOCKED: return E_BUSY;
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB: return E_CORRUPT;
    case SQLITE_CONSTRAINT: return E_EXISTS;
    case SQLITE_TOOBIG: return E_LIMIT;
    default: return db != NULL && sqlite3_system_errno(db) == ENOSPC ? E_FULL : E_IO;
    }
}

static int fail(struct store *s, int code)
{
    int rc = map_error(s->db, code);
    if (rc != 0)
        snprintf(s->error, sizeof(s->error), "%s (%d)", sqlite3_errmsg(s->db), code);
    return rc;
}

const char *store_error(const struct store *s)
{
    return s->error;
}

static int get(struct store *s, enum statement i, sqlite3_stmt **out)
{
    *out = NULL;
    if (s->stmt[i] == NULL) {
        int rc = sqlite3_prepare_v3(s->db, sql_of[i], -1, SQLITE_PREPARE_PERSISTENT, &s->stmt[i],
                                    NULL);
        if (rc != SQLITE_OK)
            return fail(s, rc);
    }
    *out = s->stmt[i];
    return 0;
}

/* A reset statement holds no snapshot and points to no memory of the caller's. */
static void put(sqlite3_stmt *q)
{
    sqlite3_reset(q);
    sqlite3_clear_bindings(q);
}

/* Runs a statement that gives no rows. */
static int finish(struct store *s, sqlite3_stmt *q)
{
    int code = sqlite3_step(q);
    int rc = code == SQLITE_DONE || code == SQLITE_ROW ? 0 : fail(s, code);
    put(q);
    return rc;
}

static int run(struct store *s, enum statement i)
{
    sqlite3_stmt *q;
    int rc = get(s, i, &q);
    return rc != 0 ? rc : finish(s, q);
}

static int64_t key_of(int64_t batch, uint64_t n)
{
    return (int64_t)(((uint64_t)batch << 32) | (n & UINT32_MAX));
}

/* Above every key of the batch; the last batch number's would not fit. */
static int64_t end_of(int64_t batch)
{
    return batch < INT32_MAX ? key_of(batch + 1, 0) : INT64_MAX;
}

/* The key to read on from. A cursor may be any number: one past the batch's last key must not
 * overflow into the rows of another. */
static int64_t key_after(int64_t batch, int64_t after)
{
    return key_of(batch, 0) + (after < UINT32_MAX ? after : UINT32_MAX);
}

/* ---- open and close ---- */

static int on_commit(void *arg, sqlite3 *db, const char *name, int frames)
{
    struct store *s = arg;
    (void)db;
    (void)name;
    s->frames = frames;
    return SQLITE_OK;
}

static int make_dir(const char *dir)
{
    char path[PATH_MAX];
    if (snprintf(path, sizeof(path), "%s", dir) >= (int)sizeof(path))
        return E_INVAL;
    for (char *p = path + (path[0] == '/');; p++) {
        char c = *p;
        if (c != '/' && c != '\0')
            continue;
        *p = '\0';
        if (mkdir(path, 0700) != 0 && errno != EEXIST)
            return errno == ENOSPC ? E_FULL : E_IO;
        *p = c;
        if (c == '\0')
            return 0;
    }
}

/* Refuses a second process on the same directory, for as long as the descriptor lives. */
static int take_lock(struct store *s, const char *dir)
{
    char path[PATH_MAX];
    if (snprintf(path, sizeof(path), "%s/lock", dir) >= (int)sizeof(path))
        return E_INVAL;
    s->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (s->lock_fd < 0) {
        snprintf(s->error, sizeof(s->error), "%.180s: %s", path, strerror(errno));
        return errno == ENOSPC ? E_FULL : E_IO;
    }
    if (flock(s->lock_fd, LOCK_EX | LOCK_NB) != 0) {
        snprintf(s->error, sizeof(s->error), "%.200s is in use by another process", dir);
        return E_BUSY;
    }
    return 0;
}

static int pragma_int(struct store *s, const char *sql, int *value)
{
    sqlite3_stmt *q;
    int code = sqlite3_prepare_v2(s->db, sql, -1, &q, NULL);
    if (code == SQLITE_OK)
        code = sqlite3_step(q);
    *value = code == SQLITE_ROW ? sqlite3_column_int(q, 0) : 0;
    int rc = code == SQLITE_ROW ? 0 : fail(s, code);
    sqlite3_finalize(q);
    return rc;
}

static int exec(struct store *s, const char *sql)
{
    return fail(s, sqlite3_exec(s->db, sql, NULL, NULL, NULL));
}

/* Whether the database is ours to use; changes nothing. */
static int check_version(struct store *s, int *version)
{
    int application, tables;
    int rc = pragma_int(s, "PRAGMA user_version", version);
    if (rc == 0)
        rc = pragma_int(s, "PRAGMA application_id", &application);
    if (rc == 0)
        rc = pragma_int(s, "SELECT count(*) FROM sqlite_schema", &tables);
    if (rc != 0)
        return rc;
    if (*version < 0 || (tables > 0 && application != APPLICATION_ID)) {
        snprintf(s->error, sizeof(s->error), "the database is not one of batchfetch's");
        return E_CORRUPT;
    }
    if (*version > SCHEMA_VERSION) {
        snprintf(s->error, sizeof(s->error),
                 "the database has version %d, this program knows up to %d: use a newer program",
                 *version, SCHEMA_VERSION);
        return E_TOONEW;
    }
    return 0;
}

static int migrate(struct store *s, int version)
{
    char sql[96];
    if (version == SCHEMA_VERSION)
        return 0;
    int rc = exec(s, "BEGIN IMMEDIATE");
    for (int i = version; rc == 0 && i < SCHEMA_VERSION; i++)
        rc = exec(s, migrations[i]);
    snprintf(sql, sizeof(sql), "PRAGMA application_id=%d; PRAGMA user_version=%d", APPLICATION_ID,
             SCHEMA_VERSION);
    if (rc == 0)
        rc = exec(s, sql);
    if (rc == 0)
        rc = exec(s, "COMMIT");
    return rc;
}

static int set_up(struct store *s)
{
    sqlite3_extended_result_codes(s->db, 1);
    sqlite3_busy_timeout(s->db, 5000);
    sqlite3_db_config(s->db, SQLITE_DBCONFIG_DEFENSIVE, 1, NULL);
    sqlite3_db_config(s->db, SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0, NULL);
    /* A reader never writes the log back, nor does a writer that finds another's database. */
    sqlite3_db_config(s->db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, NULL);
    if (!s->writer)
        return exec(s, "PRAGMA cache_size=-8192; PRAGMA temp_store=MEMORY; PRAGMA mmap_size=0;"
                       "PRAGMA wal_autocheckpoint=0; PRAGMA query_only=1");
    /* First of all: auto_vacuum and journal_mode write to the file, whosever it is. */
    int version;
    int rc = check_version(s, &version);
    if (rc != 0)
        return rc;
    /* page_size and auto_vacuum count only before the first write. Debian's secure_delete would
     * overwrite every row that goes. */
    if (version == 0)
        rc = exec(s, "PRAGMA page_size=8192; PRAGMA auto_vacuum=INCREMENTAL");
    if (rc == 0)
        rc = exec(s, "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA secure_delete=OFF;"
                     "PRAGMA cache_size=-16384; PRAGMA temp_store=MEMORY; PRAGMA mmap_size=0;"
                     "PRAGMA wal_autocheckpoint=0; PRAGMA journal_size_limit=67108864");
    if (rc == 0)
        rc = migrate(s, version);
    if (rc != 0)
        return rc;
    s->durable = true;
    s->folds = true;
    sqlite3_db_config(s->db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 0, NULL);
    sqlite3_wal_hook(s->db, on_commit, s);
    return 0;
}

int store_open(struct store **out, const char *dir, enum store_mode mode, char *why,
               size_t why_size)
{
    *out = NULL;
    struct store *s = calloc(1, sizeof(*s));
    if (s == NULL)
        return E_NOMEM;
    s->writer = mode == STORE_WRITE;
    s->lock_fd = -1;
    char path[PATH_MAX];
    int rc = 0;
    if (snprintf(path, sizeof(path), "%s/batchfetch.db", dir) >= (int)sizeof(path))
        rc = E_INVAL;
    if (rc == 0 && s->writer) {
        rc = make_dir(dir);
        if (rc != 0)
            snprintf(s->error, sizeof(s->error), "%.180s: %s", dir, strerror(errno));
        else
            rc = take_lock(s, dir);
    }
    if (rc != 0)
        goto out;
    int flags = s->writer ? SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE : SQLITE_OPEN_READONLY;
    mode_t old = umask(077);
    int code = sqlite3_open_v2(path, &s->db, flags | SQLITE_OPEN_NOMUTEX, NULL);
    rc = code == SQLITE_OK ? set_up(s) : fail(s, code);
    umask(old);
    if (rc != 0 && s->error[0] == '\0')
        snprintf(s->error, sizeof(s->error), "%.200s cannot be opened", path);
out:
    if (rc == 0) {
        *out = s;
        return 0;
    }
    if (why != NULL)
        snprintf(why, why_size, "%s", s->error);
    store_close(s);
    return rc;
}

void store_close(struct store *s)
{
    if (s == NULL)
        return;
    for (size_t i = 0; i < N_STATEMENTS; i++)
        sqlite3_finalize(s->stmt[i]);
    if (s->folds)
        store_checkpoint(s, true); /* sqlite3_close would not while a reader is open */
    sqlite3_close(s->db);
    if (s->lock_fd >= 0)
        close(s->lock_fd);
    free(s->page);
    free(s);
}

/* ---- transactions ---- */

int store_begin(struct store *s, bool durable)
{
    int rc = 0;
    if (durable != s->durable) {
        rc = run(s, durable ? S_SYNC_FULL : S_SYNC_NORMAL);
        if (rc == 0)
            s->durable = durable;
    }
    return rc != 0 ? rc : run(s, S_BEGIN);
}

void store_rollback(struct store *s)
{
    if (sqlite3_get_autocommit(s->db))
        return;
    char error[sizeof(s->error)];
    memcpy(error, s->error, sizeof(error)); /* the cause, not the rollback's own */
    if (run(s, S_ROLLBACK) == 0 || error[0] != '\0')
        memcpy(s->error, error, sizeof(error));
}

int store_commit(struct store *s)
{
    int rc = run(s, S_COMMIT);
    if (rc != 0)
        store_rollback(s);
    return rc;
}

void store_checkpoint(struct store *s, bool force)
{
    int mode = SQLITE_CHECKPOINT_PASSIVE, left = 0;
    if (force)
        mode = SQLITE_CHECKPOINT_TRUNCATE;
    else if (s->frames > RESTART_FRAMES)
        mode = SQLITE_CHECKPOINT_RESTART;
    else if (s->frames < PASSIVE_FRAMES)
        return;
    /* A reader may keep a RESTART from finishing: don't wait for it, there is a next time. */
    sqlite3_busy_timeout(s->db, 0);
    int code = sqlite3_wal_checkpoint_v2(s->db, NULL, mode, &left, NULL);
    sqlite3_busy_timeout(s->db, 5000);
    if (code == SQLITE_OK)
        s->frames = 0;
}

/* ---- batches ---- */

static void bind_text(sqlite3_stmt *q, int i, struct span v)
{
    if (v.ptr != NULL)
        sqlite3_bind_text64(q, i, v.ptr, v.len, SQLITE_STATIC, SQLITE_UTF8);
}

static void bind_blob(sqlite3_stmt *q, int i, const void *p, size_t n)
{
    if (p != NULL)
        sqlite3_bind_blob64(q, i, n > 0 ? p : "", n, SQLITE_STATIC);
}

static void bind_string(sqlite3_stmt *q, int i, const char *v)
{
    if (v != NULL)
        sqlite3_bind_text(q, i, v, -1, SQLITE_STATIC);
}

static void bind_batch(sqlite3_stmt *q, const struct batch *b)
{
    sqlite3_bind_int64(q, 1, b->no);
    bind_string(q, 2, b->id);
    sqlite3_bind_int(q, 3, (int)b->state);
    sqlite3_bind_int64(q, 4, b->pages);
    sqlite3_bind_int64(q, 5, (int64_t)b->total);
    sqlite3_bind_int64(q, 6, (int64_t)b->succeeded);
    sqlite3_bind_int64(q, 7, (int64_t)b->failed);
    sqlite3_bind_int64(q, 8, (int64_t)b->cancelled);
    sqlite3_bind_int64(q, 9, (int64_t)b->bytes_received);
    sqlite3_bind_int64(q, 10, b->created_ms);
    sqlite3_bind_int64(q, 11, b->started_ms);
    sqlite3_bind_int64(q, 12, b->ended_ms);
    sqlite3_bind_int64(q, 13, b->max_parallel);
    sqlite3_bind_int64(q, 14, b->max_per_host);
    sqlite3_bind_int64(q, 15, b->max_redirects);
    bind_blob(q, 16, b->defaults, b->defaults_len);
    bind_string(q, 17, b->name);
    bind_string(q, 18, b->metadata);
    bind_string(q, 19, b->idem_key);
    bind_blob(q, 20, b->idem_hash, sizeof(b->idem_hash));
}

static char *column_string(sqlite3_stmt *q, int i)
{
    return (char *)(uintptr_t)(const void *)sqlite3_column_text(q, i);
}

/* The row as a batch whose owned parts are SQLite's: copy before the next step. */
static void read_batch(sqlite3_stmt *q, struct batch *b)
{
    memset(b, 0, sizeof(*b));
    b->no = sqlite3_column_int64(q, 0);
    const char *id = column_string(q, 1);
    snprintf(b->id, sizeof(b->id), "%s", id != NULL ? id : "");
    b->state = (enum batch_state)sqlite3_column_int(q, 2);
    b->pages = (uint32_t)sqlite3_column_int64(q, 3);
    b->total = (uint64_t)sqlite3_column_int64(q, 4);
    b->succeeded = (uint64_t)sqlite3_column_int64(q, 5);
    b->failed = (uint64_t)sqlite3_column_int64(q, 6);
    b->cancelled = (uint64_t)sqlite3_column_int64(q, 7);
    b->bytes_received = (uint64_t)sqlite3_column_int64(q, 8);
    b->created_ms = sqlite3_column_int64(q, 9);
    b->started_ms = sqlite3_column_int64(q, 10);
    b->ended_ms = sqlite3_column_int64(q, 11);
    b->max_parallel = (uint32_t)sqlite3_column_int64(q, 12);
    b->max_per_host = (uint32_t)sqlite3_column_int64(q, 13);
    b->max_redirects = (uint32_t)sqlite3_column_int64(q, 14);
    b->defaults = (void *)(uintptr_t)sqlite3_column_blob(q, 15);
    b->defaults_len = (size_t)sqlite3_column_bytes(q, 15);
    b->name = column_string(q, 16);
    b->metadata = column_string(q, 17);
    b->idem_key = column_string(q, 18);
    if (sqlite3_column_bytes(q, 19) == STORE_HASH_SIZE)
        memcpy(b->idem_hash, sqlite3_column_blob(q, 19), STORE_HASH_SIZE);
}

int store_last_batch_no(struct store *s, int64_t *no)
{
    sqlite3_stmt *q;
    int rc = get(s, S_LAST_NO, &q);
    if (rc != 0)
        return rc;
    int code = sqlite3_step(q);
    *no = code == SQLITE_ROW ? sqlite3_column_int64(q, 0) : 0;
    rc = code == SQLITE_ROW ? 0 : fail(s, code);
    put(q);
    return rc;
}

int store_add_batch(struct store *s, const struct batch *b)
{
    sqlite3_stmt *q;
    int rc = get(s, S_ADD_BATCH, &q);
    if (rc != 0)
        return rc;
    bind_batch(q, b);
    return finish(s, q);
}

int store_update_batch(struct store *s, const struct batch *b)
{
    sqlite3_stmt *q;
    int rc = get(s, S_UPDATE_BATCH, &q);
    if (rc != 0)
        return rc;
    bind_batch(q, b);
    rc = finish(s, q);
    return rc == 0 && sqlite3_changes(s->db) == 0 ? E_NOTFOUND : rc;
}

static int each_batch(struct store *s, sqlite3_stmt *q, store_batch_fn *fn, void *arg)
{
    int code, rc = 0;
    while (rc == 0 && (code = sqlite3_step(q)) != SQLITE_DONE) {
        struct batch b;
        if (code != SQLITE_ROW) {
            rc = fail(s, code);
            break;
        }
        read_batch(q, &b);
        rc = fn(arg, &b);
    }
    put(q);
    return rc;
}

int store_open_batches(struct store *s, store_batch_fn *fn, void *arg)
{
    sqlite3_stmt *q;
    int rc = get(s, S_OPEN_BATCHES, &q);
    return rc != 0 ? rc : each_batch(s, q, fn, arg);
}

int store_list(struct store *s, int64_t before, unsigned states, uint32_t limit,
               store_batch_fn *fn, void *arg)
{
    sqlite3_stmt *q;
    int rc = get(s, S_LIST, &q);
    if (rc != 0)
        return rc;
    sqlite3_bind_int64(q, 1, before > 0 ? before : INT64_MAX);
    sqlite3_bind_int64(q, 2, states);
    sqlite3_bind_int64(q, 3, limit);
    return each_batch(s, q, fn, arg);
}

static int find(struct store *s, enum statement i, const char *text, struct batch *out)
{
    sqlite3_stmt *q;
    memset(out, 0, sizeof(*out));
    int rc = get(s, i, &q);
    if (rc != 0)
        return rc;
    bind_string(q, 1, text);
    int code = sqlite3_step(q);
    if (code == SQLITE_ROW) {
        struct batch b;
        read_batch(q, &b);
        rc = batch_copy(out, &b);
    } else {
        rc = code == SQLITE_DONE ? E_NOTFOUND : fail(s, code);
    }
    put(q);
    return rc;
}

int store_find(struct store *s, const char *id, struct batch *out)
{
    return find(s, S_FIND, id, out);
}

int store_find_key(struct store *s, const char *idem_key, struct batch *out)
{
    return find(s, S_FIND_KEY, idem_key, out);
}

/* At most `max` rows of one table; *all: no more are left there. The statements have one upper
 * bound only: given two, SQLite takes the batch's end and walks all of its rows in every step. */
static int remove_rows(struct store *s, enum statement i, int64_t batch, uint32_t max, bool *all)
{
    sqlite3_stmt *q;
    int rc = get(s, i, &q);
    if (rc != 0)
        return rc;
    sqlite3_bind_int64(q, 1, key_of(batch, 0));
    sqlite3_bind_int64(q, 2, end_of(batch));
    sqlite3_bind_int64(q, 3, max - 1);
    rc = finish(s, q);
    *all = (uint32_t)sqlite3_changes(s->db) < max;
    return rc;
}

int store_remove_step(struct store *s, int64_t batch, uint32_t max_rows, bool *done)
{
    static const enum statement tables[] = {S_REMOVE_BODIES, S_REMOVE_RESULTS, S_REMOVE_PAGES};
    *done = false;
    for (size_t i = 0; i < sizeof(tables) / sizeof(tables[0]); i++) {
        bool all;
        int rc = remove_rows(s, tables[i], batch, max_rows > 0 ? max_rows : 1, &all);
        if (rc != 0 || !all)
            return rc;
    }
    sqlite3_stmt *q;
    int rc = get(s, S_REMOVE_BATCH, &q);
    if (rc != 0)
        return rc;
    sqlite3_bind_int64(q, 1, batch);
    rc = finish(s, q);
    *done = rc == 0;
    return rc;
}

/* ---- pages ---- */

/* One batch's lanes apart from another's, so that the index is read for one batch only. */
static int64_t lane_key(int64_t batch, uint64_t lane)
{
    return (int64_t)(lane ^ ((uint64_t)batch * 0x9e3779b97f4a7c15ULL));
}

int store_add_page(struct store *s, int64_t batch, const struct page *p)
{
    sqlite3_stmt *q;
    int rc = get(s, S_ADD_PAGE, &q);
    if (rc != 0)
        return rc;
    sqlite3_bind_int64(q, 1, key_of(batch, p->no));
    sqlite3_bind_int64(q, 2, lane_key(batch, p->lane));
    sqlite3_bind_int64(q, 3, p->count);
    bind_blob(q, 4, p->data, p->len);
    return finish(s, q);
}

int store_page_heads(struct store *s, int64_t batch, int64_t after_no, struct page *v, size_t max,
                     size_t *n)
{
    sqlite3_stmt *q;
    *n = 0;
    int rc = get(s, S_PAGE_HEADS, &q);
    if (rc != 0)
        return rc;
    sqlite3_bind_int64(q, 1, key_after(batch, after_no));
    sqlite3_bind_int64(q, 2, end_of(batch));
    sqlite3_bind_int64(q, 3, (int64_t)max);
    int code = SQLITE_DONE;
    while (*n < max && (code = sqlite3_step(q)) == SQLITE_ROW) {
        v[(*n)++] = (struct page){
            .no = (uint32_t)sqlite3_column_int64(q, 0),
            .lane = (uint64_t)lane_key(batch, (uint64_t)sqlite3_column_int64(q, 1)),
            .count = (uint32_t)sqlite3_column_int64(q, 2),
        };
    }
    rc = code == SQLITE_ROW || code == SQLITE_DONE ? 0 : fail(s, code);
    put(q);
    return rc;
}

/* Copied, so that no statement stays open: one that is holds back the checkpoints. */
static int keep_page(struct store *s, sqlite3_stmt *q, struct page *out)
{
    const void *data = sqlite3_column_blob(q, 2);
    size_t len = (size_t)sqlite3_column_bytes(q, 2);
    if (len > s->page_cap) {
        void *p = realloc(s->page, len);
        if (p == NULL)
            return E_NOMEM;
        s->page = p;
        s->page_cap = len;
    }
    if (len > 0)
        memcpy(s->page, data, len);
    out->data = s->page;
    out->len = len;
    return 0;
}

int store_lane_page(struct store *s, int64_t batch, uint64_t lane, int64_t after_no,
                    struct page *out)
{
    sqlite3_stmt *q;
    memset(out, 0, sizeof(*out));
    int rc = get(s, S_LANE_PAGE, &q);
    if (rc != 0)
        return rc;
    sqlite3_bind_int64(q, 1, lane_key(batch, lane));
    sqlite3_bind_int64(q, 2, key_after(batch, after_no));
    sqlite3_bind_int64(q, 3, end_of(batch));
    int code = sqlite3_step(q);
    if (code == SQLITE_ROW) {
        out->no = (uint32_t)sqlite3_column_int64(q, 0);
        out->lane = lane;
        out->count = (uint32_t)sqlite3_column_int64(q, 1);
        rc = keep_page(s, q, out);
    } else {
        rc = code == SQLITE_DONE ? E_NOTFOUND : fail(s, code);
    }
    put(q);
    return rc;
}

/* ---- results ---- */

/* From a file, in pieces: it may be large. */
static int add_spilled_body(struct store *s, int64_t id, const struct result *r)
{
    sqlite3_stmt *q;
    sqlite3_blob *blob = NULL;
    char *piece = NULL;
    int rc = get(s, S_ADD_BODY_ZERO, &q);
    if (rc != 0)
        return rc;
    sqlite3_bind_int64(q, 1, id);
    sqlite3_bind_int64(q, 2, (int64_t)r->body_len);
    rc = finish(s, q);
    if (rc != 0)
        return rc;
    piece = malloc(BLOB_PIECE);
    if (piece == NULL)
        return E_NOMEM;
    rc = fail(s, sqlite3_blob_open(s->db, "main", "body", "data", id, 1, &blob));
    for (uint64_t at = 0; rc == 0 && at < r->body_len;) {
        uint64_t left = r->body_len - at;
        ssize_t n = pread(r->body_fd, piece, left < BLOB_PIECE ? left : BLOB_PIECE, (off_t)at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            snprintf(s->error, sizeof(s->error), "reading a spilled body: %s",
                     n == 0 ? "it is shorter than expected" : strerror(errno));
            rc = E_IO;
            break;
        }
        rc = fail(s, sqlite3_blob_write(blob, piece, (int)n, (int)at));
        at += (uint64_t)n;
    }
    sqlite3_blob_close(blob);
    free(piece);
    return rc;
}

static int add_body(struct store *s, int64_t id, const struct result *r)
{
    if (r->body_len == 0)
        return 0;
    if (r->body_fd >= 0)
        return add_spilled_body(s, id, r);
    sqlite3_stmt *q;
    int rc = get(s, S_ADD_BODY, &q);
    if (rc != 0)
        return rc;
    sqlite3_bind_int64(q, 1, id);
    bind_blob(q, 2, r->body.ptr, r->body.len);
    return finish(s, q);
}

int store_add_result(struct store *s, int64_t batch, const struct result *r)
{
    sqlite3_stmt *q;
    int rc = get(s, S_ADD_RESULT, &q);
    if (rc != 0)
        return rc;
    int64_t id = key_of(batch, r->n);
    sqlite3_bind_int64(q, 1, id);
    sqlite3_bind_int64(q, 2, key_of(batch, r->index));
    sqlite3_bind_int(q, 3, (int)r->status);
    sqlite3_bind_int(q, 4, r->http_status);
    sqlite3_bind_int(q, 5, r->http_version);
    sqlite3_bind_int(q, 6, r->error);
    bind_text(q, 7, r->error_message);
    sqlite3_bind_int64(q, 8, r->attempts);
    sqlite3_bind_int(q, 9, r->truncated);
    bind_text(q, 10, r->url);
    bind_text(q, 11, r->final_url);
    bind_text(q, 12, r->custom_id);
    bind_blob(q, 13, r->headers.ptr, r->headers.len);
    bind_blob(q, 14, r->redirects.ptr, r->redirects.len);
    bind_text(q, 15, r->remote_ip);
    bind_blob(q, 16, r->timing_us, sizeof(r->timing_us));
    sqlite3_bind_int64(q, 17, r->completed_ms);
    sqlite3_bind_int64(q, 18, (int64_t)r->body_len);
    sqlite3_bind_int(q, 19, r->body.ptr != NULL || r->body_fd >= 0);
    rc = finish(s, q);
    return rc != 0 ? rc : add_body(s, id, r);
}

int store_done(struct store *s, int64_t batch, store_done_fn *fn, void *arg, uint64_t *last_n)
{
    sqlite3_stmt *q;
    *last_n = 0;
    int rc = get(s, S_DONE, &q);
    if (rc != 0)
        return rc;
    sqlite3_bind_int64(q, 1, key_of(batch, 0));
    sqlite3_bind_int64(q, 2, end_of(batch));
    int code;
    while ((code = sqlite3_step(q)) == SQLITE_ROW) {
        rc = fn(arg, (uint64_t)sqlite3_column_int64(q, 0) & UINT32_MAX,
                (enum result_status)sqlite3_column_int(q, 1),
                (uint64_t)sqlite3_column_int64(q, 2));
        if (rc != 0)
            break;
    }
    if (rc == 0 && code != SQLITE_DONE)
        rc = fail(s, code);
    put(q);
    if (rc == 0)
        rc = get(s, S_LAST_N, &q);
    if (rc != 0)
        return rc;
    sqlite3_bind_int64(q, 1, key_of(batch, 0));
    sqlite3_bind_int64(q, 2, end_of(batch));
    code = sqlite3_step(q);
    if (code == SQLITE_ROW)
        *last_n = (uint64_t)sqlite3_column_int64(q, 0) & UINT32_MAX;
    else
        rc = fail(s, code);
    put(q);
    return rc;
}

static struct span column_span(sqlite3_stmt *q, int i)
{
    struct span v = {0};
    if (sqlite3_column_type(q, i) == SQLITE_NULL)
        return v;
    const void *p = sqlite3_column_blob(q, i);
    v.len = (size_t)sqlite3_column_bytes(q, i);
    v.ptr = p != NULL ? p : "";
    return v;
}

/* body.ptr is set exactly when there is a body, of body_len bytes: only that it exists. */
static void read_result(sqlite3_stmt *q, struct result *r)
{
    memset(r, 0, sizeof(*r));
    r->n = (uint64_t)sqlite3_column_int64(q, 0) & UINT32_MAX;
    r->index = (uint64_t)sqlite3_column_int64(q, 1) & UINT32_MAX;
    r->status = (enum result_status)sqlite3_column_int(q, 2);
    r->http_status = sqlite3_column_int(q, 3);
    r->http_version = sqlite3_column_int(q, 4);
    r->error = sqlite3_column_int(q, 5);
    r->error_message = column_span(q, 6);
    r->attempts = (uint32_t)sqlite3_column_int64(q, 7);
    r->truncated = sqlite3_column_int(q, 8) != 0;
    r->url = column_span(q, 9);
    r->final_url = column_span(q, 10);
    r->custom_id = column_span(q, 11);
    r->headers = column_span(q, 12);
    r->redirects = column_span(q, 13);
    r->remote_ip = column_span(q, 14);
    struct span timing = column_span(q, 15);
    if (timing.len == sizeof(r->timing_us))
        memcpy(r->timing_us, timing.ptr, timing.len);
    r->completed_ms = sqlite3_column_int64(q, 16);
    r->body_len = (uint64_t)sqlite3_column_int64(q, 17);
    r->body = sqlite3_column_int(q, 18) ? (struct span){"", 0} : (struct span){0};
    r->body_fd = -1;
}

static enum statement query_of(const struct result_query *w)
{
    if (w->order == ORDER_INDEX)
        return S_RESULTS_INDEX;
    if (w->custom_id.ptr != NULL)
        return S_RESULTS_CUSTOM;
    return w->status > 0 ? S_RESULTS_BAD : S_RESULTS;
}

static bool fits(const struct result_query *w, const struct result *r)
{
    if (w->status >= 0 && (int)r->status != w->status)
        return false;
    return w->custom_id.ptr == NULL ||
           (r->custom_id.ptr != NULL && r->custom_id.len == w->custom_id.len &&
            memcmp(r->custom_id.ptr, w->custom_id.ptr, w->custom_id.len) == 0);
}

int store_results(struct store *s, int64_t batch, const struct result_query *q,
                  store_result_fn *fn, void *arg, int64_t *next, bool *more)
{
    sqlite3_stmt *st;
    *next = q->after;
    *more = false;
    enum statement i = query_of(q);
    int rc = get(s, i, &st);
    if (rc != 0)
        return rc;
    int64_t first = q->order == ORDER_INDEX ? -1 : 0;
    sqlite3_bind_int64(st, 1, key_after(batch, q->after >= 0 ? q->after : first));
    sqlite3_bind_int64(st, 2, end_of(batch));
    sqlite3_bind_int64(st, 3, (int64_t)q->scan_limit + 1); /* one more shows whether there is */
    if (i == S_RESULTS_BAD)
        sqlite3_bind_int(st, 4, q->status);
    else if (i == S_RESULTS_CUSTOM)
        bind_text(st, 4, q->custom_id);
    uint32_t given = 0, seen = 0;
    int code;
    while ((code = sqlite3_step(st)) == SQLITE_ROW) {
        struct result r;
        if (given == q->limit || seen == q->scan_limit || rc == 1) {
            *more = true;
            break;
        }
        read_result(st, &r);
        seen++;
        *next = q->order == ORDER_INDEX ? (int64_t)r.index : (int64_t)r.n;
        if (!fits(q, &r))
            continue;
        given++;
        rc = fn(arg, &r);
        if (rc < 0)
            break;
    }
    if (rc >= 0)
        rc = code == SQLITE_ROW || code == SQLITE_DONE ? 0 : fail(s, code);
    put(st);
    return rc;
}

int store_result(struct store *s, int64_t batch, uint64_t index, store_result_fn *fn, void *arg)
{
    sqlite3_stmt *q;
    if (index > UINT32_MAX)
        return E_NOTFOUND;
    int rc = get(s, S_RESULT_ONE, &q);
    if (rc != 0)
        return rc;
    sqlite3_bind_int64(q, 1, key_of(batch, index));
    int code = sqlite3_step(q);
    if (code == SQLITE_ROW) {
        struct result r;
        read_result(q, &r);
        rc = fn(arg, &r);
    } else {
        rc = code == SQLITE_DONE ? E_NOTFOUND : fail(s, code);
    }
    put(q);
    return rc;
}

int store_body_read(struct store *s, int64_t batch, uint64_t n, uint64_t offset, void *buf,
                    size_t len, size_t *got)
{
    sqlite3_blob *blob = NULL;
    *got = 0;
    int code = sqlite3_blob_open(s->db, "main", "body", "data", key_of(batch, n), 0, &blob);
    if (code == SQLITE_ERROR) { /* no such row: an empty body, or removed */
        sqlite3_blob_close(blob);
        return E_NOTFOUND;
    }
    int rc = fail(s, code);
    if (rc == 0) {
        uint64_t size = (uint64_t)sqlite3_blob_bytes(blob);
        uint64_t left = offset < size ? size - offset : 0;
        if (len > left)
            len = (size_t)left;
        if (len > INT_MAX)
            len = INT_MAX;
        if (len > 0)
            rc = fail(s, sqlite3_blob_read(blob, buf, (int)len, (int)offset));
        if (rc == 0)
            *got = len;
    }
    sqlite3_blob_close(blob);
    return rc;
}
