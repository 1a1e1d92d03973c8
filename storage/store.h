/* The data model, and all that the program asks of its database. Read this file first.
 *
 * Storage is passive: it has no threads, no clock and no sockets. A `struct store` is one
 * connection and belongs to one thread at a time. Exactly one connection per process is opened
 * with STORE_WRITE (SQLite 3.40.1 has the WAL-reset bug, https://sqlite.org/wal.html#walresetbug:
 * one connection makes every write and every checkpoint); any number with STORE_READ.
 *
 * What is on disk:
 *   batch    one row a batch: its settings, its state, and (once it has ended) its counts
 *   page     the accepted requests, packed: a page holds some requests of one batch to one lane
 *   result   one row a finished request, numbered within its batch in order of completion
 *   body     the body of a result, apart, so that result rows stay narrow
 *   attempt  one row a request that failed and is tried again, until it has its result
 * There is no "claimed" state: a request is pending when it has no result.
 *
 * All paging is by key ("after"), never by offset. No SQL text, SQLite type or row handle crosses
 * this header, so that another backend fits behind it. */
#ifndef STORAGE_STORE_H
#define STORAGE_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "storage/err.h"

struct store;

enum {
    STORE_BATCH_ID_SIZE = 40, /* a batch's public id with its NUL */
    STORE_HASH_SIZE = 32,     /* SHA-256 of a submission's content */
    STORE_TIMINGS = 8,        /* see enum store_timing */
};

/* When and how a batch's requests are tried again. max_attempts 0: nothing was given, the service's
 * defaults hold; else every member counts as it stands (server/policy.h). */
struct retry_policy {
    uint32_t max_attempts;       /* of a request that gives none itself */
    uint32_t min_backoff_ms;     /* before the second attempt, doubled for each further one … */
    uint32_t max_backoff_ms;     /* … up to this */
    uint32_t max_retry_after_ms; /* a Retry-After beyond this counts as this */
    bool non_idempotent;         /* POST and PATCH too (RFC 9110 9.2.2) */
    bool has_on_status;          /* on_status is given */
    uint8_t on_status[64];       /* bit (status - 100): statuses 100 to 599 that are tried again */
};

/* Bytes that belong to somebody else; ptr NULL means "none". Not NUL-terminated. */
struct span {
    const char *ptr;
    size_t len;
};

enum batch_state {
    BATCH_STAGING = 0,    /* still being uploaded: removed when the service starts again */
    BATCH_OPEN = 1,       /* accepted; queued or in progress (started_ms tells which) */
    BATCH_CANCELLING = 2, /* its pending requests are being given their `cancelled` results */
    BATCH_COMPLETED = 3,  /* every request has its result */
    BATCH_CANCELLED = 4,  /* every request has its result, some of them `cancelled` */
    BATCH_DELETED = 5,    /* gone for every reader; its rows are being removed */
    BATCH_PAUSED = 6,     /* as BATCH_OPEN, but nothing of it is started until it is resumed */
};

/* A batch as it stands on disk. The strings and the blob are owned: batch_fini frees them. */
struct batch {
    int64_t no;                   /* its number, 1 .. 2^31-1, ascending in order of arrival */
    char id[STORE_BATCH_ID_SIZE]; /* its public id, NUL-terminated */
    enum batch_state state;
    uint32_t pages;     /* pages 0 .. pages-1 exist */
    uint64_t total;     /* accepted requests: indexes 0 .. total-1 */
    uint64_t succeeded; /* the three counts are written when the batch ends; while it */
    uint64_t failed;    /* runs the engine's own are right (engine.h) */
    uint64_t cancelled;
    uint64_t bytes_received; /* of decoded bodies; likewise written when it ends */
    int64_t created_ms;      /* wall clock, Unix time in ms; 0: not yet */
    int64_t started_ms;
    int64_t ended_ms;
    uint32_t max_parallel; /* the batch's own limits; 0: none of its own */
    uint32_t max_per_host;
    uint32_t max_redirects;
    uint32_t rate_per_host; /* thousandths of a request a second to one host; 0: no bound */
    uint8_t priority;       /* 0 to 9, the higher the larger its share */
    uint8_t http_version;   /* the highest that is offered: 11 or 20 */
    struct retry_policy retry;
    void *defaults; /* an encoded item (server/item.h) without url; NULL: none */
    size_t defaults_len;
    char *name;     /* NULL: none */
    char *metadata; /* a JSON object as text; NULL: none */
    char *idem_key; /* Idempotency-Key; NULL: none */
    char *retry_of; /* public id of the batch whose failed requests these are; NULL: none */
    uint8_t idem_hash[STORE_HASH_SIZE];
    uint32_t expires_after_s; /* is removed so long after its end, if not before; 0: not given */
    int64_t expires_ms; /* from reads: when it is removed (struct store_horizon); 0: it has not
                                  ended, or never */
};

