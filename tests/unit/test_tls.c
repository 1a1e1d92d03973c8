/* Trust and sessions over handshakes in memory: OpenSSL on both sides. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "server/tls.h"

struct identity {
    EVP_PKEY *key;
    X509 *cert; /* self-signed */
    struct tls_trust *trust;
};

static void identity_init(struct identity *id, const char *name, long valid_s)
{
    id->key = EVP_EC_gen("P-256");
    id->cert = X509_new();
    assert_non_null(id->key);
    X509_set_version(id->cert, X509_VERSION_3);
    ASN1_INTEGER_set(X509_get_serialNumber(id->cert), 1);
    X509_gmtime_adj(X509_getm_notBefore(id->cert), -60);
    X509_gmtime_adj(X509_getm_notAfter(id->cert), valid_s);
    X509_NAME *subject = X509_get_subject_name(id->cert);
    X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_ASC, (const unsigned char *)name, -1, -1, 0);
    X509_set_issuer_name(id->cert, subject);
    X509_set_pubkey(id->cert, id->key);
    assert_true(X509_sign(id->cert, id->key, EVP_sha256()) > 0);

    char path[] = "/tmp/batchfetch-test-tls-XXXXXX", why[200];
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    FILE *f = fdopen(fd, "w");
    assert_int_equal(PEM_write_X509(f, id->cert), 1);
    fclose(f);
    assert_int_equal(tls_trust_new(&id->trust, path, NULL, why, sizeof(why)), 0);
    assert_int_equal(tls_trust_count(id->trust), 1);
    unlink(path);
}

static void identity_fini(struct identity *id)
{
    tls_trust_unref(id->trust);
    X509_free(id->cert);
    EVP_PKEY_free(id->key);
}

static SSL_CTX *server_new(const struct identity *id, int version)
{
    SSL_CTX *ctx = SSL_CTX_new(TLS_server_method());
    assert_int_equal(SSL_CTX_use_certificate(ctx, id->cert), 1);
    assert_int_equal(SSL_CTX_use_PrivateKey(ctx, id->key), 1);
    SSL_CTX_set_min_proto_version(ctx, version);
    SSL_CTX_set_max_proto_version(ctx, version);
    return ctx;
}

enum { FAILED = -1, FULL, RESUMED };

/* A connection, as libcurl makes one up to the callback and after it; a byte goes each way. */
static int connect_once(struct tls *t, SSL_CTX *server_ctx, const char *host, uint16_t port)
{
    SSL_CTX *ctx = SSL_CTX_new(TLS_client_method());
    bool resumes;
    SSL_CTX_set_options(ctx, SSL_OP_NO_TICKET);
    SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER, NULL);
    SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
    assert_int_equal(tls_prepare(t, ctx, host, port, &resumes), 0);
    SSL *client = SSL_new(ctx), *server = SSL_new(server_ctx);
    BIO *a, *b;
    assert_int_equal(BIO_new_bio_pair(&a, 0, &b, 0), 1);
    SSL_set_bio(client, a, a);
    SSL_set_bio(server, b, b);
    SSL_set_connect_state(client);
    SSL_set_accept_state(server);
    int outcome = FAILED, c = 0, s = 0;
    for (int i = 0; i < 20 && (c != 1 || s != 1); i++) {
        c = SSL_do_handshake(client);
        s = SSL_do_handshake(server);
    }
    if (c == 1 && s == 1) {
        char byte = 'x';
        assert_int_equal(SSL_write(server, &byte, 1), 1);
        assert_int_equal(SSL_read(client, &byte, 1), 1); /* and the tickets before it */
        outcome = SSL_session_reused(client) ? RESUMED : FULL;
        assert_int_equal(resumes, outcome == RESUMED);
        SSL_shutdown(client);
    }
    SSL_free(client);
    SSL_free(server);
    SSL_CTX_free(ctx);
    ERR_clear_error();
    return outcome;
}

static const int versions[] = {TLS1_2_VERSION, TLS1_3_VERSION};

