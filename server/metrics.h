/* What is counted, in one table: /metrics is made of it (api/exposition.c).
 *
 * A metric is a run of cells: one for each combination of its labels, and for histograms one more for
 * each bucket. `METRIC_X` is the number of its first cell, so a series of a labelled counter is
 * METRIC_X + its label (METRIC_RESULTS + METRIC_RESULT_CANCELLED).
 *
 * Any thread counts without a lock and without sharing a cache line: each has cells of its own,
 * which only a reader adds up. Gauges are shared. Names: prometheus.io/docs/practices/naming; base
 * units. Labels are fixed sets: never a URL, a host, an id or anything else from outside. */
#ifndef SERVER_METRICS_H
#define SERVER_METRICS_H

#include <stdatomic.h>

#include "server/outcome.h"

/* ---- label sets: symbol, text ---- */

#define LABELS_NONE(X) X(METRIC_ALONE, "")
#define LABELS_SUBMISSION(X)                                                        \
    X(METRIC_SUBMISSION_ACCEPTED, "outcome=\"accepted\"") /* a new batch */         \
    X(METRIC_SUBMISSION_REPEATED, "outcome=\"repeated\"") /* its Idempotency-Key */ \
    X(METRIC_SUBMISSION_REFUSED, "outcome=\"refused\"")   /* its own fault: 4xx */  \
    X(METRIC_SUBMISSION_FAILED, "outcome=\"failed\"")     /* ours: 5xx */           \
    X(METRIC_SUBMISSION_ABORTED, "outcome=\"aborted\"")   /* the client went away */
#define LABELS_LIVE(X)                                   \
    X(METRIC_LIVE_QUEUED, "status=\"queued\"")           \
    X(METRIC_LIVE_IN_PROGRESS, "status=\"in_progress\"") \
    X(METRIC_LIVE_PAUSED, "status=\"paused\"")           \
    X(METRIC_LIVE_CANCELLING, "status=\"cancelling\"")
#define LABELS_ENDED(X)                               \
    X(METRIC_ENDED_COMPLETED, "status=\"completed\"") \
    X(METRIC_ENDED_CANCELLED, "status=\"cancelled\"") \
    X(METRIC_ENDED_DELETED, "status=\"deleted\"") /* while it ran */
#define LABELS_PENDING(X)                              \
    X(METRIC_PENDING_QUEUED, "state=\"queued\"")       \
    X(METRIC_PENDING_IN_FLIGHT, "state=\"in_flight\"") \
    X(METRIC_PENDING_RETRY_WAIT, "state=\"retry_wait\"")
#define LABELS_RESULT(X)                                                                  \
    X(METRIC_RESULT_SUCCEEDED, "status=\"succeeded\",error=\"none\"")                     \
    X(METRIC_RESULT_HTTP_STATUS, "status=\"failed\",error=\"http_status\"")               \
    X(METRIC_RESULT_INVALID_URL, "status=\"failed\",error=\"invalid_url\"")               \
    X(METRIC_RESULT_BLOCKED_ADDRESS, "status=\"failed\",error=\"blocked_address\"")       \
    X(METRIC_RESULT_DNS, "status=\"failed\",error=\"dns\"")                               \
    X(METRIC_RESULT_CONNECT, "status=\"failed\",error=\"connect\"")                       \
    X(METRIC_RESULT_TLS, "status=\"failed\",error=\"tls\"")                               \
    X(METRIC_RESULT_TIMEOUT, "status=\"failed\",error=\"timeout\"")                       \
    X(METRIC_RESULT_TOO_LARGE, "status=\"failed\",error=\"too_large\"")                   \
    X(METRIC_RESULT_TOO_MANY_REDIRECTS, "status=\"failed\",error=\"too_many_redirects\"") \
    X(METRIC_RESULT_PROTOCOL, "status=\"failed\",error=\"protocol\"")                     \
    X(METRIC_RESULT_DECODE, "status=\"failed\",error=\"decode\"")                         \
    X(METRIC_RESULT_DEADLINE, "status=\"failed\",error=\"deadline\"")                     \
    X(METRIC_RESULT_INTERNAL, "status=\"failed\",error=\"internal\"")                     \
    X(METRIC_RESULT_CANCELLED, "status=\"cancelled\",error=\"none\"")
