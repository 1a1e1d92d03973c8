/* URL parsing: a scan by table for ordinary URLs, a rewriting slow path for all others, and RFC
 * 3986 resolution for redirects. Both paths hold to one grammar that is narrower than libcurl's and
 * the WHATWG's, so that all three see the same host; the slow path asks libcurl's parser to confirm
 * it. No state; any thread. */
#include "server/url.h"

#include <arpa/inet.h>
#include <curl/curl.h>
#include <idn2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    NAME_MAX_LEN = 253, /* of a host name, RFC 1035 without the root */
    LABEL_MAX = 63,
};

/* ---- character classes ---- */

enum {
    C_HOST = 1, /* in a host name as it goes on the wire: lower case, digits, . - _ */
    C_REST = 2, /* needs no change in path and query */
    C_ENC = 4,  /* is percent-encoded in path and query */
    C_DIGIT = 8,
    C_HEX = 16,
};

#define REP26(m)                                                                                \
    m(0) m(1) m(2) m(3) m(4) m(5) m(6) m(7) m(8) m(9) m(10) m(11) m(12) m(13) m(14) m(15) m(16) \
        m(17) m(18) m(19) m(20) m(21) m(22) m(23) m(24) m(25)
#define LOWER(i) ['a' + (i)] = C_HOST | C_REST | ((i) < 6 ? C_HEX : 0),
#define UPPER(i) ['A' + (i)] = C_REST | ((i) < 6 ? C_HEX : 0),

/* RFC 3986 pchar, "/" and "?"; also "[" and "]", which no browser encodes in a query. The other
 * printable characters are not legal in a URL; servers differ about them when sent as they are. */
/* clang-format off */
static const uint8_t classes[256] = {
    REP26(LOWER) REP26(UPPER)
    ['0'] = C_HOST | C_REST | C_DIGIT | C_HEX, ['1'] = C_HOST | C_REST | C_DIGIT | C_HEX,
    ['2'] = C_HOST | C_REST | C_DIGIT | C_HEX, ['3'] = C_HOST | C_REST | C_DIGIT | C_HEX,
    ['4'] = C_HOST | C_REST | C_DIGIT | C_HEX, ['5'] = C_HOST | C_REST | C_DIGIT | C_HEX,
    ['6'] = C_HOST | C_REST | C_DIGIT | C_HEX, ['7'] = C_HOST | C_REST | C_DIGIT | C_HEX,
    ['8'] = C_HOST | C_REST | C_DIGIT | C_HEX, ['9'] = C_HOST | C_REST | C_DIGIT | C_HEX,
    ['.'] = C_HOST | C_REST, ['-'] = C_HOST | C_REST, ['_'] = C_HOST | C_REST,
    ['~'] = C_REST, ['!'] = C_REST, ['$'] = C_REST, ['&'] = C_REST, ['\''] = C_REST,
    ['('] = C_REST, [')'] = C_REST, ['*'] = C_REST, ['+'] = C_REST, [','] = C_REST,
    [';'] = C_REST, ['='] = C_REST, [':'] = C_REST, ['@'] = C_REST, ['/'] = C_REST,
    ['?'] = C_REST, ['%'] = C_REST, ['['] = C_REST, [']'] = C_REST,
    ['"'] = C_ENC, ['<'] = C_ENC, ['>'] = C_ENC, ['^'] = C_ENC, ['`'] = C_ENC,
    ['{'] = C_ENC, ['|'] = C_ENC, ['}'] = C_ENC,
};
/* clang-format on */

static bool is(char c, unsigned class)
{
    return (classes[(uint8_t)c] & class) != 0;
}

static char lower(char c)
{
    return c >= 'A' && c <= 'Z' ? (char)(c + 32) : c;
}

/* ---- hosts ---- */

/* The labels of a host name made of C_HOST characters. */
static bool labels_ok(const char *h, size_t n, const char **why)
{
    size_t label = 0;

    if (n > NAME_MAX_LEN) {
        *why = "the host is longer than 253 bytes";
        return false;
    }
    for (size_t i = 0; i <= n; i++) {
        if (i < n && h[i] != '.') {
            label++;
            continue;
        }
        if (label == 0 || label > LABEL_MAX) {
            *why = label == 0 ? "the host has an empty label"
                              : "the host has a label longer than 63 bytes";
            return false;
        }
        label = 0;
    }
    return true;
}

