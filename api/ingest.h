/* POST /v1/batches: a submission from its header to its 202. */
#ifndef API_INGEST_H
#define API_INGEST_H

#include "api/http.h"

/* Checks the header and makes r->ingest. E_INVAL: r->problem is set. */
int ingest_begin(struct request *r) MUSTCHECK;
/* A piece of the body; leaves *size at what it did not take. */
enum MHD_Result ingest_body(struct request *r, const char *data, size_t *size);
enum MHD_Result ingest_finish(struct request *r);
void ingest_free(struct request *r);

#endif
