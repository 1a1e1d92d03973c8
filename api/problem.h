/* An error answer as a value, and as JSON (RFC 9457, application/problem+json). Pure. */
#ifndef API_PROBLEM_H
#define API_PROBLEM_H

#include "server/base.h"

/*        symbol, name ("/problems/NAME"), status, title */
#define PROBLEM_TYPES(X)                                                                       \
    X(PROBLEM_NONE, "", 0, "")                                                                 \
    X(PROBLEM_MALFORMED_JSON, "malformed-json", 400, "Malformed JSON")                         \
    X(PROBLEM_BAD_REQUEST, "bad-request", 400, "Bad request")                                  \
    X(PROBLEM_FORBIDDEN_ORIGIN, "forbidden-origin", 403, "Forbidden origin")                   \
    X(PROBLEM_NOT_FOUND, "not-found", 404, "Not found")                                        \
    X(PROBLEM_RESULT_NOT_READY, "result-not-ready", 404, "Result not ready")                   \
    X(PROBLEM_NO_BODY, "no-body", 404, "No body")                                              \
    X(PROBLEM_METHOD_NOT_ALLOWED, "method-not-allowed", 405, "Method not allowed")             \
    X(PROBLEM_NOT_ACCEPTABLE, "not-acceptable", 406, "Not acceptable")                         \
    X(PROBLEM_CONFLICT, "conflict", 409, "Conflict")                                           \
    X(PROBLEM_TOO_LARGE, "too-large", 413, "Too large")                                        \
    X(PROBLEM_UNSUPPORTED_MEDIA_TYPE, "unsupported-media-type", 415, "Unsupported media type") \
    X(PROBLEM_RANGE, "range-not-satisfiable", 416, "Range not satisfiable")                    \
    X(PROBLEM_MISDIRECTED, "misdirected", 421, "Misdirected request")                          \
    X(PROBLEM_INVALID_FIELD, "invalid-field", 422, "Invalid field")                            \
    X(PROBLEM_INVALID_URL, "invalid-url", 422, "Invalid URL")                                  \
    X(PROBLEM_EMPTY_BATCH, "empty-batch", 422, "Empty batch")                                  \
    X(PROBLEM_IDEMPOTENCY_KEY_REUSED, "idempotency-key-reused", 422, "Idempotency key reused") \
    X(PROBLEM_INTERNAL, "internal", 500, "Internal error")                                     \
    X(PROBLEM_BUSY, "busy", 503, "Busy")                                                       \
    X(PROBLEM_STORAGE, "storage", 503, "Storage failure")                                      \
    X(PROBLEM_STUCK, "stuck", 503, "Stuck")                                                    \
    X(PROBLEM_NOT_READY, "not-ready", 503, "Not ready")                                        \
    X(PROBLEM_DISK_FULL, "disk-full", 507, "Disk full")

enum problem_type {
#define X(sym, name, status, title) sym,
    PROBLEM_TYPES(X)
#undef X
        PROBLEM_TYPE_COUNT
};

enum {
    PROBLEM_ERRORS_MAX = 100,
    PROBLEM_DETAIL_SIZE = 512, /* of a detail with its NUL; longer: cut between characters */
};

/* One of errors[]. Which members are written follows from what is set. */
struct problem_error {
    char *pointer;   /* JSON pointer; NULL: none. "" is the whole document */
    char *parameter; /* query parameter */
    char *header;
    uint64_t line;    /* from 1; 0: none */
    int64_t position; /* byte offset from 0; -1: none */
    char *detail;
};

/* Zeroed is "no problem". */
struct problem {
    enum problem_type type;
    int status; /* from the type's row */
    char detail[PROBLEM_DETAIL_SIZE];
    struct problem_error *errors; /* owned */
    uint32_t n_errors;
};

/* Sets type, status and detail, and drops the errors there were. */
void problem_set(struct problem *p, enum problem_type type, const char *fmt, ...) PRINTF_LIKE(3, 4);
/* Copies *e (its strings too; detail is cut at PROBLEM_DETAIL_SIZE, the others at 1024 bytes) to
 * the end of the list. Beyond PROBLEM_ERRORS_MAX it does nothing. */
void problem_add(struct problem *p, const struct problem_error *e);
/* The common single cases: {"parameter"|"header"|"pointer": name, "detail": text}. */
void problem_add_parameter(struct problem *p, const char *name, const char *fmt, ...)
    PRINTF_LIKE(3, 4);
void problem_add_header(struct problem *p, const char *name, const char *fmt, ...)
    PRINTF_LIKE(3, 4);
void problem_fini(struct problem *p); /* frees and zeroes; zeroed is fine */

const char *problem_name(enum problem_type type); /* "invalid-field" */
struct jw;
/* Begins the object and writes what all have, for a caller who adds members of its own. */
void problem_begin(struct jw *w, enum problem_type t, const char *detail);
/* Appends {"type","title","status","detail","errors"?}. Bytes that are not UTF-8 become U+FFFD.
 * Returns 0, E_LIMIT or E_NOMEM. */
int problem_write(const struct problem *p, struct buf *b) MUSTCHECK;

/* The one of names[0..n) that `given` was probably meant to be: edit distance at most 2 and less
 * than half its length, or one the beginning of the other; NULL: none. For details such as:
 * did you mean "timeout_ms"? */
const char *problem_nearest(const char *given, const char *const *names, size_t n);

#endif
