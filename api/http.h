/* What the files of api/ share: the API's state, a request on its way, and how handlers read from
 * it. Only for api/ (but json, problem and submit, which know no HTTP).
 *
 * Threads: everything runs on the api thread (libmicrohttpd's) unless marked otherwise. */
#ifndef API_HTTP_H
#define API_HTTP_H

#include <microhttpd.h>
#include <pthread.h>

#include "api/api.h"
#include "api/problem.h"
#include "api/query.h"
#include "server/config.h"
#include "server/engine.h"
#include "storage/store.h"

enum {
    CONNECTION_MEMORY = 64 * 1024,
    CONNECTION_TIMEOUT_S = 30,
    READER_TIMEOUT_S =
        600, /* of a long answer: the kernel holds what takes a slow reader minutes */
    IGNORED_BODY_MAX = 64 * 1024, /* of a body that no one asked for */
    SWALLOW_MAX = 1024 * 1024,    /* of an upload that is refused already, before it is cut */
    PIECE = 256 * 1024,           /* bytes read from the store at once */
    WAIT_MAX_S = 60,
    LINGER_MAX = 1024, /* sockets kept open for a client that is still sending */
    JOINED_MAX = 8,
};

struct route;
struct ingest;
struct rebatch;

/* Where a request stands that waits for another thread (park.h). */
enum park { PARK_NONE, PARK_ARMED, PARK_WOKEN, PARK_SUSPENDED };

struct request {
    struct api *api;
    struct MHD_Connection *conn;
    const struct route *route;
    char method[24]; /* as received; a longer one is cut */
    char *target;    /* as received: path and query */
    const char *raw; /* where libmicrohttpd has it: only compared, never read */
    size_t target_len;
    struct query query;
    char id[STORE_BATCH_ID_SIZE];     /* {id} of the path */
    uint64_t index;                   /* {index} */
    int64_t began_us;                 /* monotonic: its first line was read */
    char request_id[REQUEST_ID_SIZE]; /* X-Request-Id: the client's, or one of ours */
    unsigned status;                  /* of the answer; 0: none yet */
    bool begun;
    bool head;      /* HEAD: like GET, but libmicrohttpd sends no body */
    bool options;   /* OPTIONS */
    bool has_body;  /* one is announced */
    bool finishing; /* received in full: counted in api->answering */
    bool answered;
    bool patient;             /* its connection has READER_TIMEOUT_S */
    bool linger;              /* the client may still be sending when the connection is closed */
    uint64_t length;          /* Content-Length; UINT64_MAX: not given */
    uint64_t body_seen;       /* bytes of the body so far */
    uint64_t swallowed;       /* of them, after it was clear that the answer is an error */
    struct problem problem;   /* found before the answer could be given */
    char *joined[JOINED_MAX]; /* header fields that came in several lines */
    struct ingest *ingest;    /* POST /v1/batches */

    /* Parking; under api->lock. */
    enum park park;
    bool waiter; /* in api->waiters */
    bool due;    /* what it waits for has happened */
    int64_t deadline_us;
    struct request *wait_prev, *wait_next;
    bool waited; /* it has had its wait */
    bool called; /* an engine call was made; rc is its outcome when woken */
    int rc;
};

struct lingering {
    int fd; /* -1: free */
    int64_t deadline_us;
};

struct api {
    const struct config *cfg;
    struct engine *engine;
    struct MHD_Daemon *daemon;
    struct store *store; /* the api thread's own reading connection */
    int listen_fd;
    uint16_t port;
    char *hosts[4];         /* what Host may say, lower case, without port */
    bool check_layout;      /* the library is the one whose memory layout inspect.c knows */
    uint64_t held;          /* bytes of answers that were not read yet; held.h */
    uint64_t freed;         /* bytes of requests and answers since memory was given back … */
    int64_t give_back_us;   /* … and when that may be done again */
    struct ingest *ingests; /* all uploads, for their Idempotency-Keys */

    uint32_t id_base, ids; /* of request ids: which process, and how many */

    pthread_mutex_t lock; /* guards what is below; taken before the library's own locks */
    pthread_cond_t tick;  /* the ticker has something to do */
    pthread_cond_t quiet; /* calls or answering became 0 */
    pthread_t ticker;
    bool ticker_runs;
    bool stopping;
    struct request *waiters;
    uint32_t n_waiters;
    uint32_t calls;     /* engine callbacks that will come */
    uint32_t answering; /* requests received in full and not answered to the end */
    struct lingering lingers[LINGER_MAX];
    uint32_t n_lingers;
    int64_t nudge_us;  /* the library stopped accepting clients; make it try again then; 0: no */
    int nudge_pair[2]; /* a connection of ours with ourselves for that; -1: none */
};

/* A header field's value; lines of the same name joined by ", "; NULL: none. Valid as long as the
 * request. */
const char *request_header(struct request *r, const char *name);
/* How many lines of a name there are. */
unsigned request_header_count(struct request *r, const char *name);
/* The query text as received, without '?'; "" if none. */
const char *request_query_text(const struct request *r);
/* Whether the service is shutting down. */
bool request_stopping(struct request *r);
/* Sets r->problem for what a call on the store or engine returned: not-found, storage, busy … */
void request_fail(struct request *r, int rc, const char *what);

#endif
