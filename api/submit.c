/* Reading of a submission as a stream. JSON goes through the scanner of json.c, which finds one
 * element of `urls` or `requests` at a time; NDJSON and text are cut at line ends. A value that
 * lies in one piece of input is read where it is; one that spans pieces is put together in
 * s->part first, so how the input was cut makes no difference. Runs on the thread that feeds it. */
#define _GNU_SOURCE
#include "api/submit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "api/submit_impl.h"
#include "server/policy.h"
#include "server/url.h"

enum {
    BOM_DONE = 4,
    KEEP_PART = 256 << 10, /* a larger s->part is freed after use */
    METADATA_TEXT_MAX = 1 << 20,
};
static const char bom[3] = {'\xef', '\xbb', '\xbf'};

/* ---- one request ---- */

static struct span utf8_head(struct span s, size_t max)
{
    size_t n = max;
    if (s.len <= max)
        return s;
    while (n > max - 4 && ((unsigned char)s.ptr[n] & 0xc0) == 0x80)
        n--;
    return (struct span){s.ptr, n};
}

/* Judges the URL and gives the request to the sink. */
static int give(struct submit *s, struct item *it, const struct spot *at)
{
    struct url u;
    const char *why = NULL;
    int rc = url_parse(&u, it->url.ptr, it->url.len, &why);
    bool good = rc == 0;
    it->index = s->index;
    if (!good) {
        submit_url_error(s, at, why);
        it->invalid = (struct span){why, strlen(why)};
        it->url = utf8_head(it->url, URL_MAX);
    }
    rc = SUBMIT_OK;
    if (!submit_is_refused(s)) {
        rc = s->cfg.sink.add(s->cfg.sink.arg, it, good ? u.host : NULL);
        if (rc >= 0)
            s->given++;
        else
            submit_sink_failed(s, rc);
    }
    if (good)
        url_fini(&u);
    return rc == SUBMIT_PAUSE ? SUBMIT_PAUSE : SUBMIT_OK;
}

static int give_url(struct submit *s, struct span url, const struct spot *at)
{
    struct item it = {.url = url};
    return give(s, &it, at);
}

static cJSON *parse(struct submit *s, struct span text)
{
    const char *end = NULL;
    cJSON *v = cJSON_ParseWithLengthOpts(text.ptr, text.len, &end, 0);
    if (v == NULL || end != text.ptr + text.len) {
        cJSON_Delete(v);
        FATAL(s, PROBLEM_INTERNAL, "a JSON value could not be read (out of memory?)");
        return NULL;
    }
    return v;
}

/* A JSON value that stands for a request, checked by `scan`. */
static int element(struct submit *s, struct span text, const struct json_scan *scan,
                   const struct spot *at, bool strings, bool objects)
{
    char first = text.ptr[0];
    if (first == '"' ? !strings : first != '{' || !objects) {
        submit_error(s, at,
                     !objects   ? "must be a string"
                     : !strings ? "must be an object"
                                : "must be a string (a URL) or a request object");
        return SUBMIT_OK;
    }
    if (scan->flaw != NULL) {
        submit_error(s, at, "%s", scan->flaw);
        return SUBMIT_OK;
    }
    if (first == '"' && !scan->escaped)
        return give_url(s, (struct span){text.ptr + 1, text.len - 2}, at);
    cJSON *v = parse(s, text);
    if (v == NULL)
        return SUBMIT_OK;
    int rc = SUBMIT_OK;
    if (first == '"') {
        rc = give_url(s, (struct span){v->valuestring, strlen(v->valuestring)}, at);
    } else {
        struct item it = {0};
        struct spot url = spot_in(at, "url");
        if (submit_read_request(s, v, at, false, &it, &s->scratch))
            rc = give(s, &it, &url);
    }
    cJSON_Delete(v);
    return rc;
}

static void reset_part(struct submit *s)
{
    buf_reset(&s->part);
    if (s->part.cap > KEEP_PART) {
        buf_fini(&s->part);
        buf_init(&s->part, s->cfg.element_max + 1);
    }
}