/* Whether the last label is a number as the WHATWG counts them: then the host must be an IPv4
 * address. (No top-level domain is a number.) */
static bool ends_in_number(const char *h, size_t n)
{
    size_t at = n;

    while (at > 0 && h[at - 1] != '.')
        at--;
    if (at == n || !is(h[at], C_DIGIT))
        return false;
    if (n - at >= 2 && h[at] == '0' && h[at + 1] == 'x') {
        for (at += 2; at < n && is(h[at], C_HEX); at++)
            ;
        return at == n;
    }
    while (at < n && is(h[at], C_DIGIT))
        at++;
    return at == n;
}

/* inet_aton(3)'s number forms, as libcurl and every resolver reads them: one to four decimal, octal
 * (leading 0) or hexadecimal (0x) numbers, of which the last fills the bytes that are left. */
static bool parse_ipv4(const char *h, size_t n, uint32_t *out)
{
    uint64_t part[4];
    size_t parts = 0, i = 0;

    for (;;) {
        unsigned base = 10;
        size_t start = i;
        uint64_t v = 0;
        if (parts == 4)
            return false;
        if (i + 1 < n && h[i] == '0' && h[i + 1] == 'x') {
            base = 16;
            i += 2;
            start = i;
        } else if (i < n && h[i] == '0') {
            base = 8;
        }
        for (; i < n && is(h[i], C_HEX); i++) {
            unsigned digit = h[i] >= 'a' ? (unsigned)(h[i] - 'a') + 10 : (unsigned)(h[i] - '0');
            if (digit >= base)
                return false;
            v = v * base + digit;
            if (v > UINT32_MAX)
                return false;
        }
        if (i == start)
            return false;
        part[parts++] = v;
        if (i == n)
            break;
        if (h[i++] != '.')
            return false;
    }
    uint64_t ip = 0;
    for (size_t p = 0; p + 1 < parts; p++) {
        if (part[p] > 255)
            return false;
        ip |= part[p] << (24 - 8 * p);
    }
    if (part[parts - 1] >> (8 * (5 - parts)) != 0)
        return false;
    *out = (uint32_t)(ip | part[parts - 1]);
    return true;
}

/* The same for the only form that needs no change: four decimal numbers without leading zeros. */
static bool is_dotted(const char *h, size_t n)
{
    size_t i = 0;

    for (int part = 0; part < 4; part++) {
        size_t start = i;
        unsigned v = 0;
        while (i < n && i - start < 3 && is(h[i], C_DIGIT))
            v = v * 10 + (unsigned)(h[i++] - '0');
        if (i == start || v > 255 || (h[start] == '0' && i - start > 1))
            return false;
        if (part < 3 && (i == n || h[i++] != '.'))
            return false;
    }
    return i == n;
}

/* ---- the fast path ---- */

static bool scheme(const char *s, size_t len, bool *https, size_t *after)
{
    static const char name[] = "https";
    size_t i = 0;

    while (i < 5 && i < len && lower(s[i]) == name[i])
        i++;
    *https = i == 5;
    *after = i;
    return i >= 4 && i < len && s[i] == ':';
}

/* Reads "host[:port][rest]" from s[at] in one pass; false where anything is not ordinary, and then
 * the slow path says what, if it is not to its liking either. */
