/* JSON as we read and write it: a strict scanner that takes a document in pieces of any size and
 * finds where its values begin and end (cJSON then sees one small, checked value at a time), and
 * a writer that appends to a buffer. No trees, no allocation of its own. Pure: any thread. */
#ifndef API_JSON_H
#define API_JSON_H

#include "server/base.h"
#include "storage/store.h"

/* ---- the scanner ----
 *
 * RFC 8259 and nothing more: numbers, escapes, surrogate pairs, UTF-8, no raw control characters,
 * a bounded depth. The caller asks for the next event with the piece of input it has:
 *
 *   JSON_START  a member name or a value begins at *pos (not consumed); is_name and first say
 *               which. Answer with json_enter (an object or array: report what is inside) or
 *               json_take (report its end only), then ask again.
 *   JSON_VALUE  the name or value taken has ended; its bytes are [start, at) of the document.
 *               `escaped` and `flaw` tell of it.
 *   JSON_END    the object or array entered last has ended.
 *   JSON_MORE   the piece is used up.
 *   JSON_LARGE  `limit` was reached: nothing beyond it was looked at.
 *   JSON_BAD    not JSON: `why`, `at` and `line` say what and where. Final.
 */
enum json_event { JSON_MORE, JSON_START, JSON_VALUE, JSON_END, JSON_LARGE, JSON_BAD };

enum {
    JSON_DEPTH_MAX = 16,    /* nested objects and arrays */
    JSON_VALUES_MAX = 1000, /* values in one that is taken: bounds the tree cJSON makes of it */
    JSON_NUMBER_MAX = 60,   /* characters of a number: cJSON cuts at 63 */
};

struct json_scan {
    uint64_t at;      /* offset in the document of the next byte; on JSON_BAD: of the fault */
    uint64_t line;    /* line of that byte, from 1 */
    uint64_t start;   /* where the value taken began */
    uint64_t limit;   /* set by the caller at any time: no byte from here on is consumed */
    const char *why;  /* JSON_BAD: the reason, a clause */
    const char *flaw; /* the value taken is JSON, but we refuse it (\u0000, a very long number, too
                         many values): the reason; NULL: none */
    bool is_name;     /* of a JSON_START: a member name */
    char first;       /* of a JSON_START: the first byte, one of " { [ t f n - 0..9 */
    bool escaped;     /* the value taken has an escape sequence in it */

    /* private */
    uint8_t state, utf8_left, utf8_lo, utf8_hi, esc_left;
    bool name_next, taking;
    uint32_t depth, take_depth, arrays; /* arrays: bit i set: level i is an array */
    uint32_t code, high, values;
    uint64_t esc_at, num_at;
    const char *literal;
};

/* `at` and `line`: where in a larger document this one begins (0 and 1 if it is all). */
void json_scan_init(struct json_scan *s, uint64_t at, uint64_t line);
/* Goes on in p[0..n) from *pos, which is moved. */
enum json_event json_next(struct json_scan *s, const char *p, size_t n, size_t *pos);
void json_enter(struct json_scan *s);
void json_take(struct json_scan *s);
/* The input is over: JSON_VALUE (a number taken at the very end; call again), JSON_BAD (the
 * document is not complete) or JSON_MORE (all is well). */
enum json_event json_finish(struct json_scan *s);

/* ---- the writer ----
 *
 * Commas are the writer's. The first failure of the buffer (E_LIMIT, E_NOMEM) stays in rc and
 * makes all further calls do nothing: look at rc once, at the end. */
struct jw {
    struct buf *b;
    int rc;
    bool comma; /* the next value or key needs one before it */
};

/* What to make of bytes that are not UTF-8. */
enum jw_bytes {
    JW_REPLACE, /* U+FFFD for each maximal faulty part */
    JW_LATIN1,  /* if anything in the span is not UTF-8: every byte of it is one character */
};

void jw_init(struct jw *w, struct buf *b);
void jw_object(struct jw *w);
void jw_object_end(struct jw *w);
void jw_array(struct jw *w);
void jw_array_end(struct jw *w);
void jw_key(struct jw *w, const char *name);
void jw_key_span(struct jw *w, struct span name, enum jw_bytes how);
void jw_str(struct jw *w, const char *s);                     /* NULL: null */
void jw_span(struct jw *w, struct span s, enum jw_bytes how); /* ptr NULL: null */
void jw_u64(struct jw *w, uint64_t v);
void jw_i64(struct jw *w, int64_t v);
/* decimals: 0..9, of which zeros at the end are left out; inf and nan: null */
void jw_fixed(struct jw *w, double v, unsigned decimals);
void jw_ms(struct jw *w, uint64_t us); /* microseconds as ms: 12.345, 12.3, 12 */
void jw_bool(struct jw *w, bool v);
void jw_null(struct jw *w);
void jw_raw(struct jw *w, struct span json); /* a value that is JSON text already */
void jw_time(struct jw *w, int64_t unix_ms); /* "2026-11-23T05:00:00.123Z"; 0: null */
void jw_newline(struct jw *w);               /* between the lines of NDJSON */
/* A string in parts: begin, any number of parts of either sort, end. Text parts must be cut
 * between characters, base64 parts but the last at multiples of three bytes. */
void jw_text_begin(struct jw *w);
void jw_text_part(struct jw *w, struct span s, enum jw_bytes how);
void jw_base64_part(struct jw *w, const void *p, size_t n);
void jw_text_end(struct jw *w);
void jw_base64(struct jw *w, const void *p, size_t n); /* a whole string */

/* ---- base64 (RFC 4648, section 4) ---- */

int base64_encode(struct buf *b, const void *p, size_t n) MUSTCHECK;
/* Strict: padding required, no white space, spare bits zero. Appends. E_INVAL, or the buffer's. */
int base64_decode(struct buf *b, const char *p, size_t n) MUSTCHECK;

#endif
