#include "api/service.h"

#include <stdio.h>
#include <string.h>

#include "api/answer.h"
#include "api/exposition.h"
#include "api/json.h"
#include "server/health.h"

enum {
    READY_MAX = 16 * 1024,
    METRICS_MAX = 4 * 1024 * 1024,
};

enum MHD_Result service_healthz(struct request *r)
{
    static char text[] = "{\"status\":\"ok\"}";

    if (!engine_watch(r->api->engine))
        return answer_fail(r, PROBLEM_STUCK, "a thread of the service does not turn any more");
    struct MHD_Response *resp = MHD_create_response_from_buffer(sizeof(text) - 1, text,
                                                                MHD_RESPMEM_PERSISTENT);

    answer_header(resp, "Content-Type", "application/json");
    return answer_send(r, 200, resp, NULL);
}

static void write_causes(struct jw *w, const struct health_entry *v, unsigned n)
{
    jw_key(w, "causes");
    jw_array(w);
    for (unsigned i = 0; i < n; i++) {
        jw_object(w);
        jw_key(w, "cause");
        jw_str(w, v[i].name);
        jw_key(w, "ready");
        jw_bool(w, !v[i].unready);
        jw_key(w, "since");
        jw_time(w, v[i].since_ms);
        jw_key(w, "detail");
        jw_span(w, (struct span){v[i].detail, strlen(v[i].detail)}, JW_REPLACE);
        jw_object_end(w);
    }
    jw_array_end(w);
}

enum MHD_Result service_readyz(struct request *r)
{
    struct health_entry causes[HEALTH_CAUSES_N];
    struct MHD_Response *resp;
    struct buf b;
    struct jw w;
    char seconds[16];
    unsigned retry_s, n;
    bool ready;

    (void)engine_watch(r->api->engine);
    n = health_read(causes, &retry_s);
    ready = retry_s == 0;

    buf_init(&b, READY_MAX);
    jw_init(&w, &b);
    if (ready) {
        jw_object(&w);
        jw_key(&w, "status");
        jw_str(&w, "ready");
    } else {
        problem_begin(&w, PROBLEM_NOT_READY, causes[0].detail);
    }
    write_causes(&w, causes, n);
    jw_object_end(&w);
    resp = answer_take(&b, ready ? "application/json" : "application/problem+json");
    if (!ready) {
        (void)snprintf(seconds, sizeof(seconds), "%u", retry_s);
        answer_header(resp, "Retry-After", seconds);
    }
    return answer_send(r, ready ? 200 : 503, resp, NULL);
}

enum MHD_Result service_metrics(struct request *r)
{
    int64_t values[METRIC_CELLS];
    struct buf b;

    engine_metrics(r->api->engine, r->api->store, values);
    buf_init(&b, METRICS_MAX);
    if (exposition_write(&b, values) != 0) {
        buf_fini(&b);
        return answer_fail(r, PROBLEM_INTERNAL, "out of memory");
    }
    return answer_send(r, 200, answer_take(&b, EXPOSITION_TYPE), NULL);
}
