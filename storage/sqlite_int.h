/* The SQLite backend from within: the connection, its statements, and what its files share.
 * One thread at a time. */
#ifndef STORAGE_SQLITE_INT_H
#define STORAGE_SQLITE_INT_H

#include <sqlite3.h>

#include "storage/store.h"

enum {
    APPLICATION_ID = 0x62666368, /* "bfch" */
    SCHEMA_VERSION = 4,
};

/* Every statement, prepared when first used and kept. */
#define BATCH_COLUMNS                                                                    \
    "no,id,state,pages,total,succeeded,failed,cancelled,bytes,created,started,ended,"    \
    "max_parallel,max_per_host,max_redirects,defaults,name,metadata,idem_key,idem_hash," \
    "rate_per_host,priority,http_version,max_attempts,min_backoff,max_backoff,"          \
    "max_retry_after,retry_unsafe,retry_status,retry_of,expires_after"
#define RESULT_COLUMNS                                                                       \
    "id,key,status,http_status,http_version,error,message,attempts,truncated,url,final_url," \
    "custom_id,headers,redirects,remote_ip,timing,completed,body_len,has_body"

#define STATEMENTS(X)                                                                              \
    X(BEGIN, "BEGIN IMMEDIATE")                                                                    \
    X(BEGIN_READ, "BEGIN")                                                                         \
    X(COMMIT, "COMMIT")                                                                            \
    X(ROLLBACK, "ROLLBACK")                                                                        \
    X(SYNC_FULL, "PRAGMA synchronous=FULL")                                                        \
    X(SYNC_NORMAL, "PRAGMA synchronous=NORMAL")                                                    \
    X(FREE_PAGES, "SELECT freelist_count,page_size,page_count "                                    \
                  "FROM pragma_freelist_count,pragma_page_size,pragma_page_count")                 \
    X(LAST_NO, "SELECT max(no) FROM batch")                                                        \
    X(ADD_BATCH,                                                                                   \
      "INSERT INTO batch(" BATCH_COLUMNS ") VALUES(?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,"                \
      "?11,?12,?13,?14,?15,?16,?17,?18,?19,?20,?21,?22,?23,?24,?25,?26,?27,?28,?29,?30,?31)")      \
    X(UPDATE_BATCH,                                                                                \
      "UPDATE batch SET id=?2,state=?3,pages=?4,total=?5,succeeded=?6,failed=?7,"                  \
      "cancelled=?8,bytes=?9,created=?10,started=?11,ended=?12,max_parallel=?13,"                  \
      "max_per_host=?14,max_redirects=?15,defaults=?16,name=?17,metadata=?18,"                     \
      "idem_key=?19,idem_hash=?20,rate_per_host=?21,priority=?22,http_version=?23,"                \
      "max_attempts=?24,min_backoff=?25,max_backoff=?26,max_retry_after=?27,"                      \
      "retry_unsafe=?28,retry_status=?29,retry_of=?30,expires_after=?31 WHERE no=?1")              \
    X(OPEN_BATCHES, "SELECT " BATCH_COLUMNS " FROM batch WHERE state IN (0,1,2,5,6) ORDER BY no")  \
    X(FIND, "SELECT " BATCH_COLUMNS " FROM batch WHERE id=?1 AND state NOT IN (0,5)")              \
    X(FIND_KEY, "SELECT " BATCH_COLUMNS " FROM batch WHERE idem_key=?1 AND idem_key IS NOT NULL "  \
                "AND state<>5 AND state<>0")                                                       \
    X(LIST, "SELECT " BATCH_COLUMNS " FROM batch WHERE no<?1 AND state NOT IN (0,5) "              \
            "AND (?2=0 OR (?2>>state)&1) AND NOT (state IN (3,4) AND (ended<=?4 OR "               \
            "(expires_after>0 AND ended+expires_after*1000<=?5))) ORDER BY no DESC LIMIT ?3")      \
    X(REMOVE_BATCH, "DELETE FROM batch WHERE no=?1")                                               \
    X(ADD_PAGE, "INSERT INTO page(id,lane,count,data) VALUES(?1,?2,?3,?4)")                        \
    X(PAGE_HEADS, "SELECT id,lane,count FROM page WHERE id>?1 AND id<?2 ORDER BY id LIMIT ?3")     \
    X(PAGES, "SELECT id,lane,count,data FROM page WHERE id>?1 AND id<?2 ORDER BY id LIMIT ?3")     \
    X(LANE_PAGE, "SELECT id,count,data FROM page WHERE lane=?1 AND id>?2 AND id<?3 "               \
                 "ORDER BY id LIMIT 1")                                                            \
    X(PAGE, "SELECT lane,count,data FROM page WHERE id=?1")                                        \
    X(CUT_PAGES, "SELECT id,length(data) FROM page WHERE id>=?1 AND id<?2 ORDER BY id LIMIT ?3")   \
    X(REMOVE_PAGES, "DELETE FROM page WHERE id>=?1 AND id<=?2")                                    \
    X(CUT_RESULTS, "SELECT id,body_len+ifnull(length(headers),0) FROM result "                     \
                   "WHERE id>=?1 AND id<?2 ORDER BY id LIMIT ?3")                                  \
    X(REMOVE_RESULTS, "DELETE FROM result WHERE id>=?1 AND id<=?2")                                \
    X(REMOVE_BODIES, "DELETE FROM body WHERE id>=?1 AND id<=?2")                                   \
    X(LAST_TIME, "SELECT max(ifnull((SELECT created FROM batch ORDER BY no DESC LIMIT 1),0),"      \
                 "ifnull((SELECT max(ended) FROM batch INDEXED BY batch_ended "                    \
                 "WHERE state IN (3,4)),0))")                                                      \
    X(MARK_DELETED, "UPDATE batch SET state=5 WHERE no=?1")                                        \
    X(BY_END, "SELECT no,ended FROM batch INDEXED BY batch_ended WHERE state IN (3,4) "            \
              "ORDER BY ended LIMIT ?1")                                                           \
    X(BY_EXPIRY, "SELECT no,ended+expires_after*1000 FROM batch INDEXED BY batch_expires "         \
                 "WHERE state IN (3,4) AND expires_after>0 "                                       \
                 "ORDER BY ended+expires_after*1000 LIMIT ?1")                                     \
    X(SHRINK, "PRAGMA incremental_vacuum")                                                         \
    X(PAGE_COUNT, "PRAGMA page_count")                                                             \
    X(FREE_COUNT, "PRAGMA freelist_count")                                                         \
    X(PAGE_SIZE, "PRAGMA page_size")                                                               \
    X(ADD_RESULT, "INSERT INTO result(" RESULT_COLUMNS ") VALUES(?1,?2,?3,?4,?5,?6,?7,?8,?9,"      \
                  "?10,?11,?12,?13,?14,?15,?16,?17,?18,?19)")                                      \
    X(ADD_BODY, "INSERT INTO body(id,data) VALUES(?1,?2)")                                         \
    X(ADD_BODY_ZERO, "INSERT INTO body(id,data) VALUES(?1,zeroblob(?2))")                          \
    X(DONE, "SELECT key,status,body_len FROM result INDEXED BY result_key "                        \
            "WHERE key>=?1 AND key<?2 ORDER BY key")                                               \
    X(LAST_N, "SELECT max(id) FROM result WHERE id>?1 AND id<?2")                                  \
    X(RESULTS, "SELECT " RESULT_COLUMNS " FROM result WHERE id>?1 AND id<?2 ORDER BY id LIMIT ?3") \
    X(RESULTS_BAD, "SELECT " RESULT_COLUMNS " FROM result INDEXED BY result_status "               \
                   "WHERE status=?4 AND status<>0 AND id>?1 AND id<?2 ORDER BY id LIMIT ?3")       \
    X(RESULTS_INDEX, "SELECT " RESULT_COLUMNS " FROM result INDEXED BY result_key "                \
                     "WHERE key>?1 AND key<?2 ORDER BY key LIMIT ?3")                              \
    X(RESULTS_CUSTOM, "SELECT " RESULT_COLUMNS " FROM result INDEXED BY result_custom "            \
                      "WHERE custom_id=?4 AND id>?1 AND id<?2 ORDER BY id LIMIT ?3")               \
    X(RESULT_ONE, "SELECT " RESULT_COLUMNS " FROM result WHERE key=?1")                            \
    X(PUT_ATTEMPT, "INSERT INTO attempt(id,batch,idx,lane,due,page,data) "                         \
                   "VALUES(?1,?2,?7,?3,?4,?5,?6) "                                                 \
                   "ON CONFLICT(id) DO UPDATE SET due=?4,data=?6")                                 \
    X(DROP_ATTEMPT, "DELETE FROM attempt WHERE id=?1")                                             \
    X(ATTEMPT, "SELECT lane,due,page,data FROM attempt WHERE id=?1")                               \
    X(ATTEMPTS, "SELECT idx FROM attempt INDEXED BY attempt_due WHERE batch=?1")                   \
    X(ATTEMPTS_NEXT, "SELECT batch FROM attempt INDEXED BY attempt_due WHERE batch>?1 "            \
                     "ORDER BY batch LIMIT 1")                                                     \
    X(DUE, "SELECT due,idx,lane FROM attempt INDEXED BY attempt_due WHERE batch=?1 "               \
           "AND (due,idx)>(?2,?3) AND (due,idx)<=(?4,?5) ORDER BY due,idx LIMIT ?6")               \
    X(LANE_DUE, "SELECT due,idx,batch FROM attempt INDEXED BY attempt_lane WHERE lane=?1 "         \
                "AND (due,idx)>(?2,?3) AND (due,idx)<=(?4,?5) ORDER BY due,idx LIMIT ?6")          \
    X(BOUND_DUE, "UPDATE attempt SET due=due-(SELECT max(due) FROM attempt WHERE batch=?1)+?2 "    \
                 "WHERE batch=?1 AND (SELECT max(due) FROM attempt WHERE batch=?1)>?2")            \
    X(REMOVE_ATTEMPTS, "DELETE FROM attempt WHERE id>=?1 AND id<=ifnull((SELECT id FROM attempt "  \
                       "WHERE id>=?1 AND id<?2 ORDER BY id LIMIT 1 OFFSET ?3),?2-1)")

