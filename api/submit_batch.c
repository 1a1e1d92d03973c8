/* What the members of the document beside its requests mean: the settings of the batch. Works on
 * one small cJSON tree at a time, from a JSON document or made of query parameters. Runs on the
 * thread that reads the submission. */
#define _GNU_SOURCE
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "api/submit_impl.h"
#include "server/policy.h"

enum {
    PARALLEL_MAX = 1000000,
    RATE_MAX = 1000000, /* a second */
    REDIRECTS_MAX = 50,
    PRIORITY_MAX = 9,
    BACKOFF_MIN_MAX = 3600000,
    BACKOFF_MAX_MAX = 86400000,
    STATUS_MIN = 400,
    STATUS_MAX = 599,
    NAME_MAX_BYTES = 256,
    METADATA_MAX = 50,
    METADATA_KEY_MAX = 64,
    METADATA_VALUE_MAX = 1024,
};

const char *const submit_member_names[] = {
    "urls", "requests", "defaults", "limits",       "max_redirects", "ignore_invalid_urls",
    "name", "metadata", "priority", "http_version", "retry",         "expires_after_s",
};
const size_t submit_n_members = ARRAY_LEN(submit_member_names);

static const char *const limit_names[] = {"max_parallel", "max_per_host", "rate_per_host"};
static const char *const retry_names[] = {
    "max_attempts",       "min_backoff_ms", "max_backoff_ms",
    "max_retry_after_ms", "on_status",      "non_idempotent",
};

enum member submit_member(const char *name)
{
    for (size_t i = 0; i < submit_n_members; i++) {
        if (strcmp(name, submit_member_names[i]) == 0)
            return (enum member)(MEMBER_URLS + i);
    }
    return MEMBER_NONE;
}

/* ---- a field that stands elsewhere ---- */

static bool has(const char *const *names, size_t n, const char *name)
{
    for (size_t i = 0; i < n; i++) {
        if (strcmp(names[i], name) == 0)
            return true;
    }
    return false;
}

const char *submit_elsewhere(const struct spot *at, const char *name, char out[SUBMIT_HINT_SIZE])
{
    const struct {
        const char *object;
        const char *const *names;
        size_t n;
    } places[] = {
        {"limits", limit_names, ARRAY_LEN(limit_names)},
        {"retry", retry_names, ARRAY_LEN(retry_names)},
        {"defaults", submit_request_names + SUBMIT_REQUEST_ONLY,
         submit_n_request_names - SUBMIT_REQUEST_ONLY},
    };
    enum member m = submit_member(name);
    bool object = m == MEMBER_DEFAULTS || m == MEMBER_LIMITS || m == MEMBER_METADATA ||
                  m == MEMBER_RETRY;
    const char *kind = at->line > 0 ? "the query parameter " : ""; /* NDJSON */
    struct buf b;
    int rc = 0;
    buf_init(&b, SUBMIT_HINT_SIZE - 1);
    if (m != MEMBER_NONE && m != MEMBER_URLS && m != MEMBER_REQUESTS)
        rc = buf_addf(&b, "%s\"%s%s\"%s", kind, name, object && at->line > 0 ? ".NAME" : "",
                      at->line > 0 ? "" : " of the whole batch");
    for (size_t i = 0; i < ARRAY_LEN(places) && rc == 0; i++) {
        if (has(places[i].names, places[i].n, name))
            rc = buf_addf(&b, "%s%s\"%s.%s\"", b.len > 0 ? " or " : "", b.len > 0 ? "" : kind,
                          places[i].object, name);
    }
    bool found = rc == 0 && b.len > 0;
    if (found)
        memcpy(out, b.data, b.len);
    out[found ? b.len : 0] = 0;
    buf_fini(&b);
    return found ? out : NULL;
}

/* ---- limits ---- */

/* In thousandths of a request a second, as it is stored. */
static uint32_t read_rate(struct submit *s, const cJSON *v, const struct spot *at)
{
    if (cJSON_IsNumber(v) && v->valuedouble >= 0.001 && v->valuedouble <= RATE_MAX)
        return (uint32_t)lround(v->valuedouble * 1000);
    submit_error(s, at, "must be a number from 0.001 to %d: requests a second to one host",
                 RATE_MAX);
    return 0;
}

