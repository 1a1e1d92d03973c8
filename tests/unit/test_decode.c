/* Content codings undone: each form, in pieces of every size; cut short at every byte, damaged,
 * mislabelled, nested, bombs. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <brotli/encode.h>
#include <cmocka.h>
#include <zlib.h>
#include <zstd.h>

#include "server/base.h"
#include "server/decode.h"

enum { MAX = 32 * 1024 * 1024 };

struct world {
    struct decode_pool *pool;
    struct buf plain, coded, out;
    uint64_t limit;
};

static int set_up(void **state)
{
    struct world *w = calloc(1, sizeof(*w));
    buf_init(&w->plain, MAX);
    buf_init(&w->coded, 2 * MAX);
    buf_init(&w->out, MAX);
    w->limit = MAX;
    *state = w;
    return decode_pool_new(&w->pool);
}

static int tear_down(void **state)
{
    struct world *w = *state;
    decode_pool_free(w->pool);
    buf_fini(&w->plain);
    buf_fini(&w->coded);
    buf_fini(&w->out);
    free(w);
    return 0;
}

/* ---- coders ---- */

static void deflated(struct buf *out, const char *p, size_t n, int bits, int level)
{
    z_stream z = {0};
    assert_int_equal(deflateInit2(&z, level, Z_DEFLATED, bits, 8, Z_DEFAULT_STRATEGY), Z_OK);
    size_t room = deflateBound(&z, n) + 64;
    assert_int_equal(buf_reserve(out, room), 0);
    z.next_in = (Bytef *)(uintptr_t)p;
    z.avail_in = (uInt)n;
    z.next_out = (Bytef *)out->data + out->len;
    z.avail_out = (uInt)room;
    assert_int_equal(deflate(&z, Z_FINISH), Z_STREAM_END);
    out->len += room - z.avail_out;
    deflateEnd(&z);
}

static void brotlied(struct buf *out, const char *p, size_t n, int window)
{
    size_t room = n + 1024;
    assert_int_equal(buf_reserve(out, room), 0);
    assert_true(BrotliEncoderCompress(5, window, BROTLI_MODE_GENERIC, n, (const uint8_t *)p, &room,
                                      (uint8_t *)out->data + out->len));
    out->len += room;
}

static void zstded(struct buf *out, const char *p, size_t n, int window)
{
    ZSTD_CCtx *c = ZSTD_createCCtx();
    ZSTD_CCtx_setParameter(c, ZSTD_c_checksumFlag, 1);
    if (window != 0)
        ZSTD_CCtx_setParameter(c, ZSTD_c_windowLog, window);
    size_t room = ZSTD_compressBound(n) + 64;
    assert_int_equal(buf_reserve(out, room), 0);
    ZSTD_inBuffer in = {p, n, 0};
    ZSTD_outBuffer to = {out->data + out->len, room, 0};
    if (window != 0) /* not in one go, which makes it as small as the content */
        assert_false(ZSTD_isError(ZSTD_compressStream2(c, &to, &in, ZSTD_e_continue)));
    assert_int_equal(ZSTD_compressStream2(c, &to, &in, ZSTD_e_end), 0);
    out->len += to.pos;
    ZSTD_freeCCtx(c);
}

/* The forms of a coding; the names are those of the field. */
enum form { F_GZIP, F_ZLIB, F_BARE, F_BROTLI, F_ZSTD, FORMS };
static const char *const form_name[] = {"gzip", "deflate", "deflate", "br", "zstd"};

static void code(enum form f, struct buf *out, const char *p, size_t n)
{
    switch (f) {
    case F_GZIP: deflated(out, p, n, 15 + 16, 6); break;
    case F_ZLIB: deflated(out, p, n, 15, 6); break;
    case F_BARE: deflated(out, p, n, -15, 6); break;
    case F_BROTLI: brotlied(out, p, n, 22); break;
    default: zstded(out, p, n, 0); break;
    }
}

static void fill(struct buf *b, size_t n)
{
    buf_reset(b);
    uint32_t x = 1;
    for (size_t i = 0; i < n; i++) {
        x = x * 1664525u + 1013904223u;
        char c = i % 97 < 60 ? (char)('a' + i % 23) : (char)(x >> 24);
        assert_int_equal(buf_addc(b, c), 0);
    }
}

/* ---- decoding ---- */

static int on_out(void *arg, const char *p, size_t n)
{
    struct world *w = arg;
    assert_true(n > 0);
    return buf_add(&w->out, p, n);
}

