/* What libcurl is told of a request: its handles, their options, the address to connect to, and the
 * callbacks. Runs on the fetcher's thread. */
#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>

#include "server/fetch_int.h"
#include "server/metrics.h"

enum {
    IDLE_AGE_S = 60,
    /* That libcurl receives into, and adds a byte to (the allocator's next size is a quarter
     * larger). Each transfer has its own. */
    BUFFER_BYTES = 16 * 1024 - 1,
    BUFFER_MANY = 2 * 1024 - 1, /* 2 KiB less resident for each of 10,000 … */
    MANY_TRANSFERS = 256,       /* … when there are more than this */
};

/* ---- libcurl's callbacks ---- */

bool may_repeat(const struct transfer *t)
{
    return !span_is(t->method, "POST") && !span_is(t->method, "PATCH");
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

/* Names are resolved by us alone: their addresses stand in libcurl's cache (easy_tell_address). */
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
int easy_init(struct fetcher *f)
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

void easy_fini(struct fetcher *f)
{
    if (f->agent_field == NULL || f->agent_field->next == NULL)
        curl_slist_free_all(f->encoding_field);
    curl_slist_free_all(f->agent_field);
}

CURL *easy_take(struct fetcher *f)
{
    if (f->n_easies > 0)
        return f->easies[--f->n_easies];
    CURL *h = curl_easy_init();
    if (h != NULL)
        set_base(f, h);
    return h;
}

void easy_give(struct fetcher *f, CURL *easy)
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

/* Fields that may go to another origin than the one they were meant for; whatever else the caller
 * gave may be a credential. */
static bool may_travel(struct span name)
{
    static const char *const names[] = {"accept",     "accept-language", "accept-encoding",
                                        "user-agent", "cache-control",   "range"};
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        if (span_is_field(name, names[i]))
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
        has_type = has_type || span_is_field(name, "content-type");
        has_agent = has_agent || span_is_field(name, "user-agent");
        has_encoding = has_encoding || span_is_field(name, "accept-encoding");
        has_range = has_range || span_is_field(name, "range");
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

int64_t easy_timeout_us(const struct transfer *t)
{
    return (int64_t)or_default(t->item.timeout_ms, t->f->e->cfg->timeout_ms) * 1000;
}

int64_t easy_connect_timeout_us(const struct transfer *t)
{
    return (int64_t)or_default(t->item.connect_timeout_ms, t->f->e->cfg->connect_timeout_ms) * 1000;
}

/* A literal IPv6 address: CURLOPT_RESOLVE has no syntax to take it out of the cache. */
static bool is_v6(const struct transfer *t)
{
    return t->url.host_is_ip && strchr(t->url.host, ':') != NULL;
}

/* A removal that fails for want of memory costs the entry's memory, no more. */
void easy_forget(struct host *h)
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
int easy_tell_address(struct transfer *t, struct shard *s)
{
    struct host *h = t->lane->host;
    uint16_t port = t->url.port;
    if (h->cached != 0 && h->cached_port != port)
        easy_forget(h);
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

int easy_set_up(struct transfer *t)
{
    struct fetcher *f = t->f;
    CURL *h = t->easy;
    int64_t left = easy_timeout_us(t) - t->active_us;
    int64_t connect = easy_connect_timeout_us(t) - (f->now - t->resolve_us);
    left = left < 1000 ? 1000 : left;
    connect = connect < 1000 ? 1000 : connect;
    t->begin_us = f->now;
    t->most_us = left;
    t->connect_most_us = connect;
    t->late = false;

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
     * the end of every transfer; easy_forget cleans up. */
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