#define LABELS_ERROR(X) /* by enum outcome; the first one is never counted */ \
    X(METRIC_ERROR_NONE, NULL)                                                \
    X(METRIC_ERROR_HTTP_STATUS, "error=\"http_status\"")                      \
    X(METRIC_ERROR_INVALID_URL, NULL)                                         \
    X(METRIC_ERROR_BLOCKED_ADDRESS, NULL)                                     \
    X(METRIC_ERROR_DNS, "error=\"dns\"")                                      \
    X(METRIC_ERROR_CONNECT, "error=\"connect\"")                              \
    X(METRIC_ERROR_TLS, "error=\"tls\"")                                      \
    X(METRIC_ERROR_TIMEOUT, "error=\"timeout\"")                              \
    X(METRIC_ERROR_TOO_LARGE, NULL)                                           \
    X(METRIC_ERROR_TOO_MANY_REDIRECTS, NULL)                                  \
    X(METRIC_ERROR_PROTOCOL, "error=\"protocol\"")                            \
    X(METRIC_ERROR_DECODE, "error=\"decode\"")                                \
    X(METRIC_ERROR_DEADLINE, NULL)                                            \
    X(METRIC_ERROR_INTERNAL, "error=\"internal\"")
#define LABELS_CONNECTION(X)                      \
    X(METRIC_CONNECTION_OPENED, "how=\"opened\"") \
    X(METRIC_CONNECTION_REUSED, "how=\"reused\"")
#define LABELS_TLS(X)                   \
    X(METRIC_TLS_FULL, "kind=\"full\"") \
    X(METRIC_TLS_RESUMED, "kind=\"resumed\"")
#define LABELS_DNS(X)                                                                  \
    X(METRIC_DNS_OK, "outcome=\"ok\"")               /* addresses came */              \
    X(METRIC_DNS_NOT_FOUND, "outcome=\"not_found\"") /* no such name, or no address */ \
    X(METRIC_DNS_TIMEOUT, "outcome=\"timeout\"")                                       \
    X(METRIC_DNS_FAILED, "outcome=\"failed\"")
#define LABELS_SYNC(X)                                                     \
    X(METRIC_SYNC_FULL, "sync=\"full\"") /* on the disk when it returns */ \
    X(METRIC_SYNC_NONE, "sync=\"none\"")
#define LABELS_OUTCOME(X)                  \
    X(METRIC_OUTCOME_OK, "outcome=\"ok\"") \
    X(METRIC_OUTCOME_FAILED, "outcome=\"failed\"")
#define LABELS_PRESSURE(X)                                                                      \
    X(METRIC_PRESSURE_UPLOAD, "cause=\"upload\"") /* an upload waits for the disk */            \
    X(METRIC_PRESSURE_BUSY, "cause=\"busy\"")     /* a submission was answered with 503 */      \
    X(METRIC_PRESSURE_UNWRITTEN, "cause=\"unwritten_results\"") /* the rest hold back starts */ \
    X(METRIC_PRESSURE_DESCRIPTORS, "cause=\"descriptors\"")                                     \
    X(METRIC_PRESSURE_PORTS, "cause=\"ports\"")                                                 \
    X(METRIC_PRESSURE_MEMORY, "cause=\"memory\"")   /* for transfers: starts wait */            \
    X(METRIC_PRESSURE_BODIES, "cause=\"bodies\"")   /* a body goes to disk in small parts */    \
    X(METRIC_PRESSURE_WINDOW, "cause=\"window\"")   /* batches share what is handed out */      \
    X(METRIC_PRESSURE_BATCHES, "cause=\"batches\"") /* 503: too much is unfinished */           \
    X(METRIC_PRESSURE_UPLOADS, "cause=\"uploads\"") /* 503: too much is being uploaded */       \
    X(METRIC_PRESSURE_ANSWERS, "cause=\"answers\"") /* a slow reader's text is made again */    \
    X(METRIC_PRESSURE_DISK, "cause=\"disk\"")
#define LABELS_BUDGET(X)                                                            \
    X(METRIC_BUDGET_TRANSFERS, "budget=\"transfers\"") /* with their connections */ \
    X(METRIC_BUDGET_BODIES, "budget=\"bodies\"")       /* and long headers */       \
    X(METRIC_BUDGET_WINDOW, "budget=\"window\"")       /* handed out, not begun */  \
    X(METRIC_BUDGET_BATCHES, "budget=\"batches\"")                                  \
    X(METRIC_BUDGET_UNWRITTEN, "budget=\"unwritten\"")                              \
    X(METRIC_BUDGET_ANSWERS, "budget=\"answers\"")                                  \
    X(METRIC_BUDGET_UPLOADS, "budget=\"uploads\"")
