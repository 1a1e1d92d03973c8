/* For test_submit*.c: a document is read whole and in pieces, and what came of it compared. */
#ifndef TESTS_SUBMIT_FIXTURE_H
#define TESTS_SUBMIT_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/unit/submit_log.h"

#define D(s) s, sizeof(s) - 1
#define A "http://a.example/"
#define B "http://b.example/"
#define J SUBMIT_JSON
#define N SUBMIT_NDJSON
#define T SUBMIT_TEXT

static inline struct submit_config config(enum submit_type type)
{
    return (struct submit_config){
        .type = type, .max_body_bytes = 10 << 20, .max_expires_s = 86400, .max_urls = 1000000};
}

struct cut {
    size_t first;
    bool done;
};

static inline size_t piece_cut(void *state, size_t left)
{
    struct cut *c = state;
    if (c->done || c->first == 0 || c->first >= left)
        return left;
    c->done = true;
    return c->first;
}

/* Returns the outcome as text (the caller's). Long documents are cut at fewer places. */
static inline char *run(const struct submit_config *cfg, const char *p, size_t n)
{
    struct submit_log whole = {0};
    submit_log_run(&whole, cfg, p, n, NULL, NULL);
    for (size_t size = 1; size <= 3 && n < 20000; size++) {
        struct submit_log l = {.pause_every = size};
        submit_log_run(&l, cfg, p, n, piece_fixed, &size);
        if (strcmp(whole.out.data, l.out.data) != 0)
            fail_msg("pieces of %zu: %s\ninstead of %s", size, l.out.data, whole.out.data);
        buf_fini(&l.out);
    }
    size_t step = n < 2000 ? 1 : n / 7;
    for (size_t at = 1; at < n; at += step) {
        struct submit_log l = {.pause_every = 1};
        struct cut c = {.first = at};
        submit_log_run(&l, cfg, p, n, piece_cut, &c);
        if (strcmp(whole.out.data, l.out.data) != 0)
            fail_msg("cut at %zu: %s\ninstead of %s", at, l.out.data, whole.out.data);
        buf_fini(&l.out);
    }
    return whole.out.data;
}

#define TOP(x) D("{\"urls\":[\"" A "\"]," x "}")
#define STATUSES " 408 425 429 500 502 503 504"
#define USUAL " 0 5 11 retry 1 500 30000 60000 0" STATUSES
#define BARE " limits 0 0 10 name - meta - [null,null,null,null,null,null,0,0,0,null]"
#define END BARE USUAL
#define PLAIN(i, host, url) i " " host " [\"" url "\",null,null,null,null,null,0,0,0,null]\n"
#define SET(x) PLAIN("0", "a.example", A) "ok 1 bad 0" BARE " " x
#define TWO PLAIN("0", "a.example", A) PLAIN("1", "b.example", B) "ok 2 bad 0" END
#define ONE PLAIN("0", "a.example", A) "ok 1 bad 0" END

/* The outcome must hold the type, and `where` as it stands in errors[], and no request may follow
 * the fault (that is looked at apart). */
static inline void assert_refused(const struct submit_config *cfg, const char *doc, size_t n,
                                  const char *type, const char *where, const char *detail)
{
    char *got = run(cfg, doc, n), name[80];
    snprintf(name, sizeof(name), "{\"type\":\"/problems/%s\",", type);
    const char *problem = strstr(got, name);
    if (problem == NULL || strstr(problem, where) == NULL || strstr(problem, detail) == NULL)
        fail_msg("%.300s\nis     %.2000s\nnot as %s %s %s", doc, got, type, where, detail);
    free(got);
}

#define MALFORMED "malformed-json"
#define FIELD "invalid-field"
#define REQ(x) D("{\"requests\":[{\"url\":\"" A "\"},{\"url\":\"" A "\"," x "}]}")
#define AT(p) "\"errors\":[{\"pointer\":\"" p "\","

#endif
