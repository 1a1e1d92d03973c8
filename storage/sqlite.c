/* The database on SQLite 3.40.1. A connection belongs to one thread; the writer makes every write
 * and every checkpoint (see store.h).
 *
 * Keys: a page is at id = batch << 32 | page number, a result and its body at batch << 32 |
 * completion number, so a batch's rows are one range, appended to at its end. result.key is
 * batch << 32 | index: its unique index is what makes a second result impossible. An attempt is at
 * batch << 32 | index too; its indexes hold all that a search for due ones reads, and index in a
 * column of its own: SQLite would not seek by the key as a second column. */
#define _GNU_SOURCE
#include "storage/sqlite_int.h"
#include "storage/fault.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

/* Frames of the write-ahead log, of 8 KiB each. From PASSIVE_FRAMES on it is folded back, and the next
 * commit begins it anew, if no reader looks at it just then; from RESTART_FRAMES on by waiting for the
 * readers: each is through in some milliseconds, and those that come meanwhile don't use the log. */
#ifndef PASSIVE_FRAMES /* smaller for tests/power */
enum { PASSIVE_FRAMES = 4000, RESTART_FRAMES = 8000 };
#endif
enum {
    RESTART_WAIT_MS = 50,
    STEP_FRAMES = PASSIVE_FRAMES / 2, /* more until it is tried again */
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
    /* 2: rates, priorities, HTTP/2, the retry policy, attempts */
    "ALTER TABLE batch ADD COLUMN rate_per_host INTEGER NOT NULL DEFAULT 0;"
    "ALTER TABLE batch ADD COLUMN priority INTEGER NOT NULL DEFAULT 5;"
    "ALTER TABLE batch ADD COLUMN http_version INTEGER NOT NULL DEFAULT 11;"
    "ALTER TABLE batch ADD COLUMN max_attempts INTEGER NOT NULL DEFAULT 0;"
    "ALTER TABLE batch ADD COLUMN min_backoff INTEGER NOT NULL DEFAULT 0;"
    "ALTER TABLE batch ADD COLUMN max_backoff INTEGER NOT NULL DEFAULT 0;"
    "ALTER TABLE batch ADD COLUMN max_retry_after INTEGER NOT NULL DEFAULT 0;"
    "ALTER TABLE batch ADD COLUMN retry_unsafe INTEGER NOT NULL DEFAULT 0;"
    "ALTER TABLE batch ADD COLUMN retry_status BLOB;"
    "CREATE TABLE attempt(id INTEGER PRIMARY KEY, batch INTEGER NOT NULL, idx INTEGER NOT NULL,"
    " lane INTEGER NOT NULL, due INTEGER NOT NULL, page INTEGER NOT NULL, data BLOB NOT NULL) STRICT;"
    "CREATE INDEX attempt_due ON attempt(batch, due, idx, lane);"
    "CREATE INDEX attempt_lane ON attempt(lane, due, idx, batch);",
    /* 3: paused batches, batches of the failed requests of another */
    "DROP INDEX batch_unfinished;"
    "CREATE INDEX batch_unfinished ON batch(no) WHERE state IN (0,1,2,5,6);"
    "ALTER TABLE batch ADD COLUMN retry_of TEXT;",
    /* 4: retention */
    "ALTER TABLE batch ADD COLUMN expires_after INTEGER NOT NULL DEFAULT 0;"
    "CREATE INDEX batch_ended ON batch(ended) WHERE state IN (3,4);"
    "CREATE INDEX batch_expires ON batch(ended+expires_after*1000)"
    " WHERE state IN (3,4) AND expires_after>0;",
};

/* ---- errors ---- */

/* Of the last write that failed: sqlite3_system_errno may be that of what SQLite did next. */
static int errno_of(sqlite3 *db)
{
    sqlite3_file *log = NULL;
    int err = 0;
    if (sqlite3_file_control(db, "main", SQLITE_FCNTL_JOURNAL_POINTER, &log) == SQLITE_OK &&
        log != NULL && log->pMethods != NULL)
        (void)log->pMethods->xFileControl(log, SQLITE_FCNTL_LAST_ERRNO, &err);
    if (err == 0)
        (void)sqlite3_file_control(db, "main", SQLITE_FCNTL_LAST_ERRNO, &err);
    return err != 0 ? err : sqlite3_system_errno(db);
}

static int map_error(sqlite3 *db, int code)
{
    if (code == SQLITE_IOERR_READ || code == SQLITE_IOERR_SHORT_READ)
        return E_IO;
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
    case SQLITE_READONLY: return E_READONLY;
    default: return db != NULL ? err_of_errno(errno_of(db)) : E_IO;
    }
}

