/* Tests of url.c: tables of URLs with what comes out, and libcurl's parser as the second opinion on
 * every URL that is accepted. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <curl/curl.h>

#include "server/url.h"

struct row {
    const char *in;
    const char *host; /* NULL: refused */
    unsigned port;
    bool ip;
    const char *text; /* NULL: as given; when refused: a part of the reason, or NULL */
};

#define L63 "aaaaaaaaaabbbbbbbbbbccccccccccddddddddddeeeeeeeeeeffffffffffggg"

static const struct row rows[] = {
    /* ordinary */
    {"http://example.com", "example.com", 80, false, NULL},
    {"http://example.com/", "example.com", 80, false, NULL},
    {"https://example.com/a/b?c=d&e=f", "example.com", 443, false, NULL},
    {"http://example.com:8080/x", "example.com", 8080, false, NULL},
    {"https://example.com:443/x", "example.com", 443, false, NULL},
    {"http://example.com?x=1", "example.com", 80, false, NULL},
    {"http://example.com:81?x=1", "example.com", 81, false, NULL},
    {"http://a-b_c.example/", "a-b_c.example", 80, false, NULL},
    {"http://_dmarc.example/", "_dmarc.example", 80, false, NULL},
    {"http://localhost/", "localhost", 80, false, NULL},
    {"http://h:1/", "h", 1, false, NULL},
    {"http://h:65535/", "h", 65535, false, NULL},
    {"http://1and1.example/", "1and1.example", 80, false, NULL},
    {"http://1.2.3.4.example/", "1.2.3.4.example", 80, false, NULL},
    {"http://0x7f.example/", "0x7f.example", 80, false, NULL},
    {"http://face.cafe/", "face.cafe", 80, false, NULL},
    {"http://example.com/%7Euser/%zz%", "example.com", 80, false, NULL},
    {"http://example.com/a[]=1?b[0]=c", "example.com", 80, false, NULL},
    {"http://example.com/@user:pass", "example.com", 80, false, NULL},
    {"http://example.com/?q=a@b", "example.com", 80, false, NULL},
    {"http://example.com?a@b.example/", "example.com", 80, false, NULL},
    {"http://example.com/a/../b/./c", "example.com", 80, false, NULL},
    {"http://example.com/a//b", "example.com", 80, false, NULL},
    {"http://example.com//", "example.com", 80, false, NULL},
    {"http://example.com/?", "example.com", 80, false, NULL},
    {"http://example.com/http://other.example/", "example.com", 80, false, NULL},
    {"http://example.com/;a=b,c!$&'()*+", "example.com", 80, false, NULL},
    {"http://xn--mnchen-3ya.example/", "xn--mnchen-3ya.example", 80, false, NULL},
    {"http://" L63 ".example/", L63 ".example", 80, false, NULL},
    /* IPv4 as it is */
    {"http://127.0.0.1/", "127.0.0.1", 80, true, NULL},
    {"http://8.8.8.8:53/x", "8.8.8.8", 53, true, NULL},
    {"http://255.255.255.255/", "255.255.255.255", 80, true, NULL},
    {"http://0.0.0.0/", "0.0.0.0", 80, true, NULL},
    /* fragments */
    {"http://example.com/a#b", "example.com", 80, false, "http://example.com/a"},
    {"http://example.com#b", "example.com", 80, false, "http://example.com"},
    {"http://example.com/?a=b#c#d?e", "example.com", 80, false, "http://example.com/?a=b"},
    {"http://example.com#@other.example/", "example.com", 80, false, "http://example.com"},
    {"http://example.com/#\xc3\xa4", "example.com", 80, false, "http://example.com/"},
    /* normal form: scheme, case, dots, ports */
    {"HTTP://Example.COM/Path", "example.com", 80, false, "http://example.com/Path"},
    {"hTTpS://EXAMPLE.com", "example.com", 443, false, "https://example.com/"},
    {"http://example.com./x", "example.com", 80, false, "http://example.com/x"},
    {"http://example.com.:81/x", "example.com", 81, false, "http://example.com:81/x"},
    {"http://example.com:/x", "example.com", 80, false, "http://example.com/x"},
    {"https://example.com:/x", "example.com", 443, false, "https://example.com/x"},
    {"http://example.com:0080/x", "example.com", 80, false, "http://example.com/x"},
    {"http://example.com:00000008080/x", "example.com", 8080, false, "http://example.com:8080/x"},
    {"HTTPS://example.com:80/x", "example.com", 80, false, "https://example.com:80/x"},
    /* percent-encoding of what is not legal */
    {"http://example.com/\xc3\xa4?\xe2\x82\xac=1", "example.com", 80, false,
     "http://example.com/%C3%A4?%E2%82%AC=1"},
    {"http://example.com/\"<>^`{|}", "example.com", 80, false,
     "http://example.com/%22%3C%3E%5E%60%7B%7C%7D"},
    {"http://EXAMPLE.com?\xc3\xa4", "example.com", 80, false, "http://example.com/?%C3%A4"},
    /* percent-encoded hosts */
    {"http://%65xample.com/", "example.com", 80, false, "http://example.com/"},
    {"http://ex%41mple.com/", "example.com", 80, false, "http://example.com/"},
    {"http://example%2ecom/", "example.com", 80, false, "http://example.com/"},
    {"http://%31%32%37.0.0.1/", "127.0.0.1", 80, true, "http://127.0.0.1/"},
    {"http://m%C3%BCnchen.example/", "xn--mnchen-3ya.example", 80, false,
     "http://xn--mnchen-3ya.example/"},
    /* every spelling of an IPv4 address */
    {"http://2130706433/", "127.0.0.1", 80, true, "http://127.0.0.1/"},
    {"http://0177.1/", "127.0.0.1", 80, true, "http://127.0.0.1/"},
    {"http://0x7f000001/", "127.0.0.1", 80, true, "http://127.0.0.1/"},
    {"http://0X7F000001/", "127.0.0.1", 80, true, "http://127.0.0.1/"},
    {"http://127.1/", "127.0.0.1", 80, true, "http://127.0.0.1/"},
    {"http://127.0.1/", "127.0.0.1", 80, true, "http://127.0.0.1/"},
    {"http://0x7f.1/", "127.0.0.1", 80, true, "http://127.0.0.1/"},
    {"http://0x7f.0x0.0x0.0x1/", "127.0.0.1", 80, true, "http://127.0.0.1/"},
    {"http://00000177.0.0.1/", "127.0.0.1", 80, true, "http://127.0.0.1/"},
    {"http://017700000001/", "127.0.0.1", 80, true, "http://127.0.0.1/"},
    {"http://127.0.0.01/", "127.0.0.1", 80, true, "http://127.0.0.1/"},
    {"http://127.0.0.1./", "127.0.0.1", 80, true, "http://127.0.0.1/"},
    {"http://127.65535/", "127.0.255.255", 80, true, "http://127.0.255.255/"},
    {"http://1.2.65535/", "1.2.255.255", 80, true, "http://1.2.255.255/"},
    {"http://1.16777215/", "1.255.255.255", 80, true, "http://1.255.255.255/"},
    {"http://4294967295/", "255.255.255.255", 80, true, "http://255.255.255.255/"},
    {"http://0/", "0.0.0.0", 80, true, "http://0.0.0.0/"},
    {"http://00/", "0.0.0.0", 80, true, "http://0.0.0.0/"},
    {"http://0.0/", "0.0.0.0", 80, true, "http://0.0.0.0/"},
    {"http://0xa9.0376.43518:8/", "169.254.169.254", 8, true, "http://169.254.169.254:8/"},
    {"http://2852039166/", "169.254.169.254", 80, true, "http://169.254.169.254/"},
    {"http://0xA9FEA9FE/", "169.254.169.254", 80, true, "http://169.254.169.254/"},
    {"http://%30%78%37%66.1/", "127.0.0.1", 80, true, "http://127.0.0.1/"},
    {"http://\xef\xbc\x91\xef\xbc\x92\xef\xbc\x97.0.0.1/", "127.0.0.1", 80, true,
     "http://127.0.0.1/"}, /* fullwidth digits */
    {"http://127\xe3\x80\x82"
     "0\xe3\x80\x82"
     "0\xe3\x80\x82"
     "1/",
     "127.0.0.1", 80, true, "http://127.0.0.1/"}, /* ideographic full stops */
    {"http://\xe2\x91\xa0\xe2\x91\xa1\xe2\x91\xa6.\xe2\x93\xaa.\xe2\x93\xaa.\xe2\x91\xa0/",
     "127.0.0.1", 80, true, "http://127.0.0.1/"}, /* circled digits */
    {"http://%EF%BC%91%EF%BC%92%EF%BC%97.0.0.1/", "127.0.0.1", 80, true, "http://127.0.0.1/"},
    /* IPv6 */
    {"http://[::1]/", "::1", 80, true, "http://[::1]/"},
    {"http://[::1]", "::1", 80, true, "http://[::1]/"},
    {"http://[::1]:8080/x", "::1", 8080, true, "http://[::1]:8080/x"},
    {"http://[::1]:?x", "::1", 80, true, "http://[::1]/?x"},
    {"http://[2001:DB8:0:0:0:0:0:1]/", "2001:db8::1", 80, true, "http://[2001:db8::1]/"},
    {"http://[::ffff:127.0.0.1]/", "::ffff:127.0.0.1", 80, true, "http://[::ffff:127.0.0.1]/"},
    {"http://[::ffff:7f00:1]/", "::ffff:127.0.0.1", 80, true, "http://[::ffff:127.0.0.1]/"},
    {"http://[64:ff9b::7f00:1]/", "64:ff9b::7f00:1", 80, true, "http://[64:ff9b::7f00:1]/"},
    {"http://[::]/", "::", 80, true, "http://[::]/"},
    {"http://[::127.0.0.1]/", "::127.0.0.1", 80, true, "http://[::127.0.0.1]/"},
    {"https://[2606:4700::1111]/", "2606:4700::1111", 443, true, "https://[2606:4700::1111]/"},
    /* international names */
    {"http://m\xc3\xbcnchen.example/", "xn--mnchen-3ya.example", 80, false,
     "http://xn--mnchen-3ya.example/"},
    {"http://M\xc3\x9cNCHEN.example/", "xn--mnchen-3ya.example", 80, false,
     "http://xn--mnchen-3ya.example/"},
    {"http://fa\xc3\x9f.example/", "xn--fa-hia.example", 80, false,
     "http://xn--fa-hia.example/"}, /* not "fass": non-transitional */
    {"http://mu\xcc\x88nchen.example/", "xn--mnchen-3ya.example", 80, false,
     "http://xn--mnchen-3ya.example/"}, /* not composed */
    {"http://\xef\xbd\x85xample.com/", "example.com", 80, false, "http://example.com/"},
    {"http://ex\xc2\xad"
     "ample.com/",
     "example.com", 80, false, "http://example.com/"},
    {"http://\xe4\xbe\x8b\xe5\xad\x90.example:81/\xe4\xbe\x8b", "xn--fsqu00a.example", 81, false,
     "http://xn--fsqu00a.example:81/%E4%BE%8B"},

    /* refused: form */
    {"", NULL, 0, false, "empty"},
    {"example.com", NULL, 0, false, "does not begin"},
    {"/path", NULL, 0, false, "does not begin"},
    {"//example.com/", NULL, 0, false, "does not begin"},
    {"http:", NULL, 0, false, "does not begin"},
    {"http:/", NULL, 0, false, "does not begin"},
    {"http:example.com", NULL, 0, false, "does not begin"},
    {"http:/example.com", NULL, 0, false, "does not begin"},
    {"http://", NULL, 0, false, "no host"},
    {"http:///", NULL, 0, false, "no host"},
    {"http:///example.com", NULL, 0, false, "no host"},
    {"http://?x", NULL, 0, false, "no host"},
    {"http://#x", NULL, 0, false, "no host"},
    {"http://:80/", NULL, 0, false, "no host"},
    {"ftp://example.com/", NULL, 0, false, "scheme"},
    {"file:///etc/passwd", NULL, 0, false, "scheme"},
    {"gopher://example.com/", NULL, 0, false, "scheme"},
    {"javascript:alert(1)", NULL, 0, false, "scheme"},
    {"data:text/plain,x", NULL, 0, false, "scheme"},
    {"httpx://example.com/", NULL, 0, false, "scheme"},
    {"httpss://example.com/", NULL, 0, false, "scheme"},
    {"example.com:80/", NULL, 0, false, "scheme"},
    /* refused: bytes */
    {" http://example.com/", NULL, 0, false, "space"},
    {"http://example.com/ ", NULL, 0, false, "space"},
    {"http://example.com/a b", NULL, 0, false, "space"},
    {"http://example.com/#a b", NULL, 0, false, "space"},
    {"http://exa mple.com/", NULL, 0, false, "space"},
    {"http://example.com/\t", NULL, 0, false, "control"},
    {"http://example.com/\r\nHost: x", NULL, 0, false, "control"},
    {"http://exa\nmple.com/", NULL, 0, false, "control"},
    {"http://example.com/\x7f", NULL, 0, false, "control"},
    {"http://example.com/\x01", NULL, 0, false, "control"},
    {"http://example.com/\xff", NULL, 0, false, "UTF-8"},
    {"http://example.com/\xed\xa0\x80", NULL, 0, false, "UTF-8"},
    {"http://example.com\\@other.example/", NULL, 0, false, "backslash"},
    {"http:\\\\example.com\\", NULL, 0, false, "backslash"},
    {"http://127.0.0.1\\@example.com/", NULL, 0, false, "backslash"},
    {"http://example.com/a\\b", NULL, 0, false, "backslash"},
    {"http://example.com/#\\", NULL, 0, false, "backslash"},
    /* refused: user information */
    {"http://user@example.com/", NULL, 0, false, "user name"},
    {"http://user:pass@example.com/", NULL, 0, false, "user name"},
    {"http://@example.com/", NULL, 0, false, "user name"},
    {"http://:@example.com/", NULL, 0, false, "user name"},
    {"http://example.com@127.0.0.1/", NULL, 0, false, "user name"},
    {"http://example.com:80@127.0.0.1:81/", NULL, 0, false, "user name"},
    {"http://a@b@c/", NULL, 0, false, "user name"},
    {"http://a@[::1]/", NULL, 0, false, "user name"},
    /* refused: ports */
    {"http://example.com:0/", NULL, 0, false, "port"},
    {"http://example.com:00/", NULL, 0, false, "port"},
    {"http://example.com:65536/", NULL, 0, false, "port"},
    {"http://example.com:4294967376/", NULL, 0, false, "port"},
    {"http://example.com:99999999999999999999/", NULL, 0, false, "port"},
    {"http://example.com:-1/", NULL, 0, false, "port"},
    {"http://example.com:+80/", NULL, 0, false, "port"},
    {"http://example.com:80a/", NULL, 0, false, "port"},
    {"http://example.com:80:81/", NULL, 0, false, "port"},
    {"http://example.com:http/", NULL, 0, false, "port"},
    {"http://[::1]:x/", NULL, 0, false, "port"},
    {"http://[::1]:0/", NULL, 0, false, "port"},
    /* refused: hosts */
    {"http://./", NULL, 0, false, "empty label"},
    {"http://../", NULL, 0, false, "empty label"},
    {"http://.example.com/", NULL, 0, false, "empty label"},
    {"http://example..com/", NULL, 0, false, "empty label"},
    {"http://example.com../", NULL, 0, false, "empty label"},
    {"http://" L63 "h.example/", NULL, 0, false, "63"},
    {"http://" L63 "." L63 "." L63 "." L63 "/", NULL, 0, false, "253"},
    {"http://exa%mple.com/", NULL, 0, false, "%"},
    {"http://example.com%/", NULL, 0, false, "%"},
    {"http://example.com%2/", NULL, 0, false, "%"},
    {"http://example.com%00/", NULL, 0, false, "control"},
    {"http://example.com%0a/", NULL, 0, false, "control"},
    {"http://exa%20mple.com/", NULL, 0, false, "space"},
    {"http://a%2fb/", NULL, 0, false, "not allowed"},
    {"http://a%40b/", NULL, 0, false, "not allowed"},
    {"http://a%3a80/", NULL, 0, false, "not allowed"},
    {"http://a%23b/", NULL, 0, false, "not allowed"},
    {"http://a%5cb/", NULL, 0, false, "not allowed"},
    {"http://a%2531/", NULL, 0, false, "not allowed"},
    {"http://%ff/", NULL, 0, false, "internationalised"},
    {"http://a\xef\xbc\x8f"
     "b/",
     NULL, 0, false, NULL}, /* fullwidth slash */
    {"http://a\xe2\x84\x80"
     "b/",
     NULL, 0, false, NULL},                     /* a/c as one character */
    {"http://\xc2\xad/", NULL, 0, false, NULL}, /* a soft hyphen alone */
    {"http://exa*mple.com/", NULL, 0, false, "not allowed"},
    {"http://a,b/", NULL, 0, false, "not allowed"},
    {"http://a;b/", NULL, 0, false, "not allowed"},
    {"http://a~b/", NULL, 0, false, "not allowed"},
    {"http://{a}/", NULL, 0, false, "not allowed"},
    {"http://a|b/", NULL, 0, false, "not allowed"},
    /* refused: numbers that are no address */
    {"http://256.1.1.1/", NULL, 0, false, "number"},
    {"http://1.2.3.256/", NULL, 0, false, "number"},
    {"http://1.2.3.4.5/", NULL, 0, false, "number"},
    {"http://4294967296/", NULL, 0, false, "number"},
    {"http://99999999999999999999/", NULL, 0, false, "number"},
    {"http://0x100000000/", NULL, 0, false, "number"},
    {"http://1.16777216/", NULL, 0, false, "number"},
    {"http://08.1.1.1/", NULL, 0, false, "number"},
    {"http://1.1.1.09/", NULL, 0, false, "number"},
    {"http://0x/", NULL, 0, false, "number"},
    {"http://1.2.3.0x/", NULL, 0, false, "number"},
    {"http://example.1/", NULL, 0, false, "number"},
    {"http://example.0x1f/", NULL, 0, false, "number"},
    {"http://1..2/", NULL, 0, false, "empty label"},
    /* refused: IPv6 */
    {"http://[/", NULL, 0, false, "IPv6"},
    {"http://[]/", NULL, 0, false, "IPv6"},
    {"http://[::1/", NULL, 0, false, "IPv6"},
    {"http://::1/", NULL, 0, false, NULL},
    {"http://[::1]x/", NULL, 0, false, "IPv6"},
    {"http://[::1].example/", NULL, 0, false, "IPv6"},
    {"http://x[::1]/", NULL, 0, false, NULL},
    {"http://[127.0.0.1]/", NULL, 0, false, "IPv6"},
    {"http://[1::2::3]/", NULL, 0, false, "IPv6"},
    {"http://[12345::]/", NULL, 0, false, "IPv6"},
    {"http://[v1.x]/", NULL, 0, false, "IPv6"},
    {"http://[fe80::1%25lo]/", NULL, 0, false, "zone"},
    {"http://[fe80::1%lo]/", NULL, 0, false, "zone"},
    {"http://[::1%250]/", NULL, 0, false, "zone"},
    {"http://[%3a:1]/", NULL, 0, false, "zone"},
    {"http://%5b::1%5d/", NULL, 0, false, NULL},
};

