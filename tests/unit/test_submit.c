/* The reader of submissions against tables of documents, accepted and refused, with the exact
 * outcome; every one also byte by byte, cut in two at every place, and with a sink that pauses. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/unit/submit_fixture.h"

/* ---- accepted ---- */

static const struct {
    enum submit_type type;
    const char *doc;
    size_t n;
    const char *expected;
} accepted[] = {
    {J, D("{\"urls\":[\"" A "\",\"" B "\"]}"), TWO},
    {J, D(" {\r\n\t\"urls\" : [ \"" A "\" ,\n\"" B "\" ] } \n"), TWO},
    {J, D("\xef\xbb\xbf{\"urls\":[\"" A "\"]}"), ONE},
    {J, D("{\"urls\":[\"http:\\/\\/a.ex\\u0061mple/\"]}"), ONE},
    {J, D("{\"\\u0075rls\":[\"" A "\"]}"), ONE},
    {J, D("{\"requests\":[{\"url\":\"" A "\"},{\"url\":\"" B "\"}]}"), TWO},
    {J,
     D("{\"limits\":{},\"metadata\":{},\"defaults\":{},\"requests\":[{\"headers\":{},"
       "\"url\":\"" A "\"}]}"),
     ONE},
    {J, D("{\"ignore_invalid_urls\":false,\"max_redirects\":1e1,\"urls\":[\"" A "\"]}"), ONE},
    {J,
     D("{\"urls\":[\"" A "\"],\"limits\":{\"max_per_host\":2.0,\"max_parallel\":1000000},"
       "\"max_redirects\":0,\"name\":\"n\\u00e9\",\"metadata\":{\"k\":\"v\\n\",\"\\\"\":\"\"},"
       "\"defaults\":{\"method\":\"POST\",\"body\":\"\",\"timeout_ms\":1,"
       "\"connect_timeout_ms\":600000,\"max_attempts\":20,\"max_body_bytes\":0,"
       "\"headers\":{\"A\":\"1\",\"B\":\" 2\\t \"}}}"),
     PLAIN(
         "0", "a.example",
         A) "ok 1 bad 0 limits 1000000 2 0 name n\xc3\xa9 meta "
            "{\"k\":\"v\\n\",\"\\\"\":\"\"} [null,null,null,\"POST\",\"A: 1\\nB: 2\\n\",\"\",1,600000,20,0]" USUAL},
    {J,
     D("{\"requests\":[{\"url\":\"" A "\",\"custom_id\":\"x\\\"y\",\"method\":\"PUT\","
       "\"headers\":{\"X-A\":\"\",\"Accept\":\"a\\tb\"},\"body\":\"\\u00e9\\n\","
       "\"timeout_ms\":3600000,\"connect_timeout_ms\":1,\"max_attempts\":1,"
       "\"max_body_bytes\":10485760}]}"),
     "0 a.example [\"" A
     "\",null,\"x\\\"y\",\"PUT\",\"X-A: \\nAccept: a\\tb\\n\",\"w6kK\",3600000,1,1,"
     "10485760]\nok 1 bad 0" END},
    {J,
     D("{\"requests\":[{\"url\":\"" A "\",\"body_base64\":\"AAEC\",\"method\":\"DELETE\"},"
       "{\"url\":\"" A "\",\"body_base64\":\"\",\"method\":\"PATCH\"}]}"),
     "0 a.example [\"" A "\",null,null,\"DELETE\",null,\"AAEC\",0,0,0,null]\n"
     "1 a.example [\"" A "\",null,null,\"PATCH\",null,\"\",0,0,0,null]\nok 2 bad 0" END},
    /* the method comes from defaults, which come later */
    {J, D("{\"requests\":[{\"url\":\"" A "\",\"body\":\"x\"}],\"defaults\":{\"method\":\"PUT\"}}"),
     "0 a.example [\"" A "\",null,null,null,null,\"eA==\",0,0,0,null]\n"
     "ok 1 bad 0 limits 0 0 10 name - meta - [null,null,null,\"PUT\",null,null,0,0,0,null]" USUAL},
    /* whether bad URLs are forgiven is known at the end only */
    {J, D("{\"urls\":[\"ftp://x/\",\"" A "\"],\"ignore_invalid_urls\":true}"),
     "0 - [\"ftp://x/\",\"the scheme is not http or https\",null,null,null,null,0,0,0,null]\n" PLAIN(
         "1", "a.example", A) "ok 2 bad 1" END},
    /* rate, priority, HTTP version, retry policy */
    {J, TOP("\"limits\":{\"rate_per_host\":0.001},\"priority\":0,\"http_version\":\"1.1\""),
     SET("1 0 11 retry 1 500 30000 60000 0" STATUSES)},
    {J, TOP("\"http_version\":\"2\",\"priority\":9,\"limits\":{\"rate_per_host\":1e6}"),
     SET("1000000000 9 20 retry 1 500 30000 60000 0" STATUSES)},
    {J, TOP("\"limits\":{\"rate_per_host\":2.5}"),
     SET("2500 5 11 retry 1 500 30000 60000 0" STATUSES)},
    {J, TOP("\"limits\":{\"rate_per_host\":0.0015}"), /* rounded */
     SET("2 5 11 retry 1 500 30000 60000 0" STATUSES)},
    {J, TOP("\"retry\":{}"), SET("0 5 11 retry 3 500 30000 60000 0" STATUSES)},
    {J,
     TOP("\"retry\":{\"max_attempts\":1,\"min_backoff_ms\":1,\"max_backoff_ms\":1,"
         "\"max_retry_after_ms\":0,\"on_status\":[],\"non_idempotent\":true}"),
     SET("0 5 11 retry 1 1 1 0 1")},
    {J,
     TOP("\"retry\":{\"max_attempts\":20,\"min_backoff_ms\":3600000,\"max_backoff_ms\":"
         "86400000,\"max_retry_after_ms\":86400000,\"on_status\":[599,400,404],"
         "\"non_idempotent\":false}"),
     SET("0 5 11 retry 20 3600000 86400000 86400000 0 400 404 599")},
    /* of two bounds the one that is not given makes way */
    {J, TOP("\"retry\":{\"min_backoff_ms\":30001}"),
     SET("0 5 11 retry 3 30001 30001 60000 0" STATUSES)},
    {J, TOP("\"retry\":{\"max_backoff_ms\":499}"), SET("0 5 11 retry 3 499 499 60000 0" STATUSES)},
    {J, TOP("\"retry\":{\"max_backoff_ms\":500}"), SET("0 5 11 retry 3 500 500 60000 0" STATUSES)},
    {N, D("\"" A "\"\n\"" B "\"\n"), TWO},
    {N, D("\"" A "\"\r\n \t\r\n\n{\"url\":\"" B "\"}"), TWO},
    {N, D("\xef\xbb\xbf\n  \"" A "\"  "), ONE},
    {N, D("\"http:\\/\\/a.example/\"\r"), ONE},
    {T, D(A "\n" B "\n"), TWO},
    {T, D(A "\n" B), TWO},
    {T, D(A "\r\n" B "\r\n"), TWO},
    {T, D("\xef\xbb\xbf# comment\n\n \t" A "\t \n  # another: \xff\n\r\n" B "\r"), TWO},
    {T, D("#\n#" B "\n" A), ONE},
};

