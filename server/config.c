/* The options: one table, read by a small parser that the configuration file, the environment, the
 * command line, --help and --check share. Runs once, on the main thread, before any other starts;
 * so it writes to stdout and stderr directly. */
#include "server/config_int.h"

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

#define AT(m) offsetof(struct config, m)
#define GIB ((uint64_t)1 << 30)

/* A row without a kind's data and with a NULL name starts a group of --help. */
const struct option config_options[] = {
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

const size_t config_n_options = ARRAY_LEN(config_options);

const struct config_command config_commands[] = {
    {"backup", COMMAND_BACKUP, "FILE",
     "copy the database of --data to FILE (which must not be there), while\n"
     "the service runs or not; to batchfetch.db in it if it is a directory"},
};
const size_t config_n_commands = ARRAY_LEN(config_commands);

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
    for (size_t i = 0; i < config_n_options; i++)
        if (config_options[i].name != NULL && strcmp(config_options[i].name, name) == 0)
            return &config_options[i];
    return NULL;
}

/* The option that was probably meant, or NULL. */
static const struct option *nearest(const char *name)
{
    const struct option *best = NULL;
    size_t best_d = SIZE_MAX;

    for (size_t i = 0; i < config_n_options; i++) {
        if (config_options[i].name == NULL)
            continue;
        size_t d = distance(name, config_options[i].name);
        /* A beginning of the name counts as near: --max-conn. */
        if (strlen(name) >= 3 && strncmp(config_options[i].name, name, strlen(name)) == 0)
            d = 1;
        if (d < best_d) {
            best = &config_options[i];
            best_d = d;
        }
    }
    return best_d <= 1 + strlen(name) / 4 ? best : NULL;
}

/* ---- the sources ---- */

static int set_defaults(struct config *c)
{
    struct buf b;
    const char *state = getenv("STATE_DIRECTORY"), *xdg = getenv("XDG_DATA_HOME");
    const char *home = getenv("HOME");

    *c = (struct config){0};
    for (size_t i = 0; i < config_n_options; i++)
        if (config_options[i].value != NULL)
            ASSERT(config_set(c, &config_options[i], config_options[i].value) == NULL);
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
    const char *why = config_set(c, o, v);

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

    for (size_t i = 0; i < config_n_options; i++) {
        const struct option *o = &config_options[i];
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
        for (size_t i = 0; i < config_n_commands; i++) {
            if (strcmp(a, config_commands[i].name) == 0) {
                c->command = config_commands[i].command;
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
    for (size_t i = 0; i < config_n_commands; i++) {
        if (c->command == config_commands[i].command && config_commands[i].operand != NULL &&
            c->operand == NULL) {
            complain(&s, config_commands[i].name, "%s is missing", config_commands[i].operand);
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

int config_load(struct config *c, int argc, char **argv)
{
    const char *file = getenv("BATCHFETCH_CONFIG");
    int rc = command_line(argc, argv, NULL, &file);

    *c = (struct config){0};
    if (rc > 0) {
        if (rc == 1)
            config_help();
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
    for (size_t i = 0; i < config_n_options; i++) {
        const struct option *o = &config_options[i];
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
