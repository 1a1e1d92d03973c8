/* The results endpoints: their parameters, and how the text of feed.c and the stored bodies go out.
 * Small pages are sent whole, with a Content-Length; streams and pages with a large body are made
 * while they are sent. api thread. */
#include "api/results.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "api/answer.h"
#include "api/batches.h"
#include "api/cursor.h"
#include "api/feed.h"
#include "api/held.h"
#include "api/view.h"
#include "server/metrics.h"

enum {
    LIMIT_DEFAULT = 100,
    LIMIT_MAX = 10000,
    CUSTOM_ID_MAX = 256,
    RANGE_PROBLEM_MAX = 4096,
    STEP_LONG = 256 * 1024, /* of text that a stream makes at once … */
    STEP_SHORT = 16 * 1024, /* … when memory is short */
    STREAM_BLOCK = 1024,    /* the library's, which it does not use for chunks */
};

/* ---- streaming ---- */

/* When memory is short, text that the reader has not taken yet is thrown away, and made again when
 * it comes for more: so a slow reader holds next to nothing. */
struct stream {
    struct feed feed;
    struct feed saved; /* as it was before the text in feed.out was made; without buffers */
    bool again;        /* the same text can be made again */
    size_t taken;      /* of feed.out */
    size_t skip;       /* bytes to be made that were taken already */
    size_t held;       /* counted in api->held */
    struct request *r; /* of which it is the answer */
};

static void save(struct stream *s)
{
    s->saved = s->feed;
    memset(&s->saved.out, 0, sizeof(s->saved.out));
    memset(&s->saved.piece, 0, sizeof(s->saved.piece));
}

/* Back to where the text begins that is not taken. */
static void restore(struct stream *s)
{
    struct buf out = s->feed.out, piece = s->feed.piece;

    buf_fini(&out);
    buf_fini(&piece);
    s->feed = s->saved;
    s->feed.out = out;
    s->feed.piece = piece;
    s->skip += s->taken;
    s->taken = 0;
}

static void settle(struct stream *s)
{
    struct feed *f = &s->feed;

    held_change(f->api, &s->held, f->out.cap + f->piece.cap);
    if (!held_short(f->api))
        return;
    if (s->taken == f->out.len) {
        buf_fini(&f->out);
        s->taken = 0;
    } else if (s->again) {
        metric_add(METRIC_PRESSURE + METRIC_PRESSURE_ANSWERS, 1);
        restore(s);
    }
    buf_fini(&f->piece);
    held_change(f->api, &s->held, f->out.cap);
}

static void stream_free(void *arg)
{
    struct stream *s = arg;

    held_change(s->feed.api, &s->held, 0);
    feed_fini(&s->feed);
    free(s);
}

/* The next text. Returns 0 when there is none yet. */
static int make_text(struct stream *s)
{
    struct feed *f = &s->feed;
    int rc;

    buf_reset(&f->out);
    s->taken = 0;
    save(s);
    f->step_bytes = held_short(f->api) ? STEP_SHORT : STEP_LONG;
    rc = feed_step(f);
    if (rc == 0) {
        s->taken = s->skip < f->out.len ? s->skip : f->out.len;
        s->skip -= s->taken;
    }
    return rc;
}

static ssize_t stream_read(void *arg, uint64_t pos, char *out, size_t max)
{
    struct stream *s = arg;
    struct feed *f = &s->feed;
    size_t n;

    (void)pos;
    while (s->taken == f->out.len && !f->done) {
        int rc = make_text(s);

        if (rc != 0) { /* the answer has begun: breaking it off is all that is left to say */
            log_event(LOG_WARN, "answer_broken_off", LOG_S("what", "results"), LOG_I("rc", rc));
            return MHD_CONTENT_READER_END_WITH_ERROR;
        }
        if (f->out.len == 0 && !f->done)
            return 0; /* nothing found yet: others get their turn, then we are asked again */
    }
    n = f->out.len - s->taken;
    if (n == 0)
        return s->skip == 0 ? MHD_CONTENT_READER_END_OF_STREAM : MHD_CONTENT_READER_END_WITH_ERROR;
    n = n < max ? n : max;
    memcpy(out, f->out.data + s->taken, n);
    s->taken += n;
    settle(s);
    return (ssize_t)n;
}

static ssize_t stream_turn(void *arg, uint64_t pos, char *out, size_t max)
{
    int64_t begin = answer_turn(((struct stream *)arg)->r);
    ssize_t n = stream_read(arg, pos, out, max);

    answer_turn_over(begin);
    return n;
}