static bool parse_fast(struct url *u, const char *s, size_t len)
{
    size_t at, label = 0;

    /* Lower case only: what needs no change. */
    if (len < 8 || memcmp(s, "http", 4) != 0)
        return false;
    u->https = s[4] == 's';
    at = u->https ? 5 : 4;
    if (len - at < 4 || memcmp(s + at, "://", 3) != 0)
        return false;
    at += 3;

    size_t host = at;
    while (at < len && is(s[at], C_HOST)) {
        if (s[at] == '.') {
            if (label == 0)
                return false;
            label = 0;
        } else if (++label > LABEL_MAX) {
            return false;
        }
        at++;
    }
    size_t n = at - host;
    if (label == 0 || n > NAME_MAX_LEN)
        return false;
    u->host_is_ip = false;
    if (ends_in_number(s + host, n)) {
        if (!is_dotted(s + host, n))
            return false;
        u->host_is_ip = true;
    }

    u->port = u->https ? 443 : 80;
    if (at < len && s[at] == ':') {
        unsigned port = 0;
        size_t start = ++at;
        while (at < len && at - start < 5 && is(s[at], C_DIGIT))
            port = port * 10 + (unsigned)(s[at++] - '0');
        if (at == start || s[start] == '0' || port > 65535)
            return false;
        u->port = (uint16_t)port;
    }
    if (at < len && s[at] != '/' && s[at] != '?' && s[at] != '#')
        return false;
    while (at < len && is(s[at], C_REST))
        at++;
    size_t end = at;
    if (at < len && s[at] == '#')
        for (at++; at < len && (is(s[at], C_REST) || s[at] == '#'); at++)
            ;
    if (at < len)
        return false;

    memcpy(u->host, s + host, n);
    u->host[n] = '\0';
    u->text = (struct span){s, end};
    u->owned = NULL;
    return true;
}

/* ---- the slow path ---- */

/* Puts the percent-decoded text of a host, lower case, into out; NUL-terminated. */
static bool decode_host(const char *h, size_t n, char *out, size_t cap, const char **why)
{
    size_t at = 0;

    for (size_t i = 0; i < n; i++) {
        char c = h[i];
        if (c == '%') {
            if (n - i < 3 || !is(h[i + 1], C_HEX) || !is(h[i + 2], C_HEX)) {
                *why = "the host contains a % that is not part of a percent-encoding";
                return false;
            }
            char hex[3] = {h[i + 1], h[i + 2], '\0'};
            c = (char)strtoul(hex, NULL, 16);
            i += 2;
        }
        if ((uint8_t)c <= 0x20 || c == 0x7f) {
            *why = "the host contains a space or a control character";
            return false;
        }
        if (at + 1 >= cap) {
            *why = "the host is longer than 253 bytes";
            return false;
        }
        out[at++] = lower(c);
    }
    out[at] = '\0';
    return true;
}

/* A host that is not in brackets: decoded, in punycode, as a number where it is one. */
static bool host_name(struct url *u, const char *h, size_t n, const char **why)
{
    char name[4 * NAME_MAX_LEN]; /* a name may be longer in UTF-8 than in punycode */
    char *ascii = NULL;
    bool ok = false;
    uint32_t ip;

    if (!decode_host(h, n, name, sizeof(name), why))
        return false;
    n = strlen(name);
    const char *use = name;
    bool plain = true;
    for (size_t i = 0; i < n; i++)
        plain = plain && (uint8_t)name[i] < 0x80;
    if (!plain) {
        *why = "the host is not a valid internationalised name";
        if (!utf8_valid(name, n) ||
            idn2_lookup_u8((const uint8_t *)name, (uint8_t **)&ascii,
                           IDN2_NFC_INPUT | IDN2_NONTRANSITIONAL) != IDN2_OK)
            goto out;
        use = ascii;
        n = strlen(ascii);
    }
    if (n > 1 && use[n - 1] == '.')
        n--;
    *why = "it has no host";
    if (n == 0)
        goto out;
    for (size_t i = 0; i < n; i++) {
        if (!is(use[i], C_HOST)) {
            *why = "the host contains a character that is not allowed there";
            goto out;
        }
    }
    if (!labels_ok(use, n, why))
        goto out;
    memcpy(u->host, use, n);
    u->host[n] = '\0';
    u->host_is_ip = ends_in_number(use, n);
    if (u->host_is_ip) {
        *why = "the host ends in a number but is not an IPv4 address";
        if (!parse_ipv4(use, n, &ip))
            goto out;
        snprintf(u->host, sizeof(u->host), "%u.%u.%u.%u", ip >> 24, ip >> 16 & 255, ip >> 8 & 255,
                 ip & 255);
    }
    ok = true;
out:
    idn2_free(ascii);
    return ok;
}

