#include "server/log.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "server/base.h"
#include "server/metrics.h"
#include "server/redact.h"

enum {
    LINE_MAX_BYTES = 4096,
    TEXT_MAX = 1024,  /* of one field */
    TAIL = 32,        /* kept free: what ends a line that is full */
    EVENTS_MAX = 128, /* kinds of events whose number is bounded */
    STALL_MS = 50,    /* to wait for who reads the log */
    WINDOW_US = 10 * 1000 * 1000,
    BAD_MAX = 20,    /* lines of one event in a window: errors and warnings … */
    GOOD_MAX = 2000, /* … and information. Who asks for debug gets all of it */
};

static atomic_int log_max = LOG_INFO;
static _Atomic int wanted_format;
static _Thread_local enum log_format format; /* of the line being made */
static bool journal;
static _Thread_local const char *request;

static const char *const level_names[] = {"error", "warn", "info", "debug"};

void log_set_level(enum log_level level)
{
    atomic_store_explicit(&log_max, (int)level, memory_order_relaxed);
}

bool log_enabled(enum log_level level)
{
    return (int)level <= atomic_load_explicit(&log_max, memory_order_relaxed);
}

void log_set_format(enum log_format f)
{
    atomic_store_explicit(&wanted_format, (int)f, memory_order_relaxed);
}

void log_find_journal(void)
{
    const char *where = getenv("JOURNAL_STREAM");
    char own[64];
    struct stat st;
    journal = false;
    if (where == NULL || fstat(STDERR_FILENO, &st) != 0)
        return;
    snprintf(own, sizeof(own), "%ju:%ju", (uintmax_t)st.st_dev, (uintmax_t)st.st_ino);
    journal = strcmp(where, own) == 0;
}

void log_request(const char *id)
{
    request = id;
}

const char *log_request_id(void)
{
    return request != NULL ? request : "";
}

/* ---- how often ---- */

struct event {
    const char *name; /* a constant of the caller's: compared by address, then by text */
    int64_t since_us;
    uint32_t lines, left_out;
};

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static struct event events[EVENTS_MAX];
static unsigned n_events;

static struct event *find_event(const char *name)
{
    for (unsigned i = 0; i < n_events; i++) {
        if (events[i].name == name || strcmp(events[i].name, name) == 0)
            return &events[i];
    }
    if (n_events == EVENTS_MAX)
        return NULL;
    events[n_events].name = name;
    return &events[n_events++];
}

/* Whether this line may be written. */
static bool may_write(enum log_level level, const char *name)
{
    if (level == LOG_DEBUG)
        return true;
    int64_t now = now_us();
    pthread_mutex_lock(&mutex);
    struct event *e = find_event(name);
    bool may = true;
    if (e != NULL) {
        if (now - e->since_us >= WINDOW_US && e->left_out == 0) { /* else: tell_left_out */
            e->since_us = now;
            e->lines = 0;
        }
        may = e->lines < (level == LOG_INFO ? GOOD_MAX : BAD_MAX);
        e->lines += may;
        e->left_out += !may;
    }
    pthread_mutex_unlock(&mutex);
    return may;
}

/* ---- one line ---- */

struct line {
    char p[LINE_MAX_BYTES];
    size_t n;
};

static bool add(struct line *l, const char *p, size_t n)
{
    if (n > sizeof(l->p) - TAIL - l->n)
        return false;
    memcpy(l->p + l->n, p, n);
    l->n += n;
    return true;
}

static bool adds(struct line *l, const char *s)
{
    return add(l, s, strlen(s));
}

/* The length of the character at p; 0: not UTF-8. */
static size_t character(const uint8_t *p, size_t n)
{
    size_t len = p[0] < 0xc0 ? 1 : p[0] >= 0xf0 ? 4 : p[0] >= 0xe0 ? 3 : 2;
    return len <= n && utf8_valid((const char *)p, len) ? len : 0;
}

/* Control characters, C1 ones too, and the bidirectional ones that reorder what a terminal shows
 * (U+202A to U+202E, U+2066 to U+2069), as well as U+2028 and U+2029, which end lines for some. */
