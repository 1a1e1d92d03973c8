/* The scanner against tables of documents in the manner of the well-known JSON test suites (each
 * also at every split position), the writer, base64 and the problem document. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/json.h"
#include "api/problem.h"

struct outcome {
    bool ok;
    uint64_t at, line, start, end;
    const char *why, *flaw;
};

static void account(struct outcome *o, const struct json_scan *s, enum json_event ev)
{
    if (ev == JSON_VALUE) {
        o->start = s->start;
        o->end = s->at;
        o->flaw = s->flaw;
    } else if (ev == JSON_BAD) {
        o->ok = false;
        o->at = s->at;
        o->line = s->line;
        o->why = s->why;
    }
}

/* Feeds pieces that end at cuts[] and at n; takes the document as one value. */
static struct outcome scan(const char *p, size_t n, const size_t *cuts, size_t n_cuts)
{
    struct outcome o = {.ok = true};
    struct json_scan s;
    json_scan_init(&s, 0, 1);
    size_t from = 0;
    for (size_t i = 0; i <= n_cuts && o.ok; i++) {
        size_t to = i < n_cuts ? cuts[i] : n, pos = 0;
        char *piece = malloc(to - from + 1); /* its own memory: reading beyond it shows */
        assert_non_null(piece);
        char *data = piece + 1;
        memcpy(data, p + from, to - from);
        enum json_event ev;
        while ((ev = json_next(&s, data, to - from, &pos)) != JSON_MORE && ev != JSON_BAD) {
            assert_int_not_equal(ev, JSON_LARGE);
            assert_int_not_equal(ev, JSON_END);
            if (ev == JSON_START)
                json_take(&s);
            account(&o, &s, ev);
        }
        account(&o, &s, ev);
        free(piece);
        from = to;
    }
    enum json_event ev;
    while (o.ok && (ev = json_finish(&s)) != JSON_MORE)
        account(&o, &s, ev);
    return o;
}

static void assert_same(const struct outcome *a, const struct outcome *b, const char *doc)
{
    if (a->ok != b->ok || a->at != b->at || a->line != b->line || a->start != b->start ||
        a->end != b->end || a->why != b->why || a->flaw != b->flaw)
        fail_msg("another outcome when cut: %s", doc);
}

/* Whole, byte by byte, and cut in two at every place. */
static struct outcome scan_all_ways(const char *p, size_t n)
{
    size_t every[512];
    struct outcome whole = scan(p, n, NULL, 0);
    assert_true(n < sizeof(every) / sizeof(every[0]));
    for (size_t i = 0; i < n; i++) {
        every[i] = i + 1;
        struct outcome two = scan(p, n, &i, 1);
        assert_same(&whole, &two, p);
    }
    struct outcome bytes = scan(p, n, every, n);
    assert_same(&whole, &bytes, p);
    return whole;
}

