/* Reading and steering of batches. */
#ifndef API_BATCHES_H
#define API_BATCHES_H

#include "api/http.h"

enum MHD_Result batches_list(struct request *r);
enum MHD_Result batches_get(struct request *r);
enum MHD_Result batches_cancel(struct request *r);
enum MHD_Result batches_pause(struct request *r);
enum MHD_Result batches_resume(struct request *r);
enum MHD_Result batches_delete(struct request *r);

/* A bad query parameter: sets r->problem and answers 422. */
enum MHD_Result bad_parameter(struct request *r, const char *name, const char *fmt, ...)
    PRINTF_LIKE(3, 4);
/* Reads a number from the query. False: r has been given its problem (not answered). */
bool number_parameter(struct request *r, const char *name, uint64_t min, uint64_t max,
                      uint64_t *out) MUSTCHECK;

#endif