/* What stands between the brackets. */
static bool host_ipv6(struct url *u, const char *h, size_t n, const char **why)
{
    char text[INET6_ADDRSTRLEN + 1];
    struct in6_addr addr;

    *why = "it has an IPv6 address with a zone";
    if (memchr(h, '%', n) != NULL)
        return false;
    *why = "it has an invalid IPv6 address";
    if (n >= sizeof(text))
        return false;
    memcpy(text, h, n);
    text[n] = '\0';
    if (inet_pton(AF_INET6, text, &addr) != 1 ||
        inet_ntop(AF_INET6, &addr, u->host, sizeof(u->host)) == NULL)
        return false;
    u->host_is_ip = true;
    return true;
}

/* "host", "host:port" or "[v6]:port". */
static bool authority(struct url *u, const char *a, size_t n, const char **why)
{
    size_t host_end, port = 0;
    bool brackets = n > 0 && a[0] == '[';

    if (memchr(a, '@', n) != NULL) {
        *why = "it has a user name or password";
        return false;
    }
    if (brackets) {
        const char *close = memchr(a, ']', n);
        *why = "it has an invalid IPv6 address";
        if (close == NULL)
            return false;
        host_end = (size_t)(close - a) + 1;
        if (host_end < n && a[host_end] != ':')
            return false;
        if (!host_ipv6(u, a + 1, host_end - 2, why))
            return false;
    } else {
        const char *colon = memchr(a, ':', n);
        host_end = colon != NULL ? (size_t)(colon - a) : n;
        *why = "it has no host";
        if (host_end == 0 || !host_name(u, a, host_end, why))
            return false;
    }

    u->port = u->https ? 443 : 80;
    if (host_end + 1 >= n) /* no port, or an empty one, which means the default */
        return true;
    for (size_t i = host_end + 1; i < n; i++) {
        if (!is(a[i], C_DIGIT)) {
            *why = "the port is not a number";
            return false;
        }
        port = port * 10 + (size_t)(a[i] - '0');
        if (port > 65535)
            break;
    }
    *why = "the port is out of range";
    if (port < 1 || port > 65535)
        return false;
    u->port = (uint16_t)port;
    return true;
}

/* Writes the normal form into u->owned. rest is "" or begins with "/" or "?". */
static bool build(struct url *u, const char *rest, size_t n, const char **why)
{
    static const char hex[] = "0123456789ABCDEF";
    struct buf b;
    bool v6 = strchr(u->host, ':') != NULL;
    int rc;

    *why = "it is longer than 8192 bytes in its normal form";
    buf_init(&b, URL_MAX + 1);
    rc = buf_addf(&b, "%s://%s%s%s", u->https ? "https" : "http", v6 ? "[" : "", u->host,
                  v6 ? "]" : "");
    if (rc == 0 && u->port != (u->https ? 443 : 80))
        rc = buf_addf(&b, ":%u", (unsigned)u->port);
    /* The empty path is "/". */
    if (rc == 0 && (n == 0 || rest[0] != '/'))
        rc = buf_addc(&b, '/');
    for (size_t i = 0; i < n && rc == 0; i++) {
        uint8_t c = (uint8_t)rest[i];
        char enc[3] = {'%', hex[c >> 4], hex[c & 15]};
        rc = is(rest[i], C_REST) ? buf_addc(&b, rest[i]) : buf_add(&b, enc, sizeof(enc));
    }
    if (rc == 0)
        rc = buf_addc(&b, '\0');
    if (rc < 0) {
        if (rc == E_NOMEM)
            *why = "memory is out";
        buf_fini(&b);
        return false;
    }
    u->owned = b.data;
    u->text = (struct span){b.data, b.len - 1};
    return true;
}

