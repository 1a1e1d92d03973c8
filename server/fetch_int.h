/* A fetcher from within: shared by fetch.c (loop, messages), fetch_lane.c (hosts, batches, lanes and
 * the transfers themselves), fetch_multi.c (curl multis on epoll), fetch_easy.c (what libcurl is told
 * of a request), fetch_start.c (from a lane to a running transfer), fetch_head.c (a response as it
 * comes in), fetch_h2.c (streams of shared connections), fetch_decode.c (coded bodies), fetch_end.c
 * (from libcurl's verdict to a hop, another attempt or a result) and fetch_out.c (bodies, and results
 * on their way to the keeper).
 * Everything here belongs to the fetcher's thread. */
#ifndef SERVER_FETCH_INT_H
#define SERVER_FETCH_INT_H

#include <curl/curl.h>
#include <netinet/in.h>
#include <uthash.h>

#include "server/decode.h"
#include "server/dns.h"
#include "server/engine_int.h"
#include "server/outcome.h"
#include "server/sched.h"
#include "server/tls.h"
#include "server/url.h"

enum {
    SHARDS = 16,              /* multis of a fetcher: libcurl walks a multi's whole connection
                                 cache whenever a transfer ends, so keep each small */
    ALL_SHARDS = SHARDS * 2,  /* further ones for transfers that offer HTTP/2 */
    SHARD_STREAMS = 100,      /* in these: transfers of one host, streams of one connection */
    LOST_MAX = 5,             /* connections that died under a request; then it goes by HTTP/1.1 */
    SHARD_CHUNK = 32,         /* transfers of one host in a shard before the next one is used */
    SHARD_IDLE = 128,         /* connections a shard keeps at least when transfers end; more where
                                 there are descriptors for them … */
    SHARD_SHORT = 16,         /* … and this many when these run short */
    PAUSE_US = 50 * 1000,     /* of starts when descriptors or ports run out */
    LANE_LOW_MAX = 4096,      /* requests that a lane asks for at most */
    STARTS_PER_TURN = 256,    /* then the sockets get their turn */
    HELD_MOST = 256 * 1024,   /* of a body in memory: a larger one goes to a file as it comes, */
    HELD_SOME = 32 * 1024,    /* in parts of this size */
    BODY_SMALL = 4 * 1024,    /* not counted in engine.bodies */
    HEADER_BYTES = 64 * 1024, /* of a response's field lines */
    HEADER_LINES = 200,
    INTERIM_MAX = 20,          /* 1xx responses to one request */
    NAME_SLOT_US = 300 * 1000, /* who waits longer for a name gives its slots back … */
    NAME_WAITS_MAX = 8192,     /* … unless so many did */
    HOP_BODY = 64 * 1024,      /* of a redirect's body that is read to keep its connection */
    EASY_POOL = 512,           /* handles kept for the next transfers, and as many transfers */
    TRANSFER_MAGIC = 0x7472616e,
};

enum host_state { HOST_UNKNOWN, HOST_ASKING, HOST_RESOLVED, HOST_BLOCKED };

struct host {
    struct sched_host s;
    struct fetcher *f;
    UT_hash_handle hh;
    uint64_t key; /* lane_of_host */
    enum host_state state;
    const char *blocked_by; /* HOST_BLOCKED: the guard's rule */
    int64_t expires_us;
    int64_t ports_pause_us; /* the last pause for want of ports */
    int64_t ports_pause_end;
    size_t n_addr, cur; /* only allowed addresses; cur: the one in use */
    struct dns_addr addr[DNS_ADDRS_MAX];
    uint32_t addr_gen;                      /* changes with the address in use */
    char ip[INET6_ADDRSTRLEN + 2];          /* addr[cur] as text; "": not made yet */
    uint16_t cached_port;                   /* libcurl's cache has the host with this port … */
    uint32_t cached;                        /* … in these shards, a bit set */
    struct transfer *wait_head, *wait_tail; /* ASKING */
    uint16_t active[ALL_SHARDS];

    /* fetch_h2.c */
    struct transfer *opener; /* opens a connection that others may share */
    struct joining {
        struct transfer *head, *tail;
    } joining[LOST_MAX]; /* by lost_times */
    uint32_t n_joining;
    struct host *join_next; /* of fetcher.joins */
    bool join_listed;
    bool open_failed;   /* the opener's connection did not come about */
    uint32_t join_room; /* streams that ended since */
    uint32_t h1_port;   /* where the host was found not to speak HTTP/2; 0: none */
    char name[];
};