/* libcurl sees the same in the URL that we would hand to it. */
static void second_opinion(const struct url *u)
{
    char *text = xstrndup(u->text.ptr, u->text.len), want[300];
    CURLU *h = curl_url();
    char *host = NULL, *port = NULL, *scheme = NULL, *user = NULL, *fragment = NULL;

    assert_int_equal(curl_url_set(h, CURLUPART_URL, text, 0), CURLUE_OK);
    assert_int_equal(curl_url_get(h, CURLUPART_HOST, &host, 0), CURLUE_OK);
    assert_int_equal(curl_url_get(h, CURLUPART_PORT, &port, CURLU_DEFAULT_PORT), CURLUE_OK);
    assert_int_equal(curl_url_get(h, CURLUPART_SCHEME, &scheme, 0), CURLUE_OK);
    snprintf(want, sizeof(want), strchr(u->host, ':') != NULL ? "[%s]" : "%s", u->host);
    assert_string_equal(host, want);
    assert_int_equal(strtol(port, NULL, 10), u->port);
    assert_string_equal(scheme, u->https ? "https" : "http");
    assert_int_equal(curl_url_get(h, CURLUPART_USER, &user, 0), CURLUE_NO_USER);
    assert_int_equal(curl_url_get(h, CURLUPART_FRAGMENT, &fragment, 0), CURLUE_NO_FRAGMENT);
    curl_free(host);
    curl_free(port);
    curl_free(scheme);
    curl_url_cleanup(h);
    free(text);
}