/* Which ended batches have expired. They are gone for readers; the writer removes them. */
struct store_horizon {
    int64_t now_ms;    /* Unix time in ms, of the caller's clock; INT64_MIN: nothing has expired */
    int64_t retain_ms; /* every batch expires so long after its end at the latest; 0: no bound */
};

/* Frees what *b owns and zeroes it. A zeroed batch is fine. */
void batch_fini(struct batch *b);
/* Copies all of *src, owned parts too. Returns 0 or E_NOMEM (then *dst is zeroed). */
int batch_copy(struct batch *dst, const struct batch *src) MUSTCHECK;

/* Some requests of one batch to one lane, encoded by server/item.h, in the order of arrival. */
struct page {
    uint32_t no;    /* within its batch, from 0 */
    uint64_t lane;  /* hash of the host: which page belongs to which host */
    uint32_t count; /* requests in it, at least 1 */
    const void *data;
    size_t len;
};

enum result_status { RESULT_SUCCEEDED = 0, RESULT_FAILED = 1, RESULT_CANCELLED = 2 };

/* The durations of a result, in microseconds. They do not overlap; their sum is the whole time
 * from the batch's acceptance to the request's end. */
enum store_timing {
    TIMING_QUEUED,     /* accepted, not yet in the scheduler's window */
    TIMING_LIMIT_WAIT, /* in the scheduler, held back by a limit (all hops) */
    TIMING_RETRY_WAIT, /* between attempts */
    TIMING_DNS,
    TIMING_CONNECT,
    TIMING_TLS,
    TIMING_FIRST_BYTE, /* request sent, waiting for the first byte of the answer */
    TIMING_TRANSFER,
};

/* A finished request. Pointers belong to whoever filled it in: for store_add_result the caller;
 * in callbacks and from store_result the store (valid until its next call). */
/* Gives len bytes of a body of body_len bytes, from `at`. 0, E_IO. */
typedef int store_read_fn(void *arg, uint64_t at, void *p, size_t len);

struct result {
    uint64_t n;     /* order of completion within the batch, from 1: the cursor */
    uint64_t index; /* position in the submission, from 0 */
    enum result_status status;
    int http_status;  /* 0: no response */
    int http_version; /* 10, 11, 20; 0: no response */
    int error;        /* enum outcome of server/outcome.h; 0: none */
    struct span error_message;
    uint32_t attempts;
    bool truncated;        /* the body is cut at max_body_bytes or where the transfer broke */
    struct span url;       /* as submitted */
    struct span final_url; /* none: same as url, or never fetched */
    struct span custom_id; /* none: not given */
    struct span headers;   /* the response's field lines as received, "Name: value\r\n" each */
    struct span redirects; /* one line a hop: "STATUS SP URL LF", the URL being where it led */
    struct span remote_ip; /* of the last hop, text */
    uint64_t timing_us[STORE_TIMINGS];
    int64_t completed_ms; /* wall clock, Unix time in ms */
    uint64_t body_len;
    struct span body;         /* for add: the body, if it is in memory; from reads: always none */
    store_read_fn *body_read; /* for add: gives the body where it is elsewhere; NULL: it is not */
    void *body_arg;
};

/* A place in the order in which a batch's attempts are due. */
struct attempt_mark {
    int64_t due_ms; /* Unix time in ms, of the caller's clock */
    uint64_t index; /* of the request */
};

/* A request that failed and is tried again: it waits until it is due, or was handed out since. */
struct attempt {
    struct attempt_mark at;
    uint64_t lane;
    uint32_t page;    /* that holds the request */
    const void *data; /* the engine's: what else of earlier attempts survives (server/waiting.h) */
    size_t len;
};

enum store_mode { STORE_READ, STORE_WRITE };

/* Opens the database in directory `dir` (for STORE_WRITE: makes directory and database where
 * missing, takes the lock that refuses a second process (E_BUSY), migrates forward). Returns 0,
 * E_BUSY, E_IO, E_FULL, E_CORRUPT, E_TOONEW or E_NOMEM; on failure *out is NULL and, if `why` is
 * not NULL, up to `why_size` bytes of text say the cause. */
