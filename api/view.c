/* The batch object and the result object of the contract, written straight as JSON. Whatever comes
 * from an origin goes through the writer's escaping. Pure but for view_batch_response; api thread. */
#include "api/view.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "api/answer.h"
#include "server/outcome.h"
#include "server/policy.h"

enum { BATCH_JSON_MAX = 4 * 1024 * 1024 };

const char *view_status(const struct batch_view *v)
{
    switch (v->b.state) {
    case BATCH_STAGING:
    case BATCH_OPEN: return v->b.started_ms > 0 ? "in_progress" : "queued";
    case BATCH_CANCELLING: return "cancelling";
    case BATCH_PAUSED: return "paused";
    case BATCH_COMPLETED: return "completed";
    case BATCH_CANCELLED:
    case BATCH_DELETED: return "cancelled";
    }
    return "queued";
}

static void limit_or_null(struct jw *w, const char *key, uint32_t v)
{
    jw_key(w, key);
    if (v > 0)
        jw_u64(w, v);
    else
        jw_null(w);
}

static void key_u64(struct jw *w, const char *key, uint64_t v)
{
    jw_key(w, key);
    jw_u64(w, v);
}

static void key_str(struct jw *w, const char *key, const char *v)
{
    jw_key(w, key);
    jw_str(w, v);
}

static void key_span(struct jw *w, const char *key, struct span v)
{
    jw_key(w, key);
    jw_span(w, v, JW_LATIN1);
}

static void key_time(struct jw *w, const char *key, int64_t ms)
{
    jw_key(w, key);
    jw_time(w, ms);
}

static const char *http_version(int v)
{
    return v == 10 ? "1.0" : v == 11 ? "1.1" : v == 20 ? "2" : NULL;
}

static void write_limits(struct jw *w, const struct batch *b)
{
    jw_key(w, "limits");
    jw_object(w);
    limit_or_null(w, "max_parallel", b->max_parallel);
    limit_or_null(w, "max_per_host", b->max_per_host);
    jw_key(w, "rate_per_host");
    if (b->rate_per_host > 0)
        jw_fixed(w, b->rate_per_host / 1000.0, 3);
    else
        jw_null(w);
    jw_object_end(w);
}

static void write_retry(struct jw *w, const struct retry_policy *given)
{
    struct retry_policy p = *given;

    policy_complete(&p);
    jw_key(w, "retry");
    jw_object(w);
    key_u64(w, "max_attempts", p.max_attempts);
    key_u64(w, "min_backoff_ms", p.min_backoff_ms);
    key_u64(w, "max_backoff_ms", p.max_backoff_ms);
    key_u64(w, "max_retry_after_ms", p.max_retry_after_ms);
    jw_key(w, "on_status");
    jw_array(w);
    for (int status = 100; status <= 599; status++)
        if (policy_has_status(&p, status))
            jw_i64(w, status);
    jw_array_end(w);
    jw_key(w, "non_idempotent");
    jw_bool(w, p.non_idempotent);
    jw_object_end(w);
}

void view_batch(struct jw *w, const struct batch_view *v)
{
    const struct batch *b = &v->b;
    uint64_t done = b->succeeded + b->failed + b->cancelled;
    bool running = b->state == BATCH_OPEN || b->state == BATCH_CANCELLING;
    char url[STORE_BATCH_ID_SIZE + 32];

    jw_object(w);
    key_str(w, "id", b->id);
    key_str(w, "object", "batch");
    key_str(w, "status", view_status(v));
    jw_key(w, "request_counts");
    jw_object(w);
    key_u64(w, "total", b->total);
    key_u64(w, "queued", v->queued);
    key_u64(w, "in_flight", v->in_flight);
    key_u64(w, "retry_wait", v->retry_wait);
    key_u64(w, "succeeded", b->succeeded);
    key_u64(w, "failed", b->failed);
    key_u64(w, "cancelled", b->cancelled);
    jw_object_end(w);
    jw_key(w, "progress");
    jw_fixed(w, b->total > 0 ? (double)done / (double)b->total : 1.0, 6);
    jw_key(w, "rate_per_s");
    jw_fixed(w, running ? v->rate_per_s : 0.0, 3);
    jw_key(w, "eta_s");
    if (running && b->state != BATCH_PAUSED && v->rate_per_s > 0 && b->total >= done)
        jw_fixed(w, (double)(b->total - done) / v->rate_per_s, 3);
    else
        jw_null(w);
    key_u64(w, "bytes_received", b->bytes_received);
    key_time(w, "created_at", b->created_ms);
    key_time(w, "started_at", b->started_ms);
    key_time(w, "ended_at", b->ended_ms);
    key_time(w, "expires_at", b->expires_ms);
    write_limits(w, b);
    key_u64(w, "max_redirects", b->max_redirects);
    key_u64(w, "priority", b->priority);
    key_str(w, "http_version", http_version(b->http_version));
    write_retry(w, &b->retry);
    key_str(w, "retry_of", b->retry_of);
    key_str(w, "name", b->name);
    jw_key(w, "metadata");
    jw_raw(w,
           b->metadata ? (struct span){b->metadata, strlen(b->metadata)} : (struct span){"{}", 2});
    (void)snprintf(url, sizeof(url), "/v1/batches/%s/results", b->id);
    key_str(w, "results_url", url);
    jw_object_end(w);
}