/* Takes over s. */
static enum MHD_Result send_stream(struct request *r, struct stream *s, const char *type)
{
    struct MHD_Response *resp = MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, STREAM_BLOCK,
                                                                  stream_turn, s, stream_free);

    s->r = r;
    if (!resp)
        stream_free(s);
    else if (r->head) /* otherwise the library ends the missing body with an empty chunk */
        (void)MHD_set_response_options(resp, MHD_RF_HTTP_1_0_COMPATIBLE_STRICT, MHD_RO_END);
    answer_header(resp, "Content-Type", type);
    held_be_patient(r);
    return answer_send(r, 200, resp, NULL);
}

/* Makes the text up to its end and sends it whole, unless a large body is in it, or more than may be
 * held for a slow reader. Takes over s. */
static enum MHD_Result send_text(struct request *r, struct stream *s, const char *missing)
{
    struct feed *f = &s->feed;
    struct MHD_Response *resp;
    size_t room = held_room(r->api);
    int rc = 0;

    save(s);
    f->step_bytes = room < STEP_LONG ? STEP_SHORT : STEP_LONG;
    while (rc == 0 && !f->done && !feed_is_large(f) && f->out.len <= room)
        rc = feed_step(f);
    if (rc == 0 && !f->done) {
        restore(s);
        return send_stream(r, s, "application/json");
    }
    if (rc == 0) {
        if (f->out.len > STEP_LONG)
            held_be_patient(r);
        resp = held_response(r->api, &f->out, "application/json");
        stream_free(s);
        return answer_send(r, 200, resp, NULL);
    }
    stream_free(s);
    request_fail(r, rc, "reading results");
    if (rc == E_NOTFOUND && missing)
        problem_set(&r->problem, PROBLEM_NOT_FOUND, "%s", missing);
    return answer_problem(r);
}

/* ---- parameters ---- */

static bool parse_include(struct request *r, struct feed *f)
{
    const char *p = query_get(&r->query, "include");

    while (p && *p) {
        size_t n = strcspn(p, ",");

        if (n == 4 && memcmp(p, "body", 4) == 0)
            f->body = true;
        else if (n == 7 && memcmp(p, "headers", 7) == 0)
            f->headers = true;
        else
            return false;
        p += n + (p[n] == ',');
    }
    return true;
}

/* NULL, or the name of the bad parameter with *why. */
static const char *parse_parameters(struct request *r, struct feed *f, const char **why)
{
    static const char *const statuses[] = {[RESULT_SUCCEEDED] = "succeeded",
                                           [RESULT_FAILED] = "failed",
                                           [RESULT_CANCELLED] = "cancelled"};
    const char *order = query_get(&r->query, "order"), *status = query_get(&r->query, "status");
    const char *after = query_get(&r->query, "after");
    const char *custom_id = query_get(&r->query, "custom_id");

    if (order && strcmp(order, "index") == 0)
        f->order = ORDER_INDEX;
    else if (order && strcmp(order, "completion") != 0) {
        *why = "must be completion or index";
        return "order";
    }
    if (status) {
        for (size_t i = 0; i < ARRAY_LEN(statuses); i++)
            if (strcmp(status, statuses[i]) == 0)
                f->status = (int)i;
        if (f->status < 0) {
            *why = "must be one of succeeded, failed, cancelled";
            return "status";
        }
    }
    if (custom_id) {
        size_t n = strlen(custom_id);

        if (n < 1 || n > CUSTOM_ID_MAX) {
            *why = "must have 1 to 256 bytes";
            return "custom_id";
        }
        f->custom_id = xstrdup(custom_id);
    }
    if (after && cursor_parse(after, (enum cursor_kind)f->order, f->batch, &f->after) != 0) {
        *why = "not a cursor of this batch and order";
        return "after";
    }
    if (!parse_include(r, f)) {
        *why = "must be a list of body, headers";
        return "include";
    }
    return NULL;
}

static struct stream *stream_new(struct request *r, const struct batch *b, enum feed_form form)
{
    struct stream *s = xcalloc(1, sizeof(*s));

    feed_init(&s->feed);
    s->again = b->state == BATCH_COMPLETED || b->state == BATCH_CANCELLED;
    s->feed.api = r->api;
    s->feed.form = form;
    s->feed.batch = b->no;
    memcpy(s->feed.id, b->id, sizeof(s->feed.id));
    return s;
}

enum MHD_Result results_list(struct request *r)
{
    enum media media = accept_choose(request_header(r, "Accept"));
    const char *bad, *why;
    struct batch b = {0};
    struct stream *s;
    uint64_t limit = media == MEDIA_NDJSON ? UINT64_MAX : LIMIT_DEFAULT;
    int rc;