static const char *const accepted[] = {
    "[]",
    "{}",
    "[1]",
    " [ ] ",
    "\t{\r\n}\n",
    "null",
    "true",
    "false",
    "0",
    "-0",
    "1",
    "-1",
    "12",
    "-12.5",
    "1e5",
    "1E5",
    "1e+5",
    "1e-5",
    "0e1",
    "0e+1",
    "0E-0",
    "0.0",
    "-0.1",
    "123.456e78",
    "1.0000000000000000000000000000000000000000000000000000000",
    "[0]",
    "[-0]",
    "[0 ]",
    "[1,2]",
    "[1 , 2]",
    "[[],{}]",
    "[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]",
    "[null,true,false]",
    "{\"a\":1}",
    "{\"a\":1,\"b\":2}",
    "{ \"a\" : [ ] }",
    "{\"\":0}",
    "{\"a\":{\"a\":{\"a\":{}}}}",
    "\"\"",
    "\"a\"",
    "\"\\\"\"",
    "\"\\\\\"",
    "\"\\/\"",
    "\"/\"",
    "\"\\b\\f\\n\\r\\t\"",
    "\"\\u0061\"",
    "\"\\u00e9\"",
    "\"\\uABCD\"",
    "\"\\uabcd\"",
    "\"\\ud83d\\ude00\"",
    "\"\\uD83D\\uDE00x\"",
    "\"\\udbff\\udfff\"",
    "\"\\ud800\\udc00\"",
    "\"\\ud7ff\"",
    "\"\\ue000\"",
    "\"\\uffff\"",
    "\"\\u0001\"",
    "\"\\u007f\"",
    "\"\x7f\"",
    "\"\xc2\x80\"",
    "\"\xdf\xbf\"",
    "\"\xe0\xa0\x80\"",
    "\"\xe2\x82\xac\"",
    "\"\xed\x9f\xbf\"",
    "\"\xee\x80\x80\"",
    "\"\xef\xbf\xbf\"",
    "\"\xf0\x90\x80\x80\"",
    "\"\xf4\x8f\xbf\xbf\"",
    "\"\xe2\x80\xa8\"",
    "\"abcdefgh\"",
    "\"abcdefghi\\njklmnop\"",
    "\"1234567890123456\"",
    "[\"a\",\"b\",\"c\"]",
    "{\"a\":[1,{\"b\":null}],\"c\":\"d\"}",
    "[1e1,1E1,1.5e-3]",
    "\"\\\\u0000\"",
    "\"\\\\\\\\\"",
    "[\"\\\\\",\"\\\"\"]",
    "{\"a\":1,\"a\":2}",
    "\"// not a comment\"",
    "[ \n\t\r1\n\t\r]",
    "1 ",
    " 1",
    "\n\n1\n\n",
    "-0e0",
    "1e400",
    "1e-400",
    "9007199254740993",
    "\"http://example.com/a?b=c&d=e#f\"",
    "{\"\\u0061\":\"\\u0062\"}",
};

static void test_accepted(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(accepted) / sizeof(accepted[0]); i++) {
        const char *doc = accepted[i];
        struct outcome o = scan_all_ways(doc, strlen(doc));
        if (!o.ok)
            fail_msg("refused: %s: %s at %llu", doc, o.why, (unsigned long long)o.at);
        assert_null(o.flaw);
        /* cJSON reads exactly the range that we found */
        const char *end = NULL;
        cJSON *v = cJSON_ParseWithLengthOpts(doc + o.start, (size_t)(o.end - o.start), &end, 0);
        if (v == NULL || end != doc + o.end)
            fail_msg("cJSON does not read %s", doc);
        cJSON_Delete(v);
    }
}

