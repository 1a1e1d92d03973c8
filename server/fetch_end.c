/* From libcurl's verdict on a transfer to what follows: the next hop of a redirect, another
 * address, another attempt, or the result. Runs on the fetcher's thread. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "server/fetch_int.h"
#include "server/metrics.h"
#include "server/policy.h"
#include "server/retry.h"

enum {
    LATE_US = 100 * 1000, /* libcurl is given so long to see it */
    LOOK_US = 500 * 1000,
    PORTS_PAUSE_MAX_US = 1000 * 1000,
    PORTS_AGAIN_US = 2000 * 1000, /* a failure this soon after a pause makes the next one longer */
};

static int64_t info_us(CURL *h, CURLINFO what)
{
    curl_off_t v = 0;
    curl_easy_getinfo(h, what, &v);
    return (int64_t)v;
}

static void add_time(struct transfer *t, enum store_timing what, int64_t us)
{
    if (us > 0)
        t->timing[what] += (uint64_t)us;
}

/* libcurl's marks are times since the transfer's start; one that was not reached is 0. What had
 * begun when the transfer ended gets the rest. */
static void gather_times(struct transfer *t)
{
    int64_t connect = info_us(t->easy, CURLINFO_CONNECT_TIME_T);
    int64_t tls = info_us(t->easy, CURLINFO_APPCONNECT_TIME_T);
    int64_t first = info_us(t->easy, CURLINFO_STARTTRANSFER_TIME_T);
    int64_t total = t->late ? t->f->now - t->begin_us : info_us(t->easy, CURLINFO_TOTAL_TIME_T);
    t->active_us += total;
    if (connect == 0 && first == 0) {
        add_time(t, TIMING_CONNECT, total);
        return;
    }
    add_time(t, TIMING_CONNECT, connect);
    if (t->url.https && tls == 0 && first == 0) {
        add_time(t, TIMING_TLS, total - connect);
        return;
    }
    int64_t ready = tls > connect ? tls : connect;
    add_time(t, TIMING_TLS, tls - connect);
    if (first == 0) {
        add_time(t, TIMING_FIRST_BYTE, total - ready);
        return;
    }
    add_time(t, TIMING_FIRST_BYTE, first - ready);
    add_time(t, TIMING_TRANSFER, total - (first > ready ? first : ready));
}

/* ---- verdicts ---- */

static struct verdict fail(enum outcome o, const char *message)
{
    return (struct verdict){o, message, outcome_retryable((int)o, 0)};
}

static const char *curl_text(const struct transfer *t, CURLcode code)
{
    return t->error[0] != '\0' ? t->error : curl_easy_strerror(code);
}

/* Aborted by one of our own callbacks. */
static bool own_verdict(struct transfer *t, CURLcode code, struct verdict *v)
{
    if (t->blocked_by != NULL)
        *v = (struct verdict){OUTCOME_BLOCKED_ADDRESS, NULL, false};
    else if (t->too_large)
        *v = fail(OUTCOME_TOO_LARGE, "the body is larger than max_body_bytes");
    else if (t->too_many_fields)
        *v = fail(OUTCOME_TOO_LARGE, "the response header is larger than 64 KiB or 200 lines");
    else if (t->broken != NULL)
        *v = fail(OUTCOME_PROTOCOL, t->broken);
    else if (code == CURLE_OUT_OF_MEMORY && t->remote_ip[0] != '\0' && !t->head_ended)
        *v = fail(OUTCOME_TOO_LARGE, "a line of the response header is too long"); /* libcurl's */
    else if (t->no_space != 0) /* and the request must not be sent twice: no_room */
        *v = fail(OUTCOME_INTERNAL, "the body could not be written to the data directory");
    else
        return false;
    return true;
}