int sq_fail(struct store *s, int code)
{
    int rc = map_error(s->db, code);
    if (code == SQLITE_IOERR_FSYNC || code == SQLITE_IOERR_DIR_FSYNC)
        s->unsure = true;
    if (rc != 0)
        snprintf(s->error, sizeof(s->error), "%s (%d)", sqlite3_errmsg(s->db), code);
    return rc;
}

const char *store_error(const struct store *s)
{
    return s->error;
}

int sq_get(struct store *s, enum statement i, sqlite3_stmt **out)
{
    *out = NULL;
    if (s->stmt[i] == NULL) {
        int rc = sqlite3_prepare_v3(s->db, sql_of[i], -1, SQLITE_PREPARE_PERSISTENT, &s->stmt[i],
                                    NULL);
        if (rc != SQLITE_OK)
            return sq_fail(s, rc);
    }
    *out = s->stmt[i];
    return 0;
}

/* A reset statement holds no snapshot and points to no memory of the caller's. */
void sq_put(sqlite3_stmt *q)
{
    sqlite3_reset(q);
    sqlite3_clear_bindings(q);
}

/* Runs a statement that gives no rows. */
int sq_finish(struct store *s, sqlite3_stmt *q)
{
    int code = sqlite3_step(q);
    int rc = code == SQLITE_DONE || code == SQLITE_ROW ? 0 : sq_fail(s, code);
    sq_put(q);
    return rc;
}

int sq_value(struct store *s, enum statement i, int64_t *value)
{
    sqlite3_stmt *q;
    int rc = sq_get(s, i, &q);
    if (rc != 0)
        return rc;
    int code = sqlite3_step(q);
    *value = code == SQLITE_ROW ? sqlite3_column_int64(q, 0) : 0;
    rc = code == SQLITE_ROW ? 0 : sq_fail(s, code);
    sq_put(q);
    return rc;
}

int sq_run(struct store *s, enum statement i)
{
    sqlite3_stmt *q;
    int rc = sq_get(s, i, &q);
    return rc != 0 ? rc : sq_finish(s, q);
}

int64_t sq_key(int64_t batch, uint64_t n)
{
    return (int64_t)(((uint64_t)batch << 32) | (n & UINT32_MAX));
}

/* Above every key of the batch; the last batch number's would not fit. */
int64_t sq_end(int64_t batch)
{
    return batch < INT32_MAX ? sq_key(batch + 1, 0) : INT64_MAX;
}

/* The key to read on from. A cursor may be any number: one past the batch's last key must not
 * overflow into the rows of another. */
int64_t sq_after(int64_t batch, int64_t after)
{
    return sq_key(batch, 0) + (after < UINT32_MAX ? after : UINT32_MAX);
}

void sq_bind_text(sqlite3_stmt *q, int i, struct span v)
{
    if (v.ptr != NULL)
        sqlite3_bind_text64(q, i, v.ptr, v.len, SQLITE_STATIC, SQLITE_UTF8);
}

void sq_bind_blob(sqlite3_stmt *q, int i, const void *p, size_t n)
{
    if (p != NULL)
        sqlite3_bind_blob64(q, i, n > 0 ? p : "", n, SQLITE_STATIC);
}

void sq_bind_string(sqlite3_stmt *q, int i, const char *v)
{
    if (v != NULL)
        sqlite3_bind_text(q, i, v, -1, SQLITE_STATIC);
}

/* ---- open and close ---- */

static int on_commit(void *arg, sqlite3 *db, const char *name, int frames)
{
    struct store *s = arg;
    (void)db;
    (void)name;
    if (sq_log_is_new(s) || frames < s->frames) { /* it may well be longer than the one before */
        s->checkpoint_at = PASSIVE_FRAMES;
        s->folded = 0;
    }
    s->frames = frames;
    return SQLITE_OK;
}

/* The entry of `path` in the directory above it, which SQLite does not know of. */
static int sync_entry(const char *path)
{
    char above[PATH_MAX];
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/')
        n--;
    while (n > 0 && path[n - 1] != '/')
        n--;
    snprintf(above, sizeof(above), "%.*s", n > 0 ? (int)n : 1, n > 0 ? path : ".");
    while (n > 1 && above[n - 1] == '/')
        above[--n] = '\0';
    int fd = open(above, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) /* not ours to read, so not made by us either */
        return errno == EACCES ? 0 : E_IO;
    int rc = fsync(fd) == 0 || errno == EINVAL || errno == EROFS ? 0 : E_IO;
    close(fd);
    return rc;
}

