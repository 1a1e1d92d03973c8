/* HTTP/2 over TLS, for batches that ask for it. Runs on the fetcher's thread.
 *
 * The transfers that offer it live in multis of their own, so that a connection is never shared
 * with those that don't. libcurl gives a transfer a stream of an open connection if one has room;
 * if none has, it opens another at once, one for each of a burst (CURLOPT_PIPEWAIT waits instead,
 * but without minding any timeout). So at most one transfer of a host opens a connection; the
 * others wait here, with their slots and a timer, until it is there or a stream elsewhere ends.
 *
 * libcurl repeats a request by itself when its connection died before it was answered; each
 * stream of a dying connection would open one of its own for that. It gets no socket
 * (multi_open_socket), and the request comes back here, to be repeated without charge. */
#include <openssl/ssl.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#include "server/fetch_int.h"

/* A slot in each SSL for the number of its connection, and one for its descriptor. */
static int no_slot = -1, fd_slot = -1;

int h2_global_init(void)
{
    if (no_slot < 0)
        no_slot = SSL_get_ex_new_index(0, NULL, NULL, NULL, NULL);
    if (fd_slot < 0)
        fd_slot = SSL_get_ex_new_index(0, NULL, NULL, NULL, NULL);
    return no_slot >= 0 && fd_slot >= 0 ? 0 : E_NOMEM;
}

enum {
    UNHEARD_STEP = 1024 * 1024,
    UNHEARD_US = 100 * 1000, /* of CPU time, for what nobody hears */
    RECORD_COST = 64,        /* of a record, however small */
};

static int64_t cpu_us(void)
{
    struct timespec ts;
    (void)clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
    return (int64_t)ts.tv_sec * 1000000 + ts.tv_nsec / 1000;
}

/* libcurl 7.88.1 reads a connection until there is something for a stream of it (cf_h2_recv): with
 * an origin that sends frames for nobody, for ever, and this thread with it. Many MiB may well come
 * for streams that were given up, so what counts is the time. */
static void on_record(int written, int version, int type, const void *buf, size_t len, SSL *ssl,
                      void *arg)
{
    struct fetcher *f = arg;
    const unsigned char *p = buf;
    (void)version;
    if (written || type != SSL3_RT_HEADER || len < 5)
        return;
    size_t before = f->h2_unheard / UNHEARD_STEP;
    f->h2_unheard += RECORD_COST + ((size_t)p[3] << 8 | p[4]);
    if (f->h2_unheard / UNHEARD_STEP == before)
        return;
    uint64_t no = (uint64_t)(uintptr_t)SSL_get_ex_data(ssl, no_slot);
    int fd = (int)(intptr_t)SSL_get_ex_data(ssl, fd_slot);
    if (before == 0)
        f->h2_unheard_since = cpu_us();
    else if (no != 0 && cpu_us() - f->h2_unheard_since > UNHEARD_US && multi_is_open(f, fd, no))
        (void)shutdown(fd, SHUT_RDWR);
}

void h2_watch(struct fetcher *f, void *ssl_ctx)
{
    SSL_CTX_set_msg_callback(ssl_ctx, on_record);
    SSL_CTX_set_msg_callback_arg(ssl_ctx, f);
}

/* What must not be sent twice goes by HTTP/1.1: libcurl does not tell a stream that the origin
 * refused from one that it may have begun to serve. */
bool h2_offered(const struct transfer *t)
{
    return t->live->b.http_version == 20 && t->url.https && t->lost_times < LOST_MAX &&
           may_repeat(t) && t->lane->host->h1_port != t->url.port;
}

/* h2_serve looks at the host. */
static void serve_later(struct host *h)
{
    if (h->join_listed)
        return;
    h->join_listed = true;
    h->s.n_lanes++; /* held */
    h->join_next = h->f->joins;
    h->f->joins = h;
}

/* Who lost a connection goes first: an origin may end each after a few requests. */
bool h2_join(struct transfer *t)
{
    struct host *h = t->lane->host;
    if (t->fresh || !h2_offered(t) || (h->opener == NULL && h->n_joining == 0))
        return false;
    struct joining *j = &h->joining[t->lost_times];
    t->state = TRANSFER_JOINING;
    t->join_us = t->f->now;
    t->list_next = NULL;
    t->list_prev = j->tail;
    if (j->tail != NULL)
        j->tail->list_next = t;
    else
        j->head = t;
    j->tail = t;
    h->n_joining++;
    return true;
}

void h2_unjoin(struct transfer *t)
{
    struct host *h = t->lane->host;
    struct joining *j = &h->joining[t->lost_times];
    if (t->list_prev != NULL)
        t->list_prev->list_next = t->list_next;
    else
        j->head = t->list_next;
    if (t->list_next != NULL)
        t->list_next->list_prev = t->list_prev;
    else
        j->tail = t->list_prev;
    h->n_joining--;
    t->list_prev = t->list_next = NULL;
    t->state = TRANSFER_IDLE;
    timer_set(t, INT64_MAX);
}

static struct transfer *first_joining(const struct host *h)
{
    for (unsigned i = LOST_MAX; i-- > 0;) {
        if (h->joining[i].head != NULL)
            return h->joining[i].head;
    }
    return NULL;
}

