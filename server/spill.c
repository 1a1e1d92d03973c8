/* See spill.h. Pieces that were given back are used again first, the last one given back before
 * others, and their space goes back to the file system when there are many, or all are free. */
#define _GNU_SOURCE
#include "server/spill.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { FREE_KEPT = 256 }; /* free pieces that keep their space: 16 MiB */

struct spill {
    int fd;
    pthread_mutex_t mutex; /* guards what is below */
    uint32_t n;            /* pieces the file has been made of */
    uint32_t *free;        /* those that nobody uses; the first n_empty take no space */
    uint32_t n_free, n_empty, cap_free;
};

int spill_open(struct spill **out, const char *dir, char *why, size_t why_size)
{
    *out = NULL;
    int fd = open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (fd < 0 && (errno == EOPNOTSUPP || errno == EISDIR || errno == ENOENT)) {
        char path[PATH_MAX]; /* a file system without O_TMPFILE */
        if (snprintf(path, sizeof(path), "%s/spill-XXXXXX", dir) < (int)sizeof(path))
            fd = mkostemp(path, O_CLOEXEC);
        if (fd >= 0)
            (void)unlink(path);
    }
    if (fd < 0) {
        snprintf(why, why_size, "a file in %s: %s", dir, strerror(errno));
        return err_of_errno(errno);
    }
    struct spill *s = xcalloc(1, sizeof(*s));
    s->fd = fd;
    pthread_mutex_init(&s->mutex, NULL);
    *out = s;
    return 0;
}

void spill_close(struct spill *s)
{
    if (s == NULL)
        return;
    ASSERT(s->n_free == s->n);
    close(s->fd);
    pthread_mutex_destroy(&s->mutex);
    free(s->free);
    free(s);
}

uint64_t spill_bytes(struct spill *s)
{
    pthread_mutex_lock(&s->mutex);
    uint64_t n = (uint64_t)(s->n - s->n_empty) * SPILL_PIECE;
    pthread_mutex_unlock(&s->mutex);
    return n;
}

uint64_t spill_used(struct spill *s)
{
    pthread_mutex_lock(&s->mutex);
    uint64_t n = (uint64_t)(s->n - s->n_free) * SPILL_PIECE;
    pthread_mutex_unlock(&s->mutex);
    return n;
}

void spill_init(struct spilled *b, struct spill *s)
{
    *b = (struct spilled){.file = s};
}

/* ---- pieces ---- */

static uint32_t take(struct spill *s)
{
    pthread_mutex_lock(&s->mutex);
    uint32_t piece;
    if (s->n_free > 0) {
        piece = s->free[--s->n_free];
        if (s->n_empty > s->n_free)
            s->n_empty = s->n_free;
    } else {
        piece = s->n++;
    }
    pthread_mutex_unlock(&s->mutex);
    return piece;
}

/* Space of the free pieces used longest ago goes back; of all, when nothing else is in the file.
 * A failure costs space, no more. */
static void give_space_back(struct spill *s, uint32_t kept)
{
    if (s->n_free == s->n) {
        if (s->n - s->n_empty > kept && ftruncate(s->fd, 0) == 0)
            s->n = s->n_free = s->n_empty = 0;
        return;
    }
    while (s->n_free - s->n_empty > kept) {
        (void)fallocate(s->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                        (off_t)s->free[s->n_empty] * SPILL_PIECE, SPILL_PIECE);
        s->n_empty++;
    }
}

void spill_trim(struct spill *s)
{
    pthread_mutex_lock(&s->mutex);
    give_space_back(s, 0);
    pthread_mutex_unlock(&s->mutex);
}

void spill_free(struct spilled *b)
{
    struct spill *s = b->file;
    if (b->n > 0) {
        pthread_mutex_lock(&s->mutex);
        if (s->n_free + b->n > s->cap_free) {
            s->cap_free = (s->n_free + b->n) * 2;
            s->free = xrealloc(s->free, s->cap_free * sizeof(*s->free));
        }
        memcpy(s->free + s->n_free, b->pieces, b->n * sizeof(*b->pieces));
        s->n_free += b->n;
        give_space_back(s, FREE_KEPT);
        pthread_mutex_unlock(&s->mutex);
    }
    free(b->pieces);
    spill_init(b, s);
}

/* ---- bytes ---- */

int spill_add(struct spilled *b, const void *p, size_t n)
{
    const char *from = p;
    while (n > 0) {
        uint64_t used = b->len % SPILL_PIECE;
        if (b->len == (uint64_t)b->n * SPILL_PIECE) {
            if (b->n == b->cap) {
                b->cap = b->cap == 0 ? 8 : b->cap * 2;
                b->pieces = xrealloc(b->pieces, b->cap * sizeof(*b->pieces));
            }
            b->pieces[b->n++] = take(b->file);
        }
        size_t room = SPILL_PIECE - (size_t)used, some = n < room ? n : room;
        ssize_t w = pwrite(b->file->fd, from, some,
                           (off_t)((uint64_t)b->pieces[b->n - 1] * SPILL_PIECE + used));
        if (w < 0 && errno == EINTR)
            continue;
        if (w <= 0) {
            errno = w == 0 ? ENOSPC : errno;
            return err_of_errno(errno);
        }
        from += w;
        n -= (size_t)w;
        b->len += (uint64_t)w;
    }
    return 0;
}

int spill_read(const struct spilled *b, uint64_t at, void *p, size_t len)
{
    char *to = p;
    if (at > b->len || len > b->len - at)
        return E_IO;
    while (len > 0) {
        uint64_t used = at % SPILL_PIECE;
        size_t room = SPILL_PIECE - (size_t)used, some = len < room ? len : room;
        ssize_t r = pread(b->file->fd, to, some,
                          (off_t)((uint64_t)b->pieces[at / SPILL_PIECE] * SPILL_PIECE + used));
        if (r < 0 && errno == EINTR)
            continue;
        if (r <= 0)
            return E_IO;
        to += r;
        len -= (size_t)r;
        at += (uint64_t)r;
    }
    return 0;
}

int spill_probe(struct spill *s)
{
    char out[4096], in[sizeof(out)];
    struct spilled b;
    memset(out, 'x', sizeof(out));
    spill_init(&b, s);
    int rc = spill_add(&b, out, sizeof(out));
    if (rc == 0)
        rc = spill_read(&b, 0, in, sizeof(in));
    if (rc == 0 && memcmp(in, out, sizeof(in)) != 0)
        rc = E_IO;
    spill_free(&b);
    return rc;
}
