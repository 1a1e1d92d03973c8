/* What api/ may ask of the engine. The engine owns the keeper thread (the only one that writes to
 * the database) and the fetcher threads.
 *
 * Callbacks marked "keeper" are called on the keeper's thread, after the commit that they report;
 * they must not block and must not call back into the engine. Everything else is called from the
 * api thread. */
#ifndef SERVER_ENGINE_H
#define SERVER_ENGINE_H

#include "server/base.h"
#include "server/config.h"
#include "server/item.h"
#include "server/memory.h"
#include "server/metrics.h"
#include "storage/store.h"

struct engine;

/* Opens the store in cfg->data for writing, starts the threads, takes up all unfinished batches.
 * cfg must outlive the engine. On failure *why says the cause. */
int engine_start(struct engine **out, const struct config *cfg, char *why,
                 size_t why_size) MUSTCHECK;
/* cfg has changed: the new limits hold from now on, for what waits already too, and the certificates
 * that are trusted are read again. E_IO, E_INVAL: these could not be read, *why says the cause; the
 * old ones stay. */
int engine_reload(struct engine *e, char *why, size_t why_size) MUSTCHECK;
/* The clean way to an end: from now on no request is begun and no new upload taken; what is in flight
 * goes on, with its redirects, and everything can still be asked and steered. */
void engine_drain(struct engine *e);
/* While draining: nothing is in flight and no upload under way any more. */
bool engine_is_idle(struct engine *e);
/* Ends the threads after a last commit, closes the store. What is in flight is fetched again at the
 * next start. NULL is fine. All uploads must have been released. */
void engine_stop(struct engine *e);
/* Requests of all batches. */
void engine_totals(struct engine *e, uint64_t *queued, uint64_t *in_flight);
/* API connections that there are descriptors and memory for: --max-connections, or fewer. */
uint32_t engine_max_clients(const struct engine *e);
/* How memory is shared out; constant. */
const struct memory_plan *engine_memory(const struct engine *e);
/* The same for a configuration, as a comment line on stdout (--check). */
void engine_print_memory(const struct config *cfg);

/* Sets and clears the causes of health.h that hold or not by what is now; to be called before they
 * are read. False: a thread has been stuck for so long that only a new start helps. */
bool engine_watch(struct engine *e);
/* Every value of metrics.h at one moment: what was counted, and what is now. `reader` is the
 * caller's own STORE_READ connection. */
void engine_metrics(struct engine *e, struct store *reader, int64_t out[METRIC_CELLS]);

/* keeper: a batch ended (COMPLETED, CANCELLED) or was deleted. Set once, before requests come;
 * fn NULL: no longer told. Every other callback below comes exactly once, whatever fails. */
typedef void engine_end_fn(void *arg, const char *batch_id);
void engine_on_end(struct engine *e, engine_end_fn *fn, void *arg);

/* ---- submission ----
 *
 * An upload stages its items on disk as they come, in pieces, and becomes a batch by one durable
 * commit at the end. Until then nobody sees it; if it is released before, nothing remains. */
struct upload;

/* E_BUSY: too many uploads at once; E_STOPPING; E_FULL, E_READONLY, E_IO: the disk takes nothing
 * (engine_disk_text says more). */
void engine_disk_text(struct engine *e, char *out, size_t size);
int upload_new(struct engine *e, struct upload **out) MUSTCHECK;
/* Adds one request; the item's index is assigned here (0, 1, 2 …). `host` is url.host of its
 * parsed URL, or NULL when it->invalid is set. Everything is copied. Returns 0, E_NOMEM, E_LIMIT
 * (cfg->max_urls reached), or E_FULL / E_IO once a piece could not be stored. */
int upload_add(struct upload *u, const struct item *it, const char *host) MUSTCHECK;
/* keeper */
typedef void upload_fn(void *arg);
/* Too much is on its way to the disk: the caller should stop adding. When this returns true, fn
 * is called once as soon as there is room again (it may be called before this returns); when
 * false, fn is not called. */
