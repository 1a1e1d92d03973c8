/* One table says which method and path is served by whom with which query parameters; everything
 * about routing is derived from it. api thread. */
#include "api/routes.h"

#include <string.h>
#include <strings.h>

#include "api/answer.h"
#include "api/batches.h"
#include "api/ingest.h"
#include "api/openapi_data.h"
#include "api/rebatch.h"
#include "api/results.h"
#include "api/service.h"
#include "server/metrics.h"

static enum MHD_Result embedded(struct request *r, const unsigned char *p, size_t len,
                                const char *type)
{
    /* The library's parameter is not const, but it only reads persistent memory. */
    struct MHD_Response *resp = MHD_create_response_from_buffer(len, (void *)(uintptr_t)p,
                                                                MHD_RESPMEM_PERSISTENT);

    answer_header(resp, "Content-Type", type);
    return answer_send(r, 200, resp, "no-cache");
}

static enum MHD_Result get_openapi_yaml(struct request *r)
{
    return embedded(r, openapi_yaml, openapi_yaml_len, "application/yaml");
}

static enum MHD_Result get_openapi_json(struct request *r)
{
    return embedded(r, openapi_json, openapi_json_len, "application/json");
}

static const char *const list_params[] = {"status", "limit", "after", NULL};
static const char *const batch_params[] = {"wait", NULL};
static const char *const results_params[] = {"after",     "limit",   "status", "order",
                                             "custom_id", "include", NULL};
static const char *const result_params[] = {"include", NULL};

static const struct route routes[] = {
    {"POST", "/v1/batches", ingest_finish, NULL, ROUTE_UPLOAD | ROUTE_ANY_QUERY},
    {"GET", "/v1/batches", batches_list, list_params, 0},
    {"GET", "/v1/batches/{id}", batches_get, batch_params, 0},
    {"DELETE", "/v1/batches/{id}", batches_delete, NULL, 0},
    {"POST", "/v1/batches/{id}/cancel", batches_cancel, NULL, 0},
    {"POST", "/v1/batches/{id}/pause", batches_pause, NULL, 0},
    {"POST", "/v1/batches/{id}/resume", batches_resume, NULL, 0},
    {"POST", "/v1/batches/{id}/retry", rebatch_retry, NULL, 0},
    {"GET", "/v1/batches/{id}/results", results_list, results_params, 0},
    {"GET", "/v1/batches/{id}/results/{index}", results_get, result_params, 0},
    {"GET", "/v1/batches/{id}/results/{index}/body", results_body, NULL, 0},
    {"GET", "/healthz", service_healthz, NULL, ROUTE_ALWAYS},
    {"GET", "/readyz", service_readyz, NULL, ROUTE_ALWAYS},
    {"GET", "/metrics", service_metrics, NULL, ROUTE_ALWAYS},
    {"GET", "/openapi.yaml", get_openapi_yaml, NULL, 0},
    {"GET", "/openapi.json", get_openapi_json, NULL, 0},
};

void routes_label(void)
{
    static char text[METRIC_SET_ROUTE_SIZE][96];
    unsigned last = METRIC_SET_ROUTE_SIZE - 1;

    _Static_assert(ARRAY_LEN(routes) < METRIC_SET_ROUTE_SIZE, "each route has its series");
    for (size_t i = 0; i < ARRAY_LEN(routes); i++) {
        (void)snprintf(text[i], sizeof(text[i]), "method=\"%s\",route=\"%s\"", routes[i].method,
                       routes[i].path);
        metric_route_labels[i] = text[i];
    }
    metric_route_labels[last] = "method=\"other\",route=\"other\"";
}

unsigned routes_number(const struct request *r)
{
    bool known = r->route && !r->options && r->problem.type != PROBLEM_METHOD_NOT_ALLOWED;

    return known ? (unsigned)(r->route - routes) : METRIC_SET_ROUTE_SIZE - 1;
}

enum MHD_Result routes_options(struct request *r)
{
    struct MHD_Response *resp = MHD_create_response_from_buffer(0, NULL, MHD_RESPMEM_PERSISTENT);
    char allow[64];

    routes_allow(r->route, allow, sizeof(allow));
    answer_header(resp, "Allow", allow);
    return answer_send(r, 204, resp, NULL);
}

void api_print_routes(FILE *out)
{
    for (size_t i = 0; i < ARRAY_LEN(routes); i++)
        fprintf(out, "%s %s\n", routes[i].method, routes[i].path);
}

static void append(char *out, size_t size, const char *method)
{
    size_t n = strlen(out);

    (void)snprintf(out + n, size - n, "%s%s", n > 0 ? ", " : "", method);
}

void routes_allow(const struct route *route, char *out, size_t size)
{
    static const char *const order[] = {"GET", "POST", "DELETE"};

    out[0] = '\0';
    for (size_t m = 0; m < ARRAY_LEN(order); m++)
        for (size_t i = 0; i < ARRAY_LEN(routes); i++) {
            if (strcmp(routes[i].method, order[m]) != 0 ||
                (route && strcmp(routes[i].path, route->path) != 0))
                continue;
            append(out, size, order[m]);
            if (m == 0)
                append(out, size, "HEAD");
            break;
        }
    append(out, size, "OPTIONS");
}

