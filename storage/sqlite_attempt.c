/* The rows of requests that are tried again; see sqlite.c. */
#include <string.h>

#include "storage/sqlite_int.h"

int store_put_attempt(struct store *s, int64_t batch, const struct attempt *a)
{
    sqlite3_stmt *q;
    int rc = sq_get(s, S_PUT_ATTEMPT, &q);
    if (rc != 0)
        return rc;
    sqlite3_bind_int64(q, 1, sq_key(batch, a->at.index));
    sqlite3_bind_int64(q, 2, batch);
    sqlite3_bind_int64(q, 3, sq_lane(batch, a->lane));
    sqlite3_bind_int64(q, 4, a->at.due_ms);
    sqlite3_bind_int64(q, 5, a->page);
    sq_bind_blob(q, 6, a->len > 0 ? a->data : "", a->len);
    sqlite3_bind_int64(q, 7, (int64_t)(a->at.index & UINT32_MAX));
    return sq_finish(s, q);
}

int store_drop_attempt(struct store *s, int64_t batch, uint64_t index)
{
    sqlite3_stmt *q;
    int rc = sq_get(s, S_DROP_ATTEMPT, &q);
    if (rc != 0)
        return rc;
    sqlite3_bind_int64(q, 1, sq_key(batch, index));
    return sq_finish(s, q);
}

int store_attempt(struct store *s, int64_t batch, uint64_t index, struct attempt *out)
{
    sqlite3_stmt *q;
    memset(out, 0, sizeof(*out));
    int rc = sq_get(s, S_ATTEMPT, &q);
    if (rc != 0)
        return rc;
    sqlite3_bind_int64(q, 1, sq_key(batch, index));
    int code = sqlite3_step(q);
    if (code == SQLITE_ROW) {
        out->at.index = index;
        out->lane = (uint64_t)sq_lane(batch, (uint64_t)sqlite3_column_int64(q, 0));
        out->at.due_ms = sqlite3_column_int64(q, 1);
        out->page = (uint32_t)sqlite3_column_int64(q, 2);
        rc = sq_keep(s, q, 3, &out->data, &out->len);
    } else {
        rc = code == SQLITE_DONE ? E_NOTFOUND : sq_fail(s, code);
    }
    sq_put(q);
    return rc;
}

int store_attempts(struct store *s, int64_t batch, store_attempt_fn *fn, void *arg)
{
    sqlite3_stmt *q;
    int rc = sq_get(s, S_ATTEMPTS, &q);
    if (rc != 0)
        return rc;
    sqlite3_bind_int64(q, 1, batch);
    int code;
    while ((code = sqlite3_step(q)) == SQLITE_ROW) {
        rc = fn(arg, (uint64_t)sqlite3_column_int64(q, 0));
        if (rc != 0)
            break;
    }
    if (rc == 0 && code != SQLITE_DONE)
        rc = sq_fail(s, code);
    sq_put(q);
    return rc;
}

int store_attempts_next(struct store *s, int64_t after, int64_t *batch)
{
    sqlite3_stmt *q;
    int rc = sq_get(s, S_ATTEMPTS_NEXT, &q);
    if (rc != 0)
        return rc;
    sqlite3_bind_int64(q, 1, after);
    int code = sqlite3_step(q);
    if (code == SQLITE_ROW)
        *batch = sqlite3_column_int64(q, 0);
    rc = code == SQLITE_ROW ? 0 : code == SQLITE_DONE ? E_NOTFOUND : sq_fail(s, code);
    sq_put(q);
    return rc;
}

static int64_t bounded(uint64_t index)
{
    return index < UINT32_MAX ? (int64_t)index : UINT32_MAX;
}

static void bind_range(sqlite3_stmt *q, struct attempt_mark after, struct attempt_mark upto,
                       size_t max)
{
    sqlite3_bind_int64(q, 2, after.due_ms);
    sqlite3_bind_int64(q, 3, bounded(after.index));
    sqlite3_bind_int64(q, 4, upto.due_ms);
    sqlite3_bind_int64(q, 5, bounded(upto.index));
    sqlite3_bind_int64(q, 6, (int64_t)max);
}

int store_due(struct store *s, int64_t batch, struct attempt_mark after, struct attempt_mark upto,
              struct attempt *v, size_t max, size_t *n)
{
    sqlite3_stmt *q;
    *n = 0;
    int rc = sq_get(s, S_DUE, &q);
    if (rc != 0)
        return rc;
    sqlite3_bind_int64(q, 1, batch);
    bind_range(q, after, upto, max);
    int code = SQLITE_DONE;
    while (*n < max && (code = sqlite3_step(q)) == SQLITE_ROW) {
        v[(*n)++] = (struct attempt){
            .at = {.due_ms = sqlite3_column_int64(q, 0),
                   .index = (uint64_t)sqlite3_column_int64(q, 1)},
            .lane = (uint64_t)sq_lane(batch, (uint64_t)sqlite3_column_int64(q, 2)),
        };
    }
    rc = code == SQLITE_ROW || code == SQLITE_DONE ? 0 : sq_fail(s, code);
    sq_put(q);
    return rc;
}

int store_lane_due(struct store *s, int64_t batch, uint64_t lane, struct attempt_mark after,
                   struct attempt_mark upto, struct attempt *v, size_t max, size_t *n)
{
    sqlite3_stmt *q;
    *n = 0;
    int rc = sq_get(s, S_LANE_DUE, &q);
    if (rc != 0)
        return rc;
    sqlite3_bind_int64(q, 1, sq_lane(batch, lane));
    bind_range(q, after, upto, max);
    int code = SQLITE_DONE;
    while (*n < max && (code = sqlite3_step(q)) == SQLITE_ROW) {
        if (sqlite3_column_int64(q, 2) != batch) /* two lanes' keys are the same: once in 2^64 */
            continue;
        v[(*n)++] = (struct attempt){
            .at = {.due_ms = sqlite3_column_int64(q, 0),
                   .index = (uint64_t)sqlite3_column_int64(q, 1)},
            .lane = lane,
        };
    }
    rc = code == SQLITE_ROW || code == SQLITE_DONE ? 0 : sq_fail(s, code);
    sq_put(q);
    return rc;
}

int store_bound_due(struct store *s, int64_t batch, int64_t latest_ms)
{
    sqlite3_stmt *q;
    int rc = sq_get(s, S_BOUND_DUE, &q);
    if (rc != 0)
        return rc;
    sqlite3_bind_int64(q, 1, batch);
    sqlite3_bind_int64(q, 2, latest_ms);
    return sq_finish(s, q);
}

int store_remove_attempts(struct store *s, int64_t batch, uint32_t max_rows, bool *done)
{
    return sq_remove(s, S_REMOVE_ATTEMPTS, batch, max_rows, done);
}
