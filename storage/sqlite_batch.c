/* The rows of batches and of the pages of their requests; see sqlite.c. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "storage/sqlite_int.h"

static void bind_batch(sqlite3_stmt *q, const struct batch *b)
{
    sqlite3_bind_int64(q, 1, b->no);
    sq_bind_string(q, 2, b->id);
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
    sq_bind_blob(q, 16, b->defaults, b->defaults_len);
    sq_bind_string(q, 17, b->name);
    sq_bind_string(q, 18, b->metadata);
    sq_bind_string(q, 19, b->idem_key);
    sq_bind_blob(q, 20, b->idem_hash, sizeof(b->idem_hash));
    const struct retry_policy *r = &b->retry;
    sqlite3_bind_int64(q, 21, b->rate_per_host);
    sqlite3_bind_int(q, 22, b->priority);
    sqlite3_bind_int(q, 23, b->http_version);
    sqlite3_bind_int64(q, 24, r->max_attempts);
    sqlite3_bind_int64(q, 25, r->min_backoff_ms);
    sqlite3_bind_int64(q, 26, r->max_backoff_ms);
    sqlite3_bind_int64(q, 27, r->max_retry_after_ms);
    sqlite3_bind_int(q, 28, r->non_idempotent);
    sq_bind_blob(q, 29, r->has_on_status ? r->on_status : NULL, sizeof(r->on_status));
    sq_bind_string(q, 30, b->retry_of);
    sqlite3_bind_int64(q, 31, b->expires_after_s);
}

static char *column_string(sqlite3_stmt *q, int i)
{
    return (char *)(uintptr_t)(const void *)sqlite3_column_text(q, i);
}

static bool has_ended(const struct batch *b)
{
    return b->state == BATCH_COMPLETED || b->state == BATCH_CANCELLED;
}

/* The row as a batch whose owned parts are SQLite's: copy before the next step. */
static void read_batch(const struct store *s, sqlite3_stmt *q, struct batch *b)
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
    struct retry_policy *r = &b->retry;
    b->rate_per_host = (uint32_t)sqlite3_column_int64(q, 20);
    b->priority = (uint8_t)sqlite3_column_int(q, 21);
    b->http_version = (uint8_t)sqlite3_column_int(q, 22);
    r->max_attempts = (uint32_t)sqlite3_column_int64(q, 23);
    r->min_backoff_ms = (uint32_t)sqlite3_column_int64(q, 24);
    r->max_backoff_ms = (uint32_t)sqlite3_column_int64(q, 25);
    r->max_retry_after_ms = (uint32_t)sqlite3_column_int64(q, 26);
    r->non_idempotent = sqlite3_column_int(q, 27) != 0;
    r->has_on_status = sqlite3_column_bytes(q, 28) == (int)sizeof(r->on_status);
    if (r->has_on_status)
        memcpy(r->on_status, sqlite3_column_blob(q, 28), sizeof(r->on_status));
    b->retry_of = column_string(q, 29);
    b->expires_after_s = (uint32_t)sqlite3_column_int64(q, 30);
    int64_t expires = store_expires(&s->horizon, b);
    b->expires_ms = has_ended(b) && expires != INT64_MAX ? expires : 0;
}

int store_last_batch_no(struct store *s, int64_t *no)
{
    return sq_value(s, S_LAST_NO, no);
}

int store_add_batch(struct store *s, const struct batch *b)
{
    sqlite3_stmt *q;
    int rc = sq_get(s, S_ADD_BATCH, &q);
    if (rc != 0)
        return rc;
    bind_batch(q, b);
    return sq_finish(s, q);
}

int store_update_batch(struct store *s, const struct batch *b)
{
    sqlite3_stmt *q;
    int rc = sq_get(s, S_UPDATE_BATCH, &q);
    if (rc != 0)
        return rc;
    bind_batch(q, b);
    rc = sq_finish(s, q);
    return rc == 0 && sqlite3_changes(s->db) == 0 ? E_NOTFOUND : rc;
}

