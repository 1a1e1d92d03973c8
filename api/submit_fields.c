/* What the fields of a submission mean: their types and bounds, one function for each sort of
 * object, used alike for JSON and NDJSON. Works on one small cJSON tree at a time, which the
 * scanner has checked before. Runs on the thread that reads the submission. */
#define _GNU_SOURCE
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "api/submit_impl.h"

enum {
    TIMEOUT_MAX = 3600000,
    CONNECT_TIMEOUT_MAX = 600000,
    ATTEMPTS_MAX = 20,
    PARALLEL_MAX = 1000000,
    REDIRECTS_MAX = 50,
    CUSTOM_ID_MAX = 256,
    NAME_MAX_BYTES = 256,
    METADATA_MAX = 50,
    METADATA_KEY_MAX = 64,
    METADATA_VALUE_MAX = 1024,
    HEADERS_MAX = 100,
};

const char *const submit_member_names[] = {
    "urls", "requests", "defaults", "limits", "max_redirects", "ignore_invalid_urls",
    "name", "metadata",
};
const size_t submit_n_members = ARRAY_LEN(submit_member_names);

enum member submit_member(const char *name)
{
    for (size_t i = 0; i < submit_n_members; i++) {
        if (strcmp(name, submit_member_names[i]) == 0)
            return (enum member)(MEMBER_URLS + i);
    }
    return MEMBER_NONE;
}

static int by_name(const void *a, const void *b)
{
    const cJSON *const *x = a, *const *y = b;
    return strcmp((*x)->string, (*y)->string);
}

/* Lists the names that an object has more than once. Sorted, because a client chooses how many
 * there are. */
static void check_names(struct submit *s, const cJSON *object, const struct spot *at)
{
    const cJSON *v[JSON_VALUES_MAX], *c;
    size_t n = 0;
    cJSON_ArrayForEach(c, object)
    {
        ASSERT(n < JSON_VALUES_MAX);
        v[n++] = c;
    }
    if (n > 1)
        qsort(v, n, sizeof(v[0]), by_name);
    for (size_t i = 1; i < n; i++) {
        if (strcmp(v[i - 1]->string, v[i]->string) != 0)
            continue;
        struct spot sub = spot_in(at, v[i]->string);
        submit_error(s, &sub, "given more than once");
        while (i + 1 < n && strcmp(v[i]->string, v[i + 1]->string) == 0)
            i++;
    }
}

static bool read_object(struct submit *s, const cJSON *v, const struct spot *at)
{
    if (!cJSON_IsObject(v)) {
        submit_error(s, at, "must be an object");
        return false;
    }
    check_names(s, v, at);
    return true;
}

static uint64_t read_uint(struct submit *s, const cJSON *v, const struct spot *at, uint64_t min,
                          uint64_t max)
{
    /* max is at most 2^50: exact as a double */
    if (cJSON_IsNumber(v) && v->valuedouble >= (double)min && v->valuedouble <= (double)max &&
        v->valuedouble == floor(v->valuedouble))
        return (uint64_t)v->valuedouble;
    submit_error(s, at, "must be an integer from %llu to %llu", (unsigned long long)min,
                 (unsigned long long)max);
    return 0;
}

static struct span read_string(struct submit *s, const cJSON *v, const struct spot *at, size_t min,
                               size_t max)
{
    if (!cJSON_IsString(v)) {
        submit_error(s, at, "must be a string");
        return (struct span){0};
    }
    size_t n = strlen(v->valuestring);
    if (n < min || n > max) {
        submit_error(s, at, "must be %zu to %zu bytes long, not %zu", min, max, n);
        return (struct span){0};
    }
    return (struct span){v->valuestring, n};
}

/* ---- headers ---- */

static bool is_token(const char *name)
{
    for (const char *p = name; *p != 0; p++) {
        bool alnum = (*p >= '0' && *p <= '9') || (*p >= 'a' && *p <= 'z') ||
                     (*p >= 'A' && *p <= 'Z');
        if (!alnum && strchr("!#$%&'*+-.^_`|~", *p) == NULL)
            return false;
    }
    return *name != 0;
}

/* Framing and connection management are ours; the last two open cloud metadata services. */
static bool is_refused_name(const char *name)
{
    static const char *const whole[] = {
        "Host",
        "Content-Length",
        "Transfer-Encoding",
        "Connection",
        "Upgrade",
        "Keep-Alive",
        "TE",
        "Trailer",
        "Expect",
        "Metadata-Flavor",
    };
    static const char *const beginning[] = {"Proxy-", "X-aws-ec2-metadata-token"};
    for (size_t i = 0; i < ARRAY_LEN(whole); i++) {
        if (strcasecmp(name, whole[i]) == 0)
            return true;
    }
    for (size_t i = 0; i < ARRAY_LEN(beginning); i++) {
        if (strncasecmp(name, beginning[i], strlen(beginning[i])) == 0)
            return true;
    }
    return false;
}

