/* The options: one table, read by a small parser that the configuration file, the environment, the
 * command line, --help and --check share. Runs once, on the main thread, before any other starts;
 * so it writes to stdout and stderr directly. */
#include "server/config.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "server/disk.h"
#include "server/health.h"
#include "server/log.h"
#include "server/memory.h"

const char batchfetch_version[] = "0.1.0";

extern char **environ;

enum kind {
    K_NUM32,
    K_NUM64,
    K_SIZE,
    K_DURATION,
    K_RATE,
    K_TEXT,
    K_LISTEN,
    K_NETS,
    K_SERVERS,
    K_FILE,
    K_LEVEL,
    K_FORMAT,
    K_YES,
    K_FLAG,
    K_CONFIG,
    K_HELP,
    K_VERSION
};

struct option {
    const char *name;
    enum kind kind;
    size_t offset;     /* of the member in struct config */
    uint64_t min, max; /* of a number */
    const char *value; /* the default, in the option's own syntax; NULL: none */
    const char *arg;   /* as --help shows it; NULL: the option takes none */
    const char *help;  /* a line break starts a line of its own */
};

#define AT(m) offsetof(struct config, m)
#define GIB ((uint64_t)1 << 30)

/* A row without a kind's data and with a NULL name starts a group of --help. */
static const struct option options[] = {
    {.help = "Service"},
    {"listen", K_LISTEN, AT(listen_host), 0, 0, "127.0.0.1:8080", "HOST:PORT",
     "a loopback address; port 0: any free one"},
    {"data", K_TEXT, AT(data), 1, 4000, NULL, "DIR",
     "directory of the database; made if it is not there"},
    {"max-connections", K_NUM32, AT(max_connections), 1, 1000000, "1024", "N",
     "API connections at once"},
    {"memory-limit", K_SIZE, AT(memory_limit), MEMORY_LEAST, 1024 * 1024 * GIB, "auto", "SIZE|auto",
     "memory that the process may take; auto: half of what the\nmachine and its cgroup have"},
    {"max-disk", K_SIZE, AT(max_disk), DISK_LEAST, 1024 * 1024 * GIB, "auto", "SIZE|auto|none",
     "what the data directory may take; auto: all but 5 % of its\nfile system (at most 1g)"},
    {"max-submission-bytes", K_SIZE, AT(max_submission_bytes), 1, 1024 * GIB, "2g", "SIZE",
     "largest body of one submission"},
    {"max-urls", K_NUM64, AT(max_urls), 1, 1000000000, "10000000", "N", "URLs in one batch"},
    {"drain-timeout", K_DURATION, AT(drain_timeout_s), 0, 86400, "30s", "DURATION",
     "after SIGTERM, how long transfers in flight may go on"},
    {"retain", K_DURATION, AT(retain_s), 1, 3650ULL * 86400, "7d", "DURATION|never",
     "remove a batch with its results so long after its end"},
    {"log-level", K_LEVEL, AT(log_level), 0, 0, "info", "LEVEL", "error, warn, info or debug"},
    {"log-format", K_FORMAT, AT(log_format), 0, 0, "text", "FORMAT", "text or json"},
    {"log-requests", K_YES, AT(log_requests), 0, 0, "no", "yes|no",
     "a line for every request to the API\n(at level debug: always)"},

    {.help = "Fetching"},
    {"max-parallel", K_NUM32, AT(max_parallel), 1, 1000000, "auto", "N|auto",
     "transfers in flight, all batches together;\nauto: what this machine allows"},
    {"max-per-host", K_NUM32, AT(max_per_host), 1, 1000000, "16", "N", "the same, per host name"},
    {"rate-per-host", K_RATE, AT(rate_per_host), 1, 1000000000, "none", "N|none",
     "requests that start a second at one host name,\nall batches together; 0.5: one every 2 s"},
    {"fetchers", K_NUM32, AT(fetchers), 1, 64, "auto", "N|auto",
     "fetcher threads; auto: one a core, at most 16"},
    {"timeout-ms", K_NUM32, AT(timeout_ms), 1, 3600000, "30000", "MS",
     "of one attempt, from its start to the last byte"},
    {"connect-timeout-ms", K_NUM32, AT(connect_timeout_ms), 1, 600000, "10000", "MS",
     "of look-up, connect and TLS together"},
    {"max-body-bytes", K_SIZE, AT(max_body_bytes), 0, GIB, "10m", "SIZE",
     "largest body of a response, decoded"},
    {"user-agent", K_TEXT, AT(user_agent), 1, 256, NULL, "TEXT",
     "the User-Agent field of requests"},

    {.help = "Network"},
    {"allow-net", K_NETS, AT(allow_net), 0, 0, NULL, "CIDR",
     "fetch from this network although it is private, local or\n"
     "reserved; several: a list with commas, or the option again\n"
     "(file, environment and command line add up)"},
    {"dns-servers", K_SERVERS, AT(dns_servers), 1, 2000, NULL, "IP[:PORT],...",
     "name servers; default: those of /etc/resolv.conf"},
    {"ca-file", K_FILE, AT(ca_file), 1, 4000, NULL, "PEM",
     "trusted certificates instead of the system's"},

    {.help = "Backup"},
    {"backup-max-log", K_SIZE, AT(backup_max_log), 1024 * 1024, 1024 * GIB, "auto", "SIZE|auto",
     "give up when the running service's log has grown by so\n"
     "much; auto: as much as the database has, at least 1g"},

    {.help = "Other"},
    {"config", K_CONFIG, 0, 0, 0, NULL, "FILE",
     "read options from FILE: lines of \"name = value\""},
    {"check", K_FLAG, AT(check), 0, 0, NULL, NULL,
     "check the configuration and the data directory, print the\nconfiguration and exit"},
    {"list-routes", K_FLAG, AT(list_routes), 0, 0, NULL, NULL, "print the API's routes and exit"},
    {"version", K_VERSION, 0, 0, 0, NULL, NULL, "print the version and exit"},
    {"help", K_HELP, 0, 0, 0, NULL, NULL, "print this text and exit"},
};

