/* Content codings undone: a chain of zlib's, brotli's and zstd's decoders, one for each coding. */
#define ZLIB_CONST
#include <brotli/decode.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <zlib.h>
#include <zstd.h>
#include <zstd_errors.h>

#include "server/base.h"
#include "server/decode.h"

enum {
    OUT_BYTES = 32 * 1024,         /* decoded at a time */
    KEEP_MAX = 16,                 /* decoders of a kind in the pool … */
    KEEP_BYTES = 1024 * 1024,      /* … each of at most so much */
    BROTLI_MAX = 20 * 1024 * 1024, /* its largest window (RFC 7932 9.1), and the tables */
    INFLATE_BYTES = 42 * 1024,     /* zlib.h and zconf.h: 32 KiB window, state and tables */
};

enum kind { GZIP, DEFLATE, BROTLI, ZSTD, KINDS };

enum state {
    SNIFFING, /* the first two bytes tell the form of deflate */
    WITHIN,   /* of a stream: more has to come */
    BETWEEN,  /* a stream is complete; another one follows if its first bytes do */
    OVER,     /* what follows the last stream is nobody's: ignored, as gzip(1) and browsers do */
};

struct stage {
    struct stage *next; /* in the pool */
    struct decode_pool *pool;
    enum kind kind;
    enum state state;
    bool begun; /* it has had a byte */
    uint64_t out;
    size_t bytes; /* counted in the pool */
    char sniffed[4];
    size_t n_sniffed;
    z_stream z;
    bool z_ready;
    BrotliDecoderState *brotli;
    ZSTD_DCtx *zstd;
};

struct decode {
    struct decode *next; /* in the pool */
    struct decode_pool *pool;
    uint64_t limit;
    size_t n;
    struct stage *stage[DECODE_CODINGS_MAX]; /* in the order in which bytes pass through */
    decode_fn *fn;
    void *arg;
};

struct decode_pool {
    struct stage *kept[KINDS];
    size_t n_kept[KINDS];
    struct decode *chains;
    char *out[DECODE_CODINGS_MAX]; /* a buffer for each place in a chain; the chains take turns */
    size_t bytes;
};

/* ---- names ---- */

static bool is(struct span s, const char *text)
{
    return s.len == strlen(text) && strncasecmp(s.ptr, text, s.len) == 0;
}

/* No codings, but sent as such for bodies that are plain: names of nothing, of character sets, and
 * that of the way in which an object was uploaded to Amazon S3. */
static bool is_none(struct span s)
{
    static const char *const names[] = {"identity", "chunked", "none", "binary",     "8bit",
                                        "7bit",     "utf-8",   "utf8", "aws-chunked"};
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        if (is(s, names[i]))
            return true;
    }
    return s.len == 0;
}

static void add(struct codings *c, uint8_t kind)
{
    if (c->n == DECODE_CODINGS_MAX)
        c->unfit = "the body has more than five content codings";
    else
        c->kind[c->n++] = kind;
}

static void note_one(struct codings *c, struct span name)
{
    int kind = is(name, "gzip") || is(name, "x-gzip") ? (int)GZIP
               : is(name, "deflate")                  ? (int)DEFLATE
               : is(name, "br")                       ? (int)BROTLI
               : is(name, "zstd")                     ? (int)ZSTD
                                                      : -1;
    if (kind < 0 && is_none(name))
        return;
    if (kind < 0)
        c->unfit = "the body's content coding is unknown";
    else
        add(c, (uint8_t)kind);
}

void decode_join(struct codings *c, const struct codings *later)
{
    if (c->unfit == NULL)
        c->unfit = later->unfit;
    for (size_t i = 0; i < later->n; i++)
        add(c, later->kind[i]);
}

static bool is_blank(char c)
{
    return c == ' ' || c == '\t';
}

void decode_note(struct codings *c, struct span value)
{
    const char *end = value.ptr + value.len;
    for (const char *p = value.ptr; p <= end; p++) {
        const char *comma = memchr(p, ',', (size_t)(end - p));
        const char *stop = comma != NULL ? comma : end;
        struct span name = {p, (size_t)(stop - p)};
        while (name.len > 0 && is_blank(*name.ptr)) {
            name.ptr++;
            name.len--;
        }
        while (name.len > 0 && is_blank(name.ptr[name.len - 1]))
            name.len--;
        note_one(c, name);
        p = stop;
    }
}

/* ---- the pool ---- */