static bool value_ok(const char *value)
{
    for (const unsigned char *p = (const unsigned char *)value; *p != 0; p++) {
        if ((*p < 0x20 && *p != '\t') || *p == 0x7f)
            return false;
    }
    return true;
}

static void read_header(struct submit *s, const cJSON *h, const struct spot *at, struct buf *out)
{
    struct span name = {h->string, strlen(h->string)}, lines = {out->data, out->len};
    if (!is_token(h->string)) {
        submit_error(s, at, "is not a header name");
        return;
    }
    if (is_refused_name(h->string)) {
        submit_error(s, at, "this header can't be set");
        return;
    }
    if (!cJSON_IsString(h)) {
        submit_error(s, at, "must be a string");
        return;
    }
    if (!value_ok(h->valuestring)) {
        submit_error(s, at, "has a control character in its value");
        return;
    }
    if (item_has_header(lines, name)) {
        submit_error(s, at, "given more than once (upper and lower case are the same here)");
        return;
    }
    const char *v = h->valuestring + strspn(h->valuestring, " \t");
    size_t n = strlen(v);
    while (n > 0 && (v[n - 1] == ' ' || v[n - 1] == '\t'))
        n--;
    size_t before = out->len;
    if (buf_add(out, name.ptr, name.len) != 0 || buf_adds(out, ": ") != 0 ||
        buf_add(out, v, n) != 0 || buf_addc(out, '\n') != 0) {
        out->len = before;
        submit_error(s, at, "the headers are larger than %d bytes together", SUBMIT_HEADERS_MAX);
    }
}

static struct span read_headers(struct submit *s, const cJSON *v, const struct spot *at,
                                struct buf *out)
{
    if (!read_object(s, v, at))
        return (struct span){0};
    if (cJSON_GetArraySize(v) > HEADERS_MAX) {
        submit_error(s, at, "has more than %d headers", HEADERS_MAX);
        return (struct span){0};
    }
    const cJSON *h;
    cJSON_ArrayForEach(h, v)
    {
        struct spot sub = spot_in(at, h->string);
        read_header(s, h, &sub, out);
    }
    if (out->len == 0)
        return (struct span){0};
    return (struct span){out->data, out->len};
}

/* ---- a request object ---- */

static const char *const request_names[] = {
    "url",        "custom_id",          "method",       "headers",        "body", "body_base64",
    "timeout_ms", "connect_timeout_ms", "max_attempts", "max_body_bytes",
};
enum { REQUEST_ONLY = 2 }; /* the first two are not for `defaults` */

bool submit_takes_body(struct span method)
{
    static const char *const with[] = {"POST", "PUT", "PATCH", "DELETE"};
    for (size_t i = 0; i < ARRAY_LEN(with); i++) {
        if (method.len == strlen(with[i]) && memcmp(method.ptr, with[i], method.len) == 0)
            return true;
    }
    return false;
}

static struct span read_method(struct submit *s, const cJSON *v, const struct spot *at)
{
    static const char *const known[] = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"};
    if (cJSON_IsString(v)) {
        for (size_t i = 0; i < ARRAY_LEN(known); i++) {
            if (strcmp(v->valuestring, known[i]) == 0)
                return (struct span){known[i], strlen(known[i])};
        }
    }
    submit_error(s, at, "must be one of GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");
    return (struct span){0};
}

static struct span read_base64(struct submit *s, const cJSON *v, const struct spot *at,
                               struct buf *out)
{
    struct span text = read_string(s, v, at, 0, SUBMIT_ELEMENT_MAX);
    if (text.ptr == NULL)
        return text;
    int rc = buf_reserve(out, 1); /* so that an empty body has an address */
    if (rc == 0)
        rc = base64_decode(out, text.ptr, text.len);
    if (rc != 0) {
        submit_error(s, at,
                     rc == E_INVAL ? "is not base64 (RFC 4648, with padding)"
                                   : "could not be decoded: out of memory");
        return (struct span){0};
    }
    return (struct span){out->data, out->len};
}

static void read_field(struct submit *s, const cJSON *v, const struct spot *at, struct item *it,
                       struct scratch *scratch)
{
    const char *name = v->string;
    if (strcmp(name, "url") == 0)
        it->url = read_string(s, v, at, 0, SUBMIT_ELEMENT_MAX);
    else if (strcmp(name, "custom_id") == 0)
        it->custom_id = read_string(s, v, at, 1, CUSTOM_ID_MAX);
    else if (strcmp(name, "method") == 0)
        it->method = read_method(s, v, at);
    else if (strcmp(name, "headers") == 0)
        it->headers = read_headers(s, v, at, &scratch->headers);
    else if (strcmp(name, "body") == 0)
        it->body = read_string(s, v, at, 0, SUBMIT_ELEMENT_MAX);
    else if (strcmp(name, "body_base64") == 0)
        it->body = read_base64(s, v, at, &scratch->body);
    else if (strcmp(name, "timeout_ms") == 0)
        it->timeout_ms = (uint32_t)read_uint(s, v, at, 1, TIMEOUT_MAX);
    else if (strcmp(name, "connect_timeout_ms") == 0)
        it->connect_timeout_ms = (uint32_t)read_uint(s, v, at, 1, CONNECT_TIMEOUT_MAX);
    else if (strcmp(name, "max_attempts") == 0)
        it->max_attempts = (uint32_t)read_uint(s, v, at, 1, ATTEMPTS_MAX);
    else {
        it->max_body_bytes = read_uint(s, v, at, 0, s->cfg.max_body_bytes);
        it->has_max_body_bytes = true;
    }
}