enum statement {
#define X(name, sql) S_##name,
    STATEMENTS(X)
#undef X
        N_STATEMENTS
};

struct store {
    sqlite3 *db;
    bool writer, durable;
    bool folds;  /* a writer whose database was found to be ours: close checkpoints */
    bool unsure; /* a sync failed: sq_mend before anything else is written */
    bool lost;   /* … and it cannot be mended */
    int lock_fd;
    struct store_horizon horizon;
    int frames;        /* of the write-ahead log, after the last commit */
    int folded;        /* of these, after the last checkpoint */
    int checkpoint_at; /* frames: the next checkpoint */
    uint8_t salt[8];   /* of the log, as of the last commit */
    uint64_t checkpoints, checkpoints_failed;
    void *page; /* the last one read */
    size_t page_cap;
    char error[400];
    sqlite3_stmt *stmt[N_STATEMENTS];
};

/* Maps a code of SQLite's to ours; unless that is 0, keeps the text for store_error. */
int sq_fail(struct store *s, int code) MUSTCHECK;
/* After a failed sync: makes sure that all that was committed is on the disk (sqlite_mend.c). Outside
 * a transaction. E_IO: not yet, try again later. E_CORRUPT: it is lost. */
int sq_mend(struct store *s) MUSTCHECK;
/* Whether the log was begun anew since the last call; after a commit of this connection. */
bool sq_log_is_new(struct store *s);
/* The first number that a query gives. */
int sq_pragma_int(struct store *s, const char *sql, int *value) MUSTCHECK;
/* Whether the database is ours to use; changes nothing. E_CORRUPT, E_TOONEW. */
int sq_check_version(struct store *s, int *version) MUSTCHECK;
/* At a start of a writer: E_CORRUPT if it finds damage in the little time that it takes. `unclean`: a
 * log was left (sqlite_verify.c). */
