/* See rebatch.h. The failed requests are copied from the pages of the old batch into an upload, in
 * slices between which other clients are served. api thread. */
#include "api/rebatch.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/answer.h"
#include "api/ingest.h"
#include "api/park.h"
#include "server/item.h"
#include "server/url.h"

enum {
    SLICE_US = 10 * 1000,   /* of work at a time */
    RESULTS_STEP = 2000,    /* results read in one transaction */
    PAGES_STEP = 64,        /* pages, likewise */
    GATHERED_MAX = 1 << 30, /* far above one piece of an upload (server/upload.c) */
};

/* A record of the old batch in rebatch.records. */
struct record {
    uint64_t index;
    size_t pos;
};

struct rebatch {
    struct batch old;
    uint8_t *failed; /* a bit for each request */
    uint64_t n_failed;
    int64_t after; /* where to go on: result number, then page */
    enum { READ_RESULTS, READ_PAGES, READ_ALL } step;
    uint64_t seen, highest; /* requests in the pages so far; the highest index among them, and 1 */
    struct buf records;
    struct record *v;
    size_t n, cap;
    struct upload *upload;
};

static void rebatch_free(struct rebatch *b)
{
    batch_fini(&b->old);
    buf_fini(&b->records);
    free(b->failed);
    free(b->v);
    free(b);
}

static bool is_failed(const struct rebatch *b, uint64_t index)
{
    return (b->failed[index / 8] >> (index % 8)) & 1;
}

static int on_result(void *arg, const struct result *res)
{
    struct rebatch *b = arg;

    if (res->index >= b->old.total || is_failed(b, res->index))
        return E_CORRUPT;
    b->failed[res->index / 8] |= (uint8_t)(1u << (res->index % 8));
    b->n_failed++;
    return 0;
}

static int by_index(const void *x, const void *y)
{
    const struct record *a = x, *b = y;

    return a->index < b->index ? -1 : a->index > b->index;
}

/* The upload numbers requests as they come: in the old batch's order. */
static int add_gathered(struct rebatch *b)
{
    int rc = 0;

    if (b->n > 0)
        qsort(b->v, b->n, sizeof(*b->v), by_index);
    for (size_t i = 0; rc == 0 && i < b->n; i++) {
        size_t pos = b->v[i].pos;
        struct item it;
        struct url u = {0};
        const char *why;

        rc = item_decode(b->records.data, b->records.len, &pos, &it);
        if (rc == 0 && !it.invalid.ptr && url_parse(&u, it.url.ptr, it.url.len, &why) != 0)
            rc = E_CORRUPT;
        if (rc == 0)
            rc = upload_add(b->upload, &it, it.invalid.ptr ? NULL : u.host);
        url_fini(&u);
    }
    b->n = 0;
    buf_reset(&b->records);
    return rc;
}

/* Pages stand in the order of arrival but for those of one piece of the upload, which are ordered by
 * host: a piece is complete when as many requests were seen as the highest index says. */
static int on_page(void *arg, const struct page *p)
{
    struct rebatch *b = arg;

    for (size_t pos = 0; pos < p->len;) {
        size_t from = pos;
        struct item it;
        int rc = item_decode(p->data, p->len, &pos, &it);

        if (rc != 0 || it.index >= b->old.total)
            return E_CORRUPT;
        b->seen++;
        if (it.index >= b->highest)
            b->highest = it.index + 1;
        if (!is_failed(b, it.index))
            continue;
        if (b->n == b->cap) {
            b->cap = b->cap ? b->cap * 2 : 64;
            b->v = xrealloc(b->v, b->cap * sizeof(*b->v));
        }
        b->v[b->n++] = (struct record){it.index, b->records.len};
        rc = buf_add(&b->records, (const char *)p->data + from, pos - from);
        if (rc != 0)
            return rc;
    }
    return b->seen == b->highest ? add_gathered(b) : 0;
}

