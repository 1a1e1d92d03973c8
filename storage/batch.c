/* The lifetime of struct batch. Pure. */
#include <stdlib.h>
#include <string.h>

#include "storage/store.h"

void batch_fini(struct batch *b)
{
    free(b->defaults);
    free(b->name);
    free(b->metadata);
    free(b->idem_key);
    free(b->retry_of);
    memset(b, 0, sizeof(*b));
}

static int copy_string(char **to, const char *from)
{
    *to = from != NULL ? strdup(from) : NULL;
    return from != NULL && *to == NULL ? E_NOMEM : 0;
}

int batch_copy(struct batch *dst, const struct batch *src)
{
    *dst = *src;
    dst->defaults = NULL;
    dst->name = dst->metadata = dst->idem_key = dst->retry_of = NULL;
    int rc = copy_string(&dst->name, src->name);
    if (rc == 0)
        rc = copy_string(&dst->metadata, src->metadata);
    if (rc == 0)
        rc = copy_string(&dst->idem_key, src->idem_key);
    if (rc == 0)
        rc = copy_string(&dst->retry_of, src->retry_of);
    if (rc == 0 && src->defaults_len > 0) {
        dst->defaults = malloc(src->defaults_len);
        if (dst->defaults != NULL)
            memcpy(dst->defaults, src->defaults, src->defaults_len);
        else
            rc = E_NOMEM;
    }
    if (rc != 0)
        batch_fini(dst);
    return rc;
}
