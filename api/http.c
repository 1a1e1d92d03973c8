/* The HTTP server: the listening socket, libmicrohttpd's callbacks, start and stop. Everything that
 * knows the order of libmicrohttpd's calls is here: the log callback (request line), the first call
 * (header), body calls, the final call, completion. They run on the api thread, which is
 * libmicrohttpd's own; api_start and api_stop run on the main thread. */
#include "api/http.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include "api/answer.h"
#include "api/held.h"
#include "api/ingest.h"
#include "api/inspect.h"
#include "api/park.h"
#include "api/routes.h"
#include "server/health.h"
#include "server/metrics.h"
#include "server/pulse.h"

enum {
    BACKLOG = 1024,
    UNSENT_MAX = 128 * 1024,
    DRAIN_US = 3 * 1000 * 1000, /* for the answers under way when the service stops */
    PARAMETERS_MAX = 256,       /* of a query; every route knows far fewer, but for metadata.KEY */
};

/* ---- reading from a request ---- */

struct collect {
    const char *name;
    unsigned n;
    const char *first;
    struct buf *joined;
};

static enum MHD_Result collect_field(void *arg, enum MHD_ValueKind kind, const char *name,
                                     const char *value)
{
    struct collect *c = arg;

    (void)kind;
    if (strcasecmp(name, c->name) != 0)
        return MHD_YES;
    if (c->n++ == 0)
        c->first = value ? value : "";
    if (c->joined && buf_addf(c->joined, "%s%s", c->n > 1 ? ", " : "", value ? value : "") != 0)
        return MHD_NO;
    return MHD_YES;
}

unsigned request_header_count(struct request *r, const char *name)
{
    struct collect c = {.name = name};

    MHD_get_connection_values(r->conn, MHD_HEADER_KIND, collect_field, &c);
    return c.n;
}

const char *request_header(struct request *r, const char *name)
{
    struct collect c = {.name = name};
    struct buf joined;

    MHD_get_connection_values(r->conn, MHD_HEADER_KIND, collect_field, &c);
    if (c.n < 2)
        return c.first;
    for (size_t i = 0; i < JOINED_MAX; i++) {
        if (r->joined[i])
            continue;
        buf_init(&joined, 2 * CONNECTION_MEMORY);
        c = (struct collect){.name = name, .joined = &joined};
        MHD_get_connection_values(r->conn, MHD_HEADER_KIND, collect_field, &c);
        if (buf_addc(&joined, '\0') != 0) {
            buf_fini(&joined);
            break;
        }
        r->joined[i] = joined.data;
        return r->joined[i];
    }
    return c.first;
}

const char *request_query_text(const struct request *r)
{
    const char *q = strchr(r->target, '?');

    return q ? q + 1 : "";
}

bool request_stopping(struct request *r)
{
    bool yes;

    pthread_mutex_lock(&r->api->lock);
    yes = r->api->stopping;
    pthread_mutex_unlock(&r->api->lock);
    return yes;
}

/* What is known of the disk says more than `otherwise`. */
static void disk_problem(struct request *r, enum problem_type type, const char *otherwise)
{
    char text[HEALTH_DETAIL_SIZE];

    engine_disk_text(r->api->engine, text, sizeof(text));
    problem_set(&r->problem, type, "%s", text[0] != '\0' ? text : otherwise);
}

void request_fail(struct request *r, int rc, const char *what)
{
    switch (rc) {
    case E_NOTFOUND:
        problem_set(&r->problem, PROBLEM_NOT_FOUND, "there is no such batch: it may have expired");
        return;
    case E_BUSY:
        problem_set(&r->problem, PROBLEM_BUSY, "too much is going on: try again later");
        return;
    case E_STOPPING: problem_set(&r->problem, PROBLEM_BUSY, "the service is shutting down"); return;
    case E_FULL:
        disk_problem(r, PROBLEM_DISK_FULL, "no space is left for the service's data");
        break;
    case E_READONLY:
        disk_problem(r, PROBLEM_STORAGE, "the service's data directory cannot be written");
        break;
    case E_IO:
    case E_CORRUPT: disk_problem(r, PROBLEM_STORAGE, "the service's storage failed"); break;
    case E_NOMEM: problem_set(&r->problem, PROBLEM_INTERNAL, "out of memory"); break;
    default: problem_set(&r->problem, PROBLEM_INTERNAL, "unexpected internal error"); break;
    }
    if (r->problem.status != 500 && !health_ready())
        return; /* it has been said what is wrong */
    log_event(LOG_ERROR, "request_failed", LOG_S("what", what),
              LOG_S("problem", problem_name(r->problem.type)), LOG_I("rc", rc),
              LOG_S("error", r->api->store ? store_error(r->api->store) : NULL));
}