/* Whether body and method go together. Knows only what the object itself says. */
static void check_body(struct submit *s, const cJSON *v, const struct spot *at, bool defaults,
                       const struct item *it)
{
    bool text = cJSON_GetObjectItemCaseSensitive(v, "body") != NULL;
    bool base64 = cJSON_GetObjectItemCaseSensitive(v, "body_base64") != NULL;
    if (!text && !base64)
        return;
    struct spot sub = spot_in(at, base64 ? "body_base64" : "body");
    if (text && base64) {
        submit_error(s, &sub, "body and body_base64 exclude each other");
        return;
    }
    if (cJSON_GetObjectItemCaseSensitive(v, "method") == NULL) {
        if (defaults)
            submit_error(s, &sub, "needs a method that takes a body: POST, PUT, PATCH or DELETE");
        else if (s->n_pending++ < ARRAY_LEN(s->pending))
            s->pending[s->n_pending - 1] = (struct pending){
                .index = s->index, .line = at->line, .base64 = base64};
    } else if (it->method.ptr != NULL && !submit_takes_body(it->method)) {
        submit_error(s, &sub, "a request with the method %.*s takes no body", (int)it->method.len,
                     it->method.ptr);
    }
}

bool submit_read_request(struct submit *s, const cJSON *v, const struct spot *at, bool defaults,
                         struct item *it, struct scratch *scratch)
{
    uint64_t errors = s->n_field_errors;
    const char *const *names = request_names + (defaults ? REQUEST_ONLY : 0);
    size_t n = ARRAY_LEN(request_names) - (defaults ? REQUEST_ONLY : 0);
    buf_reset(&scratch->headers);
    buf_reset(&scratch->body);
    if (!read_object(s, v, at))
        return false;
    const cJSON *c;
    cJSON_ArrayForEach(c, v)
    {
        struct spot sub = spot_in(at, c->string);
        bool known = false;
        for (size_t i = 0; i < n && !known; i++)
            known = strcmp(c->string, names[i]) == 0;
        if (!known)
            submit_unknown(s, &sub, c->string, names, n);
        else
            read_field(s, c, &sub, it, scratch);
    }
    check_body(s, v, at, defaults, it);
    if (!defaults && cJSON_GetObjectItemCaseSensitive(v, "url") == NULL) {
        struct spot sub = spot_in(at, "url");
        submit_error(s, &sub, "is missing");
    }
    return s->n_field_errors == errors;
}

/* ---- the members of the document ---- */

static void read_limits(struct submit *s, const cJSON *v, const struct spot *at)
{
    static const char *const names[] = {"max_parallel", "max_per_host"};
    if (!read_object(s, v, at))
        return;
    const cJSON *c;
    cJSON_ArrayForEach(c, v)
    {
        struct spot sub = spot_in(at, c->string);
        if (strcmp(c->string, names[0]) == 0)
            s->settings.max_parallel = (uint32_t)read_uint(s, c, &sub, 1, PARALLEL_MAX);
        else if (strcmp(c->string, names[1]) == 0)
            s->settings.max_per_host = (uint32_t)read_uint(s, c, &sub, 1, PARALLEL_MAX);
        else
            submit_unknown(s, &sub, c->string, names, ARRAY_LEN(names));
    }
}

static void read_metadata(struct submit *s, const cJSON *v, const struct spot *at)
{
    if (!read_object(s, v, at))
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
        struct span value = read_string(s, c, &sub, 0, METADATA_VALUE_MAX);
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
        s->settings.max_redirects = (uint32_t)read_uint(s, v, at, 0, REDIRECTS_MAX);
        break;
    case MEMBER_IGNORE:
        if (!cJSON_IsBool(v))
            submit_error(s, at, "must be true or false");
        s->ignore = cJSON_IsTrue(v);
        s->ignore_known = true;
        break;
    case MEMBER_NAME: {
        struct span name = read_string(s, v, at, 1, NAME_MAX_BYTES);
        if (name.ptr != NULL)
            s->name = xstrndup(name.ptr, name.len);
        s->settings.name = s->name;
        break;
    }
    case MEMBER_METADATA: read_metadata(s, v, at); break;
    default: /* urls and requests come here only when they are not arrays */
        submit_error(s, at,
                     m == MEMBER_URLS ? "must be an array of strings"
                                      : "must be an array of objects");
        break;
    }
    cJSON_Delete(v);
}