/* The first argument that is no option. */
static const struct {
    const char *name;
    enum command command;
    const char *operand; /* NULL: it takes none */
    const char *help;
} commands[] = {
    {"backup", COMMAND_BACKUP, "FILE",
     "copy the database of --data to FILE (which must not be there), while\n"
     "the service runs or not; to batchfetch.db in it if it is a directory"},
};

/* Where a value comes from, for messages. */
struct source {
    const char *what; /* "command line", "environment", or the file's name */
    int line;         /* in a file; 0: none */
};

/* ---- messages ---- */

static bool reloading; /* messages go to the log */

/* name in the spelling of the source: --max-urls, BATCHFETCH_MAX_URLS, max-urls. */
static void complain(const struct source *s, const char *name, const char *fmt, ...)
    PRINTF_LIKE(3, 4);

static void complain(const struct source *s, const char *name, const char *fmt, ...)
{
    char text[1024], line[16] = "";
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    /* What was given is quoted in it: one line, whatever it holds. */
    for (char *p = text; *p != '\0'; p++)
        if ((unsigned char)*p < 0x20 || *p == 0x7f)
            *p = '?';
    if (s->line > 0)
        snprintf(line, sizeof(line), ":%d", s->line);
    if (reloading) {
        log_event(LOG_ERROR, "reload_failed", LOG_S("source", s->what), LOG_I("line", s->line),
                  LOG_S("option", name != NULL ? name : ""), LOG_S("msg", text));
        health_set(HEALTH_RELOAD_FAILED, "%s%s: %s%s%s", s->what, line, name != NULL ? name : "",
                   name != NULL ? ": " : "", text);
        return;
    }
    fprintf(stderr, "batchfetch: %s%s: %s%s%s\n", s->what, line, name != NULL ? name : "",
            name != NULL ? ": " : "", text);
}

static void env_name(const char *option, char *out, size_t cap)
{
    size_t at = (size_t)snprintf(out, cap, "BATCHFETCH_");

    for (; *option != '\0' && at + 1 < cap; option++)
        out[at++] = *option == '-' ? '_' : (char)toupper((unsigned char)*option);
    out[at] = '\0';
}