static int each_batch(struct store *s, sqlite3_stmt *q, store_batch_fn *fn, void *arg)
{
    int code, rc = 0;
    while (rc == 0 && (code = sqlite3_step(q)) != SQLITE_DONE) {
        struct batch b;
        if (code != SQLITE_ROW) {
            rc = sq_fail(s, code);
            break;
        }
        read_batch(s, q, &b);
        rc = fn(arg, &b);
    }
    sq_put(q);
    return rc;
}

int store_open_batches(struct store *s, store_batch_fn *fn, void *arg)
{
    sqlite3_stmt *q;
    int rc = sq_get(s, S_OPEN_BATCHES, &q);
    return rc != 0 ? rc : each_batch(s, q, fn, arg);
}

int store_list(struct store *s, int64_t before, unsigned states, uint32_t limit, store_batch_fn *fn,
               void *arg)
{
    sqlite3_stmt *q;
    int rc = sq_get(s, S_LIST, &q);
    if (rc != 0)
        return rc;
    sqlite3_bind_int64(q, 1, before > 0 ? before : INT64_MAX);
    sqlite3_bind_int64(q, 2, states);
    sqlite3_bind_int64(q, 3, limit);
    sqlite3_bind_int64(q, 4, sq_ended_before(&s->horizon));
    sqlite3_bind_int64(q, 5, s->horizon.now_ms);
    return each_batch(s, q, fn, arg);
}

static int find(struct store *s, enum statement i, const char *text, bool expired_too,
                struct batch *out)
{
    sqlite3_stmt *q;
    memset(out, 0, sizeof(*out));
    int rc = sq_get(s, i, &q);
    if (rc != 0)
        return rc;
    sq_bind_string(q, 1, text);
    int code = sqlite3_step(q);
    if (code == SQLITE_ROW) {
        struct batch b;
        read_batch(s, q, &b);
        bool expired = has_ended(&b) && store_expires(&s->horizon, &b) <= s->horizon.now_ms;
        rc = expired && !expired_too ? E_NOTFOUND : batch_copy(out, &b);
    } else {
        rc = code == SQLITE_DONE ? E_NOTFOUND : sq_fail(s, code);
    }
    sq_put(q);
    return rc;
}

int store_find(struct store *s, const char *id, struct batch *out)
{
    return find(s, S_FIND, id, false, out);
}

int store_find_key(struct store *s, const char *idem_key, struct batch *out)
{
    return find(s, S_FIND_KEY, idem_key, true, out);
}

/* ---- pages ---- */

int64_t sq_lane(int64_t batch, uint64_t lane)
{
    return (int64_t)(lane ^ ((uint64_t)batch * 0x9e3779b97f4a7c15ULL));
}

int store_add_page(struct store *s, int64_t batch, const struct page *p)
{
    sqlite3_stmt *q;
    int rc = sq_get(s, S_ADD_PAGE, &q);
    if (rc != 0)
        return rc;
    sqlite3_bind_int64(q, 1, sq_key(batch, p->no));
    sqlite3_bind_int64(q, 2, sq_lane(batch, p->lane));
    sqlite3_bind_int64(q, 3, p->count);
    sq_bind_blob(q, 4, p->data, p->len);
    return sq_finish(s, q);
}

/* The statement, to walk a batch's pages with: of each its number, lane and count (page_head). */
static int pages_after(struct store *s, enum statement i, int64_t batch, int64_t after_no,
                       size_t max, sqlite3_stmt **q)
{
    int rc = sq_get(s, i, q);
    if (rc != 0)
        return rc;
    sqlite3_bind_int64(*q, 1, sq_after(batch, after_no));
    sqlite3_bind_int64(*q, 2, sq_end(batch));
    sqlite3_bind_int64(*q, 3, (int64_t)max);
    return 0;
}

static struct page page_head(sqlite3_stmt *q, int64_t batch)
{
    return (struct page){
        .no = (uint32_t)sqlite3_column_int64(q, 0),
        .lane = (uint64_t)sq_lane(batch, (uint64_t)sqlite3_column_int64(q, 1)),
        .count = (uint32_t)sqlite3_column_int64(q, 2),
    };
}