/* ---- libmicrohttpd's callbacks ---- */

static void request_free(struct request *r)
{
    if (!r)
        return;
    ingest_free(r);
    query_fini(&r->query);
    problem_fini(&r->problem);
    for (size_t i = 0; i < JOINED_MAX; i++)
        free(r->joined[i]);
    free(r->target);
    free(r);
}

/* A request whose line was read, and for which on_call has not been called yet: the library may
 * give it up in between (a header that it cannot parse) without a word. One a connection. */
struct slot {
    struct request *pending;
};

static struct slot *slot_of(struct MHD_Connection *conn)
{
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(
        conn, MHD_CONNECTION_INFO_SOCKET_CONTEXT);

    return info ? info->socket_context : NULL;
}

static void on_connection(void *arg, struct MHD_Connection *conn, void **context,
                          enum MHD_ConnectionNotificationCode code)
{
    struct slot *s = *context;

    (void)arg;
    (void)conn;
    if (code == MHD_CONNECTION_NOTIFY_STARTED) {
        *context = calloc(1, sizeof(struct slot));
        metric_change(METRIC_API_CONNECTIONS, 1);
        return;
    }
    metric_change(METRIC_API_CONNECTIONS, -1);
    if (s) {
        request_free(s->pending);
        free(s);
        *context = NULL;
    }
}

/* With very many parameters the library, which takes the query apart too, runs out of its memory
 * for the connection and goes silent: answered here, and closed. */
static void refuse_query(struct request *r)
{
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(
        r->conn, MHD_CONNECTION_INFO_CONNECTION_FD);

    problem_set(&r->problem, PROBLEM_BAD_REQUEST, "more than %d query parameters", PARAMETERS_MAX);
    answer_raw(r);
    if (info)
        (void)shutdown(info->connect_fd, SHUT_RDWR);
}

static bool too_many_parameters(const char *uri)
{
    int n = 0;

    for (const char *p = strchr(uri, '&'); p && n <= PARAMETERS_MAX; p = strchr(p + 1, '&'))
        n++;
    return n >= PARAMETERS_MAX;
}

/* The request line has been read; nothing of it has been decoded yet. */
static void *on_request_line(void *arg, const char *uri, struct MHD_Connection *conn)
{
    struct slot *slot = slot_of(conn);
    struct request *r = slot ? calloc(1, sizeof(*r)) : NULL;

    if (!r)
        return NULL; /* on_call closes */
    r->api = arg;
    r->conn = conn;
    r->raw = uri;
    r->began_us = now_us();
    (void)snprintf(r->request_id, sizeof(r->request_id), "%08x-%08x", r->api->id_base,
                   ++r->api->ids);
    r->target_len = strlen(uri);
    r->target = malloc(r->target_len + 1);
    if (!r->target) {
        free(r);
        return NULL;
    }
    memcpy(r->target, uri, r->target_len + 1);
    request_free(slot->pending);
    slot->pending = r;
    if (too_many_parameters(uri))
        refuse_query(r);
    return r;
}

/* The request is refused before its body was read. The library closes the connection after an
 * answer that is given now, so requests without a body get theirs in the final call. */
static enum MHD_Result refuse_early(struct request *r)
{
    if (!r->has_body)
        return MHD_YES;
    r->linger = true;
    return answer_problem(r);
}

/* The client's own id, if it is a plain word: it goes into the log. */
static void take_request_id(struct request *r)
{
    const char *id = request_header(r, "X-Request-Id");
    size_t n = id ? strlen(id) : 0;

    for (size_t i = 0; i < n; i++)
        if (!isalnum((unsigned char)id[i]) && !strchr("-_.:+/=@", id[i]))
            return;
    if (n >= 1 && n < sizeof(r->request_id)) {
        memcpy(r->request_id, id, n + 1);
        log_request(r->request_id);
    }
}

