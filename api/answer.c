/* Answers: the headers that all have, problem documents, and the raw answer in the middle of an
 * upload. api thread. */
#include "api/answer.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#include "api/ingest.h"
#include "api/routes.h"
#include "server/health.h"
#include "server/metrics.h"

enum {
    PROBLEM_MAX = 1024 * 1024,
    RAW_MAX = 32 * 1024, /* fits in any socket's buffer */
};

struct MHD_Response *answer_take(struct buf *b, const char *type)
{
    struct MHD_Response *resp;

    resp = b->len == 0 ? MHD_create_response_from_buffer(0, NULL, MHD_RESPMEM_PERSISTENT)
                       : MHD_create_response_from_buffer(b->len, b->data, MHD_RESPMEM_MUST_FREE);
    if (resp && b->len > 0)
        memset(b, 0, sizeof(*b));
    else
        buf_fini(b);
    if (type)
        answer_header(resp, "Content-Type", type);
    return resp;
}

void answer_header(struct MHD_Response *resp, const char *name, const char *value)
{
    if (resp && MHD_add_response_header(resp, name, value) == MHD_NO)
        log_event(LOG_WARN, "header_not_added", LOG_S("name", name));
}

int64_t answer_turn(const struct request *r)
{
    log_request(r ? r->request_id : NULL);
    return now_us();
}

void answer_turn_over(int64_t begin)
{
    log_request(NULL);
    metric_observe_us(METRIC_LOOP_LAG, METRIC_THREAD_API, now_us() - begin);
}

/* An answer was given: counts it. */
static void answer_count(struct request *r, unsigned status)
{
    r->answered = true;
    r->status = status;
    unsigned route = routes_number(r);

    metric_add(METRIC_API_REQUESTS + route * METRIC_SET_STATUS_SIZE + status / 100 - 1, 1);
    if (route != METRIC_SET_ROUTE_SIZE - 1 && r->route->flags & ROUTE_UPLOAD)
        ingest_count(r);
}

enum MHD_Result answer_send(struct request *r, unsigned status, struct MHD_Response *resp,
                            const char *cache)
{
    enum MHD_Result ok;

    if (!resp) {
        log_event(LOG_ERROR, "answer_failed", LOG_S("error", "out of memory"));
        return MHD_NO;
    }
    answer_header(resp, "X-Content-Type-Options", "nosniff");
    answer_header(resp, "Cache-Control", cache ? cache : "no-store");
    answer_header(resp, "X-Request-Id", r->request_id);
    if (request_stopping(r) || health_is(HEALTH_DRAINING))
        answer_header(resp, "Connection", "close");
    ok = MHD_queue_response(r->conn, status, resp);
    MHD_destroy_response(resp);
    answer_count(r, status);
    return ok;
}

/* Seconds for Retry-After; NULL: the status has none. */
static const char *retry_after(enum problem_type type)
{
    switch (type) {
    case PROBLEM_BUSY: return "1";
    case PROBLEM_STUCK:
    case PROBLEM_STORAGE: return "5";
    case PROBLEM_DISK_FULL: return "30";
    default: return NULL;
    }
}

enum MHD_Result answer_problem(struct request *r)
{
    const char *retry = retry_after(r->problem.type);
    struct MHD_Response *resp;
    struct buf b;
    char allow[64];

    ASSERT(r->problem.type != PROBLEM_NONE);
    buf_init(&b, PROBLEM_MAX);
    if (problem_write(&r->problem, &b) != 0)
        buf_reset(&b); /* the status still says it */
    resp = answer_take(&b, "application/problem+json");
    if (retry)
        answer_header(resp, "Retry-After", retry);
    if (r->problem.type == PROBLEM_METHOD_NOT_ALLOWED) {
        routes_allow(r->route, allow, sizeof(allow));
        answer_header(resp, "Allow", allow);
    }
    return answer_send(r, (unsigned)r->problem.status, resp, NULL);
}

enum MHD_Result answer_fail(struct request *r, enum problem_type type, const char *fmt, ...)
{
    char detail[PROBLEM_DETAIL_SIZE];
    va_list ap;

    va_start(ap, fmt);
    (void)vsnprintf(detail, sizeof(detail), fmt, ap);
    va_end(ap);
    problem_set(&r->problem, type, "%s", detail);
    return answer_problem(r);
}

enum MHD_Result answer_empty(struct request *r, unsigned status)
{
    struct MHD_Response *resp = MHD_create_response_from_buffer(0, NULL, MHD_RESPMEM_PERSISTENT);

    return answer_send(r, status, resp, NULL);
}

static int raw_text(struct request *r, struct buf *out, struct buf *body)
{
    const char *retry = retry_after(r->problem.type);
    char date[64];
    time_t now = (time_t)(wall_ms() / 1000);
    struct tm tm;
    int rc;

    /* A long list of faults may not fit: say less of it rather than nothing. */
    while ((rc = problem_write(&r->problem, body)) == 0 && body->len > RAW_MAX &&
           r->problem.n_errors > 0) {
        buf_reset(body);
        for (uint32_t i = r->problem.n_errors / 2; i < r->problem.n_errors; i++) {
            struct problem_error *e = &r->problem.errors[i];

            free(e->pointer);
            free(e->parameter);
            free(e->header);
            free(e->detail);
        }
        r->problem.n_errors /= 2;
    }
    if (rc != 0)
        return rc;
    gmtime_r(&now, &tm);
    (void)strftime(date, sizeof(date), "%a, %d %b %Y %H:%M:%S GMT", &tm);
    rc = buf_addf(out,
                  "HTTP/1.1 %d %s\r\nDate: %s\r\nConnection: close\r\n"
                  "Content-Type: application/problem+json\r\nContent-Length: %zu\r\n"
                  "X-Content-Type-Options: nosniff\r\nCache-Control: no-store\r\n"
                  "X-Request-Id: %s\r\n",
                  r->problem.status, MHD_get_reason_phrase_for((unsigned)r->problem.status), date,
                  body->len, r->request_id);
    if (rc == 0 && retry)
        rc = buf_addf(out, "Retry-After: %s\r\n", retry);
    if (rc == 0)
        rc = buf_adds(out, "\r\n");
    return rc == 0 ? buf_add(out, body->data, body->len) : rc;
}

void answer_raw(struct request *r)
{
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(
        r->conn, MHD_CONNECTION_INFO_CONNECTION_FD);
    struct buf out, body;
    size_t sent = 0;

    buf_init(&out, PROBLEM_MAX);
    buf_init(&body, PROBLEM_MAX);
    if (info && raw_text(r, &out, &body) == 0)
        while (sent < out.len) {
            ssize_t n = send(info->connect_fd, out.data + sent, out.len - sent,
                             MSG_NOSIGNAL | MSG_DONTWAIT);

            if (n <= 0 && errno != EINTR)
                break;
            sent += n > 0 ? (size_t)n : 0;
        }
    buf_fini(&out);
    buf_fini(&body);
    answer_count(r, (unsigned)r->problem.status);
    r->linger = true;
}
