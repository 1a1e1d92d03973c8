/* POST /v1/batches/{id}/retry: a new batch of the requests of an ended one that failed. */
#ifndef API_REBATCH_H
#define API_REBATCH_H

#include "api/http.h"

enum MHD_Result rebatch_retry(struct request *r);

#endif
