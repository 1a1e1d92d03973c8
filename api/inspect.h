/* The first look at a request's header: is its framing beyond doubt, and may this client ask? */
#ifndef API_INSPECT_H
#define API_INSPECT_H

#include "api/http.h"

/* Fills in r->has_body and r->length. E_INVAL with r->problem set (bad-request): the framing is
 * ambiguous or malformed; answer at once and close. `version` as the library's callback got it. */
int inspect_framing(struct request *r, const char *version) MUSTCHECK;
/* Host, Origin, Sec-Fetch-Site. E_INVAL with r->problem set. */
int inspect_client(struct request *r) MUSTCHECK;
/* Fills in api->hosts from the listen address. */
void inspect_init(struct api *api);
void inspect_fini(struct api *api);

#endif
