/* Checks of a request's header that libmicrohttpd 0.9.75 does not make. It takes Transfer-Encoding
 * together with Content-Length, takes the first of duplicates, reads an unknown coding as "until
 * the connection closes", keeps a blank before the colon as part of the name, joins folded lines to
 * the *name*, and cuts at a NUL. Each of these lets a proxy in front of us see another request than
 * we do. api thread. */
#include "api/inspect.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

static bool is_token(const char *s, size_t len)
{
    if (len == 0)
        return false;
    for (size_t i = 0; i < len; i++) {
        char c = s[i];
        bool alnum = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');

        if (!alnum && (c == '\0' || !strchr("!#$%&'*+-.^_`|~", c)))
            return false;
    }
    return true;
}

static bool has_controls(const char *s, size_t len, bool tab_ok)
{
    for (size_t i = 0; i < len; i++)
        if (((unsigned char)s[i] < 0x20 && !(s[i] == '\t' && tab_ok)) || s[i] == 0x7f)
            return true;
    return false;
}

struct walk {
    struct request *r;
    const char *why;       /* the first fault */
    const char *value_end; /* of the field before; NULL: none */
    unsigned lengths, codings;
    const char *length, *coding;
};

/* In 0.9.75 the fields stay where they were received, with NULs in place of the colon and the line
 * end. So a line that was folded, or that has a NUL in it, shows as a gap. */
static const char *layout_fault(const struct walk *w, const char *name, size_t name_len,
                                const char *value)
{
    const char *p = name + name_len + 1;

    if (w->value_end && name != w->value_end + 1 && name != w->value_end + 2)
        return "a header field contains a NUL or is folded over several lines";
    while (p < value && (*p == ' ' || *p == '\t'))
        p++;
    if (p != value)
        return "a header field is folded over several lines";
    return NULL;
}

static enum MHD_Result look_at_field(void *arg, enum MHD_ValueKind kind, const char *name,
                                     size_t name_len, const char *value, size_t value_len)
{
    struct walk *w = arg;

    (void)kind;
    if (!value) {
        value = "";
        value_len = 0;
    }
    if (!is_token(name, name_len))
        w->why = "a header field's name is not a token (a blank before the colon?)";
    else if (has_controls(value, value_len, true))
        w->why = "a header field contains a control character";
    else if (w->r->api->check_layout)
        w->why = layout_fault(w, name, name_len, value);
    w->value_end = value + value_len;
    if (strcasecmp(name, "Content-Length") == 0) {
        w->lengths++;
        w->length = value;
    } else if (strcasecmp(name, "Transfer-Encoding") == 0) {
        w->codings++;
        w->coding = value;
    }
    return w->why ? MHD_NO : MHD_YES;
}

static const char *framing_fault(struct request *r, const struct walk *w, const char *version)
{
    if (w->lengths > 1)
        return "Content-Length is given more than once";
    if (w->codings > 1)
        return "Transfer-Encoding is given more than once";
    if (w->lengths && w->codings)
        return "both Content-Length and Transfer-Encoding are given";
    if (w->codings && strcmp(version, "HTTP/1.0") == 0)
        return "HTTP/1.0 has no Transfer-Encoding";
    if (w->codings && strcasecmp(w->coding, "chunked") != 0)
        return "the only Transfer-Encoding understood is chunked";
    if (w->lengths && parse_number(w->length, 0, UINT64_MAX - 10, &r->length) != 0)
        return "Content-Length is not a plain number";
    r->has_body = w->codings || (w->lengths && r->length > 0);
    return NULL;
}

int inspect_framing(struct request *r, const char *version)
{
    struct walk w = {.r = r};

    r->length = UINT64_MAX;
    MHD_get_connection_values_n(r->conn, MHD_HEADER_KIND, look_at_field, &w);
    /* Behind the last field come its line end and the empty line: two NULs at least. */
    if (!w.why && r->api->check_layout && w.value_end && w.value_end[1] != '\0')
        w.why = "a header field contains a NUL";
    if (!w.why && r->api->check_layout && version != r->raw + r->target_len + 1)
        w.why = "the request line contains a NUL";
    if (!w.why)
        w.why = framing_fault(r, &w, version);
    if (!w.why && has_controls(r->target, r->target_len, false))
        w.why = "the path or query contains a control character";
    if (!w.why && strchr(r->target, ' '))
        w.why = "the request line contains a superfluous space";
    if (!w.why)
        return 0;
    problem_set(&r->problem, PROBLEM_BAD_REQUEST, "%s", w.why);
    return E_INVAL;
}