static bool is_control(const uint8_t *p, size_t len)
{
    if (len == 1)
        return p[0] < 0x20 || p[0] == 0x7f;
    if (len == 2)
        return p[0] == 0xc2 && p[1] < 0xa0;
    return len == 3 && p[0] == 0xe2 &&
           ((p[1] == 0x80 && p[2] >= 0xa8 && p[2] <= 0xae) ||
            (p[1] == 0x81 && p[2] >= 0xa6 && p[2] <= 0xa9));
}

static bool add_character(struct line *l, const uint8_t *p, size_t len)
{
    char hex[16];
    if (len == 0) { /* a byte that is not UTF-8; JSON has no way to say it */
        if (format == LOG_JSON)
            return adds(l, "\\ufffd");
        snprintf(hex, sizeof(hex), "\\x%02x", p[0]);
        return adds(l, hex);
    }
    if (p[0] == '"' || p[0] == '\\') {
        char two[2] = {'\\', (char)p[0]};
        return add(l, two, 2);
    }
    if (!is_control(p, len))
        return add(l, (const char *)p, len);
    if (p[0] == '\n')
        return add(l, "\\n", 2);
    unsigned code = len == 1   ? p[0]
                    : len == 2 ? (p[0] & 31U) << 6 | (p[1] & 63U)
                               : (p[0] & 15U) << 12 | (p[1] & 63U) << 6 | (p[2] & 63U);
    if (format == LOG_JSON || len == 3)
        snprintf(hex, sizeof(hex), "\\u%04x", code);
    else
        snprintf(hex, sizeof(hex), "\\x%02x", code);
    return adds(l, hex);
}

static bool is_plain(const char *p, size_t n)
{
    static const char safe[] = "-._/:@%+,;*()[]{}~!$&?#'";
    for (size_t i = 0; i < n; i++) {
        char c = p[i];
        bool word = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
        if (!word && (c == '\0' || strchr(safe, c) == NULL))
            return false;
    }
    return n > 0;
}

static bool add_text(struct line *l, const char *p, size_t n)
{
    if (format == LOG_TEXT && is_plain(p, n))
        return add(l, p, n);
    bool ok = add(l, "\"", 1);
    for (size_t i = 0, len; ok && i<n; i += len> 0 ? len : 1) {
        len = character((const uint8_t *)p + i, n - i);
        ok = add_character(l, (const uint8_t *)p + i, len);
    }
    return ok && add(l, "\"", 1);
}

static bool add_key(struct line *l, const char *key)
{
    if (format == LOG_JSON)
        return adds(l, l->p[l->n - 1] == '{' ? "\"" : ",\"") && adds(l, key) && adds(l, "\":");
    return adds(l, " ") && adds(l, key) && adds(l, "=");
}

/* What does not fit in is left out whole: the line stays well-formed. */
static void add_field(struct line *l, const struct log_field *f)
{
    char text[TEXT_MAX];
    size_t before = l->n, n;
    bool ok = true;
    if (f->type == LOG_TYPE_TEXT && f->text == NULL)
        return;
    ok = add_key(l, f->key);
    switch (f->type) {
    case LOG_TYPE_TEXT:
        n = f->len == SIZE_MAX ? strnlen(f->text, TEXT_MAX + 1) : f->len;
        n = redact_text(text, sizeof(text), f->text, n > TEXT_MAX ? TEXT_MAX : n, n > TEXT_MAX);
        ok = ok && add_text(l, text, n);
        break;
    case LOG_TYPE_MS:
        snprintf(text, sizeof(text), "%" PRId64 ".%03d", f->i / 1000, (int)(f->i % 1000));
        ok = ok && adds(l, text);
        break;
    default:
        if (f->type == LOG_TYPE_INT)
            snprintf(text, sizeof(text), "%" PRId64, f->i);
        else
            snprintf(text, sizeof(text), "%" PRIu64, f->u);
        ok = ok && adds(l, text);
    }
    if (!ok)
        l->n = before;
}

