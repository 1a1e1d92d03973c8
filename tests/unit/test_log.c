/* server/log.c and server/redact.c. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "server/metrics.h"
#include "server/redact.h"

static char out[1 << 20];
static int saved;

/* From here on the log goes to a file … */
static void capture(void)
{
    saved = dup(STDERR_FILENO);
    int fd = open(".", O_TMPFILE | O_RDWR, 0600);
    assert_true(fd >= 0 && dup2(fd, STDERR_FILENO) >= 0);
    close(fd);
}

/* … which is `out` then. */
static size_t captured(void)
{
    ssize_t n = pread(STDERR_FILENO, out, sizeof(out) - 1, 0);
    assert_true(n >= 0 && dup2(saved, STDERR_FILENO) >= 0);
    close(saved);
    out[n] = '\0';
    return (size_t)n;
}

/* The one line that was written, behind its time. */
static const char *line(void)
{
    size_t n = captured();
    assert_true(n > 25 && strchr(out, '\n') == out + n - 1);
    out[n - 1] = '\0';
    assert_true(out[4] == '-' && out[10] == 'T' && out[19] == '.' && out[23] == 'Z');
    return out + 25;
}

static void test_text(void **state)
{
    (void)state;
    capture();
    log_event(LOG_INFO, "batch_ended", LOG_S("batch", "b_1"), LOG_U("total", 7), LOG_I("delta", -7),
              LOG_MS("took_ms", 1234), LOG_S("none", NULL), LOG_SPAN("part", "abcdef", 3),
              LOG_S("empty", ""), LOG_S("msg", "two words"));
    assert_string_equal(line(),
                        "info batch_ended batch=b_1 total=7 delta=-7 took_ms=1.234 part=abc "
                        "empty=\"\" msg=\"two words\"");
    capture();
    log_line(LOG_ERROR, "alone", "%d%%", 5);
    assert_string_equal(line(), "error alone msg=5%");
    capture();
    log_event(LOG_WARN, "bare");
    assert_string_equal(line(), "warn bare");
}

static void test_text_cannot_be_forged(void **state)
{
    (void)state;
    capture();
    log_event(LOG_INFO, "e", LOG_S("a", "x y=z\n2026 info fake \"q\\\x1b[1m\x7f\r\xff \xc2\x9b"));
    assert_string_equal(line(),
                        "info e a=\"x y=z\\n2026 info fake \\\"q\\\\\\x1b[1m\\x7f\\x0d\\xff "
                        "\\x9b\"");
    capture();
    /* U+202E and U+2028, a letter, and half of one */
    static const unsigned char odd[] = {0xe2, 0x80, 0xae, 0xe2, 0x80, 0xa8, ' ', 0xc3, 0xa4, 0xc3};
    log_event(LOG_INFO, "e", LOG_SPAN("a", (const char *)odd, sizeof(odd)));
    assert_string_equal(line(), "info e a=\"\\u202e\\u2028 \xc3\xa4\\xc3\"");
    capture();
    log_event(LOG_INFO, "e", LOG_SPAN("a", "a\0b", 3), LOG_S("b", "c=d"));
    assert_string_equal(line(), "info e a=\"a\\x00b\" b=\"c=d\"");
}