int decode_pool_new(struct decode_pool **out)
{
    *out = calloc(1, sizeof(**out));
    return *out != NULL ? 0 : E_NOMEM;
}

static void recount(struct stage *s, size_t bytes)
{
    s->pool->bytes += bytes - s->bytes;
    s->bytes = bytes;
}

/* brotli's memory, counted and bounded: a stream's own words set its size. The size stands before
 * each piece. */
static void *brotli_alloc(void *arg, size_t n)
{
    struct stage *s = arg;
    if (n > BROTLI_MAX || s->bytes + n > BROTLI_MAX)
        return NULL;
    max_align_t *p = malloc(n + sizeof(*p));
    if (p == NULL)
        return NULL;
    memcpy(p, &n, sizeof(n));
    recount(s, s->bytes + n);
    return p + 1;
}

static void brotli_free(void *arg, void *p)
{
    struct stage *s = arg;
    if (p == NULL)
        return;
    max_align_t *start = (max_align_t *)p - 1;
    size_t n;
    memcpy(&n, start, sizeof(n));
    recount(s, s->bytes - n);
    free(start);
}

static void stage_free(struct stage *s)
{
    if (s->z_ready)
        inflateEnd(&s->z);
    if (s->brotli != NULL)
        BrotliDecoderDestroyInstance(s->brotli);
    ZSTD_freeDCtx(s->zstd);
    recount(s, 0);
    free(s);
}

void decode_pool_free(struct decode_pool *p)
{
    if (p == NULL)
        return;
    for (size_t k = 0; k < KINDS; k++) {
        while (p->kept[k] != NULL) {
            struct stage *s = p->kept[k];
            p->kept[k] = s->next;
            stage_free(s);
        }
    }
    while (p->chains != NULL) {
        struct decode *d = p->chains;
        p->chains = d->next;
        free(d);
    }
    for (size_t i = 0; i < DECODE_CODINGS_MAX; i++)
        free(p->out[i]);
    ASSERT(p->bytes == 0);
    free(p);
}

size_t decode_pool_bytes(const struct decode_pool *p)
{
    return p->bytes;
}

/* ---- a stage's beginning and end ---- */

/* zlib's number for the form: 15 + 16 gzip, 15 zlib, -15 neither's frame. */
static int start_inflate(struct stage *s, int bits)
{
    int rc = s->z_ready ? inflateReset2(&s->z, bits) : inflateInit2(&s->z, bits);
    if (rc != Z_OK)
        return E_NOMEM;
    s->z_ready = true;
    recount(s, INFLATE_BYTES);
    return 0;
}

static int start_zstd(struct stage *s)
{
    if (s->zstd == NULL) {
        s->zstd = ZSTD_createDCtx();
        if (s->zstd == NULL ||
            ZSTD_isError(ZSTD_DCtx_setParameter(s->zstd, ZSTD_d_windowLogMax, DECODE_WINDOW_LOG)))
            return E_NOMEM;
    } else if (ZSTD_isError(ZSTD_DCtx_reset(s->zstd, ZSTD_reset_session_only))) {
        return E_NOMEM;
    }
    recount(s, ZSTD_sizeof_DCtx(s->zstd));
    return 0;
}

static int stage_start(struct stage *s)
{
    s->state = s->kind == DEFLATE ? SNIFFING : WITHIN;
    s->begun = false;
    s->out = 0;
    s->n_sniffed = 0;
    switch (s->kind) {
    case GZIP: return start_inflate(s, 15 + 16);
    case DEFLATE: return 0;
    case BROTLI:
        s->brotli = BrotliDecoderCreateInstance(brotli_alloc, brotli_free, s);
        return s->brotli != NULL ? 0 : E_NOMEM;
    default: return start_zstd(s);
    }
}

static void stage_give(struct stage *s)
{
    struct decode_pool *p = s->pool;
    if (s->brotli != NULL) { /* there is no starting it again */
        BrotliDecoderDestroyInstance(s->brotli);
        s->brotli = NULL;
    }
    if (p->n_kept[s->kind] == KEEP_MAX || s->bytes > KEEP_BYTES) {
        stage_free(s);
        return;
    }
    s->next = p->kept[s->kind];
    p->kept[s->kind] = s;
    p->n_kept[s->kind]++;
}

