/* What makes the database smaller: batches that expire, the removal of rows in steps, and free pages
 * that go back to the file system; see sqlite.c. */
#include "storage/sqlite_int.h"

/* ---- retention ---- */

int store_last_time(struct store *s, int64_t *ms)
{
    return sq_value(s, S_LAST_TIME, ms);
}

void store_set_horizon(struct store *s, const struct store_horizon *h)
{
    s->horizon = *h;
}

int64_t store_expires(const struct store_horizon *h, const struct batch *b)
{
    int64_t after = h->retain_ms;
    if (b->expires_after_s > 0 && (after == 0 || after / 1000 > b->expires_after_s))
        after = (int64_t)b->expires_after_s * 1000;
    return after > 0 && b->ended_ms < INT64_MAX - after ? b->ended_ms + after : INT64_MAX;
}

int64_t sq_ended_before(const struct store_horizon *h)
{
    return h->retain_ms > 0 && h->now_ms > INT64_MIN + h->retain_ms ? h->now_ms - h->retain_ms
                                                                    : INT64_MIN;
}

/* The batches of one index whose time is up to `upto`. *next: the first later time. */
static int earliest(struct store *s, enum statement i, int64_t upto, int64_t *no, size_t max,
                    size_t *n, int64_t *next)
{
    sqlite3_stmt *q;
    *n = 0;
    *next = INT64_MAX;
    int rc = sq_get(s, i, &q);
    if (rc != 0)
        return rc;
    sqlite3_bind_int64(q, 1, (int64_t)max + 1);
    int code;
    while ((code = sqlite3_step(q)) == SQLITE_ROW) {
        int64_t when = sqlite3_column_int64(q, 1);
        if (when > upto || *n == max) {
            *next = when;
            break;
        }
        no[(*n)++] = sqlite3_column_int64(q, 0);
    }
    rc = code == SQLITE_ROW || code == SQLITE_DONE ? 0 : sq_fail(s, code);
    sq_put(q);
    return rc;
}

int store_mark_deleted(struct store *s, int64_t batch)
{
    sqlite3_stmt *q;
    int rc = sq_get(s, S_MARK_DELETED, &q);
    if (rc != 0)
        return rc;
    sqlite3_bind_int64(q, 1, batch);
    rc = sq_finish(s, q);
    return rc == 0 && sqlite3_changes(s->db) == 0 ? E_NOTFOUND : rc;
}

static int mark_all(struct store *s, const int64_t *no, size_t n)
{
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < n; i++)
        rc = store_mark_deleted(s, no[i]);
    return rc;
}

int store_expire(struct store *s, int64_t *no, size_t max, size_t *n, int64_t *next_ms)
{
    const struct store_horizon *h = &s->horizon;
    int64_t ended = INT64_MAX, own = INT64_MAX;
    size_t more = 0;
    *n = 0;
    int rc = 0;
    if (h->retain_ms > 0) {
        rc = earliest(s, S_BY_END, sq_ended_before(h), no, max, n, &ended);
        if (rc == 0)
            rc = mark_all(s, no, *n);
        if (ended != INT64_MAX)
            ended += h->retain_ms;
    }
    /* Those that were found above have left this index. */
    if (rc == 0)
        rc = earliest(s, S_BY_EXPIRY, h->now_ms, no + *n, max - *n, &more, &own);
    if (rc == 0)
        rc = mark_all(s, no + *n, more);
    *n += more;
    *next_ms = ended < own ? ended : own;
    return rc;
}

/* ---- removing ---- */

/* The last of the batch's rows, from its first on, that are removed in one step. */
static int cut(struct store *s, enum statement i, int64_t batch, uint32_t max_rows,
               uint64_t max_bytes, int64_t *last, bool *any)
{
    sqlite3_stmt *q;
    uint64_t bytes = 0;
    *any = false;
    int rc = sq_get(s, i, &q);
    if (rc != 0)
        return rc;
    sqlite3_bind_int64(q, 1, sq_key(batch, 0));
    sqlite3_bind_int64(q, 2, sq_end(batch));
    sqlite3_bind_int64(q, 3, max_rows > 0 ? max_rows : 1);
    int code;
    while ((code = sqlite3_step(q)) == SQLITE_ROW) {
        bytes += (uint64_t)sqlite3_column_int64(q, 1);
        if (*any && bytes > max_bytes)
            break;
        *last = sqlite3_column_int64(q, 0);
        *any = true;
    }
    rc = code == SQLITE_ROW || code == SQLITE_DONE ? 0 : sq_fail(s, code);
    sq_put(q);
    return rc;
}

