/* What every file of server/ and api/ may use: asserts that stay on, growable buffers with a
 * bound, clocks; and the log. No state. */
#ifndef SERVER_BASE_H
#define SERVER_BASE_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "server/log.h"
#include "storage/err.h"

/* Always on, in release builds too: cheap, and a wrong state must not reach the disk. */
#define ASSERT(cond) ((cond) ? (void)0 : assert_failed(#cond, __FILE__, __LINE__))
_Noreturn void assert_failed(const char *cond, const char *file, int line);

#define PRINTF_LIKE(f, a) __attribute__((format(printf, f, a)))
#define ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))
#define CONTAINER_OF(p, type, member) ((type *)(void *)((char *)(p)-offsetof(type, member)))

/* malloc and friends that end the process (with a log line) when memory is out: for small things
 * whose failure nothing could be done about. Sizes that a client chooses go through struct buf. */
void *xmalloc(size_t n) __attribute__((returns_nonnull, malloc));
void *xcalloc(size_t n, size_t size) __attribute__((returns_nonnull, malloc));
void *xrealloc(void *p, size_t n) __attribute__((returns_nonnull));
char *xstrdup(const char *s) __attribute__((returns_nonnull, malloc));
char *xstrndup(const char *s, size_t n) __attribute__((returns_nonnull, malloc));

/* A growable byte buffer. `max` is its bound, set at init: no buffer grows without one. */
struct buf {
    char *data;
    size_t len;
    size_t cap;
    size_t max;
};

void buf_init(struct buf *b, size_t max);
void buf_fini(struct buf *b);  /* frees; zeroed memory is fine */
void buf_reset(struct buf *b); /* empties, keeps the memory */
/* All of these return 0, E_LIMIT (the bound) or E_NOMEM; on failure nothing is appended. */
int buf_reserve(struct buf *b, size_t extra) MUSTCHECK;
int buf_add(struct buf *b, const void *p, size_t n) MUSTCHECK;
int buf_addc(struct buf *b, char c) MUSTCHECK;
int buf_adds(struct buf *b, const char *s) MUSTCHECK;
int buf_addf(struct buf *b, const char *fmt, ...) PRINTF_LIKE(2, 3) MUSTCHECK;

/* Monotonic time in microseconds (CLOCK_MONOTONIC): for every duration and deadline. */
int64_t now_us(void);
/* Wall clock, Unix time in milliseconds: for showing only. */
int64_t wall_ms(void);

/* 64-bit hash for tables and lanes (not against an adversary who knows it; collisions only cost
 * time or share a lane). */
uint64_t hash64(const void *data, size_t n, uint64_t seed);

/* Whether p[0..n) is well-formed UTF-8 (RFC 3629: no surrogates, no overlong forms). */
bool utf8_valid(const char *p, size_t n);

#endif
