/* The opaque cursors of paging: base64url of a version, what the cursor is for, the batch's number,
 * the key to go on after, and a check. The check finds damage and foreign cursors; it is no secret:
 * a cursor gives no access that the request itself does not have. Pure. */
#ifndef API_CURSOR_H
#define API_CURSOR_H

#include "server/base.h"

enum cursor_kind { CURSOR_COMPLETION = 0, CURSOR_INDEX = 1, CURSOR_LIST = 2 };

enum { CURSOR_SIZE = 32 }; /* a cursor's text with its NUL fits */

/* `batch`: the batch that it belongs to; 0 for CURSOR_LIST. */
void cursor_format(char out[CURSOR_SIZE], enum cursor_kind kind, int64_t batch, int64_t key);
/* Returns 0, or E_INVAL when the text is not a cursor of this kind and batch. */
int cursor_parse(const char *text, enum cursor_kind kind, int64_t batch, int64_t *key) MUSTCHECK;

#endif
