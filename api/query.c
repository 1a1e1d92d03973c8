/* Taking apart what a request says beside its body. Every function here is pure and is fuzzed and
 * unit-tested on its own; whatever thread calls it, it keeps no state. */
#include "api/query.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

static int hex_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

long percent_decode(char *dst, const char *src, size_t len, bool plus)
{
    size_t n = 0;

    for (size_t i = 0; i < len; i++) {
        char c = src[i];

        if (c == '%') {
            int hi = i + 1 < len ? hex_value(src[i + 1]) : -1;
            int lo = i + 2 < len ? hex_value(src[i + 2]) : -1;

            if (hi < 0 || lo < 0)
                return -1;
            c = (char)(hi * 16 + lo);
            i += 2;
        } else if (c == '+' && plus) {
            c = ' ';
        }
        if (c == '\0')
            return -1;
        dst[n++] = c;
    }
    dst[n] = '\0';
    return (long)n;
}

static size_t count_pieces(const char *raw, size_t len)
{
    size_t n = 1;

    for (size_t i = 0; i < len; i++)
        n += raw[i] == '&';
    return n;
}

/* One "name=value" piece; *mem is where its decoded text goes, moved behind it. */
static int add_piece(struct query *q, const char *p, size_t len, char **mem, const char **why)
{
    const char *eq = memchr(p, '=', len);
    size_t name_len = eq ? (size_t)(eq - p) : len;
    struct query_param *out = &q->v[q->n];
    long n = percent_decode(*mem, p, name_len, true);
    char *value = *mem + (n < 0 ? 0 : n) + 1;
    long m = 0;

    if (n >= 0)
        m = eq ? percent_decode(value, eq + 1, len - name_len - 1, true) : 0;
    if (n < 0 || m < 0) {
        *why = "the query has a malformed percent-escape or an encoded NUL";
        return E_INVAL;
    }
    value[m] = '\0';
    if (!utf8_valid(*mem, (size_t)n) || !utf8_valid(value, (size_t)m)) {
        *why = "the query is not valid UTF-8";
        return E_INVAL;
    }
    if (n == 0) {
        *why = "the query has a parameter without a name";
        return E_INVAL;
    }
    out->name = *mem;
    out->value = value;
    *mem = value + m + 1;
    q->n++;
    return 0;
}

int query_parse(struct query *q, const char *raw, size_t len, const char **why)
{
    size_t pieces = count_pieces(raw, len);
    char *mem;

    memset(q, 0, sizeof(*q));
    *why = NULL;
    for (size_t i = 0; i < len; i++)
        if ((unsigned char)raw[i] < 0x20 || raw[i] == 0x7f) {
            *why = "the query contains a control character";
            return E_INVAL;
        }
    if (len == 0)
        return 0;
    if (pieces > QUERY_PARAMS_MAX) {
        *why = "the query has too many parameters";
        return E_LIMIT;
    }
    q->v = calloc(pieces, sizeof(*q->v));
    q->mem = malloc(len + 2 * pieces + 1); /* decoding never grows; two NULs a piece */
    if (!q->v || !q->mem) {
        query_fini(q);
        return E_NOMEM;
    }
    mem = q->mem;
    for (size_t at = 0; at < len;) {
        const char *amp = memchr(raw + at, '&', len - at);
        size_t end = amp ? (size_t)(amp - raw) : len;

        if (end > at) {
            int rc = add_piece(q, raw + at, end - at, &mem, why);

            if (rc != 0) {
                query_fini(q);
                return rc;
            }
        }
        at = end + 1;
    }
    return 0;
}

void query_fini(struct query *q)
{
    free(q->v);
    free(q->mem);
    memset(q, 0, sizeof(*q));
}

const char *query_get(const struct query *q, const char *name)
{
    for (size_t i = 0; i < q->n; i++)
        if (strcmp(q->v[i].name, name) == 0)
            return q->v[i].value;
    return NULL;
}

const char *query_twice(const struct query *q)
{
    for (size_t i = 1; i < q->n; i++)
        for (size_t j = 0; j < i; j++)
            if (strcmp(q->v[i].name, q->v[j].name) == 0)
                return q->v[i].name;
    return NULL;
}

int parse_number(const char *s, uint64_t min, uint64_t max, uint64_t *out)
{
    uint64_t v = 0;

    if (*s == '\0')
        return E_INVAL;
    for (; *s; s++) {
        if (*s < '0' || *s > '9')
            return E_INVAL;
        if (v > (UINT64_MAX - 9) / 10)
            return E_LIMIT;
        v = v * 10 + (uint64_t)(*s - '0');
    }
    if (v < min || v > max)
        return E_LIMIT;
    *out = v;
    return 0;
}

/* ---- header fields ---- */

static const char *skip_space(const char *p, const char *end)
{
    while (p < end && (*p == ' ' || *p == '\t'))
        p++;
    return p;
}

/* The end of the list element that starts at p: the next comma outside of quotes. */
static const char *element_end(const char *p)
{
    bool quoted = false;

    for (; *p; p++) {
        if (quoted && *p == '\\' && p[1])
            p++;
        else if (*p == '"')
            quoted = !quoted;
        else if (*p == ',' && !quoted)
            break;
    }
    return p;
}

/* A qvalue in thousandths (RFC 9110 12.4.2); what is malformed counts as 1. */
static int qvalue(const char *p, const char *end)
{
    int v = 0, scale = 100;

    if (p == end || (*p != '0' && *p != '1'))
        return 1000;
    v = (*p++ - '0') * 1000;
    if (p < end && *p == '.')
        for (p++; p < end && *p >= '0' && *p <= '9' && scale > 0; p++, scale /= 10)
            v += (*p - '0') * scale;
    return v > 1000 ? 1000 : v;
}

