/* Tests of base.c and outcome.c. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "server/base.h"
#include "server/outcome.h"

static void test_buf_bound(void **state)
{
    struct buf b;

    (void)state;
    buf_init(&b, 10);
    assert_int_equal(buf_adds(&b, "12345"), 0);
    assert_int_equal(buf_adds(&b, "678901"), E_LIMIT);
    assert_int_equal(b.len, 5);
    assert_int_equal(buf_add(&b, "67890", 5), 0);
    assert_int_equal(b.len, 10);
    assert_true(b.cap <= 10);
    assert_int_equal(buf_addc(&b, 'x'), E_LIMIT);
    assert_int_equal(buf_reserve(&b, SIZE_MAX), E_LIMIT);
    assert_memory_equal(b.data, "1234567890", 10);
    buf_reset(&b);
    assert_int_equal(b.len, 0);
    assert_int_equal(buf_addc(&b, 'y'), 0);
    assert_int_equal(buf_add(&b, NULL, 0), 0);
    buf_fini(&b);
    assert_null(b.data);
    buf_fini(&b);

    struct buf zero = {0};
    assert_int_equal(buf_addc(&zero, 'x'), E_LIMIT);
    buf_fini(&zero);
}

static void test_buf_format(void **state)
{
    struct buf b;
    char text[5000];

    (void)state;
    /* Every length around the size of the small buffer. */
    for (size_t n = 0; n < sizeof(text) - 1; n = n < 300 ? n + 1 : n + 997) {
        memset(text, 'a' + (int)(n % 26), n);
        text[n] = '\0';
        buf_init(&b, n + 2);
        assert_int_equal(buf_addf(&b, "<%s>", text), 0);
        assert_int_equal(b.len, n + 2);
        assert_true(b.data[0] == '<' && b.data[n + 1] == '>');
        assert_memory_equal(b.data + 1, text, n);
        assert_int_equal(buf_addf(&b, "%d", 1), E_LIMIT);
        buf_fini(&b);
        buf_init(&b, n + 1);
        assert_int_equal(buf_addf(&b, "<%s>", text), E_LIMIT);
        assert_int_equal(b.len, 0);
        buf_fini(&b);
    }
}

static void test_memory(void **state)
{
    (void)state;
    char *a = xstrndup("a\0bc", 4), *b = xstrdup("text"), *c = xcalloc(3, 4), *d = xmalloc(0);
    assert_memory_equal(a, "a\0bc", 5);
    assert_string_equal(b, "text");
    for (int i = 0; i < 12; i++)
        assert_int_equal(c[i], 0);
    d = xrealloc(d, 100);
    memset(d, 1, 100);
    free(a);
    free(b);
    free(c);
    free(d);
}

static void test_clocks(void **state)
{
    (void)state;
    int64_t a = now_us(), b = now_us();
    assert_true(a > 0 && b >= a && b - a < 1000000);
    assert_true(wall_ms() > INT64_C(1577836800000)); /* after 2020 */
}

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return x < y ? -1 : x > y;
}

static void test_hash(void **state)
{
    enum { N = 200000 };
    uint64_t *h = xmalloc(N * sizeof(*h));
    unsigned low[256] = {0}, high[256] = {0};

    (void)state;
    for (int i = 0; i < N; i++) {
        char s[64];
        int n = snprintf(s, sizeof(s), "host-%d.example.org", i);
        h[i] = hash64(s, (size_t)n, 7);
        assert_true(h[i] == hash64(s, (size_t)n, 7));
        low[h[i] & 255]++;
        high[h[i] >> 56]++;
    }
    for (int i = 0; i < 256; i++) { /* 781 expected, sigma 28 */
        assert_in_range(low[i], 600, 970);
        assert_in_range(high[i], 600, 970);
    }
    qsort(h, N, sizeof(*h), compare);
    for (int i = 1; i < N; i++)
        assert_true(h[i] != h[i - 1]);
    free(h);

    /* Every length, every byte and every seed counts; alignment does not. */
    char text[80] = {0};
    uint64_t seen[200];
    size_t k = 0;
    for (size_t n = 0; n <= 64; n++)
        seen[k++] = hash64(text, n, 0);
    for (size_t i = 0; i < 64; i++) {
        text[i] = 1;
        seen[k++] = hash64(text, 64, 0);
        text[i] = 0;
    }
    for (uint64_t seed = 1; seed < 20; seed++)
        seen[k++] = hash64(text, 64, seed);
    qsort(seen, k, sizeof(*seen), compare);
    for (size_t i = 1; i < k; i++)
        assert_true(seen[i] != seen[i - 1]);
    for (size_t n = 1; n < 40; n++) {
        char moved[80];
        memset(text, (int)n, n);
        memcpy(moved + 3, text, n);
        assert_true(hash64(text, n, 1) == hash64(moved + 3, n, 1));
    }
}