/* A batch in this fetcher. */
struct fbatch {
    struct sched_batch s;
    UT_hash_handle hh;
    struct live *live; /* a reference; the key of the table */
    struct lane *lanes;
};

struct page_in {
    struct page_in *next;
    struct msg_page *m; /* FETCH_PAGE or FETCH_AGAIN */
    size_t pos;         /* of the next record */
    int64_t arrived_us;
};

struct lane_key {
    struct host *host;
    struct fbatch *batch;
};

/* A batch at a host. */
struct lane {
    struct sched_lane s;
    UT_hash_handle hh;
    struct lane_key key;
    struct host *host;
    struct fbatch *batch;
    struct lane *prev, *next; /* of the batch */
    struct page_in *pages, **pages_tail;
    struct page_in *again, **again_tail;  /* further attempts: go before the pages */
    uint32_t in_pages;                    /* requests in both */
    struct transfer *front, **front_tail; /* hops: go first */
    uint32_t transfers;                   /* that refer to it */
    bool fed;                             /* pages came for it: it is one of the keeper's lanes */
    bool last;                            /* no further pages on disk */
    bool asked;                           /* a KEEPER_WANT is on its way */
};

enum transfer_state {
    TRANSFER_IDLE,      /* between two states */
    TRANSFER_QUEUED,    /* in its lane's front list */
    TRANSFER_RESOLVING, /* in its host's waiting list; holds its slots unless `parted` */
    TRANSFER_JOINING,   /* waits for a connection that its host's opener opens; holds its slots */
    TRANSFER_RUNNING,   /* in a multi; holds its slots */
};

/* One attempt of a request, from its start to its end, over all its hops. */
struct transfer {
    struct msg m; /* FETCH_HOP */
    unsigned magic;
    enum transfer_state state;
    struct fetcher *f;
    struct transfer *prev, *next;           /* of all of the fetcher */
    struct transfer *list_prev, *list_next; /* front, or one of the host's lists */
    struct live *live;                      /* a reference */
    struct lane *lane;
    int64_t due_us; /* timer; INT64_MAX: none */
    size_t heap_pos;

    struct item item; /* with the defaults; spans into record, joined, live */
    struct buf record, joined;
    size_t record_cost; /* in engine.queued_bytes */
    uint64_t home;      /* its lane on disk, and its page there */
    uint32_t page;
    bool handed; /* it had waited for this attempt: waiting.c handed it out */

    /* the hop being made */
    struct url url;
    char *hop_url; /* memory of url after the first hop; NULL before */
    struct span method;
    bool with_body;
    bool foreign; /* went to another origin: credentials are left out, for good */
    unsigned hops;
    struct buf redirects;
    CURL *easy;
    struct shard *shard;
    uint32_t addr_gen;          /* of its host; 0: the host is an address itself */
    struct curl_slist *resolve; /* what libcurl's cache is told */
    struct curl_slist *fields;  /* request headers given to libcurl */
    unsigned other_addresses;   /* tries at further addresses of the host */
    bool fresh;                 /* must not reuse a connection */
    bool resent;                /* a dead connection, or session, was found once already */
    bool resumes;               /* offered a TLS session */
    bool uses_tls;              /* counted in engine.tls_running */
    bool offers_h2;             /* runs in one of the multis for HTTP/2 */
    unsigned lost_times;        /* HTTP/2 connections that died before it was answered */
    int64_t join_us;            /* JOINING since */

    /* times, µs */
    int64_t ready_us;                 /* waits in the scheduler since */
    int64_t resolve_us;               /* waits for its name since */
    int64_t begin_us;                 /* libcurl has it since, … */
    int64_t most_us, connect_most_us; /* … and it may take so long */
    bool late;                        /* it took longer */
    int64_t active_us;                /* spent by the hops of this attempt */
    uint64_t timing[STORE_TIMINGS];
    uint32_t attempts;
    bool new_attempt; /* the next start begins one */