#define D(s) s, sizeof(s) - 1
static const struct {
    const char *doc;
    size_t n;
    uint64_t at, line;
    const char *why; /* a part of it */
} refused[] = {
    {D(""), 0, 1, "no JSON value"},
    {D(" \n "), 3, 2, "no JSON value"},
    {D("["), 1, 1, "too early"},
    {D("{"), 1, 1, "too early"},
    {D("[1"), 2, 1, "too early"},
    {D("[1,"), 3, 1, "too early"},
    {D("{\"a\""), 4, 1, "too early"},
    {D("{\"a\":"), 5, 1, "too early"},
    {D("{\"a\":1"), 6, 1, "too early"},
    {D("{\"a\":1,"), 7, 1, "too early"},
    {D("\""), 1, 1, "too early"},
    {D("\"a"), 2, 1, "too early"},
    {D("\"\\"), 2, 1, "too early"},
    {D("\"\\u12"), 5, 1, "too early"},
    {D("\"\\ud800"), 7, 1, "too early"},
    {D("\"\xe2\x82"), 3, 1, "too early"},
    {D("t"), 1, 1, "too early"},
    {D("-"), 1, 1, "too early"},
    {D("1."), 2, 1, "too early"},
    {D("1e"), 2, 1, "too early"},
    {D("1e+"), 3, 1, "too early"},
    {D("]"), 0, 1, "a value"},
    {D("}"), 0, 1, "a value"},
    {D(","), 0, 1, "a value"},
    {D("[,]"), 1, 1, "a value"},
    {D("[1,]"), 3, 1, "a value"},
    {D("[1,,2]"), 3, 1, "a value"},
    {D("[1 2]"), 3, 1, "',' or ']'"},
    {D("[1}"), 2, 1, "',' or ']'"},
    {D("{\"a\":1]"), 6, 1, "',' or '}'"},
    {D("[\n1,\n2\n3]"), 7, 4, "',' or ']'"},
    {D("{,}"), 1, 1, "member name"},
    {D("{1:2}"), 1, 1, "member name"},
    {D("{a:2}"), 1, 1, "member name"},
    {D("{'a':2}"), 1, 1, "member name"},
    {D("{null:2}"), 1, 1, "member name"},
    {D("{\"a\":1,}"), 7, 1, "member name"},
    {D("{\"a\":1,,\"b\":2}"), 7, 1, "member name"},
    {D("{\"a\" 1}"), 5, 1, "':'"},
    {D("{\"a\",1}"), 4, 1, "':'"},
    {D("{\"a\"}"), 4, 1, "':'"},
    {D("{\"a\"::1}"), 5, 1, "a value"},
    {D("{\"a\":}"), 5, 1, "a value"},
    {D("{\"a\":1 \"b\":2}"), 7, 1, "',' or '}'"},
    {D("[1]]"), 3, 1, "behind the end"},
    {D("{}{}"), 2, 1, "behind the end"},
    {D("[1] x"), 4, 1, "behind the end"},
    {D("1 2"), 2, 1, "behind the end"},
    {D("\"a\" \"b\""), 4, 1, "behind the end"},
    {D("null\0"), 4, 1, "behind the end"},
    {D("[]\xef\xbb\xbf"), 2, 1, "behind the end"},
    {D("\xef\xbb\xbf[]"), 0, 1, "a value"},
    {D("01"), 1, 1, "leading zero"},
    {D("-01"), 2, 1, "leading zero"},
    {D("[00]"), 2, 1, "leading zero"},
    {D("-a"), 1, 1, "digit behind '-'"},
    {D("--1"), 1, 1, "digit behind '-'"},
    {D("+1"), 0, 1, "a value"},
    {D(".5"), 0, 1, "a value"},
    {D("1.e5"), 2, 1, "decimal point"},
    {D("[1.]"), 3, 1, "decimal point"},
    {D("1.5.5"), 3, 1, "behind the end"},
    {D("1ee5"), 2, 1, "exponent"},
    {D("1e5.5"), 3, 1, "behind the end"},
    {D("1e-+5"), 3, 1, "exponent"},
    {D("0x10"), 1, 1, "behind the end"},
    {D("1_000"), 1, 1, "behind the end"},
    {D("NaN"), 0, 1, "a value"},
    {D("Infinity"), 0, 1, "a value"},
    {D("-Infinity"), 1, 1, "digit behind '-'"},
    {D("nul"), 3, 1, "too early"},
    {D("nulL"), 3, 1, "only words"},
    {D("True"), 0, 1, "a value"},
    {D("trux"), 3, 1, "only words"},
    {D("truee"), 4, 1, "behind the end"},
    {D("undefined"), 0, 1, "a value"},
    {D("'a'"), 0, 1, "a value"},
    {D("// x\n1"), 0, 1, "a value"},
    {D("/* x */1"), 0, 1, "a value"},
    {D("# x\n1"), 0, 1, "a value"},
    {D("[1] // x"), 4, 1, "behind the end"},
    {D("\v1"), 0, 1, "a value"},
    {D("\f1"), 0, 1, "a value"},
    {D("\xc2\xa0"
       "1"),
     0, 1, "a value"},
    {D("\0"), 0, 1, "a value"},
    {D("\"\n\""), 1, 1, "control character"},
    {D("\"a\tb\""), 2, 1, "control character"},
    {D("\"\0\""), 1, 1, "control character"},
    {D("\"\x1f\""), 1, 1, "control character"},
    {D("\"abcdefghijk\x01\""), 12, 1, "control character"},
    {D("\"\\x41\""), 1, 1, "escape sequence"},
    {D("\"\\a\""), 1, 1, "escape sequence"},
    {D("\"\\'\""), 1, 1, "escape sequence"},
    {D("\"\\0\""), 1, 1, "escape sequence"},
    {D("\"\\\0\""), 1, 1, "escape sequence"},
    {D("\"\\\n\""), 1, 1, "escape sequence"},
    {D("\"\\U0061\""), 1, 1, "escape sequence"},
    {D("\"ab\\u12g4\""), 3, 1, "hexadecimal"},
    {D("\"\\u\""), 1, 1, "hexadecimal"},
    {D("\"\\u00 1\""), 1, 1, "hexadecimal"},
    {D("\"\\ud800\""), 1, 1, "without its low"},
    {D("\"\\ud800x\""), 1, 1, "without its low"},
    {D("\"\\ud800\\n\""), 1, 1, "without its low"},
    {D("\"\\ud800\\u0041\""), 1, 1, "without its low"},
    {D("\"\\ud800\\ud800\""), 1, 1, "without its low"},
    {D("\"abc\\udc00\""), 4, 1, "without its high"},
    {D("\"\\udfff\\ud800\""), 1, 1, "without its high"},
    {D("\"\x80\""), 1, 1, "UTF-8"},
    {D("\"\xff\""), 1, 1, "UTF-8"},
    {D("\"\xfe\""), 1, 1, "UTF-8"},
    {D("\"\xc0\xaf\""), 1, 1, "UTF-8"},
    {D("\"\xc1\xbf\""), 1, 1, "UTF-8"},
    {D("\"\xc3\""), 2, 1, "UTF-8"},
    {D("\"\xc3\x28\""), 2, 1, "UTF-8"},
    {D("\"\xe0\x80\x80\""), 2, 1, "UTF-8"},
    {D("\"\xe0\x9f\xbf\""), 2, 1, "UTF-8"},
    {D("\"\xed\xa0\x80\""), 2, 1, "UTF-8"},
    {D("\"\xed\xbf\xbf\""), 2, 1, "UTF-8"},
    {D("\"\xe2\x82\""), 3, 1, "UTF-8"},
    {D("\"\xf0\x80\x80\x80\""), 2, 1, "UTF-8"},
    {D("\"\xf0\x8f\xbf\xbf\""), 2, 1, "UTF-8"},
    {D("\"\xf4\x90\x80\x80\""), 2, 1, "UTF-8"},
    {D("\"\xf5\x80\x80\x80\""), 1, 1, "UTF-8"},
    {D("\"\xf0\x9f\x98\""), 4, 1, "UTF-8"},
    {D("\xe2\x82\xac"), 0, 1, "a value"},
    {D("[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]"), 16, 1, "16 levels"},
    {D("{\"a\":[[[[[[[[[[[[[[[{}]]]]]]]]]]]]]]]}"), 20, 1, "16 levels"},
    {D("<html>"), 0, 1, "a value"},
    {D("{\n \"urls\": [\n  \"a\"\n  \"b\"\n ]\n}"), 21, 4, "',' or ']'"},
};

