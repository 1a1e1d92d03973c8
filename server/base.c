/* Asserts, memory that ends the process when it is out, bounded buffers, clocks, a hash, UTF-8 and
 * the log. Any thread may call all of it: the only state is the log level (atomic), and a log line
 * is one write(2), so that lines of different threads never mix. */
#include "server/base.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

_Noreturn void assert_failed(const char *cond, const char *file, int line)
{
    log_event(LOG_ERROR, "assertion_failed", LOG_S("file", file), LOG_I("line", line),
              LOG_S("condition", cond));
    abort();
}

/* ---- memory ---- */

static _Noreturn void out_of_memory(size_t n)
{
    /* No log_write(): stdio may want memory for itself. */
    static const char text[] = "fatal: out of memory\n";

    (void)n;
    if (write(STDERR_FILENO, text, sizeof(text) - 1) < 0)
        abort();
    abort();
}

void *xmalloc(size_t n)
{
    void *p = malloc(n > 0 ? n : 1);

    if (p == NULL)
        out_of_memory(n);
    return p;
}

void *xcalloc(size_t n, size_t size)
{
    void *p = calloc(n > 0 ? n : 1, size > 0 ? size : 1);

    if (p == NULL)
        out_of_memory(n);
    return p;
}

void *xrealloc(void *p, size_t n)
{
    void *q = realloc(p, n > 0 ? n : 1);

    if (q == NULL)
        out_of_memory(n);
    return q;
}

char *xstrdup(const char *s)
{
    return xstrndup(s, strlen(s));
}

/* Unlike strndup(3), copies exactly n bytes, a NUL among them too. */
char *xstrndup(const char *s, size_t n)
{
    char *p = xmalloc(n + 1);

    if (n > 0)
        memcpy(p, s, n);
    p[n] = '\0';
    return p;
}

/* ---- buffers ---- */

void buf_init(struct buf *b, size_t max)
{
    *b = (struct buf){.max = max};
}

void buf_fini(struct buf *b)
{
    free(b->data);
    *b = (struct buf){.max = b->max};
}

void buf_reset(struct buf *b)
{
    b->len = 0;
}

int buf_reserve(struct buf *b, size_t extra)
{
    ASSERT(b->len <= b->cap);
    if (extra <= b->cap - b->len)
        return 0;
    if (b->len > b->max || extra > b->max - b->len)
        return E_LIMIT;

    /* Doubling keeps appends cheap; the bound wins, so that a buffer of 10 MiB never takes 16. */
    size_t need = b->len + extra;
    size_t cap = b->cap < 64 ? 64 : b->cap;
    while (cap < need)
        cap = cap > SIZE_MAX / 2 ? need : cap * 2;
    if (cap > b->max)
        cap = b->max;

    char *data = realloc(b->data, cap);
    if (data == NULL)
        return E_NOMEM;
    b->data = data;
    b->cap = cap;
    return 0;
}

int buf_add(struct buf *b, const void *p, size_t n)
{
    if (n == 0)
        return 0;
    int rc = buf_reserve(b, n);
    if (rc < 0)
        return rc;
    memcpy(b->data + b->len, p, n);
    b->len += n;
    return 0;
}

int buf_addc(struct buf *b, char c)
{
    return buf_add(b, &c, 1);
}

int buf_adds(struct buf *b, const char *s)
{
    return buf_add(b, s, strlen(s));
}

int buf_addf(struct buf *b, const char *fmt, ...)
{
    char small[256];
    va_list ap;

    /* vsnprintf wants room for its NUL, which is not part of a buf: most texts are short, and go
     * through the stack; longer ones are formatted twice, the second time on the heap. */
    va_start(ap, fmt);
    int n = vsnprintf(small, sizeof(small), fmt, ap);
    va_end(ap);
    if (n < 0)
        return E_NOMEM;
    if ((size_t)n < sizeof(small))
        return buf_add(b, small, (size_t)n);

    int rc = buf_reserve(b, (size_t)n);
    if (rc < 0)
        return rc;
    char *text = malloc((size_t)n + 1);
    if (text == NULL)
        return E_NOMEM;
    va_start(ap, fmt);
    n = vsnprintf(text, (size_t)n + 1, fmt, ap);
    va_end(ap);
    rc = n < 0 ? E_NOMEM : buf_add(b, text, (size_t)n);
    free(text);
    return rc;
}