static void test_json(void **state)
{
    (void)state;
    log_set_format(LOG_JSON);
    capture();
    log_event(LOG_INFO, "e", LOG_S("a", "x\"\\\n\x1b\xff\xc2\x9b\xe2\x80\xa8\xc3\xa4"),
              LOG_I("n", -1), LOG_MS("took_ms", 5), LOG_U("u", UINT64_MAX));
    size_t n = captured();
    assert_string_equal(out + 35, "\"level\":\"info\",\"event\":\"e\",\"a\":\"x\\\"\\\\\\n\\u001b"
                                  "\\ufffd\\u009b\\u2028\xc3\xa4\",\"n\":-1,\"took_ms\":0.005,"
                                  "\"u\":18446744073709551615}\n");
    assert_true(n > 0 && memcmp(out, "{\"time\":\"", 9) == 0);

    /* Too much for a line: what does not fit is left out whole. */
    static char big[1025];
    memset(big, '\n', sizeof(big) - 1);
    capture();
    log_event(LOG_INFO, "e", LOG_S("a", big), LOG_S("b", big), LOG_S("c", big), LOG_S("d", "end"));
    n = captured();
    assert_true(n <= 4096 && n > 2000 && out[n - 2] == '}');
    assert_non_null(strstr(out, "\"a\":\"\\n"));
    assert_null(strstr(out, "\"c\":"));
    assert_non_null(strstr(out, "\"d\":\"end\"}"));
    log_set_format(LOG_TEXT);
}

static void test_request(void **state)
{
    (void)state;
    log_request("r-1");
    capture();
    log_event(LOG_INFO, "e", LOG_I("n", 1));
    assert_string_equal(line(), "info e request=r-1 n=1");
    log_request(NULL);
    capture();
    log_event(LOG_INFO, "e", LOG_I("n", 1));
    assert_string_equal(line(), "info e n=1");
}

static void test_levels(void **state)
{
    (void)state;
    capture();
    assert_false(log_enabled(LOG_DEBUG));
    log_event(LOG_DEBUG, "no");
    log_line(LOG_DEBUG, "no", "x");
    log_set_level(LOG_ERROR);
    log_event(LOG_WARN, "no");
    assert_int_equal(captured(), 0);
    log_set_level(LOG_INFO);
    errno = EPERM;
    capture();
    log_event(LOG_INFO, "e");
    assert_int_equal(errno, EPERM);
    captured();
}

static unsigned count(const char *what)
{
    unsigned n = 0;
    for (const char *p = out; (p = strstr(p, what)) != NULL; p++)
        n++;
    return n;
}

static void test_a_flood_is_cut_and_counted(void **state)
{
    (void)state;
    int64_t before = metric_value(METRIC_LOG_SUPPRESSED);
    capture();
    for (int i = 0; i < 1000; i++)
        log_line(LOG_WARN, "flood", "%d", i);
    log_line(LOG_WARN, "other", "of another kind");
    log_finish();
    captured();
    assert_int_equal(count(" warn flood "), 20);
    assert_int_equal(count(" warn other "), 1);
    assert_int_equal(count(" warn log_left_out of=flood lines=980\n"), 1);
    assert_int_equal(metric_value(METRIC_LOG_SUPPRESSED) - before, 980);
    log_set_level(LOG_DEBUG); /* who asks for all gets all */
    capture();
    for (int i = 0; i < 1000; i++)
        log_line(LOG_DEBUG, "flood", "%d", i);
    captured();
    assert_int_equal(count(" debug flood "), 1000);
    log_set_level(LOG_INFO);
}

/* Under systemd: no time, and the priority of sd-daemon(3). */
static void test_journal(void **state)
{
    char text[64];
    struct stat st;
    (void)state;
    capture();
    assert_int_equal(fstat(STDERR_FILENO, &st), 0);
    snprintf(text, sizeof(text), "%ju:%ju", (uintmax_t)st.st_dev, (uintmax_t)st.st_ino);
    setenv("JOURNAL_STREAM", text, 1);
    log_find_journal();
    log_event(LOG_INFO, "e", LOG_I("n", 1));
    log_event(LOG_WARN, "e", LOG_I("n", 2));
    captured();
    assert_string_equal(out, "<6>info e n=1\n<4>warn e n=2\n");
    capture();
    setenv("JOURNAL_STREAM", "1:1", 1); /* another file */
    log_find_journal();
    log_event(LOG_INFO, "e", LOG_I("n", 1));
    assert_string_equal(line(), "info e n=1");
    unsetenv("JOURNAL_STREAM");
    log_find_journal();
}