int store_open(struct store **out, const char *dir, enum store_mode mode, char *why,
               size_t why_size) MUSTCHECK;
/* Whether store_open could open `dir` for writing, as far as can be told without changing anything:
 * it, or where it would be made, can be written to, and a database there is ours and of a version
 * that we know. A service may be running on it. The rows are store_verify's to look at.
 * E_INVAL, E_IO, E_CORRUPT, E_TOONEW. */
int store_check(const char *dir, char *why, size_t why_size) MUSTCHECK;
struct store_backup_progress {
    uint64_t done, total; /* bytes of the copy */
    uint64_t log_bytes;   /* size of the log of the database that is copied */
};
struct store_backup {
    const char *dir;  /* whose database is copied: a service may be running on it */
    const char *file; /* the copy: by the name batchfetch.db a directory of it can be opened */
    uint64_t
        max_log; /* bytes that the log may grow by meanwhile; 0: as many as the database has, and
                         1 GiB at least */
    /* Called every 2 MiB. Not 0: give up. */
    int (*progress)(void *arg, const struct store_backup_progress *p);
    void *arg;
};
/* Copies a database as it is at some moment of this call: all that was committed before it is in it.
 * The file is there when it is whole and synced, or not at all. Returns 0; E_EXISTS: there is one of
 * that name; E_LIMIT: the log grew by more; E_STOPPING: given up; E_FULL, E_IO, E_CORRUPT, E_TOONEW;
 * `why` says more. */
int store_backup(const struct store_backup *how, struct store_backup_progress *p, char *why,
                 size_t why_size) MUSTCHECK;
/* Looks for damage in every row and page of the database in `dir`, which a service may have open;
 * changes nothing. For each fault that is found fn is called with a line of text (of one kind 20 at
 * most). Returns their number, or E_NOTFOUND: there is no database, E_IO, E_CORRUPT or E_TOONEW: it
 * cannot be opened (`why`), E_INVAL, E_NOMEM. */
typedef void store_fault_fn(void *arg, const char *text);
struct store_summary {
    int version;
    uint64_t batches, requests, results; /* 0 if it is of an earlier version */
};
int store_verify(const char *dir, store_fault_fn *fn, void *arg, struct store_summary *sum,
                 char *why, size_t why_size) MUSTCHECK;
/* Closes; the writer checkpoints first. NULL is fine. */
void store_close(struct store *s);
/* Text of the last failure of this connection. Never NULL. */
const char *store_error(const struct store *s);

/* ---- the writer (keeper thread) ---- */

/* Starts a transaction. `durable`: its commit is on the disk (synced) when store_commit returns;
 * otherwise it survives the process, and is lost at most by loss of power. */
int store_begin(struct store *s, bool durable) MUSTCHECK;
/* On failure it is rolled back. After a sync that failed, store_begin first makes sure that all that
 * was committed is on the disk, and is E_IO until it is. */
int store_commit(struct store *s) MUSTCHECK;
/* After a failed sync it was found that committed data is gone: what the process knows and what is
 * stored differ from now on, so it should end at once and start again from what is there. */
bool store_lost(const struct store *s);
void store_rollback(struct store *s);
/* Between the two the same state is read, and SQLite's locks are taken once instead of for every
 * call (each is some system calls). Nothing may be written, no transaction begun. */
int store_read_begin(struct store *s) MUSTCHECK;
void store_read_end(struct store *s);
/* Whether a transaction can be written and synced: writes what is there again. */
int store_probe(struct store *s) MUSTCHECK;
/* Outside a transaction: folds the write-ahead log back when it has grown; `force`: whatever its
 * size, and cuts it to nothing. Never fails loudly: what it could not do now it does later. */
void store_checkpoint(struct store *s, bool force);
/* Whether it would do anything. */
bool store_checkpoint_due(const struct store *s, bool force);
/* Outside a transaction: the end of the log goes that a transaction has left which found no space. */
void store_cut(struct store *s);

/* Bytes of the log that are not folded back, about. */
uint64_t store_unfolded(const struct store *s);

/* How many checkpoints came to their end, and how many did not (a reader was in the way, say). */
void store_checkpoints(const struct store *s, uint64_t *done, uint64_t *failed);