static void read_limits(struct submit *s, const cJSON *v, const struct spot *at)
{
    if (!submit_read_object(s, v, at))
        return;
    const cJSON *c;
    cJSON_ArrayForEach(c, v)
    {
        struct spot sub = spot_in(at, c->string);
        if (strcmp(c->string, "max_parallel") == 0)
            s->settings.max_parallel = (uint32_t)submit_read_uint(s, c, &sub, 1, PARALLEL_MAX);
        else if (strcmp(c->string, "max_per_host") == 0)
            s->settings.max_per_host = (uint32_t)submit_read_uint(s, c, &sub, 1, PARALLEL_MAX);
        else if (strcmp(c->string, "rate_per_host") == 0)
            s->settings.rate_per_host = read_rate(s, c, &sub);
        else
            submit_unknown(s, &sub, c->string, limit_names, ARRAY_LEN(limit_names));
    }
}

/* ---- retry ---- */

static bool read_bool(struct submit *s, const cJSON *v, const struct spot *at)
{
    if (!cJSON_IsBool(v))
        submit_error(s, at, "must be true or false");
    return cJSON_IsTrue(v);
}

/* The list replaces the default one. A query parameter has no place for an index: there the whole
 * list is at fault. */
static void read_on_status(struct submit *s, const cJSON *v, const struct spot *at)
{
    struct retry_policy *r = &s->settings.retry;
    if (!cJSON_IsArray(v)) {
        submit_error(s, at, "must be an array of HTTP statuses, each from %d to %d", STATUS_MIN,
                     STATUS_MAX);
        return;
    }
    memset(r->on_status, 0, sizeof(r->on_status));
    const cJSON *c;
    unsigned i = 0;
    cJSON_ArrayForEach(c, v)
    {
        char number[24];
        (void)snprintf(number, sizeof(number), "%u", i++);
        struct spot sub = at->query ? *at : spot_in(at, number);
        uint64_t errors = s->n_field_errors;
        int status = (int)submit_read_uint(s, c, &sub, STATUS_MIN, STATUS_MAX);
        if (s->n_field_errors != errors) {
            if (at->query)
                return;
        } else if (policy_has_status(r, status)) {
            submit_error(s, &sub, "%d is given more than once", status);
        } else {
            policy_add_status(r, status);
        }
    }
}

static void read_retry_field(struct submit *s, const cJSON *c, const struct spot *at)
{
    struct retry_policy *r = &s->settings.retry;
    if (strcmp(c->string, "max_attempts") == 0)
        r->max_attempts = (uint32_t)submit_read_uint(s, c, at, 1, SUBMIT_ATTEMPTS_MAX);
    else if (strcmp(c->string, "min_backoff_ms") == 0)
        r->min_backoff_ms = (uint32_t)submit_read_uint(s, c, at, 1, BACKOFF_MIN_MAX);
    else if (strcmp(c->string, "max_backoff_ms") == 0)
        r->max_backoff_ms = (uint32_t)submit_read_uint(s, c, at, 1, BACKOFF_MAX_MAX);
    else if (strcmp(c->string, "max_retry_after_ms") == 0)
        r->max_retry_after_ms = (uint32_t)submit_read_uint(s, c, at, 0, BACKOFF_MAX_MAX);
    else if (strcmp(c->string, "on_status") == 0)
        read_on_status(s, c, at);
    else if (strcmp(c->string, "non_idempotent") == 0)
        r->non_idempotent = read_bool(s, c, at);
    else
        submit_unknown(s, at, c->string, retry_names, ARRAY_LEN(retry_names));
}

