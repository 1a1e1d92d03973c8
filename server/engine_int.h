/* The engine from within: what the keeper, the fetchers and the facade share. Not for api/.
 *
 * Threads: the keeper runs keeper*.c, feeder.c, waiting.c and pause.c and is the only one to touch engine.store; each
 * fetcher runs fetch*.c and sched.c; the api thread calls engine.h (engine.c, upload.c). They
 * talk by messages (inbox.h); what is shared beside that is marked below. */
#ifndef SERVER_ENGINE_INT_H
#define SERVER_ENGINE_INT_H

#include <pthread.h>
#include <stdatomic.h>

#include "server/disk.h"
#include "server/engine.h"
#include "server/inbox.h"
#include "server/memory.h"
#include "server/quota.h"
#include "server/spill.h"

enum {
    LIVE_BUCKETS = 1024,
    FETCHERS_MAX = 16,
    RATE_SLOTS = 8, /* seconds that rate_per_s looks back on, and one */
};

/* Lane 0 holds the requests whose URL cannot be fetched. */
enum { LANE_INVALID = 0 };
uint64_t lane_of_host(const char *host, size_t len);

struct page_map; /* feeder.c */
struct waiting;  /* waiting.c */

/* A batch that has not ended. Counted references: the table's, one for each page, transfer and
 * result that is on its way. The settings in `b` are constant. */
struct live {
    _Atomic uint32_t refs;
    struct batch b;       /* state, counts and times: written by the keeper under engine.mutex */
    struct item defaults; /* spans into b.defaults */
    struct retry_policy retry; /* complete */
    struct quota quota;        /* max_parallel over all fetchers; has_quota */
    bool has_quota;
    int64_t accept_us; /* monotonic time of its acceptance (before a restart: reckoned back) */

    _Atomic bool stopped;        /* cancelled or deleted: nothing more is started */
    _Atomic bool deleted;        /* results are dropped too */
    _Atomic bool paused;         /* no further request of it is begun */
    _Atomic uint64_t in_flight;  /* started, result not stored */
    _Atomic uint64_t retry_wait; /* failed, and not yet handed out for another attempt */
    _Atomic int64_t started_ms;

    struct live *bucket_next; /* engine.mutex */
    struct {
        int64_t second;
        uint32_t n;
    } rate[RATE_SLOTS]; /* engine.mutex */

    /* The keeper's alone. */
    struct live *all_prev, *all_next;
    int64_t latest_ms;      /* of its times so far: it does not end before */
    uint64_t next_n;        /* completion number of the next result */
    uint64_t done;          /* results stored */
    uint64_t held;          /* … and those that wait for the next group */
    uint8_t *done_bits;     /* which indexes have one */
    bool recovered;         /* taken up again: pages may hold requests that were begun */
    struct page_map *feed;  /* feeder.c; NULL: paused */
    struct flight *flights; /* pause.c: what was under way when it was paused, and still is */
    unsigned halting;       /* rounds to the fetchers that are not back */
    bool resuming, settled;
    struct waiting *waiting; /* waiting.c; NULL: none failed so far */
    int64_t feed_after_us;   /* monotonic: reading its pages failed, not again before */
    unsigned feed_failures;
    uint64_t outstanding;      /* requests handed to fetchers, not done */
    struct msg *parked;        /* wants that wait until outstanding is lower */
    struct live *touched_next; /* the group being committed: */
    bool touched;
    bool ending;
    int group_state; /* enum batch_state that the group gives it; -1: none */
    int64_t ended_ms;
    uint64_t group_flown; /* results that came, stored or not: leave in_flight */
    uint64_t group_waits; /* of these, the requests that wait for another attempt */
    uint64_t group_done, group_succeeded, group_failed, group_cancelled, group_bytes;
    int64_t cancel_page; /* CANCELLING: the next page to go through */
    bool clearing;       /* in keeper.cancelling */
    bool damaged;        /* some of its requests cannot be read (keeper_fault.c) … */
    bool no_defaults;    /* … and nothing may be fetched, as it is not known how */
    bool sweep;          /* … and are given their results: cancel_page is an index */
    struct live *cancel_next;
};

void live_ref(struct live *l);
void live_unref(struct live *l); /* any thread; the last one frees */
void live_begun(struct live *l); /* any thread: a request of it is begun, perhaps the first */

/* ---- messages ---- */

