/* From a lane that may start something to a transfer that libcurl runs: the record is decoded, the
 * name resolved, the address judged, the easy handle set up. Runs on the fetcher's thread. */
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/budget.h"
#include "server/fetch_int.h"
#include "server/metrics.h"

enum {
    IDLE_AGE_S = 60,
    /* That libcurl receives into, and adds a byte to (the allocator's next size is a quarter
     * larger). Each transfer has its own. */
    BUFFER_BYTES = 16 * 1024 - 1,
    RECORD_SMALL = 4 * 1024,
    BUFFER_MANY = 2 * 1024 - 1, /* 2 KiB less resident for each of 10,000 … */
    MANY_TRANSFERS = 256,       /* … when there are more than this */
};

/* ---- libcurl's callbacks ---- */

bool may_repeat(const struct transfer *t)
{
    bool post = t->method.len == 4 && memcmp(t->method.ptr, "POST", 4) == 0;
    bool patch = t->method.len == 5 && memcmp(t->method.ptr, "PATCH", 5) == 0;
    return !post && !patch;
}

/* Connected, or a kept connection was chosen; nothing has been sent yet. */
static int on_connected(void *arg, char *ip, char *local_ip, int port, int local_port)
{
    struct transfer *t = arg;
    ASSERT(t->magic == TRANSFER_MAGIC);
    if (t->connected && !may_repeat(t)) {
        /* libcurl found its kept connection closed and would send the request once more. */
        t->broken = "the origin closed a kept connection; the request may have reached it";
        return CURL_PREREQFUNC_ABORT;
    }
    t->connected = t->fd_used = true;
    metric_add(
        METRIC_CONNECTIONS + (t->fd >= 0 ? METRIC_CONNECTION_OPENED : METRIC_CONNECTION_REUSED), 1);
    h2_connected(t);
    (void)local_ip;
    (void)port;
    (void)local_port;
    struct sockaddr_in v4 = {.sin_family = AF_INET};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6};
    const struct sockaddr *sa = NULL;
    if (inet_pton(AF_INET, ip, &v4.sin_addr) == 1)
        sa = (const struct sockaddr *)&v4;
    else if (inet_pton(AF_INET6, ip, &v6.sin6_addr) == 1)
        sa = (const struct sockaddr *)&v6;
    t->blocked_by = sa == NULL ? "unknown" : guard_check(&t->f->e->guard, sa);
    if (t->blocked_by != NULL)
        return CURL_PREREQFUNC_ABORT;
    snprintf(t->remote_ip, sizeof(t->remote_ip), "%s", ip);
    return CURL_PREREQFUNC_OK;
}

/* Names are resolved by us alone: their addresses stand in libcurl's cache (tell_address). */
static int on_resolve(void *resolver, void *reserved, void *arg)
{
    const struct transfer *t = arg;
    (void)resolver;
    (void)reserved;
    ASSERT(t->magic == TRANSFER_MAGIC);
    return t->url.host_is_ip ? 0 : 1;
}

/* A new connection's SSL_CTX, before its handshake. */
static CURLcode on_ssl_ctx(CURL *easy, void *ssl_ctx, void *arg)
{
    struct transfer *t = arg;
    ASSERT(t->magic == TRANSFER_MAGIC);
    (void)easy;
    if (t->offers_h2)
        h2_watch(t->f, ssl_ctx);
    int rc = tls_prepare(t->f->tls, ssl_ctx, t->url.host, t->url.port, &t->resumes);
    return rc == 0 ? CURLE_OK : CURLE_OUT_OF_MEMORY;
}

/* ---- easy handles ---- */