#define LABELS_THREAD(X)                         \
    X(METRIC_THREAD_API, "thread=\"api\"")       \
    X(METRIC_THREAD_KEEPER, "thread=\"keeper\"") \
    X(METRIC_THREAD_FETCHER, "thread=\"fetcher\"")
#define LABELS_STATUS(X)                   \
    X(METRIC_STATUS_1XX, "status=\"1xx\"") \
    X(METRIC_STATUS_2XX, "status=\"2xx\"") \
    X(METRIC_STATUS_3XX, "status=\"3xx\"") \
    X(METRIC_STATUS_4XX, "status=\"4xx\"") \
    X(METRIC_STATUS_5XX, "status=\"5xx\"")
#define LABELS_LEVEL(X) /* by enum log_level */ \
    X(METRIC_LEVEL_ERROR, "level=\"error\"")    \
    X(METRIC_LEVEL_WARN, "level=\"warn\"")      \
    X(METRIC_LEVEL_INFO, "level=\"info\"")      \
    X(METRIC_LEVEL_DEBUG, "level=\"debug\"")

#define METRIC_LABEL_SETS(X) \
    X(NONE)                  \
    X(SUBMISSION)            \
    X(LIVE)                  \
    X(ENDED)                 \
    X(PENDING)               \
    X(RESULT)                \
    X(ERROR)                 \
    X(CONNECTION)            \
    X(TLS)                   \
    X(DNS)                   \
    X(SYNC)                  \
    X(OUTCOME)               \
    X(PRESSURE)              \
    X(BUDGET)                \
    X(THREAD)                \
    X(STATUS)                \
    X(LEVEL)

/* Two more sets, whose texts are set once at start: the api's routes, and the causes of health.h.
 * The last route is for what matches none. */
enum { METRIC_SET_ROUTE_SIZE = 40, METRIC_SET_CAUSE_SIZE = 16 };

#define ONE(sym, text) sym,
#define X(set) enum metric_label_##set{LABELS_##set(ONE) METRIC_SET_##set##_SIZE};
METRIC_LABEL_SETS(X)
#undef X
#undef ONE

/* ---- the table ---- */

/* COUNTER_US and GAUGE_US hold microseconds and are shown in seconds. TIME is a histogram of
 * durations (metric_observe_us), SIZE one of numbers (metric_observe). */
enum metric_type {
    METRIC_COUNTER,
    METRIC_COUNTER_US,
    METRIC_GAUGE,
    METRIC_GAUGE_US,
    METRIC_TIME,
    METRIC_SIZE,
};

/* Buckets of the histograms: upper bounds in microseconds, and in numbers. One more is infinite. */
#define METRIC_TIME_BOUNDS                                                                     \
    100, 500, 1000, 2500, 5000, 10000, 25000, 50000, 100000, 250000, 500000, 1000000, 2500000, \
        5000000, 10000000, 30000000, 60000000
#define METRIC_SIZE_BOUNDS 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000
enum {
    METRIC_N_TIME = ARRAY_LEN(((const uint64_t[]){METRIC_TIME_BOUNDS})),
    METRIC_N_SIZE = ARRAY_LEN(((const uint64_t[]){METRIC_SIZE_BOUNDS})),
    /* cells of one series: the buckets, the infinite one, the sum */
    METRIC_CELLS_COUNTER = 1,
    METRIC_CELLS_COUNTER_US = 1,
    METRIC_CELLS_GAUGE = 1,
    METRIC_CELLS_GAUGE_US = 1,
    METRIC_CELLS_TIME = METRIC_N_TIME + 2,
    METRIC_CELLS_SIZE = METRIC_N_SIZE + 2,
};

