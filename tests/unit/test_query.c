/* Query strings, Accept, Range, entity tags, Prefer. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "api/query.h"

static int parse(struct query *q, const char *raw)
{
    const char *why;
    int rc = query_parse(q, raw, strlen(raw), &why);

    if (rc == E_INVAL || rc == E_LIMIT)
        assert_non_null(why);
    return rc;
}

static void decodes(void **state)
{
    struct query q;

    (void)state;
    assert_int_equal(parse(&q, "a=1&b=x%20y+z&c&d=%3D%26&metadata.k%C3%A9=v&&e="), 0);
    assert_int_equal(q.n, 6);
    assert_string_equal(query_get(&q, "a"), "1");
    assert_string_equal(query_get(&q, "b"), "x y z");
    assert_string_equal(query_get(&q, "c"), "");
    assert_string_equal(query_get(&q, "d"), "=&");
    assert_string_equal(query_get(&q, "metadata.k\xc3\xa9"), "v");
    assert_string_equal(query_get(&q, "e"), "");
    assert_null(query_get(&q, "f"));
    assert_null(query_twice(&q));
    query_fini(&q);

    assert_int_equal(parse(&q, ""), 0);
    assert_int_equal(q.n, 0);
    query_fini(&q);

    assert_int_equal(parse(&q, "a=b=c"), 0);
    assert_string_equal(query_get(&q, "a"), "b=c");
    query_fini(&q);
}

static void refuses(void **state)
{
    static const char *const bad[] = {
        "a=%",       "a=%4",  "a=%zz",    "%=1",         "a=%00",  "%00=a",          "a=\x01",
        "a=\x7f",    "=1",    "a=%C0%AF", "a=%ED%A0%80", "a=\xff", "a=%F4%90%80%80", "a=\t",
        "a=1&b=%C3", "%ff=1",
    };
    struct query q;
    char many[QUERY_PARAMS_MAX * 4];

    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_int_equal(parse(&q, bad[i]), E_INVAL);
    memset(many, '&', sizeof(many));
    many[sizeof(many) - 1] = '\0';
    assert_int_equal(parse(&q, many), E_LIMIT);
}

static void finds_twice(void **state)
{
    struct query q;

    (void)state;
    assert_int_equal(parse(&q, "a=1&b=2&%61=3"), 0);
    assert_string_equal(query_twice(&q), "a");
    query_fini(&q);
}

static void escapes(void **state)
{
    char out[32];

    (void)state;
    assert_int_equal(percent_decode(out, "a%2Fb+c", 7, false), 5);
    assert_string_equal(out, "a/b+c");
    assert_int_equal(percent_decode(out, "a%2fb+c", 7, true), 5);
    assert_string_equal(out, "a/b c");
    assert_int_equal(percent_decode(out, "%4", 2, false), -1);
    assert_int_equal(percent_decode(out, "%41", 2, false), -1); /* cut by its length */
    assert_int_equal(percent_decode(out, "", 0, false), 0);
}

static void numbers(void **state)
{
    uint64_t v = 7;

    (void)state;
    assert_int_equal(parse_number("0", 0, 10, &v), 0);
    assert_int_equal(v, 0);
    assert_int_equal(parse_number("10", 0, 10, &v), 0);
    assert_int_equal(v, 10);
    assert_int_equal(parse_number("11", 0, 10, &v), E_LIMIT);
    assert_int_equal(parse_number("0", 1, 10, &v), E_LIMIT);
    assert_int_equal(parse_number("", 0, 10, &v), E_INVAL);
    assert_int_equal(parse_number("-1", 0, 10, &v), E_INVAL);
    assert_int_equal(parse_number("+1", 0, 10, &v), E_INVAL);
    assert_int_equal(parse_number(" 1", 0, 10, &v), E_INVAL);
    assert_int_equal(parse_number("1x", 0, 10, &v), E_INVAL);
    assert_int_equal(parse_number("99999999999999999999999", 0, UINT64_MAX, &v), E_LIMIT);
    assert_int_equal(v, 10);
}