static void test_accepted(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(accepted); i++) {
        struct submit_config cfg = config(accepted[i].type);
        char *got = run(&cfg, accepted[i].doc, accepted[i].n);
        if (strcmp(got, accepted[i].expected) != 0)
            fail_msg("%s\nis     %s\nnot as %s", accepted[i].doc, got, accepted[i].expected);
        free(got);
    }
}

/* ---- refused ---- */

static const struct {
    enum submit_type type;
    const char *doc;
    size_t n;
    const char *problem, *where, *detail;
} refused[] = {
    /* syntax: the exact place */
    {J, D(""), MALFORMED, "{\"line\":1,\"position\":0,", "no JSON value"},
    {J, D("\xef\xbb\xbf"), MALFORMED, "{\"line\":1,\"position\":3,", "no JSON value"},
    {J,
     D("\xef\xbb"
       "x"),
     MALFORMED, "{\"line\":1,\"position\":0,", "expected a value"},
    {J, D("\xef\xbb"), MALFORMED, "{\"line\":1,\"position\":0,", "expected a value"},
    {J, D("\xff\xfe{"), MALFORMED, "{\"line\":1,\"position\":0,", "expected a value"},
    {J, D("http://a.example/\n"), MALFORMED, "{\"line\":1,\"position\":0,", "expected a value"},
    {J, D("{\"urls\":[\"" A "\"\n,\n\n}"), MALFORMED, "{\"line\":4,\"position\":32,", "a value"},
    {J, D("{\"urls\":[\"" A "\"]"), MALFORMED, "{\"line\":1,\"position\":29,", "too early"},
    {J, D("{\"urls\":[\"" A "\"]}}"), MALFORMED, "{\"line\":1,\"position\":30,", "behind the end"},
    {J, D("{\"urls\":[\"" A "\",]}"), MALFORMED, "{\"line\":1,\"position\":29,", "a value"},
    {J, D("{\"urls\":[\"" A "\",\"\\ud800\"]}"), MALFORMED, "{\"line\":1,\"position\":30,",
     "surrogate"},
    {J, D("{\"urls\":[\"a\tb\"]}"), MALFORMED, "{\"line\":1,\"position\":11,", "control"},
    {J, D("{\"urls\":[\"\xff\"]}"), MALFORMED, "{\"line\":1,\"position\":10,", "UTF-8"},
    {J, D("{\"urls\":[01]}"), MALFORMED, "{\"line\":1,\"position\":10,", "leading zero"},
    {J, D("{urls:[]}"), MALFORMED, "{\"line\":1,\"position\":1,", "member name"},
    {J, D("{\"a\":[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]}"), MALFORMED, "\"position\":20,", "16 levels"},
    /* a syntax error drops the field errors found before it */
    {J, D("{\"nonsense\":1,\"urls\":[}"), MALFORMED, "\"errors\":[{\"line\":1,\"position\":22,",
     "a value"},
    {J, D("nonsense"), MALFORMED, "\"position\":1,", "only words"},
    /* the document */
    {J, D("[\"" A "\"]"), FIELD, AT(""), "must be an object with"},
    {J, D("\"" A "\""), FIELD, AT(""), "must be an object with"},
    {J, D("12"), FIELD, AT(""), "must be an object with"},
    {J, D("null "), FIELD, AT(""), "must be an object with"},
    {J, D("{}"), FIELD, AT(""), "is needed"},
    {J, D("{\"urls\":[]}"), "empty-batch", "422", ""},
    {J, D("{\"requests\":[ ]}"), "empty-batch", "422", ""},
    {J, D("{\"urls\":[\"" A "\"],\"requests\":[{\"url\":\"" A "\"}]}"), FIELD, AT("/requests"),
     "exclude"},
    {J, D("{\"requests\":[{\"url\":\"" A "\"}],\"urls\":[3]}"), FIELD, AT("/urls"), "exclude"},
    {J, D("{\"urls\":[\"" A "\"],\"urls\":[\"" A "\"]}"), FIELD, AT("/urls"), "more than once"},
    {J, D("{\"urls\":\"" A "\"}"), FIELD, AT("/urls"), "must be an array of strings"},
    {J, D("{\"requests\":{}}"), FIELD, AT("/requests"), "must be an array of objects"},
    {J, D("{\"urls\":[\"" A "\",3]}"), FIELD, AT("/urls/1"), "must be a string"},
    {J, D("{\"urls\":[{\"url\":\"" A "\"}]}"), FIELD, AT("/urls/0"), "must be a string"},
    {J, D("{\"urls\":[null]}"), FIELD, AT("/urls/0"), "must be a string"},
    {J, D("{\"requests\":[\"" A "\"]}"), FIELD, AT("/requests/0"), "must be an object"},
    {J, D("{\"requests\":[[]]}"), FIELD, AT("/requests/0"), "must be an object"},
    {J, D("{\"urls\":[\"" A "\\u0000\"]}"), FIELD, AT("/urls/0"), "contains \\\\u0000"},
    {J, TOP("\"name\":\"\\u0000\""), FIELD, AT("/name"), "contains \\\\u0000"},
    {J, TOP("\"n\\u0000\":1"), FIELD, AT("/n"), "contains \\\\u0000"},
    /* unknown fields */
    {J, D("{\"url\":[\"" A "\"]}"), FIELD, AT("/url"),
     "unknown field \\\"url\\\"; did you mean \\\"urls\\\"?"},
    {J, TOP("\"metdata\":{}"), FIELD, AT("/metdata"), "did you mean \\\"metadata\\\"?"},
    {J, TOP("\"Name\":\"x\""), FIELD, AT("/Name"), "did you mean \\\"name\\\"?"},
    {J, TOP("\"a/b~c\":1"), FIELD, AT("/a~1b~0c"), "unknown field"},
    {J, TOP("\"defaults\":{\"url\":\"x\"}"), FIELD, AT("/defaults/url"), "unknown"},
    {J, TOP("\"defaults\":{\"custom_id\":\"x\"}"), FIELD, AT("/defaults/custom_id"), "unknown"},
    {J, REQ("\"timeout\":1"), FIELD, AT("/requests/1/timeout"),
     "unknown field \\\"timeout\\\"; did you mean \\\"timeout_ms\\\"?"},
    {J, REQ("\"priority\":1"), FIELD, AT("/requests/1/priority"),
     "unknown field \\\"priority\\\"; did you mean \\\"priority\\\" of the whole batch?"},
    /* known, but elsewhere */
    {J, TOP("\"max_per_host\":1"), FIELD, AT("/max_per_host"),
     "unknown field \\\"max_per_host\\\"; did you mean \\\"limits.max_per_host\\\"?"},
    {J, TOP("\"rate_per_host\":1"), FIELD, AT("/rate_per_host"),
     "mean \\\"limits.rate_per_host\\\"?"},
    {J, TOP("\"max_attempts\":3"), FIELD, AT("/max_attempts"),
     "did you mean \\\"retry.max_attempts\\\" or \\\"defaults.max_attempts\\\"?"},
    {J, TOP("\"timeout_ms\":3"), FIELD, AT("/timeout_ms"), "mean \\\"defaults.timeout_ms\\\"?"},
    {J, TOP("\"on_status\":3"), FIELD, AT("/on_status"), "mean \\\"retry.on_status\\\"?"},
    {J, TOP("\"limits\":{\"max_redirects\":1}"), FIELD, AT("/limits/max_redirects"),
     "mean \\\"max_redirects\\\" of the whole batch?"},
    {J, TOP("\"retry\":{\"rate_per_host\":1}"), FIELD, AT("/retry/rate_per_host"),
     "mean \\\"limits.rate_per_host\\\"?"},
    {J, TOP("\"defaults\":{\"retry\":{}}"), FIELD, AT("/defaults/retry"),
     "mean \\\"retry\\\" of the whole batch?"},
    {J, TOP("\"defaults\":{\"on_status\":[]}"), FIELD, AT("/defaults/on_status"),
     "mean \\\"retry.on_status\\\"?"},
    {J, TOP("\"color\":1"), FIELD, AT("/color"), "unknown field \\\"color\\\"\""},
    {N, D("{\"url\":\"" A "\",\"priority\":1}"), FIELD, "\"pointer\":\"/priority\"",
     "did you mean the query parameter \\\"priority\\\"?"},
    {N, D("{\"url\":\"" A "\",\"rate_per_host\":1}"), FIELD, "\"pointer\":\"/rate_per_host\"",
     "did you mean the query parameter \\\"limits.rate_per_host\\\"?"},
    {N, D("{\"url\":\"" A "\",\"metadata\":{}}"), FIELD, "\"pointer\":\"/metadata\"",
     "did you mean the query parameter \\\"metadata.NAME\\\"?"},
    /* given twice */
    {J, TOP("\"name\":\"a\",\"name\":\"b\""), FIELD, AT("/name"), "more than once"},
    {J, TOP("\"name\":\"a\",\"n\\u0061me\":\"b\""), FIELD, AT("/name"), "more than once"},
    {J, TOP("\"limits\":{\"max_parallel\":1,\"max_parallel\":1}"), FIELD,
     AT("/limits/max_parallel"), "more than once"},
    {J, TOP("\"metadata\":{\"a\":\"1\",\"b\":\"\",\"\\u0061\":\"2\"}"), FIELD, AT("/metadata/a"),
     "more than once"},
    {J, REQ("\"url\":\"" A "\""), FIELD, AT("/requests/1/url"), "more than once"},
    {J, REQ("\"headers\":{\"A\":\"1\",\"A\":\"2\"}"), FIELD, AT("/requests/1/headers/A"), "once"},
    {J, REQ("\"headers\":{\"Ab\":\"1\",\"aB\":\"2\"}"), FIELD, AT("/requests/1/headers/aB"),
     "once"},
    /* types and bounds */
    {J, TOP("\"limits\":[]"), FIELD, AT("/limits"), "must be an object"},
    {J, TOP("\"limits\":{\"max_parallel\":0}"), FIELD, AT("/limits/max_parallel"),
     "must be an integer from 1 to 1000000"},
    {J, TOP("\"limits\":{\"max_per_host\":1000001}"), FIELD, AT("/limits/max_per_host"), "1000000"},
    {J, TOP("\"limits\":{\"max_per_host\":\"auto\"}"), FIELD, AT("/limits/max_per_host"),
     "integer"},
    {J, TOP("\"max_redirects\":51"), FIELD, AT("/max_redirects"), "from 0 to 50"},
    {J, TOP("\"max_redirects\":-1"), FIELD, AT("/max_redirects"), "from 0 to 50"},
    {J, TOP("\"max_redirects\":1.5"), FIELD, AT("/max_redirects"), "from 0 to 50"},
    {J, TOP("\"max_redirects\":1e400"), FIELD, AT("/max_redirects"), "from 0 to 50"},
    {J, TOP("\"max_redirects\":null"), FIELD, AT("/max_redirects"), "from 0 to 50"},
    {J, TOP("\"max_redirects\":0.00000000000000000000000000000000000000000000000000000000001"),
     FIELD, AT("/max_redirects"), "60 characters"},
    {J, TOP("\"limits\":{\"rate_per_host\":0}"), FIELD, AT("/limits/rate_per_host"),
     "must be a number from 0.001 to 1000000"},
    {J, TOP("\"limits\":{\"rate_per_host\":0.0009}"), FIELD, AT("/limits/rate_per_host"), "0.001"},
    {J, TOP("\"limits\":{\"rate_per_host\":-1}"), FIELD, AT("/limits/rate_per_host"), "0.001"},
    {J, TOP("\"limits\":{\"rate_per_host\":1000000.001}"), FIELD, AT("/limits/rate_per_host"),
     "0.001"},
    {J, TOP("\"limits\":{\"rate_per_host\":1e999}"), FIELD, AT("/limits/rate_per_host"), "0.001"},
    {J, TOP("\"limits\":{\"rate_per_host\":\"1\"}"), FIELD, AT("/limits/rate_per_host"), "0.001"},
    {J, TOP("\"limits\":{\"rate_per_host\":null}"), FIELD, AT("/limits/rate_per_host"), "0.001"},
    {J, TOP("\"expires_after_s\":0"), FIELD, AT("/expires_after_s"), "1 to 86400"},
    {J, TOP("\"expires_after_s\":86401"), FIELD, AT("/expires_after_s"), "1 to 86400"},
    {J, TOP("\"expires_after_s\":null"), FIELD, AT("/expires_after_s"), "1 to 86400"},
    {J, TOP("\"priority\":10"), FIELD, AT("/priority"), "must be an integer from 0 to 9"},
    {J, TOP("\"priority\":-1"), FIELD, AT("/priority"), "0 to 9"},
    {J, TOP("\"priority\":0.5"), FIELD, AT("/priority"), "0 to 9"},
    {J, TOP("\"priority\":\"5\""), FIELD, AT("/priority"), "0 to 9"},
    {J, TOP("\"priority\":5,\"priority\":5"), FIELD, AT("/priority"), "more than once"},
    {J, TOP("\"http_version\":2"), FIELD, AT("/http_version"),
     "must be the string \\\"1.1\\\" or \\\"2\\\""},
    {J, TOP("\"http_version\":\"3\""), FIELD, AT("/http_version"), "must be the string"},
    {J, TOP("\"http_version\":\"\""), FIELD, AT("/http_version"), "must be the string"},
    {J, TOP("\"retry\":null"), FIELD, AT("/retry"), "must be an object"},
    {J, TOP("\"retry\":3"), FIELD, AT("/retry"), "must be an object"},
    {J, TOP("\"retry\":{\"max_attempts\":0}"), FIELD, AT("/retry/max_attempts"), "1 to 20"},
    {J, TOP("\"retry\":{\"max_attempts\":21}"), FIELD, AT("/retry/max_attempts"), "1 to 20"},
    {J, TOP("\"retry\":{\"max_attempts\":1,\"max_attempts\":1}"), FIELD, AT("/retry/max_attempts"),
     "more than once"},
    {J, TOP("\"retry\":{\"min_backoff_ms\":0}"), FIELD, AT("/retry/min_backoff_ms"),
     "1 to 3600000"},
    {J, TOP("\"retry\":{\"min_backoff_ms\":3600001}"), FIELD, AT("/retry/min_backoff_ms"),
     "1 to 3600000"},
    {J, TOP("\"retry\":{\"max_backoff_ms\":0}"), FIELD, AT("/retry/max_backoff_ms"),
     "1 to 86400000"},
    {J, TOP("\"retry\":{\"max_backoff_ms\":86400001}"), FIELD, AT("/retry/max_backoff_ms"),
     "1 to 86400000"},
    {J, TOP("\"retry\":{\"min_backoff_ms\":9,\"max_backoff_ms\":8}"), FIELD,
     AT("/retry/max_backoff_ms"), "must not be less than min_backoff_ms (9)"},
    {J, TOP("\"retry\":{\"max_retry_after_ms\":86400001}"), FIELD, AT("/retry/max_retry_after_ms"),
     "0 to 86400000"},
    {J, TOP("\"retry\":{\"on_status\":503}"), FIELD, AT("/retry/on_status"),
     "must be an array of HTTP statuses"},
    {J, TOP("\"retry\":{\"on_status\":[399]}"), FIELD, AT("/retry/on_status/0"), "400 to 599"},
    {J, TOP("\"retry\":{\"on_status\":[503,600]}"), FIELD, AT("/retry/on_status/1"), "400 to 599"},
    {J, TOP("\"retry\":{\"on_status\":[503,\"504\"]}"), FIELD, AT("/retry/on_status/1"), "400 to"},
    {J, TOP("\"retry\":{\"on_status\":[429,503,429]}"), FIELD, AT("/retry/on_status/2"),
     "429 is given more than once"},
    {J, TOP("\"retry\":{\"non_idempotent\":0}"), FIELD, AT("/retry/non_idempotent"),
     "must be true or false"},
    {J, TOP("\"retry\":{\"max_atempts\":3}"), FIELD, AT("/retry/max_atempts"),
     "did you mean \\\"max_attempts\\\"?"},
    {J, TOP("\"ignore_invalid_urls\":1"), FIELD, AT("/ignore_invalid_urls"), "true or false"},
    {J, TOP("\"ignore_invalid_urls\":\"true\""), FIELD, AT("/ignore_invalid_urls"), "true or"},
    {J, TOP("\"name\":\"\""), FIELD, AT("/name"), "1 to 256 bytes long, not 0"},
    {J, TOP("\"name\":7"), FIELD, AT("/name"), "must be a string"},
    {J, TOP("\"metadata\":{\"\":\"x\"}"), FIELD, AT("/metadata/"), "1 to 64"},
    {J, TOP("\"metadata\":{\"a\":1}"), FIELD, AT("/metadata/a"), "must be a string"},
    {J, TOP("\"metadata\":\"a\""), FIELD, AT("/metadata"), "must be an object"},
    {J, TOP("\"defaults\":1"), FIELD, AT("/defaults"), "must be an object"},
    {J, REQ("\"custom_id\":\"\""), FIELD, AT("/requests/1/custom_id"), "1 to 256"},
    {J, REQ("\"custom_id\":1"), FIELD, AT("/requests/1/custom_id"), "must be a string"},
    {J, REQ("\"method\":\"get\""), FIELD, AT("/requests/1/method"), "one of GET, HEAD"},
    {J, REQ("\"method\":\"TRACE\""), FIELD, AT("/requests/1/method"), "one of GET, HEAD"},
    {J, REQ("\"timeout_ms\":0"), FIELD, AT("/requests/1/timeout_ms"), "1 to 3600000"},
    {J, REQ("\"timeout_ms\":3600001"), FIELD, AT("/requests/1/timeout_ms"), "1 to 3600000"},
    {J, REQ("\"timeout_ms\":\"1\""), FIELD, AT("/requests/1/timeout_ms"), "1 to 3600000"},
    {J, REQ("\"connect_timeout_ms\":600001"), FIELD, AT("/requests/1/connect_timeout_ms"), "to 60"},
    {J, REQ("\"max_attempts\":21"), FIELD, AT("/requests/1/max_attempts"), "1 to 20"},
    {J, REQ("\"max_body_bytes\":10485761"), FIELD, AT("/requests/1/max_body_bytes"),
     "0 to 10485760"},
    {J, REQ("\"max_body_bytes\":-1"), FIELD, AT("/requests/1/max_body_bytes"), "0 to 10485760"},
    {J, D("{\"requests\":[{}]}"), FIELD, AT("/requests/0/url"), "is missing"},
    {J, D("{\"requests\":[{\"url\":1}]}"), FIELD, AT("/requests/0/url"), "must be a string"},
    /* bodies */
    {J, REQ("\"body\":\"x\",\"method\":\"GET\""), FIELD, AT("/requests/1/body"),
     "the method GET takes"},
    {J, REQ("\"body\":\"\",\"method\":\"HEAD\""), FIELD, AT("/requests/1/body"),
     "the method HEAD takes"},
    {J, REQ("\"body_base64\":\"\",\"method\":\"OPTIONS\""), FIELD, AT("/requests/1/body_base64"),
     "the method OPTIONS takes"},
    {J, REQ("\"body\":\"x\""), FIELD, AT("/requests/1/body"), "needs a method"},
    {J, REQ("\"body_base64\":\"\""), FIELD, AT("/requests/1/body_base64"), "needs a method"},
    {J, TOP("\"defaults\":{\"body\":\"x\"}"), FIELD, AT("/defaults/body"), "needs a method"},
    {J, REQ("\"method\":\"PUT\",\"body\":\"x\",\"body_base64\":\"eA==\""), FIELD,
     AT("/requests/1/body_base64"), "exclude"},
    {J, REQ("\"method\":\"PUT\",\"body_base64\":\"eA\""), FIELD, AT("/requests/1/body_base64"),
     "is not base64"},
    {J, REQ("\"method\":\"PUT\",\"body_base64\":\"eA==\\n\""), FIELD, AT("/requests/1/body_base64"),
     "is not base64"},
    {J, REQ("\"method\":\"PUT\",\"body\":1"), FIELD, AT("/requests/1/body"), "must be a string"},
    /* headers */
    {J, REQ("\"headers\":[]"), FIELD, AT("/requests/1/headers"), "must be an object"},
    {J, REQ("\"headers\":{\"A\":1}"), FIELD, AT("/requests/1/headers/A"), "must be a string"},
    {J, REQ("\"headers\":{\"\":\"1\"}"), FIELD, AT("/requests/1/headers/"), "not a header name"},
    {J, REQ("\"headers\":{\"a b\":\"1\"}"), FIELD, AT("/requests/1/headers/a b"),
     "not a header name"},
    {J, REQ("\"headers\":{\"a:\":\"1\"}"), FIELD, AT("/requests/1/headers/a:"),
     "not a header name"},
    {J, REQ("\"headers\":{\"\\u00e9\":\"1\"}"), FIELD, "/headers/", "not a header name"},
    {J, REQ("\"headers\":{\"A\":\"x\\r\\nB: y\"}"), FIELD, AT("/requests/1/headers/A"), "control"},
    {J, REQ("\"headers\":{\"A\":\"\\u007f\"}"), FIELD, AT("/requests/1/headers/A"), "control"},
    {J, REQ("\"headers\":{\"A\":\"\\u0000\"}"), FIELD, AT("/requests/1"), "u0000"},
    {J, REQ("\"headers\":{\"hOST\":\"x\"}"), FIELD, AT("/requests/1/headers/hOST"), "can't be set"},
    {J, TOP("\"defaults\":{\"headers\":{\"Content-Length\":\"1\"}}"), FIELD,
     AT("/defaults/headers/Content-Length"), "can't be set"},
    /* URLs */
    {J, D("{\"urls\":[\"" A "\",\"\",\"nope\",\"http://\"]}"), "invalid-url", AT("/urls/1"),
     "3 URLs are not valid"},
    {J, D("{\"requests\":[{\"url\":\"" A "\"},{\"url\":\"ftp://x/\"}]}"), "invalid-url",
     AT("/requests/1/url"), "the scheme is not http or https"},
    {J, D("{\"ignore_invalid_urls\":false,\"urls\":[\"x\"]}"), "invalid-url", AT("/urls/0"),
     "1 URL"},
    {J, D("{\"urls\":[\"x\",3]}"), FIELD,
     AT("/urls/1") "\"detail\":\"must be a string\"},{\"pointer\":"
                   "\"/urls/0\",",
     "must be a string"},
    {J, D("{\"urls\":[\"x\",3],\"ignore_invalid_urls\":true}"), FIELD,
     AT("/urls/1") "\"detail\":\"must be a string\"}]}", ""},
    /* NDJSON */
    {N, D(""), "empty-batch", "422", ""},
    {N, D("\n\n \n"), "empty-batch", "422", ""},
    {N, D("\"" A "\"\n\nx\n"), MALFORMED, "\"errors\":[{\"line\":3,\"position\":21,", "a value"},
    {N, D("\"" A "\"\n " A "\n"), MALFORMED, "\"errors\":[{\"line\":2,\"position\":21,",
     "a URL stands in quotation marks; a list of bare URLs is text/plain"},
    {N, D("HTTPS://a"), MALFORMED, "{\"line\":1,\"position\":0,", "in quotation marks"},
    {N, D("\"" A "\" " A), MALFORMED, "{\"line\":1,\"position\":20,", "behind the end"},
    {N, D("\"" A "\" \"" A "\"\n"), MALFORMED, "{\"line\":1,\"position\":20,", "behind the end"},
    {N, D("{\"url\":\"" A "\"\n}\n"), MALFORMED, "{\"line\":1,\"position\":26,", "too early"},
    {N, D("\xef\xbb\xbf\n{\"url\":01}"), MALFORMED, "{\"line\":2,\"position\":12,", "leading zero"},
    {N, D("\n-"), MALFORMED, "{\"line\":2,\"position\":2,", "too early"},
    {N, D("[\"" A "\"]\n"), FIELD, "\"errors\":[{\"line\":1,\"detail\"", "a request object"},
    {N, D("\"" A "\"\n12\n"), FIELD, "\"errors\":[{\"line\":2,\"detail\"", "a request object"},
    {N, D("\n{\"url\":\"" A "\",\"timeout_ms\":0}\n"), FIELD,
     "\"errors\":[{\"line\":2,\"pointer\":\"/timeout_ms\",\"detail\"", "1 to 3600000"},
    {N, D("{\"url\":\"" A "\",\"body\":\"x\"}\n"), FIELD, "{\"line\":1,\"pointer\":\"/body\",",
     "needs"},
    {N, D("{\"urls\":[\"" A "\"]}\n"), FIELD, "{\"line\":1,\"pointer\":\"/urls\",",
     "mean \\\"url\\\""},
    {N, D("\"\\u0000\"\n"), FIELD, "\"errors\":[{\"line\":1,\"detail\"", "u0000"},
    {N, D("\"x\"\n{\"url\":\"y\"}\n"), "invalid-url", "\"errors\":[{\"line\":1,\"detail\"",
     "{\"line\":2,\"pointer\":\"/url\","},
    /* text */
    {T, D(""), "empty-batch", "422", ""},
    {T, D("# only\n\n"), "empty-batch", "422", ""},
    {T, D("# c\n" A "\n\nnope\n"), "invalid-url", "\"errors\":[{\"line\":4,\"detail\"", "1 URL"},
    {T, D(A "\nhttp://a.example/ b\n"), "invalid-url", "{\"line\":2,\"detail\"", ""},
    {T, D("{\"urls\":[\"" A "\"]}"), "invalid-url", "{\"line\":1,\"detail\"", ""},
    {T, D(A "\0x\n"), "invalid-url", "{\"line\":1,\"detail\"", ""},
    {T, D("\xef\xbb"), "invalid-url", "{\"line\":1,\"detail\"", ""},
};