struct MHD_Response *view_batch_response(const struct batch_view *v)
{
    struct buf b;
    struct jw w;

    buf_init(&b, BATCH_JSON_MAX);
    jw_init(&w, &b);
    view_batch(&w, v);
    if (w.rc != 0) {
        buf_fini(&b);
        return NULL;
    }
    return answer_take(&b, "application/json");
}

void view_batch_etag(const struct batch_view *v, char out[VIEW_ETAG_SIZE])
{
    const struct batch *b = &v->b;
    const uint64_t parts[] = {
        (uint64_t)b->no,
        (uint64_t)b->state,
        b->total,
        b->succeeded,
        b->failed,
        b->cancelled,
        v->queued,
        v->in_flight,
        v->retry_wait,
        b->bytes_received,
        (uint64_t)b->created_ms,
        (uint64_t)b->started_ms,
        (uint64_t)b->ended_ms,
        (uint64_t)b->expires_ms,
        b->max_parallel,
        b->max_per_host,
    };

    (void)snprintf(out, VIEW_ETAG_SIZE, "W/\"%016llx\"",
                   (unsigned long long)hash64(parts, sizeof(parts), 0x6261746368));
}

/* ---- results ---- */

struct field {
    struct span name, value;
};

/* Takes the first line "Name: value\r\n" of *rest. False at the end. */
static bool next_field(struct span *rest, struct field *f)
{
    while (rest->len > 0) {
        const char *end = memchr(rest->ptr, '\n', rest->len);
        size_t len = end ? (size_t)(end - rest->ptr) : rest->len;
        const char *line = rest->ptr, *colon;

        rest->ptr += end ? len + 1 : len;
        rest->len -= end ? len + 1 : len;
        if (len > 0 && line[len - 1] == '\r')
            len--;
        colon = memchr(line, ':', len);
        if (!colon || colon == line)
            continue; /* no field: nothing to show */
        f->name = (struct span){line, (size_t)(colon - line)};
        f->value = (struct span){colon + 1, len - (size_t)(colon + 1 - line)};
        while (f->value.len > 0 && (*f->value.ptr == ' ' || *f->value.ptr == '\t')) {
            f->value.ptr++;
            f->value.len--;
        }
        while (f->value.len > 0 &&
               (f->value.ptr[f->value.len - 1] == ' ' || f->value.ptr[f->value.len - 1] == '\t'))
            f->value.len--;
        return true;
    }
    return false;
}

struct span view_content_type(const struct result *r)
{
    struct span rest = r->headers;
    struct field f;

    if (rest.ptr)
        while (next_field(&rest, &f))
            if (f.name.len == 12 && strncasecmp(f.name.ptr, "content-type", 12) == 0)
                return f.value;
    return (struct span){NULL, 0};
}

/* By name without case, then in the order received (addresses ascend). */
static int by_name(const void *a, const void *b)
{
    const struct field *x = a, *y = b;
    size_t n = x->name.len < y->name.len ? x->name.len : y->name.len;
    int c = strncasecmp(x->name.ptr, y->name.ptr, n);

    if (c != 0)
        return c;
    if (x->name.len != y->name.len)
        return x->name.len < y->name.len ? -1 : 1;
    return x->name.ptr < y->name.ptr ? -1 : 1;
}

static bool same_name(const struct field *x, const struct field *y)
{
    return x->name.len == y->name.len && strncasecmp(x->name.ptr, y->name.ptr, x->name.len) == 0;
}

static void lower_key(struct jw *w, struct span name)
{
    char lower[256];

    if (name.len > sizeof(lower)) {
        jw_key_span(w, name, JW_LATIN1);
        return;
    }
    for (size_t i = 0; i < name.len; i++)
        lower[i] = (char)(name.ptr[i] >= 'A' && name.ptr[i] <= 'Z' ? name.ptr[i] + 32
                                                                   : name.ptr[i]);
    jw_key_span(w, (struct span){lower, name.len}, JW_LATIN1);
}