static int stage_take(struct stage **out, struct decode_pool *p, enum kind kind)
{
    struct stage *s = p->kept[kind];
    if (s != NULL) {
        p->kept[kind] = s->next;
        p->n_kept[kind]--;
    } else {
        s = calloc(1, sizeof(*s));
        if (s == NULL)
            return E_NOMEM;
        s->pool = p;
        s->kind = kind;
    }
    int rc = stage_start(s);
    if (rc != 0)
        stage_free(s);
    else
        *out = s;
    return rc;
}

int decode_open(struct decode **out, struct decode_pool *pool, const struct codings *c,
                uint64_t limit)
{
    ASSERT(c->n > 0 && c->n <= DECODE_CODINGS_MAX && c->unfit == NULL);
    struct decode *d = pool->chains;
    if (d != NULL)
        pool->chains = d->next;
    else
        d = malloc(sizeof(*d));
    if (d == NULL)
        return E_NOMEM;
    memset(d, 0, sizeof(*d));
    d->pool = pool;
    d->limit = limit;
    for (size_t i = 0; i < c->n; i++) {
        if (pool->out[i] == NULL)
            pool->out[i] = malloc(OUT_BYTES);
        int rc = pool->out[i] == NULL
                     ? E_NOMEM
                     : stage_take(&d->stage[i], pool, (enum kind)c->kind[c->n - 1 - i]);
        if (rc != 0) {
            decode_close(d);
            return rc;
        }
        d->n++;
    }
    *out = d;
    return 0;
}

void decode_close(struct decode *d)
{
    if (d == NULL)
        return;
    for (size_t i = 0; i < d->n; i++)
        stage_give(d->stage[i]);
    d->next = d->pool->chains;
    d->pool->chains = d;
}

/* ---- bytes ---- */

/* One call of a library: takes from *p and *n, fills `to`, says in *made how much. */
static int inflate_some(struct stage *s, const char **p, size_t *n, char *to, size_t *made)
{
    uInt in = *n < UINT32_MAX / 2 ? (uInt)*n : UINT32_MAX / 2;
    s->z.next_in = (const Bytef *)*p;
    s->z.avail_in = in;
    s->z.next_out = (Bytef *)to;
    s->z.avail_out = OUT_BYTES;
    int rc = inflate(&s->z, Z_NO_FLUSH);
    *p += in - s->z.avail_in;
    *n -= in - s->z.avail_in;
    *made = OUT_BYTES - s->z.avail_out;
    if (rc == Z_STREAM_END)
        s->state = s->kind == GZIP ? BETWEEN : OVER;
    else if (rc == Z_MEM_ERROR)
        return E_NOMEM;
    else if (rc != Z_OK && rc != Z_BUF_ERROR) /* the latter: it wants more, or more room */
        return E_CORRUPT;
    return 0;
}

static int brotli_some(struct stage *s, const char **p, size_t *n, char *to, size_t *made)
{
    const uint8_t *in = (const uint8_t *)*p;
    uint8_t *out = (uint8_t *)to;
    size_t room = OUT_BYTES;
    BrotliDecoderResult rc = BrotliDecoderDecompressStream(s->brotli, n, &in, &room, &out, NULL);
    *p = (const char *)in;
    *made = OUT_BYTES - room;
    if (rc == BROTLI_DECODER_RESULT_SUCCESS) {
        s->state = OVER;
    } else if (rc == BROTLI_DECODER_RESULT_ERROR) {
        BrotliDecoderErrorCode code = BrotliDecoderGetErrorCode(s->brotli);
        bool memory = code <= BROTLI_DECODER_ERROR_ALLOC_CONTEXT_MODES &&
                      code >= BROTLI_DECODER_ERROR_ALLOC_BLOCK_TYPE_TREES;
        return memory ? E_NOMEM : E_CORRUPT;
    }
    return 0;
}

static int zstd_some(struct stage *s, const char **p, size_t *n, char *to, size_t *made)
{
    ZSTD_inBuffer in = {*p, *n, 0};
    ZSTD_outBuffer out = {to, OUT_BYTES, 0};
    size_t rc = ZSTD_decompressStream(s->zstd, &out, &in);
    *p += in.pos;
    *n -= in.pos;
    *made = out.pos;
    recount(s, ZSTD_sizeof_DCtx(s->zstd));
    if (ZSTD_isError(rc))
        return ZSTD_getErrorCode(rc) == ZSTD_error_memory_allocation ? E_NOMEM : E_CORRUPT;
    if (rc == 0)
        s->state = BETWEEN;
    return 0;
}

static int feed(struct decode *d, size_t i, const char *p, size_t n);

