/* Large bodies on their way from an origin to the database: pieces of one nameless file in the data
 * directory, so that they take neither memory nor a descriptor each. What is in it is lost with the
 * process, and fetched again.
 *
 * A body belongs to one thread at a time; the file is everybody's. */
#ifndef SERVER_SPILL_H
#define SERVER_SPILL_H

#include "server/base.h"

struct spill;

/* A body, or its beginning. */
struct spilled {
    struct spill *file;
    uint64_t len;
    uint32_t *pieces; /* of SPILL_PIECE bytes each, but for the last */
    uint32_t n, cap;
};

enum { SPILL_PIECE = 64 * 1024 };

/* E_IO, E_FULL, E_READONLY: *why says the cause. */
int spill_open(struct spill **out, const char *dir, char *why, size_t why_size) MUSTCHECK;
void spill_close(struct spill *s); /* all its bodies must have been freed; NULL is fine */
/* Bytes that the file takes of the disk, about. */
uint64_t spill_bytes(struct spill *s);
/* … of these, by bodies. */
uint64_t spill_used(struct spill *s);
/* Gives back what no body takes. */
void spill_trim(struct spill *s);
/* Whether a piece can be written, and read again. E_FULL, E_READONLY, E_IO. */
int spill_probe(struct spill *s) MUSTCHECK;

/* A new body; it needs spill_free. */
void spill_init(struct spilled *b, struct spill *s);
/* Appends. E_FULL, E_READONLY, E_IO (errno says more): what was appended before stays. */
int spill_add(struct spilled *b, const void *p, size_t n) MUSTCHECK;
/* Reads len bytes from `at`, all of which must be there. E_IO. */
int spill_read(const struct spilled *b, uint64_t at, void *p, size_t len) MUSTCHECK;
/* Gives its pieces back; it may be used again. */
void spill_free(struct spilled *b);

#endif
