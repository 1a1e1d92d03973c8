/* Looks for damage: quickly at every start, and thoroughly for --check.
 *
 * At a start: the database must open, be of our version, and have the two ends of every table and
 * index, which takes some pages each, whatever their size. After a stop that was not clean (a log is
 * left) also SQLite's quick_check, which reads the whole file, where that is short: up to
 * QUICK_BYTES it takes some tenths of a second. Larger files wait for --check: a start must not. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "storage/sqlite_int.h"

enum { QUICK_BYTES = 64 * 1024 * 1024, SHOWN = 20 };

static const char ENDS[] =
    "SELECT (SELECT min(no) FROM batch),(SELECT max(no) FROM batch),(SELECT max(id) FROM batch),"
    "(SELECT min(id) FROM page),(SELECT max(id) FROM page),"
    "(SELECT min(lane) FROM page INDEXED BY page_lane),"
    "(SELECT max(lane) FROM page INDEXED BY page_lane),"
    "(SELECT min(id) FROM result),(SELECT max(id) FROM result),"
    "(SELECT min(key) FROM result INDEXED BY result_key),"
    "(SELECT max(key) FROM result INDEXED BY result_key),"
    "(SELECT min(id) FROM body),(SELECT max(id) FROM body),"
    "(SELECT min(id) FROM attempt),(SELECT max(id) FROM attempt),"
    "(SELECT min(batch) FROM attempt INDEXED BY attempt_due),"
    "(SELECT max(batch) FROM attempt INDEXED BY attempt_due)";

/* The first row's first column as text, if it is any. Returns 0 or what sq_fail says. */
static int ask(struct store *s, const char *sql, char *text, size_t size)
{
    sqlite3_stmt *q;
    int code = sqlite3_prepare_v2(s->db, sql, -1, &q, NULL);
    if (code == SQLITE_OK)
        code = sqlite3_step(q);
    const unsigned char *p = code == SQLITE_ROW ? sqlite3_column_text(q, 0) : NULL;
    snprintf(text, size, "%s", p != NULL ? (const char *)p : "");
    int rc = code == SQLITE_ROW || code == SQLITE_DONE ? 0 : sq_fail(s, code);
    sqlite3_finalize(q);
    return rc;
}

int sq_verify_start(struct store *s, bool unclean)
{
    char text[200];
    int rc = ask(s, ENDS, text, sizeof(text));
    if (rc != 0 || !unclean)
        return rc;
    rc = ask(s, "SELECT page_count*page_size FROM pragma_page_count,pragma_page_size", text,
             sizeof(text));
    if (rc != 0 || strtoll(text, NULL, 10) > QUICK_BYTES)
        return rc;
    rc = ask(s, "PRAGMA quick_check(1)", text, sizeof(text));
    if (rc != 0 || strcmp(text, "ok") == 0)
        return rc;
    for (char *p = text; *p != '\0'; p++)
        *p = *p == '\n' ? ' ' : *p;
    snprintf(s->error, sizeof(s->error), "%s", text);
    return E_CORRUPT;
}

/* ---- thoroughly ---- */