static enum MHD_Result begin(struct request *r, const char *method, const char *version)
{
    r->begun = true;
    take_request_id(r);
    if (inspect_framing(r, version) != 0) {
        r->linger = true;
        return answer_problem(r);
    }
    bool wrong = inspect_client(r) != 0 || routes_find(r, method) != 0;
    if (request_stopping(r) && (wrong || !r->route || !(r->route->flags & ROUTE_ALWAYS))) {
        request_fail(r, E_STOPPING, "request");
        r->linger = true;
        return answer_problem(r);
    }
    if (wrong)
        return refuse_early(r);
    if (!r->options && r->route->flags & ROUTE_UPLOAD)
        return ingest_begin(r) == 0 ? MHD_YES : refuse_early(r);
    if (r->length != UINT64_MAX && r->length > IGNORED_BODY_MAX) {
        problem_set(&r->problem, PROBLEM_TOO_LARGE, "this request needs no body");
        return refuse_early(r);
    }
    return MHD_YES;
}

/* A piece of the body. */
static enum MHD_Result body(struct request *r, const char *data, size_t *size)
{
    if (r->ingest)
        return ingest_body(r, data, size);
    r->body_seen += *size;
    *size = 0;
    if (r->body_seen <= IGNORED_BODY_MAX)
        return MHD_YES;
    problem_set(&r->problem, PROBLEM_TOO_LARGE, "this request needs no body");
    answer_raw(r);
    return MHD_NO;
}

static enum MHD_Result finish(struct request *r)
{
    struct api *api = r->api;

    engine_horizon(api->engine, api->store);
    if (!r->finishing) {
        r->finishing = true;
        pthread_mutex_lock(&api->lock);
        api->answering++;
        pthread_mutex_unlock(&api->lock);
    }
    if (r->problem.type != PROBLEM_NONE)
        return answer_problem(r);
    return r->options ? routes_options(r) : r->route->fn(r);
}

static enum MHD_Result serve(void *arg, struct MHD_Connection *conn, const char *url,
                             const char *method, const char *version, const char *data,
                             size_t *size, void **context)
{
    struct request *r = *context;

    (void)arg;
    (void)url; /* decoded without care: r->target is what we read */
    if (!r)
        return MHD_NO;
    if (!r->begun) {
        slot_of(conn)->pending = NULL; /* on_completed comes for it now */
        (void)snprintf(r->method, sizeof(r->method), "%s", method);
        return r->answered ? MHD_NO : begin(r, method, version);
    }
    if (*size > 0)
        return body(r, data, size);
    return finish(r);
}

static enum MHD_Result on_call(void *arg, struct MHD_Connection *conn, const char *url,
                               const char *method, const char *version, const char *data,
                               size_t *size, void **context)
{
    int64_t begin = answer_turn(*context);
    enum MHD_Result ok = serve(arg, conn, url, method, version, data, size, context);

    answer_turn_over(begin);
    return ok;
}

static void note_end(const struct request *r, enum MHD_RequestTerminationCode how)
{
    int64_t us = now_us() - r->began_us;
    bool whole = how == MHD_REQUEST_TERMINATED_COMPLETED_OK;

    if (r->status != 0)
        metric_observe_us(METRIC_API_TIME, routes_number(r), us);
    if (r->api->cfg->log_requests || log_enabled(LOG_DEBUG))
        log_always(LOG_INFO, "request", LOG_S("request", r->request_id), LOG_S("method", r->method),
                   LOG_S("target", r->target), LOG_S("batch", r->id[0] ? r->id : NULL),
                   LOG_U("status", r->status), LOG_S("end", whole ? NULL : "cut"),
                   LOG_U("received_bytes", r->body_seen), LOG_MS("took_ms", us));
}

static void on_completed(void *arg, struct MHD_Connection *conn, void **context,
                         enum MHD_RequestTerminationCode how)
{
    struct api *api = arg;
    struct request *r = *context;

    if (!r)
        return;
    *context = NULL;
    if (r->patient) /* for the next request */
        MHD_set_connection_option(conn, MHD_CONNECTION_OPTION_TIMEOUT,
                                  (unsigned)CONNECTION_TIMEOUT_S);
    if (slot_of(conn)->pending == r) /* some errors of the library's own come here without a call */
        slot_of(conn)->pending = NULL;
    note_end(r, how);
    if (r->linger) {
        const union MHD_ConnectionInfo *info = MHD_get_connection_info(
            conn, MHD_CONNECTION_INFO_CONNECTION_FD);

        if (info)
            park_linger(api, info->connect_fd);
    }
    pthread_mutex_lock(&api->lock);
    ASSERT(r->park == PARK_NONE);
    if (r->finishing && --api->answering == 0)
        pthread_cond_broadcast(&api->quiet);
    pthread_mutex_unlock(&api->lock);
    uint64_t bytes = r->body_seen;
    request_free(r);
    held_ended(api, bytes);
}