static void test_refused(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++) {
        struct outcome o = scan_all_ways(refused[i].doc, refused[i].n);
        if (o.ok)
            fail_msg("accepted: %s", refused[i].doc);
        if (o.at != refused[i].at || o.line != refused[i].line ||
            strstr(o.why, refused[i].why) == NULL)
            fail_msg("%s: %s at %llu, line %llu", refused[i].doc, o.why, (unsigned long long)o.at,
                     (unsigned long long)o.line);
    }
}

static void test_flaws(void **state)
{
    (void)state;
    struct outcome o = scan_all_ways(D("{\"a\":[\"x\\u0000y\"]}"));
    assert_true(o.ok);
    assert_string_equal(o.flaw, "contains \\u0000");
    o = scan_all_ways(D("{\"\\u0000\":1}"));
    assert_string_equal(o.flaw, "contains \\u0000");

    char number[80] = {0};
    memset(number, '1', JSON_NUMBER_MAX);
    o = scan_all_ways(number, strlen(number));
    assert_null(o.flaw);
    number[JSON_NUMBER_MAX] = '1';
    o = scan_all_ways(number, strlen(number));
    assert_true(o.ok);
    assert_non_null(o.flaw);

    for (size_t values = 998; values <= 1000; values++) { /* and the array itself */
        char many[3000] = "[";
        for (size_t i = 0; i < values; i++)
            strncat(many, i == 0 ? "1" : ",1", 3);
        strncat(many, "]", 2);
        o = scan(many, strlen(many), NULL, 0);
        assert_true(o.ok);
        assert_true((o.flaw != NULL) == (values + 1 > JSON_VALUES_MAX));
    }
}