/* The latest time that is recorded of a batch, Unix time in ms; 0: none. */
int store_last_time(struct store *s, int64_t *ms) MUSTCHECK;
/* The largest batch number ever used; 0: none. */
int store_last_batch_no(struct store *s, int64_t *no) MUSTCHECK;
/* Inserts. E_EXISTS: its idem_key is in use by another batch that is not deleted. */
int store_add_batch(struct store *s, const struct batch *b) MUSTCHECK;
/* Writes every field of *b again (by b->no). E_NOTFOUND, E_EXISTS as above. */
int store_update_batch(struct store *s, const struct batch *b) MUSTCHECK;
int store_add_page(struct store *s, int64_t batch, const struct page *p) MUSTCHECK;
/* E_EXISTS: this index of this batch has a result already (nothing is changed). */
int store_add_result(struct store *s, int64_t batch, const struct result *r) MUSTCHECK;
/* Adds the attempt of a request, or gives the one that is there another time and data. */
int store_put_attempt(struct store *s, int64_t batch, const struct attempt *a) MUSTCHECK;
int store_drop_attempt(struct store *s, int64_t batch, uint64_t index) MUSTCHECK; /* none: fine */
/* If attempts of the batch are due later than this, all are due so much earlier that none is: for
 * after a restart, when the clock may have been set back. */
int store_bound_due(struct store *s, int64_t batch, int64_t latest_ms) MUSTCHECK;
/* Removes up to about max_rows attempts of a batch. *done: none is left. */
int store_remove_attempts(struct store *s, int64_t batch, uint32_t max_rows, bool *done) MUSTCHECK;
/* Removes rows of a batch, about max_rows and max_bytes at most but at least one; the batch row goes
 * last. *done: nothing is left. Used for BATCH_DELETED and for staged batches that were given up. */
int store_remove_step(struct store *s, int64_t batch, uint32_t max_rows, uint64_t max_bytes,
                      bool *done) MUSTCHECK;
/* Makes ended batches that have expired BATCH_DELETED, `max` at most, the earliest first. Returns
 * their numbers; *next_ms: when the first of those that are left expires; INT64_MAX: none will. */
int store_expire(struct store *s, int64_t *no, size_t max, size_t *n, int64_t *next_ms) MUSTCHECK;
/* Makes one batch BATCH_DELETED. E_NOTFOUND: there is none of that number. */
int store_mark_deleted(struct store *s, int64_t batch) MUSTCHECK;
/* Gives back to the file system up to max_pages free pages of the file, which becomes shorter with
 * the next checkpoints. *done: none is left. */
int store_shrink(struct store *s, uint32_t max_pages, bool *done) MUSTCHECK;
/* Sizes in bytes: of the database with what its log holds of it, and of its free pages. */
int store_space(struct store *s, uint64_t *size, uint64_t *unused) MUSTCHECK;

/* Every batch that is not COMPLETED or CANCELLED, oldest first. The batch is the store's: copy
 * what is kept. fn returns 0 to go on; another value stops and is returned. */
typedef int store_batch_fn(void *arg, const struct batch *b);
int store_open_batches(struct store *s, store_batch_fn *fn, void *arg) MUSTCHECK;

/* The heads (no, lane, count; data NULL) of the pages after `after_no` (-1: from the first), at
 * most `max`, ascending. Returns their number in *n. */
int store_page_heads(struct store *s, int64_t batch, int64_t after_no, struct page *v, size_t max,
                     size_t *n) MUSTCHECK;
/* Calls fn for the pages after `after_no` (-1: from the first), at most `max`, ascending. A page is
 * valid during the call. *next: the last one's number; *more: there may be others behind it. fn
 * returns 0 to go on; another value stops and is returned. */
typedef int store_page_fn(void *arg, const struct page *p);
int store_pages(struct store *s, int64_t batch, int64_t after_no, size_t max, store_page_fn *fn,
                void *arg, int64_t *next, bool *more) MUSTCHECK;
/* The first page of a lane after page `after_no` (-1: the first). *out is valid until the next
 * call on this store. E_NOTFOUND: there is none. */
int store_lane_page(struct store *s, int64_t batch, uint64_t lane, int64_t after_no,
                    struct page *out) MUSTCHECK;
/* One page by its number; likewise. Does not depend on the lanes' index. */
int store_page(struct store *s, int64_t batch, uint32_t no, struct page *out) MUSTCHECK;
/* Which indexes of a batch have results (in order of index), and what they were: used when the
 * service starts again. last_n: the highest completion number. */