enum msg_type {
    KEEPER_PAGES,   /* struct msg_pages */
    KEEPER_COMMIT,  /* struct msg_commit */
    KEEPER_ABORT,   /* struct msg_abort */
    KEEPER_RESULTS, /* struct msg_results */
    KEEPER_WANT,    /* struct msg_want */
    KEEPER_STEER,   /* struct msg_steer: cancel, delete, pause or resume */
    KEEPER_STEERED, /* the same, back from the fetchers */
    KEEPER_FLYING,  /* struct msg_flying: before that, of a paused batch */
    KEEPER_STOP,    /* struct msg */
    FETCH_PAGE,     /* struct msg_page */
    FETCH_AGAIN,    /* struct msg_page: a struct again before each record */
    FETCH_HOP,      /* struct transfer (fetch_int.h) */
    FETCH_DROP,     /* struct msg_drop */
    FETCH_RELOAD,   /* struct msg_reload */
    FETCH_DRAIN,    /* struct msg: begin nothing more */
    FETCH_STOP,     /* struct msg: end now */
};

/* A piece of an upload: pages whose data lies in `data`. */
struct msg_pages {
    struct msg m;
    struct upload *upload; /* a reference */
    size_t n;
    struct page *pages; /* data: pointers into buf */
    size_t charged;     /* in engine.upload_bytes */
    struct buf buf;
};

struct msg_commit {
    struct msg m;
    struct upload *upload; /* a reference */
    struct batch b;        /* no, id, pages, times: set by the keeper */
    upload_done_fn *fn;
    void *arg;
    char request[REQUEST_ID_SIZE]; /* for the log; "": none */
    int rc;                        /* set by the keeper */
    struct live *live;
    struct batch existing; /* rc E_EXISTS */
    int64_t expired_no;    /* of a batch that had its Idempotency-Key; 0: none */
};

struct msg_abort {
    struct msg m;
    struct upload *upload;
};

/* What survives of the attempts that a request has had. */
struct again {
    uint32_t page, attempts;
    int64_t since_us; /* monotonic: waits for the next one since */
    uint64_t timing_us[STORE_TIMINGS];
};

/* A request that is over, in one block of memory with its strings, or (`again`) an attempt that
 * failed and is followed by another: of `r`, only index, attempts and timings count then. */
struct done {
    struct done *next;
    struct live *live;    /* a reference */
    struct result r;      /* spans into the block, body perhaps into owned_body */
    char *owned_body;     /* malloc'd; NULL: none */
    size_t owned_bytes;   /* of it, counted in engine.bodies */
    struct spilled spill; /* file NULL: none; r.body comes behind it */
    bool skip;            /* the keeper: dropped */
    bool again;
    bool handed;   /* had waited before, and was handed out by waiting.c */
    uint32_t page; /* that holds the request, of this lane */
    uint64_t lane;
    int64_t since_us, due_us; /* again; monotonic */
    int64_t due_ms;           /* again; the keeper: as stored */
};

struct msg_results {
    struct msg m;
    struct done *first, **tail;
    size_t bytes;       /* of memory that it stands for: counts in engine.unwritten */
    int64_t soonest_us; /* the first that is due again; INT64_MAX: none */
    bool held;          /* the keeper: its results are counted in live.held */
    size_t used, cap;
    char mem[];
};

/* A fetcher asks for more pages of a lane. */
struct msg_want {
    struct msg m;
    struct live *live; /* a reference */
    uint64_t lane;
    uint32_t n; /* requests, about */
};

struct msg_page {
    struct msg m;
    struct live *live; /* a reference */
    uint64_t lane;
    uint32_t no;    /* FETCH_PAGE: the page's number */
    uint32_t count; /* may be 0 with last */
    bool last;      /* there are no further pages of this lane */
    bool ask;       /* no further ones of it are on their way */
    size_t cost;    /* what it counts for in engine.queued_bytes */
    size_t len;
    char data[];
};

enum steer_verb { STEER_CANCEL, STEER_DELETE, STEER_PAUSE, STEER_RESUME };

/* Goes to the keeper, then (FETCH_DROP, but for resume) to every fetcher, then back. */
struct msg_steer {
    struct msg m;
    char request[REQUEST_ID_SIZE]; /* for the log; "": none */
    char id[STORE_BATCH_ID_SIZE];
    enum steer_verb verb;
    engine_done_fn *fn;
    void *arg;
    int rc;
    struct live *live; /* a reference, once found */
    bool halted;       /* it is one of live.halting */
    int64_t no;        /* of the batch, once found */
    _Atomic int left;  /* fetchers that have not dropped it yet */
    struct msg_drop {
        struct msg m;
        struct msg_steer *steer;
    } drops[FETCHERS_MAX];
};

/* Limits have changed. */
struct msg_reload {
    struct msg m;
    struct tls_trust *trust; /* a reference; NULL: as it is */
};

/* What a fetcher has left of a batch that is being paused. */
struct msg_flying {
    struct msg m;
    struct live *live; /* a reference */
    uint64_t dropped;  /* requests that it had not begun, and forgot */
    size_t n;
    struct {
        uint64_t index, lane;
        bool handed; /* by waiting.c */
    } v[];           /* those that it goes on with */
};

