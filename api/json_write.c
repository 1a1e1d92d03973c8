/* The JSON writer: appends values to a buffer and puts the commas; and base64. Nothing is built
 * first and nothing allocated but by the buffer. No state of its own; any thread. */
#define _GNU_SOURCE
#include "api/json.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

static void add(struct jw *w, const char *p, size_t n)
{
    if (w->rc == 0)
        w->rc = buf_add(w->b, p, n);
}

static void add_char(struct jw *w, char c)
{
    if (w->rc == 0)
        w->rc = buf_addc(w->b, c);
}

static void begin(struct jw *w)
{
    if (w->comma)
        add_char(w, ',');
    w->comma = true;
}

static void literal(struct jw *w, const char *text)
{
    begin(w);
    add(w, text, strlen(text));
}

void jw_init(struct jw *w, struct buf *b)
{
    *w = (struct jw){.b = b};
}

void jw_object(struct jw *w)
{
    literal(w, "{");
    w->comma = false;
}

void jw_object_end(struct jw *w)
{
    add_char(w, '}');
    w->comma = true;
}

void jw_array(struct jw *w)
{
    literal(w, "[");
    w->comma = false;
}

void jw_array_end(struct jw *w)
{
    add_char(w, ']');
    w->comma = true;
}

static void escape(struct jw *w, unsigned char c)
{
    static const char short_form[] = "btnvfr"; /* 8 to 13; \v is not JSON's */
    char e[6] = {'\\', (char)c};
    size_t n = 2;
    if (c >= 8 && c <= 13 && c != 11) {
        e[1] = short_form[c - 8];
    } else if (c < 0x20) {
        memcpy(e + 1, "u00", 3);
        e[4] = "0123456789abcdef"[c >> 4];
        e[5] = "0123456789abcdef"[c & 15];
        n = 6;
    }
    add(w, e, n);
}

/* Length of the well-formed character at p, or 0; then *faulty is the number of bytes that one
 * U+FFFD stands for (the maximal subpart, Unicode 3.9). */
static size_t utf8_char(const unsigned char *p, size_t n, size_t *faulty)
{
    size_t len = p[0] < 0x80 ? 1 : p[0] < 0xc2 ? 0 : p[0] < 0xe0 ? 2 : p[0] < 0xf0 ? 3 : 4;
    *faulty = 1;
    if (len == 0 || p[0] > 0xf4)
        return 0;
    unsigned lo = p[0] == 0xe0 ? 0xa0 : p[0] == 0xf0 ? 0x90 : 0x80;
    unsigned hi = p[0] == 0xed ? 0x9f : p[0] == 0xf4 ? 0x8f : 0xbf;
    for (size_t i = 1; i < len; i++) {
        if (i >= n || p[i] < lo || p[i] > hi) {
            *faulty = i;
            return 0;
        }
        lo = 0x80;
        hi = 0xbf;
    }
    return len;
}

static void text(struct jw *w, struct span s, enum jw_bytes how)
{
    const unsigned char *p = (const unsigned char *)s.ptr;
    bool latin1 = how == JW_LATIN1 && s.len > 0 && !utf8_valid(s.ptr, s.len);
    size_t i = 0, from = 0; /* [from, i) goes out as it is */
    while (i < s.len && w->rc == 0) {
        unsigned char c = p[i];
        if (c >= 0x20 && c < 0x80 && c != '"' && c != '\\') {
            i++;
            continue;
        }
        size_t faulty = 1, len = c >= 0x80 && !latin1 ? utf8_char(p + i, s.len - i, &faulty) : 0;
        if (len > 0) {
            i += len;
            continue;
        }
        if (i > from)
            add(w, s.ptr + from, i - from);
        if (c < 0x80) {
            escape(w, c);
        } else if (latin1) {
            char two[2] = {(char)(0xc0 | c >> 6), (char)(0x80 | (c & 0x3f))};
            add(w, two, 2);
        } else {
            add(w, "\xef\xbf\xbd", 3);
        }
        i += c < 0x80 ? 1 : faulty;
        from = i;
    }
    if (i > from)
        add(w, s.ptr + from, i - from);
}

void jw_text_begin(struct jw *w)
{
    begin(w);
    add_char(w, '"');
}

void jw_text_part(struct jw *w, struct span s, enum jw_bytes how)
{
    text(w, s, how);
}

void jw_text_end(struct jw *w)
{
    add_char(w, '"');
}

void jw_span(struct jw *w, struct span s, enum jw_bytes how)
{
    if (s.ptr == NULL) {
        jw_null(w);
        return;
    }
    jw_text_begin(w);
    text(w, s, how);
    jw_text_end(w);
}

void jw_str(struct jw *w, const char *s)
{
    jw_span(w, (struct span){s, s != NULL ? strlen(s) : 0}, JW_REPLACE);
}

void jw_key_span(struct jw *w, struct span name, enum jw_bytes how)
{
    jw_text_begin(w);
    text(w, name, how);
    add(w, "\":", 2);
    w->comma = false;
}

void jw_key(struct jw *w, const char *name)
{
    jw_key_span(w, (struct span){name, strlen(name)}, JW_REPLACE);
}

/* Writes v to the end of t[0..size) and returns where it begins. */
static size_t digits(char *t, size_t size, uint64_t v)
{
    size_t i = size;
    do {
        t[--i] = (char)('0' + v % 10);
        v /= 10;
    } while (v != 0);
    return i;
}

void jw_u64(struct jw *w, uint64_t v)
{
    char t[20];
    size_t i = digits(t, sizeof(t), v);
    begin(w);
    add(w, t + i, sizeof(t) - i);
}