bool upload_wait(struct upload *u, upload_fn *fn, void *arg);
uint64_t upload_count(const struct upload *u);
/* Memory that reading the submission takes beside: *mine, what was counted of it, becomes `now`. */
void upload_charge(struct upload *u, size_t *mine, size_t now);
/* Whether all uploads, without `mine` bytes, have more than half of what they may take. */
bool upload_crowded(const struct upload *u, size_t mine);

/* What commit needs beside the items. Strings are copied. */
struct upload_settings {
    uint32_t max_parallel, max_per_host; /* 0: none of its own */
    uint32_t max_redirects;
    uint32_t rate_per_host; /* thousandths of a request a second; 0: no bound */
    uint8_t priority;       /* 0 to 9 */
    uint8_t http_version;   /* 11 or 20 */
    struct retry_policy retry;
    struct item defaults;        /* url unset */
    const char *name, *metadata; /* NULL: none; metadata: a JSON object as text */
    const char *idem_key;        /* NULL: none */
    uint8_t idem_hash[STORE_HASH_SIZE];
    uint32_t expires_after_s; /* 0: not given */
    const char *retry_of;     /* id of the batch whose failed requests these are; NULL: none */
};

/* A batch as the API shows it: what is on disk, and the live counts where it is still running.
 * queued + in_flight + retry_wait + succeeded + failed + cancelled == total, always. Owned parts:
 * batch_view_fini. */
struct batch_view {
    struct batch b; /* succeeded, failed, cancelled and bytes_received are the live ones */
    uint64_t queued;
    uint64_t in_flight; /* started, result not yet stored (includes redirects waiting to go on) */
    uint64_t retry_wait;
    double rate_per_s; /* results a second over the last some seconds; 0 when not running */
};
void batch_view_fini(struct batch_view *v);

/* keeper. rc: 0 accepted (and on disk); E_EXISTS: the same key and content: *v is that batch;
 * E_CONFLICT: the key with other content; E_FULL, E_IO, E_STOPPING. *v is set for 0 and E_EXISTS,
 * and valid during the call only (copy with batch_copy). */
typedef void upload_done_fn(void *arg, int rc, const struct batch_view *v);
/* The last call on u but upload_release. */
void upload_commit(struct upload *u, const struct upload_settings *s, upload_done_fn *fn,
                   void *arg);
/* Lets go; what was not committed is removed in the background. NULL is fine. */
void upload_release(struct upload *u);

/* ---- reading and steering ---- */

/* `reader` is the caller's own STORE_READ connection. *out is the caller's (batch_view_fini).
 * E_NOTFOUND, E_IO. */
int engine_batch(struct engine *e, struct store *reader, const char *id,
                 struct batch_view *out) MUSTCHECK;
/* Which batches have expired by now: for what `reader` finds from now on. */
void engine_horizon(struct engine *e, struct store *reader);
/* Gives *b, as read with `reader`, its live counts if it is running. Takes over *b's parts. */
void engine_overlay(struct engine *e, struct store *reader, struct batch *b,
                    struct batch_view *out);

/* keeper. rc: 0, E_NOTFOUND, E_CONFLICT (cancel: it has ended already), E_FULL, E_IO. */
typedef void engine_done_fn(void *arg, int rc);
/* After done the batch is CANCELLING (or CANCELLED): nothing of it is started any more. */
void engine_cancel(struct engine *e, const char *id, engine_done_fn *fn, void *arg);
/* After done no further request of the batch is begun, over restarts too, until it is resumed; what
 * is under way ends, with its redirects. Pausing or resuming twice is fine. E_CONFLICT also while it
 * is being cancelled. */
void engine_pause(struct engine *e, const char *id, engine_done_fn *fn, void *arg);
void engine_resume(struct engine *e, const char *id, engine_done_fn *fn, void *arg);
/* After done the batch is gone for every reader, durably; its rows go in the background. */
void engine_delete(struct engine *e, const char *id, engine_done_fn *fn, void *arg);

#endif
