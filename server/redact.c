#include "server/redact.h"

#include <string.h>
#include <strings.h>

enum { NAME_MAX_BYTES = 64 }; /* of a parameter's name; a longer one may be no name */

struct out {
    char *p;
    size_t n, cap;
};

static void put(struct out *o, const char *p, size_t n)
{
    if (n > o->cap - o->n)
        n = o->cap - o->n;
    memcpy(o->p + o->n, p, n);
    o->n += n;
}

static void stars(struct out *o)
{
    put(o, "***", 3);
}

static bool is_word(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '-';
}

/* The end of a URL in running text. */
static bool ends_url(char c)
{
    return (unsigned char)c <= ' ' || c == '"' || c == '\'' || c == '<' || c == '>' || c == 0x7f;
}

static const char *skip_to(const char *p, const char *end, const char *set)
{
    while (p < end && !ends_url(*p) && strchr(set, *p) == NULL)
        p++;
    return p;
}

/* After "://". A password may hold what no URL may: whatever is before an @ that follows something
 * that is no port goes, too. */
static const char *authority(struct out *o, const char *p, const char *end, bool cut)
{
    const char *stop = skip_to(p, end, "/?#\\"), *whole = skip_to(p, end, "?#"), *at = NULL;
    for (const char *q = p; q < stop; q++)
        at = *q == '@' ? q : at;
    const char *port = memchr(p, ':', (size_t)(stop - p));
    while (port != NULL && ++port < stop && *port >= '0' && *port <= '9')
        ;
    bool odd = port != NULL && port < stop && *p != '[';
    for (const char *q = stop; odd && q < whole; q++)
        at = *q == '@' ? q : at;
    if (at != NULL) {
        stars(o);
        p = at;
        stop = stop > at ? stop : skip_to(at, end, "/?#\\");
    } else if (cut && stop == end) {
        stars(o);
        return end;
    }
    put(o, p, (size_t)(stop - p));
    return stop;
}

/* After the '?'. */
static const char *query(struct out *o, const char *p, const char *end)
{
    while (p < end && !ends_url(*p) && *p != '#') {
        const char *stop = skip_to(p, end, "&;#");
        const char *eq = memchr(p, '=', (size_t)(stop - p));
        if (eq != NULL && eq - p <= NAME_MAX_BYTES)
            put(o, p, (size_t)(eq + 1 - p));
        stars(o);
        p = stop;
        if (p < end && (*p == '&' || *p == ';'))
            put(o, p++, 1);
    }
    return p;
}

/* The length of a credential's name at p, with the separator behind it; 0: there is none. */
static size_t secret_name(const char *p, const char *end)
{
    static const char *const names[] = {
        "proxy-authorization",
        "authorization",
        "set-cookie",
        "cookie",
        "x-api-key",
        "x-auth-token",
        "x-csrf-token",
        "access_token",
        "api-key",
        "api_key",
        "apikey",
        "client_secret",
        "secret",
        "password",
        "passwd",
        "private-token",
        "token",
        "bearer",
    };
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        size_t n = strlen(names[i]);
        if ((size_t)(end - p) <= n || strncasecmp(p, names[i], n) != 0)
            continue;
        const char *q = p + n;
        if (q < end && (*q == '"' || *q == '\''))
            q++;
        bool space = q < end && *q == ' ';
        while (q < end && *q == ' ')
            q++;
        if (q < end && (*q == ':' || *q == '='))
            return (size_t)(q + 1 - p);
        if (space && i == ARRAY_LEN(names) - 1) /* "Bearer abc" */
            return (size_t)(q - p);
    }
    return 0;
}

/* A field's value goes to the end of the line; one in quotes to the closing one. */
static const char *secret_value(struct out *o, const char *p, const char *end)
{
    while (p < end && *p == ' ')
        put(o, p++, 1);
    char quote = p < end && (*p == '"' || *p == '\'') ? *p : '\0';
    if (quote != '\0')
        put(o, p++, 1);
    if (p < end)
        stars(o);
    while (p < end && *p != '\n' && *p != '\r' && (quote == '\0' || *p != quote))
        p += *p == '\\' && p + 1 < end ? 2 : 1;
    return p;
}

size_t redact_text(char *out, size_t cap, const char *p, size_t n, bool cut)
{
    struct out o = {out, 0, cap};
    const char *start = p, *end = p + n;
    while (p < end && o.n < cap) {
        size_t name = p == start || !is_word(p[-1]) ? secret_name(p, end) : 0;
        if (name > 0) {
            put(&o, p, name);
            p = secret_value(&o, p + name, end);
        } else if (end - p >= 3 && memcmp(p, "://", 3) == 0) {
            put(&o, p, 3);
            p = authority(&o, p + 3, end, cut);
        } else if (*p == '?') {
            put(&o, p, 1);
            p = query(&o, p + 1, end);
        } else {
            put(&o, p++, 1);
        }
    }
    return o.n;
}