static void test_refused(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(refused); i++) {
        struct submit_config cfg = config(refused[i].type);
        assert_refused(&cfg, refused[i].doc, refused[i].n, refused[i].problem, refused[i].where,
                       refused[i].detail);
    }
}

static void test_refused_headers(void **state)
{
    (void)state;
    static const char *const names[] = {
        "Host",
        "content-length",
        "TRANSFER-ENCODING",
        "Connection",
        "Keep-Alive",
        "upgrade",
        "TE",
        "Trailer",
        "Expect",
        "Proxy-Authorization",
        "proxy-connection",
        "Proxy-",
        "Metadata-Flavor",
        "X-aws-ec2-metadata-token",
        "x-AWS-ec2-metadata-token-ttl-seconds",
    };
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        char doc[200];
        struct submit_config cfg = config(N);
        int n = snprintf(doc, sizeof(doc), "{\"url\":\"" A "\",\"headers\":{\"%s\":\"x\"}}",
                         names[i]);
        assert_refused(&cfg, doc, (size_t)n, FIELD, "\"line\":1,\"pointer\":\"/headers/",
                       "this header can't be set");
    }
}

/* ---- bounds ---- */

/* `before`, n times `c`, `after` */
static char *around(const char *before, char c, size_t n, const char *after, size_t *len)
{
    size_t a = strlen(before), b = strlen(after);
    char *p = xmalloc(a + n + b + 1);
    memcpy(p, before, a);
    memset(p + a, c, n);
    memcpy(p + a + n, after, b + 1);
    *len = a + n + b;
    return p;
}

