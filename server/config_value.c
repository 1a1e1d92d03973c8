/* The values of options: each function returns NULL, or the reason why the value is refused. */
#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "server/config_int.h"
#include "server/disk.h"

const char *const config_words[][5] = {
    [K_LEVEL] = {"error", "warn", "info", "debug"},
    [K_FORMAT] = {"text", "json"},
    [K_YES] = {"no", "yes"},
};

static char reason[256]; /* main thread only, like this whole file */

/* Digits and, for sizes, one suffix (k, m, g, t, of 1024). */
static const char *parse_number(const char *s, bool size, uint64_t min, uint64_t max, uint64_t *out)
{
    uint64_t v = 0;
    unsigned shift = 0;
    const char *p = s;

    for (; isdigit((unsigned char)*p); p++) {
        unsigned digit = (unsigned)(*p - '0');
        if (v > (UINT64_MAX - digit) / 10)
            goto range;
        v = v * 10 + digit;
    }
    if (p == s)
        return size ? "it is not a size such as 512k, 10m or 2g" : "it is not a whole number";
    if (size && *p != '\0') {
        static const char suffixes[] = "kmgt";
        const char *suffix = strchr(suffixes, tolower((unsigned char)*p));
        if (suffix != NULL) {
            shift = 10 * (unsigned)(suffix - suffixes + 1);
            p++;
            /* "10MiB" and "10KB" are meant as 10m and 10k. */
            if (strcasecmp(p, "ib") == 0 || strcasecmp(p, "b") == 0)
                p += strlen(p);
        }
    }
    if (*p != '\0')
        return size ? "it is not a size such as 512k, 10m or 2g" : "it is not a whole number";
    if (v > UINT64_MAX >> shift)
        goto range;
    v <<= shift;
    if (v < min || v > max)
        goto range;
    *out = v;
    return NULL;
range:
    snprintf(reason, sizeof(reason), "it is out of range: %" PRIu64 " to %" PRIu64, min, max);
    return reason;
}

/* Digits and a suffix (s, m, h, d, w), in seconds; or "never": 0. */
static const char *parse_duration(const char *s, uint64_t min, uint64_t max, uint64_t *out)
{
    static const char
        *const wrong = "it is neither a duration such as 90s, 12h or 7d nor \"never\"";
    static const char *const no_duration = "it is not a duration such as 90s, 12h or 7d";
    static const char suffixes[] = "smhdw";
    static const uint32_t seconds[] = {1, 60, 3600, 86400, 7 * 86400};
    size_t digits = strspn(s, "0123456789");

    if (strcmp(s, "never") == 0 && min > 0) {
        *out = 0;
        return NULL;
    }
    const char *suffix = s[digits] != '\0' ? strchr(suffixes, s[digits]) : NULL;
    if (digits == 0 || suffix == NULL || s[digits + 1] != '\0')
        return min > 0 ? wrong : no_duration;
    uint64_t v = 0;
    for (size_t i = 0; i < digits && v <= max; i++)
        v = v * 10 + (uint64_t)(s[i] - '0');
    v = v <= max ? v * seconds[suffix - suffixes] : v;
    if (v < min || v > max) {
        snprintf(reason, sizeof(reason), "it is out of range: %" PRIu64 "s to %" PRIu64 "d", min,
                 max / 86400);
        return reason;
    }
    *out = v;
    return NULL;
}

/* A decimal number, or none, in thousandths. */
static const char *parse_rate(const char *v, uint64_t min, uint64_t max, uint32_t *out)
{
    static const char *const wrong = "it is neither a number such as 20 or 0.5 nor \"none\"";
    uint64_t n = 0;
    size_t digits = strspn(v, "0123456789"), places = 0;

    if (strcmp(v, "none") == 0) {
        *out = 0;
        return NULL;
    }
    const char *point = v + digits;
    if (*point == '.')
        places = strspn(point + 1, "0123456789");
    if (digits == 0 || (*point == '.' && places == 0) ||
        point[*point == '.' ? 1 + places : 0] != '\0')
        return wrong;
    if (places > 3)
        return "it has more than three decimal places";
    for (const char *p = v; *p != '\0' && n <= max; p++)
        if (*p != '.')
            n = n * 10 + (uint64_t)(*p - '0');
    for (size_t i = places; i < 3; i++)
        n *= 10;
    if (n < min || n > max)
        return "it is out of range: 0.001 to 1000000";
    *out = (uint32_t)n;
    return NULL;
}

/* Printable text (UTF-8 too) within the option's bounds of length. */
static const char *check_text(const struct option *o, const char *v)
{
    size_t n = strlen(v);

    if (n < o->min)
        return "it is empty";
    if (n > o->max) {
        snprintf(reason, sizeof(reason), "it is longer than %" PRIu64 " bytes", o->max);
        return reason;
    }
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)v[i] < 0x20 || v[i] == 0x7f)
            return "it contains a control character";
    return utf8_valid(v, n) ? NULL : "it is not valid UTF-8";
}

/* Splits "host:port" or "[v6]:port" (port optional where port is preset); host is without brackets.
 */
static const char *split_port(const char *v, char *host, size_t cap, uint64_t *port)
{
    const char *colon = strrchr(v, ':');
    size_t n = colon != NULL ? (size_t)(colon - v) : strlen(v);

    if (v[0] == '[') {
        const char *close = strchr(v, ']');
        if (close == NULL)
            return "the ] is missing";
        n = (size_t)(close - v) - 1;
        v++;
        colon = close[1] == ':' ? close + 1 : NULL;
        if (close[1] != '\0' && colon == NULL)
            return "there is something other than a port behind the ]";
    } else if (colon != NULL && memchr(v, ':', n) != NULL) {
        return "an IPv6 address must stand in brackets";
    }
    if (n >= cap)
        return "the host is too long";
    memcpy(host, v, n);
    host[n] = '\0';
    if (colon == NULL)
        return *port == UINT64_MAX ? "the port is missing" : NULL;
    const char *why = parse_number(colon + 1, false, 0, 65535, port);
    return why != NULL ? "the port is not a number from 0 to 65535" : NULL;
}

