/* Takes secrets out of text that is going to be logged. Pure: any thread. */
#ifndef SERVER_REDACT_H
#define SERVER_REDACT_H

#include "server/base.h"

/* Copies p[0..n) to out, with *** in the place of: userinfo of URLs, values in queries, and what
 * follows the name of a header field or member that holds credentials (Authorization, Cookie, secret
 * …). `cut`: p is the beginning of a longer text, so an authority at its end may be userinfo. At
 * most cap bytes; returns how many. Rather too much is taken out than too little. */
size_t redact_text(char *out, size_t cap, const char *p, size_t n, bool cut);

#endif