/* With those above it, so that no loss of power takes the directory with all that is in it. */
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
        bool made = mkdir(path, 0700) == 0;
        if (!made && errno != EEXIST)
            return errno == ENOSPC ? E_FULL : E_IO;
        if ((made || c == '\0') && sync_entry(path) != 0)
            return E_IO;
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

int sq_pragma_int(struct store *s, const char *sql, int *value)
{
    sqlite3_stmt *q;
    int code = sqlite3_prepare_v2(s->db, sql, -1, &q, NULL);
    if (code == SQLITE_OK)
        code = sqlite3_step(q);
    *value = code == SQLITE_ROW ? sqlite3_column_int(q, 0) : 0;
    int rc = code == SQLITE_ROW ? 0 : sq_fail(s, code);
    sqlite3_finalize(q);
    return rc;
}

static int exec(struct store *s, const char *sql)
{
    return sq_fail(s, sqlite3_exec(s->db, sql, NULL, NULL, NULL));
}

int sq_check_version(struct store *s, int *version)
{
    int application, tables;
    int rc = sq_pragma_int(s, "PRAGMA user_version", version);
    if (rc == 0)
        rc = sq_pragma_int(s, "PRAGMA application_id", &application);
    if (rc == 0)
        rc = sq_pragma_int(s, "SELECT count(*) FROM sqlite_schema", &tables);
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

int sq_migrate(struct store *s, int version)
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
    FAULT_POINT("store.schema.written");
    if (rc == 0)
        rc = exec(s, "COMMIT");
    FAULT_POINT("store.schema.committed");
    return rc;
}

static int set_up(struct store *s, bool unclean)
{
    sqlite3_extended_result_codes(s->db, 1);
    sqlite3_busy_timeout(s->db, 5000);
    sqlite3_db_config(s->db, SQLITE_DBCONFIG_DEFENSIVE, 1, NULL);
    sqlite3_db_config(s->db, SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0, NULL);
    /* A reader never writes the log back, nor does a writer that finds another's database. */
    sqlite3_db_config(s->db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, NULL);
    if (!s->writer)
        return exec(s, "PRAGMA cache_size=-4096; PRAGMA temp_store=MEMORY; PRAGMA mmap_size=0;"
                       "PRAGMA wal_autocheckpoint=0; PRAGMA query_only=1");
    /* First of all: auto_vacuum and journal_mode write to the file, whosever it is. */
    int version;
    int rc = sq_check_version(s, &version);
    if (rc != 0)
        return rc;
    /* page_size and auto_vacuum count only before the first write. Debian's secure_delete would
     * overwrite every row that goes. */
    if (version == 0)
        rc = exec(s, "PRAGMA page_size=8192; PRAGMA auto_vacuum=INCREMENTAL");
    if (rc == 0)
        rc = exec(s, "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA secure_delete=OFF;"
                     "PRAGMA cache_size=-4096; PRAGMA temp_store=MEMORY; PRAGMA mmap_size=0;"
                     "PRAGMA wal_autocheckpoint=0; PRAGMA journal_size_limit=67108864");
    if (rc == 0)
        rc = sq_migrate(s, version);
    if (rc == 0)
        rc = sq_verify_start(s, unclean);
    if (rc != 0)
        return rc;
    s->durable = true;
    s->folds = true;
    sqlite3_db_config(s->db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 0, NULL);
    sqlite3_wal_hook(s->db, on_commit, s);
    return 0;
}

/* What is damaged, and what to do. */
static void explain(struct store *s, const char *dir, int rc)
{
    char cause[sizeof(s->error)];
    snprintf(cause, sizeof(cause), "%s", s->error);
    if (rc == E_CORRUPT && strstr(cause, "batchfetch") == NULL)
        snprintf(
            s->error, sizeof(s->error),
            "the database in %.120s is damaged: %.160s. --check tells more. Restore a backup, or "
            "move the directory away to begin anew",
            dir, cause);
    else if (rc != E_TOONEW && rc != E_CORRUPT && strstr(cause, dir) == NULL)
        snprintf(s->error, sizeof(s->error), "the database in %.150s: %.200s", dir, cause);
}

