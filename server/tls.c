#include "server/tls.h"

#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <uthash.h>

#include "server/metrics.h"

enum {
    SESSIONS_MAX = 1024, /* of a thread; each holds its peer's certificates, some 10 KiB */
    LIFE_MAX_S = 24 * 3600,
    ORIGIN_SIZE = 264, /* a name has 255 bytes at most; ":65535" */
};

struct tls_trust {
    _Atomic uint32_t refs;
    X509_STORE *store;
};

/* The newest one of an origin. */
struct session {
    UT_hash_handle hh;
    struct session *newer, *older; /* by use */
    SSL_SESSION *s;
    int64_t expires_us;
    char origin[];
};

struct tls {
    struct tls_trust *trust;
    struct session *sessions; /* uthash, by origin */
    struct session *newest, *oldest;
};

/* A connection, as its SSL_CTX refers to it (libcurl makes one for each). */
struct conn {
    struct tls *tls;
    const struct tls_trust *trust; /* that verifies it; to compare, never followed */
    SSL_SESSION *offer;            /* NULL: none, or the SSL has it */
    bool *said;                    /* tls_watch_end; NULL: nobody asks */
    char origin[];
};

/* ---- trust ---- */

static int trust_new(struct tls_trust **out)
{
    struct tls_trust *t = xcalloc(1, sizeof(*t));
    atomic_init(&t->refs, 1);
    *out = t;
    t->store = X509_STORE_new();
    /* As libcurl sets up its own: our roots before the peer's certificates, and an intermediate
     * certificate that is trusted by itself ends a chain. */
    if (t->store == NULL ||
        X509_STORE_set_flags(t->store, X509_V_FLAG_TRUSTED_FIRST | X509_V_FLAG_PARTIAL_CHAIN) != 1)
        return E_NOMEM;
    return 0;
}

static const char *reason(void)
{
    unsigned long code = ERR_peek_error();
    if (ERR_SYSTEM_ERROR(code))
        return strerror(ERR_GET_REASON(code));
    if (ERR_GET_LIB(code) == ERR_LIB_X509 &&
        ERR_GET_REASON(code) == X509_R_NO_CERTIFICATE_OR_CRL_FOUND)
        return "no certificate in it";
    const char *text = ERR_reason_error_string(code);
    return text != NULL ? text : "it cannot be read";
}

/* OpenSSL reads a certificate's extensions when they are first needed: here, in one thread. */
static void read_extensions(const struct tls_trust *t)
{
    const STACK_OF(X509_OBJECT) *all = X509_STORE_get0_objects(t->store);
    for (int i = 0; i < sk_X509_OBJECT_num(all); i++) {
        X509 *cert = X509_OBJECT_get0_X509(sk_X509_OBJECT_value(all, i));
        if (cert != NULL)
            (void)X509_check_purpose(cert, -1, 0);
    }
}

int tls_trust_new(struct tls_trust **out, const char *file, const char *dir, char *why,
                  size_t why_size)
{
    struct tls_trust *t;
    ERR_clear_error();
    int rc = trust_new(&t);
    if (rc != 0) {
        snprintf(why, why_size, "out of memory");
        goto out;
    }
    int ok = file != NULL  ? X509_STORE_load_file(t->store, file)
             : dir != NULL ? X509_STORE_load_path(t->store, dir)
                           : X509_STORE_set_default_paths(t->store);
    if (ok == 1 && file != NULL && tls_trust_count(t) == 0) { /* revocation lists only */
        snprintf(why, why_size, "%s: no certificate in it", file);
        rc = E_INVAL;
    } else if (ok != 1) {
        snprintf(why, why_size, "%s: %s", file != NULL ? file : dir, reason());
        rc = E_INVAL;
    }
    read_extensions(t);
out:
    ERR_clear_error();
    if (rc != 0) {
        tls_trust_unref(t);
        t = NULL;
    }
    *out = t;
    return rc;
}

int tls_trust_none(struct tls_trust **out)
{
    int rc = trust_new(out);
    if (rc != 0) {
        tls_trust_unref(*out);
        *out = NULL;
    }
    return rc;
}

struct tls_trust *tls_trust_ref(struct tls_trust *t)
{
    atomic_fetch_add(&t->refs, 1);
    return t;
}