/* What a caller sees who looks into containers. */
static void test_events(void **state)
{
    (void)state;
    static const char doc[] = " {\"a\": [1, \"b\\n\", {\"c\":[]}], \"d\" :true}";
    static const char expected[] = "{ N\"a\" [ v1 v\"b\\n\"! v{\"c\":[]} ] N\"d\" vtrue } ";
    char seen[200] = "";
    struct json_scan s;
    size_t pos = 0, n = sizeof(doc) - 1;
    json_scan_init(&s, 100, 7);
    for (;;) {
        enum json_event ev = json_next(&s, doc, n, &pos);
        size_t len = strlen(seen);
        if (ev == JSON_MORE)
            break;
        assert_int_equal(s.at, 100 + pos);
        if (ev == JSON_START) {
            assert_int_equal(s.first, doc[pos]);
            if (s.first == '[' || (s.first == '{' && s.start == 0)) {
                snprintf(seen + len, sizeof(seen) - len, "%c ", s.first);
                json_enter(&s);
            } else {
                json_take(&s);
            }
        } else if (ev == JSON_VALUE) {
            snprintf(seen + len, sizeof(seen) - len, "%c%.*s%s ", s.is_name ? 'N' : 'v',
                     (int)(s.at - s.start), doc + (s.start - 100), s.escaped ? "!" : "");
        } else {
            assert_int_equal(ev, JSON_END);
            snprintf(seen + len, sizeof(seen) - len, "%c ", doc[pos - 1]);
        }
    }
    assert_int_equal(json_finish(&s), JSON_MORE);
    assert_string_equal(seen, expected);
}

static void test_limit(void **state)
{
    (void)state;
    static const char doc[] = "[\"abcdefghijklmnopqrstuvwxyz\"]";
    for (uint64_t limit = 0; limit < sizeof(doc); limit++) {
        struct json_scan s;
        size_t pos = 0, n = sizeof(doc) - 1;
        json_scan_init(&s, 0, 1);
        s.limit = limit;
        enum json_event ev = json_next(&s, doc, n, &pos);
        if (ev == JSON_START) {
            json_take(&s);
            ev = json_next(&s, doc, n, &pos);
        }
        assert_int_equal(ev, limit < n ? JSON_LARGE : JSON_VALUE);
        assert_int_equal(pos, limit < n ? limit : n);
    }
}

/* ---- the writer ---- */