/* Whether the last writer did not close it: that leaves no log. */
static bool left_open(const char *path)
{
    char log[PATH_MAX];
    struct stat st;
    return snprintf(log, sizeof(log), "%s-wal", path) < (int)sizeof(log) && stat(log, &st) == 0 &&
           st.st_size > 0;
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
    s->checkpoint_at = PASSIVE_FRAMES;
    s->horizon.now_ms = INT64_MIN;
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
    rc = code == SQLITE_OK ? set_up(s, s->writer && left_open(path)) : sq_fail(s, code);
    umask(old);
    if (rc != 0 && s->error[0] == '\0')
        snprintf(s->error, sizeof(s->error), "%.200s cannot be opened", path);
    if (rc != 0)
        explain(s, dir, rc);
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
    if (s->unsure)                 /* the log stays, for the next start to look at */
        sqlite3_db_config(s->db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, NULL);
    FAULT_POINT("store.close.before");
    sqlite3_close(s->db);
    FAULT_POINT("store.close.after");
    if (s->lock_fd >= 0)
        close(s->lock_fd);
    free(s->page);
    free(s);
}

/* ---- transactions ---- */

int store_begin(struct store *s, bool durable)
{
    int rc = sq_mend(s);
    if (rc == 0 && durable != s->durable) {
        rc = sq_run(s, durable ? S_SYNC_FULL : S_SYNC_NORMAL);
        if (rc == 0)
            s->durable = durable;
    }
    return rc != 0 ? rc : sq_run(s, S_BEGIN);
}

int store_read_begin(struct store *s)
{
    return sq_run(s, S_BEGIN_READ);
}

void store_read_end(struct store *s)
{
    store_rollback(s); /* nothing was written */
}

void store_rollback(struct store *s)
{
    if (sqlite3_get_autocommit(s->db))
        return;
    char error[sizeof(s->error)];
    memcpy(error, s->error, sizeof(error)); /* the cause, not the rollback's own */
    if (sq_run(s, S_ROLLBACK) == 0 || error[0] != '\0')
        memcpy(s->error, error, sizeof(error));
}

int store_commit(struct store *s)
{
    if (s->durable)
        FAULT_POINT("store.commit.synced.before");
    else
        FAULT_POINT("store.commit.before");
    int rc = sq_run(s, S_COMMIT);
    if (s->durable)
        FAULT_POINT("store.commit.synced.after");
    else
        FAULT_POINT("store.commit.after");
    if (rc == 0)
        return 0;
    store_rollback(s);
    char error[sizeof(s->error)];
    memcpy(error, s->error, sizeof(error));
    if (sq_mend(s) == 0) /* before anybody is told of the failure */
        memcpy(s->error, error, sizeof(error));
    return rc;
}

int store_probe(struct store *s)
{
    char sql[48];
    snprintf(sql, sizeof(sql), "PRAGMA user_version=%d", SCHEMA_VERSION);
    (void)sqlite3_db_release_memory(s->db); /* so that it is read from the disk too */
    int rc = store_begin(s, true);
    if (rc == 0)
        rc = exec(s, sql); /* writes the first page, whatever stood there */
    if (rc == 0)
        return store_commit(s);
    store_rollback(s);
    return rc;
}

bool store_checkpoint_due(const struct store *s, bool force)
{
    return force || s->frames >= s->checkpoint_at;
}

void store_checkpoint(struct store *s, bool force)
{
    int mode = SQLITE_CHECKPOINT_PASSIVE, frames = 0, folded = -1;
    if (!store_checkpoint_due(s, force))
        return;
    if (force)
        mode = SQLITE_CHECKPOINT_TRUNCATE;
    else if (s->frames >= RESTART_FRAMES)
        mode = SQLITE_CHECKPOINT_RESTART;
    if (sq_mend(s) != 0)
        return;
    sqlite3_busy_timeout(s->db, mode == SQLITE_CHECKPOINT_RESTART ? RESTART_WAIT_MS : 0);
    FAULT_POINT("store.checkpoint.before");
    int code = sqlite3_wal_checkpoint_v2(s->db, NULL, mode, &frames, &folded);
    FAULT_POINT("store.checkpoint.after");
    sqlite3_busy_timeout(s->db, 5000);
    if (folded >= 0)
        s->folded = folded;
    if (code == SQLITE_OK && mode != SQLITE_CHECKPOINT_PASSIVE) {
        s->frames = 0;
        s->checkpoint_at = PASSIVE_FRAMES;
    } else {
        s->checkpoint_at = s->frames + STEP_FRAMES;
    }
    if (code == SQLITE_IOERR_FSYNC)
        s->unsure = true;
    s->checkpoints += code == SQLITE_OK;
    s->checkpoints_failed += code != SQLITE_OK;
}
