/* A look at a data directory without opening the database, which would make files beside it: the
 * version stands in the first 100 bytes (https://www.sqlite.org/fileformat.html 1.3). */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "storage/sqlite_int.h"

enum { HEAD_SIZE = 100, PAGES_AT = 28, VERSION_AT = 60, APPLICATION_AT = 68 };

static int32_t head_int(const unsigned char *p)
{
    return (int32_t)((uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3]);
}

/* The directory, or the nearest one above it that is there, must let us write. */
static int check_dir(const char *dir, bool *there, char *why, size_t why_size)
{
    char path[PATH_MAX];
    struct stat st;
    if (snprintf(path, sizeof(path), "%s", dir) >= (int)sizeof(path)) {
        snprintf(why, why_size, "the name of the data directory is too long");
        return E_INVAL;
    }
    *there = stat(path, &st) == 0;
    while (stat(path, &st) != 0 && errno == ENOENT) {
        char *slash = strrchr(path, '/');
        if (slash == NULL)
            snprintf(path, sizeof(path), ".");
        else
            slash[slash == path] = '\0';
    }
    int rc = stat(path, &st);
    if (rc == 0 && !S_ISDIR(st.st_mode)) {
        errno = ENOTDIR;
        rc = -1;
    }
    if (rc == 0)
        rc = faccessat(AT_FDCWD, path, (*there ? R_OK : 0) | W_OK | X_OK, AT_EACCESS);
    if (rc != 0)
        snprintf(why, why_size, "%s%.180s: %s", *there ? "" : "cannot make it in ", path,
                 strerror(errno));
    return rc == 0 ? 0 : E_IO;
}

/* `log`: there is a log, which may hold a later head than this one. */
static int check_head(const unsigned char head[HEAD_SIZE], size_t n, bool log, char *why,
                      size_t why_size)
{
    if (n == 0)
        return 0; /* a start that was cut short */
    bool ours = n == HEAD_SIZE && memcmp(head, "SQLite format 3", 16) == 0 &&
                head_int(head + VERSION_AT) >= 0;
    bool blank = ours && head_int(head + VERSION_AT) == 0 && head_int(head + APPLICATION_AT) == 0;
    /* Without tables, or its first ones are yet in the log. */
    if (blank && (log || head_int(head + PAGES_AT) <= 1))
        return 0;
    if (!ours || head_int(head + APPLICATION_AT) != APPLICATION_ID) {
        snprintf(why, why_size, "the database is not one of batchfetch's");
        return E_CORRUPT;
    }
    if (head_int(head + VERSION_AT) > SCHEMA_VERSION) {
        snprintf(why, why_size,
                 "the database has version %d, this program knows up to %d: use a newer program",
                 (int)head_int(head + VERSION_AT), SCHEMA_VERSION);
        return E_TOONEW;
    }
    return 0;
}

int store_check(const char *dir, char *why, size_t why_size)
{
    static const char *const names[] = {"lock", "batchfetch.db-wal", "batchfetch.db-shm",
                                        "batchfetch.db"};
    unsigned char head[HEAD_SIZE];
    char path[PATH_MAX];
    bool there, log = false;
    struct stat st;
    int rc = check_dir(dir, &there, why, why_size);
    if (rc != 0 || !there)
        return rc;
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (snprintf(path, sizeof(path), "%s/%s", dir, names[i]) >= (int)sizeof(path)) {
            snprintf(why, why_size, "the name of the data directory is too long");
            return E_INVAL;
        }
        if (faccessat(AT_FDCWD, path, R_OK | W_OK, AT_EACCESS) != 0 && errno != ENOENT) {
            snprintf(why, why_size, "%.180s: %s", path, strerror(errno));
            return E_IO;
        }
        if (i == 1)
            log = stat(path, &st) == 0 && st.st_size > 0;
    }
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT)
        return 0;
    ssize_t n = fd >= 0 ? read(fd, head, sizeof(head)) : -1;
    if (n < 0) {
        snprintf(why, why_size, "%.180s: %s", path, strerror(errno));
        rc = E_IO;
    } else {
        rc = check_head(head, (size_t)n, log, why, why_size);
    }
    if (fd >= 0)
        close(fd);
    return rc;
}
