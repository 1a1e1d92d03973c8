/* Results of a batch: the page and the NDJSON stream, one result, its body. */
#ifndef API_RESULTS_H
#define API_RESULTS_H

#include "api/http.h"

enum MHD_Result results_list(struct request *r);
enum MHD_Result results_get(struct request *r);
enum MHD_Result results_body(struct request *r);

#endif