    if (media == MEDIA_NONE)
        return answer_fail(r, PROBLEM_NOT_ACCEPTABLE,
                           "results come as application/json or application/x-ndjson");
    if (!number_parameter(r, "limit", 1, LIMIT_MAX, &limit))
        return answer_problem(r);
    rc = store_find(r->api->store, r->id, &b);
    if (rc != 0) {
        request_fail(r, rc, "finding a batch");
        return answer_problem(r);
    }
    s = stream_new(r, &b, media == MEDIA_NDJSON ? FEED_NDJSON : FEED_PAGE);
    batch_fini(&b);
    s->feed.left = limit;
    bad = parse_parameters(r, &s->feed, &why);
    s->again = s->again || s->feed.order == ORDER_COMPLETION; /* new results come at the end */
    if (bad) {
        stream_free(s);
        return bad_parameter(r, bad, "%s", why);
    }
    return media == MEDIA_NDJSON ? send_stream(r, s, "application/x-ndjson")
                                 : send_text(r, s, NULL);
}

/* ---- one result ---- */

/* A result that is not there: is it still to come? */
static enum MHD_Result answer_missing(struct request *r, const struct batch *b)
{
    if (r->index < b->total)
        return answer_fail(r, PROBLEM_RESULT_NOT_READY,
                           "request %llu of the batch has no result yet",
                           (unsigned long long)r->index);
    return answer_fail(r, PROBLEM_NOT_FOUND, "the batch has no request %llu",
                       (unsigned long long)r->index);
}

/* What a look at a result's row tells about its body. */
struct body_info {
    bool exists;
    uint64_t n, len;
    const char *type; /* one of ours */
};

/* The few types that are harmless in a browser; everything else is bytes. */
static const char *inert_type(struct span field)
{
    static const char *const types[] = {"application/json", "image/png", "image/jpeg", "image/gif",
                                        "image/webp"};
    const char *end, *p = field.ptr;
    size_t n;

    if (!p)
        return "application/octet-stream";
    end = memchr(p, ';', field.len);
    n = end ? (size_t)(end - p) : field.len;
    while (n > 0 && (p[n - 1] == ' ' || p[n - 1] == '\t'))
        n--;
    for (size_t i = 0; i < ARRAY_LEN(types); i++)
        if (n == strlen(types[i]) && strncasecmp(p, types[i], n) == 0)
            return types[i];
    if (n == 10 && strncasecmp(p, "text/plain", 10) == 0) {
        for (size_t i = n; i + 13 <= field.len; i++)
            if (strncasecmp(p + i, "charset=utf-8", 13) == 0 ||
                (i + 15 <= field.len && strncasecmp(p + i, "charset=\"utf-8\"", 15) == 0))
                return "text/plain; charset=utf-8";
        return "text/plain";
    }
    return "application/octet-stream";
}

/* store_result_fn */
static int look_at_row(void *arg, const struct result *r)
{
    struct body_info *info = arg;

    info->exists = r->body.ptr != NULL;
    info->n = r->n;
    info->len = r->body_len;
    info->type = inert_type(view_content_type(r));
    return 0;
}

static int find_result(struct request *r, struct batch *b, struct body_info *info)
{
    int rc = store_find(r->api->store, r->id, b);

    if (rc == 0)
        return store_result(r->api->store, b->no, r->index, look_at_row, info);
    return rc;
}

enum MHD_Result results_get(struct request *r)
{
    struct batch b = {0};
    struct body_info info = {0};
    struct stream *s;
    enum MHD_Result ok;
    int rc = find_result(r, &b, &info);

    if (rc == E_NOTFOUND && b.no != 0) {
        ok = answer_missing(r, &b);
        batch_fini(&b);
        return ok;
    }
    if (rc != 0) {
        batch_fini(&b);
        request_fail(r, rc, "reading a result");
        return answer_problem(r);
    }
    s = stream_new(r, &b, FEED_SINGLE);
    batch_fini(&b);
    s->feed.headers = true;
    s->feed.index = r->index;
    if (!parse_include(r, &s->feed)) {
        stream_free(s);
        return bad_parameter(r, "include", "must be a list of body, headers");
    }
    return send_text(r, s, "there is no such result");
}

/* ---- its body ---- */

struct body_stream {
    struct request *r; /* of which it is the answer */
    struct api *api;
    int64_t batch;
    uint64_t n, first, len;
    size_t held;
};

static void body_free(void *arg)
{
    struct body_stream *b = arg;

    held_change(b->api, &b->held, 0);
    free(b);
}

