/* After a sync that failed. The kernel may hold the pages for written that it could not write
 * (fsync(2), NOTES), so that a second sync succeeds and means nothing: commits in the log that were
 * not synced before, and the failed one, would be missing after a loss of power, and with them all
 * that comes behind. So what was committed is read back from the log and held against its
 * checksums, written once more, and that is synced; until then no transaction begins and nothing is
 * checkpointed. What was not committed is cut off: a recovery could find it whole, though its
 * client was told that it failed. A checkpoint whose sync of the database fails counts as not done, but
 * only from where it began: what an earlier one had copied that a reader stopped, which SQLite does not
 * sync, may be dropped with it. So the index is told that nothing was copied, as after a recovery, and
 * the next checkpoint writes all of it again.
 *
 * Formats: https://www.sqlite.org/walformat.html 2.1 (index), fileformat2.html 4 (log). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "storage/sqlite_int.h"

enum {
    HEAD = 32,              /* bytes of the log's head … */
    FRAME = 24,             /* … and of a frame's */
    SHM_REGION = 32 * 1024, /* bytes of the index that are mapped at once */
    MAGIC = 0x377f0682,     /* the lowest bit: the checksums are of big-endian numbers */
    INDEX_VERSION = 3007000,
    BACKFILL = 96, /* where the index says how many frames are in the database */
};

/* The head of the index, in the machine's byte order but for the salts. */
struct index {
    uint32_t version, unused, change;
    uint8_t init, big_endian;
    uint16_t page_size; /* 1: 65536 */
    uint32_t frames, pages;
    uint32_t sum[2]; /* of the last frame that was committed */
    uint8_t salt[8];
    uint32_t own_sum[2];
};