static void read_retry(struct submit *s, const cJSON *v, const struct spot *at)
{
    struct retry_policy *r = &s->settings.retry;
    uint64_t errors = s->n_field_errors;
    if (!submit_read_object(s, v, at))
        return;
    r->max_attempts = POLICY_ATTEMPTS;
    const cJSON *c;
    cJSON_ArrayForEach(c, v)
    {
        struct spot sub = spot_in(at, c->string);
        read_retry_field(s, c, &sub);
    }
    if (s->n_field_errors != errors || r->min_backoff_ms <= r->max_backoff_ms)
        return;
    /* Of the two, one that is not given makes way. */
    if (cJSON_GetObjectItemCaseSensitive(v, "max_backoff_ms") == NULL) {
        r->max_backoff_ms = r->min_backoff_ms;
    } else if (cJSON_GetObjectItemCaseSensitive(v, "min_backoff_ms") == NULL) {
        r->min_backoff_ms = r->max_backoff_ms;
    } else {
        struct spot sub = spot_in(at, "max_backoff_ms");
        submit_error(s, &sub, "must not be less than min_backoff_ms (%u)", r->min_backoff_ms);
    }
}

/* ---- the others ---- */

static uint8_t read_http_version(struct submit *s, const cJSON *v, const struct spot *at)
{
    if (cJSON_IsString(v) && strcmp(v->valuestring, "2") == 0)
        return 20;
    if (!cJSON_IsString(v) || strcmp(v->valuestring, "1.1") != 0)
        submit_error(s, at, "must be the string \"1.1\" or \"2\"");
    return 11;
}

static void read_metadata(struct submit *s, const cJSON *v, const struct spot *at)
{
    if (!submit_read_object(s, v, at))
        return;
    if (cJSON_GetArraySize(v) > METADATA_MAX) {
        submit_error(s, at, "has more than %d members", METADATA_MAX);
        return;
    }
    struct jw w;
    jw_init(&w, &s->metadata);
    jw_object(&w);
    const cJSON *c;
    cJSON_ArrayForEach(c, v)
    {
        struct spot sub = spot_in(at, c->string);
        size_t n = strlen(c->string);
        if (n < 1 || n > METADATA_KEY_MAX)
            submit_error(s, &sub, "a key must be 1 to %d bytes long, not %zu", METADATA_KEY_MAX, n);
        struct span value = submit_read_string(s, c, &sub, 0, METADATA_VALUE_MAX);
        if (value.ptr == NULL)
            continue;
        jw_key(&w, c->string);
        jw_span(&w, value, JW_REPLACE);
    }
    jw_object_end(&w);
    if (w.rc == 0)
        w.rc = buf_addc(&s->metadata, 0);
    if (w.rc != 0)
        submit_error(s, at, "is too large");
    else if (v->child != NULL)
        s->settings.metadata = s->metadata.data;
}

void submit_read_member(struct submit *s, enum member m, cJSON *v, const struct spot *at)
{
    switch (m) {
    case MEMBER_DEFAULTS:
        /* the spans of settings.defaults point into the tree */
        (void)submit_read_request(s, v, at, true, &s->settings.defaults, &s->defaults_scratch);
        s->defaults_tree = v;
        return;
    case MEMBER_LIMITS: read_limits(s, v, at); break;
    case MEMBER_MAX_REDIRECTS:
        s->settings.max_redirects = (uint32_t)submit_read_uint(s, v, at, 0, REDIRECTS_MAX);
        break;
    case MEMBER_IGNORE:
        s->ignore = read_bool(s, v, at);
        s->ignore_known = true;
        break;
    case MEMBER_NAME: {
        struct span name = submit_read_string(s, v, at, 1, NAME_MAX_BYTES);
        if (name.ptr != NULL)
            s->name = xstrndup(name.ptr, name.len);
        s->settings.name = s->name;
        break;
    }
    case MEMBER_METADATA: read_metadata(s, v, at); break;
    case MEMBER_PRIORITY:
        s->settings.priority = (uint8_t)submit_read_uint(s, v, at, 0, PRIORITY_MAX);
        break;
    case MEMBER_HTTP_VERSION: s->settings.http_version = read_http_version(s, v, at); break;
    case MEMBER_RETRY: read_retry(s, v, at); break;
    case MEMBER_EXPIRES:
        s->settings.expires_after_s = (uint32_t)submit_read_uint(s, v, at, 1, s->cfg.max_expires_s);
        break;
    default: /* urls and requests come here only when they are not arrays */
        submit_error(s, at,
                     m == MEMBER_URLS ? "must be an array of strings"
                                      : "must be an array of objects");
        break;
    }
    cJSON_Delete(v);
}