__attribute__((format(printf, 2, 0))) static void on_log(void *arg, const char *fmt, va_list ap)
{
    static const char stalled[] = "Hit process or system resource limit";
    char text[512];
    size_t n;

    if (strncmp(fmt, stalled, sizeof(stalled) - 1) == 0)
        park_accept_later(arg);
    if (!log_enabled(LOG_DEBUG))
        return;
    (void)vsnprintf(text, sizeof(text), fmt, ap);
    n = strlen(text);
    if (n > 0 && text[n - 1] == '\n')
        text[n - 1] = '\0';
    log_event(LOG_DEBUG, "http_library", LOG_S("msg", text));
}

/* ---- start and stop ---- */

int api_listen(const struct config *cfg, int *out, char *why, size_t why_size)
{
    const struct addrinfo hints = {
        .ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE};
    struct addrinfo *list = NULL;
    char host[256], port[8];
    const char *p = cfg->listen_host;
    size_t n = strlen(p);
    int one = 1, unsent = UNSENT_MAX, rc, err = 0, fd = -1;

    if (n > 1 && p[0] == '[' && p[n - 1] == ']') { /* the brackets of an IPv6 address */
        p++;
        n -= 2;
    }
    (void)snprintf(host, sizeof(host), "%.*s", (int)n, p);
    (void)snprintf(port, sizeof(port), "%u", (unsigned)cfg->listen_port);
    rc = getaddrinfo(host, port, &hints, &list);
    if (rc != 0) {
        (void)snprintf(why, why_size, "cannot resolve %s: %s", host, gai_strerror(rc));
        return E_INVAL;
    }
    for (struct addrinfo *a = list; a && fd < 0; a = a->ai_next) {
        fd = socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK, a->ai_protocol);
        if (fd < 0) {
            err = errno;
            continue;
        }
        (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
        if (a->ai_family == AF_INET6)
            (void)setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof(one));
        if (bind(fd, a->ai_addr, a->ai_addrlen) != 0 || listen(fd, BACKLOG) != 0) {
            err = errno;
            close(fd);
            fd = -1;
        }
    }
    freeaddrinfo(list);
    /* Inherited by the connections: what a slow reader has not fetched stays with us (held.h) rather
     * than in the kernel's buffers, some MiB each. A fast one is not slowed. */
    if (fd >= 0)
        (void)setsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &unsent, sizeof(unsent));
    if (fd < 0) {
        (void)snprintf(why, why_size, "cannot listen on %s port %s: %s", host, port, strerror(err));
        return E_IO;
    }
    *out = fd;
    return 0;
}

static int find_port(struct api *api)
{
    struct sockaddr_storage ss;
    socklen_t len = sizeof(ss);

    if (getsockname(api->listen_fd, (struct sockaddr *)&ss, &len) != 0)
        return E_IO;
    api->port = ntohs(ss.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&ss)->sin6_port
                                               : ((struct sockaddr_in *)&ss)->sin_port);
    return 0;
}

static int start_daemon(struct api *api)
{
    struct MHD_Daemon *daemon = MHD_start_daemon(
        MHD_USE_EPOLL_INTERNAL_THREAD | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ITC | MHD_USE_ERROR_LOG,
        0, NULL, NULL, on_call, api, MHD_OPTION_EXTERNAL_LOGGER, on_log, api,
        MHD_OPTION_LISTEN_SOCKET, api->listen_fd, MHD_OPTION_CONNECTION_LIMIT,
        (unsigned)engine_max_clients(api->engine), MHD_OPTION_CONNECTION_TIMEOUT,
        (unsigned)CONNECTION_TIMEOUT_S, MHD_OPTION_CONNECTION_MEMORY_LIMIT,
        (size_t)engine_memory(api->engine)->connection_bytes, MHD_OPTION_URI_LOG_CALLBACK,
        on_request_line, api, MHD_OPTION_NOTIFY_COMPLETED, on_completed, api,
        MHD_OPTION_NOTIFY_CONNECTION, on_connection, api, MHD_OPTION_END);
    if (!daemon)
        return E_NOMEM;
    pthread_mutex_lock(&api->lock);
    api->daemon = daemon;
    pthread_mutex_unlock(&api->lock);
    api->listen_fd = -1; /* the daemon's now: MHD_stop_daemon closes it */
    return 0;
}