int store_page_heads(struct store *s, int64_t batch, int64_t after_no, struct page *v, size_t max,
                     size_t *n)
{
    sqlite3_stmt *q;
    *n = 0;
    int rc = pages_after(s, S_PAGE_HEADS, batch, after_no, max, &q);
    if (rc != 0)
        return rc;
    int code = SQLITE_DONE;
    while (*n < max && (code = sqlite3_step(q)) == SQLITE_ROW)
        v[(*n)++] = page_head(q, batch);
    rc = code == SQLITE_ROW || code == SQLITE_DONE ? 0 : sq_fail(s, code);
    sq_put(q);
    return rc;
}

int store_pages(struct store *s, int64_t batch, int64_t after_no, size_t max, store_page_fn *fn,
                void *arg, int64_t *next, bool *more)
{
    sqlite3_stmt *q;
    int rc = pages_after(s, S_PAGES, batch, after_no, max, &q);
    *next = after_no;
    *more = false;
    if (rc != 0)
        return rc;
    int code = SQLITE_DONE;
    for (size_t n = 0; rc == 0 && n < max && (code = sqlite3_step(q)) == SQLITE_ROW; n++) {
        struct page p = page_head(q, batch);
        p.data = sqlite3_column_blob(q, 3);
        p.len = (size_t)sqlite3_column_bytes(q, 3);
        *next = p.no;
        *more = n + 1 == max;
        rc = fn(arg, &p);
    }
    if (rc == 0 && code != SQLITE_ROW && code != SQLITE_DONE)
        rc = sq_fail(s, code);
    sq_put(q);
    return rc;
}

int sq_keep(struct store *s, sqlite3_stmt *q, int column, const void **data, size_t *len)
{
    const void *from = sqlite3_column_blob(q, column);
    *len = (size_t)sqlite3_column_bytes(q, column);
    if (*len > s->page_cap) {
        void *p = realloc(s->page, *len);
        if (p == NULL)
            return E_NOMEM;
        s->page = p;
        s->page_cap = *len;
    }
    if (*len > 0)
        memcpy(s->page, from, *len);
    *data = s->page;
    return 0;
}

int store_lane_page(struct store *s, int64_t batch, uint64_t lane, int64_t after_no,
                    struct page *out)
{
    sqlite3_stmt *q;
    memset(out, 0, sizeof(*out));
    int rc = sq_get(s, S_LANE_PAGE, &q);
    if (rc != 0)
        return rc;
    sqlite3_bind_int64(q, 1, sq_lane(batch, lane));
    sqlite3_bind_int64(q, 2, sq_after(batch, after_no));
    sqlite3_bind_int64(q, 3, sq_end(batch));
    int code = sqlite3_step(q);
    if (code == SQLITE_ROW) {
        out->no = (uint32_t)sqlite3_column_int64(q, 0);
        out->lane = lane;
        out->count = (uint32_t)sqlite3_column_int64(q, 1);
        rc = sq_keep(s, q, 2, &out->data, &out->len);
    } else {
        rc = code == SQLITE_DONE ? E_NOTFOUND : sq_fail(s, code);
    }
    sq_put(q);
    return rc;
}

int store_page(struct store *s, int64_t batch, uint32_t no, struct page *out)
{
    sqlite3_stmt *q;
    memset(out, 0, sizeof(*out));
    int rc = sq_get(s, S_PAGE, &q);
    if (rc != 0)
        return rc;
    sqlite3_bind_int64(q, 1, sq_key(batch, no));
    int code = sqlite3_step(q);
    if (code == SQLITE_ROW) {
        out->no = no;
        out->lane = (uint64_t)sq_lane(batch, (uint64_t)sqlite3_column_int64(q, 0));
        out->count = (uint32_t)sqlite3_column_int64(q, 1);
        rc = sq_keep(s, q, 2, &out->data, &out->len);
    } else {
        rc = code == SQLITE_DONE ? E_NOTFOUND : sq_fail(s, code);
    }
    sq_put(q);
    return rc;
}
