/* The rows of results and their bodies; see sqlite.c. */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "storage/sqlite_int.h"

enum { BLOB_PIECE = 256 * 1024 };

/* In pieces: it may be large. */
static int add_spilled_body(struct store *s, int64_t id, const struct result *r)
{
    sqlite3_stmt *q;
    sqlite3_blob *blob = NULL;
    char *piece = NULL;
    int rc = sq_get(s, S_ADD_BODY_ZERO, &q);
    if (rc != 0)
        return rc;
    sqlite3_bind_int64(q, 1, id);
    sqlite3_bind_int64(q, 2, (int64_t)r->body_len);
    rc = sq_finish(s, q);
    if (rc != 0)
        return rc;
    piece = malloc(BLOB_PIECE);
    if (piece == NULL)
        return E_NOMEM;
    rc = sq_fail(s, sqlite3_blob_open(s->db, "main", "body", "data", id, 1, &blob));
    for (uint64_t at = 0; rc == 0 && at < r->body_len;) {
        uint64_t left = r->body_len - at;
        size_t n = left < BLOB_PIECE ? (size_t)left : BLOB_PIECE;
        rc = r->body_read(r->body_arg, at, piece, n);
        if (rc != 0) {
            snprintf(s->error, sizeof(s->error), "a body cannot be read to be stored");
            break;
        }
        rc = sq_fail(s, sqlite3_blob_write(blob, piece, (int)n, (int)at));
        at += n;
    }
    sqlite3_blob_close(blob);
    free(piece);
    return rc;
}

static int add_body(struct store *s, int64_t id, const struct result *r)
{
    if (r->body_len == 0)
        return 0;
    if (r->body_read != NULL)
        return add_spilled_body(s, id, r);
    sqlite3_stmt *q;
    int rc = sq_get(s, S_ADD_BODY, &q);
    if (rc != 0)
        return rc;
    sqlite3_bind_int64(q, 1, id);
    sq_bind_blob(q, 2, r->body.ptr, r->body.len);
    return sq_finish(s, q);
}

int store_add_result(struct store *s, int64_t batch, const struct result *r)
{
    sqlite3_stmt *q;
    int rc = sq_get(s, S_ADD_RESULT, &q);
    if (rc != 0)
        return rc;
    int64_t id = sq_key(batch, r->n);
    sqlite3_bind_int64(q, 1, id);
    sqlite3_bind_int64(q, 2, sq_key(batch, r->index));
    sqlite3_bind_int(q, 3, (int)r->status);
    sqlite3_bind_int(q, 4, r->http_status);
    sqlite3_bind_int(q, 5, r->http_version);
    sqlite3_bind_int(q, 6, r->error);
    sq_bind_text(q, 7, r->error_message);
    sqlite3_bind_int64(q, 8, r->attempts);
    sqlite3_bind_int(q, 9, r->truncated);
    sq_bind_text(q, 10, r->url);
    sq_bind_text(q, 11, r->final_url);
    sq_bind_text(q, 12, r->custom_id);
    sq_bind_blob(q, 13, r->headers.ptr, r->headers.len);
    sq_bind_blob(q, 14, r->redirects.ptr, r->redirects.len);
    sq_bind_text(q, 15, r->remote_ip);
    sq_bind_blob(q, 16, r->timing_us, sizeof(r->timing_us));
    sqlite3_bind_int64(q, 17, r->completed_ms);
    sqlite3_bind_int64(q, 18, (int64_t)r->body_len);
    sqlite3_bind_int(q, 19, r->body.ptr != NULL || r->body_read != NULL);
    rc = sq_finish(s, q);
    return rc != 0 ? rc : add_body(s, id, r);
}