/* Each row that comes out is a fault, as text. */
static const char *const FAULTS[] = {
    "SELECT integrity_check FROM pragma_integrity_check WHERE integrity_check<>'ok'",
    "SELECT 'batch '||id||': '||total||' requests, but its counts sum to '||"
    "(succeeded+failed+cancelled) FROM batch WHERE state IN (3,4) AND "
    "total<>succeeded+failed+cancelled",
    "SELECT 'batch '||b.id||': '||r.n||' results stored, '||total||' expected' FROM batch b JOIN "
    "(SELECT no,(SELECT count(*) FROM result WHERE id>(no<<32) AND id<((no+1)<<32)) n FROM batch) r "
    "ON r.no=b.no WHERE (state IN (3,4) AND r.n<>total) OR (state NOT IN (0,5) AND r.n>total)",
    "SELECT 'batch '||b.id||': its counts are not those of its results' FROM batch b WHERE "
    "state IN (3,4) AND (failed<>(SELECT count(*) FROM result WHERE id>(no<<32) AND "
    "id<((no+1)<<32) AND status=1) OR cancelled<>(SELECT count(*) FROM result WHERE id>(no<<32) "
    "AND id<((no+1)<<32) AND status=2))",
    "SELECT 'batch '||id||': '||n||' of '||total||' requests in '||p||' of '||pages||' pages' FROM "
    "(SELECT *,(SELECT count(*) FROM page WHERE id>=(no<<32) AND id<((no+1)<<32)) p,"
    "(SELECT ifnull(sum(count),0) FROM page WHERE id>=(no<<32) AND id<((no+1)<<32)) n FROM batch) b "
    "WHERE state NOT IN (0,5) AND (p<>pages OR n<>total)",
    "SELECT 'result '||(id&4294967295)||' of batch number '||(id>>32)||' is one of another' "
    "FROM result WHERE key>>32<>id>>32",
    "SELECT 'result '||(id&4294967295)||' of batch number '||(id>>32)||': its body is '||"
    "iif(n IS NULL,'missing',n||' bytes of '||body_len) FROM (SELECT r.id,body_len,"
    "(SELECT length(data) FROM body b WHERE b.id=r.id) n FROM result r WHERE body_len>0) WHERE "
    "n IS NULL OR n<>body_len",
    "SELECT count(*)||' bodies belong to no result' FROM body WHERE id NOT IN (SELECT id FROM "
    "result) HAVING count(*)>0",
    "SELECT count(*)||' pages of requests belong to no batch' FROM page WHERE id>>32 NOT IN (SELECT "
    "no FROM batch) HAVING count(*)>0",
    "SELECT count(*)||' results belong to no batch' FROM result WHERE id>>32 NOT IN (SELECT no FROM "
    "batch) HAVING count(*)>0",
    "SELECT count(*)||' attempts belong to no batch' FROM attempt WHERE batch NOT IN (SELECT no "
    "FROM batch) HAVING count(*)>0",
};

static int each_fault(struct store *s, const char *sql, store_fault_fn *fn, void *arg)
{
    sqlite3_stmt *q;
    int n = 0, code = sqlite3_prepare_v2(s->db, sql, -1, &q, NULL);
    while (code == SQLITE_OK || code == SQLITE_ROW) {
        code = sqlite3_step(q);
        if (code == SQLITE_ROW && n++ < SHOWN)
            fn(arg, (const char *)sqlite3_column_text(q, 0));
    }
    int rc = sq_fail(s, code);
    sqlite3_finalize(q);
    if (rc == E_CORRUPT || rc == E_IO) { /* a fault, too; the others are looked for all the same */
        fn(arg, s->error);
        rc = 0;
        n++;
    }
    return rc != 0 ? rc : n;
}

/* Tables and indexes against those that we make. */
static int check_schema(struct store *s, store_fault_fn *fn, void *arg)
{
    static const char list[] = "SELECT group_concat(x,';') FROM (SELECT type||' '||name||' '||"
                               "ifnull(sql,'') x FROM sqlite_schema ORDER BY type,name)";
    struct store fresh = {0};
    char *text[2] = {NULL, NULL};
    struct store *of[2] = {s, &fresh};
    int code = sqlite3_open_v2(":memory:", &fresh.db,
                               SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX,
                               NULL);
    int rc = sq_fail(&fresh, code);
    if (rc == 0)
        rc = sq_migrate(&fresh, 0);
    for (int i = 0; rc == 0 && i < 2; i++) {
        sqlite3_stmt *q;
        code = sqlite3_prepare_v2(of[i]->db, list, -1, &q, NULL);
        if (code == SQLITE_OK)
            code = sqlite3_step(q);
        if (code == SQLITE_ROW)
            text[i] = strdup((const char *)sqlite3_column_text(q, 0));
        rc = code == SQLITE_ROW ? (text[i] == NULL ? E_NOMEM : 0) : sq_fail(of[i], code);
        sqlite3_finalize(q);
    }
    int n = 0;
    if (rc == 0 && text[0] != NULL && text[1] != NULL && strcmp(text[0], text[1]) != 0) {
        fn(arg, "its tables and indexes are not those of its version");
        n = 1;
    }
    free(text[0]);
    free(text[1]);
    sqlite3_close(fresh.db);
    return rc != 0 ? rc : n;
}