static void set_base(struct fetcher *f, CURL *h)
{
    curl_easy_setopt(h, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(h, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(h, CURLOPT_REDIR_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(h, CURLOPT_FOLLOWLOCATION, 0L); /* each hop goes through sched and guard */
    curl_easy_setopt(h, CURLOPT_PROXY, "");          /* the environment's would pass the guard by */
    curl_easy_setopt(h, CURLOPT_NOPROXY, "*");
    curl_easy_setopt(h, CURLOPT_NETRC, (long)CURL_NETRC_IGNORED);
    curl_easy_setopt(h, CURLOPT_DISALLOW_USERNAME_IN_URL, 1L);
    curl_easy_setopt(h, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
    curl_easy_setopt(h, CURLOPT_HTTP09_ALLOWED, 0L);
    curl_easy_setopt(h, CURLOPT_HTTP_CONTENT_DECODING, 0L); /* decode.c's; so is the field */
    curl_easy_setopt(h, CURLOPT_SSLVERSION, (long)CURL_SSLVERSION_TLSv1_2);
    curl_easy_setopt(h, CURLOPT_SSL_VERIFYPEER, 1L);
    curl_easy_setopt(h, CURLOPT_SSL_VERIFYHOST, 2L);
    /* Trust and sessions are tls.c's: libcurl's own are empty, so without it nothing verifies. */
    curl_easy_setopt(h, CURLOPT_CAPATH, NULL);
    curl_easy_setopt(h, CURLOPT_CAINFO, NULL);
    curl_easy_setopt(h, CURLOPT_SSL_SESSIONID_CACHE, 0L);
    curl_easy_setopt(h, CURLOPT_SSL_CTX_FUNCTION, on_ssl_ctx);
    curl_easy_setopt(h, CURLOPT_RESOLVER_START_FUNCTION, on_resolve);
    curl_easy_setopt(h, CURLOPT_WRITEFUNCTION, head_body);
    curl_easy_setopt(h, CURLOPT_HEADERFUNCTION, head_line);
    curl_easy_setopt(h, CURLOPT_PREREQFUNCTION, on_connected);
    curl_easy_setopt(h, CURLOPT_OPENSOCKETFUNCTION, multi_open_socket);
    curl_easy_setopt(h, CURLOPT_CLOSESOCKETFUNCTION, multi_close_socket);
    curl_easy_setopt(h, CURLOPT_CLOSESOCKETDATA, f);
}

/* User-Agent and Accept-Encoding as fields of our own: from its options libcurl would print each
 * of them twice for every request. */
int start_init(struct fetcher *f)
{
    struct buf b;
    buf_init(&b, 1024);
    f->encoding_field = curl_slist_append(NULL, "Accept-Encoding: " DECODE_ACCEPTED);
    int rc = buf_addf(&b, "User-Agent: %s", f->e->cfg->user_agent);
    if (rc == 0)
        rc = buf_addc(&b, '\0');
    if (rc == 0)
        f->agent_field = curl_slist_append(NULL, b.data);
    buf_fini(&b);
    if (rc != 0 || f->encoding_field == NULL || f->agent_field == NULL)
        return E_NOMEM;
    f->agent_field->next = f->encoding_field; /* both: what most requests get */
    return 0;
}

void start_fini(struct fetcher *f)
{
    if (f->agent_field == NULL || f->agent_field->next == NULL)
        curl_slist_free_all(f->encoding_field);
    curl_slist_free_all(f->agent_field);
}

CURL *start_easy(struct fetcher *f)
{
    if (f->n_easies > 0)
        return f->easies[--f->n_easies];
    CURL *h = curl_easy_init();
    if (h != NULL)
        set_base(f, h);
    return h;
}

void start_give_easy(struct fetcher *f, CURL *easy)
{
    if (f->n_easies >= f->spares_max) {
        curl_easy_cleanup(easy);
        return;
    }
    /* What one request set must not reach the next: the few options are put back one by one,
     * which is cheaper than curl_easy_reset and set_base. */
    curl_easy_setopt(easy, CURLOPT_HTTPHEADER, NULL);
    curl_easy_setopt(easy, CURLOPT_RESOLVE, NULL);
    curl_easy_setopt(easy, CURLOPT_CUSTOMREQUEST, NULL);
    curl_easy_setopt(easy, CURLOPT_POSTFIELDS, NULL);
    curl_easy_setopt(easy, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)-1);
    curl_easy_setopt(easy, CURLOPT_NOBODY, 0L);
    curl_easy_setopt(easy, CURLOPT_HTTPGET, 1L);
    curl_easy_setopt(easy, CURLOPT_FRESH_CONNECT, 0L);
    curl_easy_setopt(easy, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
    f->easies[f->n_easies++] = easy;
}

static bool field_is(struct span name, const char *text)
{
    return name.len == strlen(text) && strncasecmp(name.ptr, text, name.len) == 0;
}

/* Fields that may go to another origin than the one they were meant for; whatever else the caller
 * gave may be a credential. */
static bool may_travel(struct span name)
{
    static const char *const names[] = {"accept",     "accept-language", "accept-encoding",
                                        "user-agent", "cache-control",   "range"};
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        if (field_is(name, names[i]))
            return true;
    }
    return false;
}

static int add_line(struct curl_slist **list, const char *text)
{
    struct curl_slist *l = curl_slist_append(*list, text);
    if (l == NULL)
        return E_NOMEM;
    *list = l;
    return 0;
}

static int add_field(struct transfer *t, const char *text)
{
    return add_line(&t->fields, text);
}

static int set_fields(struct transfer *t)
{
    struct fetcher *f = t->f;
    struct span rest = t->item.headers, name, value;
    bool has_type = false, has_agent = false, has_encoding = false, has_range = false;
    while (item_next_header(&rest, &name, &value)) {
        bool of_content = name.len > 8 && strncasecmp(name.ptr, "content-", 8) == 0;
        bool body_dropped = !t->with_body && t->hops > 0; /* by a redirect */
        if ((of_content && body_dropped) || (t->foreign && !of_content && !may_travel(name)))
            continue;
        has_type = has_type || field_is(name, "content-type");
        has_agent = has_agent || field_is(name, "user-agent");
        has_encoding = has_encoding || field_is(name, "accept-encoding");
        has_range = has_range || field_is(name, "range");
        buf_reset(&f->scratch);
        int rc = value.len == 0 ? buf_addf(&f->scratch, "%.*s;", (int)name.len, name.ptr)
                                : buf_addf(&f->scratch, "%.*s: %.*s", (int)name.len, name.ptr,
                                           (int)value.len, value.ptr);
        if (rc == 0)
            rc = buf_addc(&f->scratch, '\0');
        if (rc == 0)
            rc = add_field(t, f->scratch.data);
        if (rc != 0)
            return rc;
    }
    int rc = 0;
    if (t->with_body && !has_type) /* libcurl would call any body a form */
        rc = add_field(t, "Content-Type:");
    /* libcurl would wait a second for 100 Continue, and answer 417 by a request of its own. */
    if (rc == 0 && t->with_body)
        rc = add_field(t, "Expect:");
    if (rc == 0 && t->fields != NULL && !has_agent)
        rc = add_field(t, f->agent_field->data);
    /* A range is one of the coded bytes: nothing could be done with it (as browsers do it). */
    if (rc == 0 && t->fields != NULL && !has_encoding)
        rc = add_field(t, has_range ? "Accept-Encoding: identity" : f->encoding_field->data);
    return rc;
}

static bool span_is(struct span s, const char *text)
{
    return s.len == strlen(text) && memcmp(s.ptr, text, s.len) == 0;
}

static void set_method(struct transfer *t)
{
    static const char *const names[] = {"PUT", "PATCH", "DELETE", "OPTIONS"};
    if (t->with_body) {
        curl_easy_setopt(t->easy, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)t->item.body.len);
        curl_easy_setopt(t->easy, CURLOPT_POSTFIELDS, t->item.body.len > 0 ? t->item.body.ptr : "");
    } else if (span_is(t->method, "HEAD")) {
        curl_easy_setopt(t->easy, CURLOPT_NOBODY, 1L);
    }
    for (size_t i = 0; t->method.ptr != NULL && i < ARRAY_LEN(names); i++) {
        if (span_is(t->method, names[i]))
            curl_easy_setopt(t->easy, CURLOPT_CUSTOMREQUEST, names[i]);
    }
}

static uint32_t or_default(uint32_t value, uint32_t otherwise)
{
    return value != 0 ? value : otherwise;
}

static int64_t timeout_us(const struct transfer *t)
{
    return (int64_t)or_default(t->item.timeout_ms, t->f->e->cfg->timeout_ms) * 1000;
}

static int64_t connect_timeout_us(const struct transfer *t)
{
    return (int64_t)or_default(t->item.connect_timeout_ms, t->f->e->cfg->connect_timeout_ms) * 1000;
}

/* A literal IPv6 address: CURLOPT_RESOLVE has no syntax to take it out of the cache. */
static bool is_v6(const struct transfer *t)
{
    return t->url.host_is_ip && strchr(t->url.host, ':') != NULL;
}

/* A removal that fails for want of memory costs the entry's memory, no more. */
void start_forget(struct host *h)
{
    char text[300];
    snprintf(text, sizeof(text), "-%s:%u", h->name, h->cached_port);
    for (unsigned k = 0; h->cached != 0 && k < ALL_SHARDS; k++) {
        struct curl_slist *l = h->cached & (1U << k) ? curl_slist_append(NULL, text) : NULL;
        if (l != NULL) { /* at the head: there may be many */
            l->next = h->f->shards[k].forget;
            h->f->shards[k].forget = l;
        }
    }
    h->cached = 0;
}

/* The address goes into the cache of libcurl's that the transfer will use, each time: so it never
 * depends on what happened to an earlier one. Not by CURLOPT_CONNECT_TO: with that libcurl keeps
 * all connections to one address in one list, whatever names they are for, and polls each of them
 * for every transfer. */
static int tell_address(struct transfer *t, struct shard *s)
{
    struct host *h = t->lane->host;
    uint16_t port = t->url.port;
    if (h->cached != 0 && h->cached_port != port)
        start_forget(h);
    t->resolve = s->forget;
    s->forget = NULL;
    if (!is_v6(t)) {
        h->cached |= 1U << (s - t->f->shards);
        h->cached_port = port;
    }
    if (t->url.host_is_ip)
        return 0;
    if (h->ip[0] == '\0') {
        const struct dns_addr *a = &h->addr[h->cur];
        char ip[INET6_ADDRSTRLEN];
        inet_ntop(a->family, a->addr, ip, sizeof(ip));
        snprintf(h->ip, sizeof(h->ip), a->family == AF_INET6 ? "[%s]" : "%s", ip);
    }
    char text[360];
    snprintf(text, sizeof(text), "%s:%u:%s", h->name, port, h->ip);
    return add_line(&t->resolve, text);
}

static int set_up(struct transfer *t)
{
    struct fetcher *f = t->f;
    CURL *h = t->easy;
    int64_t left = timeout_us(t) - t->active_us;
    int64_t connect = connect_timeout_us(t) - (f->now - t->resolve_us);
    left = left < 1000 ? 1000 : left;
    connect = connect < 1000 ? 1000 : connect;

    buf_reset(&f->scratch);
    int rc = buf_add(&f->scratch, t->url.text.ptr, t->url.text.len);
    if (rc == 0)
        rc = buf_addc(&f->scratch, '\0');
    if (rc != 0)
        return rc;
    CURLcode code = curl_easy_setopt(h, CURLOPT_URL, f->scratch.data);
    curl_easy_setopt(h, CURLOPT_PRIVATE, t);
    curl_easy_setopt(h, CURLOPT_WRITEDATA, t);
    curl_easy_setopt(h, CURLOPT_HEADERDATA, t);
    curl_easy_setopt(h, CURLOPT_PREREQDATA, t);
    curl_easy_setopt(h, CURLOPT_OPENSOCKETDATA, t);
    curl_easy_setopt(h, CURLOPT_SSL_CTX_DATA, t);
    curl_easy_setopt(h, CURLOPT_ERRORBUFFER, t->error);
    /* What must not be sent twice takes only connections that were in use just now. */
    curl_easy_setopt(h, CURLOPT_MAXAGE_CONN, may_repeat(t) ? (long)IDLE_AGE_S : 2L);
    curl_easy_setopt(h, CURLOPT_TIMEOUT_MS, (long)(left / 1000));
    curl_easy_setopt(h, CURLOPT_CONNECTTIMEOUT_MS, (long)(connect / 1000));
    bool many = f->n_transfers > MANY_TRANSFERS;
    curl_easy_setopt(h, CURLOPT_BUFFERSIZE, many ? (long)BUFFER_MANY : (long)BUFFER_BYTES);
    curl_easy_setopt(h, CURLOPT_RESOLVE, t->resolve);
    /* -1: its cache never looks for what is too old, which would be a walk through all of it at
     * the end of every transfer; start_forget cleans up. */
    curl_easy_setopt(h, CURLOPT_DNS_CACHE_TIMEOUT, is_v6(t) ? 0L : -1L);
    curl_easy_setopt(h, CURLOPT_RESOLVER_START_DATA, t);
    bool crowded = f->sockets > f->socket_share / 2;
    curl_easy_setopt(h, CURLOPT_FORBID_REUSE,
                     crowded && t->lane->s.queued == 0 && t->lane->last ? 1L : 0L);
    if (t->offers_h2)
        curl_easy_setopt(h, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_2TLS);
    if (t->fresh)
        curl_easy_setopt(h, CURLOPT_FRESH_CONNECT, 1L);
    set_method(t);
    rc = set_fields(t);
    if (rc == 0)
        curl_easy_setopt(h, CURLOPT_HTTPHEADER, t->fields != NULL ? t->fields : f->agent_field);
    return rc != 0 ? rc : code == CURLE_OK ? 0 : E_NOMEM;
}

static void reset_response(struct transfer *t)
{
    t->status = t->version = 0;
    t->heads = t->lines = 0;
    t->field_bytes = 0;
    buf_reset(&t->fields_in);
    buf_reset(&t->location);
    body_drop(t);
    t->retry_after_ms = -1;
    t->location_cut = t->too_many_hops = t->has_length = t->connected = t->resumes = false;
    t->is_h2 = t->lost = t->ends_by_close = false;
    t->fd = -1;
    t->broken = NULL;
    t->undecodable = NULL;
    t->coded_len = 0;
    t->decoded = t->pending_lost = false;
    t->head_ended = t->follow = t->hop_cut = t->too_large = t->too_many_fields = false;
    t->no_descriptor = t->space_refused = t->truncated = false;
    t->no_space = 0;
    t->blocked_by = NULL;
    t->remote_ip[0] = '\0';
    t->error[0] = '\0';
}

void start_undo(struct transfer *t)
{
    if (t->state == TRANSFER_RESOLVING)
        start_unwait(t);
    if (t->state == TRANSFER_JOINING)
        h2_unjoin(t);
    if (t->shard != NULL && t->offers_h2)
        h2_left(t);
    multi_remove(t);
    if (t->uses_tls)
        atomic_fetch_sub(&t->f->e->tls_running, 1);
    t->uses_tls = false;
    coded_drop(t);
    if (t->easy != NULL)
        start_give_easy(t->f, t->easy);
    t->easy = NULL;
    curl_slist_free_all(t->fields);
    t->fields = NULL;
    curl_slist_free_all(t->resolve);
    t->resolve = NULL;
    if (t->state == TRANSFER_RUNNING)
        t->state = TRANSFER_IDLE;
}

static void charge_resolving(struct transfer *t)
{
    t->timing[TIMING_DNS] += (uint64_t)(t->f->now - t->resolve_us);
    t->active_us += t->f->now - t->resolve_us;
}

static void run_now(struct transfer *t)
{
    struct fetcher *f = t->f;
    int rc = E_NOMEM;
    t->offers_h2 = h2_offered(t);
    struct shard *s = multi_shard(f, t->lane->host, t->offers_h2);
    t->easy = start_easy(f);
    t->uses_tls = t->url.https;
    if (t->uses_tls)
        atomic_fetch_add(&f->e->tls_running, 1);
    if (t->easy != NULL)
        rc = tell_address(t, s);
    if (rc == 0)
        rc = set_up(t);
    if (rc == 0)
        rc = multi_add(t, s);
    if (rc != 0) {
        end_with(t, (struct verdict){OUTCOME_INTERNAL, "out of memory", true});
        return;
    }
    t->state = TRANSFER_RUNNING;
    h2_started(t);
}

/* When a wait that is part of connecting has to be over. */
static int64_t wait_limit(const struct transfer *t)
{
    int64_t left = timeout_us(t) - t->active_us;
    int64_t connect = connect_timeout_us(t) - (t->f->now - t->resolve_us);
    return t->f->now + (left < connect ? left : connect);
}

static void run(struct transfer *t)
{
    charge_resolving(t);
    if (h2_join(t))
        timer_set(t, wait_limit(t));
    else
        run_now(t);
}

/* ---- names ---- */

void start_use_address(struct host *h, size_t i)
{
    h->cur = i;
    h->ip[0] = '\0';
    if (++h->addr_gen == 0)
        h->addr_gen = 1;
}

static const char *judge(const struct fetcher *f, const struct dns_addr *a)
{
    struct sockaddr_in v4 = {.sin_family = AF_INET};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6};
    if (a->family == AF_INET) {
        memcpy(&v4.sin_addr, a->addr, 4);
        return guard_check(&f->e->guard, (const struct sockaddr *)&v4);
    }
    memcpy(&v6.sin6_addr, a->addr, 16);
    return guard_check(&f->e->guard, (const struct sockaddr *)&v6);
}

/* Keeps what may be connected to. The address in use stays in use while it is still among them:
 * its connections are warm. */
static void take_answer(struct fetcher *f, struct host *h, const struct dns_answer *a)
{
    struct dns_addr used = {0};
    if (h->n_addr > 0)
        used = h->addr[h->cur];
    size_t n = 0, cur = 0;
    const char *rule = NULL;
    for (size_t i = 0; i < a->n; i++) {
        const char *denied = judge(f, &a->addr[i]);
        if (denied != NULL) {
            rule = denied;
            continue;
        }
        if (memcmp(&a->addr[i], &used, sizeof(used)) == 0)
            cur = n;
        h->addr[n++] = a->addr[i];
    }
    h->n_addr = n;
    h->cur = cur;
    if (n == 0 || h->addr_gen == 0 || memcmp(&h->addr[cur], &used, sizeof(used)) != 0)
        start_use_address(h, cur);
    h->blocked_by = rule;
    h->state = n > 0 ? HOST_RESOLVED : HOST_BLOCKED;
    h->expires_us = a->expires_us;
}

static void blocked(struct transfer *t, const char *rule)
{
    t->blocked_by = rule;
    end_with(t, (struct verdict){OUTCOME_BLOCKED_ADDRESS, NULL, false});
}

static void resolved(struct transfer *t, struct host *h, const struct dns_answer *failure)
{
    if (failure != NULL) {
        charge_resolving(t);
        end_with(t, (struct verdict){OUTCOME_DNS, failure->error, failure->rc != E_NOTFOUND});
    } else if (h->state == HOST_BLOCKED) {
        blocked(t, h->blocked_by);
    } else if (t->parted) { /* in line for slots again */
        charge_resolving(t);
        start_release(t);
        t->named = true;
        t->ready_us = t->f->now;
        transfer_send(t);
    } else {
        t->addr_gen = h->addr_gen;
        run(t);
    }
}

void start_joined(struct transfer *t)
{
    struct host *h = t->lane->host;
    t->timing[TIMING_CONNECT] += (uint64_t)(t->f->now - t->join_us);
    t->active_us += t->f->now - t->join_us;
    if (t->addr_gen != 0 && h->state == HOST_BLOCKED) {
        blocked(t, h->blocked_by);
        return;
    }
    if (t->addr_gen != 0) /* the host may have moved on meanwhile */
        t->addr_gen = h->addr_gen;
    run_now(t);
}

void start_unwait(struct transfer *t)
{
    struct host *h = t->lane->host;
    if (t->list_prev != NULL)
        t->list_prev->list_next = t->list_next;
    else
        h->wait_head = t->list_next;
    if (t->list_next != NULL)
        t->list_next->list_prev = t->list_prev;
    else
        h->wait_tail = t->list_prev;
    t->list_prev = t->list_next = NULL;
    t->state = TRANSFER_IDLE;
    timer_set(t, INT64_MAX);
}

static int64_t part_at(const struct transfer *t)
{
    bool may = !t->parted && t->f->n_parted < NAME_WAITS_MAX;
    return may ? t->resolve_us + NAME_SLOT_US : INT64_MAX;
}

/* When its name has to be there. */
static int64_t name_limit(const struct transfer *t)
{
    int64_t left = timeout_us(t) - t->active_us, connect = connect_timeout_us(t);
    return t->resolve_us + (left < connect ? left : connect);
}

static void set_wait(struct transfer *t)
{
    int64_t limit = name_limit(t), part = part_at(t);
    timer_set(t, part < limit ? part : limit);
}

bool start_parts(struct transfer *t)
{
    struct fetcher *f = t->f;
    if (name_limit(t) <= f->now)
        return false;
    if (part_at(t) <= f->now) { /* else too many others have parted since it began to wait */
        sched_hold_host(&f->sched, &t->lane->host->s, true); /* more of it would only wait too */
        sched_release(&f->sched, &t->lane->s);
        t->parted = true;
        f->n_parted++;
    }
    set_wait(t);
    return true;
}

void start_release(struct transfer *t)
{
    if (!t->parted)
        sched_release(&t->f->sched, &t->lane->s);
    t->f->n_parted -= t->parted;
    t->parted = false;
}

static void on_answer(void *arg, const struct dns_answer *a)
{
    struct host *h = arg;
    if (a->rc == 0)
        take_answer(h->f, h, a);
    else
        h->state = HOST_UNKNOWN;
    h->s.n_lanes++; /* held while its waiting transfers are told */
    sched_hold_host(&h->f->sched, &h->s, false);
    while (h->wait_head != NULL) {
        struct transfer *t = h->wait_head;
        start_unwait(t);
        resolved(t, h, a->rc == 0 ? NULL : a);
    }
    h->s.n_lanes--;
    host_release(h);
}

static void ask(struct transfer *t, struct host *h)
{
    struct fetcher *f = t->f;
    if (h->state != HOST_ASKING) {
        struct dns_answer a;
        int rc = dns_resolve(f->dns, h->name, f->now, on_answer, h, &a);
        if (rc != 1) {
            if (rc != 0)
                a = (struct dns_answer){.rc = E_IO, .error = "out of memory"};
            if (a.rc == 0)
                take_answer(f, h, &a);
            resolved(t, h, a.rc == 0 ? NULL : &a);
            return;
        }
        h->state = HOST_ASKING;
        f->asked = true;
    }
    t->state = TRANSFER_RESOLVING;
    t->list_prev = h->wait_tail;
    t->list_next = NULL;
    if (h->wait_tail != NULL)
        h->wait_tail->list_next = t;
    else
        h->wait_head = t;
    h->wait_tail = t;
    set_wait(t);
}

void start_hop(struct transfer *t)
{
    struct fetcher *f = t->f;
    struct host *h = t->lane->host;
    t->addr_gen = 0;
    reset_response(t); /* an earlier hop's, or attempt's, is not this one's */
    t->resolve_us = f->now;
    if (t->url.host_is_ip) {
        struct dns_addr a = {.family = AF_INET};
        if (inet_pton(AF_INET, t->url.host, a.addr) != 1) {
            a.family = AF_INET6;
            if (inet_pton(AF_INET6, t->url.host, a.addr) != 1) {
                blocked(t, "unknown");
                return;
            }
        }
        const char *rule = judge(f, &a);
        if (rule != NULL)
            blocked(t, rule);
        else
            run(t);
        return;
    }
    bool known = h->state == HOST_RESOLVED || h->state == HOST_BLOCKED;
    if (known && (t->named || f->now < h->expires_us))
        resolved(t, h, NULL);
    else
        ask(t, h);
}

/* ---- out of the lane ---- */

static struct transfer *pop_front(struct lane *l)
{
    struct transfer *t = l->front;
    if (t == NULL)
        return NULL;
    l->front = t->list_next;
    if (l->front == NULL)
        l->front_tail = &l->front;
    t->list_next = NULL;
    t->state = TRANSFER_IDLE;
    return t;
}

static void end_page(struct fetcher *f, struct page_in **list, struct page_in ***tail)
{
    struct page_in *p = *list;
    if (p->pos < p->m->len)
        return;
    *list = p->next;
    if (*list == NULL)
        *tail = list;
    budget_free_page(f->e, p->m);
    free(p);
}

/* The times of the attempts that it has had, or its first wait. */
static void take_times(struct transfer *t, struct page_in *p)
{
    const struct live *live = t->live;
    if (p->m->m.type == FETCH_AGAIN) {
        struct again a;
        memcpy(&a, p->m->data + p->pos, sizeof(a));
        p->pos += sizeof(a);
        memcpy(t->timing, a.timing_us, sizeof(t->timing));
        t->attempts = a.attempts;
        t->page = a.page;
        t->handed = true;
        if (p->arrived_us > a.since_us)
            t->timing[TIMING_RETRY_WAIT] += (uint64_t)(p->arrived_us - a.since_us);
    } else {
        int64_t queued = p->arrived_us - live->accept_us;
        t->timing[TIMING_QUEUED] = queued > 0 ? (uint64_t)queued : 0;
        t->page = p->m->no;
    }
    t->home = p->m->lane;
    t->ready_us = p->arrived_us;
}

/* A fresh transfer from what the keeper sent for the lane. */
static struct transfer *take_record(struct fetcher *f, struct lane *l)
{
    struct page_in *p = l->again != NULL ? l->again : l->pages;
    ASSERT(p != NULL && l->in_pages > 0);
    struct live *live = l->batch->live;
    struct transfer *t = transfer_new(f, live);
    live_ref(live);
    live_begun(live);
    atomic_fetch_add(&live->in_flight, 1);

    take_times(t, p);
    size_t from = p->pos;
    int rc = item_decode(p->m->data, p->m->len, &p->pos, &t->item);
    ASSERT(rc == 0); /* checked when the page came */
    rc = buf_add(&t->record, p->m->data + from, p->pos - from);
    ASSERT(rc == 0);
    from = 0;
    rc = item_decode(t->record.data, t->record.len, &from, &t->item);
    ASSERT(rc == 0);
    l->in_pages--;
    f->in_pages--;
    if (t->record.len > RECORD_SMALL) { /* as much as its page */
        t->record_cost = t->record.len;
        atomic_fetch_add(&f->e->queued_bytes, (int64_t)t->record_cost);
    }
    if (p == l->again)
        end_page(f, &l->again, &l->again_tail);
    else
        end_page(f, &l->pages, &l->pages_tail);
    transfer_attach(f, t, l);

    const char *why;
    rc = item_apply_defaults(&t->item, &live->defaults, &t->joined);
    if (rc == 0)
        rc = url_parse(&t->url, t->item.url.ptr, t->item.url.len, &why);
    t->method = t->item.method;
    t->with_body = t->item.body.ptr != NULL || span_is(t->method, "POST") ||
                   span_is(t->method, "PUT") || span_is(t->method, "PATCH");
    if (rc != 0) { /* it was fine when it was accepted */
        lane_settle_want(f, l);
        sched_release(&f->sched, &l->s);
        transfer_detach(t);
        struct verdict v = {OUTCOME_INTERNAL, "the stored request cannot be read", false};
        out_result(t, &v);
        transfer_free(t);
        return NULL;
    }
    return t;
}

void start_next(struct fetcher *f, struct lane *l)
{
    struct transfer *t = pop_front(l);
    if (t == NULL)
        t = take_record(f, l);
    if (t == NULL)
        return;
    lane_settle_want(f, l);
    /* ready_us of a hop is another fetcher's clock of its turn, which may be ahead of ours */
    if (f->now > t->ready_us)
        t->timing[TIMING_LIMIT_WAIT] += (uint64_t)(f->now - t->ready_us);
    /* Two names may share a lane's hash: the limit is the host's. */
    if (strcmp(t->url.host, l->host->name) != 0) {
        t->ready_us = f->now;
        sched_release(&f->sched, &l->s);
        transfer_send(t);
        return;
    }
    t->attempts += t->new_attempt;
    metric_add(METRIC_ATTEMPTS, t->new_attempt);
    t->new_attempt = false;
    start_hop(t);
}