static void test_writer(void **state)
{
    (void)state;
    struct buf b;
    struct jw w;
    buf_init(&b, 4096);
    jw_init(&w, &b);
    jw_object(&w);
    jw_key(&w, "a");
    jw_array(&w);
    jw_u64(&w, UINT64_MAX);
    jw_i64(&w, INT64_MIN);
    jw_i64(&w, 0);
    jw_bool(&w, true);
    jw_null(&w);
    jw_array(&w);
    jw_array_end(&w);
    jw_object(&w);
    jw_object_end(&w);
    jw_raw(&w, (struct span){"{\"r\":1}", 7});
    jw_array_end(&w);
    jw_key(&w, "b\"");
    jw_str(&w, "x\"\\/\b\f\n\r\t\x01\x1f\x7f\xc3\xa9");
    jw_key(&w, "ms");
    jw_array(&w);
    static const uint64_t us[] = {0, 1, 10, 100, 999, 1000, 1500, 12345, 1000000, UINT64_MAX};
    for (size_t i = 0; i < sizeof(us) / sizeof(us[0]); i++)
        jw_ms(&w, us[i]);
    jw_array_end(&w);
    jw_key(&w, "fixed");
    jw_array(&w);
    jw_fixed(&w, 0.5, 3);
    jw_fixed(&w, 1, 3);
    jw_fixed(&w, 100, 0);
    jw_fixed(&w, 1.23456, 3);
    jw_fixed(&w, -0.0001, 3);
    jw_fixed(&w, 1e300, 3);
    jw_fixed(&w, (double)NAN, 3);
    jw_array_end(&w);
    jw_key(&w, "t");
    jw_array(&w);
    jw_time(&w, 1795410000123);
    jw_time(&w, 0);
    jw_time(&w, -1);
    jw_array_end(&w);
    jw_key(&w, "s");
    jw_text_begin(&w);
    jw_text_part(&w, (struct span){"a\n", 2}, JW_REPLACE);
    jw_text_part(&w, (struct span){"b", 1}, JW_REPLACE);
    jw_text_end(&w);
    jw_key(&w, "n");
    jw_span(&w, (struct span){0}, JW_REPLACE);
    jw_key(&w, "b64");
    jw_base64(&w, "ab", 2);
    jw_object_end(&w);
    jw_newline(&w);
    jw_u64(&w, 1);
    assert_int_equal(w.rc, 0);
    assert_int_equal(buf_addc(&b, 0), 0);
    assert_string_equal(
        b.data, "{\"a\":[18446744073709551615,-9223372036854775808,0,true,null,[],{},{\"r\":1}],"
                "\"b\\\"\":\"x\\\"\\\\/\\b\\f\\n\\r\\t\\u0001\\u001f\x7f\xc3\xa9\","
                "\"ms\":[0,0.001,0.01,0.1,0.999,1,1.5,12.345,1000,18446744073709551.615],"
                "\"fixed\":[0.5,1,100,1.235,0,1.0000000000000001e+300,null],"
                "\"t\":[\"2026-11-23T05:00:00.123Z\",null,\"1969-12-31T23:59:59.999Z\"],"
                "\"s\":\"a\\nb\",\"n\":null,\"b64\":\"YWI=\"}\n1");
    buf_fini(&b);
}

static void assert_written(struct span s, enum jw_bytes how, const char *expected)
{
    struct buf b;
    struct jw w;
    buf_init(&b, 4096);
    jw_init(&w, &b);
    jw_span(&w, s, how);
    assert_int_equal(w.rc, 0);
    assert_int_equal(buf_addc(&b, 0), 0);
    assert_string_equal(b.data, expected);
    assert_true(utf8_valid(b.data, b.len));
    buf_fini(&b);
}

