/* The error codes of every function of ours that returns int: 0, or one of these.
 *
 * They stand here because storage is the lowest folder; server/ and api/ use the same ones. */
#ifndef STORAGE_ERR_H
#define STORAGE_ERR_H

enum err {
    E_NOMEM = -1,     /* out of memory */
    E_IO = -2,        /* the disk or another device failed */
    E_FULL = -3,      /* no space left on the disk, or a quota reached */
    E_BUSY = -4,      /* in use by another, or too much work queued: try again later */
    E_NOTFOUND = -5,  /* no such thing */
    E_EXISTS = -6,    /* it is there already */
    E_CORRUPT = -7,   /* what was read back is not what we write */
    E_INVAL = -8,     /* the caller's input is wrong */
    E_TOONEW = -9,    /* written by a newer version of this program */
    E_LIMIT = -10,    /* larger than a bound that the caller or the configuration set */
    E_CONFLICT = -11, /* the state of the thing does not allow it */
    E_STOPPING = -12, /* the service is shutting down */
    E_READONLY = -13, /* the file system, or the directory, cannot be written */
};

/* What a failed system call on our files comes to: E_FULL, E_READONLY, E_NOMEM or E_IO. */
int err_of_errno(int err);

/* A result that must be looked at. */
#define MUSTCHECK __attribute__((warn_unused_result))

#endif
