/* Content codings undone (RFC 9110 8.4.1): gzip (RFC 1952), deflate (zlib's form, RFC 1950, and the
 * bare one of RFC 1951 that some servers send), br (RFC 7932) and zstd (RFC 8878, windows of 8 MiB
 * at most as RFC 9659 has it), up to five of them one in another. libcurl's own decoding is off: it
 * takes a body that is cut short for a whole one.
 *
 * Decoders and buffers are kept in a pool and used again; a chain and its pool belong to one
 * thread. Nothing here looks at HTTP but decode_note, which reads a field value. */
#ifndef SERVER_DECODE_H
#define SERVER_DECODE_H

#include "storage/store.h"

enum {
    DECODE_CODINGS_MAX = 5,
    DECODE_WINDOW_LOG = 23, /* of zstd */
};

/* What to send as Accept-Encoding. */
#define DECODE_ACCEPTED "gzip, deflate, br, zstd"

/* What the fields of a response name, in the order in which it was applied. Zeroed: nothing. */
struct codings {
    uint8_t n, kind[DECODE_CODINGS_MAX];
    const char *unfit; /* why the body cannot be decoded; NULL: it can. Static text */
};

/* Adds what one Content-Encoding or Transfer-Encoding field says. "chunked" is left out, and what
 * is no coding but found in such fields. */
void decode_note(struct codings *c, struct span value);
/* Adds those that were applied after c's. */
void decode_join(struct codings *c, const struct codings *later);
static inline bool decode_needed(const struct codings *c)
{
    return c->n > 0 || c->unfit != NULL;
}

struct decode_pool;
int decode_pool_new(struct decode_pool **out) MUSTCHECK; /* E_NOMEM */
void decode_pool_free(struct decode_pool *p);            /* NULL is fine; no chain is open */
/* What all chains and the pool hold, in bytes: the decoders' state and windows. */
size_t decode_pool_bytes(const struct decode_pool *p);

struct decode;

/* Gets the decoded bytes; a value other than 0 ends decode_feed, which returns it. */
typedef int decode_fn(void *arg, const char *p, size_t n);

/* A chain for codings of which there is at least one, all of them fit. `limit`: of bytes between
 * any two of the decoders, beyond which E_LIMIT. Returns 0 or E_NOMEM. */
int decode_open(struct decode **out, struct decode_pool *pool, const struct codings *c,
                uint64_t limit) MUSTCHECK;
void decode_close(struct decode *d); /* back into the pool; NULL is fine */

/* The next bytes as received; returns 0, E_CORRUPT, E_LIMIT, E_NOMEM (a decoder's window too) or
 * what fn returned. After another value than 0 only decode_close may follow. */
int decode_feed(struct decode *d, const char *p, size_t n, decode_fn *fn, void *arg) MUSTCHECK;
/* No more bytes come: 0, or E_CORRUPT if more belonged to it. */
int decode_end(const struct decode *d) MUSTCHECK;

#endif