static struct verdict judge_code(struct transfer *t, CURLcode code)
{
    struct verdict v;
    if (own_verdict(t, code, &v))
        return v;
    const char *text = curl_text(t, code);
    switch (code) {
    case CURLE_URL_MALFORMAT: return fail(OUTCOME_INVALID_URL, text);
    case CURLE_COULDNT_RESOLVE_HOST: return fail(OUTCOME_DNS, text);
    case CURLE_COULDNT_CONNECT: return fail(OUTCOME_CONNECT, text);
    case CURLE_OPERATION_TIMEDOUT: return fail(OUTCOME_TIMEOUT, text);
    case CURLE_SSL_CONNECT_ERROR:
    case CURLE_SSL_CERTPROBLEM:
    case CURLE_SSL_CIPHER:
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_CACERT_BADFILE:
    case CURLE_SSL_ISSUER_ERROR:
    case CURLE_SSL_INVALIDCERTSTATUS:
    case CURLE_SSL_CLIENTCERT: return fail(OUTCOME_TLS, text);
    case CURLE_BAD_CONTENT_ENCODING: return fail(OUTCOME_DECODE, text);
    case CURLE_OUT_OF_MEMORY:
    case CURLE_FAILED_INIT:
    case CURLE_NOT_BUILT_IN: return fail(OUTCOME_INTERNAL, text);
    default: return fail(OUTCOME_PROTOCOL, text);
    }
}

static struct verdict judge_response(const struct transfer *t)
{
    if (t->too_many_hops)
        return fail(OUTCOME_TOO_MANY_REDIRECTS, "more redirects than max_redirects allows");
    if (t->status >= 400)
        return (struct verdict){OUTCOME_HTTP_STATUS, NULL,
                                policy_has_status(&t->live->retry, t->status)};
    if (t->undecodable != NULL)
        return fail(OUTCOME_DECODE, t->undecodable);
    return (struct verdict){OUTCOME_NONE, NULL, false};
}

/* ---- what follows ---- */

/* Many hops may wait, for long: they keep no memory of the response. */
static void drop_response(struct transfer *t)
{
    body_drop(t);
    buf_fini(&t->body);
    buf_fini(&t->fields_in);
    buf_fini(&t->location);
}

static void requeue(struct transfer *t)
{
    drop_response(t);
    t->ready_us = t->f->now;
    transfer_send(t);
}

/* It waits for another attempt with the keeper, which stores it: here is nothing left of it. */
static void retry_later(struct transfer *t, enum outcome why)
{
    struct fetcher *f = t->f;
    metric_add(METRIC_RETRIES + (unsigned)why, 1);
    f->random = f->random * 6364136223846793005ULL + 1442695040888963407ULL;
    int64_t ms = retry_delay_ms(&t->live->retry, t->attempts, t->retry_after_ms, f->random >> 17);
    transfer_detach(t);
    out_again(t, f->now + ms * 1000);
    transfer_free(t);
}

void end_with(struct transfer *t, struct verdict v)
{
    start_undo(t);
    start_release(t);
    metric_observe_us(METRIC_REQUEST_TIME, 0, t->active_us);
    if (v.again &&
        t->attempts < policy_attempts(&t->live->retry, t->item.max_attempts, t->item.method)) {
        retry_later(t, v.outcome);
        return;
    }
    char text[96];
    if (v.outcome == OUTCOME_BLOCKED_ADDRESS) {
        snprintf(text, sizeof(text), "connecting to this address is not allowed (%s)",
                 t->blocked_by);
        v.message = text;
    } else if (v.outcome == OUTCOME_HTTP_STATUS) {
        snprintf(text, sizeof(text), "the response status is %d", t->status);
        v.message = text;
    }
    transfer_detach(t);
    out_result(t, &v);
    transfer_free(t);
}

/* RFC 9110 15.4: 303 turns everything but HEAD into GET; 301 and 302 turn POST into GET, as every
 * client does; 307 and 308 keep the method. */