/* Whether libcurl's own parser takes the normal form apart as we do. */
static bool confirm(const struct url *u)
{
    CURLU *h = curl_url();
    char *host = NULL, *port = NULL, *sch = NULL;
    const char *bare;
    size_t n;
    bool ok = false;

    if (h == NULL || curl_url_set(h, CURLUPART_URL, u->owned, 0) != CURLUE_OK ||
        curl_url_get(h, CURLUPART_SCHEME, &sch, 0) != CURLUE_OK ||
        curl_url_get(h, CURLUPART_HOST, &host, 0) != CURLUE_OK ||
        curl_url_get(h, CURLUPART_PORT, &port, CURLU_DEFAULT_PORT) != CURLUE_OK)
        goto out;
    bare = host;
    n = strlen(host);
    if (n > 2 && host[0] == '[') {
        bare++;
        n -= 2;
    }
    ok = strcmp(sch, u->https ? "https" : "http") == 0 && strlen(u->host) == n &&
         memcmp(u->host, bare, n) == 0 && strtoul(port, NULL, 10) == u->port;
out:
    curl_free(sch);
    curl_free(host);
    curl_free(port);
    curl_url_cleanup(h);
    return ok;
}

/* What may stand nowhere in a URL. */
static bool bytes_ok(const char *s, size_t len, const char **why)
{
    for (size_t i = 0; i < len; i++) {
        uint8_t c = (uint8_t)s[i];
        *why = c == ' ' ? "it contains a space" : c == '\\' ? "it contains a backslash" : NULL;
        if (c < 0x20 || c == 0x7f)
            *why = "it contains a control character";
        if (*why != NULL)
            return false;
    }
    *why = "it is not valid UTF-8";
    return utf8_valid(s, len);
}

static bool parse_slow(struct url *u, const char *s, size_t len, const char **why)
{
    size_t at, end;

    if (!bytes_ok(s, len, why))
        return false;
    *why = "the scheme is not http or https";
    if (!scheme(s, len, &u->https, &at)) {
        if (memchr(s, ':', len) == NULL)
            *why = "it does not begin with http:// or https://";
        return false;
    }
    *why = "it does not begin with http:// or https://";
    if (len - at < 3 || memcmp(s + at, "://", 3) != 0)
        return false;
    at += 3;
    for (end = at; end < len && s[end] != '#'; end++)
        ;
    size_t rest = at;
    while (rest < end && s[rest] != '/' && s[rest] != '?')
        rest++;
    if (!authority(u, s + at, rest - at, why) || !build(u, s + rest, end - rest, why))
        return false;
    *why = "it cannot be parsed without doubt about its host";
    return confirm(u);
}

int url_parse(struct url *u, const char *s, size_t len, const char **why)
{
    *why = NULL;
    u->owned = NULL;
    if (len == 0 || len > URL_MAX) {
        *why = len == 0 ? "it is empty" : "it is longer than 8192 bytes";
        return E_INVAL;
    }
    if (parse_fast(u, s, len))
        return 0;
    if (!parse_slow(u, s, len, why)) {
        url_fini(u);
        return E_INVAL;
    }
    *why = NULL;
    return 0;
}

void url_fini(struct url *u)
{
    free(u->owned);
    u->owned = NULL;
    u->text = (struct span){0};
}

bool url_same_origin(const struct url *a, const struct url *b)
{
    return a->https == b->https && a->port == b->port && strcmp(a->host, b->host) == 0;
}

/* ---- resolution ---- */

/* Appends path[0..n) (absolute) to b without its dot segments (RFC 3986 5.2.4); "%2e" is a dot, as
 * browsers and libcurl see it. */
static int add_path(struct buf *b, const char *path, size_t n)
{
    size_t root = b->len, i = 0;
    int rc = 0;

    while (i < n && rc == 0) {
        size_t end = i + 1, dots = 0, j;
        while (end < n && path[end] != '/')
            end++;
        for (j = i + 1; j < end && dots < 3; dots++) {
            if (path[j] == '.')
                j++;
            else if (end - j >= 3 && path[j] == '%' && path[j + 1] == '2' &&
                     lower(path[j + 2]) == 'e')
                j += 3;
            else
                break;
        }
        if (j < end || dots == 0 || dots > 2) {
            rc = buf_add(b, path + i, end - i);
        } else {
            /* ".." takes the last segment away; a dot segment at the end leaves its slash. */
            while (dots == 2 && b->len > root && b->data[--b->len] != '/')
                ;
            if (end == n)
                rc = buf_addc(b, '/');
        }
        i = end;
    }
    return rc;
}

