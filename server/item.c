/* The record of a request in pages on disk: a flag byte, then varints (LEB128) and byte strings
 * for what is given. Most records are a flag byte, an index, a length and the URL. Pure. */
#include "server/item.h"

#include <string.h>
#include <strings.h>

enum {
    HAS_INVALID = 1,
    HAS_CUSTOM_ID = 2,
    HAS_REQUEST = 4, /* method, headers, body */
    HAS_BOUNDS = 8,  /* the four numbers */
};

static size_t put_varint(unsigned char *p, uint64_t v)
{
    size_t n = 0;
    while (v >= 0x80) {
        p[n++] = (unsigned char)(v | 0x80);
        v >>= 7;
    }
    p[n++] = (unsigned char)v;
    return n;
}

static void add_varint(struct buf *b, uint64_t v)
{
    b->len += put_varint((unsigned char *)b->data + b->len, v);
}

/* A length of 0 means "none"; lengths are stored one up, so that an empty body survives. */
static void add_span(struct buf *b, struct span s)
{
    if (s.ptr == NULL) {
        add_varint(b, 0);
        return;
    }
    add_varint(b, (uint64_t)s.len + 1);
    if (s.len > 0)
        memcpy(b->data + b->len, s.ptr, s.len);
    b->len += s.len;
}

int item_encode(struct buf *b, const struct item *it)
{
    /* 12 varints of at most 10 bytes, and the flag byte */
    size_t need = 128 + it->url.len + it->invalid.len + it->custom_id.len + it->method.len +
                  it->headers.len + it->body.len;
    int rc = buf_reserve(b, need);
    if (rc != 0)
        return rc;

    unsigned flags = 0;
    if (it->invalid.ptr != NULL)
        flags |= HAS_INVALID;
    if (it->custom_id.ptr != NULL)
        flags |= HAS_CUSTOM_ID;
    if (it->method.ptr != NULL || it->headers.ptr != NULL || it->body.ptr != NULL)
        flags |= HAS_REQUEST;
    if (it->timeout_ms != 0 || it->connect_timeout_ms != 0 || it->max_attempts != 0 ||
        it->has_max_body_bytes)
        flags |= HAS_BOUNDS;

    b->data[b->len++] = (char)flags;
    add_varint(b, it->index);
    add_span(b, it->url);
    if (flags & HAS_INVALID)
        add_span(b, it->invalid);
    if (flags & HAS_CUSTOM_ID)
        add_span(b, it->custom_id);
    if (flags & HAS_REQUEST) {
        add_span(b, it->method);
        add_span(b, it->headers);
        add_span(b, it->body);
    }
    if (flags & HAS_BOUNDS) {
        add_varint(b, it->timeout_ms);
        add_varint(b, it->connect_timeout_ms);
        add_varint(b, it->max_attempts);
        add_varint(b, it->has_max_body_bytes ? it->max_body_bytes + 1 : 0);
    }
    return 0;
}

struct reader {
    const unsigned char *p;
    size_t len, pos;
    bool bad;
};

static uint64_t get_varint(struct reader *r)
{
    uint64_t v = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
        if (r->pos >= r->len)
            break;
        unsigned char c = r->p[r->pos++];
        v |= (uint64_t)(c & 0x7f) << shift;
        if (!(c & 0x80))
            return v;
    }
    r->bad = true;
    return 0;
}

static struct span get_span(struct reader *r)
{
    struct span s = {0};
    uint64_t n = get_varint(r);
    if (r->bad || n == 0)
        return s;
    n--;
    if (n > r->len - r->pos) {
        r->bad = true;
        return s;
    }
    s.ptr = (const char *)r->p + r->pos;
    s.len = (size_t)n;
    r->pos += (size_t)n;
    return s;
}

static uint32_t get_u32(struct reader *r)
{
    uint64_t v = get_varint(r);
    if (v > UINT32_MAX)
        r->bad = true;
    return (uint32_t)v;
}