/* 0, or what was wrong. */
static int run(struct world *w, const char *names, const char *p, size_t n, size_t piece)
{
    struct codings c = {0};
    decode_note(&c, (struct span){names, strlen(names)});
    assert_null(c.unfit);
    struct decode *d = NULL;
    buf_reset(&w->out);
    assert_int_equal(decode_open(&d, w->pool, &c, w->limit), 0);
    int rc = 0;
    for (size_t at = 0; at < n && rc == 0; at += piece)
        rc = decode_feed(d, p + at, n - at < piece ? n - at : piece, on_out, w);
    if (rc == 0)
        rc = decode_end(d);
    decode_close(d);
    return rc;
}

static bool is_plain(const struct world *w)
{
    return w->out.len == w->plain.len &&
           (w->out.len == 0 || memcmp(w->out.data, w->plain.data, w->out.len) == 0);
}

/* What came out is the beginning of what went in. */
static bool is_part(const struct world *w)
{
    return w->out.len <= w->plain.len &&
           (w->out.len == 0 || memcmp(w->out.data, w->plain.data, w->out.len) == 0);
}

static void every_form_in_pieces(void **state)
{
    struct world *w = *state;
    static const size_t sizes[] = {0, 1, 100, 5000, 300000};
    static const size_t pieces[] = {1, 2, 7, 1000, 16384, MAX};
    for (size_t s = 0; s < ARRAY_LEN(sizes); s++) {
        fill(&w->plain, sizes[s]);
        for (enum form f = 0; f < FORMS; f++) {
            buf_reset(&w->coded);
            code(f, &w->coded, w->plain.data, w->plain.len);
            for (size_t i = 0; i < ARRAY_LEN(pieces); i++) {
                int rc = run(w, form_name[f], w->coded.data, w->coded.len, pieces[i]);
                assert_int_equal(rc, 0);
                assert_true(is_plain(w));
            }
        }
    }
}

static void cut_at_every_byte(void **state)
{
    struct world *w = *state;
    fill(&w->plain, 3000);
    for (enum form f = 0; f < FORMS; f++) {
        buf_reset(&w->coded);
        code(f, &w->coded, w->plain.data, w->plain.len);
        for (size_t n = 1; n < w->coded.len; n++) {
            int rc = run(w, form_name[f], w->coded.data, n, n % 3 == 0 ? 1 : n);
            if (rc != E_CORRUPT)
                fail_msg("%s cut to %zu of %zu: %d", form_name[f], n, w->coded.len, rc);
            assert_true(is_part(w));
        }
    }
}

/* gzip and zstd have checks: what is damaged is found out, or was of no consequence. */
static void every_byte_damaged(void **state)
{
    struct world *w = *state;
    fill(&w->plain, 1500);
    static const enum form forms[] = {F_GZIP, F_ZLIB, F_ZSTD};
    for (size_t k = 0; k < ARRAY_LEN(forms); k++) {
        enum form f = forms[k];
        buf_reset(&w->coded);
        code(f, &w->coded, w->plain.data, w->plain.len);
        size_t harmless = 0;
        for (size_t i = 0; i < w->coded.len; i++) {
            w->coded.data[i] = (char)(w->coded.data[i] ^ 0x55);
            int rc = run(w, form_name[f], w->coded.data, w->coded.len, 512);
            assert_true(rc == E_CORRUPT || (rc == 0 && is_plain(w)));
            harmless += rc == 0;
            w->coded.data[i] = (char)(w->coded.data[i] ^ 0x55);
        }
        assert_true(harmless <= 6); /* of gzip's header: time, system, kind of compression */
    }
}

static void streams_one_after_another(void **state)
{
    struct world *w = *state;
    static const size_t sizes[] = {1000, 0, 70000, 1};
    static const enum form forms[] = {F_GZIP, F_ZSTD};
    for (size_t k = 0; k < ARRAY_LEN(forms); k++) {
        struct buf all = {.max = MAX};
        buf_reset(&w->coded);
        for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
            fill(&w->plain, sizes[i]);
            code(forms[k], &w->coded, w->plain.data, w->plain.len);
            assert_int_equal(buf_add(&all, w->plain.data, w->plain.len), 0);
        }
        const char skipped[] = "\x53\x2a\x4d\x18\x03\0\0\0abc"; /* RFC 8878 3.1.2 */
        if (forms[k] == F_ZSTD)
            assert_int_equal(buf_add(&w->coded, skipped, sizeof(skipped) - 1), 0);
        for (size_t piece = 1; piece < 5000; piece = piece * 3 + 1) {
            int rc = run(w, form_name[forms[k]], w->coded.data, w->coded.len, piece);
            assert_int_equal(rc, 0);
            assert_int_equal(w->out.len, all.len);
            assert_memory_equal(w->out.data, all.data, all.len);
        }
        assert_int_equal(run(w, form_name[forms[k]], w->coded.data, w->coded.len - 1, 99),
                         E_CORRUPT);
        buf_fini(&all);
    }
}

