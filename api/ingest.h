/* A new batch, from a submission's header (POST /v1/batches) to its 202. rebatch.c makes others out of
 * batches that have ended. */
#ifndef API_INGEST_H
#define API_INGEST_H

#include "api/http.h"

/* Checks the header and makes r->ingest. E_INVAL: r->problem is set. */
int ingest_begin(struct request *r) MUSTCHECK;
/* A piece of the body; leaves *size at what it did not take. */
enum MHD_Result ingest_body(struct request *r, const char *data, size_t *size);
enum MHD_Result ingest_finish(struct request *r);
void ingest_free(struct request *r);
/* What became of a submission: when it is answered, or was given up (r->status 0). */
void ingest_count(const struct request *r);

/* A batch that is made by us: checks the Idempotency-Key and makes r->ingest; `content` is what the
 * key stands for. E_INVAL: r->problem is set. */
int ingest_make(struct request *r, const char *content) MUSTCHECK;
struct upload *ingest_upload(const struct request *r);
/* Commits it, waits, and answers: to be called again when the request is woken. *s is read by the
 * first call only. */
enum MHD_Result ingest_commit(struct request *r, struct upload_settings *s);
bool ingest_committing(const struct request *r);
/* Lets go of r->ingest->rebatch with the rest (rebatch.c). */
void ingest_own(struct request *r, struct rebatch *b, void (*free_fn)(struct rebatch *));
struct rebatch *ingest_owned(const struct request *r);

#endif