int sq_verify_start(struct store *s, bool unclean) MUSTCHECK;
/* Brings a database of this version up to date. */
int sq_migrate(struct store *s, int version) MUSTCHECK;
/* The prepared statement; *out is NULL on failure. Give it back with sq_put or sq_finish. */
int sq_get(struct store *s, enum statement i, sqlite3_stmt **out) MUSTCHECK;
void sq_put(sqlite3_stmt *q);
int sq_finish(struct store *s, sqlite3_stmt *q) MUSTCHECK;
/* The one number that a statement gives. */
int sq_value(struct store *s, enum statement i, int64_t *value) MUSTCHECK;
int sq_run(struct store *s, enum statement i) MUSTCHECK;

/* The keys of a batch's rows: of row n; the end of the last one's range; and, for "after", the key
 * that rows must lie above. */
int64_t sq_key(int64_t batch, uint64_t n);
int64_t sq_end(int64_t batch);
int64_t sq_after(int64_t batch, int64_t after);
/* One batch's lanes apart from another's, so that an index by lane is read for one batch only. Its
 * own inverse. */
int64_t sq_lane(int64_t batch, uint64_t lane);
/* Copies a column into s->page, so that no statement stays open: one that is holds back the
 * checkpoints. Valid until the next copy. */
int sq_keep(struct store *s, sqlite3_stmt *q, int column, const void **data, size_t *len) MUSTCHECK;
/* Removes at most `max` rows by one of the REMOVE statements; *all: no more are left there. */
int sq_remove(struct store *s, enum statement i, int64_t batch, uint32_t max, bool *all) MUSTCHECK;

/* Batches without a time of their own have expired if they ended up to then. */
int64_t sq_ended_before(const struct store_horizon *h);

/* Bound memory stays the caller's, until sq_put. NULL is bound as NULL. */
void sq_bind_text(sqlite3_stmt *q, int i, struct span v);
void sq_bind_blob(sqlite3_stmt *q, int i, const void *p, size_t n);
void sq_bind_string(sqlite3_stmt *q, int i, const char *v);

#endif