static void what_follows_is_ignored(void **state)
{
    struct world *w = *state;
    static const char *const tails[] = {
        "x", "\x1f", "\x28\xb5", "\x28\xb5\x2fX", "trailing bytes", "\x1f\x20"};
    fill(&w->plain, 500);
    for (enum form f = 0; f < FORMS; f++) {
        for (size_t i = 0; i < ARRAY_LEN(tails); i++) {
            buf_reset(&w->coded);
            code(f, &w->coded, w->plain.data, w->plain.len);
            assert_int_equal(buf_adds(&w->coded, tails[i]), 0);
            for (size_t piece = 1; piece < 2000; piece = piece * 5 + 1) {
                assert_int_equal(run(w, form_name[f], w->coded.data, w->coded.len, piece), 0);
                assert_true(is_plain(w));
            }
        }
    }
}

static void a_wrong_label_gives_nothing(void **state)
{
    struct world *w = *state;
    static const char text[] = "<!DOCTYPE html><title>x</title> not coded at all, for some bytes";
    for (enum form f = 0; f < FORMS; f++) {
        for (size_t piece = 1; piece < 100; piece += 40) {
            assert_int_equal(run(w, form_name[f], text, sizeof(text) - 1, piece), E_CORRUPT);
            assert_int_equal(w->out.len, 0);
        }
        for (enum form other = 0; other < FORMS; other++) {
            if (strcmp(form_name[f], form_name[other]) == 0)
                continue;
            fill(&w->plain, 400);
            buf_reset(&w->coded);
            code(other, &w->coded, w->plain.data, w->plain.len);
            assert_int_equal(run(w, form_name[f], w->coded.data, w->coded.len, 16384), E_CORRUPT);
        }
    }
}

static void five_in_one_another(void **state)
{
    struct world *w = *state;
    static const enum form forms[] = {F_GZIP, F_BROTLI, F_ZSTD, F_ZLIB, F_GZIP};
    struct buf next = {.max = MAX};
    fill(&w->plain, 100000);
    buf_reset(&w->coded);
    assert_int_equal(buf_add(&w->coded, w->plain.data, w->plain.len), 0);
    for (size_t i = 0; i < ARRAY_LEN(forms); i++) {
        buf_reset(&next);
        code(forms[i], &next, w->coded.data, w->coded.len);
        struct buf was = w->coded;
        w->coded = next;
        next = was;
    }
    for (size_t piece = 1; piece < 100000; piece = piece * 11 + 1) {
        const char *names = "gzip, br ,zstd,\tdeflate, x-gzip";
        assert_int_equal(run(w, names, w->coded.data, w->coded.len, piece), 0);
        assert_true(is_plain(w));
    }
    assert_int_equal(run(w, "gzip, br, zstd, deflate, gzip", w->coded.data, w->coded.len - 9, 64),
                     E_CORRUPT);
    buf_fini(&next);
}

static int enough(void *arg, const char *p, size_t n)
{
    size_t *left = arg;
    (void)p;
    if (n >= *left)
        return 7;
    *left -= n;
    return 0;
}

static void bombs_end_where_the_caller_says(void **state)
{
    struct world *w = *state;
    buf_reset(&w->plain);
    assert_int_equal(buf_reserve(&w->plain, MAX), 0);
    memset(w->plain.data, 0, MAX);
    for (enum form f = 0; f < FORMS; f++) {
        buf_reset(&w->coded);
        code(f, &w->coded, w->plain.data, MAX);
        assert_true(w->coded.len < MAX / 900);
        struct codings c = {0};
        struct decode *d;
        decode_note(&c, (struct span){form_name[f], strlen(form_name[f])});
        assert_int_equal(decode_open(&d, w->pool, &c, MAX), 0);
        size_t left = 100000;
        assert_int_equal(decode_feed(d, w->coded.data, w->coded.len, enough, &left), 7);
        assert_true(left <= 32 * 1024); /* one buffer more at most */
        decode_close(d);

        /* One bomb in another: what is between them is bounded too. */
        struct buf outer = {.max = MAX};
        deflated(&outer, w->coded.data, w->coded.len, 15 + 16, 9);
        char names[32];
        snprintf(names, sizeof(names), "%s,gzip", form_name[f]);
        w->limit = w->coded.len / 2 < 1000 ? 1 : w->coded.len / 2;
        assert_int_equal(run(w, names, outer.data, outer.len, 16384), E_LIMIT);
        w->limit = MAX;
        buf_fini(&outer);
    }
}