void jw_i64(struct jw *w, int64_t v)
{
    char t[21];
    size_t i = digits(t, sizeof(t), v < 0 ? 0 - (uint64_t)v : (uint64_t)v);
    if (v < 0)
        t[--i] = '-';
    begin(w);
    add(w, t + i, sizeof(t) - i);
}

void jw_fixed(struct jw *w, double v, unsigned decimals)
{
    if (!isfinite(v)) {
        jw_null(w);
        return;
    }
    char t[64];
    int len;
    if (fabs(v) >= 1e15)
        len = snprintf(t, sizeof(t), "%.17g", v);
    else
        len = snprintf(t, sizeof(t), "%.*f", (int)(decimals <= 9 ? decimals : 9), v);
    size_t n = (size_t)len;
    if (memchr(t, '.', n) != NULL && memchr(t, 'e', n) == NULL) {
        while (t[n - 1] == '0')
            n--;
        n -= t[n - 1] == '.';
    }
    if (n == 2 && t[0] == '-' && t[1] == '0') { /* what rounding leaves of a small negative */
        t[0] = '0';
        n = 1;
    }
    begin(w);
    add(w, t, n);
}

void jw_ms(struct jw *w, uint64_t us)
{
    char t[24];
    size_t end = sizeof(t), i = digits(t, end - 4, us / 1000);
    t[end - 4] = '.';
    t[end - 3] = (char)('0' + us / 100 % 10);
    t[end - 2] = (char)('0' + us / 10 % 10);
    t[end - 1] = (char)('0' + us % 10);
    while (t[end - 1] == '0')
        end--;
    end -= t[end - 1] == '.';
    begin(w);
    add(w, t + i, end - i);
}

void jw_bool(struct jw *w, bool v)
{
    literal(w, v ? "true" : "false");
}

void jw_null(struct jw *w)
{
    literal(w, "null");
}

void jw_raw(struct jw *w, struct span json)
{
    begin(w);
    add(w, json.ptr, json.len);
}

void jw_time(struct jw *w, int64_t unix_ms)
{
    time_t sec = (time_t)(unix_ms / 1000);
    int ms = (int)(unix_ms % 1000);
    if (ms < 0) {
        ms += 1000;
        sec--;
    }
    struct tm tm;
    char t[80];
    if (unix_ms == 0 || gmtime_r(&sec, &tm) == NULL) {
        jw_null(w);
        return;
    }
    int n = snprintf(t, sizeof(t), "\"%04d-%02d-%02dT%02d:%02d:%02d.%03dZ\"", tm.tm_year + 1900,
                     tm.tm_mon + 1, tm.tm_mday, tm.tm_hour, tm.tm_min, tm.tm_sec, ms);
    begin(w);
    add(w, t, (size_t)n);
}

void jw_newline(struct jw *w)
{
    add_char(w, '\n');
    w->comma = false;
}

void jw_base64_part(struct jw *w, const void *p, size_t n)
{
    if (w->rc == 0)
        w->rc = base64_encode(w->b, p, n);
}

void jw_base64(struct jw *w, const void *p, size_t n)
{
    jw_text_begin(w);
    jw_base64_part(w, p, n);
    jw_text_end(w);
}

static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

int base64_encode(struct buf *b, const void *p, size_t n)
{
    int rc = buf_reserve(b, n / 3 * 4 + 4);
    if (rc != 0)
        return rc;
    const unsigned char *in = p;
    char *out = b->data + b->len;
    size_t i = 0;
    for (; i + 3 <= n; i += 3) {
        uint32_t v = (uint32_t)in[i] << 16 | (uint32_t)in[i + 1] << 8 | in[i + 2];
        *out++ = alphabet[v >> 18];
        *out++ = alphabet[v >> 12 & 63];
        *out++ = alphabet[v >> 6 & 63];
        *out++ = alphabet[v & 63];
    }
    if (i < n) {
        uint32_t v = (uint32_t)in[i] << 16 | (i + 1 < n ? (uint32_t)in[i + 1] << 8 : 0);
        *out++ = alphabet[v >> 18];
        *out++ = alphabet[v >> 12 & 63];
        *out++ = i + 1 < n ? alphabet[v >> 6 & 63] : '=';
        *out++ = '=';
    }
    b->len = (size_t)(out - b->data);
    return 0;
}

static int sextet(char c)
{
    if (c >= 'A' && c <= 'Z')
        return c - 'A';
    if (c >= 'a' && c <= 'z')
        return c - 'a' + 26;
    if (c >= '0' && c <= '9')
        return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

int base64_decode(struct buf *b, const char *p, size_t n)
{
    if (n == 0)
        return 0;
    if (n % 4 != 0)
        return E_INVAL;
    int rc = buf_reserve(b, n / 4 * 3);
    if (rc != 0)
        return rc;
    char *out = b->data + b->len;
    for (size_t i = 0; i < n; i += 4) {
        bool last = i + 4 == n;
        size_t pad = last && p[i + 3] == '=' ? (p[i + 2] == '=' ? 2 : 1) : 0;
        uint32_t v = 0;
        for (size_t k = 0; k < 4; k++) {
            int d = k < 4 - pad ? sextet(p[i + k]) : 0;
            if (d < 0)
                return E_INVAL;
            v = v << 6 | (uint32_t)d;
        }
        /* Bits that no byte takes up must be zero: else one value has several spellings. */
        if ((pad == 1 && (v & 0xff) != 0) || (pad == 2 && (v & 0xffff) != 0))
            return E_INVAL;
        *out++ = (char)(v >> 16);
        if (pad < 2)
            *out++ = (char)(v >> 8);
        if (pad < 1)
            *out++ = (char)v;
    }
    b->len = (size_t)(out - b->data);
    return 0;
}