    /* the response being received */
    int status, version;
    unsigned heads, lines;
    size_t field_bytes;
    struct buf fields_in, location, body;
    int64_t retry_after_ms;
    uint64_t body_len;
    struct spilled spill; /* the body's beginning, before what is in `body` */
    size_t charged;       /* in engine.bodies */
    bool head_ended;
    bool follow; /* a redirect that will be followed */
    bool too_many_hops, location_cut;
    bool connected; /* a connection was chosen for this hop */
    bool is_h2;     /* … that speaks HTTP/2 … */
    uint64_t h2_no; /* … and is this one of multi_open_socket's */
    int h2_fd;
    bool lost;       /* … that died */
    bool parted;     /* RESOLVING without slots */
    bool named;      /* it waited for its name, which has been found */
    int fd;          /* the socket that was opened for it; -1: none */
    uint64_t fd_no;  /* fd_entry.no of it */
    bool fd_used;    /* it is connected */
    bool has_length; /* Content-Length */
    bool has_coding; /* Transfer-Encoding */
    bool chunked;
    bool ends_by_close, close_notify; /* a response by TLS that ends with it */
    uint64_t length;
    const char *broken; /* what breaks the protocol; NULL: nothing */

    /* fetch_decode.c */
    struct codings codings, transfer_codings;
    struct decode *decode;   /* NULL: not begun, or over */
    const char *undecodable; /* why it cannot be decoded; NULL: nothing is known */
    uint64_t coded_len;
    bool decoded;      /* the body is what was decoded; else all of it as it came … */
    bool pending_lost; /* … or nothing */

    bool hop_cut; /* … whose body was too long to read */
    bool too_large, too_many_fields;
    bool truncated;
    int no_space;       /* the body could not be written: enum err; 0: it could */
    bool space_refused; /* … for want of space that is set aside (disk.h) */
    uint64_t announced; /* of the body, reckoned with and not come yet */
    bool no_descriptor; /* our own limit, not the origin's fault */
    const char *blocked_by;
    char remote_ip[INET6_ADDRSTRLEN];
    struct sockaddr_in6 peer; /* or sockaddr_in: what was last connected to */
    char error[CURL_ERROR_SIZE];
};

struct shard {
    struct fetcher *f;
    CURLM *multi;   /* NULL: not made yet */
    int64_t due_us; /* libcurl's timer; INT64_MAX: none */
    uint32_t active;
    uint32_t open;             /* sockets; what is above `active` is idle */
    bool tight;                /* new connections take the place of idle ones */
    int64_t idle_since;        /* active is 0 since */
    bool stale;                /* an idle connection of it has died */
    bool touched;              /* look for ended transfers */
    struct curl_slist *forget; /* names that its cache need not know any more */
};

enum fd_kind { FD_NONE, FD_CURL, FD_DNS };

/* What is watched, by descriptor. */
struct fd_entry {
    uint8_t kind;
    uint8_t shard;
    uint8_t want;        /* what libcurl asks for now */
    bool h2;             /* a connection that speaks HTTP/2 */
    uint64_t no;         /* which one of all of the fetcher's; 0: closed */
    bool tls;            /* counted in engine.tls_open */
    uint32_t registered; /* events known to epoll; 0: not in it */
};

struct fetcher {
    struct engine *e;
    unsigned no;
    pthread_t thread;
    struct inbox inbox;
    int epoll;
    struct fd_entry *fds;
    size_t n_fds;
    struct shard shards[ALL_SHARDS];
    struct tls *tls;
    struct curl_slist *agent_field, *encoding_field; /* the first leads on to the second */
    struct sched sched;
    struct decode_pool *decoders;
    size_t decoders_charged; /* in engine.bodies */
    struct dns *dns;
    struct host *hosts;         /* uthash, by name */
    struct host *joins;         /* with something to do for h2_serve */
    struct transfer *doubts;    /* over, but see h2_doubtful */
    uint64_t n_reaped;          /* transfers that libcurl has ended */
    size_t h2_unheard;          /* bytes of HTTP/2 since libcurl last gave us something … */
    int64_t h2_unheard_since;   /* … CPU time of this thread when they were UNHEARD_STEP */
    struct fbatch *batches;     /* uthash, by live */
    struct lane *lanes;         /* uthash, by host and batch */
    struct transfer *transfers; /* all */
    uint32_t n_transfers;
    struct transfer *spare;        /* memory of former ones */
    uint32_t n_spares, spares_max; /* of these, and of easies */
    uint64_t in_pages;             /* of all lanes */
    CURL *easies[EASY_POOL];
    size_t n_easies;
    struct transfer **heap; /* timers */
    size_t heap_n, heap_cap;
    struct msg_results *out;
    int64_t flush_due; /* monotonic: out may wait for further results until then */
    struct buf scratch;
    uint64_t random;
    int64_t now;           /* of this turn */
    uint32_t sockets;      /* open, idle ones too */
    uint64_t last_socket;  /* fd_entry.no */
    uint32_t socket_share; /* this fetcher's part of the descriptors */
    bool short_of_sockets;
    int64_t no_starts_before; /* out of descriptors: pause */
    _Atomic bool woken;       /* another fetcher gave slots back that we wait for */
    bool no_disk;             /* disk.h holds starts back */
    bool full;                /* no descriptor for another transfer */
    bool unwritten;           /* too many results are on their way to the disk */
    int64_t turn_us;          /* when this turn began */
    int64_t late_due;         /* when to look for transfers that take too long */
    int64_t give_back_us;     /* when memory goes back to the system; INT64_MAX: it has */
    int64_t spare_due;        /* when to ask the others for descriptors again */
    int64_t ports_short_until;
    uint32_t n_parted;
    bool asked; /* the resolver has new questions since its last tick */
    bool draining;
    bool stopping;
    uint32_t arrived;  /* hops of other fetchers, in this turn */
    _Atomic bool busy; /* as of the end of the last turn; not draining: always */
};