struct upload {
    _Atomic uint32_t refs;
    struct engine *engine;
    uint64_t count; /* api thread */
    uint32_t pages;
    struct buf chunk; /* records of the piece being gathered */
    struct entry {
        uint64_t lane;
        uint32_t pos, len;
    } * entries;
    size_t n_entries, cap_entries;
    size_t charged;           /* chunk and entries, in engine.upload_bytes */
    _Atomic size_t under_way; /* pieces, in engine.upload_bytes */
    int64_t reserved;         /* in engine.live_bytes, until it is released */
    bool ended;               /* committed or aborted: the keeper knows */
    _Atomic int64_t no;       /* keeper: the number of its staged batch; 0: nothing staged yet */
    _Atomic int rc;           /* first failure of a piece */
    pthread_mutex_t mutex;    /* the three below */
    unsigned pending;         /* pieces on their way */
    upload_fn *wait_fn;
    void *wait_arg;
};

void upload_piece_done(struct upload *u, int rc); /* keeper */
void upload_unref(struct upload *u);

struct fetcher;

struct engine {
    const struct config *cfg;
    _Atomic uint64_t transfer_bytes; /* memory.transfers; a reload changes it */
    struct memory_plan memory;       /* constant */
    uint32_t max_parallel;
    uint32_t max_clients;          /* API connections that descriptors are set aside for */
    uint32_t fd_budget;            /* descriptors for connections and spilled bodies */
    _Atomic int32_t fds;           /* of them in use, idle connections too */
    _Atomic int64_t starved_until; /* monotonic: the system had no descriptor for one of us */
    struct guard guard;            /* constant */
    struct tls_trust *trust;
    struct store *store; /* keeper */
    struct disk *disk;   /* whether it takes what is written */
    struct spill *spill; /* large bodies until they are stored */
    struct inbox inbox;  /* of the keeper */
    struct quota global;
    pthread_t keeper_thread;
    bool keeper_runs;
    struct fetcher *fetchers[FETCHERS_MAX];
    unsigned n_fetchers, n_running;
    _Atomic bool draining; /* nothing more is begun, and no new upload */
    _Atomic bool stopping;
    _Atomic int64_t retain_ms;         /* how long ended batches are kept; 0: no bound */
    _Atomic int64_t expiry_offset_ms;  /* keeper: from boot time to the time by which they expire */
    _Atomic uint64_t hops_sent;        /* from one fetcher to another, ever … */
    _Atomic int64_t hops_on_their_way; /* … and those that are in neither */
    _Atomic int64_t unwritten;         /* bytes; above memory.unwritten nothing new is started */
    _Atomic int64_t queued;            /* requests with the fetchers; changed by the keeper */
    _Atomic int64_t queued_bytes;      /* pages with the fetchers, and large records of transfers */
    _Atomic int64_t bodies;       /* bytes of bodies and headers that come in, or are unwritten */
    _Atomic int64_t upload_bytes; /* what uploads have gathered and is not on disk */
    _Atomic int64_t live_bytes;   /* unfinished batches, and what uploads will take of that */
    _Atomic int32_t tls_open, tls_running; /* connections; transfers, connected or not */
    _Atomic uint32_t uploads;

    pthread_mutex_t block_mutex; /* spare blocks for results */
    struct msg_results *blocks;
    unsigned n_blocks;

    pthread_mutex_t mutex; /* the table, and what is marked with it in struct live */
    struct live *buckets[LIVE_BUCKETS];

    engine_end_fn *end_fn;
    void *end_arg;
};

/* engine.c; call with the mutex held. */
struct live *engine_lookup(struct engine *e, const char *id);
/* Likewise, but none whose removal is committed and which is about to leave the table. */
struct live *engine_shown(struct engine *e, const char *id);
void engine_insert(struct engine *e, struct live *l);
void engine_remove(struct engine *e, struct live *l);
/* Of a batch as its row says, that is not in the table: perhaps not yet. */
void engine_stored(struct batch_view *v);
void engine_view(struct live *l, struct batch_view *v); /* v->b: not owned copies; counts live */

struct fetcher *engine_fetcher(const struct engine *e, uint64_t lane);

/* keeper.c */
int keeper_start(struct engine *e) MUSTCHECK;
void keeper_stop(struct engine *e); /* after the fetchers have stopped */

/* feeder.c, keeper thread */
int feeder_open(struct engine *e, struct live *l) MUSTCHECK;
void feeder_close(struct live *l);
/* Hands out pages of lanes that were not seen yet, while there is room (budget.h). n_live: batches
 * that share it. */
int feeder_scan(struct engine *e, struct live *l, uint64_t n_live) MUSTCHECK;
/* Something of the batch cannot be read: from now on what can be is handed out page by page, from the
 * first, each as if it were its lane's last; the others are passed over. */
void feeder_plain(struct live *l);
/* Nothing is left to hand out. */
bool feeder_over(const struct live *l);
int feeder_want(struct engine *e, struct live *l, uint64_t lane, uint32_t want) MUSTCHECK;

#endif