static void rewrite_method(struct transfer *t)
{
    bool to_get = (t->status == 303 && !span_is(t->method, "HEAD")) ||
                  ((t->status == 301 || t->status == 302) && span_is(t->method, "POST"));
    if (to_get) {
        t->method = (struct span){"GET", 3};
        t->with_body = false;
    }
}

static void follow(struct transfer *t)
{
    struct fetcher *f = t->f;
    char *to = NULL;
    const char *why = t->location_cut ? "its Location is too long" : "its Location cannot be read";
    struct url next = {0};
    t->truncated = t->body_len > 0; /* the redirect's own body was not kept */
    t->body_len = 0;
    int rc = t->location_cut ? E_INVAL
                             : url_resolve(t->url.text.ptr, t->url.text.len, t->location.data,
                                           t->location.len, &to);
    if (rc == 0)
        rc = url_parse(&next, to, strlen(to), &why);
    if (rc == 0)
        rc = buf_addf(&t->redirects, "%d %.*s\n", t->status, (int)next.text.len, next.text.ptr);
    if (rc != 0) {
        url_fini(&next);
        free(to);
        char text[160];
        snprintf(text, sizeof(text), "the redirect cannot be followed: %s", why);
        end_with(t, fail(OUTCOME_INVALID_URL, text));
        return;
    }
    t->foreign = t->foreign || !url_same_origin(&t->url, &next);
    rewrite_method(t);
    url_fini(&t->url);
    free(t->hop_url);
    t->url = next;
    t->hop_url = to;
    t->hops++;
    metric_add(METRIC_REDIRECTS, 1);
    t->fresh = t->resent = t->named = false;
    t->lost_times = 0;
    t->other_addresses = 0;
    start_undo(t);
    sched_release(&f->sched, &t->lane->s);
    requeue(t);
}

/* A connection that was kept, and closed by the origin just as we used it; or what came first was
 * no response, but bytes that an earlier one had too many. */
static bool dead_connection(const struct transfer *t, CURLcode code)
{
    long made = 0;
    curl_easy_getinfo(t->easy, CURLINFO_NUM_CONNECTS, &made);
    bool died = code == CURLE_GOT_NOTHING || code == CURLE_SEND_ERROR || code == CURLE_RECV_ERROR;
    bool junk = code == CURLE_UNSUPPORTED_PROTOCOL || code == CURLE_WEIRD_SERVER_REPLY;
    return made == 0 && t->heads == 0 && !t->resent && (died || junk) && may_repeat(t);
}

/* A handshake that failed with a session (of a server that has changed, say) is made again
 * without one: no session may cost a result. Nothing of the request has been sent. */
static bool dead_session(struct transfer *t, CURLcode code)
{
    bool tls = code == CURLE_SSL_CONNECT_ERROR || code == CURLE_PEER_FAILED_VERIFICATION;
    if (t->connected || (!t->resumes && !tls))
        return false;
    tls_forget(t->f->tls, t->url.host, t->url.port);
    return t->resumes && tls && !t->resent;
}

/* The host's further transfers go to its next address. */
static void leave_address(struct transfer *t)
{
    struct host *h = t->lane->host;
    if (t->addr_gen != 0 && t->addr_gen == h->addr_gen && h->n_addr > 1) /* nobody moved on yet */
        start_use_address(h, (h->cur + 1) % h->n_addr);
}

/* Another address of the same host, at once. */
static bool other_address(struct transfer *t)
{
    struct host *h = t->lane->host;
    if (t->addr_gen == 0 || h->state != HOST_RESOLVED || t->other_addresses + 1 >= h->n_addr)
        return false;
    leave_address(t);
    t->other_addresses++;
    return true;
}

/* Retry-After is the host's wish (RFC 9110 10.2.3): it holds for all requests to it, whether this
 * one is tried again or not. */