/* What a stage made: for the next one, or for the caller. */
static int pass(struct decode *d, size_t i, const char *p, size_t n)
{
    struct stage *s = d->stage[i];
    s->out += n;
    if (n == 0)
        return 0;
    if (i + 1 == d->n)
        return d->fn(d->arg, p, n);
    return s->out > d->limit ? E_LIMIT : feed(d, i + 1, p, n);
}

static int within(struct decode *d, size_t i, const char **p, size_t *n)
{
    struct stage *s = d->stage[i];
    size_t made = OUT_BYTES;
    while (s->state == WITHIN && (*n > 0 || made == OUT_BYTES)) {
        char *to = d->pool->out[i];
        int rc = s->kind == BROTLI ? brotli_some(s, p, n, to, &made)
                 : s->kind == ZSTD ? zstd_some(s, p, n, to, &made)
                                   : inflate_some(s, p, n, to, &made);
        int passed = pass(d, i, to, made);
        if (passed != 0 || rc != 0)
            return passed != 0 ? passed : rc;
    }
    return 0;
}

/* Bytes that were looked at first are the stream's. */
static int give_sniffed(struct decode *d, size_t i)
{
    struct stage *s = d->stage[i];
    const char *p = s->sniffed;
    size_t n = s->n_sniffed;
    s->n_sniffed = 0;
    s->state = WITHIN;
    return within(d, i, &p, &n);
}

/* RFC 1950 2.2: method 8, a window that exists, a multiple of 31. A bare stream of deflate that
 * begins so would be a stored block with padding that nobody writes. */
static bool is_zlib(const char *p)
{
    unsigned cmf = (unsigned char)p[0], flg = (unsigned char)p[1];
    return (cmf & 15) == 8 && cmf >> 4 <= 7 && (cmf << 8 | flg) % 31 == 0;
}

static int sniff(struct decode *d, size_t i, const char **p, size_t *n)
{
    struct stage *s = d->stage[i];
    s->sniffed[s->n_sniffed++] = *(*p)++;
    --*n;
    if (s->n_sniffed < 2)
        return 0;
    int rc = start_inflate(s, is_zlib(s->sniffed) ? 15 : -15);
    return rc != 0 ? rc : give_sniffed(d, i);
}

/* Whether the byte may stand at this place of a further stream: gzip's magic number, zstd's, or
 * that of its skippable frames. */
static bool goes_on(const struct stage *s, unsigned char c)
{
    static const unsigned char gzip[] = {0x1f, 0x8b};
    static const unsigned char frame[] = {0x28, 0xb5, 0x2f, 0xfd},
                               skip[] = {0x50, 0x2a, 0x4d, 0x18};
    size_t at = s->n_sniffed;
    if (s->kind == GZIP)
        return c == gzip[at];
    bool skips = at == 0 ? (c & 0xf0) == skip[0] : ((unsigned char)s->sniffed[0] & 0xf0) == skip[0];
    return (at == 0 && skips) || c == (skips ? skip : frame)[at];
}

static int between(struct decode *d, size_t i, const char **p, size_t *n)
{
    struct stage *s = d->stage[i];
    if (!goes_on(s, (unsigned char)**p)) {
        s->state = OVER;
        return 0;
    }
    s->sniffed[s->n_sniffed++] = *(*p)++;
    --*n;
    if (s->n_sniffed < (s->kind == GZIP ? 2U : 4U))
        return 0;
    int rc = s->kind == GZIP ? start_inflate(s, 15 + 16) : 0;
    return rc != 0 ? rc : give_sniffed(d, i);
}

static int feed(struct decode *d, size_t i, const char *p, size_t n)
{
    struct stage *s = d->stage[i];
    int rc = 0;
    s->begun = s->begun || n > 0;
    while (rc == 0 && n > 0 && s->state != OVER) {
        rc = s->state == SNIFFING  ? sniff(d, i, &p, &n)
             : s->state == BETWEEN ? between(d, i, &p, &n)
                                   : within(d, i, &p, &n);
    }
    return rc;
}

int decode_feed(struct decode *d, const char *p, size_t n, decode_fn *fn, void *arg)
{
    d->fn = fn;
    d->arg = arg;
    return feed(d, 0, p, n);
}

int decode_end(const struct decode *d)
{
    for (size_t i = 0; i < d->n; i++) {
        const struct stage *s = d->stage[i];
        if (s->begun && (s->state == WITHIN || s->state == SNIFFING))
            return E_CORRUPT;
    }
    return 0;
}
