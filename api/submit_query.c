/* The settings that NDJSON and text take from the query string: turned into the same small trees
 * that a JSON document would have had, so that one set of functions judges both. Runs on the
 * thread that reads the submission. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>

#include "api/submit_impl.h"

enum { PARAMS_MAX = 500 };

enum sort { SORT_STRING, SORT_INTEGER, SORT_NUMBER, SORT_BOOL, SORT_LIST };

/* `defaults.headers.` and `metadata.` are beginnings: what follows is the client's own name. */
static const struct {
    const char *name;
    enum sort sort;
} settings[] = {
    {"name", SORT_STRING},
    {"ignore_invalid_urls", SORT_BOOL},
    {"max_redirects", SORT_INTEGER},
    {"limits.max_parallel", SORT_INTEGER},
    {"limits.max_per_host", SORT_INTEGER},
    {"limits.rate_per_host", SORT_NUMBER},
    {"priority", SORT_INTEGER},
    {"expires_after_s", SORT_INTEGER},
    {"http_version", SORT_STRING},
    {"retry.max_attempts", SORT_INTEGER},
    {"retry.min_backoff_ms", SORT_INTEGER},
    {"retry.max_backoff_ms", SORT_INTEGER},
    {"retry.max_retry_after_ms", SORT_INTEGER},
    {"retry.on_status", SORT_LIST},
    {"retry.non_idempotent", SORT_BOOL},
    {"defaults.method", SORT_STRING},
    {"defaults.timeout_ms", SORT_INTEGER},
    {"defaults.connect_timeout_ms", SORT_INTEGER},
    {"defaults.max_attempts", SORT_INTEGER},
    {"defaults.max_body_bytes", SORT_INTEGER},
};
static const char headers_prefix[] = "defaults.headers.", metadata_prefix[] = "metadata.";

struct trees {
    cJSON *limits, *retry, *metadata, *defaults, *headers; /* headers is a part of defaults */
};

static bool starts(const char *s, const char *with)
{
    return strncmp(s, with, strlen(with)) == 0;
}

/* As with xmalloc: for want of so little memory nothing else could be done either. */
static cJSON *must(cJSON *v)
{
    ASSERT(v != NULL);
    return v;
}

static cJSON *make_value(const char *text, size_t n, enum sort sort);

/* Integers between commas; none at all is a list too. */
static cJSON *make_list(const char *text)
{
    cJSON *list = must(cJSON_CreateArray());
    for (const char *p = text; *text != 0; p++) {
        size_t n = strcspn(p, ",");
        ASSERT(cJSON_AddItemToArray(list, make_value(p, n, SORT_INTEGER)));
        p += n;
        if (*p == 0)
            break;
    }
    return list;
}

/* Digits, and perhaps a point and more of them. */
static bool is_decimal(const char *text, size_t n)
{
    size_t whole = strspn(text, "0123456789");
    size_t part = whole < n && text[whole] == '.' ? strspn(text + whole + 1, "0123456789") : 0;
    return whole > 0 && n <= 24 && n == whole + (part > 0 ? part + 1 : 0);
}

/* A value that is not of its sort stays a string: its reader then says what it must be. */
static cJSON *make_value(const char *text, size_t n, enum sort sort)
{
    if (sort == SORT_BOOL && strcmp(text, "true") == 0)
        return must(cJSON_CreateTrue());
    if (sort == SORT_BOOL && strcmp(text, "false") == 0)
        return must(cJSON_CreateFalse());
    if (sort == SORT_INTEGER && n >= 1 && n <= 15 && strspn(text, "0123456789") >= n)
        return must(cJSON_CreateNumber((double)strtoull(text, NULL, 10)));
    if (sort == SORT_NUMBER && is_decimal(text, n))
        return must(cJSON_CreateNumber(strtod(text, NULL)));
    if (sort == SORT_LIST)
        return make_list(text);
    char *copy = xstrndup(text, n);
    cJSON *v = must(cJSON_CreateString(copy));
    free(copy);
    return v;
}

static void put(cJSON **tree, const char *name, cJSON *v)
{
    if (*tree == NULL)
        *tree = must(cJSON_CreateObject());
    ASSERT(cJSON_AddItemToObject(*tree, name, v));
}