/* symbol, type, labels, labels, name (of a counter: without _total), help */
#define METRICS(X)                                                                               \
    /* submissions and batches */                                                                \
    X(METRIC_SUBMISSIONS, COUNTER, SUBMISSION, NONE, "batchfetch_submissions",                   \
      "Submissions received, by what became of them.")                                           \
    X(METRIC_BATCHES, GAUGE, LIVE, NONE, "batchfetch_batches",                                   \
      "Batches that have not ended, by status.")                                                 \
    X(METRIC_BATCHES_RECOVERED, COUNTER, NONE, NONE, "batchfetch_batches_recovered",             \
      "Unfinished batches that were taken up at the start.")                                     \
    X(METRIC_BATCHES_ENDED, COUNTER, ENDED, NONE, "batchfetch_batches_ended",                    \
      "Batches that ended, by how.")                                                             \
    X(METRIC_BATCHES_EXPIRED, COUNTER, NONE, NONE, "batchfetch_batches_expired",                 \
      "Ended batches that expired and were removed.")                                            \
    /* requests: accepted + recovered = pending + results + dropped */                           \
    X(METRIC_REQUESTS_ACCEPTED, COUNTER, NONE, NONE, "batchfetch_requests_accepted",             \
      "Requests of accepted batches.")                                                           \
    X(METRIC_REQUESTS_RECOVERED, COUNTER, NONE, NONE, "batchfetch_requests_recovered",           \
      "Requests without a result that were taken up at the start.")                              \
    X(METRIC_REQUESTS_DROPPED, COUNTER, NONE, NONE, "batchfetch_requests_dropped",               \
      "Requests that had no result when their batch was deleted.")                               \
    X(METRIC_REQUESTS, GAUGE, PENDING, NONE, "batchfetch_requests_pending",                      \
      "Requests that have no result yet, by state.")                                             \
    X(METRIC_RESULTS, COUNTER, RESULT, NONE, "batchfetch_results",                               \
      "Results stored, by status and error code.")                                               \
    X(METRIC_ATTEMPTS, COUNTER, NONE, NONE, "batchfetch_attempts",                               \
      "Attempts to fetch that were started, retries included, redirects not.")                   \
    X(METRIC_RETRIES, COUNTER, ERROR, NONE, "batchfetch_retries",                                \
      "Failed attempts that are followed by another, by error code.")                            \
    X(METRIC_REDIRECTS, COUNTER, NONE, NONE, "batchfetch_redirects", "Redirects followed.")      \
    X(METRIC_RECEIVED, COUNTER, NONE, NONE, "batchfetch_received_bytes",                         \
      "Bytes of decoded response bodies received.")                                              \
    X(METRIC_REQUEST_TIME, TIME, NONE, NONE, "batchfetch_attempt_seconds",                       \
      "Duration of attempts from their start to their end.")                                     \
    /* connections to origins */                                                                 \
    X(METRIC_CONNECTIONS, COUNTER, CONNECTION, NONE, "batchfetch_connections",                   \
      "Connections to origins that transfers used, by whether they were opened for it.")         \
    X(METRIC_CONNECTIONS_OPEN, GAUGE, NONE, NONE, "batchfetch_connections_open",                 \
      "Connections to origins that are open now.")                                               \
    X(METRIC_CONNECTIONS_IDLE, GAUGE, NONE, NONE, "batchfetch_connections_idle",                 \
      "Of them, those that no transfer uses (an HTTP/2 connection counts once a transfer).")     \
    X(METRIC_TLS_HANDSHAKES, COUNTER, TLS, NONE, "batchfetch_tls_handshakes",                    \
      "TLS handshakes with origins that succeeded, by kind.")                                    \
    X(METRIC_DNS_LOOKUPS, COUNTER, DNS, NONE, "batchfetch_dns_lookups",                          \
      "Name look-ups that went to a name server, by outcome.")                                   \
    X(METRIC_DNS_TIME, TIME, NONE, NONE, "batchfetch_dns_lookup_seconds",                        \
      "Duration of name look-ups that went to a name server.")                                   \
    X(METRIC_DNS_CACHED, COUNTER, NONE, NONE, "batchfetch_dns_cached",                           \
      "Look-ups that the cache answered.")                                                       \
    /* storage */                                                                                \
    X(METRIC_COMMITS, COUNTER, SYNC, NONE, "batchfetch_commits",                                 \
      "Transactions committed, by whether they were synced to the disk.")                        \
    X(METRIC_COMMITS_FAILED, COUNTER, NONE, NONE, "batchfetch_commits_failed",                   \
      "Transactions that could not be written or committed.")                                    \
    X(METRIC_COMMIT_TIME, TIME, SYNC, NONE, "batchfetch_commit_seconds", "Duration of commits.") \
    X(METRIC_COMMIT_RESULTS, SIZE, NONE, NONE, "batchfetch_commit_results",                      \
      "Results that a transaction stored.")                                                      \
    X(METRIC_CHECKPOINTS, COUNTER, OUTCOME, NONE, "batchfetch_checkpoints",                      \
      "Checkpoints of the write-ahead log.")                                                     \
    X(METRIC_CHECKPOINT_TIME, TIME, NONE, NONE, "batchfetch_checkpoint_seconds",                 \
      "Duration of checkpoints.")                                                                \
    X(METRIC_WAL_SIZE, GAUGE, NONE, NONE, "batchfetch_wal_bytes",                                \
      "Size of the write-ahead log's file.")                                                     \
    X(METRIC_DB_SIZE, GAUGE, NONE, NONE, "batchfetch_database_bytes",                            \
      "Size of the database's file.")                                                            \
    X(METRIC_DB_FREE, GAUGE, NONE, NONE, "batchfetch_database_free_bytes",                       \
      "Of it, pages that are free to be used again.")                                            \
    X(METRIC_DISK_FREE, GAUGE, NONE, NONE, "batchfetch_disk_free_bytes",                         \
      "Space left in the file system of the data directory.")                                    \
    X(METRIC_DISK_USED, GAUGE, NONE, NONE, "batchfetch_disk_used_bytes",                         \
      "What the data directory takes: database, log, bodies on their way, reserve.")             \
    X(METRIC_DISK_LEFT, GAUGE, NONE, NONE, "batchfetch_disk_left_bytes",                         \
      "What the service may still take of the disk, by free space and --max-disk.")              \
    X(METRIC_DISK_REFETCHED, COUNTER, NONE, NONE, "batchfetch_disk_refetched",                   \
      "Transfers given up because their body found no space; fetched again later.")              \
    X(METRIC_UNWRITTEN, GAUGE, NONE, NONE, "batchfetch_unwritten_bytes",                         \
      "Memory of results on their way to the disk.")                                             \
    /* pressure */                                                                               \
    X(METRIC_PRESSURE, COUNTER, PRESSURE, NONE, "batchfetch_backpressure",                       \
      "Times that work was held back, by cause.")                                                \
    X(METRIC_LOOP_LAG, TIME, THREAD, NONE, "batchfetch_loop_lag_seconds",                        \
      "How long a turn of a thread's event loop kept what else was due waiting.")                \
    X(METRIC_READY, GAUGE, NONE, NONE, "batchfetch_ready", "1: ready, as /readyz says.")         \
    X(METRIC_HEALTH, GAUGE, CAUSE, NONE, "batchfetch_health",                                    \
      "1: this holds now; the causes that /readyz names.")                                       \
    /* the API */                                                                                \
    X(METRIC_API_REQUESTS, COUNTER, ROUTE, STATUS, "batchfetch_api_requests",                    \
      "Answers to requests, by route and class of status.")                                      \
    X(METRIC_API_TIME, TIME, ROUTE, NONE, "batchfetch_api_request_seconds",                      \
      "From a request's head to the end of its answer, what it waited for included.")            \
    X(METRIC_API_CONNECTIONS, GAUGE, NONE, NONE, "batchfetch_api_connections",                   \
      "Connections of clients.")                                                                 \
    X(METRIC_API_SUSPENDED, GAUGE, NONE, NONE, "batchfetch_api_suspended",                       \
      "Of them, those that wait for another thread or a batch.")                                 \
    X(METRIC_LOG_LINES, COUNTER, LEVEL, NONE, "batchfetch_log_lines",                            \
      "Lines written to the log, by level.")                                                     \
    X(METRIC_LOG_SUPPRESSED, COUNTER, NONE, NONE, "batchfetch_log_suppressed",                   \
      "Lines left out: there were too many of their kind, or nobody read them.")                 \
    /* limits, and the process (names: prometheus.io/docs/instrumenting/writing_clientlibs) */   \
    X(METRIC_MEMORY_LIMIT, GAUGE, NONE, NONE, "batchfetch_memory_limit_bytes",                   \
      "Resident memory that the service keeps itself to.")                                       \
    X(METRIC_MEMORY_BUDGET, GAUGE, BUDGET, NONE, "batchfetch_memory_budget_bytes",               \
      "Its parts, by what they are for.")                                                        \
    X(METRIC_MEMORY_USED, GAUGE, BUDGET, NONE, "batchfetch_memory_used_bytes",                   \
      "What is counted against them.")                                                           \
    X(METRIC_MAX_PARALLEL, GAUGE, NONE, NONE, "batchfetch_max_parallel",                         \
      "Transfers that may run at once.")                                                         \
    X(METRIC_PROCESS_RSS, GAUGE, NONE, NONE, "process_resident_memory_bytes",                    \
      "Resident memory size in bytes.")                                                          \
    X(METRIC_PROCESS_VIRTUAL, GAUGE, NONE, NONE, "process_virtual_memory_bytes",                 \
      "Virtual memory size in bytes.")                                                           \
    X(METRIC_PROCESS_FDS, GAUGE, NONE, NONE, "process_open_fds",                                 \
      "Number of open file descriptors.")                                                        \
    X(METRIC_PROCESS_MAX_FDS, GAUGE, NONE, NONE, "process_max_fds",                              \
      "Maximum number of open file descriptors.")                                                \
    X(METRIC_PROCESS_THREADS, GAUGE, NONE, NONE, "process_threads",                              \
      "Number of threads of the process.")                                                       \
    X(METRIC_PROCESS_CPU, COUNTER_US, NONE, NONE, "process_cpu_seconds",                         \
      "Total user and system CPU time spent in seconds.")                                        \
    X(METRIC_PROCESS_START, GAUGE_US, NONE, NONE, "process_start_time_seconds",                  \
      "Start time of the process since unix epoch in seconds.")

