/* What is wrong with a submission: faults are listed as they are found, within bounds, and made
 * into one struct problem when that is asked for. Runs on the thread that reads the submission. */
#define _GNU_SOURCE
#include <stdio.h>
#include <string.h>

#include "api/submit_impl.h"

enum { POINTER_MAX = 2048 };

struct spot spot_in(const struct spot *at, const char *segment)
{
    struct spot sub = *at;
    ASSERT(sub.n < ARRAY_LEN(sub.seg));
    sub.seg[sub.n++] = segment;
    return sub;
}

static void add_segment(struct buf *b, const char *text, bool query)
{
    int rc = 0;
    for (const char *p = text; *p != 0 && rc == 0; p++) {
        if (*p == '~' && !query)
            rc = buf_adds(b, "~0");
        else if (*p == '/' && !query)
            rc = buf_adds(b, "~1");
        else
            rc = buf_addc(b, *p);
    }
}

static void list_error(struct problem *list, const struct spot *at, const char *detail)
{
    if (list->n_errors >= PROBLEM_ERRORS_MAX)
        return;
    struct buf b;
    buf_init(&b, POINTER_MAX); /* longer: cut there */
    for (unsigned i = 0; i < at->n; i++) {
        if (!at->query || i > 0) {
            if (buf_addc(&b, at->query ? '.' : '/') != 0)
                break;
        }
        add_segment(&b, at->seg[i], at->query);
    }
    if (b.len == b.max)
        b.len--;
    if (buf_addc(&b, 0) == 0) {
        char copy[PROBLEM_DETAIL_SIZE]; /* the struct's strings are not const: it owns most */
        (void)snprintf(copy, sizeof(copy), "%s", detail);
        struct problem_error e = {.line = at->line, .position = -1, .detail = copy};
        if (at->query)
            e.parameter = b.data;
        else if (at->line == 0 || at->n > 0)
            e.pointer = b.data;
        problem_add(list, &e);
    }
    buf_fini(&b);
}

void submit_error(struct submit *s, const struct spot *at, const char *fmt, ...)
{
    char detail[PROBLEM_DETAIL_SIZE];
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(detail, sizeof(detail), fmt, ap);
    va_end(ap);
    s->n_field_errors++;
    list_error(&s->field_list, at, detail);
}

void submit_url_error(struct submit *s, const struct spot *at, const char *why)
{
    char detail[PROBLEM_DETAIL_SIZE];
    s->n_invalid_urls++;
    (void)snprintf(detail, sizeof(detail), "not a valid URL: %s", why);
    list_error(&s->url_list, at, detail);
}

void submit_unknown(struct submit *s, const struct spot *at, const char *given,
                    const char *const *names, size_t n)
{
    char hint[SUBMIT_HINT_SIZE];
    const char *near = problem_nearest(given, names, n);
    if (near != NULL)
        submit_error(s, at, "unknown field \"%.100s\"; did you mean \"%s\"?", given, near);
    else if (submit_elsewhere(at, given, hint) != NULL)
        submit_error(s, at, "unknown field \"%.100s\"; did you mean %s?", given, hint);
    else
        submit_error(s, at, "unknown field \"%.100s\"", given);
}

static bool urls_refused(const struct submit *s)
{
    return s->n_invalid_urls > 0 && s->ignore_known && !s->ignore;
}

/* The submission can't be accepted any more. */
bool submit_is_refused(const struct submit *s)
{
    return s->fatal || s->n_field_errors > 0 || urls_refused(s);
}

/* Makes `problem` of the lists. */
void submit_conclude(struct submit *s)
{
    struct problem *p = &s->problem;
    if (s->fatal)
        return;
    unsigned long long fields = s->n_field_errors, urls = s->n_invalid_urls;
    if (fields == 1)
        problem_set(p, PROBLEM_INVALID_FIELD, "%s", s->field_list.errors[0].detail);
    else if (fields > 1)
        problem_set(p, PROBLEM_INVALID_FIELD, "%llu fields are wrong; the first: %s", fields,
                    s->field_list.errors[0].detail);
    else if (urls_refused(s) && urls == 1)
        problem_set(p, PROBLEM_INVALID_URL,
                    "1 URL is not valid; nothing was accepted "
                    "(ignore_invalid_urls=true forgives it)");
    else if (urls_refused(s))
        problem_set(p, PROBLEM_INVALID_URL,
                    "%llu URLs are not valid; nothing was accepted "
                    "(ignore_invalid_urls=true forgives them)",
                    urls);
    for (uint32_t i = 0; i < s->field_list.n_errors; i++)
        problem_add(p, &s->field_list.errors[i]);
    for (uint32_t i = 0; i < s->url_list.n_errors && urls_refused(s); i++)
        problem_add(p, &s->url_list.errors[i]);
}

/* Something is larger than its bound, so reading ends. If fields were wrong before, that is the
 * better news: a misspelt "urls" would otherwise show as a document that is too large. */
void submit_too_large(struct submit *s, const struct spot *at, const char *detail)
{
    if (s->n_field_errors == 0) {
        struct problem list = {0};
        problem_set(&s->problem, PROBLEM_TOO_LARGE, "%s", detail);
        list_error(&list, at, detail);
        problem_add(&s->problem, &list.errors[0]);
        problem_fini(&list);
    } else {
        submit_conclude(s);
    }
    s->fatal = true;
}

void submit_malformed(struct submit *s, const struct json_scan *scan, uint64_t line)
{
    unsigned long long at = scan->at, l = line != 0 ? line : scan->line;
    char why[PROBLEM_DETAIL_SIZE];
    (void)snprintf(why, sizeof(why), "%s", scan->why);
    FATAL(s, PROBLEM_MALFORMED_JSON, "%s (line %llu, byte %llu)", why, l, at);
    problem_add(&s->problem,
                &(struct problem_error){.line = l, .position = (int64_t)scan->at, .detail = why});
}

void submit_sink_failed(struct submit *s, int rc)
{
    switch (rc) {
    case E_LIMIT:
        FATAL(s, PROBLEM_TOO_LARGE, "a batch may have %llu requests at most",
              (unsigned long long)s->cfg.max_urls);
        break;
    case E_FULL:
        FATAL(s, PROBLEM_DISK_FULL, "there is no space left to store the submission");
        break;
    case E_BUSY:
    case E_STOPPING: FATAL(s, PROBLEM_BUSY, "the service can't take more at the moment"); break;
    case E_NOMEM: FATAL(s, PROBLEM_INTERNAL, "out of memory"); break;
    default: FATAL(s, PROBLEM_STORAGE, "the submission could not be stored"); break;
    }
}