static void heed_retry_after(struct transfer *t)
{
    struct fetcher *f = t->f;
    if ((t->status != 429 && t->status != 503) || t->retry_after_ms <= 0)
        return;
    int64_t most = t->live->retry.max_retry_after_ms;
    int64_t ms = t->retry_after_ms < most ? t->retry_after_ms : most;
    sched_pause_host(&f->sched, &t->lane->host->s, f->now + ms * 1000);
}

static void note_version(struct transfer *t)
{
    long v = 0;
    curl_easy_getinfo(t->easy, CURLINFO_HTTP_VERSION, &v);
    t->version = v == CURL_HTTP_VERSION_1_0 ? 10 : v == CURL_HTTP_VERSION_2_0 ? 20 : 11;
}

/* connect() finds no free port, and no local address at all, by the same errno. A datagram socket
 * has ports of its own. */
static bool has_source(const struct transfer *t)
{
    int fd = socket(t->peer.sin6_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return true;
    int rc = connect(fd, (const struct sockaddr *)&t->peer, sizeof(t->peer));
    bool found = rc == 0 || errno == EAGAIN; /* EAGAIN: no datagram port is free */
    close(fd);
    return found;
}

/* Ports are counted for each destination: only this host waits, longer while it does not help. */
static void pause_for_ports(struct fetcher *f, struct host *h)
{
    if (f->now >= h->ports_pause_end) {
        bool again = f->now < h->ports_pause_end + PORTS_AGAIN_US;
        int64_t us = again ? h->ports_pause_us * 2 : PAUSE_US;
        h->ports_pause_us = us < PORTS_PAUSE_MAX_US ? us : PORTS_PAUSE_MAX_US;
        h->ports_pause_end = f->now + h->ports_pause_us;
        metric_add(METRIC_PRESSURE + METRIC_PRESSURE_PORTS, 1);
        log_event(LOG_DEBUG, "ports_short", LOG_S("host", h->name));
    }
    f->ports_short_until = h->ports_pause_end + PORTS_AGAIN_US;
    sched_pause_host(&f->sched, &h->s, h->ports_pause_end);
}

/* It ended for want of descriptors, ports or socket memory of this machine. */
static bool own_limit(struct transfer *t, CURLcode code)
{
    struct fetcher *f = t->f;
    long err = 0;
    if (!t->no_descriptor && code == CURLE_COULDNT_CONNECT && t->blocked_by == NULL)
        curl_easy_getinfo(t->easy, CURLINFO_OS_ERRNO, &err);
    if (err == EADDRNOTAVAIL && has_source(t)) {
        pause_for_ports(f, t->lane->host);
        return true;
    }
    if (!t->no_descriptor && err != EAGAIN && err != ENOBUFS && err != ENOMEM)
        return false;
    metric_add(METRIC_PRESSURE + METRIC_PRESSURE_DESCRIPTORS, 1);
    atomic_store(&f->e->starved_until, f->now + 4 * PAUSE_US);
    /* not all fetchers at once: each of them may need several to get anywhere */
    f->random = f->random * 6364136223846793005ULL + 1442695040888963407ULL;
    f->no_starts_before = f->now + PAUSE_US + (int64_t)(f->random >> 33) % PAUSE_US;
    return true;
}

/* Its body could not be written: it is fetched again when there is room. */
static bool no_room(struct transfer *t)
{
    if (t->no_space == 0)
        return false;
    uint64_t bytes = t->has_length && t->length > t->body_len ? t->length : t->body_len * 2;
    uint64_t max = body_max(t);
    body_drop(t); /* first, so that what it took counts as left */
    disk_spill_failed(t->f->e->disk, t->no_space, bytes < max ? bytes : max, !t->space_refused);
    return may_repeat(t);
}

/* What only the end of its connection ends, by TLS, unless its content coding tells as well. */
static bool cut_off(const struct transfer *t)
{
    bool tells = t->decode != NULL && decode_end(t->decode) == 0;
    return t->ends_by_close && !t->close_notify && !tells;
}

void end_transfer(struct transfer *t, CURLcode code)
{
    struct fetcher *f = t->f;
    int64_t charged = t->active_us;
    gather_times(t);
    bool complete = t->head_ended && t->status >= 200;
    if (complete) {
        note_version(t);
        heed_retry_after(t);
    } else {
        t->status = 0;
        body_drop(t); /* without a response there is no body */
    }

    if (no_room(t) || own_limit(t, code)) { /* nothing is charged to the request */
        t->active_us = charged;
        start_undo(t);
        sched_release(&f->sched, &t->lane->s);
        requeue(t);
        return;
    }
    if (h2_lost(t, code)) {
        start_undo(t);
        start_hop(t);
        return;
    }
    if (complete && h2_cut(t, code)) {
        start_undo(t);
        start_hop(t);
        return;
    }
    if (dead_session(t, code) || dead_connection(t, code)) {
        t->fresh = t->resent = true;
        start_undo(t);
        start_hop(t);
        return;
    }
    if (code == CURLE_COULDNT_CONNECT && t->blocked_by == NULL && other_address(t)) {
        start_undo(t);
        start_hop(t);
        return;
    }
    h2_failed(t, code);
    if (code == CURLE_OPERATION_TIMEDOUT && !t->connected)
        leave_address(t);
    if (t->follow && (code == CURLE_OK || t->hop_cut)) {
        follow(t);
        return;
    }
    if (code == CURLE_OK && cut_off(t)) {
        code = CURLE_PARTIAL_FILE;
        t->broken = "the TLS connection ended without close_notify: the body may be cut short";
    }
    t->truncated = code != CURLE_OK && complete;
    coded_end(t, code == CURLE_OK);
    if (t->follow) /* its body was not kept */
        t->body_len = 0;
    bool ours = t->undecodable != NULL && code == CURLE_WRITE_ERROR && !t->no_space;
    if (code != CURLE_OK && !ours)
        end_with(t, judge_code(t, code));
    else if (!complete) /* libcurl calls a header that breaks off a response */
        end_with(t, fail(OUTCOME_PROTOCOL, "the response ended before its header did"));
    else
        end_with(t, judge_response(t));
}

void end_timer(struct transfer *t)
{
    if (t->state == TRANSFER_JOINING) {
        add_time(t, TIMING_CONNECT, t->f->now - t->join_us);
        end_with(t, fail(OUTCOME_TIMEOUT, "no connection of the host took it in time"));
        return;
    }
    ASSERT(t->state == TRANSFER_RESOLVING);
    if (start_parts(t))
        return;
    if (dns_short(t->f->dns, t->f->now) || !dns_asked(t->f->dns, t->lane->host->name)) {
        start_undo(t); /* our own limit */
        start_release(t);
        requeue(t);
        return;
    }
    add_time(t, TIMING_DNS, t->f->now - t->resolve_us);
    end_with(t, fail(OUTCOME_TIMEOUT, "the name was not resolved in time"));
}

static bool is_late(const struct transfer *t)
{
    int64_t most = t->most_us;
    if (!t->connected && t->connect_most_us < most)
        most = t->connect_most_us;
    return t->state == TRANSFER_RUNNING && t->f->now - t->begin_us > most + LATE_US;
}

int64_t end_late(struct fetcher *f, int64_t until)
{
    if (f->n_transfers == 0)
        return until;
    if (f->late_due <= f->now) {
        struct transfer *late = NULL;
        ASSERT(f->doubts == NULL); /* they are listed as these are */
        f->late_due = f->now + LOOK_US;
        for (struct transfer *t = f->transfers; t != NULL; t = t->next) {
            if (!is_late(t))
                continue;
            t->late = true;
            t->list_next = late;
            late = t;
        }
        while (late != NULL) {
            struct transfer *t = late;
            late = t->list_next;
            t->list_next = NULL;
            end_transfer(t, CURLE_OPERATION_TIMEDOUT);
        }
    }
    return f->late_due < until ? f->late_due : until;
}