static int remove_upto(struct store *s, enum statement i, int64_t batch, int64_t last)
{
    sqlite3_stmt *q;
    int rc = sq_get(s, i, &q);
    if (rc != 0)
        return rc;
    sqlite3_bind_int64(q, 1, sq_key(batch, 0));
    sqlite3_bind_int64(q, 2, last);
    return sq_finish(s, q);
}

/* The statement has one upper bound only: given two, SQLite takes the batch's end and walks all of
 * its rows in every step. */
int sq_remove(struct store *s, enum statement i, int64_t batch, uint32_t max, bool *all)
{
    max = max > 0 ? max : 1;
    sqlite3_stmt *q;
    int rc = sq_get(s, i, &q);
    if (rc != 0)
        return rc;
    sqlite3_bind_int64(q, 1, sq_key(batch, 0));
    sqlite3_bind_int64(q, 2, sq_end(batch));
    sqlite3_bind_int64(q, 3, max - 1);
    rc = sq_finish(s, q);
    *all = (uint32_t)sqlite3_changes(s->db) < max;
    return rc;
}

int store_remove_step(struct store *s, int64_t batch, uint32_t max_rows, uint64_t max_bytes,
                      bool *done)
{
    int64_t last;
    bool any, all;
    *done = false;
    int rc = cut(s, S_CUT_RESULTS, batch, max_rows, max_bytes, &last, &any);
    if (rc == 0 && any) {
        rc = remove_upto(s, S_REMOVE_BODIES, batch, last);
        return rc != 0 ? rc : remove_upto(s, S_REMOVE_RESULTS, batch, last);
    }
    if (rc == 0)
        rc = cut(s, S_CUT_PAGES, batch, max_rows, max_bytes, &last, &any);
    if (rc != 0 || any)
        return rc != 0 ? rc : remove_upto(s, S_REMOVE_PAGES, batch, last);
    rc = sq_remove(s, S_REMOVE_ATTEMPTS, batch, max_rows, &all);
    if (rc != 0 || !all)
        return rc;
    rc = remove_upto(s, S_REMOVE_BODIES, batch, sq_end(batch) - 1); /* of a damaged database */
    if (rc != 0)
        return rc;
    sqlite3_stmt *q;
    rc = sq_get(s, S_REMOVE_BATCH, &q);
    if (rc != 0)
        return rc;
    sqlite3_bind_int64(q, 1, batch);
    rc = sq_finish(s, q);
    *done = rc == 0;
    return rc;
}

/* ---- space ---- */

int store_shrink(struct store *s, uint32_t max_pages, bool *done)
{
    sqlite3_stmt *q;
    int code = SQLITE_ROW;
    int rc = sq_get(s, S_SHRINK, &q);
    if (rc != 0)
        return rc;
    for (uint32_t i = 0; i < max_pages && code == SQLITE_ROW; i++)
        code = sqlite3_step(q); /* a page each */
    *done = code == SQLITE_DONE;
    rc = code == SQLITE_ROW || code == SQLITE_DONE ? 0 : sq_fail(s, code);
    sq_put(q);
    return rc;
}

int store_space(struct store *s, uint64_t *size, uint64_t *unused)
{
    int64_t pages = 0, spare = 0, bytes = 0;
    int rc = sq_value(s, S_PAGE_COUNT, &pages);
    if (rc == 0)
        rc = sq_value(s, S_FREE_COUNT, &spare);
    if (rc == 0)
        rc = sq_value(s, S_PAGE_SIZE, &bytes);
    *size = (uint64_t)(pages * bytes);
    *unused = (uint64_t)(spare * bytes);
    return rc;
}