/* RFC 3629 by its definition: decodes and compares with the shortest form. */
static bool reference_utf8(const uint8_t *p, size_t n)
{
    for (size_t i = 0; i < n;) {
        uint32_t c = p[i];
        size_t more = c < 0x80 ? 0 : c >> 5 == 6 ? 1 : c >> 4 == 14 ? 2 : c >> 3 == 30 ? 3 : 9;
        if (more == 9 || n - i <= more)
            return false;
        uint32_t v = more == 0 ? c : c & (0x3fu >> more);
        for (size_t k = 1; k <= more; k++) {
            if (p[i + k] >> 6 != 2)
                return false;
            v = v << 6 | (p[i + k] & 0x3f);
        }
        static const uint32_t least[] = {0, 0x80, 0x800, 0x10000};
        if (v < least[more] || v > 0x10ffff || (v >= 0xd800 && v <= 0xdfff))
            return false;
        i += more + 1;
    }
    return true;
}

static void test_utf8(void **state)
{
    uint8_t p[32];

    (void)state;
    /* All two-byte strings, and all three-byte ones from the second byte's edges on. */
    for (unsigned a = 0; a < 256; a++)
        for (unsigned b = 0; b < 256; b++) {
            p[0] = (uint8_t)a;
            p[1] = (uint8_t)b;
            assert_true(utf8_valid((char *)p, 2) == reference_utf8(p, 2));
            static const uint8_t thirds[] = {0x00, 0x7f, 0x80, 0xbf, 0xc0, 0xff};
            for (size_t c = 0; c < sizeof(thirds); c++)
                for (size_t d = 0; d < sizeof(thirds); d++) {
                    p[2] = thirds[c];
                    p[3] = thirds[d];
                    assert_true(utf8_valid((char *)p, 3) == reference_utf8(p, 3));
                    assert_true(utf8_valid((char *)p, 4) == reference_utf8(p, 4));
                }
        }
    /* Each place relative to the eight-byte steps, whole and cut. */
    for (size_t at = 0; at < 20; at++) {
        memset(p, 'a', sizeof(p));
        memcpy(p + at, "\xf0\x9f\x98\x80", 4);
        for (size_t n = 0; n <= sizeof(p); n++)
            assert_true(utf8_valid((char *)p, n) == reference_utf8(p, n));
        p[at] = 0xff;
        assert_false(utf8_valid((char *)p, sizeof(p)));
    }
    assert_true(utf8_valid("", 0));
    assert_true(utf8_valid("a\0b", 3));
}

static void test_outcome(void **state)
{
    static const int yes[] = {408, 425, 429, 500, 502, 503, 504};
    static const int no[] = {0, 200, 301, 400, 401, 403, 404, 410, 418, 501, 505, 599};

    (void)state;
    assert_string_equal(outcome_name(OUTCOME_NONE), "");
    assert_string_equal(outcome_name(OUTCOME_BLOCKED_ADDRESS), "blocked_address");
    assert_string_equal(outcome_name(OUTCOME_DEADLINE), "deadline");
    assert_string_equal(outcome_name(-1), "internal");
    assert_string_equal(outcome_name(99), "internal");
    for (size_t i = 0; i < ARRAY_LEN(yes); i++)
        assert_true(outcome_retryable(OUTCOME_HTTP_STATUS, yes[i]));
    for (size_t i = 0; i < ARRAY_LEN(no); i++)
        assert_false(outcome_retryable(OUTCOME_HTTP_STATUS, no[i]));
    assert_true(outcome_retryable(OUTCOME_DNS, 0));
    assert_true(outcome_retryable(OUTCOME_TIMEOUT, 200));
    assert_false(outcome_retryable(OUTCOME_TLS, 503));
    assert_false(outcome_retryable(OUTCOME_NONE, 503));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_buf_bound), cmocka_unit_test(test_buf_format),
        cmocka_unit_test(test_memory),    cmocka_unit_test(test_clocks),
        cmocka_unit_test(test_hash),      cmocka_unit_test(test_utf8),
        cmocka_unit_test(test_outcome),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