/* Exactly `most` of c are accepted; one more is refused. */
static void assert_bound(enum submit_type type, const char *before, char c, size_t most,
                         const char *after, const char *problem, const char *where,
                         const char *detail)
{
    size_t n;
    struct submit_config cfg = config(type);
    char *doc = around(before, c, most, after, &n), *got = run(&cfg, doc, n);
    if (strstr(got, "\nok ") == NULL)
        fail_msg("%.60s: refused at its bound: %.500s", before, got);
    free(got);
    free(doc);
    doc = around(before, c, most + 1, after, &n);
    assert_refused(&cfg, doc, n, problem, where, detail);
    free(doc);
}

static void test_bounds(void **state)
{
    (void)state;
    assert_bound(J, "{\"urls\":[\"" A "\"],\"name\":\"", 'x', 256, "\"}", FIELD, AT("/name"),
                 "257");
    assert_bound(J, "{\"urls\":[\"" A "\"],\"metadata\":{\"k\":\"", 'x', 1024, "\"}}", FIELD,
                 AT("/metadata/k"), "1025");
    assert_bound(J, "{\"urls\":[\"" A "\"],\"metadata\":{\"", 'k', 64, "\":\"\"}}", FIELD,
                 "/metadata/kkk", "65");
    assert_bound(N, "{\"url\":\"" A "\",\"custom_id\":\"", 'x', 256, "\"}", FIELD, "/custom_id",
                 "257");
    assert_bound(J, "{\"urls\":[\"" A, 'x', 8192 - strlen(A), "\"]}", "invalid-url", AT("/urls/0"),
                 "longer than 8192");
    /* "A: " and the line end count */
    assert_bound(N, "{\"url\":\"" A "\",\"headers\":{\"A\":\"", 'x', SUBMIT_HEADERS_MAX - 4, "\"}}",
                 FIELD, "\"pointer\":\"/headers/A\"", "larger than 32768 bytes");
    assert_bound(T, "#", 'x', SUBMIT_TEXT_LINE_MAX - 1, "\n" A "\n", "too-large",
                 "\"errors\":[{\"line\":1,", "longer than 64 KiB");
    assert_bound(T, A "\n#", 'x', SUBMIT_TEXT_LINE_MAX - 1, "", "too-large",
                 "\"errors\":[{\"line\":2,", "longer than 64 KiB");
    assert_bound(J, "{\"urls\":[\"" A "\"]", ' ', SUBMIT_OUTSIDE_MAX - 9, "}", "too-large", AT(""),
                 "256 KiB");
    assert_bound(N, "\"" A "\"", ' ', SUBMIT_ELEMENT_MAX - strlen(A) - 2, "\n", "too-large",
                 "\"errors\":[{\"line\":1,", "8 MiB");
    static const char request[] = "{\"url\":\"" A "\",\"method\":\"PUT\",\"body\":\"";
    assert_bound(J, "{\"requests\":[{\"url\":\"" A "\",\"method\":\"PUT\",\"body\":\"", 'x',
                 SUBMIT_ELEMENT_MAX - strlen(request) - 2, "\"}]}", "too-large", AT("/requests/0"),
                 "8 MiB");

    /* space between elements costs nothing, and is not bounded */
    size_t n;
    struct submit_config cfg = config(J);
    char *doc = around("{\"urls\":[", '\n', 9 << 20, "\"" A "\"]}", &n), *got = run(&cfg, doc, n);
    assert_string_equal(got, ONE);
    free(got);
    free(doc);
    /* a misspelt `urls` is a wrong field, not a document that is too large */
    doc = around("{\"urlz\":[\"", 'x', SUBMIT_OUTSIDE_MAX, "\"]}", &n);
    assert_refused(&cfg, doc, n, FIELD, AT("/urlz"), "did you mean \\\"urls\\\"?");
    free(doc);
    /* a bad URL that is forgiven is kept within bounds, cut between characters */
    doc = around("{\"ignore_invalid_urls\":true,\"urls\":[\"" A "\",\"x", 'y', 8190,
                 "\xc3\xa9\xc3\xa9\"]}", &n);
    got = run(&cfg, doc, n);
    const char *bad = strchr(got, '\n') + 1;
    assert_int_equal(strcspn(bad + 6, "\""), 8191);
    assert_non_null(strstr(got, "ok 2 bad 1"));
    free(got);
    free(doc);
}