void tls_trust_unref(struct tls_trust *t)
{
    if (t == NULL || atomic_fetch_sub(&t->refs, 1) != 1)
        return;
    X509_STORE_free(t->store);
    free(t);
}

size_t tls_trust_count(const struct tls_trust *t)
{
    const STACK_OF(X509_OBJECT) *all = X509_STORE_get0_objects(t->store);
    size_t n = 0;
    for (int i = 0; i < sk_X509_OBJECT_num(all); i++)
        n += X509_OBJECT_get_type(sk_X509_OBJECT_value(all, i)) == X509_LU_X509;
    return n;
}

/* ---- sessions ---- */

static void unlink_session(struct tls *t, struct session *s)
{
    *(s->newer != NULL ? &s->newer->older : &t->newest) = s->older;
    *(s->older != NULL ? &s->older->newer : &t->oldest) = s->newer;
}

static void link_newest(struct tls *t, struct session *s)
{
    s->newer = NULL;
    s->older = t->newest;
    *(s->older != NULL ? &s->older->newer : &t->oldest) = s;
    t->newest = s;
}

static struct session *find(struct tls *t, const char *origin)
{
    struct session *s;
    HASH_FIND_STR(t->sessions, origin, s);
    return s;
}

static void drop(struct tls *t, struct session *s)
{
    unlink_session(t, s);
    HASH_DEL(t->sessions, s);
    SSL_SESSION_free(s->s);
    free(s);
}

/* How long it may be resumed: resuming does not look at certificates again, so no longer than the
 * peer's is valid. */
static int64_t life_s(const SSL_SESSION *s)
{
    int64_t life = (int64_t)SSL_SESSION_get_ticket_lifetime_hint(s);
    if (life == 0)
        life = SSL_SESSION_get_timeout(s);
    life = life < LIFE_MAX_S ? life : LIFE_MAX_S;
    X509 *peer = SSL_SESSION_get0_peer((SSL_SESSION *)(uintptr_t)s);
    int days = 0, seconds = 0;
    if (peer == NULL || ASN1_TIME_diff(&days, &seconds, NULL, X509_get0_notAfter(peer)) != 1)
        return 0;
    int64_t valid = (int64_t)days * 86400 + seconds - 1; /* now is in the middle of a second */
    return life < valid ? life : valid;
}

static int ctx_index = -1;

static void free_conn(void *parent, void *ptr, CRYPTO_EX_DATA *ad, int idx, long argl, void *argp)
{
    struct conn *c = ptr;
    (void)parent;
    (void)ad;
    (void)idx;
    (void)argl;
    (void)argp;
    if (c == NULL)
        return;
    SSL_SESSION_free(c->offer);
    free(c);
}

static void make_index(void)
{
    ctx_index = SSL_CTX_get_ex_new_index(0, NULL, NULL, NULL, free_conn);
}

static struct conn *conn_of(const SSL *ssl)
{
    return SSL_CTX_get_ex_data(SSL_get_SSL_CTX(ssl), ctx_index);
}

/* SSL_CTX_sess_set_new_cb: 1 keeps the reference. */
static int on_session(SSL *ssl, SSL_SESSION *fresh)
{
    const struct conn *c = conn_of(ssl);
    struct tls *t = c->tls;
    int64_t life = life_s(fresh);
    if (c->trust != t->trust || !SSL_SESSION_is_resumable(fresh) || life <= 0)
        return 0;
    struct session *s = find(t, c->origin);
    if (s != NULL) {
        unlink_session(t, s);
        SSL_SESSION_free(s->s);
    } else {
        if (HASH_COUNT(t->sessions) >= SESSIONS_MAX)
            drop(t, t->oldest);
        size_t n = strlen(c->origin) + 1;
        s = xcalloc(1, sizeof(*s) + n);
        memcpy(s->origin, c->origin, n);
        HASH_ADD_STR(t->sessions, origin, s);
    }
    s->s = fresh;
    s->expires_us = now_us() + life * 1000000;
    link_newest(t, s);
    return 1;
}

/* libcurl shows us the SSL_CTX only, and the session belongs to the SSL. Here it is, before its
 * first message. */