static uint32_t big(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static uint32_t little(const uint8_t *p)
{
    return (uint32_t)p[3] << 24 | (uint32_t)p[2] << 16 | (uint32_t)p[1] << 8 | p[0];
}

static void add_sum(uint32_t sum[2], bool big_endian, const uint8_t *p, size_t n)
{
    for (size_t i = 0; i < n; i += 8) {
        sum[0] += (big_endian ? big(p + i) : little(p + i)) + sum[1];
        sum[1] += (big_endian ? big(p + i + 4) : little(p + i + 4)) + sum[0];
    }
}

static bool is_sum(const uint32_t sum[2], const uint8_t *p)
{
    return sum[0] == big(p) && sum[1] == big(p + 4);
}

static int lost(struct store *s, const char *what, unsigned long long frame)
{
    s->lost = true;
    snprintf(
        s->error, sizeof(s->error),
        "a sync failed, and the log does not hold any more what was committed (%s, frame %llu):"
        " the disk has lost data",
        what, frame);
    return E_CORRUPT;
}

/* The frames that were committed: checks and writes each again. */
static int write_again(struct store *s, sqlite3_file *log, const struct index *x, uint8_t *frame,
                       size_t size)
{
    uint32_t sum[2] = {0};
    int code = log->pMethods->xRead(log, frame, HEAD, 0);
    if (code != SQLITE_OK && code != SQLITE_IOERR_SHORT_READ)
        return sq_fail(s, code);
    bool big_endian = big(frame) & 1;
    add_sum(sum, big_endian, frame, HEAD - 8);
    if ((big(frame) & ~1U) != MAGIC || !is_sum(sum, frame + 24) ||
        memcmp(frame + 16, x->salt, sizeof(x->salt)) != 0)
        return lost(s, "its head", 0);
    code = log->pMethods->xWrite(log, frame, HEAD, 0);
    for (uint32_t i = 0; code == SQLITE_OK && i < x->frames; i++) {
        sqlite3_int64 at = HEAD + (sqlite3_int64)i * (sqlite3_int64)size;
        code = log->pMethods->xRead(log, frame, (int)size, at);
        if (code != SQLITE_OK && code != SQLITE_IOERR_SHORT_READ)
            break;
        add_sum(sum, big_endian, frame, 8);
        add_sum(sum, big_endian, frame + FRAME, size - FRAME);
        if (memcmp(frame + 8, x->salt, sizeof(x->salt)) != 0 || !is_sum(sum, frame + 16))
            return lost(s, "a checksum", i + 1ULL);
        code = log->pMethods->xWrite(log, frame, (int)size, at);
    }
    if (code != SQLITE_OK)
        return sq_fail(s, code);
    return memcmp(sum, x->sum, sizeof(sum)) == 0 ? 0 : lost(s, "the last commit", x->frames);
}

static size_t frame_size(const struct index *x)
{
    return FRAME + (x->page_size == 1 ? 65536 : x->page_size);
}

/* Where what was committed ends in the log. */
static sqlite3_int64 log_end(const struct index *x)
{
    return HEAD + (sqlite3_int64)x->frames * (sqlite3_int64)frame_size(x);
}

static int mend(struct store *s, sqlite3_file *log, const struct index *x)
{
    size_t size = frame_size(x);
    sqlite3_int64 end = log_end(x), length = 0;
    uint8_t *frame = malloc(size);
    if (frame == NULL)
        return E_NOMEM;
    int rc = x->frames > 0 ? write_again(s, log, x, frame, size) : 0;
    if (rc == 0)
        rc = sq_fail(s, log->pMethods->xFileSize(log, &length));
    if (rc == 0 && length > end) { /* no salt is 0 with a page 0, so recovery ends here */
        memset(frame, 0, FRAME);
        rc = sq_fail(s, log->pMethods->xWrite(log, frame, FRAME, end));
    }
    if (rc == 0)
        rc = sq_fail(s, log->pMethods->xSync(log, SQLITE_SYNC_NORMAL));
    free(frame);
    return rc;
}

static volatile void *map_index(const struct store *s)
{
    sqlite3_file *file = NULL;
    volatile void *shm = NULL;
    sqlite3_file_control(s->db, "main", SQLITE_FCNTL_FILE_POINTER, &file);
    if (file == NULL || file->pMethods == NULL ||
        file->pMethods->xShmMap(file, 0, SHM_REGION, 0, &shm) != SQLITE_OK)
        return NULL;
    return shm;
}

static int read_index(const struct store *s, struct index *x)
{
    volatile void *shm = map_index(s);
    if (shm == NULL)
        return E_IO;
    memcpy(x, (const void *)shm, sizeof(*x)); /* only this connection changes it */
    return x->version == INDEX_VERSION && x->init ? 0 : E_IO;
}

bool sq_log_is_new(struct store *s)
{
    struct index x;
    if (read_index(s, &x) != 0 || memcmp(s->salt, x.salt, sizeof(s->salt)) == 0)
        return false;
    memcpy(s->salt, x.salt, sizeof(s->salt));
    return true;
}

static sqlite3_file *log_file(const struct store *s)
{
    sqlite3_file *log = NULL;
    sqlite3_file_control(s->db, "main", SQLITE_FCNTL_JOURNAL_POINTER, &log);
    return log != NULL && log->pMethods != NULL ? log : NULL;
}

/* Readers read no further than the commit that they know, and the next transaction begins there. */
void store_cut(struct store *s)
{
    sqlite3_file *log = log_file(s);
    sqlite3_int64 length = 0;
    struct index x;
    if (!s->unsure && sqlite3_get_autocommit(s->db) && log != NULL && read_index(s, &x) == 0 &&
        log->pMethods->xFileSize(log, &length) == SQLITE_OK && length > log_end(&x))
        (void)log->pMethods->xTruncate(log, log_end(&x));
}

int sq_mend(struct store *s)
{
    sqlite3_file *log = log_file(s);
    struct index x;
    if (!s->unsure)
        return 0;
    if (s->lost) /* s->error says it */
        return E_CORRUPT;
    snprintf(s->error, sizeof(s->error), "a sync failed, and the log cannot be looked at");
    if (log == NULL || read_index(s, &x) != 0)
        return E_IO;
    int rc = mend(s, log, &x);
    volatile uint8_t *shm = rc == 0 ? map_index(s) : NULL;
    if (shm != NULL) /* only this process checkpoints, and readers find all in the log */
        *(volatile uint32_t *)(shm + BACKFILL) = 0;
    s->unsure = rc != 0;
    return rc;
}

bool store_lost(const struct store *s)
{
    return s->lost;
}