static void run_row(const struct row *r)
{
    struct url u = {0};
    const char *why = NULL;
    size_t len = strlen(r->in);
    char *copy = malloc(len > 0 ? len : 1); /* no NUL behind it, so that ASan sees a read too far */

    memcpy(copy, r->in, len);
    int rc = url_parse(&u, copy, len, &why);
    if (r->host == NULL) {
        if (rc != E_INVAL || why == NULL)
            fail_msg("\"%s\" was taken as host %s", r->in, u.host);
        if (r->text != NULL && strstr(why, r->text) == NULL)
            fail_msg("\"%s\": the reason is \"%s\", not \"%s\"", r->in, why, r->text);
        free(copy);
        return;
    }
    if (rc != 0)
        fail_msg("\"%s\" was refused: %s", r->in, why);
    if (strcmp(u.host, r->host) != 0 || u.port != r->port || u.host_is_ip != r->ip)
        fail_msg("\"%s\": host %s port %u ip %d", r->in, u.host, u.port, u.host_is_ip);
    const char *text = r->text != NULL ? r->text : r->in;
    if (u.text.len != strlen(text) || memcmp(u.text.ptr, text, u.text.len) != 0)
        fail_msg("\"%s\": text %.*s", r->in, (int)u.text.len, u.text.ptr);
    /* What is a prefix of the text given was not copied. */
    if (r->text == NULL)
        assert_ptr_equal(u.text.ptr, copy);
    second_opinion(&u);

    /* The normal form is a fixed point. */
    struct url again = {0};
    assert_int_equal(url_parse(&again, u.text.ptr, u.text.len, &why), 0);
    assert_int_equal(again.text.len, u.text.len);
    assert_memory_equal(again.text.ptr, u.text.ptr, u.text.len);
    assert_true(url_same_origin(&u, &again));
    assert_true(again.host_is_ip == u.host_is_ip);
    url_fini(&again);
    url_fini(&u);
    url_fini(&u);
    free(copy);
}

