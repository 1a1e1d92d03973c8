/* A run of results as JSON text, made piece by piece in bounded memory: the page, the NDJSON stream
 * and the single result are all made by this. Inline bodies are read and written in pieces too, so
 * that a large body is never in memory as a whole. api thread. */
#ifndef API_FEED_H
#define API_FEED_H

#include "api/http.h"
#include "api/json.h"

enum feed_form { FEED_PAGE, FEED_NDJSON, FEED_SINGLE };

struct feed {
    /* Set by the caller after feed_init. */
    struct api *api;
    enum feed_form form;
    int64_t batch;
    char id[STORE_BATCH_ID_SIZE];
    enum result_order order;
    int64_t after;      /* as in struct result_query; moves on */
    int status;         /* likewise */
    char *custom_id;    /* owned; NULL: any */
    uint64_t left;      /* results still wanted */
    uint64_t index;     /* FEED_SINGLE */
    bool headers, body; /* what to include */
    size_t step_bytes;  /* a step ends with the result that makes it this long; may be changed
                           between steps, and does not change the text */

    /* The text made so far and not yet taken. A struct feed as it was before a step, with other
     * buffers, makes the same text again (of a batch that goes on: at least as much). */
    struct buf out;
    bool done;

    /* private */
    struct jw w;
    struct buf piece;
    int phase;
    bool more;
    uint64_t written; /* bytes made in all */
    size_t step_from; /* out.len when the step began */
    uint32_t empty_steps;
    bool in_body, is_text;
    uint64_t n, body_len, body_at;
};

void feed_init(struct feed *f);
void feed_fini(struct feed *f);
/* Makes some more text (at most some hundred KiB, or one result). Returns 0 or an error; E_NOTFOUND:
 * FEED_SINGLE has no such result, or the batch is gone. */
int feed_step(struct feed *f) MUSTCHECK;
/* Whether a large body is next, so that the rest should be streamed. */
bool feed_is_large(const struct feed *f);

#endif
