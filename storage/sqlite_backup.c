/* A copy of a database that may be in use; see store.h. It is read by a connection of its own, which
 * neither writes nor checkpoints, in one read transaction: what the service commits meanwhile does not
 * begin the copy anew (https://sqlite.org/backup.html), only the service's log cannot be folded back
 * beyond where that transaction began. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "storage/sqlite_int.h"

enum { STEP_PAGES = 256, PATH_SIZE = 4096 };

struct backup {
    const struct store_backup *how;
    struct store *from;
    sqlite3 *to;
    char part[PATH_SIZE]; /* the name until it is whole; empty: there is none */
    char log[PATH_SIZE];
    uint64_t log_limit;
    char *why;
    size_t why_size;
};

static int fail(struct backup *b, int rc, const char *what, const char *text)
{
    snprintf(b->why, b->why_size, "%.300s: %s", what, text);
    return rc;
}

static int fail_errno(struct backup *b, const char *what)
{
    return fail(b,
                errno == ENOSPC || errno == EDQUOT ? E_FULL
                : errno == EEXIST                  ? E_EXISTS
                                                   : E_IO,
                what, strerror(errno));
}

static uint64_t file_size(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 ? (uint64_t)st.st_size : 0;
}

/* If no service runs none shall start while the log may have to be looked through, which the first to
 * open it does. *lock: to be closed, or -1. */
static int keep_out(struct backup *b, int *lock)
{
    char path[PATH_SIZE];
    snprintf(path, sizeof(path), "%s/lock", b->how->dir);
    *lock = open(path, O_RDWR | O_CLOEXEC);
    if (*lock < 0 && errno != ENOENT)
        return fail_errno(b, path);
    if (*lock >= 0 && flock(*lock, LOCK_EX | LOCK_NB) != 0) {
        close(*lock); /* one runs */
        *lock = -1;
    }
    return 0;
}

/* Opens the database and begins the transaction whose view is copied. */
static int begin(struct backup *b)
{
    int lock = -1, version, one;
    snprintf(b->log, sizeof(b->log), "%s/batchfetch.db", b->how->dir);
    if (access(b->log, R_OK) != 0)
        return fail_errno(b, b->log);
    snprintf(b->log, sizeof(b->log), "%s/batchfetch.db-wal", b->how->dir);
    int rc = keep_out(b, &lock);
    if (rc != 0)
        return rc;
    rc = store_open(&b->from, b->how->dir, STORE_READ, b->why, b->why_size);
    if (rc == 0) {
        rc = sq_check_version(b->from, &version);
        if (rc == 0)
            rc = store_read_begin(b->from);
        if (rc == 0)
            rc = sq_pragma_int(b->from, "SELECT count(*) FROM sqlite_schema", &one);
        if (rc != 0)
            rc = fail(b, rc, b->how->dir, store_error(b->from));
    }
    if (lock >= 0)
        close(lock);
    return rc;
}

static int make_part(struct backup *b)
{
    if (snprintf(b->part, sizeof(b->part), "%s.part-XXXXXX", b->how->file) >=
        (int)sizeof(b->part)) {
        b->part[0] = '\0';
        errno = ENAMETOOLONG;
        return fail_errno(b, b->how->file);
    }
    int fd = mkostemp(b->part, O_CLOEXEC);
    if (fd < 0) {
        b->part[0] = '\0';
        return fail_errno(b, b->how->file);
    }
    close(fd);
    int code = sqlite3_open_v2(b->part, &b->to, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX, NULL);
    if (code == SQLITE_OK) /* until it is whole it is worth nothing, and then it is synced */
        code = sqlite3_exec(b->to,
                            "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;"
                            "PRAGMA cache_size=-8192",
                            NULL, NULL, NULL);
    return code == SQLITE_OK ? 0 : fail(b, E_IO, b->part, sqlite3_errmsg(b->to));
}

