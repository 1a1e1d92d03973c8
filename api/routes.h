/* The table of routes, and what follows from it: dispatch, 404, 405 with Allow, OPTIONS, errors for
 * unknown query parameters, --list-routes. */
#ifndef API_ROUTES_H
#define API_ROUTES_H

#include "api/http.h"

enum {
    ROUTE_UPLOAD = 1,    /* takes a body: ingest.c */
    ROUTE_ALWAYS = 4,    /* while the service stops, too */
    ROUTE_ANY_QUERY = 2, /* its query parameters are checked elsewhere */
};

/* Called when the request has been received in full, and again after each wake from parking. */
typedef enum MHD_Result route_fn(struct request *r);

struct route {
    const char *method;
    const char *path; /* {id} and {index} stand for a segment */
    route_fn *fn;
    const char *const *params; /* known query parameters, NULL at the end; NULL: none */
    unsigned flags;
};

/* Finds r->route and fills in r->id, r->index and r->query. E_INVAL: r->problem is set (and
 * r->route too with 405). For OPTIONS r->route is one of the path's routes, or NULL for "*". */
int routes_find(struct request *r, const char *method) MUSTCHECK;
/* The methods of this route's path: "GET, HEAD, DELETE, OPTIONS". NULL: of the whole service. */
void routes_allow(const struct route *route, char *out, size_t size);

/* Names the routes to the metrics, before the first request. */
void routes_label(void);
/* The label of the metrics that a request counts under. */
unsigned routes_number(const struct request *r);

/* Answers an OPTIONS request. */
enum MHD_Result routes_options(struct request *r);

#endif