typedef int store_done_fn(void *arg, uint64_t index, enum result_status status, uint64_t body_len);
int store_done(struct store *s, int64_t batch, store_done_fn *fn, void *arg,
               uint64_t *last_n) MUSTCHECK;

/* One attempt, whole; its data is valid until the next call on this store. E_NOTFOUND. */
int store_attempt(struct store *s, int64_t batch, uint64_t index, struct attempt *out) MUSTCHECK;
/* The indexes of all attempts of a batch, in no order. fn returns 0 to go on; another value stops
 * and is returned. */
typedef int store_attempt_fn(void *arg, uint64_t index);
int store_attempts(struct store *s, int64_t batch, store_attempt_fn *fn, void *arg) MUSTCHECK;
/* The first batch numbered above `after` that has attempts. E_NOTFOUND: there is none. */
int store_attempts_next(struct store *s, int64_t after, int64_t *batch) MUSTCHECK;
/* The attempts after one place up to (and with) another, in their order, at most `max`: place and
 * lane only. Returns their number in *n. The second: those of one lane. */
int store_due(struct store *s, int64_t batch, struct attempt_mark after, struct attempt_mark upto,
              struct attempt *v, size_t max, size_t *n) MUSTCHECK;
int store_lane_due(struct store *s, int64_t batch, uint64_t lane, struct attempt_mark after,
                   struct attempt_mark upto, struct attempt *v, size_t max, size_t *n) MUSTCHECK;

/* ---- readers (api thread), and the writer too ---- */

/* Holds for the reads of this connection from now on. */
void store_set_horizon(struct store *s, const struct store_horizon *h);
/* When an ended batch expires; INT64_MAX: never. */
int64_t store_expires(const struct store_horizon *h, const struct batch *b);

/* By public id. *out is the caller's: batch_fini it. A STAGING, DELETED or expired batch is
 * E_NOTFOUND. */
int store_find(struct store *s, const char *id, struct batch *out) MUSTCHECK;
/* By Idempotency-Key; likewise, but an expired batch is found. */
int store_find_key(struct store *s, const char *idem_key, struct batch *out) MUSTCHECK;
/* Newest first, numbers below `before` (0: from the newest), at most `limit`; STAGING, DELETED and
 * expired ones are left out. `states`: a bit set of (1 << enum batch_state); 0: all. */
int store_list(struct store *s, int64_t before, unsigned states, uint32_t limit, store_batch_fn *fn,
               void *arg) MUSTCHECK;

struct store_stats {
    uint64_t db_bytes, wal_bytes; /* sizes of the files */
    uint64_t free_bytes;          /* of the database: pages that will be used again */
    uint64_t size_bytes;          /* of the database, when the log is folded into it */
    uint64_t disk_free_bytes;     /* of the file system, for us; UINT64_MAX: unknown */
};
int store_stats(struct store *s, struct store_stats *out) MUSTCHECK;

enum result_order { ORDER_COMPLETION, ORDER_INDEX };

struct result_query {
    enum result_order order;
    int64_t after;         /* ORDER_COMPLETION: n; ORDER_INDEX: index; -1: from the first */
    int status;            /* enum result_status, or -1: any */
    struct span custom_id; /* none: any */
    uint32_t limit;        /* rows to hand out at most */
    uint32_t scan_limit;   /* rows to look at at most (a rare status in a large batch), >= limit */
};

/* Calls fn for each result that fits. *next: the key to go on after. *more: whether rows were
 * left unread behind it. fn returns 0 to go on; 1 to stop after this row (then *more is true if
 * there are more); a negative value stops and is returned. One read transaction. */
typedef int store_result_fn(void *arg, const struct result *r);
int store_results(struct store *s, int64_t batch, const struct result_query *q, store_result_fn *fn,
                  void *arg, int64_t *next, bool *more) MUSTCHECK;
/* One result by index: fn is called once; its value, if not 0, is returned. E_NOTFOUND. */
int store_result(struct store *s, int64_t batch, uint64_t index, store_result_fn *fn,
                 void *arg) MUSTCHECK;
/* Reads up to len bytes of result n's body from offset into buf; *got may be less only at the
 * body's end. E_NOTFOUND: the batch was removed meanwhile. */
int store_body_read(struct store *s, int64_t batch, uint64_t n, uint64_t offset, void *buf,
                    size_t len, size_t *got) MUSTCHECK;

#endif