int store_done(struct store *s, int64_t batch, store_done_fn *fn, void *arg, uint64_t *last_n)
{
    sqlite3_stmt *q;
    *last_n = 0;
    int rc = sq_get(s, S_DONE, &q);
    if (rc != 0)
        return rc;
    sqlite3_bind_int64(q, 1, sq_key(batch, 0));
    sqlite3_bind_int64(q, 2, sq_end(batch));
    int code;
    while ((code = sqlite3_step(q)) == SQLITE_ROW) {
        rc = fn(arg, (uint64_t)sqlite3_column_int64(q, 0) & UINT32_MAX,
                (enum result_status)sqlite3_column_int(q, 1), (uint64_t)sqlite3_column_int64(q, 2));
        if (rc != 0)
            break;
    }
    if (rc == 0 && code != SQLITE_DONE)
        rc = sq_fail(s, code);
    sq_put(q);
    if (rc == 0)
        rc = sq_get(s, S_LAST_N, &q);
    if (rc != 0)
        return rc;
    sqlite3_bind_int64(q, 1, sq_key(batch, 0));
    sqlite3_bind_int64(q, 2, sq_end(batch));
    code = sqlite3_step(q);
    if (code == SQLITE_ROW)
        *last_n = (uint64_t)sqlite3_column_int64(q, 0) & UINT32_MAX;
    else
        rc = sq_fail(s, code);
    sq_put(q);
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

int store_results(struct store *s, int64_t batch, const struct result_query *q, store_result_fn *fn,
                  void *arg, int64_t *next, bool *more)
{
    sqlite3_stmt *st;
    *next = q->after;
    *more = false;
    enum statement i = query_of(q);
    int rc = sq_get(s, i, &st);
    if (rc != 0)
        return rc;
    int64_t first = q->order == ORDER_INDEX ? -1 : 0;
    sqlite3_bind_int64(st, 1, sq_after(batch, q->after >= 0 ? q->after : first));
    sqlite3_bind_int64(st, 2, sq_end(batch));
    sqlite3_bind_int64(st, 3, (int64_t)q->scan_limit + 1); /* one more shows whether there is */
    if (i == S_RESULTS_BAD)
        sqlite3_bind_int(st, 4, q->status);
    else if (i == S_RESULTS_CUSTOM)
        sq_bind_text(st, 4, q->custom_id);
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
        rc = code == SQLITE_ROW || code == SQLITE_DONE ? 0 : sq_fail(s, code);
    sq_put(st);
    return rc;
}

int store_result(struct store *s, int64_t batch, uint64_t index, store_result_fn *fn, void *arg)
{
    sqlite3_stmt *q;
    if (index > UINT32_MAX)
        return E_NOTFOUND;
    int rc = sq_get(s, S_RESULT_ONE, &q);
    if (rc != 0)
        return rc;
    sqlite3_bind_int64(q, 1, sq_key(batch, index));
    int code = sqlite3_step(q);
    if (code == SQLITE_ROW) {
        struct result r;
        read_result(q, &r);
        rc = fn(arg, &r);
    } else {
        rc = code == SQLITE_DONE ? E_NOTFOUND : sq_fail(s, code);
    }
    sq_put(q);
    return rc;
}

int store_body_read(struct store *s, int64_t batch, uint64_t n, uint64_t offset, void *buf,
                    size_t len, size_t *got)
{
    sqlite3_blob *blob = NULL;
    *got = 0;
    int code = sqlite3_blob_open(s->db, "main", "body", "data", sq_key(batch, n), 0, &blob);
    if (code == SQLITE_ERROR) { /* no such row: an empty body, or removed */
        sqlite3_blob_close(blob);
        return E_NOTFOUND;
    }
    int rc = sq_fail(s, code);
    if (rc == 0) {
        uint64_t size = (uint64_t)sqlite3_blob_bytes(blob);
        uint64_t left = offset < size ? size - offset : 0;
        if (len > left)
            len = (size_t)left;
        if (len > INT_MAX)
            len = INT_MAX;
        if (len > 0)
            rc = sq_fail(s, sqlite3_blob_read(blob, buf, (int)len, (int)offset));
        if (rc == 0)
            *got = len;
    }
    sqlite3_blob_close(blob);
    return rc;
}