/* n members `"kI":"v"` in the object between before and after */
static char *members(const char *before, size_t n, const char *after)
{
    struct buf b;
    buf_init(&b, 1 << 20);
    log_ok(buf_adds(&b, before));
    for (size_t i = 0; i < n; i++)
        log_ok(buf_addf(&b, "%s\"k%zu\":\"v\"", i == 0 ? "" : ",", i));
    log_ok(buf_adds(&b, after));
    log_ok(buf_addc(&b, 0));
    return b.data;
}

static void test_counts(void **state)
{
    (void)state;
    static const struct {
        const char *before, *after, *where, *detail;
        size_t most;
    } rows[] = {
        {"{\"urls\":[\"" A "\"],\"metadata\":{", "}}", AT("/metadata"), "more than 50", 50},
        {"{\"requests\":[{\"url\":\"" A "\",\"headers\":{", "}}]}", AT("/requests/0/headers"),
         "more than 100", 100},
    };
    struct submit_config cfg = config(J);
    for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
        char *doc = members(rows[i].before, rows[i].most, rows[i].after);
        char *got = run(&cfg, doc, strlen(doc));
        assert_non_null(strstr(got, "ok 1 bad 0"));
        free(got);
        free(doc);
        doc = members(rows[i].before, rows[i].most + 1, rows[i].after);
        assert_refused(&cfg, doc, strlen(doc), FIELD, rows[i].where, rows[i].detail);
        free(doc);
        doc = members(rows[i].before, 1100, rows[i].after); /* never reaches cJSON */
        assert_refused(&cfg, doc, strlen(doc), FIELD, "\"errors\":[", "more than 1000 values");
        free(doc);
    }
}