#define FFFD "\xef\xbf\xbd"
static void test_writer_bytes(void **state)
{
    (void)state;
    assert_written((struct span){D("a\xff"
                                   "b")},
                   JW_REPLACE, "\"a" FFFD "b\"");
    assert_written((struct span){D("a\xff"
                                   "b\xe9")},
                   JW_LATIN1,
                   "\"a\xc3\xbf"
                   "b\xc3\xa9\"");
    assert_written((struct span){D("\xc3\xa9")}, JW_LATIN1, "\"\xc3\xa9\"");
    assert_written((struct span){D("\xc3\xa9\xff")}, JW_LATIN1, "\"\xc3\x83\xc2\xa9\xc3\xbf\"");
    /* maximal subparts, Unicode 3.9, table 3-8 */
    assert_written((struct span){D("\x61\xF1\x80\x80\xE1\x80\xC2\x62\x80\x63\x80\xBF\x64")},
                   JW_REPLACE, "\"a" FFFD FFFD FFFD "b" FFFD "c" FFFD FFFD "d\"");
    assert_written((struct span){D("\xed\xa0\x80")}, JW_REPLACE, "\"" FFFD FFFD FFFD "\"");
    assert_written((struct span){D("\xc0\xaf")}, JW_REPLACE, "\"" FFFD FFFD "\"");
    assert_written((struct span){D("\xf0\x9f\x98\x80\xf0\x9f")}, JW_REPLACE,
                   "\"\xf0\x9f\x98\x80" FFFD "\"");
    assert_written((struct span){D("\0\x80\n")}, JW_LATIN1, "\"\\u0000\xc2\x80\\n\"");
    assert_written((struct span){"", 0}, JW_REPLACE, "\"\"");
}

static void test_writer_bound(void **state)
{
    (void)state;
    struct buf b;
    struct jw w;
    buf_init(&b, 10);
    jw_init(&w, &b);
    jw_str(&w, "0123456789");
    assert_int_equal(w.rc, E_LIMIT);
    size_t len = b.len;
    jw_u64(&w, 1);
    assert_int_equal(w.rc, E_LIMIT);
    assert_int_equal(b.len, len);
    buf_fini(&b);
}

/* Whatever bytes are written: our scanner and cJSON read them back. */
static void test_writer_round_trip(void **state)
{
    (void)state;
    uint32_t x = 1;
    for (int round = 0; round < 2000; round++) {
        char bytes[24];
        struct buf b;
        struct jw w;
        for (size_t i = 0; i < sizeof(bytes); i++) {
            x = x * 1664525u + 1013904223u;
            bytes[i] = (char)(x >> 24);
        }
        buf_init(&b, 4096);
        jw_init(&w, &b);
        jw_span(&w, (struct span){bytes, sizeof(bytes)}, round & 1 ? JW_LATIN1 : JW_REPLACE);
        assert_int_equal(w.rc, 0);
        struct outcome o = scan(b.data, b.len, NULL, 0);
        assert_true(o.ok);
        assert_int_equal(o.end - o.start, b.len);
        buf_fini(&b);
    }
}

static void test_base64(void **state)
{
    (void)state;
    static const struct {
        const char *plain, *coded;
    } rows[] = {
        /* RFC 4648, section 10 */
        {"", ""},
        {"f", "Zg=="},
        {"fo", "Zm8="},
        {"foo", "Zm9v"},
        {"foob", "Zm9vYg=="},
        {"fooba", "Zm9vYmE="},
        {"foobar", "Zm9vYmFy"},
        {"\xfb\xff\xfe", "+//+"},
    };
    static const char *const wrong[] = {
        "Zg",   "Zg=",  "Z",        "Zg==\n", " Zg==", "Zh==", "Zm9=",      "Zm_v",
        "Zm-v", "====", "Zg==Zg==", "=Zg=",   "Z===",  "Zg=a", "Zm9v Zm9v", "Zm9\xc3",
    };
    struct buf b;
    buf_init(&b, 100);
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        buf_reset(&b);
        assert_int_equal(base64_encode(&b, rows[i].plain, strlen(rows[i].plain)), 0);
        assert_int_equal(b.len, strlen(rows[i].coded));
        assert_memory_equal(b.data, rows[i].coded, b.len);
        buf_reset(&b);
        assert_int_equal(base64_decode(&b, rows[i].coded, strlen(rows[i].coded)), 0);
        assert_int_equal(b.len, strlen(rows[i].plain));
        if (b.len > 0)
            assert_memory_equal(b.data, rows[i].plain, b.len);
    }
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        buf_reset(&b);
        if (base64_decode(&b, wrong[i], strlen(wrong[i])) != E_INVAL)
            fail_msg("decoded: %s", wrong[i]);
        assert_int_equal(b.len, 0);
    }
    buf_fini(&b);
}