static void api_free(struct api *api)
{
    if (api->listen_fd >= 0)
        close(api->listen_fd);
    store_close(api->store);
    park_stop(api);
    inspect_fini(api);
    free(api);
}

/* Waits until *count is 0; `for_us` < 0: however long. False: it took too long. */
static bool wait_quiet(struct api *api, const uint32_t *count, int64_t for_us, const char *what)
{
    int64_t start = now_us(), said = start;

    while (*count > 0) {
        int64_t until = now_us() + 100 * 1000;
        struct timespec ts = {(time_t)(until / 1000000), (long)(until % 1000000) * 1000};

        pthread_cond_timedwait(&api->quiet, &api->lock, &ts);
        if (for_us >= 0 && now_us() - start > for_us)
            return false;
        if (now_us() - said > DRAIN_US) {
            log_event(LOG_WARN, "stopping_waits", LOG_U("count", *count), LOG_S("for", what));
            said = now_us();
        }
    }
    return true;
}

/* keeper */
static void on_barrier(void *arg, int rc)
{
    struct api *api = arg;

    (void)rc;
    pthread_mutex_lock(&api->lock);
    api->calls--;
    pthread_cond_broadcast(&api->quiet);
    pthread_mutex_unlock(&api->lock);
}

/* No callback of the engine comes after this: the keeper may just be calling the last one, so wait
 * until it has come round to answer another call (for a batch that can't be). */
static void leave_engine(struct api *api)
{
    engine_on_end(api->engine, NULL, NULL);
    pthread_mutex_lock(&api->lock);
    api->calls++;
    pthread_mutex_unlock(&api->lock);
    engine_cancel(api->engine, "-", on_barrier, api);
    pthread_mutex_lock(&api->lock);
    (void)wait_quiet(api, &api->calls, -1, "calls on the engine");
    pthread_mutex_unlock(&api->lock);
}

int api_start(struct api **out, const struct config *cfg, struct engine *engine, int listen_fd,
              char *why, size_t why_size)
{
    struct api *api = xcalloc(1, sizeof(*api));
    sigset_t all, old;
    int rc;

    *out = NULL;
    why[0] = '\0';
    api->cfg = cfg;
    api->engine = engine;
    api->listen_fd = listen_fd;
    api->check_layout = strcmp(MHD_get_version(), "0.9.75") == 0;
    inspect_init(api);
    routes_label();
    if (getrandom(&api->id_base, sizeof(api->id_base), 0) != (ssize_t)sizeof(api->id_base))
        api->id_base = (uint32_t)wall_ms();
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &old);
    rc = park_start(api);
    if (rc == 0)
        rc = store_open(&api->store, cfg->data, STORE_READ, why, why_size);
    if (rc == 0)
        rc = find_port(api);
    if (rc == 0) {
        engine_on_end(engine, park_batch_ended, api);
        rc = start_daemon(api);
        if (rc != 0)
            leave_engine(api);
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (rc != 0) {
        if (why[0] == '\0')
            (void)snprintf(why, why_size, "cannot start the HTTP server");
        api_free(api);
        return rc;
    }
    *out = api;
    return 0;
}

uint16_t api_port(const struct api *api)
{
    return api->port;
}

void api_stop(struct api *api)
{
    if (!api)
        return;
    /* No MHD_quiesce_daemon: in 0.9.75 it and the daemon's own thread may both take the listening
     * socket out of epoll, and the one that comes second aborts the process. What still comes in
     * is answered that the service stops. */
    pthread_mutex_lock(&api->lock);
    api->stopping = true; /* from here on nothing is parked; the ticker wakes all waiters */
    pthread_cond_signal(&api->tick);
    /* The engine still runs and answers each call: without that their requests can't be freed. */
    (void)wait_quiet(api, &api->calls, -1, "calls on the engine");
    (void)wait_quiet(api, &api->n_waiters, -1, "waiting requests");
    if (!wait_quiet(api, &api->answering, DRAIN_US, "answers"))
        log_event(LOG_WARN, "answers_cut", LOG_U("count", api->answering));
    pthread_mutex_unlock(&api->lock);
    MHD_stop_daemon(api->daemon);
    leave_engine(api);
    api_free(api);
}