static ssize_t body_read(void *arg, uint64_t pos, char *out, size_t max)
{
    struct body_stream *b = arg;
    uint64_t left = b->len - pos;
    size_t want = left < max ? (size_t)left : max, got = 0;
    int rc;

    if (want == 0)
        return MHD_CONTENT_READER_END_OF_STREAM;
    rc = store_body_read(b->api->store, b->batch, b->n, b->first + pos, out, want, &got);
    if (rc != 0 || got == 0) {
        log_event(LOG_WARN, "answer_broken_off", LOG_S("what", "body"), LOG_I("rc", rc));
        return MHD_CONTENT_READER_END_WITH_ERROR;
    }
    return (ssize_t)got;
}

static ssize_t body_turn(void *arg, uint64_t pos, char *out, size_t max)
{
    int64_t begin = answer_turn(((struct body_stream *)arg)->r);
    ssize_t n = body_read(arg, pos, out, max);

    answer_turn_over(begin);
    return n;
}

static enum MHD_Result answer_bad_range(struct request *r, uint64_t len)
{
    char text[48];
    struct buf b;
    struct MHD_Response *resp;

    problem_set(&r->problem, PROBLEM_RANGE, "the body has %llu bytes", (unsigned long long)len);
    problem_add_header(&r->problem, "Range", "no part of it lies within the body");
    buf_init(&b, RANGE_PROBLEM_MAX);
    if (problem_write(&r->problem, &b) != 0) {
        buf_fini(&b);
        return answer_problem(r);
    }
    resp = answer_take(&b, "application/problem+json");
    (void)snprintf(text, sizeof(text), "bytes */%llu", (unsigned long long)len);
    answer_header(resp, "Content-Range", text);
    return answer_send(r, 416, resp, NULL);
}

static enum MHD_Result send_body(struct request *r, const struct batch *b,
                                 const struct body_info *info)
{
    const char *field = request_header(r, "Range"), *if_range = request_header(r, "If-Range");
    const char *known = request_header(r, "If-None-Match");
    uint64_t first = 0, last = info->len > 0 ? info->len - 1 : 0;
    enum range range = RANGE_WHOLE;
    struct MHD_Response *resp = NULL;
    struct body_stream *bs;
    unsigned status = 200;
    size_t piece;
    char etag[80], text[96];

    (void)snprintf(etag, sizeof(etag), "\"%s-%llu\"", b->id, (unsigned long long)r->index);
    if (known && etag_listed(known, etag))
        status = 304;
    else if (field && (!if_range || strcmp(if_range, etag) == 0))
        range = range_parse(field, info->len, &first, &last);
    if (range == RANGE_BAD)
        return answer_bad_range(r, info->len);
    if (info->len == 0) {
        resp = MHD_create_response_from_buffer(0, NULL, MHD_RESPMEM_PERSISTENT);
    } else {
        bs = xcalloc(1, sizeof(*bs));
        *bs = (struct body_stream){r, r->api, b->no, info->n, first, last - first + 1, 0};
        piece = held_room(r->api) < PIECE ? held_room(r->api) : PIECE;
        piece = bs->len < piece ? (size_t)bs->len : piece;
        resp = MHD_create_response_from_callback(bs->len, piece, body_turn, bs, body_free);
        if (bs->len > STEP_LONG)
            held_be_patient(r);
        if (resp)
            held_change(r->api, &bs->held, piece);
        else
            free(bs);
    }
    if (range == RANGE_PART) {
        (void)snprintf(text, sizeof(text), "bytes %llu-%llu/%llu", (unsigned long long)first,
                       (unsigned long long)last, (unsigned long long)info->len);
        answer_header(resp, "Content-Range", text);
        status = 206;
    }
    (void)snprintf(text, sizeof(text), "attachment; filename=\"%llu\"",
                   (unsigned long long)r->index);
    answer_header(resp, "Content-Disposition", text);
    answer_header(resp, "Content-Type", info->type);
    answer_header(resp, "ETag", etag);
    answer_header(resp, "Accept-Ranges", "bytes");
    answer_header(resp, "Content-Security-Policy", "sandbox; default-src 'none'");
    answer_header(resp, "Cross-Origin-Resource-Policy", "same-origin");
    answer_header(resp, "Referrer-Policy", "no-referrer");
    return answer_send(r, status, resp, "private, no-cache");
}

enum MHD_Result results_body(struct request *r)
{
    struct batch b = {0};
    struct body_info info = {0};
    enum MHD_Result ok;
    int rc = find_result(r, &b, &info);

    if (rc == E_NOTFOUND && b.no != 0) {
        ok = answer_missing(r, &b);
    } else if (rc != 0) {
        request_fail(r, rc, "reading a result");
        ok = answer_problem(r);
    } else if (!info.exists) {
        ok = answer_fail(r, PROBLEM_NO_BODY, "this result has no body");
    } else {
        ok = send_body(r, &b, &info);
    }
    batch_fini(&b);
    return ok;
}