/* ---- who may ask ---- */

/* "name" or "name:port", as in Host: one of ours? */
static bool is_our_host(const struct api *api, const char *s, size_t len)
{
    const char *colon = NULL;
    size_t name_len = len;

    for (size_t i = len; i > 0 && s[i - 1] != ']'; i--)
        if (s[i - 1] == ':')
            colon = s + i - 1;
    if (colon) {
        char digits[8];
        uint64_t port;
        size_t n = len - (size_t)(colon + 1 - s);

        name_len = (size_t)(colon - s);
        if (n >= sizeof(digits))
            return false;
        memcpy(digits, colon + 1, n);
        digits[n] = '\0';
        if (parse_number(digits, 1, 65535, &port) != 0 || port != api->port)
            return false;
    } else if (api->port != 80) {
        return false;
    }
    for (size_t i = 0; i < ARRAY_LEN(api->hosts); i++)
        if (api->hosts[i] && strlen(api->hosts[i]) == name_len &&
            strncasecmp(api->hosts[i], s, name_len) == 0)
            return true;
    return false;
}

static size_t trimmed(const char *s)
{
    size_t n = strlen(s);

    while (n > 0 && (s[n - 1] == ' ' || s[n - 1] == '\t'))
        n--;
    return n;
}

int inspect_client(struct request *r)
{
    const char *host = request_header(r, "Host");
    const char *origin = request_header(r, "Origin");
    const char *site = request_header(r, "Sec-Fetch-Site");

    if (request_header_count(r, "Host") != 1 || !is_our_host(r->api, host, trimmed(host))) {
        problem_set(&r->problem, PROBLEM_MISDIRECTED,
                    host ? "the Host header field does not name this service"
                         : "there is no Host header field");
        problem_add_header(&r->problem, "Host",
                           "must be localhost or the address listened on, "
                           "with port %u",
                           (unsigned)r->api->port);
        return E_INVAL;
    }
    if (strncasecmp(r->target, "http://", 7) == 0) { /* the absolute form of RFC 9112 3.2.2 */
        const char *name = r->target + 7;

        if (!is_our_host(r->api, name, strcspn(name, "/?"))) {
            problem_set(&r->problem, PROBLEM_MISDIRECTED,
                        "the request target does not name this service: it is no proxy");
            return E_INVAL;
        }
    }
    if (origin && (strncmp(origin, "http://", 7) != 0 ||
                   !is_our_host(r->api, origin + 7, trimmed(origin + 7)))) {
        problem_set(&r->problem, PROBLEM_FORBIDDEN_ORIGIN,
                    "requests from pages of other origins are refused");
        problem_add_header(&r->problem, "Origin", "is not this service");
        return E_INVAL;
    }
    if (site && (strcasecmp(site, "same-origin") != 0 && strcasecmp(site, "none") != 0)) {
        problem_set(&r->problem, PROBLEM_FORBIDDEN_ORIGIN,
                    "requests from pages of other sites are refused");
        problem_add_header(&r->problem, "Sec-Fetch-Site", "is neither same-origin nor none");
        return E_INVAL;
    }
    return 0;
}

void inspect_init(struct api *api)
{
    const char *listen = api->cfg->listen_host;
    size_t n = 0;
    char text[80];

    api->hosts[n++] = xstrdup("localhost");
    api->hosts[n++] = xstrdup("127.0.0.1");
    api->hosts[n++] = xstrdup("[::1]");
    if (strchr(listen, ':') && listen[0] != '[') {
        (void)snprintf(text, sizeof(text), "[%s]", listen);
        api->hosts[n++] = xstrdup(text);
    } else {
        api->hosts[n++] = xstrdup(listen);
    }
    ASSERT(n == ARRAY_LEN(api->hosts));
}

void inspect_fini(struct api *api)
{
    for (size_t i = 0; i < ARRAY_LEN(api->hosts); i++)
        free(api->hosts[i]);
}