/* One segment of the path against one of the template; fills in what it stands for. */
static bool match_segment(struct request *r, const char *seg, size_t len, const char *tmpl,
                          size_t tmpl_len)
{
    uint64_t index;
    char digits[24];

    if (tmpl_len == 4 && memcmp(tmpl, "{id}", 4) == 0) {
        if (len == 0 || len >= sizeof(r->id))
            return false;
        memcpy(r->id, seg, len);
        r->id[len] = '\0';
        return true;
    }
    if (tmpl_len == 7 && memcmp(tmpl, "{index}", 7) == 0) {
        if (len == 0 || len >= sizeof(digits) || (seg[0] == '0' && len > 1))
            return false;
        memcpy(digits, seg, len);
        digits[len] = '\0';
        if (parse_number(digits, 0, INT64_MAX, &index) != 0)
            return false;
        r->index = index;
        return true;
    }
    return len == tmpl_len && memcmp(seg, tmpl, len) == 0;
}

static bool match_path(struct request *r, const char *path, const char *tmpl)
{
    for (;;) {
        size_t n = strcspn(path, "/"), m = strcspn(tmpl, "/");
        char seg[64];
        long len;

        if (n >= sizeof(seg))
            return false;
        len = percent_decode(seg, path, n, false);
        if (len < 0 || memchr(seg, '/', (size_t)len))
            return false;
        if (!match_segment(r, seg, (size_t)len, tmpl, m))
            return false;
        if (path[n] == '\0' || tmpl[m] == '\0')
            return path[n] == tmpl[m];
        path += n + 1;
        tmpl += m + 1;
    }
}

static int unknown_parameter(struct request *r)
{
    const struct route *route = r->route;
    size_t known = 0;

    while (route->params && route->params[known])
        known++;
    for (size_t i = 0; i < r->query.n; i++) {
        const char *name = r->query.v[i].name;
        const char *near;
        bool found = false;

        for (size_t k = 0; k < known; k++)
            found = found || strcmp(name, route->params[k]) == 0;
        if (found)
            continue;
        near = known > 0 ? problem_nearest(name, route->params, known) : NULL;
        if (r->problem.type == PROBLEM_NONE)
            problem_set(&r->problem, PROBLEM_INVALID_FIELD, "unknown query parameter \"%s\"%s%s%s",
                        name, near ? "; did you mean \"" : "", near ? near : "", near ? "\"?" : "");
        problem_add_parameter(&r->problem, name, "unknown query parameter \"%s\"%s%s%s", name,
                              near ? "; did you mean \"" : "", near ? near : "", near ? "\"?" : "");
    }
    return r->problem.type == PROBLEM_NONE ? 0 : E_INVAL;
}

static int check_query(struct request *r)
{
    const char *text = request_query_text(r), *why, *twice;
    int rc = query_parse(&r->query, text, strlen(text), &why);

    if (rc != 0) {
        if (rc == E_NOMEM)
            problem_set(&r->problem, PROBLEM_INTERNAL, "out of memory");
        else
            problem_set(&r->problem, PROBLEM_BAD_REQUEST, "%s", why);
        return E_INVAL;
    }
    twice = query_twice(&r->query);
    if (twice) {
        problem_set(&r->problem, PROBLEM_INVALID_FIELD,
                    "query parameter \"%s\" is given more than once", twice);
        problem_add_parameter(&r->problem, twice, "given more than once");
        return E_INVAL;
    }
    return r->route->flags & ROUTE_ANY_QUERY ? 0 : unknown_parameter(r);
}

/* The path of the target as received, NUL-terminated, without query. */
static void copy_path(struct request *r, char *out, size_t size)
{
    const char *p = r->target;
    size_t n;

    if (strncasecmp(p, "http://", 7) == 0)
        p += 7 + strcspn(p + 7, "/?");
    n = strcspn(p, "?");
    if (n >= size)
        n = size - 1; /* longer than every route */
    memcpy(out, p, n);
    out[n] = '\0';
}

static bool bad_escape(const char *path)
{
    char decoded[1024];

    return percent_decode(decoded, path, strlen(path), false) < 0;
}

int routes_find(struct request *r, const char *method)
{
    const struct route *other = NULL;
    const char *want = strcmp(method, "HEAD") == 0 ? "GET" : method;
    char path[512];

    r->head = strcmp(method, "HEAD") == 0;
    r->options = strcmp(method, "OPTIONS") == 0;
    copy_path(r, path, sizeof(path));
    if (bad_escape(path)) {
        problem_set(&r->problem, PROBLEM_BAD_REQUEST,
                    "the path has a malformed percent-escape or an encoded NUL");
        return E_INVAL;
    }
    if (r->options && strcmp(path, "*") == 0)
        return 0; /* of the whole service: r->route stays NULL */
    for (size_t i = 0; path[0] == '/' && i < ARRAY_LEN(routes); i++) {
        if (!match_path(r, path + 1, routes[i].path + 1))
            continue;
        if (strcmp(routes[i].method, want) == 0) {
            r->route = &routes[i];
            return check_query(r);
        }
        other = &routes[i];
    }
    if (!other) {
        problem_set(&r->problem, PROBLEM_NOT_FOUND, "there is nothing at this path");
        return E_INVAL;
    }
    r->route = other;
    if (r->options)
        return 0;
    problem_set(&r->problem, PROBLEM_METHOD_NOT_ALLOWED, "this path does not have this method");
    return E_INVAL;
}