/* fetch_multi.c */
int multi_init(struct fetcher *f) MUSTCHECK;
void multi_fini(struct fetcher *f);
struct shard *multi_shard(struct fetcher *f, struct host *h, bool h2);
int multi_add(struct transfer *t, struct shard *s) MUSTCHECK;
void multi_remove(struct transfer *t);             /* safe when it is in none */
void multi_kick(struct shard *s);                  /* lets it act on what is due */
uint64_t multi_mark_h2(struct fetcher *f, int fd); /* its number */
bool multi_is_open(const struct fetcher *f, int fd, uint64_t no);
void multi_watch(void *f, int fd, bool rd, bool wr); /* for dns */
/* Waits at most until `until` (monotonic), lets libcurl and the resolver act, and ends the
 * transfers that are over. */
void multi_turn(struct fetcher *f, int64_t until);
/* Closes idle connections, as many as can be. */
void multi_close_idle(struct fetcher *f);
/* Whether one more transfer would need a descriptor that is not there. */
bool multi_full(const struct fetcher *f);
/* All descriptors that there are for transfers are in use, idle connections included. */
bool multi_short(const struct fetcher *f);
curl_socket_t multi_open_socket(void *transfer, curlsocktype purpose, struct curl_sockaddr *a);
int multi_close_socket(void *fetcher, curl_socket_t fd);

/* fetch_easy.c */
int easy_init(struct fetcher *f) MUSTCHECK;
void easy_fini(struct fetcher *f);
bool may_repeat(const struct transfer *t); /* RFC 9110 9.2.2: not POST and PATCH */
CURL *easy_take(struct fetcher *f);        /* NULL: out of memory */
void easy_give(struct fetcher *f, CURL *easy);
/* Everything that t->easy is told of this request. E_NOMEM. */
int easy_set_up(struct transfer *t) MUSTCHECK;
/* The host's address goes into the cache of libcurl's that s has. Before easy_set_up. E_NOMEM. */
int easy_tell_address(struct transfer *t, struct shard *s) MUSTCHECK;
/* The host is given up: libcurl forgets its address. */
void easy_forget(struct host *h);
/* What the request may take in all, and to be connected. */
int64_t easy_timeout_us(const struct transfer *t);
int64_t easy_connect_timeout_us(const struct transfer *t);

/* fetch_start.c */
/* Starts the next request of a lane that the scheduler picked. */
void start_next(struct fetcher *f, struct lane *l);
/* Resolves and connects; the slots are held. */
void start_hop(struct transfer *t);
/* Further transfers of the host connect to addr[i]. */
void start_use_address(struct host *h, size_t i);
/* Its slots, if it has them, go to others. */
void start_release(struct transfer *t);
/* Takes it out of its host's waiting list. */
void start_unwait(struct transfer *t);
/* The timer of one that waits for its name: whether it waits on. Names that nobody answers for must
 * not hold all slots, so it may give its own back now. */
bool start_parts(struct transfer *t);
/* Runs what waited in h2_join. */
void start_joined(struct transfer *t);
/* Gives back what a running transfer holds of libcurl's. Safe in every state. */
void start_undo(struct transfer *t);

