/* The batch, the list of batches, cancel, pause, resume and delete. api thread; the engine's callbacks at the
 * keeper only note the outcome and wake the request. */
#include "api/batches.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/answer.h"
#include "api/cursor.h"
#include "api/held.h"
#include "api/park.h"
#include "api/view.h"

enum {
    LIST_DEFAULT = 20,
    LIST_MAX = 1000,
    LIST_STEP = 200,   /* batches read in one transaction */
    LIST_SCAN = 10000, /* looked at for one page (a rare status) */
    LIST_JSON_SOFT = 8 * 1024 * 1024,
    LIST_JSON_MAX = 64 * 1024 * 1024,
};

enum MHD_Result bad_parameter(struct request *r, const char *name, const char *fmt, ...)
{
    char detail[PROBLEM_DETAIL_SIZE];
    va_list ap;

    va_start(ap, fmt);
    (void)vsnprintf(detail, sizeof(detail), fmt, ap);
    va_end(ap);
    problem_set(&r->problem, PROBLEM_INVALID_FIELD, "query parameter \"%s\": %s", name, detail);
    problem_add_parameter(&r->problem, name, "%s", detail);
    return answer_problem(r);
}

bool number_parameter(struct request *r, const char *name, uint64_t min, uint64_t max,
                      uint64_t *out)
{
    const char *text = query_get(&r->query, name);

    if (!text || parse_number(text, min, max, out) == 0)
        return true;
    problem_set(&r->problem, PROBLEM_INVALID_FIELD,
                "query parameter \"%s\" must be a whole number from %llu to %llu", name,
                (unsigned long long)min, (unsigned long long)max);
    problem_add_parameter(&r->problem, name, "must be a whole number from %llu to %llu",
                          (unsigned long long)min, (unsigned long long)max);
    return false;
}

/* ---- one batch ---- */

static bool has_ended(const struct batch_view *v)
{
    return v->b.state == BATCH_COMPLETED || v->b.state == BATCH_CANCELLED;
}

static enum MHD_Result answer_batch(struct request *r, const struct batch_view *v, bool applied,
                                    uint64_t wait_s)
{
    const char *known = request_header(r, "If-None-Match");
    struct MHD_Response *resp = view_batch_response(v);
    char etag[VIEW_ETAG_SIZE], applied_text[32];

    view_batch_etag(v, etag);
    answer_header(resp, "ETag", etag);
    if (applied) {
        (void)snprintf(applied_text, sizeof(applied_text), "wait=%llu", (unsigned long long)wait_s);
        answer_header(resp, "Preference-Applied", applied_text);
    }
    /* With 304 the library sends the same header fields and no body. */
    return answer_send(r, known && etag_listed(known, etag) ? 304 : 200, resp, "no-cache");
}

/* How long the client wants to wait. *applied: by Prefer. False: r->problem is set. */
static bool wanted_wait(struct request *r, uint64_t *seconds, bool *applied)
{
    const char *prefer = request_header(r, "Prefer");

    *seconds = 0;
    *applied = false;
    if (query_get(&r->query, "wait"))
        return number_parameter(r, "wait", 0, WAIT_MAX_S, seconds);
    if (prefer && prefer_wait(prefer, seconds)) {
        *applied = true;
        if (*seconds > WAIT_MAX_S)
            *seconds = WAIT_MAX_S;
    }
    return true;
}

enum MHD_Result batches_get(struct request *r)
{
    struct batch_view v = {0};
    uint64_t wait_s;
    bool applied, armed = false;
    enum MHD_Result ok;
    int rc;

    if (!wanted_wait(r, &wait_s, &applied))
        return answer_problem(r);
    if (wait_s > 0 && !r->waited) {
        /* Armed before the look at the batch, so that its end can't come in between unseen. */
        rc = park_wait(r, now_us() + (int64_t)wait_s * 1000000);
        if (rc == E_BUSY)
            return answer_fail(r, PROBLEM_BUSY, "too many clients are waiting for batches");
        armed = rc == 0; /* stopping: answer what is known now */
        r->waited = true;
    }
    rc = engine_batch(r->api->engine, r->api->store, r->id, &v);
    if (armed && rc == 0 && !has_ended(&v)) {
        if (park_suspend(r)) {
            batch_view_fini(&v);
            return MHD_YES; /* called again when it has ended, or the time is over */
        }
        batch_view_fini(&v);
        rc = engine_batch(r->api->engine, r->api->store, r->id, &v);
    } else if (armed) {
        park_wait_cancel(r);
    }
    if (rc != 0) {
        request_fail(r, rc, "reading a batch");
        return answer_problem(r);
    }
    ok = answer_batch(r, &v, applied, wait_s);
    batch_view_fini(&v);
    return ok;
}

/* ---- cancel, delete ---- */

/* keeper */
static void on_done(void *arg, int rc)
{
    struct request *r = arg;

    r->rc = rc;
    park_wake(r);
}

/* Calls the engine once and waits. True: suspended, return MHD_YES. */
static bool call_engine(struct request *r,
                        void (*call)(struct engine *, const char *, engine_done_fn *, void *))
{
    if (r->called)
        return false;
    r->called = true;
    if (!park_arm(r)) {
        r->rc = E_STOPPING;
        return false;
    }
    call(r->api->engine, r->id, on_done, r);
    return park_suspend(r);
}

