/* How large the database is, and what its connection has done. */
#include <sys/stat.h>
#include <sys/statvfs.h>

#include "storage/sqlite_int.h"

static uint64_t file_size(const char *path)
{
    struct stat st;
    return path != NULL && stat(path, &st) == 0 ? (uint64_t)st.st_size : 0;
}

int store_stats(struct store *s, struct store_stats *out)
{
    const char *path = sqlite3_db_filename(s->db, "main");
    struct statvfs fs;
    sqlite3_stmt *q;
    *out = (struct store_stats){.db_bytes = file_size(path),
                                .wal_bytes = file_size(sqlite3_filename_wal(path)),
                                .disk_free_bytes = UINT64_MAX};
    if (statvfs(path, &fs) == 0)
        out->disk_free_bytes = (uint64_t)fs.f_bavail * fs.f_frsize;
    int rc = sq_get(s, S_FREE_PAGES, &q);
    if (rc == 0 && sqlite3_step(q) == SQLITE_ROW) {
        uint64_t page = (uint64_t)sqlite3_column_int64(q, 1);
        out->free_bytes = (uint64_t)sqlite3_column_int64(q, 0) * page;
        out->size_bytes = (uint64_t)sqlite3_column_int64(q, 2) * page;
    }
    return rc != 0 ? rc : sq_finish(s, q);
}

uint64_t store_unfolded(const struct store *s)
{
    enum { PAGE = 8192, HEAD = 24 };
    return s->frames > s->folded ? (uint64_t)(s->frames - s->folded) * (PAGE + HEAD) : 0;
}

void store_checkpoints(const struct store *s, uint64_t *done, uint64_t *failed)
{
    *done = s->checkpoints;
    *failed = s->checkpoints_failed;
}
