/* TLS beside libcurl: the certificates that we trust, parsed once for the whole process, and the
 * sessions of each fetcher, so that a further connection to an origin is spared the certificates
 * and signatures of a full handshake.
 *
 * libcurl 7.88 would parse the bundle once for every multi (each connection, with a CAPATH), keep
 * eight sessions, found by a walk over all of them, and switch off the tickets of TLS 1.2. */
#ifndef SERVER_TLS_H
#define SERVER_TLS_H

#include "server/base.h"

/* Trusted certificates; counted, constant once made. Any thread. */
struct tls_trust;

/* Parses `file` (PEM), otherwise looks in `dir` (as c_rehash(1) leaves it), otherwise where OpenSSL
 * does by itself. Returns 0, E_INVAL or E_NOMEM with the cause in *why. */
int tls_trust_new(struct tls_trust **out, const char *file, const char *dir, char *why,
                  size_t why_size) MUSTCHECK;
/* Trusts nobody: every verification fails. */
int tls_trust_none(struct tls_trust **out) MUSTCHECK;
struct tls_trust *tls_trust_ref(struct tls_trust *t);
void tls_trust_unref(struct tls_trust *t);         /* NULL is fine */
size_t tls_trust_count(const struct tls_trust *t); /* certificates in memory */

/* What one thread's connections share. Used by that thread only. */
struct tls;

int tls_new(struct tls **out, struct tls_trust *trust) MUSTCHECK; /* takes a reference of its own */
void tls_free(struct tls *t); /* after the last connection; NULL is fine */
/* For new connections from now on. Sessions that the old certificates vouched for are dropped. */
void tls_set_trust(struct tls *t, struct tls_trust *trust);

/* Sets up the SSL_CTX of one new connection to an origin (CURLOPT_SSL_CTX_FUNCTION), which must
 * verify its peer. *resumes: it will offer a session. Returns 0 or E_NOMEM. */
int tls_prepare(struct tls *t, void *ssl_ctx, const char *host, uint16_t port,
                bool *resumes) MUSTCHECK;
/* *said becomes true if the peer says that nothing more comes (close_notify) before the connection
 * of this SSL is closed, which must be before *said goes. libcurl 7.88.1 does not look: its BIO
 * never is at its end, so OpenSSL cannot tell an attacker's end from the origin's. */
void tls_watch_end(void *ssl, bool *said);
/* The next connection to it makes a full handshake. */
void tls_forget(struct tls *t, const char *host, uint16_t port);

#endif