static void test_rows(void **state)
{
    (void)state;
    assert_true(ARRAY_LEN(rows) >= 120);
    for (size_t i = 0; i < ARRAY_LEN(rows); i++)
        run_row(&rows[i]);
}

static void test_lengths(void **state)
{
    static char text[URL_MAX + 2] = "http://example.com/";
    struct url u;
    const char *why;

    (void)state;
    size_t at = strlen(text);
    memset(text + at, 'a', sizeof(text) - at);
    assert_int_equal(url_parse(&u, text, URL_MAX, &why), 0);
    assert_int_equal(u.text.len, URL_MAX);
    assert_null(u.owned);
    url_fini(&u);
    assert_int_equal(url_parse(&u, text, URL_MAX + 1, &why), E_INVAL);
    assert_string_equal(why, "it is longer than 8192 bytes");
    assert_int_equal(url_parse(&u, text, SIZE_MAX / 2, &why), E_INVAL);

    /* Longer only once it is encoded; and just not. */
    text[at] = '{';
    assert_int_equal(url_parse(&u, text, URL_MAX - 2, &why), 0);
    assert_int_equal(u.text.len, URL_MAX);
    url_fini(&u);
    assert_int_equal(url_parse(&u, text, URL_MAX - 1, &why), E_INVAL);
    assert_non_null(strstr(why, "8192"));

    /* A host of 253 bytes, and one more. */
    char host[300];
    for (size_t i = 0; i < sizeof(host); i++)
        host[i] = i % 2 == 0 ? 'a' : '.';
    for (size_t n = 252; n <= 256; n++) {
        char s[300];
        int len = snprintf(s, sizeof(s), "http://%.*s/", (int)n, host);
        bool fits = n <= 254; /* 254: with a dot at the end */
        assert_int_equal(url_parse(&u, s, (size_t)len, &why), fits ? 0 : E_INVAL);
        if (fits)
            assert_int_equal(strlen(u.host), n % 2 == 0 ? n - 1 : n);
        url_fini(&u);
    }
    /* NUL bytes. */
    assert_int_equal(url_parse(&u, "http://a\0b/", 11, &why), E_INVAL);
    assert_int_equal(url_parse(&u, "http://a/\0", 10, &why), E_INVAL);
    assert_string_equal(why, "it contains a control character");
}