static bool add_part(struct submit *s, const char *p, size_t n)
{
    if (buf_add(&s->part, p, n) == 0)
        return true;
    FATAL(s, PROBLEM_INTERNAL, "out of memory");
    return false;
}

/* ---- NDJSON and text ---- */

static struct span trim(struct span t)
{
    while (t.len > 0 && (t.ptr[0] == ' ' || t.ptr[0] == '\t')) {
        t.ptr++;
        t.len--;
    }
    while (t.len > 0 && (t.ptr[t.len - 1] == ' ' || t.ptr[t.len - 1] == '\t'))
        t.len--;
    return t;
}

static bool is_bare_url(struct span t)
{
    t = trim(t);
    return (t.len > 5 && strncasecmp(t.ptr, "http:", 5) == 0) ||
           (t.len > 6 && strncasecmp(t.ptr, "https:", 6) == 0);
}

static int ndjson_line(struct submit *s, struct span text)
{
    struct json_scan scan;
    struct spot at = {.line = s->line};
    size_t pos = 0;
    json_scan_init(&scan, s->offset, s->line);
    enum json_event ev = json_next(&scan, text.ptr, text.len, &pos);
    if (ev == JSON_START) {
        json_take(&scan);
        ev = json_next(&scan, text.ptr, text.len, &pos);
        if (ev == JSON_MORE)
            ev = json_finish(&scan); /* a number that ends the line, or a fault */
        if (ev == JSON_VALUE) {
            struct span value = {text.ptr + (scan.start - s->offset),
                                 (size_t)(scan.at - scan.start)};
            ev = json_next(&scan, text.ptr, text.len, &pos);
            if (ev == JSON_MORE) {
                int rc = element(s, value, &scan, &at, true, true);
                s->index++;
                return rc;
            }
        }
    }
    if (is_bare_url(text))
        scan.why = "a line is a JSON value, so a URL stands in quotation marks; a list of bare "
                   "URLs is text/plain";
    submit_malformed(s, &scan, s->line);
    return SUBMIT_OK;
}

static int one_line(struct submit *s, struct span text)
{
    struct spot at = {.line = s->line};
    if (text.len > 0 && text.ptr[text.len - 1] == '\r')
        text.len--;
    struct span trimmed = trim(text);
    if (trimmed.len == 0)
        return SUBMIT_OK;
    if (s->cfg.type == SUBMIT_NDJSON)
        return ndjson_line(s, text);
    if (trimmed.ptr[0] == '#')
        return SUBMIT_OK;
    int rc = give_url(s, trimmed, &at);
    s->index++;
    return rc;
}

static void too_long(struct submit *s, const struct spot *at, const char *what, size_t max)
{
    char text[80];
    bool mib = max % (1 << 20) == 0;
    (void)snprintf(
        text, sizeof(text), "%s %zu %s%s", what, max >> (mib ? 20 : 10), mib ? "MiB" : "KiB",
        max != SUBMIT_TEXT_LINE_MAX && max < SUBMIT_ELEMENT_MAX ? " (--memory-limit)" : "");
    submit_too_large(s, at, text);
}

static int feed_lines(struct submit *s, const char *p, size_t n, size_t *pos)
{
    size_t max = s->cfg.type == SUBMIT_TEXT ? SUBMIT_TEXT_LINE_MAX : s->cfg.element_max;
    while (*pos < n && !s->fatal) {
        const char *from = p + *pos, *nl = memchr(from, '\n', n - *pos);
        size_t len = nl != NULL ? (size_t)(nl - from) : n - *pos;
        if (s->part.len + len > max) {
            struct spot at = {.line = s->line + 1};
            too_long(s, &at, "a line is longer than", max);
            break;
        }
        struct span text = {from, len};
        if (nl == NULL || s->part.len > 0) {
            if (!add_part(s, from, len))
                break;
            text = (struct span){s->part.data, s->part.len};
        }
        *pos += len;
        if (nl == NULL)
            break;
        ++*pos;
        s->line++;
        int rc = one_line(s, text);
        s->offset += text.len + 1;
        reset_part(s);
        if (rc != SUBMIT_OK)
            return rc;
    }
    return SUBMIT_OK;
}

