/* What the fields of a request and of `defaults` mean: their types and bounds, used alike for JSON
 * and NDJSON; submit_batch.c has those of the batch. Works on one small cJSON tree at a time, which
 * the scanner has checked before. Runs on the thread that reads the submission. */
#define _GNU_SOURCE
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "api/submit_impl.h"

enum {
    TIMEOUT_MAX = 3600000,
    CONNECT_TIMEOUT_MAX = 600000,
    CUSTOM_ID_MAX = 256,
    HEADERS_MAX = 100,
};

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

bool submit_read_object(struct submit *s, const cJSON *v, const struct spot *at)
{
    if (!cJSON_IsObject(v)) {
        submit_error(s, at, "must be an object");
        return false;
    }
    check_names(s, v, at);
    return true;
}

uint64_t submit_read_uint(struct submit *s, const cJSON *v, const struct spot *at, uint64_t min,
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

struct span submit_read_string(struct submit *s, const cJSON *v, const struct spot *at, size_t min,
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
    if (!submit_read_object(s, v, at))
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

const char *const submit_request_names[] = {
    "url",        "custom_id",          "method",       "headers",        "body", "body_base64",
    "timeout_ms", "connect_timeout_ms", "max_attempts", "max_body_bytes",
};
const size_t submit_n_request_names = ARRAY_LEN(submit_request_names);

bool submit_takes_body(struct span method)
{
    static const char *const with[] = {"POST", "PUT", "PATCH", "DELETE"};
    for (size_t i = 0; i < ARRAY_LEN(with); i++) {
        if (span_is(method, with[i]))
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
    struct span text = submit_read_string(s, v, at, 0, SUBMIT_ELEMENT_MAX);
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
        it->url = submit_read_string(s, v, at, 0, SUBMIT_ELEMENT_MAX);
    else if (strcmp(name, "custom_id") == 0)
        it->custom_id = submit_read_string(s, v, at, 1, CUSTOM_ID_MAX);
    else if (strcmp(name, "method") == 0)
        it->method = read_method(s, v, at);
    else if (strcmp(name, "headers") == 0)
        it->headers = read_headers(s, v, at, &scratch->headers);
    else if (strcmp(name, "body") == 0)
        it->body = submit_read_string(s, v, at, 0, SUBMIT_ELEMENT_MAX);
    else if (strcmp(name, "body_base64") == 0)
        it->body = read_base64(s, v, at, &scratch->body);
    else if (strcmp(name, "timeout_ms") == 0)
        it->timeout_ms = (uint32_t)submit_read_uint(s, v, at, 1, TIMEOUT_MAX);
    else if (strcmp(name, "connect_timeout_ms") == 0)
        it->connect_timeout_ms = (uint32_t)submit_read_uint(s, v, at, 1, CONNECT_TIMEOUT_MAX);
    else if (strcmp(name, "max_attempts") == 0)
        it->max_attempts = (uint32_t)submit_read_uint(s, v, at, 1, SUBMIT_ATTEMPTS_MAX);
    else {
        it->max_body_bytes = submit_read_uint(s, v, at, 0, s->cfg.max_body_bytes);
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
    size_t skip = defaults ? SUBMIT_REQUEST_ONLY : 0;
    const char *const *names = submit_request_names + skip;
    size_t n = submit_n_request_names - skip;
    buf_reset(&scratch->headers);
    buf_reset(&scratch->body);
    if (!submit_read_object(s, v, at))
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
