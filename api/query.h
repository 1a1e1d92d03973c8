/* What a request says beside its body, taken apart: the query string and the header fields Accept,
 * Range, If-None-Match and Prefer. Pure: no I/O and no libmicrohttpd, any thread. */
#ifndef API_QUERY_H
#define API_QUERY_H

#include "server/base.h"

enum {
    QUERY_PARAMS_MAX = 512
}; /* more than any request needs: 50 metadata, 100 headers, settings */

/* Name and value are decoded, UTF-8, without NUL, and NUL-terminated. */
struct query_param {
    const char *name;
    const char *value;
};

struct query {
    struct query_param *v;
    size_t n;
    char *mem;
};

/* Takes "a=b&c=d" apart (the text behind '?'). Strict: a bad %XX, %00, a control character, or
 * bytes that are not UTF-8 make it E_INVAL with *why naming the reason. '+' is a space. An empty
 * piece ("a=1&&b=2") is skipped; a name without '=' has the value "". E_LIMIT: too many, E_NOMEM. */
int query_parse(struct query *q, const char *raw, size_t len, const char **why) MUSTCHECK;
void query_fini(struct query *q); /* zeroed is fine */
/* The value of a parameter, or NULL. */
const char *query_get(const struct query *q, const char *name);
/* A parameter that is given twice, or NULL. */
const char *query_twice(const struct query *q);

/* Decodes %XX in src[0..len) to dst (room for len + 1), strictly; `plus`: '+' is a space. Returns
 * the length, or -1 when an escape is malformed or a NUL comes out. */
long percent_decode(char *dst, const char *src, size_t len, bool plus);

/* A decimal number without sign, in [min, max]. */
int parse_number(const char *s, uint64_t min, uint64_t max, uint64_t *out) MUSTCHECK;

enum media { MEDIA_NONE, MEDIA_JSON, MEDIA_NDJSON };
/* What the Accept field (all its lines joined by ", "; NULL: none) likes best of application/json
 * and application/x-ndjson. Of equal q the one named more exactly wins, then JSON. MEDIA_NONE:
 * neither is acceptable. */
enum media accept_choose(const char *accept);

enum range { RANGE_WHOLE, RANGE_PART, RANGE_BAD };
/* A Range field against a body of `size` bytes. RANGE_PART: send [*first, *last]. RANGE_BAD: 416.
 * RANGE_WHOLE: several ranges, another unit or malformed, so to be ignored (RFC 9110 14.2). */
enum range range_parse(const char *field, uint64_t size, uint64_t *first, uint64_t *last);

/* Whether If-None-Match names this entity tag (weak comparison, RFC 9110 8.8.3.2). */
bool etag_listed(const char *field, const char *etag);

/* The N of "wait=N" in a Prefer field (RFC 7240); false when there is none. */
bool prefer_wait(const char *field, uint64_t *seconds);

#endif