/* ---- the JSON document ---- */

static void not_an_object(struct submit *s)
{
    struct spot at = {0};
    submit_error(s, &at, "the document must be an object with `urls` or `requests`");
    submit_conclude(s);
    s->fatal = true;
}

/* The bound on the value being read, or on all that is outside the arrays. */
static void set_limit(struct submit *s)
{
    if (s->level != LEVEL_ARRAY)
        s->scan.limit = s->array_bytes + SUBMIT_OUTSIDE_MAX;
    else if (s->taking)
        s->scan.limit = s->scan.start + s->cfg.element_max;
    else
        s->scan.limit = UINT64_MAX;
}

static struct spot member_spot(const struct submit *s)
{
    return (struct spot){.n = 1, .seg = {submit_member_names[s->member - MEMBER_URLS]}};
}

/* The spot of the element being read; `number` is the memory for its index. */
static struct spot element_spot(const struct submit *s, char number[24])
{
    struct spot at = member_spot(s);
    (void)snprintf(number, 24, "%llu", (unsigned long long)s->index);
    return spot_in(&at, number);
}

static void json_start(struct submit *s)
{
    char first = s->scan.first;
    if (s->level == LEVEL_DOCUMENT && first == '{') {
        s->level = LEVEL_MEMBERS;
        json_enter(&s->scan);
        return;
    }
    if (s->level == LEVEL_DOCUMENT && first == '[') {
        not_an_object(s);
        return;
    }
    if (s->level == LEVEL_MEMBERS && !s->scan.is_name && first == '[' &&
        (s->member == MEMBER_URLS || s->member == MEMBER_REQUESTS)) {
        s->level = LEVEL_ARRAY;
        s->array_start = s->scan.at;
        json_enter(&s->scan);
        return;
    }
    s->taking = true;
    json_take(&s->scan);
}

/* A member's name: decides what becomes of its value. */
static void json_name(struct submit *s, struct span text)
{
    cJSON *v = parse(s, text);
    if (v == NULL)
        return;
    const char *name = v->valuestring;
    struct spot at = {.n = 1, .seg = {name}};
    enum member m = s->scan.flaw == NULL ? submit_member(name) : MEMBER_NONE;
    unsigned both = 1u << MEMBER_URLS | 1u << MEMBER_REQUESTS;
    if (s->scan.flaw != NULL)
        submit_error(s, &at, "a member name %s", s->scan.flaw);
    else if (m == MEMBER_NONE)
        submit_unknown(s, &at, name, submit_member_names, submit_n_members);
    else if (s->seen & 1u << m)
        submit_error(s, &at, "given more than once");
    s->skip_array = (s->seen & both) != 0;
    if (s->skip_array && (both & 1u << m) && !(s->seen & 1u << m))
        submit_error(s, &at, "urls and requests exclude each other");
    s->member = m;
    /* The value of a member given twice is read over, but arrays may be long. */
    if ((s->seen & 1u << m) && m != MEMBER_URLS && m != MEMBER_REQUESTS)
        s->member = MEMBER_NONE;
    s->seen |= 1u << m;
    if (!s->skip_array && (both & 1u << m))
        s->index = 0;
    cJSON_Delete(v);
}

static void json_member(struct submit *s, struct span text)
{
    if (s->member == MEMBER_NONE)
        return;
    struct spot at = member_spot(s);
    if (s->scan.flaw != NULL) {
        submit_error(s, &at, "%s", s->scan.flaw);
        return;
    }
    cJSON *v = parse(s, text);
    if (v != NULL)
        submit_read_member(s, s->member, v, &at);
}

