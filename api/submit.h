/* Reading of a submission as it streams in: JSON, NDJSON or text, in pieces of any size, with
 * memory bounded by the largest single element. What was read goes to a sink, request by request;
 * what is wrong with it becomes a struct problem. Knows neither HTTP nor the engine. One thread
 * at a time. */
#ifndef API_SUBMIT_H
#define API_SUBMIT_H

#include "api/problem.h"
#include "server/base.h"
#include "server/engine.h"
#include "server/item.h"

enum submit_type { SUBMIT_JSON, SUBMIT_NDJSON, SUBMIT_TEXT };

enum {
    SUBMIT_TEXT_LINE_MAX = 64 << 10, /* without its line end */
    SUBMIT_ELEMENT_MAX = 8 << 20,    /* an NDJSON line, an element of `urls` or `requests` */
    SUBMIT_HELD_SMALL = 8 << 10,     /* what any submission may hold, however many there are */
    SUBMIT_OUTSIDE_MAX = 256 << 10,  /* of a JSON document, all but those elements */
    SUBMIT_HEADERS_MAX = 32 << 10,   /* the header lines of a request together */
    SUBMIT_MAX_REDIRECTS_DEFAULT = 10,
    SUBMIT_PRIORITY_DEFAULT = 5,
    SUBMIT_EXPIRES_MAX = 3650 * 86400, /* of expires_after_s, where --retain has no bound */
};

/* A setting from the query string, percent-decoded. The bytes must be UTF-8 (the caller checks). */
struct submit_param {
    struct span name, value;
};

/* What submit_feed returns, and what a sink's add may return beside errors. */
enum submit_state {
    SUBMIT_OK = 0,
    SUBMIT_PAUSE = 1,  /* no more for now: call again later with the bytes from *consumed on */
    SUBMIT_FAILED = 2, /* the problem is final; whatever more is fed is swallowed unread */
};

/* Where requests go, in order. */
struct submit_sink {
    /* it->index is the position in the submission; it->invalid is set (and host NULL) when the URL
     * is wrong and may yet be forgiven. Everything must be copied during the call. Returns
     * SUBMIT_OK; SUBMIT_PAUSE: taken, but let submit_feed return now; or an error, which ends the
     * reading: E_LIMIT becomes too-large, E_FULL disk-full, E_BUSY and E_STOPPING busy, E_NOMEM
     * internal, others storage. */
    int (*add)(void *arg, const struct item *it, const char *host);
    void *arg;
};

struct submit_config {
    enum submit_type type;
    const struct submit_param *params; /* read during submit_new only */
    size_t n_params;
    uint64_t max_body_bytes; /* ceiling of the field of that name */
    uint64_t max_expires_s;  /* ceiling of expires_after_s */
    size_t element_max;      /* <= SUBMIT_ELEMENT_MAX; 0: that */
    uint64_t max_urls;       /* for the text of the problem; the sink is who counts */
    struct submit_sink sink;
};

struct submit;

/* Never fails but for memory (then the process ends). Wrong settings in the query are a problem:
 * look with submit_problem at once, or let it come out at submit_finish. */
struct submit *submit_new(const struct submit_config *cfg) __attribute__((returns_nonnull));
void submit_free(struct submit *s); /* NULL is fine */

/* Reads p[0..n). *consumed <= n is how much of it is done with; less than n only with
 * SUBMIT_PAUSE. Once anything is wrong no more goes to the sink, but further faults are collected
 * (up to PROBLEM_ERRORS_MAX) while the syntax stands: SUBMIT_OK is returned then too. */
int submit_feed(struct submit *s, const char *p, size_t n, size_t *consumed) MUSTCHECK;
/* The input is complete. Returns 0: accepted, the settings below are complete; or E_INVAL: see
 * submit_problem. A last line without a line end reaches the sink here (its SUBMIT_PAUSE is
 * ignored). */
int submit_finish(struct submit *s) MUSTCHECK;

/* NULL: nothing is wrong so far. Before submit_finish: that the submission will be refused is
 * certain, but the list may not be complete. Bad URLs do not show here before submit_finish as
 * long as they may be forgiven. Owned by s. */
const struct problem *submit_problem(struct submit *s);

/* After submit_finish returned 0. Strings belong to s. idem_key and idem_hash are left zero. */
const struct upload_settings *submit_settings(const struct submit *s);
/* Bytes that it holds of what it is reading. */
size_t submit_held(const struct submit *s);
/* Requests given to the sink so far. */
uint64_t submit_count(const struct submit *s);
/* Bad URLs so far (forgiven ones too). */
uint64_t submit_invalid_urls(const struct submit *s);

#endif