/* The first 100 are listed, all are counted. */
static void test_many_errors(void **state)
{
    (void)state;
    struct buf b;
    buf_init(&b, 1 << 20);
    for (int i = 0; i < 250; i++)
        log_ok(buf_adds(&b, i % 2 == 0 ? "nope\n" : A "\n"));
    struct submit_config cfg = config(T);
    char *got = run(&cfg, b.data, b.len);
    assert_non_null(strstr(got, "125 URLs are not valid"));
    assert_non_null(strstr(got, "{\"line\":199,"));
    assert_null(strstr(got, "{\"line\":201,"));
    assert_int_equal(got[0], '{'); /* nothing reached the sink: a bad URL came first */
    free(got);

    buf_reset(&b);
    for (int i = 0; i < 250; i++)
        log_ok(buf_adds(&b, "{\"url\":\"" A "\",\"body\":\"x\",\"x\":1}\n"));
    cfg = config(N);
    got = run(&cfg, b.data, b.len);
    assert_non_null(strstr(got, "500 fields are wrong; the first: unknown field"));
    assert_non_null(strstr(got, "{\"line\":100,"));
    assert_null(strstr(got, "{\"line\":101,"));
    free(got);
    buf_fini(&b);
}

/* ---- the sink ---- */

static void test_sink_errors(void **state)
{
    (void)state;
    static const struct {
        int rc;
        const char *problem;
    } rows[] = {
        {E_LIMIT, "/problems/too-large"}, {E_FULL, "/problems/disk-full"},
        {E_BUSY, "/problems/busy"},       {E_STOPPING, "/problems/busy"},
        {E_NOMEM, "/problems/internal"},  {E_IO, "/problems/storage"},
    };
    for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
        struct submit_config cfg = config(T);
        struct submit_log l = {.fail_at = 2, .fail_rc = rows[i].rc};
        submit_log_run(&l, &cfg, D(A "\n" A "\n" A "\nnope"), NULL, NULL);
        assert_int_equal(l.n, 2); /* no more after the failure */
        assert_non_null(strstr(l.out.data, rows[i].problem));
        buf_fini(&l.out);
    }
}