static int element_q(const char *params, const char *end)
{
    for (const char *p = params; p < end;) {
        const char *semi = memchr(p, ';', (size_t)(end - p));
        const char *stop = semi ? semi : end;

        p = skip_space(p, stop);
        if (stop - p > 2 && (*p == 'q' || *p == 'Q') && p[1] == '=')
            return qvalue(p + 2, stop);
        p = stop + 1;
    }
    return 1000;
}

struct preference {
    int q;     /* thousandths; -1: no range matched */
    int exact; /* 3 the type itself, 2 type / *, 1 * / * */
};

static void prefer(struct preference *p, int exact, int q)
{
    if (exact > p->exact || (exact == p->exact && q > p->q)) {
        p->exact = exact;
        p->q = q;
    }
}

static bool same_word(const char *p, size_t len, const char *word)
{
    return len == strlen(word) && strncasecmp(p, word, len) == 0;
}

enum media accept_choose(const char *accept)
{
    struct preference json = {-1, 0}, ndjson = {-1, 0};

    if (!accept || *skip_space(accept, accept + strlen(accept)) == '\0')
        return MEDIA_JSON;
    for (const char *p = accept; *p;) {
        const char *end = element_end(p);
        const char *semi = memchr(p, ';', (size_t)(end - p));
        const char *type_end = semi ? semi : end;
        int q = semi ? element_q(semi + 1, end) : 1000;
        size_t len;

        p = skip_space(p, type_end);
        while (type_end > p && (type_end[-1] == ' ' || type_end[-1] == '\t'))
            type_end--;
        len = (size_t)(type_end - p);
        if (same_word(p, len, "*/*")) {
            prefer(&json, 1, q);
            prefer(&ndjson, 1, q);
        } else if (same_word(p, len, "application/*")) {
            prefer(&json, 2, q);
            prefer(&ndjson, 2, q);
        } else if (same_word(p, len, "application/json")) {
            prefer(&json, 3, q);
        } else if (same_word(p, len, "application/x-ndjson")) {
            prefer(&ndjson, 3, q);
        }
        p = *end ? end + 1 : end;
    }
    if (json.q <= 0 && ndjson.q <= 0)
        return MEDIA_NONE;
    if (json.q != ndjson.q)
        return json.q > ndjson.q ? MEDIA_JSON : MEDIA_NDJSON;
    return json.exact >= ndjson.exact ? MEDIA_JSON : MEDIA_NDJSON;
}

/* Digits at *p; false when there are none. A number too large to hold stands for "very far". */
static bool take_number(const char **p, uint64_t *out)
{
    uint64_t v = 0;
    const char *start = *p;

    for (; **p >= '0' && **p <= '9'; (*p)++)
        v = v > (UINT64_MAX - 9) / 10 ? UINT64_MAX / 2 : v * 10 + (uint64_t)(**p - '0');
    *out = v;
    return *p > start;
}

enum range range_parse(const char *field, uint64_t size, uint64_t *first, uint64_t *last)
{
    const char *p = field;
    uint64_t a = 0, b = 0;
    bool has_a, has_b;

    if (strncasecmp(p, "bytes=", 6) != 0 || strchr(p, ','))
        return RANGE_WHOLE;
    p = skip_space(p + 6, p + strlen(p));
    has_a = take_number(&p, &a);
    if (*p++ != '-')
        return RANGE_WHOLE;
    has_b = take_number(&p, &b);
    p = skip_space(p, p + strlen(p));
    if (*p != '\0' || (!has_a && !has_b) || (has_a && has_b && b < a))
        return RANGE_WHOLE;
    if (!has_a) { /* the last b bytes */
        if (b == 0 || size == 0)
            return RANGE_BAD;
        *first = b >= size ? 0 : size - b;
        *last = size - 1;
        return RANGE_PART;
    }
    if (a >= size)
        return RANGE_BAD;
    *first = a;
    *last = has_b && b < size ? b : size - 1;
    return RANGE_PART;
}

bool etag_listed(const char *field, const char *etag)
{
    const char *want = strncmp(etag, "W/", 2) == 0 ? etag + 2 : etag;
    size_t want_len = strlen(want);

    for (const char *p = field; *p;) {
        const char *end = element_end(p), *stop = end;

        p = skip_space(p, end);
        while (stop > p && (stop[-1] == ' ' || stop[-1] == '\t'))
            stop--;
        if (stop - p == 1 && *p == '*')
            return true;
        if (stop - p > 2 && p[0] == 'W' && p[1] == '/')
            p += 2;
        if ((size_t)(stop - p) == want_len && memcmp(p, want, want_len) == 0)
            return true;
        p = *end ? end + 1 : end;
    }
    return false;
}

bool prefer_wait(const char *field, uint64_t *seconds)
{
    for (const char *p = field; *p;) {
        const char *end = element_end(p);
        const char *stop = memchr(p, ';', (size_t)(end - p));

        stop = stop ? stop : end;
        p = skip_space(p, stop);
        if (stop - p > 5 && strncasecmp(p, "wait=", 5) == 0) {
            const char *v = p + 5;

            if (*v == '"')
                v++;
            if (take_number(&v, seconds))
                return true;
        }
        p = *end ? end + 1 : end;
    }
    return false;
}