/* fetch_head.c: for CURLOPT_WRITEFUNCTION and CURLOPT_HEADERFUNCTION */
size_t head_body(char *p, size_t size, size_t n, void *arg);
size_t head_line(char *p, size_t size, size_t n, void *arg);

/* fetch_decode.c */
/* What a coded body may have before it is decoded. */
uint64_t coded_max(const struct transfer *t);
/* For a body with codings in place of body_write: p as it came. */
size_t coded_write(struct transfer *t, const char *p, size_t n);
/* The response is over; `whole`: as far as HTTP knows. Sets `undecodable`. */
void coded_end(struct transfer *t, bool whole);
void coded_drop(struct transfer *t); /* the decoder goes; safe in every state */

/* fetch_h2.c */
int h2_global_init(void) MUSTCHECK;
/* For the SSL_CTX of a connection that offers HTTP/2: bounds what it may send of no use. */
void h2_watch(struct fetcher *f, void *ssl_ctx);
bool h2_offered(const struct transfer *t); /* whether its next hop offers HTTP/2 */
/* Before it runs: it waits instead (true; the caller sets its timer), or may run. */
bool h2_join(struct transfer *t);
void h2_unjoin(struct transfer *t);
void h2_started(struct transfer *t);   /* it is in a multi */
void h2_connected(struct transfer *t); /* before its request is sent */
void h2_failed(struct transfer *t, CURLcode code);
void h2_left(struct transfer *t); /* before it leaves its multi */
/* Its connection died before it was answered: it must be started again, uncharged. */
bool h2_lost(struct transfer *t, CURLcode code);
/* Its body may be cut short, though libcurl says it is whole. Which it is shows once libcurl has
 * had its connection's other streams act. */
bool h2_doubtful(const struct transfer *t, CURLcode code);
/* Then: it must be started again, likewise. */
bool h2_cut(struct transfer *t, CURLcode code);
/* Starts what need not wait any longer. */
void h2_serve(struct fetcher *f);

/* fetch_end.c */
struct verdict {
    enum outcome outcome;
    const char *message; /* valid while the transfer is */
    bool again;          /* the outcome's nature allows another attempt */
};
void end_transfer(struct transfer *t, CURLcode code); /* libcurl is done with it */
void end_with(struct transfer *t, struct verdict v);  /* holds its slots; not running */
void end_timer(struct transfer *t);                   /* its timer is due */
/* Ends what takes longer than it may. libcurl's timers are told once: when one fires while there is a
 * part of a ms left, it is never told again. Returns when to look next, or `until`. */
int64_t end_late(struct fetcher *f, int64_t until);

/* fetch_out.c */
/* It waits until `due_us` for another attempt. Takes its live reference. */
void out_again(struct transfer *t, int64_t due_us);
void out_result(struct transfer *t, const struct verdict *v); /* takes its live reference */
void out_invalid(struct fetcher *f, struct live *l, const struct item *it); /* takes a reference */
/* Likewise, of a request that came in page m and is not what we wrote. */
void out_damaged(struct fetcher *f, const struct msg_page *m, const struct item *it);
void out_flush(struct fetcher *f);
/* Once a turn: as out_flush, but a moment later if it was done a moment ago. Returns the time when
 * to call it again, or INT64_MAX. */
int64_t out_turn(struct fetcher *f);
uint64_t body_max(const struct transfer *t);
size_t body_write(struct transfer *t, const char *p, size_t n);
void body_drop(struct transfer *t);
/* After one of its buffers has grown: counts it. Whether memory for bodies and headers is left. */
bool body_charge(struct transfer *t);

/* fetch_lane.c */
struct lane *lane_get(struct fetcher *f, struct live *l, const char *host, size_t len);
void lane_settle_want(struct fetcher *f, struct lane *l);
void lane_release(struct fetcher *f, struct lane *l); /* frees it when nothing is left */
void host_release(struct host *h);                    /* likewise */
void lane_push_front(struct lane *l, struct transfer *t);
struct transfer *transfer_new(struct fetcher *f, struct live *l);
void transfer_attach(struct fetcher *f, struct transfer *t, struct lane *l);
void transfer_detach(struct transfer *t);           /* from fetcher and lane */
void transfer_free(struct transfer *t);             /* not its live reference */
void timer_set(struct transfer *t, int64_t due_us); /* INT64_MAX: off */

/* fetch.c */
/* Hands it to the fetcher of its url's host, where it waits for slots. */
void transfer_send(struct transfer *t);

#endif