/* The other thing that it tells is the peer's last word. */
static void on_info(const SSL *ssl, int where, int ret)
{
    if (where == SSL_CB_READ_ALERT && (ret & 0xff) == SSL_AD_CLOSE_NOTIFY) {
        const struct conn *ends = conn_of(ssl);
        if (ends->said != NULL)
            *ends->said = true;
    }
    if (where & SSL_CB_HANDSHAKE_DONE)
        metric_add(METRIC_TLS_HANDSHAKES +
                       (SSL_session_reused(ssl) ? METRIC_TLS_RESUMED : METRIC_TLS_FULL),
                   1);
    if (!(where & SSL_CB_HANDSHAKE_START))
        return;
    struct conn *c = conn_of(ssl);
    if (c->offer == NULL)
        return;
    if (SSL_set_session((SSL *)(uintptr_t)ssl, c->offer) != 1)
        ERR_clear_error(); /* then a full handshake */
    SSL_SESSION_free(c->offer);
    c->offer = NULL;
}

/* ---- connections ---- */

int tls_new(struct tls **out, struct tls_trust *trust)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    *out = NULL;
    if (pthread_once(&once, make_index) != 0 || ctx_index < 0)
        return E_NOMEM;
    struct tls *t = xcalloc(1, sizeof(*t));
    t->trust = tls_trust_ref(trust);
    *out = t;
    return 0;
}

static void drop_all(struct tls *t)
{
    while (t->oldest != NULL)
        drop(t, t->oldest);
}

void tls_free(struct tls *t)
{
    if (t == NULL)
        return;
    drop_all(t);
    tls_trust_unref(t->trust);
    free(t);
}

void tls_set_trust(struct tls *t, struct tls_trust *trust)
{
    struct tls_trust *old = t->trust;
    t->trust = tls_trust_ref(trust);
    tls_trust_unref(old);
    drop_all(t);
}

static void name_origin(char out[ORIGIN_SIZE], const char *host, uint16_t port)
{
    int n = snprintf(out, ORIGIN_SIZE, "%s:%u", host, port);
    ASSERT(n > 0 && n < ORIGIN_SIZE);
}

int tls_prepare(struct tls *t, void *ssl_ctx, const char *host, uint16_t port, bool *resumes)
{
    SSL_CTX *ctx = ssl_ctx;
    char origin[ORIGIN_SIZE];
    *resumes = false;
    name_origin(origin, host, port);
    size_t n = strlen(origin) + 1;
    struct conn *c = xcalloc(1, sizeof(*c) + n);
    c->tls = t;
    c->trust = t->trust;
    memcpy(c->origin, origin, n);
    if (SSL_CTX_set_ex_data(ctx, ctx_index, c) != 1) {
        free(c);
        return E_NOMEM;
    }
    /* Not the context's own store: libcurl goes on to change that one and to cache it by multi. */
    if (SSL_CTX_set1_verify_cert_store(ctx, t->trust->store) != 1)
        return E_NOMEM;
    SSL_CTX_clear_options(ctx, SSL_OP_NO_TICKET);
    SSL_CTX_sess_set_new_cb(ctx, on_session);
    SSL_CTX_set_info_callback(ctx, on_info);

    struct session *s = find(t, origin);
    if (s == NULL)
        return 0;
    if (s->expires_us <= now_us() || SSL_SESSION_is_resumable(s->s) != 1) {
        drop(t, s);
        return 0;
    }
    /* A copy: OpenSSL marks what it resumed with TLS 1.3 as used up, and the others that start
     * now, before this one brings the next ticket, need it too. */
    c->offer = SSL_SESSION_dup(s->s);
    if (c->offer == NULL)
        return E_NOMEM;
    unlink_session(t, s);
    link_newest(t, s);
    *resumes = true;
    return 0;
}

void tls_watch_end(void *ssl, bool *said)
{
    struct conn *c = conn_of(ssl);
    c->said = said;
}

void tls_forget(struct tls *t, const char *host, uint16_t port)
{
    char origin[ORIGIN_SIZE];
    name_origin(origin, host, port);
    struct session *s = find(t, origin);
    if (s != NULL)
        drop(t, s);
}
