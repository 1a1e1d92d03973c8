/* Error answers as values: the table of types, a bounded list of single errors, and their JSON.
 * No state of its own; runs on whichever thread calls it. */
#define _GNU_SOURCE
#include "api/problem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/json.h"

enum { NAME_MAX_LEN = 1024, NEAREST_MAX = 64 };

static const struct {
    const char *name;
    int status;
    const char *title;
} types[] = {
#define X(sym, name, status, title) [sym] = {name, status, title},
    PROBLEM_TYPES(X)
#undef X
};

const char *problem_name(enum problem_type type)
{
    return types[type].name;
}

/* Cuts behind a whole character: text made by snprintf may end in half of one. */
static size_t utf8_cut(const char *s, size_t n)
{
    size_t i = n;
    while (i > 0 && n - i < 4 && ((unsigned char)s[i - 1] & 0xc0) == 0x80)
        i--;
    if (i == 0 || (unsigned char)s[i - 1] < 0xc0)
        return n;
    unsigned char lead = (unsigned char)s[i - 1];
    size_t need = lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
    return n - (i - 1) < need ? i - 1 : n;
}

static char *copy_cut(const char *s, size_t max)
{
    if (s == NULL)
        return NULL;
    size_t n = strnlen(s, max + 1);
    return xstrndup(s, n > max ? utf8_cut(s, max) : n);
}

static void drop_errors(struct problem *p)
{
    for (uint32_t i = 0; i < p->n_errors; i++) {
        struct problem_error *e = &p->errors[i];
        free(e->pointer);
        free(e->parameter);
        free(e->header);
        free(e->detail);
    }
    free(p->errors);
    p->errors = NULL;
    p->n_errors = 0;
}

static void format(char out[PROBLEM_DETAIL_SIZE], const char *fmt, va_list ap) PRINTF_LIKE(2, 0);
static void format(char out[PROBLEM_DETAIL_SIZE], const char *fmt, va_list ap)
{
    memset(out, 0, PROBLEM_DETAIL_SIZE);
    int n = vsnprintf(out, PROBLEM_DETAIL_SIZE, fmt, ap);
    if (n >= PROBLEM_DETAIL_SIZE)
        out[utf8_cut(out, PROBLEM_DETAIL_SIZE - 1)] = 0;
    else if (n < 0)
        out[0] = 0;
}

void problem_set(struct problem *p, enum problem_type type, const char *fmt, ...)
{
    char detail[PROBLEM_DETAIL_SIZE]; /* the arguments may be parts of *p */
    va_list ap;
    va_start(ap, fmt);
    format(detail, fmt, ap);
    va_end(ap);
    drop_errors(p);
    p->type = type;
    p->status = types[type].status;
    memcpy(p->detail, detail, sizeof(detail));
}

void problem_add(struct problem *p, const struct problem_error *e)
{
    if (p->n_errors >= PROBLEM_ERRORS_MAX)
        return;
    if ((p->n_errors & (p->n_errors - 1)) == 0) { /* grows by doubling */
        size_t cap = p->n_errors == 0 ? 1 : (size_t)p->n_errors * 2;
        p->errors = xrealloc(p->errors, cap * sizeof(*p->errors));
    }
    p->errors[p->n_errors++] = (struct problem_error){
        .pointer = copy_cut(e->pointer, NAME_MAX_LEN),
        .parameter = copy_cut(e->parameter, NAME_MAX_LEN),
        .header = copy_cut(e->header, NAME_MAX_LEN),
        .line = e->line,
        .position = e->position,
        .detail = copy_cut(e->detail, PROBLEM_DETAIL_SIZE - 1),
    };
}

void problem_add_parameter(struct problem *p, const char *name, const char *fmt, ...)
{
    char detail[PROBLEM_DETAIL_SIZE], *copy = xstrdup(name);
    va_list ap;
    va_start(ap, fmt);
    format(detail, fmt, ap);
    va_end(ap);
    problem_add(p, &(struct problem_error){.parameter = copy, .position = -1, .detail = detail});
    free(copy);
}