/* Levenshtein's distance, of names up to 31 bytes. */
static size_t distance(const char *a, const char *b)
{
    size_t row[32], n = strlen(b);

    if (n >= ARRAY_LEN(row) || strlen(a) >= ARRAY_LEN(row))
        return SIZE_MAX;
    for (size_t j = 0; j <= n; j++)
        row[j] = j;
    for (size_t i = 1; a[i - 1] != '\0'; i++) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= n; j++) {
            size_t best = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            if (row[j] + 1 < best)
                best = row[j] + 1;
            if (row[j - 1] + 1 < best)
                best = row[j - 1] + 1;
            row[j] = best;
        }
    }
    return row[n];
}

static const struct option *find(const char *name)
{
    for (size_t i = 0; i < ARRAY_LEN(options); i++)
        if (options[i].name != NULL && strcmp(options[i].name, name) == 0)
            return &options[i];
    return NULL;
}

/* The option that was probably meant, or NULL. */
static const struct option *nearest(const char *name)
{
    const struct option *best = NULL;
    size_t best_d = SIZE_MAX;

    for (size_t i = 0; i < ARRAY_LEN(options); i++) {
        if (options[i].name == NULL)
            continue;
        size_t d = distance(name, options[i].name);
        /* A beginning of the name counts as near: --max-conn. */
        if (strlen(name) >= 3 && strncmp(options[i].name, name, strlen(name)) == 0)
            d = 1;
        if (d < best_d) {
            best = &options[i];
            best_d = d;
        }
    }
    return best_d <= 1 + strlen(name) / 4 ? best : NULL;
}

/* ---- values: each returns NULL, or the reason why the value is refused ---- */

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

/* The words that an option takes; their numbers are its values. */
static const char *const words[][5] = {
    [K_LEVEL] = {"error", "warn", "info", "debug"},
    [K_FORMAT] = {"text", "json"},
    [K_YES] = {"no", "yes"},
};

static const char *set_word(enum kind k, const char *v, uint32_t *out)
{
    for (uint32_t i = 0; words[k][i] != NULL; i++) {
        if (strcmp(words[k][i], v) == 0) {
            *out = i;
            return NULL;
        }
    }
    return k == K_LEVEL    ? "it is not one of error, warn, info, debug"
           : k == K_FORMAT ? "it is not one of text, json"
                           : "it is not one of yes, no";
}

