/* A response as it comes in: libcurl's callbacks for its lines and for its body. Nothing here
 * decides what follows; it notes what fetch_end.c has to know. Runs on the fetcher's thread. */
#include <stdlib.h>
#include <string.h>

#include "server/fetch_int.h"
#include "server/retry.h"

enum { FIELDS_LONG = 16 * 1024 };

size_t head_body(char *p, size_t size, size_t n, void *arg)
{
    struct transfer *t = arg;
    ASSERT(t->magic == TRANSFER_MAGIC);
    n *= size;
    t->f->h2_unheard = 0;
    if (t->follow) { /* a redirect's own body: only read to keep the connection */
        t->body_len += n;
        t->hop_cut = t->body_len > HOP_BODY;
        return t->hop_cut ? 0 : n;
    }
    return decode_needed(&t->codings) ? coded_write(t, p, n) : body_write(t, p, n);
}

/* RFC 9110 5.6.2. */
static bool is_token(struct span s)
{
    for (size_t i = 0; i < s.len; i++) {
        unsigned char c = (unsigned char)s.ptr[i];
        bool alnum = (c >= '0' && c <= '9') || ((c | 32) >= 'a' && (c | 32) <= 'z');
        if (!alnum && (c == '\0' || strchr("!#$%&'*+-.^_`|~", c) == NULL))
            return false;
    }
    return s.len > 0;
}

/* One plain number, the same each time it comes (RFC 9112 6.3): libcurl takes the last one, and
 * who sends two may mean another response to begin in between. */
static void check_length(struct transfer *t, struct span v)
{
    uint64_t n = 0;
    bool bad = v.len == 0;
    for (size_t i = 0; i < v.len && !bad; i++) {
        bad = v.ptr[i] < '0' || v.ptr[i] > '9' || n > INT64_MAX / 10 - 1;
        n = n * 10 + (uint64_t)(v.ptr[i] - '0');
    }
    if (bad || (t->has_length && n != t->length))
        t->broken = "Content-Length is given twice or is no number";
    t->has_length = true;
    t->length = n;
}

static void keep(struct transfer *t, const char *p, size_t n)
{
    size_t cap = t->fields_in.cap;
    if (buf_add(&t->fields_in, p, n) != 0 || buf_add(&t->fields_in, "\r\n", 2) != 0)
        t->too_many_fields = true;
    /* Long headers cannot wait in a file. When too many come at once, some are asked for again
     * later, at no charge. */
    if (t->fields_in.cap > cap && t->fields_in.cap > BODY_SMALL && !body_charge(t) &&
        t->fields_in.cap > FIELDS_LONG && t->f->sched.in_flight > 1 && may_repeat(t))
        t->no_descriptor = true;
}

/* A line that goes on the one before (obsolete, RFC 9112 5.2): joined by a space. */
static void keep_folded(struct transfer *t, struct span line)
{
    if (t->fields_in.len < 2)
        return;
    while (line.len > 0 && (*line.ptr == ' ' || *line.ptr == '\t')) {
        line.ptr++;
        line.len--;
    }
    t->fields_in.len -= 2;
    if (buf_addc(&t->fields_in, ' ') != 0)
        t->too_many_fields = true;
    keep(t, line.ptr, line.len);
}

static void take_field(struct transfer *t, struct span line)
{
    if (*line.ptr == ' ' || *line.ptr == '\t') {
        keep_folded(t, line);
        return;
    }
    const char *colon = memchr(line.ptr, ':', line.len);
    if (colon == NULL)
        return;
    struct span name = {line.ptr, (size_t)(colon - line.ptr)};
    struct span v = {colon + 1, line.len - name.len - 1};
    if (!is_token(name)) /* nobody could mean it, but to smuggle something */
        return;
    while (v.len > 0 && (*v.ptr == ' ' || *v.ptr == '\t')) {
        v.ptr++;
        v.len--;
    }
    while (v.len > 0 && (v.ptr[v.len - 1] == ' ' || v.ptr[v.len - 1] == '\t'))
        v.len--;
    if (span_is_field(name, "location") && t->location.len == 0) {
        if (buf_add(&t->location, v.ptr, v.len) != 0) /* cut, so that it is not taken for none */
            t->location_cut = buf_add(&t->location, v.ptr, t->location.max) == 0;
    } else if (span_is_field(name, "content-length")) {
        check_length(t, v);
    } else if (span_is_field(name, "content-encoding")) {
        decode_note(&t->codings, v);
    } else if (span_is_field(name, "transfer-encoding")) { /* libcurl undoes "chunked" alone */
        t->has_coding = true;
        t->chunked = v.len >= 7 && strncasecmp(v.ptr + v.len - 7, "chunked", 7) == 0;
        decode_note(&t->transfer_codings, v);
    } else if (span_is_field(name, "retry-after")) {
        t->retry_after_ms = retry_parse_after(v.ptr, v.len, wall_ms() / 1000);
    }
    keep(t, line.ptr, line.len);
}