static void accepts(void **state)
{
    static const struct {
        const char *field;
        enum media want;
    } cases[] = {
        {NULL, MEDIA_JSON},
        {"", MEDIA_JSON},
        {"*/*", MEDIA_JSON},
        {"application/json", MEDIA_JSON},
        {"application/x-ndjson", MEDIA_NDJSON},
        {"Application/X-NDJSON", MEDIA_NDJSON},
        {"application/x-ndjson, application/json", MEDIA_JSON},
        {"application/x-ndjson, */*", MEDIA_NDJSON},
        {"application/x-ndjson, */*;q=0.5", MEDIA_NDJSON},
        {"application/x-ndjson;q=0.5, application/json;q=0.4", MEDIA_NDJSON},
        {"application/x-ndjson;q=0.4,application/json;q=0.5", MEDIA_JSON},
        {"application/x-ndjson ; q=0.9 , */* ; q=0.1", MEDIA_NDJSON},
        {"*/*, application/json;q=0", MEDIA_NDJSON},
        {"application/*;q=0.2, */*;q=0.9", MEDIA_JSON},
        {"text/html, application/xhtml+xml, */*;q=0.8", MEDIA_JSON},
        {"text/html", MEDIA_NONE},
        {"application/json;q=0", MEDIA_NONE},
        {"application/json;q=0.000, application/x-ndjson;q=0", MEDIA_NONE},
        {"*/*;q=0", MEDIA_NONE},
        {"application/xml;x=\"a,application/json\"", MEDIA_NONE},
        {"application/jsonp", MEDIA_NONE},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        if (accept_choose(cases[i].field) != cases[i].want)
            fail_msg("Accept: %s", cases[i].field);
}

static void ranges(void **state)
{
    static const struct {
        const char *field;
        uint64_t size;
        enum range want;
        uint64_t first, last;
    } cases[] = {
        {"bytes=0-0", 10, RANGE_PART, 0, 0},
        {"bytes=0-", 10, RANGE_PART, 0, 9},
        {"bytes=3-5", 10, RANGE_PART, 3, 5},
        {"bytes=3-99999999999999999999999", 10, RANGE_PART, 3, 9},
        {"bytes=-3", 10, RANGE_PART, 7, 9},
        {"bytes=-30", 10, RANGE_PART, 0, 9},
        {"Bytes=9-9", 10, RANGE_PART, 9, 9},
        {"bytes=10-", 10, RANGE_BAD, 0, 0},
        {"bytes=99999999999999999999999-", 10, RANGE_BAD, 0, 0},
        {"bytes=-0", 10, RANGE_BAD, 0, 0},
        {"bytes=0-", 0, RANGE_BAD, 0, 0},
        {"bytes=-1", 0, RANGE_BAD, 0, 0},
        {"bytes=0-1,3-4", 10, RANGE_WHOLE, 0, 0},
        {"bytes=5-3", 10, RANGE_WHOLE, 0, 0},
        {"bytes=-", 10, RANGE_WHOLE, 0, 0},
        {"bytes=a-b", 10, RANGE_WHOLE, 0, 0},
        {"bytes=1-2x", 10, RANGE_WHOLE, 0, 0},
        {"lines=1-2", 10, RANGE_WHOLE, 0, 0},
        {"", 10, RANGE_WHOLE, 0, 0},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        uint64_t first = 0, last = 0;

        if (range_parse(cases[i].field, cases[i].size, &first, &last) != cases[i].want)
            fail_msg("Range: %s", cases[i].field);
        if (cases[i].want == RANGE_PART) {
            assert_int_equal(first, cases[i].first);
            assert_int_equal(last, cases[i].last);
        }
    }
}

static void etags(void **state)
{
    (void)state;
    assert_true(etag_listed("\"a\"", "\"a\""));
    assert_true(etag_listed("W/\"a\"", "\"a\""));
    assert_true(etag_listed("\"a\"", "W/\"a\""));
    assert_true(etag_listed("\"x,y\", W/\"a\" , \"b\"", "W/\"a\""));
    assert_true(etag_listed("\"x,y\"", "\"x,y\""));
    assert_true(etag_listed(" * ", "\"a\""));
    assert_false(etag_listed("\"x,a\"", "\"a\""));
    assert_false(etag_listed("a", "\"a\""));
    assert_false(etag_listed("", "\"a\""));
    assert_false(etag_listed("\"A\"", "\"a\""));
}

static void prefers(void **state)
{
    uint64_t s = 0;

    (void)state;
    assert_true(prefer_wait("wait=5", &s));
    assert_int_equal(s, 5);
    assert_true(prefer_wait("respond-async, Wait=100; x=y", &s));
    assert_int_equal(s, 100);
    assert_true(prefer_wait("wait=\"7\"", &s));
    assert_int_equal(s, 7);
    assert_false(prefer_wait("wait", &s));
    assert_false(prefer_wait("wait=x", &s));
    assert_false(prefer_wait("await=3", &s));
    assert_false(prefer_wait("", &s));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(decodes), cmocka_unit_test(refuses), cmocka_unit_test(finds_twice),
        cmocka_unit_test(escapes), cmocka_unit_test(numbers), cmocka_unit_test(accepts),
        cmocka_unit_test(ranges),  cmocka_unit_test(etags),   cmocka_unit_test(prefers),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