static void test_resume_and_forget(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(versions); i++) {
        struct identity id;
        struct tls *t, *other;
        identity_init(&id, "one", 86400);
        SSL_CTX *server = server_new(&id, versions[i]);
        assert_int_equal(tls_new(&t, id.trust), 0);
        assert_int_equal(tls_new(&other, id.trust), 0);
        assert_int_equal(connect_once(t, server, "one", 443), FULL);
        for (int n = 0; n < 3; n++)
            assert_int_equal(connect_once(t, server, "one", 443), RESUMED);
        assert_int_equal(connect_once(t, server, "two", 443), FULL);
        assert_int_equal(connect_once(t, server, "one", 444), FULL);
        assert_int_equal(connect_once(other, server, "one", 443), FULL);
        tls_forget(t, "one", 443);
        tls_forget(t, "unknown", 443);
        assert_int_equal(connect_once(t, server, "one", 443), FULL);
        assert_int_equal(connect_once(t, server, "two", 443), RESUMED);
        tls_free(t);
        tls_free(other);
        SSL_CTX_free(server);
        identity_fini(&id);
    }
}

static void test_trust_changes(void **state)
{
    (void)state;
    struct identity one, two;
    struct tls *t;
    struct tls_trust *none;
    identity_init(&one, "one", 86400);
    identity_init(&two, "two", 86400);
    SSL_CTX *server = server_new(&one, TLS1_3_VERSION);
    SSL_CTX *new_server = server_new(&two, TLS1_3_VERSION);
    assert_int_equal(tls_new(&t, one.trust), 0);
    assert_int_equal(connect_once(t, server, "a", 443), FULL);
    assert_int_equal(connect_once(t, new_server, "b", 443), FAILED);
    tls_set_trust(t, two.trust);
    /* no session of the old trust lets its server in */
    assert_int_equal(connect_once(t, server, "a", 443), FAILED);
    assert_int_equal(connect_once(t, new_server, "b", 443), FULL);
    tls_set_trust(t, one.trust);
    assert_int_equal(connect_once(t, server, "a", 443), FULL);
    assert_int_equal(connect_once(t, server, "a", 443), RESUMED);
    assert_int_equal(tls_trust_none(&none), 0);
    assert_int_equal(tls_trust_count(none), 0);
    tls_set_trust(t, none);
    tls_trust_unref(none);
    assert_int_equal(connect_once(t, server, "a", 443), FAILED);
    tls_free(t);
    SSL_CTX_free(server);
    SSL_CTX_free(new_server);
    identity_fini(&one);
    identity_fini(&two);
}

/* Resuming would go on for hours after the certificate's end. */
static void test_sessions_end_with_the_certificate(void **state)
{
    (void)state;
    struct identity id;
    struct tls *t;
    identity_init(&id, "short", 3);
    SSL_CTX *server = server_new(&id, TLS1_3_VERSION);
    assert_int_equal(tls_new(&t, id.trust), 0);
    assert_int_equal(connect_once(t, server, "a", 443), FULL);
    assert_int_equal(connect_once(t, server, "a", 443), RESUMED);
    while (X509_cmp_current_time(X509_get0_notAfter(id.cert)) > 0)
        usleep(50000);
    assert_int_equal(connect_once(t, server, "a", 443), FAILED);
    tls_free(t);
    SSL_CTX_free(server);
    identity_fini(&id);
}

/* More origins than are kept: the one that was used last stays. */
static void test_bounded(void **state)
{
    (void)state;
    struct identity id;
    struct tls *t;
    identity_init(&id, "one", 86400);
    SSL_CTX *server = server_new(&id, TLS1_3_VERSION);
    assert_int_equal(tls_new(&t, id.trust), 0);
    assert_int_equal(connect_once(t, server, "first", 443), FULL);
    assert_int_equal(connect_once(t, server, "used", 443), FULL);
    for (uint16_t port = 1; port <= 1023; port++) {
        assert_int_equal(connect_once(t, server, "many", port), FULL);
        if (port == 1000)
            assert_int_equal(connect_once(t, server, "used", 443), RESUMED);
    }
    assert_int_equal(connect_once(t, server, "used", 443), RESUMED);
    assert_int_equal(connect_once(t, server, "first", 443), FULL);
    tls_free(t);
    SSL_CTX_free(server);
    identity_fini(&id);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_resume_and_forget),
        cmocka_unit_test(test_trust_changes),
        cmocka_unit_test(test_sessions_end_with_the_certificate),
        cmocka_unit_test(test_bounded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