void problem_add_header(struct problem *p, const char *name, const char *fmt, ...)
{
    char detail[PROBLEM_DETAIL_SIZE], *copy = xstrdup(name);
    va_list ap;
    va_start(ap, fmt);
    format(detail, fmt, ap);
    va_end(ap);
    problem_add(p, &(struct problem_error){.header = copy, .position = -1, .detail = detail});
    free(copy);
}

void problem_fini(struct problem *p)
{
    drop_errors(p);
    memset(p, 0, sizeof(*p));
}

static void write_if(struct jw *w, const char *key, const char *value)
{
    if (value == NULL)
        return;
    jw_key(w, key);
    jw_str(w, value);
}

void problem_begin(struct jw *w, enum problem_type t, const char *detail)
{
    char type[64];
    snprintf(type, sizeof(type), "/problems/%s", types[t].name);
    jw_object(w);
    write_if(w, "type", type);
    write_if(w, "title", types[t].title);
    jw_key(w, "status");
    jw_i64(w, types[t].status);
    write_if(w, "detail", detail);
}

int problem_write(const struct problem *p, struct buf *b)
{
    struct jw w;
    jw_init(&w, b);
    problem_begin(&w, p->type, p->detail);
    if (p->n_errors > 0) {
        jw_key(&w, "errors");
        jw_array(&w);
        for (uint32_t i = 0; i < p->n_errors; i++) {
            const struct problem_error *e = &p->errors[i];
            jw_object(&w);
            if (e->line != 0) {
                jw_key(&w, "line");
                jw_u64(&w, e->line);
            }
            if (e->position >= 0) {
                jw_key(&w, "position");
                jw_i64(&w, e->position);
            }
            write_if(&w, "pointer", e->pointer);
            write_if(&w, "parameter", e->parameter);
            write_if(&w, "header", e->header);
            write_if(&w, "detail", e->detail);
            jw_object_end(&w);
        }
        jw_array_end(&w);
    }
    jw_object_end(&w);
    return w.rc;
}

/* Edits (insert, delete, replace, swap of neighbours) from a to b; both shorter than
 * NEAREST_MAX. */
static size_t distance(const char *a, size_t n, const char *b, size_t m)
{
    size_t row[3][NEAREST_MAX + 1], *before = row[0], *last = row[1], *now = row[2];
    for (size_t j = 0; j <= m; j++)
        last[j] = j;
    for (size_t i = 1; i <= n; i++) {
        now[0] = i;
        for (size_t j = 1; j <= m; j++) {
            size_t best = last[j - 1] + (a[i - 1] != b[j - 1]);
            if (last[j] + 1 < best)
                best = last[j] + 1;
            if (now[j - 1] + 1 < best)
                best = now[j - 1] + 1;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] &&
                before[j - 2] + 1 < best)
                best = before[j - 2] + 1;
            now[j] = best;
        }
        size_t *spare = before;
        before = last;
        last = now;
        now = spare;
    }
    return last[m];
}

const char *problem_nearest(const char *given, const char *const *names, size_t n)
{
    size_t len = strnlen(given, NEAREST_MAX), best = 3;
    const char *found = NULL;
    if (len == NEAREST_MAX)
        return NULL;
    for (size_t i = 0; i < n; i++) {
        size_t m = strlen(names[i]);
        if (m >= NEAREST_MAX)
            continue;
        size_t d = distance(given, len, names[i], m);
        if (d < best && d * 2 < m) {
            best = d;
            found = names[i];
        }
    }
    /* "timeout" and the like: a unit was left out (or added) */
    for (size_t i = 0; found == NULL && len >= 4 && i < n; i++) {
        size_t m = strlen(names[i]);
        if (m >= 4 && strncmp(given, names[i], m < len ? m : len) == 0)
            found = names[i];
    }
    return found;
}