static void windows_are_bounded(void **state)
{
    struct world *w = *state;
    fill(&w->plain, 2000);
    buf_reset(&w->coded);
    zstded(&w->coded, w->plain.data, w->plain.len, DECODE_WINDOW_LOG);
    assert_int_equal(run(w, "zstd", w->coded.data, w->coded.len, 999), 0);
    assert_true(is_plain(w));
    size_t kept = decode_pool_bytes(w->pool);
    assert_true(kept < 1024 * 1024); /* such a window is not kept */
    buf_reset(&w->coded);
    zstded(&w->coded, w->plain.data, w->plain.len, DECODE_WINDOW_LOG + 1);
    assert_int_equal(run(w, "zstd", w->coded.data, w->coded.len, 999), E_CORRUPT);

    /* brotli's "large window" is not RFC 7932's */
    uint8_t out[4096];
    size_t n = sizeof(out);
    const uint8_t *in = (const uint8_t *)w->plain.data;
    uint8_t *to = out;
    size_t left = w->plain.len, room = n;
    BrotliEncoderState *e = BrotliEncoderCreateInstance(NULL, NULL, NULL);
    BrotliEncoderSetParameter(e, BROTLI_PARAM_LARGE_WINDOW, 1);
    BrotliEncoderSetParameter(e, BROTLI_PARAM_LGWIN, 30);
    assert_true(
        BrotliEncoderCompressStream(e, BROTLI_OPERATION_FINISH, &left, &in, &room, &to, NULL));
    assert_true(BrotliEncoderIsFinished(e));
    BrotliEncoderDestroyInstance(e);
    assert_int_equal(run(w, "br", (const char *)out, n - room, 999), E_CORRUPT);
    buf_reset(&w->coded);
    brotlied(&w->coded, w->plain.data, w->plain.len, 24);
    assert_int_equal(run(w, "br", w->coded.data, w->coded.len, 999), 0);
}

/* The second round takes everything from the pool. */
static void decoders_are_used_again(void **state)
{
    struct world *w = *state;
    fill(&w->plain, 5000);
    size_t bytes = 0;
    for (int round = 0; round < 50; round++) {
        for (enum form f = 0; f < FORMS; f++) {
            buf_reset(&w->coded);
            code(f, &w->coded, w->plain.data, w->plain.len);
            assert_int_equal(run(w, form_name[f], w->coded.data, w->coded.len, 777), 0);
            assert_true(is_plain(w)); /* also after the one that broke, below */
            assert_int_equal(run(w, form_name[f], w->coded.data, w->coded.len / 2, 777), E_CORRUPT);
            assert_int_equal(run(w, form_name[f], "junk junk", 9, 777), E_CORRUPT);
        }
        if (round == 0)
            bytes = decode_pool_bytes(w->pool);
        assert_int_equal(decode_pool_bytes(w->pool), bytes);
    }
}

static void field_values(void **state)
{
    (void)state;
    static const struct {
        const char *value;
        int n; /* -1: unfit */
    } rows[] = {
        {"", 0},
        {"gzip", 1},
        {"GZip", 1},
        {"x-gzip", 1},
        {" gzip\t", 1},
        {"gzip, br", 2},
        {"gzip,,br,", 2},
        {",", 0},
        {"identity", 0},
        {"identity, gzip", 1},
        {"chunked", 0},
        {"gzip, chunked", 1},
        {"aws-chunked", 0},
        {"aws-chunked,gzip", 1},
        {"utf-8", 0},
        {"none", 0},
        {"gzip,gzip,gzip,gzip,gzip", 5},
        {"gzip,gzip,gzip,gzip,gzip,gzip", -1},
        {"compress", -1},
        {"gzip;q=1", -1},
        {"gzi", -1},
        {"gzip br", -1},
        {"dcz", -1},
        {"\"gzip\"", -1},
    };
    for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
        struct codings c = {0};
        decode_note(&c, (struct span){rows[i].value, strlen(rows[i].value)});
        if (rows[i].n < 0)
            assert_non_null(c.unfit);
        else
            assert_null(c.unfit);
        if (rows[i].n >= 0)
            assert_int_equal(c.n, rows[i].n);
        assert_int_equal(decode_needed(&c), rows[i].n != 0);
    }
    struct codings a = {0}, b = {0};
    decode_note(&a, (struct span){"gzip, br", 8});
    decode_note(&b, (struct span){"zstd", 4});
    decode_join(&a, &b);
    assert_true(a.n == 3 && a.kind[2] == b.kind[0] && a.unfit == NULL);
    decode_join(&a, &a);
    assert_non_null(a.unfit);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        T(every_form_in_pieces),        T(cut_at_every_byte),
        T(every_byte_damaged),          T(streams_one_after_another),
        T(what_follows_is_ignored),     T(a_wrong_label_gives_nothing),
        T(five_in_one_another),         T(bombs_end_where_the_caller_says),
        T(windows_are_bounded),         T(decoders_are_used_again),
        cmocka_unit_test(field_values),
    };
    return cmocka_run_group_tests_name("decode", tests, NULL, NULL);
}
