/* Settings that come as query parameters. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/url.h"
#include "tests/unit/submit_fixture.h"

struct query {
    struct submit_param v[8];
    size_t n;
};

static void add(struct query *q, const char *name, const char *value)
{
    q->v[q->n++] = (struct submit_param){{name, strlen(name)}, {value, strlen(value)}};
}

static void test_query(void **state)
{
    (void)state;
    struct submit_config cfg = config(T);
    struct query q = {.n = 0};
    add(&q, "name", "n");
    add(&q, "limits.max_parallel", "7");
    add(&q, "max_redirects", "0");
    add(&q, "metadata.a.b", "x\"");
    add(&q, "defaults.headers.X-A", "v");
    add(&q, "defaults.timeout_ms", "5");
    add(&q, "defaults.method", "HEAD");
    add(&q, "ignore_invalid_urls", "true");
    cfg.params = q.v;
    cfg.n_params = q.n;
    char *got = run(&cfg, D(A "\nnope"));
    struct url u;
    const char *why;
    char expected[1000];
    assert_int_equal(url_parse(&u, D("nope"), &why), E_INVAL);
    snprintf(
        expected, sizeof(expected),
        PLAIN("0", "a.example", A) "1 - [\"nope\",\"%s\",null,null,null,null,0,0,0,null]\n"
                                   "ok 2 bad 1 limits 7 0 0 name n meta {\"a.b\":\"x\\\"\"} "
                                   "[null,null,null,\"HEAD\",\"X-A: v\\n\",null,5,0,0,null]" USUAL,
        why);
    assert_string_equal(got, expected);
    free(got);
}

static void test_query_policy(void **state)
{
    (void)state;
    static const struct {
        const char *name, *value, *expected;
    } rows[] = {
        {"retry.on_status", "429,503", SET("2500 7 20 retry 3 500 30000 0 1 429 503")},
        {"retry.on_status", "599", SET("2500 7 20 retry 3 500 30000 0 1 599")},
        {"retry.on_status", "", SET("2500 7 20 retry 3 500 30000 0 1")},
        {"retry.max_attempts", "2", SET("2500 7 20 retry 2 500 30000 0 1" STATUSES)},
        {"retry.min_backoff_ms", "5", SET("2500 7 20 retry 3 5 30000 0 1" STATUSES)},
        {"retry.max_backoff_ms", "5", SET("2500 7 20 retry 3 5 5 0 1" STATUSES)},
    };
    for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
        struct submit_config cfg = config(T);
        struct query q = {.n = 0};
        add(&q, "limits.rate_per_host", "2.5");
        add(&q, "priority", "7");
        add(&q, "http_version", "2");
        add(&q, "retry.max_retry_after_ms", "0");
        add(&q, "retry.non_idempotent", "true");
        add(&q, rows[i].name, rows[i].value);
        cfg.params = q.v;
        cfg.n_params = q.n;
        char *got = run(&cfg, D(A));
        assert_string_equal(got, rows[i].expected);
        free(got);
    }
}

static void test_query_refused(void **state)
{
    (void)state;
    static const struct {
        enum submit_type type;
        const char *name, *value, *detail;
    } rows[] = {
        {T, "limits.max_perhost", "1", "did you mean \\\"limits.max_per_host\\\"?"},
        {T, "max_per_host", "1", "did you mean \\\"limits.max_per_host\\\"?"},
        {T, "max_attempts", "1",
         "did you mean \\\"retry.max_attempts\\\" or \\\"defaults.max_attempts\\\"?"},
        {T, "limits.rate_per_host", "0", "0.001 to 1000000"},
        {T, "limits.rate_per_host", "1e3", "0.001 to 1000000"},
        {T, "limits.rate_per_host", "2.", "0.001 to 1000000"},
        {T, "limits.rate_per_host", ".5", "0.001 to 1000000"},
        {T, "limits.rate_per_host", "0x1", "0.001 to 1000000"},
        {T, "limits.rate_per_host", "inf", "0.001 to 1000000"},
        {T, "limits.rate_per_host", "", "0.001 to 1000000"},
        {T, "expires_after_s", "1h", "1 to 86400"},
        {T, "priority", "10", "0 to 9"},
        {T, "priority", "high", "0 to 9"},
        {T, "http_version", "3", "must be the string"},
        {T, "retry", "3", "unknown parameter \\\"retry\\\""},
        {T, "retry.max_attempts", "0", "1 to 20"},
        {T, "retry.max_backoff_ms", "86400001", "1 to 86400000"},
        {T, "retry.on_status", "429,", "400 to 599"},
        {T, "retry.on_status", "429 ,503", "400 to 599"},
        {T, "retry.on_status", "x,y", "400 to 599"},
        {T, "retry.on_status", "429,399", "400 to 599"},
        {T, "retry.on_status", "429,429", "429 is given more than once"},
        {T, "retry.non_idempotent", "1", "true or false"},
        {T, "", "", "unknown parameter \\\"\\\"\""},
        {N, "limits.max_parallel", "0", "1 to 1000000"},
        {N, "limits.max_parallel", "1e3", "1 to 1000000"},
        {N, "limits.max_parallel", " 1", "1 to 1000000"},
        {N, "limits.max_parallel", "", "1 to 1000000"},
        {N, "limits.max_parallel", "99999999999999999999", "1 to 1000000"},
        {T, "max_redirects", "51", "0 to 50"},
        {T, "max_redirects", "-1", "0 to 50"},
        {T, "ignore_invalid_urls", "yes", "true or false"},
        {T, "ignore_invalid_urls", "", "true or false"},
        {T, "name", "", "1 to 256"},
        {T, "metadata.", "x", "1 to 64"},
        {T, "defaults.method", "post", "one of GET"},
        {T, "defaults.body", "x", "unknown parameter"},
        {T, "defaults.max_body_bytes", "10485761", "0 to 10485760"},
        {T, "defaults.headers.", "x", "not a header name"},
        {T, "defaults.headers.Host", "x", "can't be set"},
        {T, "defaults.headers.A", "x\n", "control character"},
        {J, "name", "x", "takes no query parameters"},
    };
    for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
        char where[100];
        struct submit_config cfg = config(rows[i].type);
        struct query q = {.n = 0};
        add(&q, rows[i].name, rows[i].value);
        cfg.params = q.v;
        cfg.n_params = 1;
        snprintf(where, sizeof(where), "\"errors\":[{\"parameter\":\"%s\",", rows[i].name);
        const char *doc = rows[i].type == J   ? "{\"urls\":[\"" A "\"]}"
                          : rows[i].type == N ? "\"" A "\""
                                              : A;
        assert_refused(&cfg, doc, strlen(doc), FIELD, where, rows[i].detail);
        struct submit *s = submit_new(&cfg); /* and it is known at once */
        assert_non_null(submit_problem(s));
        assert_int_equal(submit_problem(s)->n_errors, 1);
        submit_free(s);
    }
    struct submit_config cfg = config(T);
    struct query q = {.n = 0};
    add(&q, "name", "a");
    add(&q, "name", "b");
    cfg.params = q.v;
    cfg.n_params = q.n;
    assert_refused(&cfg, D(A), FIELD, "{\"parameter\":\"name\",", "more than once");
    struct submit_param many[600];
    for (size_t i = 0; i < ARRAY_LEN(many); i++)
        many[i] = q.v[0];
    cfg.params = many;
    cfg.n_params = ARRAY_LEN(many);
    assert_refused(&cfg, D(A), FIELD, "", "more than 500");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_query),
        cmocka_unit_test(test_query_policy),
        cmocka_unit_test(test_query_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