/* ---- the problem document ---- */

static void test_problem(void **state)
{
    (void)state;
    struct problem p = {0};
    struct buf b;
    buf_init(&b, 1 << 20);
    problem_set(&p, PROBLEM_INVALID_FIELD, "%d \"fields\"", 3);
    assert_int_equal(p.status, 422);
    char pointer[] = "/a\n", detail[] = "bad \xff";
    problem_add(&p, &(struct problem_error){.pointer = pointer, .position = -1, .detail = detail});
    problem_add_parameter(&p, "limit", "must be %d", 1);
    problem_add_header(&p, "Host", "twice");
    problem_add(&p, &(struct problem_error){.line = 3, .position = 0, .detail = detail});
    assert_int_equal(problem_write(&p, &b), 0);
    assert_int_equal(buf_addc(&b, 0), 0);
    assert_string_equal(
        b.data, "{\"type\":\"/problems/invalid-field\",\"title\":\"Invalid field\",\"status\":422,"
                "\"detail\":\"3 \\\"fields\\\"\",\"errors\":["
                "{\"pointer\":\"/a\\n\",\"detail\":\"bad " FFFD "\"},"
                "{\"parameter\":\"limit\",\"detail\":\"must be 1\"},"
                "{\"header\":\"Host\",\"detail\":\"twice\"},"
                "{\"line\":3,\"position\":0,\"detail\":\"bad " FFFD "\"}]}");
    for (int i = 0; i < 200; i++)
        problem_add_parameter(&p, "x", "y");
    assert_int_equal(p.n_errors, PROBLEM_ERRORS_MAX);

    /* long text is cut between characters */
    char text[1001] = "";
    for (size_t i = 0; i < 500; i++)
        memcpy(text + 2 * i, "\xc3\xa9", 2);
    problem_set(&p, PROBLEM_BUSY, "%s", text);
    assert_int_equal(p.n_errors, 0);
    assert_int_equal(strlen(p.detail), 510);
    assert_true(utf8_valid(p.detail, strlen(p.detail)));
    problem_set(&p, PROBLEM_BUSY, "x%s", text);
    assert_int_equal(strlen(p.detail), 511);
    assert_true(utf8_valid(p.detail, strlen(p.detail)));
    problem_fini(&p);
    buf_fini(&b);
}

static void test_nearest(void **state)
{
    (void)state;
    static const char *const names[] = {"url", "timeout_ms", "max_attempts", "headers", "body"};
    const size_t n = sizeof(names) / sizeof(names[0]);
    assert_string_equal(problem_nearest("timeout", names, n), "timeout_ms");
    assert_string_equal(problem_nearest("timeoutms", names, n), "timeout_ms");
    assert_string_equal(problem_nearest("uri", names, n), "url");
    assert_string_equal(problem_nearest("header", names, n), "headers");
    assert_string_equal(problem_nearest("haeders", names, n), "headers");
    assert_string_equal(problem_nearest("max_atempt", names, n), "max_attempts");
    assert_string_equal(problem_nearest("bdoy", names, n), "body");
    assert_null(problem_nearest("priority", names, n));
    assert_null(problem_nearest("", names, n));
    char big[1000];
    memset(big, 'a', sizeof(big));
    big[sizeof(big) - 1] = 0;
    assert_null(problem_nearest(big, names, n));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_accepted),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_flaws),
        cmocka_unit_test(test_events),
        cmocka_unit_test(test_limit),
        cmocka_unit_test(test_writer),
        cmocka_unit_test(test_writer_bytes),
        cmocka_unit_test(test_writer_bound),
        cmocka_unit_test(test_writer_round_trip),
        cmocka_unit_test(test_base64),
        cmocka_unit_test(test_problem),
        cmocka_unit_test(test_nearest),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
