/* Coded bodies on their way from libcurl to body_write, through decode.h. Runs on the fetcher's
 * thread.
 *
 * What is kept of a body that cannot be decoded: as long as nothing was decoded of it, all of it as
 * it came (and the transfer goes on to its end); afterwards what was decoded before it broke. */
#include "server/fetch_int.h"

enum {
    PENDING_MAX = 64 * 1024, /* of a body of which nothing is decoded yet */
    CODED_EXTRA = 64 * 1024, /* a coded body may be so much longer than twice max_body_bytes */
    STOP = 1,                /* no enum err: body_write has had enough */
};

uint64_t coded_max(const struct transfer *t)
{
    return body_max(t) * 2 + CODED_EXTRA;
}

/* Decoders count with the bodies: what they take, these must not have. */
static void charge(struct fetcher *f)
{
    size_t now = decode_pool_bytes(f->decoders);
    if (now != f->decoders_charged)
        atomic_fetch_add(&f->e->bodies, (int64_t)now - (int64_t)f->decoders_charged);
    f->decoders_charged = now;
}

static int on_decoded(void *arg, const char *p, size_t n)
{
    struct transfer *t = arg;
    if (!t->decoded) { /* so far it was kept as it came */
        t->decoded = true;
        body_drop(t);
    }
    return body_write(t, p, n) == n ? 0 : STOP;
}

/* Nothing is decoded yet: should that remain so, these bytes are what there is. */
static size_t pend(struct transfer *t, const char *p, size_t n)
{
    if (t->pending_lost)
        return n;
    if (t->body_len + n > PENDING_MAX || t->body_len + n > body_max(t)) {
        body_drop(t);
        t->pending_lost = true;
        return n;
    }
    return body_write(t, p, n);
}

static size_t broken(struct transfer *t, const char *p, size_t n, const char *why)
{
    t->undecodable = why;
    coded_drop(t);
    return t->decoded || t->pending_lost ? 0 : body_write(t, p, n);
}

size_t coded_write(struct transfer *t, const char *p, size_t n)
{
    if (t->undecodable != NULL)
        return body_write(t, p, n);
    if (t->codings.unfit != NULL)
        return broken(t, p, n, t->codings.unfit);
    if (t->decode == NULL &&
        decode_open(&t->decode, t->f->decoders, &t->codings, coded_max(t)) != 0) {
        t->no_descriptor = true; /* our own limit */
        return 0;
    }
    t->coded_len += n;
    if (t->coded_len > coded_max(t)) {
        t->too_large = true;
        return 0;
    }
    int rc = decode_feed(t->decode, p, n, on_decoded, t);
    charge(t->f);
    if (rc == 0)
        return t->decoded ? n : pend(t, p, n);
    if (rc == STOP)
        return 0;
    if (rc == E_LIMIT) {
        t->too_large = true;
        return 0;
    }
    return broken(t, p, n,
                  rc == E_NOMEM ? "the body's content coding takes too much memory"
                                : "the body's content coding is broken");
}

void coded_end(struct transfer *t, bool whole)
{
    if (t->decode == NULL)
        return;
    if (whole && decode_end(t->decode) != 0) {
        t->undecodable = "the body's content coding ends early";
        t->truncated = t->decoded || t->pending_lost;
    } else if (!t->decoded) { /* nothing is what it stands for; or more was to come */
        body_drop(t);
    }
    coded_drop(t);
}

void coded_drop(struct transfer *t)
{
    if (t->decode == NULL)
        return;
    decode_close(t->decode);
    t->decode = NULL;
    charge(t->f);
}