static int json_value(struct submit *s, struct span text)
{
    char number[24];
    if (s->level == LEVEL_DOCUMENT) {
        not_an_object(s);
    } else if (s->level == LEVEL_MEMBERS && s->scan.is_name) {
        json_name(s, text);
    } else if (s->level == LEVEL_MEMBERS) {
        json_member(s, text);
    } else if (!s->skip_array) {
        struct spot at = element_spot(s, number);
        bool strings = s->member == MEMBER_URLS;
        int rc = element(s, text, &s->scan, &at, strings, !strings);
        s->index++;
        return rc;
    }
    return SUBMIT_OK;
}

static void json_large(struct submit *s)
{
    char number[24];
    struct spot at = {0};
    if (s->level != LEVEL_ARRAY) {
        submit_too_large(s, &at,
                         "the document without `urls` or `requests` is larger than 256 KiB");
        return;
    }
    at = s->skip_array ? member_spot(s) : element_spot(s, number);
    too_long(s, &at, "an element is larger than", s->cfg.element_max);
}

static int feed_json(struct submit *s, const char *p, size_t n, size_t *pos)
{
    size_t from = *pos; /* where the value being read begins in this piece */
    while (!s->fatal) {
        set_limit(s);
        switch (json_next(&s->scan, p, n, pos)) {
        case JSON_START:
            from = *pos;
            json_start(s);
            break;
        case JSON_VALUE: {
            struct span text = {p + from, *pos - from};
            s->taking = false;
            if (s->part.len > 0) {
                if (!add_part(s, text.ptr, text.len))
                    break;
                text = (struct span){s->part.data, s->part.len};
            }
            int rc = json_value(s, text);
            reset_part(s);
            if (rc != SUBMIT_OK)
                return rc;
            break;
        }
        case JSON_END:
            if (s->level == LEVEL_ARRAY)
                s->array_bytes += s->scan.at - s->array_start;
            s->level = s->level == LEVEL_ARRAY ? LEVEL_MEMBERS : LEVEL_DOCUMENT;
            break;
        case JSON_MORE:
            if (s->taking)
                (void)add_part(s, p + from, n - from);
            return SUBMIT_OK;
        case JSON_LARGE: json_large(s); break;
        case JSON_BAD: submit_malformed(s, &s->scan, 0); break;
        }
    }
    return SUBMIT_OK;
}

/* ---- the whole ---- */

struct submit *submit_new(const struct submit_config *cfg)
{
    struct submit *s = xcalloc(1, sizeof(*s));
    s->cfg = *cfg;
    s->cfg.params = NULL;
    s->cfg.n_params = 0;
    if (s->cfg.element_max == 0)
        s->cfg.element_max = SUBMIT_ELEMENT_MAX;
    s->settings.max_redirects = SUBMIT_MAX_REDIRECTS_DEFAULT;
    s->settings.priority = SUBMIT_PRIORITY_DEFAULT;
    s->settings.http_version = 11;
    policy_init(&s->settings.retry);
    buf_init(&s->part, s->cfg.element_max + 1);
    buf_init(&s->scratch.headers, SUBMIT_HEADERS_MAX);
    buf_init(&s->scratch.body, s->cfg.element_max);
    buf_init(&s->defaults_scratch.headers, SUBMIT_HEADERS_MAX);
    buf_init(&s->defaults_scratch.body, SUBMIT_OUTSIDE_MAX);
    buf_init(&s->metadata, METADATA_TEXT_MAX);
    json_scan_init(&s->scan, 0, 1);
    submit_read_query(s, cfg->params, cfg->n_params);
    if (cfg->type != SUBMIT_JSON)
        s->ignore_known = true; /* nothing in the content can change it */
    return s;
}

size_t submit_held(const struct submit *s)
{
    return s->part.cap + s->scratch.headers.cap + s->scratch.body.cap + s->metadata.cap;
}

void submit_free(struct submit *s)
{
    if (s == NULL)
        return;
    problem_fini(&s->problem);
    problem_fini(&s->field_list);
    problem_fini(&s->url_list);
    buf_fini(&s->part);
    buf_fini(&s->scratch.headers);
    buf_fini(&s->scratch.body);
    buf_fini(&s->defaults_scratch.headers);
    buf_fini(&s->defaults_scratch.body);
    buf_fini(&s->metadata);
    cJSON_Delete(s->defaults_tree);
    free(s->name);
    free(s);
}

