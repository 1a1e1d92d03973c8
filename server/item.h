/* A request as accepted, and its compact form in pages on disk.
 *
 * The same record without url serves for a batch's `defaults`. Pure: no I/O, any thread. */
#ifndef SERVER_ITEM_H
#define SERVER_ITEM_H

#include "server/base.h"
#include "storage/store.h"

/* Spans point into memory of whoever filled the struct in. Zero means "not given" throughout. */
struct item {
    uint64_t index;      /* position in the submission, from 0 */
    struct span url;     /* as submitted */
    struct span invalid; /* why the URL can't be fetched; none: it is fine */
    struct span custom_id;
    struct span method;          /* upper case; none: GET */
    struct span headers;         /* request field lines, "Name: value\n" each */
    struct span body;            /* ptr not NULL and len 0: an empty body was asked for */
    uint32_t timeout_ms;         /* whole request, time in our queues apart */
    uint32_t connect_timeout_ms; /* names, TCP and TLS */
    uint32_t max_attempts;
    bool has_max_body_bytes; /* 0 is a bound too */
    uint64_t max_body_bytes;
};

/* Appends the record of *it to b. Returns 0, E_LIMIT or E_NOMEM. */
int item_encode(struct buf *b, const struct item *it) MUSTCHECK;
/* Reads one record at *pos and moves *pos behind it. Spans of *it point into p. Returns 0 or
 * E_CORRUPT. */
int item_decode(const void *p, size_t len, size_t *pos, struct item *it) MUSTCHECK;
/* Fills what *it does not give from *defaults. Headers are joined: the defaults' lines whose name
 * *it does not give come first; `joined` is the memory for that, reset here; *it points into it. */
int item_apply_defaults(struct item *it, const struct item *defaults, struct buf *joined) MUSTCHECK;

/* Walks the lines of `headers`: takes the first of *rest, or returns false at the end. */
bool item_next_header(struct span *rest, struct span *name, struct span *value);
bool item_has_header(struct span headers, struct span name);

/* Whether s is this text: as it stands (methods), or in any case (names of fields). */
bool span_is(struct span s, const char *text);
bool span_is_field(struct span s, const char *text);

#endif