/* ---- clocks ---- */

int64_t now_us(void)
{
    struct timespec ts;

    ASSERT(clock_gettime(CLOCK_MONOTONIC, &ts) == 0);
    return (int64_t)ts.tv_sec * 1000000 + ts.tv_nsec / 1000;
}

int64_t wall_ms(void)
{
    struct timespec ts;

    ASSERT(clock_gettime(CLOCK_REALTIME, &ts) == 0);
    return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

/* ---- hash ---- */

static uint64_t read64(const uint8_t *p)
{
    uint64_t v;

    memcpy(&v, p, sizeof(v));
    return v;
}

static uint64_t read32(const uint8_t *p)
{
    uint32_t v;

    memcpy(&v, p, sizeof(v));
    return v;
}

/* A full 64 by 64 multiplication, folded: every bit of both inputs reaches the middle bits. */
static uint64_t mix(uint64_t a, uint64_t b)
{
    __extension__ typedef unsigned __int128 u128;
    u128 m = (u128)a * b;

    return (uint64_t)m ^ (uint64_t)(m >> 64);
}

uint64_t hash64(const void *data, size_t n, uint64_t seed)
{
    /* Odd constants with about as many ones as zeros (fractions of square roots of primes). */
    static const uint64_t k0 = 0x6a09e667f3bcc909u, k1 = 0xbb67ae8584caa73bu,
                          k2 = 0x3c6ef372fe94f82bu;
    const uint8_t *p = data;
    uint64_t a, b, h = seed ^ mix(seed ^ k0, k1);
    size_t left = n;

    while (left > 16) {
        h = mix(read64(p) ^ k1, read64(p + 8) ^ h);
        p += 16;
        left -= 16;
    }
    /* The tail in two words that may overlap: no byte loop. n goes into the end, so that a tail
     * read twice is not taken for a longer one. */
    if (left >= 8) {
        a = read64(p);
        b = read64(p + left - 8);
    } else if (left >= 4) {
        a = read32(p);
        b = read32(p + left - 4);
    } else if (left > 0) {
        a = (uint64_t)p[0] << 16 | (uint64_t)p[left / 2] << 8 | p[left - 1];
        b = 0;
    } else {
        a = 0;
        b = 0;
    }
    h = mix(a ^ k1, b ^ h);
    return mix(h ^ k2, (uint64_t)n ^ k0);
}

/* ---- UTF-8 ---- */

bool utf8_valid(const char *text, size_t n)
{
    const uint8_t *p = (const uint8_t *)text;
    const uint8_t *end = p + n;

    while (p < end) {
        /* Eight ASCII bytes at a time: nearly all of what comes in. */
        while (end - p >= 8 && (read64(p) & 0x8080808080808080u) == 0)
            p += 8;
        if (p == end)
            break;

        uint8_t c = *p;
        if (c < 0x80) {
            p++;
            continue;
        }
        /* RFC 3629, section 4: the second byte's range depends on the first; the rest is 80..BF. */
        uint8_t lo = 0x80, hi = 0xbf;
        int more;
        if (c >= 0xc2 && c <= 0xdf) {
            more = 1;
        } else if (c >= 0xe0 && c <= 0xef) {
            more = 2;
            lo = c == 0xe0 ? 0xa0 : 0x80;
            hi = c == 0xed ? 0x9f : 0xbf;
        } else if (c >= 0xf0 && c <= 0xf4) {
            more = 3;
            lo = c == 0xf0 ? 0x90 : 0x80;
            hi = c == 0xf4 ? 0x8f : 0xbf;
        } else {
            return false;
        }
        if (end - p <= more || p[1] < lo || p[1] > hi)
            return false;
        for (int i = 2; i <= more; i++)
            if ((p[i] & 0xc0) != 0x80)
                return false;
        p += more + 1;
    }
    return true;
}