static int copy(struct backup *b, struct store_backup_progress *p)
{
    sqlite3_backup *copier = sqlite3_backup_init(b->to, "main", b->from->db, "main");
    if (copier == NULL)
        return fail(b, E_IO, b->part, sqlite3_errmsg(b->to));
    int code, rc = 0, page = 0;
    bool first = true;
    rc = sq_pragma_int(b->from, "PRAGMA page_size", &page);
    do {
        code = sqlite3_backup_step(copier, STEP_PAGES);
        p->total = (uint64_t)sqlite3_backup_pagecount(copier) * (uint64_t)page;
        p->done = p->total - (uint64_t)sqlite3_backup_remaining(copier) * (uint64_t)page;
        p->log_bytes = file_size(b->log);
        if (first) {
            uint64_t least = p->total > (uint64_t)1 << 30 ? p->total : (uint64_t)1 << 30;
            b->log_limit = p->log_bytes + (b->how->max_log > 0 ? b->how->max_log : least);
        }
        first = false;
        if (code != SQLITE_OK)
            break;
        if (p->log_bytes > b->log_limit)
            rc = fail(b, E_LIMIT, b->log,
                      "it grew too large meanwhile: back up when less is going on, to a quicker "
                      "disk, or with a larger --backup-max-log");
        else if (b->how->progress(b->how->arg, p) != 0)
            rc = fail(b, E_STOPPING, "stopped", "nothing was left behind");
    } while (rc == 0);
    int last = sqlite3_backup_finish(copier);
    if (rc != 0)
        return rc;
    if (code != SQLITE_DONE || last != SQLITE_OK) {
        bool full = (code & 0xff) == SQLITE_FULL || sqlite3_system_errno(b->to) == ENOSPC;
        return fail(b, full ? E_FULL : E_IO, b->part,
                    full ? strerror(ENOSPC) : sqlite3_errmsg(b->to));
    }
    return 0;
}

static int sync_path(struct backup *b, const char *path, int flags)
{
    int fd = open(path, flags | O_CLOEXEC);
    if (fd < 0)
        return fail_errno(b, path);
    /* a file system that knows of no such thing for directories answers EINVAL */
    int rc = fsync(fd) == 0 || (errno == EINVAL && (flags & O_DIRECTORY)) ? 0 : fail_errno(b, path);
    close(fd);
    return rc;
}

/* Under its name only when it is whole, and never over another file. */
static int publish(struct backup *b)
{
    char dir[PATH_SIZE];
    int code = sqlite3_close(b->to);
    b->to = NULL;
    if (code != SQLITE_OK)
        return fail(b, E_IO, b->part, sqlite3_errstr(code));
    int rc = sync_path(b, b->part, O_RDONLY);
    if (rc != 0)
        return rc;
    if (renameat2(AT_FDCWD, b->part, AT_FDCWD, b->how->file, RENAME_NOREPLACE) != 0) {
        /* not every file system can */
        if (errno == EEXIST || link(b->part, b->how->file) != 0)
            return fail_errno(b, b->how->file);
        (void)unlink(b->part);
    }
    b->part[0] = '\0';
    snprintf(dir, sizeof(dir), "%s", b->how->file);
    char *slash = strrchr(dir, '/');
    if (slash == NULL)
        snprintf(dir, sizeof(dir), ".");
    else
        slash[slash == dir] = '\0';
    return sync_path(b, dir, O_RDONLY | O_DIRECTORY);
}

int store_backup(const struct store_backup *how, struct store_backup_progress *p, char *why,
                 size_t why_size)
{
    struct backup b = {.how = how, .why = why, .why_size = why_size};
    struct stat st;
    memset(p, 0, sizeof(*p));
    if (lstat(how->file, &st) == 0) {
        errno = EEXIST;
        return fail_errno(&b, how->file);
    }
    int rc = begin(&b);
    if (rc == 0)
        rc = make_part(&b);
    if (rc == 0)
        rc = copy(&b, p);
    if (b.from != NULL)
        store_read_end(b.from);
    store_close(b.from);
    if (rc == 0)
        rc = publish(&b);
    sqlite3_close(b.to);
    if (b.part[0] != '\0')
        (void)unlink(b.part);
    return rc;
}