/* A Location value as servers send it: raw spaces and bytes that are not ASCII are encoded, as all
 * browsers do; its fragment goes. */
static int clean_ref(struct buf *b, const char *ref, size_t n)
{
    int rc = 0;

    while (n > 0 && (ref[0] == ' ' || ref[0] == '\t')) {
        ref++;
        n--;
    }
    while (n > 0 && (ref[n - 1] == ' ' || ref[n - 1] == '\t'))
        n--;
    if (n == 0 || n > URL_MAX)
        return E_INVAL;
    for (size_t i = 0; i < n && rc == 0; i++) {
        uint8_t c = (uint8_t)ref[i];
        if (c < 0x20 || c == 0x7f || c == '\\')
            return E_INVAL;
        if (c == '#')
            break;
        rc = c == ' ' || c >= 0x80 ? buf_addf(b, "%%%02X", c) : buf_addc(b, ref[i]);
    }
    return rc;
}

static bool has_scheme(const char *r, size_t n)
{
    size_t i = 0;

    while (i < n && (is(r[i], C_HOST | C_HEX) || r[i] == '+' || (r[i] >= 'G' && r[i] <= 'Z')) &&
           r[i] != '_')
        i++;
    return i > 0 && i < n && r[i] == ':' && !is(r[0], C_DIGIT) && r[0] != '+' && r[0] != '-' &&
           r[0] != '.';
}

int url_resolve(const char *base, size_t base_len, const char *ref, size_t ref_len, char **out)
{
    struct buf b, r;
    bool https;
    size_t at, origin, path_end, merge;
    int rc = E_INVAL;

    *out = NULL;
    buf_init(&b, 8 * URL_MAX);
    buf_init(&r, 4 * URL_MAX);
    if (base_len > URL_MAX || !scheme(base, base_len, &https, &at) || base_len - at < 3 ||
        memcmp(base + at, "://", 3) != 0)
        goto out;
    for (origin = at + 3; origin < base_len && strchr("/?#", base[origin]) == NULL; origin++)
        ;
    for (path_end = origin; path_end < base_len && strchr("?#", base[path_end]) == NULL; path_end++)
        ;
    if (clean_ref(&r, ref, ref_len) < 0)
        goto out;
    rc = 0;

    /* A path of its own, with the query behind it. */
    size_t ref_path = 0;
    while (ref_path < r.len && r.data[ref_path] != '?')
        ref_path++;
    if (r.len > 0 && has_scheme(r.data, r.len)) {
        rc = buf_add(&b, r.data, r.len);
    } else if (r.len >= 2 && r.data[0] == '/' && r.data[1] == '/') {
        rc = buf_add(&b, base, at + 1);
        if (rc == 0)
            rc = buf_add(&b, r.data, r.len);
    } else if (ref_path == 0) {
        /* Only a query, or nothing but a fragment: the base's path (and, then, its query). */
        size_t keep = path_end;
        while (r.len == 0 && keep < base_len && base[keep] != '#')
            keep++;
        rc = buf_add(&b, base, keep);
        if (rc == 0)
            rc = buf_add(&b, r.data, r.len);
    } else {
        struct buf path;
        buf_init(&path, 8 * URL_MAX);
        for (merge = path_end; merge > origin && base[merge - 1] != '/'; merge--)
            ;
        if (r.data[0] != '/')
            rc = merge > origin ? buf_add(&path, base + origin, merge - origin)
                                : buf_addc(&path, '/');
        if (rc == 0)
            rc = buf_add(&path, r.data, ref_path);
        if (rc == 0)
            rc = buf_add(&b, base, origin);
        if (rc == 0)
            rc = add_path(&b, path.data, path.len);
        if (rc == 0)
            rc = buf_add(&b, r.data + ref_path, r.len - ref_path);
        buf_fini(&path);
    }
    if (rc == 0)
        rc = buf_addc(&b, '\0');
out:
    buf_fini(&r);
    if (rc < 0) {
        buf_fini(&b);
        return E_INVAL;
    }
    *out = b.data;
    return 0;
}
