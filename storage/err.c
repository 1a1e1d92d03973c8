/* See err.h. */
#include "storage/err.h"

#include <errno.h>

int err_of_errno(int err)
{
    switch (err) {
    case ENOSPC:
    case EDQUOT: return E_FULL;
    case EROFS:
    case EACCES:
    case EPERM: return E_READONLY;
    case ENOMEM: return E_NOMEM;
    default: return E_IO;
    }
}