static void write_headers(struct jw *w, struct span headers)
{
    struct span rest = headers;
    struct field f, *v;
    size_t n = 0, cap = 0;

    jw_key(w, "headers");
    jw_object(w);
    if (rest.ptr)
        while (next_field(&rest, &f))
            cap++;
    v = xcalloc(cap + 1, sizeof(*v));
    rest = headers;
    while (n < cap && next_field(&rest, &v[n]))
        n++;
    qsort(v, n, sizeof(*v), by_name);
    for (size_t i = 0; i < n;) {
        size_t first = i;

        lower_key(w, v[first].name);
        jw_array(w);
        for (; i < n && same_name(&v[first], &v[i]); i++)
            jw_span(w, v[i].value, JW_LATIN1);
        jw_array_end(w);
    }
    free(v);
    jw_object_end(w);
}

/* "STATUS SP URL LF", a line a hop. */
static void write_redirects(struct jw *w, struct span lines)
{
    jw_key(w, "redirects");
    jw_array(w);
    while (lines.ptr && lines.len > 0) {
        const char *end = memchr(lines.ptr, '\n', lines.len);
        size_t len = end ? (size_t)(end - lines.ptr) : lines.len;
        size_t at = 0;
        uint64_t status = 0;

        for (; at < len && lines.ptr[at] >= '0' && lines.ptr[at] <= '9' && at < 3; at++)
            status = status * 10 + (uint64_t)(lines.ptr[at] - '0');
        at += at < len;
        jw_object(w);
        key_u64(w, "status", status);
        key_span(w, "url", (struct span){lines.ptr + at, len - at});
        jw_object_end(w);
        lines.ptr += end ? len + 1 : len;
        lines.len -= end ? len + 1 : len;
    }
    jw_array_end(w);
}

static void write_timing(struct jw *w, const uint64_t us[STORE_TIMINGS])
{
    static const char *const names[STORE_TIMINGS] = {
        [TIMING_QUEUED] = "queued_ms",         [TIMING_LIMIT_WAIT] = "limit_wait_ms",
        [TIMING_RETRY_WAIT] = "retry_wait_ms", [TIMING_DNS] = "dns_ms",
        [TIMING_CONNECT] = "connect_ms",       [TIMING_TLS] = "tls_ms",
        [TIMING_FIRST_BYTE] = "first_byte_ms", [TIMING_TRANSFER] = "transfer_ms",
    };
    uint64_t total = 0;

    jw_key(w, "timing");
    jw_object(w);
    for (size_t i = 0; i < STORE_TIMINGS; i++) {
        jw_key(w, names[i]);
        jw_ms(w, us[i]);
        total += us[i];
    }
    jw_key(w, "total_ms");
    jw_ms(w, total);
    jw_object_end(w);
}

static void write_error(struct jw *w, const struct result *r)
{
    struct span message = r->error_message;

    jw_key(w, "error");
    if (r->error == OUTCOME_NONE) {
        jw_null(w);
        return;
    }
    if (!message.ptr)
        message = (struct span){"", 0};
    jw_object(w);
    key_str(w, "code", outcome_name(r->error));
    key_span(w, "message", message);
    jw_key(w, "retryable");
    jw_bool(w, outcome_retryable(r->error, r->http_status));
    jw_object_end(w);
}

void view_result(struct jw *w, const char *batch_id, const struct result *r, bool headers)
{
    static const char *const statuses[] = {[RESULT_SUCCEEDED] = "succeeded",
                                           [RESULT_FAILED] = "failed",
                                           [RESULT_CANCELLED] = "cancelled"};
    char url[STORE_BATCH_ID_SIZE + 64];
    bool fetched = r->attempts > 0;

    jw_object(w);
    key_u64(w, "index", r->index);
    jw_key(w, "custom_id");
    jw_span(w, r->custom_id, JW_REPLACE);
    key_span(w, "url", r->url);
    key_span(w, "final_url",
             r->final_url.ptr ? r->final_url
             : fetched        ? r->url
                              : (struct span){NULL, 0});
    key_str(w, "status", (size_t)r->status < ARRAY_LEN(statuses) ? statuses[r->status] : "failed");
    jw_key(w, "http_status");
    if (r->http_status > 0)
        jw_u64(w, (uint64_t)r->http_status);
    else
        jw_null(w);
    key_str(w, "http_version", http_version(r->http_version));
    write_error(w, r);
    key_u64(w, "attempts", r->attempts);
    write_redirects(w, r->redirects);
    key_span(w, "content_type", view_content_type(r));
    key_u64(w, "body_bytes", r->body_len);
    (void)snprintf(url, sizeof(url), "/v1/batches/%s/results/%llu/body", batch_id,
                   (unsigned long long)r->index);
    key_str(w, "body_url", r->body.ptr ? url : NULL);
    jw_key(w, "truncated");
    jw_bool(w, r->truncated);
    key_span(w, "remote_ip", r->remote_ip);
    write_timing(w, r->timing_us);
    key_time(w, "completed_at", r->completed_ms);
    if (headers)
        write_headers(w, r->headers);
}