void h2_started(struct transfer *t)
{
    struct host *h = t->lane->host;
    if (!t->offers_h2 || t->fresh)
        return;
    multi_kick(t->shard); /* now: the next one must know whether this one opens a connection */
    if (!t->connected && h->opener == NULL)
        h->opener = t;
}

static SSL *ssl_of(const struct transfer *t)
{
    const struct curl_tlssessioninfo *tls = NULL;
    curl_easy_getinfo(t->easy, CURLINFO_TLS_SSL_PTR, &tls);
    return tls != NULL ? tls->internals : NULL;
}

static bool negotiated(const SSL *ssl)
{
    const unsigned char *alpn = NULL;
    unsigned len = 0;
    if (ssl != NULL)
        SSL_get0_alpn_selected(ssl, &alpn, &len);
    return len == 2 && memcmp(alpn, "h2", 2) == 0;
}

/* Only who opens a connection is told its descriptor. */
static void note_connection(struct transfer *t, SSL *ssl)
{
    if (t->fd >= 0) {
        uint64_t no = multi_mark_h2(t->f, t->fd);
        (void)SSL_set_ex_data(ssl, no_slot, (void *)(uintptr_t)no);
        (void)SSL_set_ex_data(ssl, fd_slot, (void *)(intptr_t)t->fd);
    }
    t->h2_no = (uint64_t)(uintptr_t)SSL_get_ex_data(ssl, no_slot);
    t->h2_fd = (int)(intptr_t)SSL_get_ex_data(ssl, fd_slot);
}

void h2_connected(struct transfer *t)
{
    struct host *h = t->lane->host;
    if (!t->offers_h2)
        return;
    SSL *ssl = ssl_of(t);
    t->is_h2 = negotiated(ssl);
    if (!t->is_h2)
        h->h1_port = t->url.port;
    else
        note_connection(t, ssl);
    if (h->opener == t) {
        h->opener = NULL;
        serve_later(h);
    }
}

void h2_failed(struct transfer *t, CURLcode code)
{
    struct host *h = t->lane->host;
    /* Who waits has a timer of its own, but must not be told off one by one. */
    if (h->opener == t && !t->connected && code != CURLE_OPERATION_TIMEDOUT)
        h->open_failed = true;
}

void h2_left(struct transfer *t)
{
    struct host *h = t->lane->host;
    if (h->opener == t)
        h->opener = NULL;
    else if (t->lost)
        h->join_room = 0;
    else if (h->n_joining > 0)
        h->join_room++; /* a stream of an open connection */
    if (h->n_joining > 0)
        serve_later(h);
    else
        h->open_failed = false;
}

/* libcurl tells it by words only. */
static bool wants_h1(const struct transfer *t, CURLcode code)
{
    return code == CURLE_HTTP2_STREAM && strstr(t->error, "HTTP_1_1_REQUIRED") != NULL;
}

bool h2_lost(struct transfer *t, CURLcode code)
{
    bool died = code == CURLE_SEND_ERROR || code == CURLE_RECV_ERROR || code == CURLE_GOT_NOTHING ||
                code == CURLE_PARTIAL_FILE || code == CURLE_HTTP2;
    bool again = t->lost;
    t->lost = again || (t->is_h2 && t->broken == NULL && died);
    if (wants_h1(t, code))
        t->lost_times = LOST_MAX;
    else if (again || (t->lost && t->heads == 0))
        t->lost_times++;
    else
        return false;
    return true;
}

bool h2_doubtful(const struct transfer *t, CURLcode code)
{
    bool tells = t->has_length || t->status == 204 || t->status == 304 ||
                 (t->method.len == 4 && memcmp(t->method.ptr, "HEAD", 4) == 0) ||
                 (t->decode != NULL && decode_end(t->decode) == 0);
    return code == CURLE_OK && t->is_h2 && !tells;
}

/* When an origin breaks HTTP/2 itself, or says GOAWAY and leaves, libcurl 7.88.1 closes the
 * connection and calls every response on it complete, ended by its origin or not
 * (h2_process_pending_input). What has no length of its own is asked for again, by HTTP/1.1, which
 * tells; after a proper end, too: that is the last stream of a connection only. */
bool h2_cut(struct transfer *t, CURLcode code)
{
    if (!h2_doubtful(t, code) || multi_is_open(t->f, t->h2_fd, t->h2_no))
        return false;
    t->lost_times = LOST_MAX;
    return true;
}

static void serve(struct host *h)
{
    bool failed = h->open_failed;
    uint32_t room = h->join_room;
    h->open_failed = false;
    h->join_room = 0;
    while (h->n_joining > 0 && (failed || h->opener == NULL || room > 0)) {
        struct transfer *t = first_joining(h);
        if (!failed && h->opener != NULL)
            room--;
        h2_unjoin(t);
        t->fresh = failed; /* each for itself, as with HTTP/1.1 */
        start_joined(t);
    }
}

void h2_serve(struct fetcher *f)
{
    while (f->joins != NULL) {
        struct host *h = f->joins;
        f->joins = h->join_next;
        h->join_listed = false;
        serve(h);
        h->s.n_lanes--;
        host_release(h);
    }
}