/* One transaction's worth. */
static int work(struct request *r, struct rebatch *b)
{
    struct store *s = r->api->store;
    const struct result_query q = {.order = ORDER_COMPLETION,
                                   .after = b->after,
                                   .status = RESULT_FAILED,
                                   .limit = RESULTS_STEP,
                                   .scan_limit = RESULTS_STEP};
    bool more = false;
    int rc = b->step == READ_RESULTS
                 ? store_results(s, b->old.no, &q, on_result, b, &b->after, &more)
                 : store_pages(s, b->old.no, b->after, PAGES_STEP, on_page, b, &b->after, &more);

    if (rc != 0 || more)
        return rc;
    if (b->step == READ_RESULTS) {
        b->step = READ_PAGES;
        b->after = -1;
        return 0;
    }
    b->step = READ_ALL;
    /* it was deleted meanwhile, or its rows are going */
    return upload_count(b->upload) == b->n_failed ? 0 : E_NOTFOUND;
}

/* Makes r->ingest. False: r->problem is set. */
static bool begin(struct request *r)
{
    struct batch_view v = {0};
    struct rebatch *b;
    char content[STORE_BATCH_ID_SIZE + 8];
    int rc = engine_batch(r->api->engine, r->api->store, r->id, &v);

    if (rc != 0) {
        request_fail(r, rc, "reading a batch");
        return false;
    }
    if (v.b.state != BATCH_COMPLETED && v.b.state != BATCH_CANCELLED) {
        problem_set(&r->problem, PROBLEM_CONFLICT, "the batch has not ended yet");
    } else if (v.b.failed == 0) {
        problem_set(&r->problem, PROBLEM_CONFLICT, "no request of the batch failed");
    } else {
        (void)snprintf(content, sizeof(content), "retry %s", r->id);
        rc = ingest_make(r, content);
        if (rc == 0) {
            b = xcalloc(1, sizeof(*b));
            b->old = v.b;
            b->failed = xcalloc(v.b.total / 8 + 1, 1);
            b->after = -1;
            b->upload = ingest_upload(r);
            buf_init(&b->records, GATHERED_MAX);
            ingest_own(r, b, rebatch_free);
            return true;
        }
    }
    batch_view_fini(&v);
    return false;
}

static enum MHD_Result commit(struct request *r, struct rebatch *b)
{
    const struct batch *old = &b->old;
    struct upload_settings s = {
        .max_parallel = old->max_parallel,
        .max_per_host = old->max_per_host,
        .max_redirects = old->max_redirects,
        .rate_per_host = old->rate_per_host,
        .priority = old->priority,
        .http_version = old->http_version,
        .retry = old->retry,
        .expires_after_s = old->expires_after_s,
        .name = old->name,
        .metadata = old->metadata,
        .retry_of = old->id,
    };
    size_t pos = 0;

    if (!ingest_committing(r) && old->defaults_len > 0 &&
        item_decode(old->defaults, old->defaults_len, &pos, &s.defaults) != 0)
        return answer_fail(r, PROBLEM_INTERNAL, "the batch's defaults cannot be read");
    return ingest_commit(r, &s);
}

/* keeper */
static void on_room(void *arg)
{
    park_wake(arg);
}

/* Lets others be served: for as long as the disk needs, if it is behind, or for a moment. */
static bool yield(struct request *r, struct rebatch *b, int *rc)
{
    if (!park_arm(r)) {
        *rc = E_STOPPING;
        return false;
    }
    if (upload_wait(b->upload, on_room, r))
        return park_suspend(r);
    park_disarm(r);
    *rc = park_wait(r, now_us());
    if (*rc == E_BUSY) /* too many wait already: then without */
        *rc = 0;
    else if (*rc == 0)
        return park_suspend(r);
    return false;
}

enum MHD_Result rebatch_retry(struct request *r)
{
    struct rebatch *b = ingest_owned(r);
    int64_t until = now_us() + SLICE_US;
    int rc = 0;

    if (!b && !begin(r))
        return answer_problem(r);
    b = ingest_owned(r);
    while (rc == 0 && b->step != READ_ALL) {
        rc = work(r, b);
        if (rc == 0 && b->step != READ_ALL && now_us() >= until) {
            if (yield(r, b, &rc))
                return MHD_YES;
            until = now_us() + SLICE_US;
        }
    }
    if (rc != 0) {
        request_fail(r, rc, "reading the failed requests");
        return answer_problem(r);
    }
    return commit(r, b);
}