static int feed(struct submit *s, const char *p, size_t n, size_t *pos)
{
    return s->cfg.type == SUBMIT_JSON ? feed_json(s, p, n, pos) : feed_lines(s, p, n, pos);
}

/* What looked like the beginning of a byte order mark was content. */
static void end_bom(struct submit *s)
{
    size_t n = s->bom, pos = 0;
    s->bom = BOM_DONE;
    if (n > 0)
        (void)feed(s, bom, n, &pos); /* too little to reach the sink */
}

int submit_feed(struct submit *s, const char *p, size_t n, size_t *consumed)
{
    size_t pos = 0;
    int rc = SUBMIT_OK;
    while (pos < n && s->bom < BOM_DONE) {
        if (p[pos] != bom[s->bom]) {
            end_bom(s);
            break;
        }
        pos++;
        if (++s->bom == sizeof(bom)) {
            s->bom = BOM_DONE;
            s->offset = sizeof(bom);
            s->scan.at = sizeof(bom);
            s->array_bytes = sizeof(bom); /* not "outside" */
        }
    }
    if (!s->fatal && pos < n)
        rc = feed(s, p, n, &pos);
    *consumed = s->fatal ? n : pos;
    return s->fatal ? SUBMIT_FAILED : rc;
}

static void finish_json(struct submit *s)
{
    enum json_event ev = json_finish(&s->scan);
    if (ev == JSON_BAD) {
        submit_malformed(s, &s->scan, 0);
    } else if (ev == JSON_VALUE) {
        not_an_object(s);
    } else if (!(s->seen & (1u << MEMBER_URLS | 1u << MEMBER_REQUESTS))) {
        struct spot at = {0};
        submit_error(s, &at, "either `urls` or `requests` is needed");
    }
}

/* Judges bodies that came without a method. */
static void finish_pending(struct submit *s)
{
    if (s->n_pending == 0 || submit_takes_body(s->settings.defaults.method))
        return;
    char number[24];
    for (uint64_t i = 0; i < s->n_pending && i < ARRAY_LEN(s->pending); i++) {
        const struct pending *p = &s->pending[i];
        struct spot at = {.line = p->line};
        if (p->line == 0) {
            (void)snprintf(number, sizeof(number), "%llu", (unsigned long long)p->index);
            at = (struct spot){.n = 2, .seg = {"requests", number}};
        }
        struct spot sub = spot_in(&at, p->base64 ? "body_base64" : "body");
        submit_error(s, &sub, "needs a method that takes a body: POST, PUT, PATCH or DELETE");
    }
    if (s->n_pending > ARRAY_LEN(s->pending))
        s->n_field_errors += s->n_pending - ARRAY_LEN(s->pending);
}

int submit_finish(struct submit *s)
{
    if (!s->fatal && s->bom < BOM_DONE)
        end_bom(s);
    if (!s->fatal && s->cfg.type == SUBMIT_JSON) {
        finish_json(s);
    } else if (!s->fatal && s->part.len > 0) {
        s->line++;
        (void)one_line(s, (struct span){s->part.data, s->part.len});
    }
    finish_pending(s);
    s->ignore_known = true;
    if (!s->fatal && !submit_is_refused(s) && s->index == 0)
        FATAL(s, PROBLEM_EMPTY_BATCH, "there is no URL in the submission");
    if (!submit_is_refused(s))
        return 0;
    submit_conclude(s);
    s->fatal = true;
    return E_INVAL;
}

const struct problem *submit_problem(struct submit *s)
{
    if (!submit_is_refused(s))
        return NULL;
    submit_conclude(s);
    return &s->problem;
}

const struct upload_settings *submit_settings(const struct submit *s)
{
    return &s->settings;
}

uint64_t submit_count(const struct submit *s)
{
    return s->given;
}

uint64_t submit_invalid_urls(const struct submit *s)
{
    return s->n_invalid_urls;
}