static void test_pause(void **state)
{
    (void)state;
    static const struct {
        enum submit_type type;
        const char *doc;
        size_t n, first, second;
    } rows[] = {
        {T, D(A "\n" A "\n"), strlen(A "\n"), strlen(A "\n")},
        {N, D("\"" A "\"\n\"" A "\"\n"), strlen(A) + 3, strlen(A) + 3},
        {J, D("{\"urls\":[\"" A "\",\"" A "\"]}"), strlen("{\"urls\":[\"" A "\""),
         strlen(",\"" A "\"")},
    };
    for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
        struct submit_log l = {.pause_every = 1};
        struct submit_config cfg = config(rows[i].type);
        cfg.sink.add = log_add;
        cfg.sink.arg = &l;
        buf_init(&l.out, 1 << 20);
        struct submit *s = submit_new(&cfg);
        size_t used = 0, at;
        assert_int_equal(submit_feed(s, rows[i].doc, rows[i].n, &used), SUBMIT_PAUSE);
        assert_int_equal(used, rows[i].first);
        assert_int_equal(submit_count(s), 1);
        at = used;
        assert_int_equal(submit_feed(s, rows[i].doc + at, rows[i].n - at, &used), SUBMIT_PAUSE);
        assert_int_equal(used, rows[i].second);
        at += used;
        assert_int_equal(submit_feed(s, rows[i].doc + at, rows[i].n - at, &used), SUBMIT_OK);
        assert_int_equal(used, rows[i].n - at);
        assert_int_equal(submit_finish(s), 0);
        assert_int_equal(submit_count(s), 2);
        submit_free(s);
        buf_fini(&l.out);
    }
}