static void test_redaction(void **state)
{
    static const struct {
        const char *in, *out;
    } v[] = {
        {"", ""},
        {"plain text, a.b/c", "plain text, a.b/c"},
        {"http://h.test/p", "http://h.test/p"},
        {"http://h.test:80/p@q", "http://h.test:80/p@q"},
        {"http://user:pw@h.test/p", "http://***@h.test/p"},
        {"http://user@h.test", "http://***@h.test"},
        {"http://us@er:p@w@h.test:1/p", "http://***@h.test:1/p"},
        {"http://user:p/w@h.test/p", "http://***@h.test/p"},
        {"http://user:p\\w@h.test/p", "http://***@h.test/p"},
        {"http://[::1]:80/p@q", "http://[::1]:80/p@q"},
        {"a http://u:p@x/ b https://v:q@y/ c", "a http://***@x/ b https://***@y/ c"},
        {"http://h/p?a=1&b=2#f", "http://h/p?a=***&b=***#f"},
        {"/p?secretvalue", "/p?***"},
        {"/p?a=&b", "/p?a=***&***"},
        {"/p?a=1;b=2 rest?", "/p?a=***;b=*** rest?"},
        {"did you mean \"x\"?", "did you mean \"x\"?"},
        {"http://h/?u=http://a:b@c/?d=e", "http://h/?u=***"},
        {"Authorization: Bearer abc def\nnext: 1", "Authorization: ***\nnext: 1"},
        {"AUTHORIZATION:abc", "AUTHORIZATION:***"},
        {"proxy-authorization = abc", "proxy-authorization = ***"},
        {"Cookie: a=b; c=d", "Cookie: ***"},
        {"set-cookie: a=b", "set-cookie: ***"},
        {"{\"secret\":\"a\\\"bc\",\"url\":\"x\"}", "{\"secret\":\"***\",\"url\":\"x\"}"},
        {"X-API-Key: 1", "X-API-Key: ***"},
        {"a Bearer abc", "a Bearer ***"},
        {"a cookie is missing", "a cookie is missing"},
        {"mysecret: 1", "mysecret: 1"},
    };
    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(v); i++) {
        size_t n = redact_text(out, sizeof(out), v[i].in, strlen(v[i].in), false);
        out[n] = '\0';
        assert_string_equal(out, v[i].out);
        for (size_t cap = 0; cap <= n; cap++) { /* the bound is kept */
            char *p = malloc(cap + 1);
            assert_true(redact_text(p, cap, v[i].in, strlen(v[i].in), false) <= cap);
            free(p);
        }
    }
    /* The end of a URL that was cut off may be userinfo. */
    size_t n = redact_text(out, sizeof(out), "x http://user:pw", 16, true);
    out[n] = '\0';
    assert_string_equal(out, "x http://***");
}

static void test_fields_are_redacted(void **state)
{
    char longer[3000];
    (void)state;
    memset(longer, 'x', sizeof(longer) - 1);
    longer[sizeof(longer) - 1] = '\0';
    memcpy(longer + 1024 - 16, "http://user:pass@h/", 19); /* cut in the password */
    capture();
    log_event(LOG_INFO, "e", LOG_S("url", "http://u:pass@h/?k=pass"), LOG_S("long", longer));
    log_line(LOG_INFO, "e", "to http://u:pass@h/: %s", "Cookie: pass");
    captured();
    assert_null(strstr(out, "pass"));
    assert_non_null(strstr(out, "url=\"http://***@h/?k=***\""));
    assert_non_null(strstr(out, "msg=\"to http://***@h/: Cookie: ***\""));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_text),
        cmocka_unit_test(test_text_cannot_be_forged),
        cmocka_unit_test(test_json),
        cmocka_unit_test(test_request),
        cmocka_unit_test(test_levels),
        cmocka_unit_test(test_a_flood_is_cut_and_counted),
        cmocka_unit_test(test_journal),
        cmocka_unit_test(test_redaction),
        cmocka_unit_test(test_fields_are_redacted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