/* Every byte at every place of a URL: never a crash, and libcurl agrees with what is accepted. */
static void test_mutations(void **state)
{
    static const char *const seeds[] = {"http://ab.example:81/p?q#f", "http://127.0.0.1/x",
                                        "https://[2001:db8::1]:8/"};
    const char *why;

    (void)state;
    for (size_t s = 0; s < ARRAY_LEN(seeds); s++) {
        size_t len = strlen(seeds[s]);
        for (size_t at = 0; at <= len; at++)
            for (unsigned c = 0; c < 256; c++)
                for (int insert = 0; insert < 2; insert++) {
                    char text[64];
                    struct url u;
                    size_t n = 0;
                    if (at == len && insert == 0)
                        continue;
                    memcpy(text, seeds[s], at);
                    n = at;
                    text[n++] = (char)c;
                    size_t from = insert ? at : at + 1;
                    memcpy(text + n, seeds[s] + from, len - from);
                    n += len - from;
                    if (url_parse(&u, text, n, &why) == 0)
                        second_opinion(&u);
                    url_fini(&u);
                }
    }
}

static void test_origin(void **state)
{
    static const struct {
        const char *a, *b;
        bool same;
    } pairs[] = {
        {"http://a/x", "http://A:80/y?z", true},    {"https://a/", "https://a.:443/", true},
        {"http://a/", "https://a/", false},         {"http://a/", "http://a:81/", false},
        {"http://a/", "http://b/", false},          {"http://127.1/", "http://127.0.0.1/", true},
        {"http://a:443/", "https://a:443/", false}, {"http://[::1]/", "http://[0:0::1]/", true},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(pairs); i++) {
        struct url a, b;
        const char *why;
        assert_int_equal(url_parse(&a, pairs[i].a, strlen(pairs[i].a), &why), 0);
        assert_int_equal(url_parse(&b, pairs[i].b, strlen(pairs[i].b), &why), 0);
        if (url_same_origin(&a, &b) != pairs[i].same)
            fail_msg("%s and %s", pairs[i].a, pairs[i].b);
        url_fini(&a);
        url_fini(&b);
    }
}