/* The settings whose last part this is: "max_per_host" is "limits.max_per_host". */
static bool list_tails(const char *name, struct buf *out)
{
    for (size_t i = 0; i < ARRAY_LEN(settings); i++) {
        const char *dot = strchr(settings[i].name, '.');
        if (dot == NULL || strcmp(dot + 1, name) != 0)
            continue;
        if (buf_addf(out, "%s\"%s\"", out->len > 0 ? " or " : "", settings[i].name) != 0)
            return false;
    }
    return out->len > 0;
}

static void unknown(struct submit *s, const struct spot *at, const char *name)
{
    const char *names[ARRAY_LEN(settings) + 2];
    for (size_t i = 0; i < ARRAY_LEN(settings); i++)
        names[i] = settings[i].name;
    names[ARRAY_LEN(settings)] = "defaults.headers.NAME";
    names[ARRAY_LEN(settings) + 1] = "metadata.KEY";
    const char *near = problem_nearest(name, names, ARRAY_LEN(names));
    struct buf tails;
    buf_init(&tails, SUBMIT_HINT_SIZE);
    if (list_tails(name, &tails))
        submit_error(s, at, "unknown parameter \"%.100s\"; did you mean %.*s?", name,
                     (int)tails.len, tails.data);
    else if (near != NULL)
        submit_error(s, at, "unknown parameter \"%.100s\"; did you mean \"%s\"?", name, near);
    else
        submit_error(s, at, "unknown parameter \"%.100s\"", name);
    buf_fini(&tails);
}

static void read_param(struct submit *s, const char *name, const char *value, struct trees *t)
{
    struct spot at = {.query = true, .n = 1, .seg = {name}};
    if (starts(name, headers_prefix)) {
        put(&t->headers, name + strlen(headers_prefix),
            make_value(value, strlen(value), SORT_STRING));
        return;
    }
    if (starts(name, metadata_prefix)) {
        put(&t->metadata, name + strlen(metadata_prefix),
            make_value(value, strlen(value), SORT_STRING));
        return;
    }
    for (size_t i = 0; i < ARRAY_LEN(settings); i++) {
        if (strcmp(name, settings[i].name) != 0)
            continue;
        cJSON *v = make_value(value, strlen(value), settings[i].sort);
        const char *dot = strchr(name, '.');
        if (dot == NULL)
            submit_read_member(s, submit_member(name), v, &at);
        else
            put(starts(name, "limits.")  ? &t->limits
                : starts(name, "retry.") ? &t->retry
                                         : &t->defaults,
                dot + 1, v);
        return;
    }
    unknown(s, &at, name);
}

static bool given_before(const struct submit_param *params, size_t i)
{
    for (size_t k = 0; k < i; k++) {
        if (params[k].name.len == params[i].name.len &&
            memcmp(params[k].name.ptr, params[i].name.ptr, params[i].name.len) == 0)
            return true;
    }
    return false;
}

static void read_tree(struct submit *s, const char *name, cJSON *tree)
{
    struct spot at = {.query = true, .n = 1, .seg = {name}};
    if (tree != NULL)
        submit_read_member(s, submit_member(name), tree, &at);
}

void submit_read_query(struct submit *s, const struct submit_param *params, size_t n)
{
    struct trees t = {0};
    if (n > PARAMS_MAX) {
        problem_set(&s->problem, PROBLEM_INVALID_FIELD, "more than %d query parameters",
                    PARAMS_MAX);
        s->fatal = true;
        return;
    }
    for (size_t i = 0; i < n; i++) {
        const struct span *name = &params[i].name, *value = &params[i].value;
        char *name_text = xstrndup(name->len > 0 ? name->ptr : "", name->len);
        char *value_text = xstrndup(value->len > 0 ? value->ptr : "", value->len);
        struct spot at = {.query = true, .n = 1, .seg = {name_text}};
        if (s->cfg.type == SUBMIT_JSON)
            submit_error(s, &at,
                         "a JSON submission takes no query parameters: put it in the "
                         "document");
        else if (strlen(name_text) != name->len || strlen(value_text) != value->len)
            submit_error(s, &at, "contains a NUL");
        else if (name->len > 0 && given_before(params, i))
            submit_error(s, &at, "given more than once");
        else
            read_param(s, name_text, value_text, &t);
        free(name_text);
        free(value_text);
    }
    if (t.headers != NULL)
        put(&t.defaults, "headers", t.headers);
    read_tree(s, "limits", t.limits);
    read_tree(s, "retry", t.retry);
    read_tree(s, "metadata", t.metadata);
    read_tree(s, "defaults", t.defaults);
}
