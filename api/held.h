/* Memory that answers hold while their readers take them, however slowly: counted against the share
 * of the plan (server/memory.h). Above half of it nothing is made ahead of its reader. api thread. */
#ifndef API_HELD_H
#define API_HELD_H

#include "api/http.h"

/* What one more answer may hold, in bytes: never less than HELD_LEAST, which is part of what a
 * connection is reckoned with. */
size_t held_room(const struct api *api);
/* More than half is held. */
bool held_short(const struct api *api);
/* *mine, which is counted, becomes `now`. */
void held_change(struct api *api, size_t *mine, size_t now);
/* Takes over the text; it is counted until the answer has gone. NULL: out of memory. */
struct MHD_Response *held_response(struct api *api, struct buf *b, const char *type);

/* A request ended that held so many bytes at least. Now and then, after much of it, the memory goes
 * back to the system. */
void held_ended(struct api *api, uint64_t bytes);

/* Its answer is long: the reader may take its time. */
void held_be_patient(struct request *r);

enum { HELD_LEAST = 4096 };

#endif