static void test_resolve(void **state)
{
    static const char base[] = "http://a/b/c/d;p?q";
    /* RFC 3986 5.4 (with fragments gone), then what servers really send. */
    static const char *const rfc[][2] = {
        {"g", "http://a/b/c/g"},
        {"./g", "http://a/b/c/g"},
        {"g/", "http://a/b/c/g/"},
        {"/g", "http://a/g"},
        {"//g", "http://g"},
        {"?y", "http://a/b/c/d;p?y"},
        {"g?y", "http://a/b/c/g?y"},
        {"#s", "http://a/b/c/d;p?q"},
        {"g#s", "http://a/b/c/g"},
        {"g?y#s", "http://a/b/c/g?y"},
        {";x", "http://a/b/c/;x"},
        {"g;x", "http://a/b/c/g;x"},
        {"g;x?y#s", "http://a/b/c/g;x?y"},
        {".", "http://a/b/c/"},
        {"./", "http://a/b/c/"},
        {"..", "http://a/b/"},
        {"../", "http://a/b/"},
        {"../g", "http://a/b/g"},
        {"../..", "http://a/"},
        {"../../", "http://a/"},
        {"../../g", "http://a/g"},
        {"../../../g", "http://a/g"},
        {"../../../../g", "http://a/g"},
        {"/./g", "http://a/g"},
        {"/../g", "http://a/g"},
        {"g.", "http://a/b/c/g."},
        {".g", "http://a/b/c/.g"},
        {"g..", "http://a/b/c/g.."},
        {"..g", "http://a/b/c/..g"},
        {"./../g", "http://a/b/g"},
        {"./g/.", "http://a/b/c/g/"},
        {"g/./h", "http://a/b/c/g/h"},
        {"g/../h", "http://a/b/c/h"},
        {"g;x=1/./y", "http://a/b/c/g;x=1/y"},
        {"g;x=1/../y", "http://a/b/c/y"},
        {"g?y/./x", "http://a/b/c/g?y/./x"},
        {"g?y/../x", "http://a/b/c/g?y/../x"},
        {"g:h", "g:h"},
        {"file:///etc/passwd", "file:///etc/passwd"},
        {"HTTPS://x/y", "HTTPS://x/y"},
        {"https://x/y#z", "https://x/y"},
        {"...", "http://a/b/c/..."},
        {"/a//b", "http://a/a//b"},
        {"/a//../b", "http://a/a/b"},
        {"%2e%2E/g", "http://a/b/g"},
        {"/%2e./g", "http://a/g"},
        {"g/%2e", "http://a/b/c/g/"},
        {" g ", "http://a/b/c/g"},
        {"\tg", "http://a/b/c/g"},
        {"g h", "http://a/b/c/g%20h"},
        {"/\xc3\xa4?\xe4", "http://a/%C3%A4?%E4"},
        {"//\xc3\xa4/", "http://%C3%A4/"},
        {"1:2", "http://a/b/c/1:2"},
        {"/x?u=http://y/../z", "http://a/x?u=http://y/../z"},
        {"a_b:c", "http://a/b/c/a_b:c"},
        {"?", "http://a/b/c/d;p?"},
    };
    static const char *const other[][3] = {
        {"http://a", "g", "http://a/g"},
        {"http://a", "?x", "http://a?x"},
        {"http://a?q", "g", "http://a/g"},
        {"http://a?q/r", "g", "http://a/g"},
        {"http://a:81/x", "/y", "http://a:81/y"},
        {"https://a/x", "//b/y", "https://b/y"},
        {"http://[::1]:8/x/y", "../z", "http://[::1]:8/z"},
        {"http://a/x#f", "?y", "http://a/x?y"},
        {"http://a/x/y#/z/w", "g", "http://a/x/g"},
        {"http://a/x#f", "#g", "http://a/x"},
    };
    static const char *const bad[] = {"",      " ",          "a\nb",  "a\r\nX: y", "a\\b",
                                      "\\\\x", "http:\\\\x", "a\x7f", "\x01"};
    char *out;

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(rfc); i++) {
        assert_int_equal(url_resolve(base, strlen(base), rfc[i][0], strlen(rfc[i][0]), &out), 0);
        if (strcmp(out, rfc[i][1]) != 0)
            fail_msg("\"%s\" became %s, not %s", rfc[i][0], out, rfc[i][1]);
        free(out);
    }
    for (size_t i = 0; i < ARRAY_LEN(other); i++) {
        assert_int_equal(
            url_resolve(other[i][0], strlen(other[i][0]), other[i][1], strlen(other[i][1]), &out),
            0);
        if (strcmp(out, other[i][2]) != 0)
            fail_msg("\"%s\" + \"%s\" became %s", other[i][0], other[i][1], out);
        free(out);
    }
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        if (url_resolve(base, strlen(base), bad[i], strlen(bad[i]), &out) != E_INVAL)
            fail_msg("bad reference %zu was taken: %s", i, out);
        assert_null(out);
    }
    assert_int_equal(url_resolve(base, strlen(base), "a\0b", 3, &out), E_INVAL);
    assert_int_equal(url_resolve("ftp://a/", 8, "b", 1, &out), E_INVAL);
    char *large = malloc(65536);
    memset(large, 'x', 65536);
    assert_int_equal(url_resolve(base, strlen(base), large, 65536, &out), E_INVAL);
    memset(large, 0xff, URL_MAX);
    assert_int_equal(url_resolve(base, strlen(base), large, URL_MAX, &out), 0);
    assert_int_equal(strlen(out), strlen("http://a/b/c/") + 3 * URL_MAX);
    free(out);
    free(large);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rows),    cmocka_unit_test(test_lengths),
        cmocka_unit_test(test_origin),  cmocka_unit_test(test_mutations),
        cmocka_unit_test(test_resolve),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
