/* Sending answers. Every function returns what the library's callback must return. */
#ifndef API_ANSWER_H
#define API_ANSWER_H

#include "api/http.h"

/* A response whose body is *b's memory, taken over (b is then empty). Never NULL unless memory is
 * out. `type`: Content-Type; NULL: none. */
struct MHD_Response *answer_take(struct buf *b, const char *type);
/* NULL response is fine; the values are ours, never an origin's. */
void answer_header(struct MHD_Response *resp, const char *name, const char *value);
/* Adds what every answer has, queues, and lets go of the response. `cache`: Cache-Control; NULL:
 * no-store. */
enum MHD_Result answer_send(struct request *r, unsigned status, struct MHD_Response *resp,
                            const char *cache);
/* Sends r->problem. */
enum MHD_Result answer_problem(struct request *r);
/* Sets r->problem and sends it. */
enum MHD_Result answer_fail(struct request *r, enum problem_type type, const char *fmt, ...)
    PRINTF_LIKE(3, 4);
/* Around what the library calls us for: what is logged names the request (NULL is fine), and the
 * time that the api thread was busy is counted. */
int64_t answer_turn(const struct request *r);
void answer_turn_over(int64_t begin);
/* An empty answer (204). */
enum MHD_Result answer_empty(struct request *r, unsigned status);
/* Writes r->problem straight to the socket: the library can't answer in the middle of an upload.
 * The connection must be closed by the caller (return MHD_NO). */
void answer_raw(struct request *r);

#endif