static void start_head(struct transfer *t, struct span line)
{
    const char *start = t->is_h2 ? "HTTP/2 " : "HTTP/1.";
    if (line.len < 7 || memcmp(line.ptr, start, 7) != 0)
        t->broken = "the response is of another HTTP version than the connection";
    if (++t->heads > INTERIM_MAX)
        t->broken = "more than 20 interim responses";
    t->head_ended = false;
    t->location_cut = t->has_length = t->has_coding = t->chunked = false;
    t->codings = t->transfer_codings = (struct codings){0};
    t->retry_after_ms = -1;
    buf_reset(&t->fields_in);
    buf_reset(&t->location);
}

static bool is_redirect(int status)
{
    return status == 301 || status == 302 || status == 303 || status == 307 || status == 308;
}

/* Whether bytes may follow that are not this response's, whoever is right about its length (RFC 9112
 * 6.1): they must not be taken for the next one's. */
static bool ambiguous(const struct transfer *t)
{
    if (t->has_coding)
        return t->has_length || t->status == 204 || t->status == 304;
    return t->status == 204 && t->has_length && t->length > 0;
}

/* Whoever can end a connection could cut such a body short. */
static void watch_end(struct transfer *t)
{
    const struct curl_tlssessioninfo *tls = NULL;
    curl_easy_getinfo(t->easy, CURLINFO_TLS_SSL_PTR, &tls);
    t->close_notify = false;
    t->ends_by_close = tls != NULL && tls->internals != NULL;
    if (t->ends_by_close)
        tls_watch_end(tls->internals, &t->close_notify);
}

static void end_head(struct transfer *t)
{
    long status = 0;
    curl_easy_getinfo(t->easy, CURLINFO_RESPONSE_CODE, &status);
    t->status = (int)status;
    t->head_ended = true;
    if (status == 101) /* libcurl would read on, in whatever protocol */
        t->broken = "the origin switches to a protocol that it was not asked for";
    if (ambiguous(t))
        curl_easy_setopt(t->easy, CURLOPT_FORBID_REUSE, 1L);
    bool redirect = is_redirect(t->status) && t->location.len > 0 && t->live->b.max_redirects > 0;
    t->follow = redirect && t->hops < t->live->b.max_redirects;
    t->too_many_hops = redirect && !t->follow; /* its body is kept, as any last response's */
    if (t->status == 206)                      /* a part of the coded bytes cannot be decoded */
        t->codings = (struct codings){0};
    decode_join(&t->codings, &t->transfer_codings);
    /* A length that is known beforehand need not be waited for. (CURLOPT_MAXFILESIZE would refuse
     * the answer to HEAD too, and redirects.) What comes is counted, decoded, in body_write. */
    bool body_comes = !(t->method.ptr != NULL && span_is(t->method, "HEAD")) && t->status >= 200 &&
                      t->status != 204 && t->status != 304 && !t->follow;
    uint64_t most = decode_needed(&t->codings) ? coded_max(t) : body_max(t);
    t->too_large = body_comes && t->has_length && t->length > most;
    t->truncated = t->too_large;
    if (body_comes && t->url.https && !t->is_h2 && !t->chunked && (t->has_coding || !t->has_length))
        watch_end(t);
}

size_t head_line(char *p, size_t size, size_t n, void *arg)
{
    struct transfer *t = arg;
    ASSERT(t->magic == TRANSFER_MAGIC);
    n *= size;
    t->f->h2_unheard = 0;
    t->field_bytes += n;
    t->lines++;
    if (t->field_bytes > HEADER_BYTES || t->lines > HEADER_LINES) {
        t->too_many_fields = true;
        return 0;
    }
    struct span line = {p, n};
    while (line.len > 0 && (p[line.len - 1] == '\r' || p[line.len - 1] == '\n'))
        line.len--;
    if (t->head_ended && t->status >= 200)
        return n; /* trailers */
    if (t->heads == 0 || (t->head_ended && line.len > 0))
        start_head(t, line);
    else if (line.len > 0)
        take_field(t, line);
    else
        end_head(t);
    bool stop = t->too_many_fields || t->too_large || t->broken != NULL || t->no_descriptor;
    return stop ? 0 : n;
}