/* What is certain is told before the end. */
static void test_early_problem(void **state)
{
    (void)state;
    struct submit_log l = {0};
    struct submit_config cfg = config(J);
    cfg.sink.add = log_add;
    cfg.sink.arg = &l;
    buf_init(&l.out, 1 << 20);
    struct submit *s = submit_new(&cfg);
    size_t used;
    assert_int_equal(submit_feed(s, D("{\"urls\":[\"nope\","), &used), SUBMIT_OK);
    assert_null(submit_problem(s)); /* may yet be forgiven */
    assert_int_equal(submit_feed(s, D("3,"), &used), SUBMIT_OK);
    assert_non_null(submit_problem(s));
    assert_int_equal(submit_problem(s)->type, PROBLEM_INVALID_FIELD);
    assert_int_equal(submit_problem(s)->n_errors, 1);
    assert_int_equal(submit_feed(s, D("4,"), &used), SUBMIT_OK);
    assert_int_equal(submit_problem(s)->n_errors, 2);
    assert_int_equal(submit_feed(s, D("]"), &used), SUBMIT_FAILED);
    assert_int_equal(submit_problem(s)->status, 400);
    assert_int_equal(submit_feed(s, D("whatever"), &used), SUBMIT_FAILED);
    assert_int_equal(used, 8);
    assert_int_equal(submit_finish(s), E_INVAL);
    assert_int_equal(submit_problem(s)->type, PROBLEM_MALFORMED_JSON);
    assert_int_equal(submit_count(s), 1);
    submit_free(s);
    buf_fini(&l.out);
    submit_free(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_accepted),        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_refused_headers), cmocka_unit_test(test_bounds),
        cmocka_unit_test(test_counts),          cmocka_unit_test(test_many_errors),
        cmocka_unit_test(test_sink_errors),     cmocka_unit_test(test_pause),
        cmocka_unit_test(test_early_problem),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
