/* Fuzzing of the content decoders: the same input whole, byte by byte and in pieces must have the
 * same outcome, its output bounded. The first byte of the input is how many codings, then a byte
 * each. Of a broken body a decoder may give away more or less, up to the bound, before
 * it notices. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/base.h"
#include "server/decode.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { LIMIT = 1 << 20, ENOUGH = 7 };

static int on_out(void *arg, const char *p, size_t n)
{
    struct buf *out = arg;
    return buf_add(out, p, n) == 0 ? 0 : ENOUGH;
}

static int run(struct buf *out, struct decode_pool *pool, const struct codings *c, const uint8_t *p,
               size_t n, size_t piece)
{
    struct decode *d;
    if (decode_open(&d, pool, c, LIMIT) != 0)
        abort();
    int rc = 0;
    for (size_t at = 0; at < n && rc == 0; at += piece)
        rc = decode_feed(d, (const char *)p + at, n - at < piece ? n - at : piece, on_out, out);
    if (rc == 0)
        rc = decode_end(d);
    decode_close(d);
    return rc;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const names[] = {"gzip", "deflate", "br", "zstd"};
    static struct decode_pool *pool;
    static const size_t pieces[] = {SIZE_MAX / 2, 1, 97};
    if (pool == NULL && decode_pool_new(&pool) != 0)
        abort();
    if (size == 0)
        return 0;
    size_t n = 1 + data[0] % DECODE_CODINGS_MAX;
    if (size < 1 + n)
        return 0;
    struct codings c = {0};
    bool zstd = false; /* whose library checks a frame's stated size only if it has all at once */
    for (size_t i = 0; i < n; i++) {
        const char *name = names[data[1 + i] % ARRAY_LEN(names)];
        decode_note(&c, (struct span){name, strlen(name)});
        zstd = zstd || *name == 'z';
    }
    int first = 0;
    struct buf out[ARRAY_LEN(pieces)];
    for (size_t i = 0; i < ARRAY_LEN(pieces); i++) {
        buf_init(&out[i], LIMIT);
        int rc = run(&out[i], pool, &c, data + 1 + n, size - 1 - n, pieces[i]);
        size_t both = out[i].len < out[0].len ? out[i].len : out[0].len;
        bool same = (rc == 0) == (first == 0) && (rc != 0 || out[i].len == out[0].len);
        if (i == 0)
            first = rc;
        else if ((!same && !zstd) || (both > 0 && memcmp(out[i].data, out[0].data, both) != 0)) {
            fprintf(stderr, "whole: %d, %zu bytes; in pieces of %zu: %d, %zu bytes\n", first,
                    out[0].len, pieces[i], rc, out[i].len);
            abort();
        }
    }
    for (size_t i = 0; i < ARRAY_LEN(pieces); i++)
        buf_fini(&out[i]);
    return 0;
}