static const char *set_listen(struct config *c, const char *v)
{
    char host[64];
    struct in_addr v4;
    struct in6_addr v6;
    uint64_t port = UINT64_MAX;

    const char *why = split_port(v, host, sizeof(host), &port);
    if (why != NULL)
        return why;
    const char *use = strcmp(host, "localhost") == 0 ? "127.0.0.1" : host;
    bool loopback;
    if (inet_pton(AF_INET, use, &v4) == 1)
        loopback = ntohl(v4.s_addr) >> 24 == 127;
    else if (inet_pton(AF_INET6, use, &v6) == 1)
        loopback = IN6_IS_ADDR_LOOPBACK(&v6);
    else
        return "the host is not an IP address";
    if (!loopback)
        return "only a loopback address (127.0.0.1 or [::1]) can be listened on, because there "
               "are no API keys yet to protect the service from others";
    free(c->listen_host);
    c->listen_host = xstrdup(use);
    c->listen_port = (uint16_t)port;
    return NULL;
}

/* Adds one or more networks. */
static const char *add_nets(struct config *c, const char *v)
{
    char one[64];

    for (;;) {
        size_t n = strcspn(v, ", ");
        if (n > 0) {
            struct guard_net net;
            const char *why;
            snprintf(one, sizeof(one), "%.*s", (int)n, v);
            if (n >= sizeof(one))
                return "it is not a network";
            if (guard_parse_net(one, &net, &why) < 0) {
                snprintf(reason, sizeof(reason), "\"%s\": %s", one, why);
                return reason;
            }
            c->allow_net = xrealloc(c->allow_net, (c->n_allow_net + 1) * sizeof(net));
            c->allow_net[c->n_allow_net++] = net;
        }
        if (v[n] == '\0')
            return NULL;
        v += n + 1;
    }
}

static const char *check_servers(const char *v)
{
    char one[80], host[64];
    uint8_t addr[16];

    for (;;) {
        size_t n = strcspn(v, ",");
        uint64_t port = 53;
        snprintf(one, sizeof(one), "%.*s", (int)n, v);
        if (n >= sizeof(one))
            return "it is not a list such as 192.0.2.53,192.0.2.54:5353";
        /* A bare IPv6 address is an address without a port. */
        bool bare = inet_pton(AF_INET6, one, addr) == 1;
        const char *why = bare ? NULL : split_port(one, host, sizeof(host), &port);
        if (why == NULL && !bare && inet_pton(one[0] == '[' ? AF_INET6 : AF_INET, host, addr) != 1)
            why = "it is not an IP address";
        if (why == NULL && port == 0)
            why = "port 0 is not one";
        if (why != NULL) {
            snprintf(reason, sizeof(reason), "\"%s\": %s", one, why);
            return reason;
        }
        if (v[n] == '\0')
            return NULL;
        v += n + 1;
    }
}

static const char *check_file(const char *v)
{
    struct stat st;

    if (stat(v, &st) != 0 || access(v, R_OK) != 0) {
        snprintf(reason, sizeof(reason), "it cannot be read: %s", strerror(errno));
        return reason;
    }
    return S_ISREG(st.st_mode) ? NULL : "it is not a file";
}

static const char *set_word(enum kind k, const char *v, uint32_t *out)
{
    for (uint32_t i = 0; config_words[k][i] != NULL; i++) {
        if (strcmp(config_words[k][i], v) == 0) {
            *out = i;
            return NULL;
        }
    }
    return k == K_LEVEL    ? "it is not one of error, warn, info, debug"
           : k == K_FORMAT ? "it is not one of text, json"
                           : "it is not one of yes, no";
}

const char *config_set(struct config *c, const struct option *o, const char *v)
{
    void *m = (char *)c + o->offset;
    const char *why;
    uint64_t n = 0;

    switch (o->kind) {
    case K_NUM32:
    case K_NUM64:
    case K_SIZE:
        why = NULL;
        /* "auto" is allowed where it is the default, and stands for 0. */
        if (o->value == NULL || strcmp(o->value, "auto") != 0 || strcmp(v, "auto") != 0)
            why = parse_number(v, o->kind == K_SIZE, o->min, o->max, &n);
        if (o->offset == offsetof(struct config, max_disk) && strcmp(v, "none") == 0) {
            why = NULL;
            n = DISK_NONE;
        }
        if (why != NULL)
            return why;
        if (o->kind == K_NUM32)
            *(uint32_t *)m = (uint32_t)n;
        else
            *(uint64_t *)m = n;
        return NULL;
    case K_SERVERS:
    case K_FILE:
    case K_TEXT:
        why = check_text(o, v);
        if (why == NULL && o->kind == K_SERVERS)
            why = check_servers(v);
        if (why == NULL && o->kind == K_FILE)
            why = check_file(v);
        if (why != NULL)
            return why;
        free(*(char **)m);
        *(char **)m = xstrdup(v);
        return NULL;
    case K_RATE: return parse_rate(v, o->min, o->max, m);
    case K_DURATION: return parse_duration(v, o->min, o->max, m);
    case K_LISTEN: return set_listen(c, v);
    case K_NETS: return add_nets(c, v);
    case K_LEVEL:
    case K_FORMAT:
    case K_YES: return set_word(o->kind, v, m);
    case K_FLAG: *(bool *)m = true; return NULL;
    default: return NULL;
    }
}