static void add_head(struct line *l, enum log_level level, const char *event)
{
    static const int syslog[] = {3, 4, 6, 7}; /* sd-daemon(3) */
    char head[96];
    struct tm tm;
    int64_t ms = wall_ms();
    time_t sec = (time_t)(ms / 1000);
    if (gmtime_r(&sec, &tm) == NULL)
        memset(&tm, 0, sizeof(tm));
    if (journal) {
        snprintf(head, sizeof(head), "<%d>", syslog[level]);
        (void)adds(l, head);
    }
    snprintf(head, sizeof(head), "%04d-%02d-%02dT%02d:%02d:%02d.%03dZ", tm.tm_year + 1900,
             tm.tm_mon + 1, tm.tm_mday, tm.tm_hour, tm.tm_min, tm.tm_sec, (int)(ms % 1000));
    if (format == LOG_JSON) {
        (void)adds(l, "{");
        add_field(l, &LOG_S("time", head));
        add_field(l, &LOG_S("level", level_names[level]));
        add_field(l, &LOG_S("event", event));
        return;
    }
    if (!journal)
        (void)(adds(l, head) && adds(l, " "));
    (void)(adds(l, level_names[level]) && adds(l, " ") && adds(l, event));
}

/* A log that cannot be written, or that nobody reads, is no reason to stop: then the line is lost.
 * Where poll(2) says that a pipe can be written to, there is room for PIPE_BUF bytes: a whole line. */
static bool put(const struct line *l)
{
    static pthread_mutex_t one = PTHREAD_MUTEX_INITIALIZER;
    static bool stalled; /* `one` */
    struct pollfd p = {.fd = STDERR_FILENO, .events = POLLOUT};
    _Static_assert(LINE_MAX_BYTES <= PIPE_BUF, "a line is written at once or not at all");
    pthread_mutex_lock(&one);
    stalled = poll(&p, 1, stalled ? 0 : STALL_MS) != 1;
    bool done = !stalled && write(STDERR_FILENO, l->p, l->n) == (ssize_t)l->n;
    pthread_mutex_unlock(&one);
    return done;
}

static void emit(enum log_level level, const char *event, const struct log_field *fields)
{
    struct line l = {.n = 0};
    format = (enum log_format)atomic_load_explicit(&wanted_format, memory_order_relaxed);
    add_head(&l, level, event);
    add_field(&l, &LOG_S("request", request));
    for (; fields->type != LOG_TYPE_NONE; fields++)
        add_field(&l, fields);
    if (format == LOG_JSON)
        l.p[l.n++] = '}';
    l.p[l.n++] = '\n';
    if (!put(&l))
        metric_add(METRIC_LOG_SUPPRESSED, 1);
}

/* What was left out of events whose window is over; `all`: of all. */
static void tell_left_out(bool all)
{
    static int64_t last_us; /* mutex */
    int64_t now = now_us();
    pthread_mutex_lock(&mutex);
    bool look = all || now - last_us >= WINDOW_US;
    if (look)
        last_us = now;
    for (unsigned i = 0; look && i < n_events; i++) {
        struct event *e = &events[i];
        if (e->left_out == 0 || (!all && now - e->since_us < WINDOW_US))
            continue;
        emit(LOG_WARN, "log_left_out",
             (const struct log_field[]){LOG_S("of", e->name), LOG_U("lines", e->left_out), {0}});
        e->lines = e->left_out = 0;
    }
    pthread_mutex_unlock(&mutex);
}

void log_write(enum log_level level, const char *event, const struct log_field *fields)
{
    int saved = errno; /* a caller may log first and look at errno after */
    if (level != LOG_DEBUG)
        tell_left_out(false);
    bool may = may_write(level, event);
    if (may)
        emit(level, event, fields);
    metric_add(may ? METRIC_LOG_LINES + (unsigned)level : METRIC_LOG_SUPPRESSED, 1);
    errno = saved;
}

void log_write_always(enum log_level level, const char *event, const struct log_field *fields)
{
    int saved = errno;
    emit(level, event, fields);
    metric_add(METRIC_LOG_LINES + (unsigned)level, 1);
    errno = saved;
}

void log_finish(void)
{
    tell_left_out(true);
}

void log_line(enum log_level level, const char *event, const char *fmt, ...)
{
    char text[2 * TEXT_MAX]; /* longer than what is written: redact.h is told that it was cut */
    va_list ap;
    if (!log_enabled(level))
        return;
    int saved = errno;
    va_start(ap, fmt);
    int n = vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    errno = saved;
    if (n >= 0)
        log_event(level, event, LOG_S("msg", text));
}
