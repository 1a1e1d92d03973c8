/* For test_submit.c and fuzz_submit.c: reads a submission cut in pieces in a chosen way and
 * writes down everything that came of it, so that two ways can be compared byte by byte. */
#ifndef TESTS_SUBMIT_LOG_H
#define TESTS_SUBMIT_LOG_H

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "api/json.h"
#include "api/submit.h"
#include "server/policy.h"

enum { SUBMIT_LOG_MAX = 64 << 20 };

struct submit_log {
    struct buf out;
    uint64_t pause_every; /* the sink asks for a pause after each so many requests; 0: never */
    uint64_t fail_at;     /* the sink returns fail_rc for this request, from 1; 0: never */
    int fail_rc;
    uint64_t n, pauses;
    bool internal; /* "it is our fault" came out */
};

static inline void log_ok(int rc)
{
    ASSERT(rc == 0);
}

static inline void log_item_fields(struct buf *b, const struct item *it)
{
    struct jw w;
    jw_init(&w, b);
    jw_array(&w);
    jw_span(&w, it->url, JW_REPLACE);
    jw_span(&w, it->invalid, JW_REPLACE);
    jw_span(&w, it->custom_id, JW_REPLACE);
    jw_span(&w, it->method, JW_REPLACE);
    jw_span(&w, it->headers, JW_REPLACE);
    if (it->body.ptr != NULL)
        jw_base64(&w, it->body.ptr, it->body.len);
    else
        jw_null(&w);
    jw_u64(&w, it->timeout_ms);
    jw_u64(&w, it->connect_timeout_ms);
    jw_u64(&w, it->max_attempts);
    if (it->has_max_body_bytes)
        jw_u64(&w, it->max_body_bytes);
    else
        jw_null(&w);
    jw_array_end(&w);
    log_ok(w.rc);
}

static inline int log_add(void *arg, const struct item *it, const char *host)
{
    struct submit_log *l = arg;
    l->n++;
    if (l->n == l->fail_at)
        return l->fail_rc;
    ASSERT((host == NULL) == (it->invalid.ptr != NULL));
    log_ok(buf_addf(&l->out, "%" PRIu64 " %s ", it->index, host != NULL ? host : "-"));
    log_item_fields(&l->out, it);
    log_ok(buf_addc(&l->out, '\n'));
    if (l->pause_every != 0 && l->n % l->pause_every == 0) {
        l->pauses++;
        return SUBMIT_PAUSE;
    }
    return SUBMIT_OK;
}

static inline void log_end(struct submit_log *l, struct submit *s)
{
    if (submit_finish(s) != 0) {
        ASSERT(submit_problem(s) != NULL);
        l->internal = submit_problem(s)->type == PROBLEM_INTERNAL;
        log_ok(problem_write(submit_problem(s), &l->out));
        return;
    }
    const struct upload_settings *u = submit_settings(s);
    ASSERT(submit_problem(s) == NULL);
    ASSERT(submit_count(s) > 0);
    log_ok(buf_addf(&l->out, "ok %" PRIu64 " bad %" PRIu64 " limits %u %u %u name %s meta %s ",
                    submit_count(s), submit_invalid_urls(s), u->max_parallel, u->max_per_host,
                    u->max_redirects, u->name != NULL ? u->name : "-",
                    u->metadata != NULL ? u->metadata : "-"));
    log_item_fields(&l->out, &u->defaults);
    const struct retry_policy *r = &u->retry;
    ASSERT(r->has_on_status);
    log_ok(buf_addf(&l->out, " %u %u %u retry %u %u %u %u %d", u->rate_per_host, u->priority,
                    u->http_version, r->max_attempts, r->min_backoff_ms, r->max_backoff_ms,
                    r->max_retry_after_ms, r->non_idempotent));
    for (int status = 100; status <= 599; status++) {
        if (policy_has_status(r, status))
            log_ok(buf_addf(&l->out, " %d", status));
    }
}

/* next(state, left): how long the next piece is (1..left). Every piece is copied to memory of
 * exactly its size, so that the sanitizer sees any reading beyond it. Ends l->out with a NUL. */
typedef size_t piece_fn(void *state, size_t left);
static inline void submit_log_run(struct submit_log *l, const struct submit_config *config,
                                  const char *p, size_t n, piece_fn *next, void *state)
{
    struct submit_config cfg = *config;
    cfg.sink.add = log_add;
    cfg.sink.arg = l;
    buf_init(&l->out, SUBMIT_LOG_MAX);
    struct submit *s = submit_new(&cfg);
    size_t at = 0;
    while (at < n) {
        size_t len = next != NULL ? next(state, n - at) : n - at, done = 0;
        char *piece = xmalloc(len);
        memcpy(piece, p + at, len);
        while (done < len) {
            size_t used = 0;
            int rc = submit_feed(s, piece + done, len - done, &used);
            ASSERT(used <= len - done);
            ASSERT(rc == SUBMIT_PAUSE || used == len - done);
            done += used;
        }
        free(piece);
        at += len;
    }
    log_end(l, s);
    submit_free(s);
    log_ok(buf_addc(&l->out, 0));
}

static inline size_t piece_fixed(void *state, size_t left)
{
    size_t n = *(size_t *)state;
    return n < left ? n : left;
}

#endif