static const char *set_value(struct config *c, const struct option *o, const char *v)
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
        if (o->offset == AT(max_disk) && strcmp(v, "none") == 0) {
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

/* ---- the sources ---- */

static int set_defaults(struct config *c)
{
    struct buf b;
    const char *state = getenv("STATE_DIRECTORY"), *xdg = getenv("XDG_DATA_HOME");
    const char *home = getenv("HOME");

    *c = (struct config){0};
    for (size_t i = 0; i < ARRAY_LEN(options); i++)
        if (options[i].value != NULL)
            ASSERT(set_value(c, &options[i], options[i].value) == NULL);
    buf_init(&b, 512);
    ASSERT(buf_addf(&b, "batchfetch/%s", batchfetch_version) == 0 && buf_addc(&b, '\0') == 0);
    c->user_agent = b.data;

    /* No home: no default. That is an error only if nobody names a directory. */
    buf_init(&b, 8192);
    int rc = 0;
    if (state != NULL && state[0] == '/')
        rc = buf_add(&b, state, strcspn(state, ":")); /* systemd may name several */
    else if (xdg != NULL && xdg[0] == '/')
        rc = buf_addf(&b, "%s/batchfetch", xdg);
    else if (home != NULL && home[0] == '/')
        rc = buf_addf(&b, "%s/.local/share/batchfetch", home);
    if (rc == 0 && b.len > 0)
        rc = buf_addc(&b, '\0');
    if (rc < 0)
        buf_reset(&b);
    if (b.len == 0)
        buf_fini(&b);
    c->data = b.data;
    return 0;
}

static int unknown(const struct source *s, const char *name, const char *prefix)
{
    const struct option *near = nearest(name);

    if (near != NULL)
        complain(s, NULL, "unknown option \"%s%s\"; did you mean \"%s%s\"?", prefix, name, prefix,
                 near->name);
    else
        complain(s, NULL, "unknown option \"%s%s\"; --help lists them all", prefix, name);
    return E_INVAL;
}

static int set_from(struct config *c, const struct source *s, const struct option *o,
                    const char *shown, const char *v)
{
    const char *why = set_value(c, o, v);

    if (why != NULL) {
        complain(s, shown, "\"%s\" is refused: %s", v, why);
        return E_INVAL;
    }
    return 0;
}

/* One line without its line break; changes it. */
static int file_line(struct config *c, const struct source *s, char *line)
{
    while (isspace((unsigned char)*line))
        line++;
    size_t n = strlen(line);
    while (n > 0 && isspace((unsigned char)line[n - 1]))
        line[--n] = '\0';
    if (n == 0 || line[0] == '#')
        return 0;

    char *value = strchr(line, '=');
    if (value == NULL) {
        complain(s, NULL, "\"%s\" is not of the form \"name = value\"", line);
        return E_INVAL;
    }
    char *end = value;
    while (end > line && isspace((unsigned char)end[-1]))
        end--;
    *end = '\0';
    for (value++; isspace((unsigned char)*value); value++)
        ;
    const struct option *o = find(line);
    if (o == NULL)
        return unknown(s, line, "");
    if (o->arg == NULL || o->kind == K_CONFIG) {
        complain(s, line, "this option is for the command line only");
        return E_INVAL;
    }
    return set_from(c, s, o, line, value);
}

static int read_file(struct config *c, const char *path)
{
    struct source s = {path, 0};
    char line[8192];
    int rc = 0;
    FILE *f = fopen(path, "re");

    if (f == NULL) {
        complain(&s, NULL, "cannot read the configuration file: %s", strerror(errno));
        return E_INVAL;
    }
    while (rc == 0 && fgets(line, sizeof(line), f) != NULL) {
        s.line++;
        size_t n = strlen(line);
        if (n > 0 && line[n - 1] == '\n') {
            line[n - 1] = '\0';
        } else if (!feof(f)) {
            /* fgets() stops at the buffer's end; a NUL byte looks the same. */
            complain(&s, NULL, "the line is longer than 8190 bytes or contains a NUL byte");
            rc = E_INVAL;
            break;
        }
        rc = file_line(c, &s, line);
    }
    if (rc == 0 && ferror(f)) {
        s.line = 0;
        complain(&s, NULL, "cannot read the configuration file: %s", strerror(errno));
        rc = E_INVAL;
    }
    fclose(f);
    return rc;
}

/* What Kubernetes sets in every container when there is a service of our name: BATCHFETCH_PORT,
 * BATCHFETCH_PORT_80_TCP, BATCHFETCH_SERVICE_HOST and so on. */
static bool is_runtimes(const char *option)
{
    return getenv("BATCHFETCH_SERVICE_HOST") != NULL &&
           (strncmp(option, "service-", 8) == 0 || strncmp(option, "port-", 5) == 0 ||
            strcmp(option, "port") == 0);
}

static int read_environment(struct config *c)
{
    static const struct source s = {"environment", 0};
    char name[64];

    for (size_t i = 0; i < ARRAY_LEN(options); i++) {
        const struct option *o = &options[i];
        if (o->name == NULL || o->arg == NULL || o->kind == K_CONFIG)
            continue;
        env_name(o->name, name, sizeof(name));
        const char *v = getenv(name);
        if (v == NULL)
            continue;
        int rc = set_from(c, &s, o, name, v);
        if (rc < 0)
            return rc;
    }
    /* A name that is nearly one of ours is a mistake, another one probably too. */
    for (char **e = environ; e != NULL && *e != NULL; e++) {
        if (strncmp(*e, "BATCHFETCH_", 11) != 0)
            continue;
        char option[48];
        size_t n = 0;
        for (const char *p = *e + 11; *p != '\0' && *p != '=' && n + 1 < sizeof(option); p++)
            option[n++] = *p == '_' ? '-' : (char)tolower((unsigned char)*p);
        option[n] = '\0';
        const struct option *near = find(option) == NULL ? nearest(option) : NULL;
        if (near != NULL && near->arg != NULL) {
            env_name(near->name, name, sizeof(name));
            complain(&s, NULL, "unknown variable %.*s; did you mean %s?", (int)strcspn(*e, "="), *e,
                     name);
            return E_INVAL;
        }
        const struct option *known = find(option);
        if (known != NULL ? known->arg == NULL : !is_runtimes(option))
            complain(&s, NULL, "%.*s is ignored: %s", (int)strcspn(*e, "="), *e,
                     known != NULL ? "command line only" : "there is no such option");
    }
    return 0;
}

/* An argument that is no option, nor the value of one. */
static int take_word(struct config *c, const struct source *s, const char *a)
{
    if (c->command == COMMAND_SERVE) {
        for (size_t i = 0; i < ARRAY_LEN(commands); i++) {
            if (strcmp(a, commands[i].name) == 0) {
                c->command = commands[i].command;
                return 0;
            }
        }
    }
    if (c->command != COMMAND_SERVE && c->operand == NULL && a[0] != '-' && a[0] != '\0') {
        c->operand = xstrdup(a);
        return 0;
    }
    complain(s, NULL, "unexpected argument \"%s\"; options begin with --", a);
    return E_INVAL;
}

static int check_operand(const struct config *c)
{
    static const struct source s = {"command line", 0};
    for (size_t i = 0; i < ARRAY_LEN(commands); i++) {
        if (c->command == commands[i].command && commands[i].operand != NULL &&
            c->operand == NULL) {
            complain(&s, commands[i].name, "%s is missing", commands[i].operand);
            return E_INVAL;
        }
    }
    return 0;
}

/* Goes over the arguments and hands each to fn; used twice: to find --config, then for all. */
static int command_line(int argc, char **argv, struct config *c, const char **config)
{
    static const struct source s = {"command line", 0};
    char name[64], shown[80];

    for (int i = 1; i < argc; i++) {
        const char *a = argv[i];
        if (strcmp(a, "-h") == 0)
            a = "--help";
        if (strcmp(a, "-V") == 0)
            a = "--version";
        if (strncmp(a, "--", 2) != 0 || a[2] == '\0') {
            if (config == NULL && take_word(c, &s, a) != 0)
                return E_INVAL;
            continue;
        }
        size_t n = strcspn(a + 2, "=");
        const char *v = a[2 + n] == '=' ? a + 2 + n + 1 : NULL;
        snprintf(name, sizeof(name), "%.*s", (int)(n < sizeof(name) ? n : sizeof(name) - 1), a + 2);
        snprintf(shown, sizeof(shown), "--%s", name);
        const struct option *o = find(name);
        if (o == NULL)
            return unknown(&s, name, "--");
        if (o->arg == NULL && v != NULL) {
            complain(&s, shown, "this option takes no value");
            return E_INVAL;
        }
        if (o->arg != NULL && v == NULL) {
            /* The next option is no value: it is more likely that the value was forgotten. */
            if (i + 1 >= argc || strncmp(argv[i + 1], "--", 2) == 0) {
                complain(&s, shown, "the value is missing (%s)", o->arg);
                return E_INVAL;
            }
            v = argv[++i];
        }
        if (config != NULL) {
            if (o->kind == K_CONFIG)
                *config = v;
            else if (o->kind == K_HELP || o->kind == K_VERSION)
                return o->kind == K_HELP ? 1 : 2;
            continue;
        }
        int rc = o->arg == NULL && o->kind != K_FLAG ? 0 : set_from(c, &s, o, shown, v);
        if (rc < 0)
            return rc;
    }
    return 0;
}

/* `left`, and the text beside it; no line break at its end. */
static void print_lines(const char *left, const char *text)
{
    for (const char *line = text;; line++) {
        size_t n = strcspn(line, "\n");
        printf("%-31s %.*s", left, (int)n, line);
        left = "";
        line += n;
        if (*line == '\0')
            break;
        putchar('\n');
    }
}

static void print_help(void)
{
    char left[64];

    printf(
        "batchfetch %s: fetches batches of URLs through an HTTP API\n\n"
        "Usage: batchfetch [OPTION]...\n"
        "       batchfetch COMMAND [OPTION]...\n\n"
        "Each option but those of the last group can also be given as an environment variable\n"
        "(--max-urls as BATCHFETCH_MAX_URLS) or in the file of --config or BATCHFETCH_CONFIG\n"
        "(max-urls = N). The command line wins over the environment, and that over the file.\n"
        "SIZE is in bytes, or with k, m, g for KiB, MiB, GiB. DURATION is a number with s, m, h, d\n"
        "or w (seconds to weeks): 90s, 12h, 7d.\n",
        batchfetch_version);
    printf("\nCommands:\n");
    for (size_t i = 0; i < ARRAY_LEN(commands); i++) {
        snprintf(left, sizeof(left), "  %s %s", commands[i].name, commands[i].operand);
        print_lines(left, commands[i].help);
        putchar('\n');
    }
    for (size_t i = 0; i < ARRAY_LEN(options); i++) {
        const struct option *o = &options[i];
        if (o->name == NULL) {
            printf("\n%s:\n", o->help);
            continue;
        }
        snprintf(left, sizeof(left), "  --%s%s%s", o->name, o->arg != NULL ? " " : "",
                 o->arg != NULL ? o->arg : "");
        print_lines(left, o->help);
        if (o->value != NULL)
            printf(" (default: %s)", o->value);
        else if (strcmp(o->name, "user-agent") == 0)
            printf(" (default: batchfetch/%s)", batchfetch_version);
        else if (strcmp(o->name, "data") == 0)
            printf("\n%-31s (default: $STATE_DIRECTORY, $XDG_DATA_HOME/batchfetch\n"
                   "%-31s or ~/.local/share/batchfetch)",
                   "", "");
        putchar('\n');
    }
}

int config_load(struct config *c, int argc, char **argv)
{
    const char *file = getenv("BATCHFETCH_CONFIG");
    int rc = command_line(argc, argv, NULL, &file);

    *c = (struct config){0};
    if (rc > 0) {
        if (rc == 1)
            print_help();
        else
            printf("batchfetch %s\n", batchfetch_version);
        return 1;
    }
    if (rc == 0)
        rc = set_defaults(c);
    if (rc == 0 && file != NULL)
        rc = read_file(c, file);
    if (rc == 0)
        rc = read_environment(c);
    if (rc == 0)
        rc = command_line(argc, argv, c, NULL);
    if (rc == 0)
        rc = check_operand(c);
    if (rc == 0 && c->data == NULL) {
        complain(&(struct source){"command line", 0}, "--data",
                 "there is no default, because HOME is not set: name a directory");
        rc = E_INVAL;
    }
    if (rc < 0)
        config_fini(c);
    return rc;
}

/* ---- a reload ---- */

/* Those that may change while the service runs; their members are atomic. */
static const char *const live_options[] = {
    "max-parallel",  "max-per-host", "rate-per-host", "timeout-ms",   "connect-timeout-ms",
    "drain-timeout", "log-level",    "log-format",    "log-requests", "retain",
};

static bool is_live(const struct option *o)
{
    for (size_t i = 0; i < ARRAY_LEN(live_options); i++)
        if (strcmp(live_options[i], o->name) == 0)
            return true;
    return false;
}

static bool same_text(const char *a, const char *b)
{
    return a == NULL || b == NULL ? a == b : strcmp(a, b) == 0;
}

static bool same_value(const struct option *o, const struct config *a, const struct config *b)
{
    const void *x = (const char *)a + o->offset, *y = (const char *)b + o->offset;
    switch (o->kind) {
    case K_NUM32:
    case K_RATE:
    case K_LEVEL:
    case K_FORMAT:
    case K_YES: return *(const _Atomic uint32_t *)x == *(const _Atomic uint32_t *)y;
    case K_NUM64:
    case K_SIZE:
    case K_DURATION: return *(const _Atomic uint64_t *)x == *(const _Atomic uint64_t *)y;
    case K_TEXT:
    case K_FILE:
    case K_SERVERS: return same_text(*(char *const *)x, *(char *const *)y);
    case K_LISTEN:
        return same_text(a->listen_host, b->listen_host) && a->listen_port == b->listen_port;
    case K_NETS:
        return a->n_allow_net == b->n_allow_net &&
               (a->n_allow_net == 0 ||
                memcmp(a->allow_net, b->allow_net, a->n_allow_net * sizeof(*a->allow_net)) == 0);
    default: return true;
    }
}

static void take_over(const struct option *o, struct config *c, const struct config *next)
{
    void *to = (char *)c + o->offset;
    const void *from = (const char *)next + o->offset;
    if (o->kind == K_DURATION || o->kind == K_NUM64 || o->kind == K_SIZE)
        atomic_store((_Atomic uint64_t *)to, *(const uint64_t *)from);
    else
        atomic_store((_Atomic uint32_t *)to, *(const uint32_t *)from);
    log_always(LOG_INFO, "setting_changed", LOG_S("option", o->name));
}

int config_reload(struct config *c, int argc, char **argv)
{
    struct config next;
    reloading = true;
    int rc = config_load(&next, argc, argv);
    reloading = false;
    if (rc != 0)
        return E_INVAL;
    for (size_t i = 0; i < ARRAY_LEN(options); i++) {
        const struct option *o = &options[i];
        if (o->name == NULL || same_value(o, c, &next))
            continue;
        if (is_live(o))
            take_over(o, c, &next);
        else
            log_event(LOG_WARN, "setting_needs_restart", LOG_S("option", o->name));
    }
    config_fini(&next);
    return 0;
}

void config_fini(struct config *c)
{
    free(c->operand);
    free(c->listen_host);
    free(c->data);
    free(c->allow_net);
    free(c->dns_servers);
    free(c->ca_file);
    free(c->user_agent);
    *c = (struct config){0};
}

static void print_rate(const char *name, uint32_t rate)
{
    if (rate == 0)
        printf("%s = none\n", name);
    else
        printf(rate % 1000 != 0 ? "%s = %u.%03u\n" : "%s = %u\n", name, rate / 1000, rate % 1000);
}

static void print_duration(const struct option *o, uint64_t s)
{
    const char *name = o->name;
    if (s == 0 && o->min > 0)
        printf("%s = never\n", name);
    else if (s > 0 && s % 86400 == 0)
        printf("%s = %" PRIu64 "d\n", name, s / 86400);
    else
        printf("%s = %" PRIu64 "s\n", name, s);
}

/* Options without a value are shown as comments, so that the output can be read as a file again. */
void config_print(const struct config *c)
{
    for (size_t i = 0; i < ARRAY_LEN(options); i++) {
        const struct option *o = &options[i];
        const void *m = (const char *)c + o->offset;
        char ip[INET6_ADDRSTRLEN];
        uint64_t n;

        if (o->name == NULL || o->arg == NULL || o->kind == K_CONFIG)
            continue;
        switch (o->kind) {
        case K_NUM32:
        case K_NUM64:
        case K_SIZE:
            n = o->kind == K_NUM32 ? *(const uint32_t *)m : *(const uint64_t *)m;
            if (n == 0 && o->value != NULL && strcmp(o->value, "auto") == 0)
                printf("%s = auto\n", o->name);
            else if (o->kind == K_SIZE && n == DISK_NONE)
                printf("%s = none\n", o->name);
            else
                printf("%s = %" PRIu64 "\n", o->name, n);
            break;
        case K_DURATION: print_duration(o, *(const uint64_t *)m); break;
        case K_RATE: print_rate(o->name, *(const uint32_t *)m); break;
        case K_LISTEN:
            printf(strchr(c->listen_host, ':') != NULL ? "%s = [%s]:%u\n" : "%s = %s:%u\n", o->name,
                   c->listen_host, (unsigned)c->listen_port);
            break;
        case K_NETS:
            printf("%s%s", c->n_allow_net > 0 ? "" : "# ", o->name);
            printf(" =");
            for (size_t k = 0; k < c->n_allow_net; k++)
                printf("%s%s/%u", k > 0 ? "," : " ",
                       inet_ntop(c->allow_net[k].family, c->allow_net[k].addr, ip, sizeof(ip)),
                       c->allow_net[k].prefix);
            putchar('\n');
            break;
        case K_LEVEL:
        case K_FORMAT:
        case K_YES: printf("%s = %s\n", o->name, words[o->kind][*(const uint32_t *)m]); break;
        default:
            if (*(char *const *)m != NULL)
                printf("%s = %s\n", o->name, *(char *const *)m);
            else
                printf("# %s =\n", o->name);
            break;
        }
    }
}
