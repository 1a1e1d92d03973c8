/* The log: one line an event on stderr. base.h includes this.
 *
 *   2026-11-23T05:00:00.123Z info batch_ended batch=b_… total=10 failed=1
 *   {"time":"2026-11-23T05:00:00.123Z","level":"info","event":"batch_ended","batch":"b_…",…}
 *
 * Under systemd (its JOURNAL_STREAM is our stderr) a line begins with sd-daemon(3)'s <N> instead,
 * and text has no time: the journal has its own.
 *
 * Texts are redacted (redact.h), and what could forge a line or drive a terminal is escaped. An
 * event that comes very often is written only so many times in ten seconds; how many were left out
 * is written afterwards. Any thread. */
#ifndef SERVER_LOG_H
#define SERVER_LOG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum log_level { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG };
enum log_format { LOG_TEXT, LOG_JSON };

enum log_type { LOG_TYPE_NONE, LOG_TYPE_TEXT, LOG_TYPE_INT, LOG_TYPE_UINT, LOG_TYPE_MS };

struct log_field {
    const char *key;
    enum log_type type;
    const char *text; /* NULL: the field is left out */
    size_t len;       /* SIZE_MAX: up to the NUL */
    int64_t i;
    uint64_t u;
};

/* Fields; keys are words of ours: a-z and _. */
#define LOG_S(k, v)                                                     \
    (struct log_field)                                                  \
    {                                                                   \
        .key = (k), .type = LOG_TYPE_TEXT, .text = (v), .len = SIZE_MAX \
    }
#define LOG_OPT(k, v) LOG_S(k, (v)[0] != '\0' ? (v) : NULL) /* "": left out */
#define LOG_SPAN(k, p, n)                                          \
    (struct log_field)                                             \
    {                                                              \
        .key = (k), .type = LOG_TYPE_TEXT, .text = (p), .len = (n) \
    }
#define LOG_I(k, v)                                         \
    (struct log_field)                                      \
    {                                                       \
        .key = (k), .type = LOG_TYPE_INT, .i = (int64_t)(v) \
    }
#define LOG_U(k, v)                                           \
    (struct log_field)                                        \
    {                                                         \
        .key = (k), .type = LOG_TYPE_UINT, .u = (uint64_t)(v) \
    }
/* From microseconds; written as milliseconds. */
#define LOG_MS(k, us)                                       \
    (struct log_field)                                      \
    {                                                       \
        .key = (k), .type = LOG_TYPE_MS, .i = (int64_t)(us) \
    }

/* log_event(LOG_INFO, "batch_ended", LOG_S("batch", id), LOG_U("total", n)): `event` is a constant,
 * a-z and _. Nothing is evaluated if the level is off. */
#define log_event(level, event, ...)                                              \
    do {                                                                          \
        if (log_enabled(level))                                                   \
            log_write((level), (event),                                           \
                      (const struct log_field[]){__VA_ARGS__ __VA_OPT__(, ){0}}); \
    } while (0)

/* The same, whatever the level, and however many there are. */
#define log_always(level, event, ...) \
    log_write_always((level), (event), (const struct log_field[]){__VA_ARGS__ __VA_OPT__(, ){0}})

bool log_enabled(enum log_level level);
/* `fields` ends with a zeroed one. */
void log_write(enum log_level level, const char *event, const struct log_field *fields);
void log_write_always(enum log_level level, const char *event, const struct log_field *fields);
/* An event with one field, "msg". */
void log_line(enum log_level level, const char *event, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

enum { REQUEST_ID_SIZE = 129 }; /* of a request to the API, with its NUL */
/* Whatever this thread logs until the next call concerns this request (its text must live as long);
 * NULL: none. */
void log_request(const char *id);
/* What was set; "" for none. */
const char *log_request_id(void);

/* Before other threads log; the level may change at any time. */
void log_set_level(enum log_level level);
void log_set_format(enum log_format format);
/* Before the end: tells what was left out. */
void log_finish(void);
/* Looks whether stderr is the journal: JOURNAL_STREAM, systemd.exec(5). */
void log_find_journal(void);

#endif
