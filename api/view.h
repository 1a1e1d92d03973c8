/* Batches and results as the API shows them. */
#ifndef API_VIEW_H
#define API_VIEW_H

#include "api/http.h"
#include "api/json.h"

enum { VIEW_ETAG_SIZE = 24 };

/* "queued", "in_progress", … */
const char *view_status(const struct batch_view *v);
void view_batch(struct jw *w, const struct batch_view *v);
/* As a whole response; NULL: out of memory. */
struct MHD_Response *view_batch_response(const struct batch_view *v);
/* Weak: of all but rate and eta. */
void view_batch_etag(const struct batch_view *v, char out[VIEW_ETAG_SIZE]);

/* A result object but for its end: the caller may add the body and then ends the object. */
void view_result(struct jw *w, const char *batch_id, const struct result *r, bool headers);
/* The value of the response's Content-Type field; none: it has none. */
struct span view_content_type(const struct result *r);

#endif