/* Answers with the batch as it is afterwards. */
static enum MHD_Result steer(struct request *r,
                             void (*call)(struct engine *, const char *, engine_done_fn *, void *),
                             unsigned status, const char *conflict, const char *doing)
{
    struct batch_view v = {0};
    enum MHD_Result ok;
    int rc;

    if (call_engine(r, call))
        return MHD_YES;
    if (r->rc == E_CONFLICT)
        return answer_fail(r, PROBLEM_CONFLICT, "%s", conflict);
    rc = r->rc != 0 ? r->rc : engine_batch(r->api->engine, r->api->store, r->id, &v);
    if (rc != 0) {
        request_fail(r, rc, doing);
        return answer_problem(r);
    }
    ok = answer_send(r, status, view_batch_response(&v), NULL);
    batch_view_fini(&v);
    return ok;
}

enum MHD_Result batches_cancel(struct request *r)
{
    return steer(r, engine_cancel, 202, "the batch has ended already", "cancelling a batch");
}

enum MHD_Result batches_pause(struct request *r)
{
    return steer(r, engine_pause, 200, "the batch has ended already, or is being cancelled",
                 "pausing a batch");
}

enum MHD_Result batches_resume(struct request *r)
{
    return steer(r, engine_resume, 200, "the batch has ended already, or is being cancelled",
                 "resuming a batch");
}

enum MHD_Result batches_delete(struct request *r)
{
    if (call_engine(r, engine_delete))
        return MHD_YES;
    if (r->rc != 0) {
        request_fail(r, r->rc, "deleting a batch");
        return answer_problem(r);
    }
    return answer_empty(r, 204);
}

/* ---- the list ---- */

struct list {
    const char *status; /* NULL: any */
    unsigned states;
    struct batch v[LIST_STEP];
    uint32_t n;
    int64_t before; /* where to go on */
    uint32_t limit, written;
    size_t soft; /* a longer text is enough */
    bool more;
};

static int collect_batch(void *arg, const struct batch *b)
{
    struct list *l = arg;
    int rc;

    ASSERT(l->n < LIST_STEP);
    rc = batch_copy(&l->v[l->n], b);
    if (rc == 0)
        l->n++;
    return rc;
}

static bool parse_status(struct list *l, const char *text)
{
    static const struct {
        const char *name;
        unsigned states;
    } names[] = {
        {"queued", 1u << BATCH_OPEN},           {"in_progress", 1u << BATCH_OPEN},
        {"cancelling", 1u << BATCH_CANCELLING}, {"completed", 1u << BATCH_COMPLETED},
        {"cancelled", 1u << BATCH_CANCELLED},   {"paused", 1u << BATCH_PAUSED},
    };

    for (size_t i = 0; i < ARRAY_LEN(names); i++)
        if (strcmp(names[i].name, text) == 0) {
            l->status = text;
            l->states = names[i].states;
            return true;
        }
    return false;
}

/* Writes what fits of one step's batches. Takes over their parts. */
static void write_step(struct request *r, struct list *l, struct jw *w)
{
    for (uint32_t i = 0; i < l->n; i++) {
        struct batch_view v = {0};
        int64_t no = l->v[i].no;

        if (l->written == l->limit || w->b->len > l->soft) {
            l->more = true;
            batch_fini(&l->v[i]);
            continue;
        }
        engine_overlay(r->api->engine, r->api->store, &l->v[i], &v);
        /* queued or in_progress is known only with the live state */
        if (!l->status || strcmp(view_status(&v), l->status) == 0) {
            view_batch(w, &v);
            l->written++;
        }
        l->before = no;
        batch_view_fini(&v);
    }
    l->n = 0;
}

static int write_list(struct request *r, struct list *l, struct buf *b)
{
    struct jw w;
    uint32_t scanned = 0;
    char next[CURSOR_SIZE];

    jw_init(&w, b);
    jw_object(&w);
    jw_key(&w, "object");
    jw_str(&w, "list");
    jw_key(&w, "data");
    jw_array(&w);
    while (!l->more) {
        uint32_t want = l->limit - l->written + 1, got;
        int rc;

        want = want < LIST_STEP ? want : LIST_STEP;
        rc = store_list(r->api->store, l->before, l->states, want, collect_batch, l);
        got = l->n;
        write_step(r, l, &w);
        if (rc != 0)
            return rc;
        scanned += got;
        if (got < want)
            break;
        if (scanned >= LIST_SCAN)
            l->more = true;
    }
    jw_array_end(&w);
    jw_key(&w, "next");
    cursor_format(next, CURSOR_LIST, 0, l->before);
    jw_str(&w, l->more ? next : NULL);
    jw_key(&w, "has_more");
    jw_bool(&w, l->more);
    jw_object_end(&w);
    return w.rc;
}

enum MHD_Result batches_list(struct request *r)
{
    const char *status = query_get(&r->query, "status"), *after = query_get(&r->query, "after");
    struct list *l;
    uint64_t limit = LIST_DEFAULT;
    struct buf b;
    int64_t before = 0;
    int rc;

    if (!number_parameter(r, "limit", 1, LIST_MAX, &limit))
        return answer_problem(r);
    if (after && (cursor_parse(after, CURSOR_LIST, 0, &before) != 0 || before == 0))
        return bad_parameter(r, "after", "not a cursor of this list");
    l = xcalloc(1, sizeof(*l));
    l->limit = (uint32_t)limit;
    l->before = before;
    l->soft = held_room(r->api) < LIST_JSON_SOFT ? held_room(r->api) : LIST_JSON_SOFT;
    if (status && !parse_status(l, status)) {
        free(l);
        return bad_parameter(r, "status",
                             "must be one of queued, in_progress, paused, cancelling, "
                             "completed, cancelled");
    }
    buf_init(&b, LIST_JSON_MAX);
    rc = write_list(r, l, &b);
    free(l);
    if (rc != 0) {
        buf_fini(&b);
        request_fail(r, rc, "listing batches");
        return answer_problem(r);
    }
    return answer_send(r, 200, held_response(r->api, &b, "application/json"), NULL);
}