int item_decode(const void *p, size_t len, size_t *pos, struct item *it)
{
    struct reader r = {.p = p, .len = len, .pos = *pos};
    memset(it, 0, sizeof(*it));
    if (r.pos >= r.len)
        return E_CORRUPT;
    unsigned flags = r.p[r.pos++];
    it->index = get_varint(&r);
    it->url = get_span(&r);
    if (flags & HAS_INVALID)
        it->invalid = get_span(&r);
    if (flags & HAS_CUSTOM_ID)
        it->custom_id = get_span(&r);
    if (flags & HAS_REQUEST) {
        it->method = get_span(&r);
        it->headers = get_span(&r);
        it->body = get_span(&r);
    }
    if (flags & HAS_BOUNDS) {
        it->timeout_ms = get_u32(&r);
        it->connect_timeout_ms = get_u32(&r);
        it->max_attempts = get_u32(&r);
        uint64_t v = get_varint(&r);
        it->has_max_body_bytes = v != 0;
        it->max_body_bytes = v != 0 ? v - 1 : 0;
    }
    if (r.bad || flags > 15)
        return E_CORRUPT;
    *pos = r.pos;
    return 0;
}

bool item_next_header(struct span *rest, struct span *name, struct span *value)
{
    if (rest->len == 0)
        return false;
    const char *p = rest->ptr;
    const char *end = memchr(p, '\n', rest->len);
    size_t line = end != NULL ? (size_t)(end - p) : rest->len;
    const char *colon = memchr(p, ':', line);
    size_t n = colon != NULL ? (size_t)(colon - p) : line;
    *name = (struct span){p, n};
    size_t v = colon != NULL ? n + 1 : line;
    while (v < line && (p[v] == ' ' || p[v] == '\t'))
        v++;
    *value = (struct span){p + v, line - v};
    size_t used = end != NULL ? line + 1 : line;
    rest->ptr += used;
    rest->len -= used;
    return true;
}

bool item_has_header(struct span headers, struct span name)
{
    struct span n, v;
    while (item_next_header(&headers, &n, &v)) {
        if (n.len == name.len && strncasecmp(n.ptr, name.ptr, n.len) == 0)
            return true;
    }
    return false;
}

static int join_headers(struct item *it, const struct item *defaults, struct buf *joined)
{
    if (defaults->headers.ptr == NULL)
        return 0;
    if (it->headers.ptr == NULL) {
        it->headers = defaults->headers;
        return 0;
    }
    buf_reset(joined);
    struct span rest = defaults->headers, name, value;
    while (item_next_header(&rest, &name, &value)) {
        if (item_has_header(it->headers, name))
            continue;
        int rc = buf_addf(joined, "%.*s: %.*s\n", (int)name.len, name.ptr, (int)value.len,
                          value.ptr);
        if (rc != 0)
            return rc;
    }
    int rc = buf_add(joined, it->headers.ptr, it->headers.len);
    if (rc != 0)
        return rc;
    it->headers = (struct span){joined->data, joined->len};
    return 0;
}

int item_apply_defaults(struct item *it, const struct item *defaults, struct buf *joined)
{
    bool own_method = it->method.ptr != NULL;
    if (!own_method)
        it->method = defaults->method;
    /* A default body goes with the default method; a request that names its own method says
     * itself whether it has a body. */
    if (it->body.ptr == NULL && !own_method)
        it->body = defaults->body;
    if (it->timeout_ms == 0)
        it->timeout_ms = defaults->timeout_ms;
    if (it->connect_timeout_ms == 0)
        it->connect_timeout_ms = defaults->connect_timeout_ms;
    if (it->max_attempts == 0)
        it->max_attempts = defaults->max_attempts;
    if (!it->has_max_body_bytes) {
        it->has_max_body_bytes = defaults->has_max_body_bytes;
        it->max_body_bytes = defaults->max_body_bytes;
    }
    return join_headers(it, defaults, joined);
}

bool span_is(struct span s, const char *text)
{
    return s.len == strlen(text) && memcmp(s.ptr, text, s.len) == 0;
}

bool span_is_field(struct span s, const char *text)
{
    return s.len == strlen(text) && strncasecmp(s.ptr, text, s.len) == 0;
}