enum metric {
#define X(sym, type, one, two, name, help)                                \
    sym,                                                                  \
        sym##_LAST = sym +                                                \
                     METRIC_CELLS_##type * (int)METRIC_SET_##one##_SIZE * \
                         (int)METRIC_SET_##two##_SIZE -                   \
                     1,
    METRICS(X)
#undef X
        METRIC_CELLS
};

/* ---- counting: any thread ---- */

struct metric_cells {
    _Atomic uint64_t v[METRIC_CELLS];
    bool shared; /* by several threads */
} __attribute__((aligned(64)));

extern _Thread_local struct metric_cells *metric_own; /* NULL: none yet */
struct metric_cells *metric_take(void);

static inline void metric_add(unsigned cell, uint64_t n)
{
    struct metric_cells *c = metric_own != NULL ? metric_own : metric_take();
    if (c->shared)
        atomic_fetch_add_explicit(&c->v[cell], n, memory_order_relaxed);
    else /* nobody else writes it */
        atomic_store_explicit(&c->v[cell],
                              atomic_load_explicit(&c->v[cell], memory_order_relaxed) + n,
                              memory_order_relaxed);
}

/* This thread's part of a gauge, whose value is the sum over all threads. */
static inline void metric_put(unsigned cell, uint64_t v)
{
    struct metric_cells *c = metric_own != NULL ? metric_own : metric_take();
    atomic_store_explicit(&c->v[cell], v, memory_order_relaxed);
}

/* Gauges: one value for the whole process. COUNTER_US may be set too, when the system counts. */
void metric_set(unsigned cell, int64_t v);
void metric_change(unsigned cell, int64_t by);

/* Histograms. `label`: of the series (0: it has no labels). */
void metric_observe_us(unsigned metric, unsigned label, int64_t us);
void metric_observe(unsigned metric, unsigned label, uint64_t n);

/* ---- reading: any thread ---- */

struct metric_family {
    const char *name, *help;
    enum metric_type type;
    unsigned first, last;         /* cells */
    const char *const *labels[2]; /* texts; NULL: there is no such series */
    unsigned n_labels[2];
};

extern const struct metric_family metric_families[];
extern const unsigned metric_n_families;
extern const uint64_t metric_time_bounds[METRIC_N_TIME], metric_size_bounds[METRIC_N_SIZE];
/* Texts of the two sets that others fill, before there is a reader. */
extern const char *metric_route_labels[METRIC_SET_ROUTE_SIZE];
extern const char *metric_cause_labels[METRIC_SET_CAUSE_SIZE];

/* The value of one cell, over all threads. */
int64_t metric_value(unsigned cell);
/* Of all cells. */
void metric_snapshot(int64_t out[METRIC_CELLS]);

#endif