static int verify(struct store *s, store_fault_fn *fn, void *arg, struct store_summary *sum)
{
    char text[64];
    int rc = ask(s, "PRAGMA user_version", text, sizeof(text));
    if (rc != 0)
        return rc;
    sum->version = (int)strtol(text, NULL, 10);
    if (sum->version != SCHEMA_VERSION) { /* only of the present version is it known what to ask */
        int n = each_fault(s, FAULTS[0], fn, arg);
        return n;
    }
    int all = check_schema(s, fn, arg);
    for (size_t i = 0; all >= 0 && i < sizeof(FAULTS) / sizeof(FAULTS[0]); i++) {
        int n = each_fault(s, FAULTS[i], fn, arg);
        all = n < 0 ? n : all + n;
    }
    uint64_t *const out[] = {&sum->batches, &sum->requests, &sum->results};
    static const char *const sums[] = {
        "SELECT count(*) FROM batch WHERE state NOT IN (0,5)",
        "SELECT ifnull(sum(total),0) FROM batch WHERE state NOT IN (0,5)",
        "SELECT count(*) FROM result",
    };
    for (size_t i = 0; all >= 0 && i < 3; i++) {
        if (ask(s, sums[i], text, sizeof(text)) == 0)
            *out[i] = strtoull(text, NULL, 10);
    }
    return all;
}

/* What SQLite makes beside a database that nobody has open. */
struct traces {
    char log[PATH_MAX], index[PATH_MAX];
    bool had_log, had_index;
    int lock; /* >= 0: nobody has it open, nor will before we are done */
};

static void note_traces(struct traces *t, const char *dir)
{
    struct stat st;
    char path[PATH_MAX];
    int n = snprintf(t->log, sizeof(t->log), "%s/batchfetch.db-wal", dir);
    int m = snprintf(t->index, sizeof(t->index), "%s/batchfetch.db-shm", dir);
    int l = snprintf(path, sizeof(path), "%s/lock", dir);
    bool fits = n < PATH_MAX && m < PATH_MAX && l < PATH_MAX;
    t->had_log = !fits || stat(t->log, &st) == 0;
    t->had_index = !fits || stat(t->index, &st) == 0;
    t->lock = fits ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (t->lock >= 0 && flock(t->lock, LOCK_EX | LOCK_NB) != 0) {
        close(t->lock);
        t->lock = -1;
    }
}

static void remove_traces(const struct traces *t)
{
    if (t->lock < 0)
        return;
    if (!t->had_index)
        (void)unlink(t->index);
    if (!t->had_log)
        (void)unlink(t->log);
    close(t->lock);
}

int store_verify(const char *dir, store_fault_fn *fn, void *arg, struct store_summary *sum,
                 char *why, size_t why_size)
{
    struct store *s = NULL;
    struct traces t;
    struct stat st;
    char path[PATH_MAX];
    memset(sum, 0, sizeof(*sum));
    if (snprintf(path, sizeof(path), "%s/batchfetch.db", dir) >= (int)sizeof(path))
        return E_INVAL;
    if (stat(path, &st) != 0 || st.st_size == 0)
        return E_NOTFOUND;
    note_traces(&t, dir);
    int rc = store_open(&s, dir, STORE_READ, why, why_size);
    if (rc == 0) {
        rc = verify(s, fn, arg, sum);
        if (rc < 0)
            snprintf(why, why_size, "%s", store_error(s));
        store_close(s);
    }
    remove_traces(&t);
    return rc;
}
