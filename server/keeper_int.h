/* The keeper from within: shared by keeper.c (the loop), keeper_apply.c and keeper_finish.c (what a
 * message writes, and what it brings about), and keeper_work.c (taking batches up, and the work that
 * goes on in the background). Keeper thread only. */
#ifndef SERVER_KEEPER_INT_H
#define SERVER_KEEPER_INT_H

#include "server/engine_int.h"

enum {
    KEEPER_LOST = 4,   /* exit status */
    CANCEL_PAGES = 64, /* pages of cancelled requests a group: some 2,000 results */
};
#include "server/metrics.h"
#include "server/retain.h"

struct keeper {
    struct engine *e;
    int64_t next_no; /* of the next batch */
    int64_t last_id_ms;
    struct live all; /* sentinel of the ring of live batches */
    uint64_t n_live;
    struct live *touched;          /* changed by the group being committed */
    struct msg *kept, **kept_tail; /* results that wait for the next group */
    uint64_t n_touched;            /* batches that the last group changed */
    int64_t results_begin;         /* the last commit of results */
    int64_t results_due;           /* monotonic: they may wait until then */
    int64_t wake_us;               /* monotonic: something is due again; INT64_MAX: nothing */
    int64_t clock_us;              /* what to add to monotonic time for Unix time: one that never
                                        jumps, for what is due after a restart too */
    bool stop;
    bool crowded;         /* budget_crowded() as it was */
    int64_t noted_us;     /* keeper_disk.c: sizes were noted */
    int64_t give_back_us; /* when memory goes back to the system; INT64_MAX: it has */

    struct live *cancelling; /* batches whose pending requests get their results */
    struct buf scratch;      /* a page, or records of waiting.c's */
    uint64_t *cancelled;     /* indexes that the group gives a result */
    size_t n_cancelled, cap_cancelled;
    size_t slice[CANCEL_PAGES]; /* pages of keeper_load's: their ends in scratch */
    unsigned n_slice;
    int64_t cancel_page;       /* how far the group goes */
    bool cancel_over, cancels; /* the group does some */
    bool cancel_sweeps;        /* after its pages the rest by index */

    bool worked; /* background work is in the transaction */
    uint64_t group_results[METRIC_SET_RESULT_SIZE], group_bytes; /* that the group stores */

    struct upkeep { /* keeper_upkeep.c */
        struct retain_clock clock;
        struct store_horizon horizon; /* as of this turn */
        struct removal {
            int64_t no;    /* of a batch whose rows are to go */
            bool attempts; /* only those */
        } * v;
        size_t head, n, cap; /* v[head .. n) are left */
        int64_t due_us;      /* monotonic: the next slice */
        int64_t next_ms;     /* when the next batch expires */
        bool shrinking;
        bool shrunk;     /* but the log is not folded back since */
        int64_t fold_us; /* monotonic: when that is tried */
        bool failed;     /* the last slice */
    } upkeep;
};

/* keeper.c */
/* Applies and commits a group, and lets its effects out but for those of its messages. Its failure is
 * the disk's (disk_failed). */
int keeper_attempt(struct keeper *k, struct msg *list, bool background) MUSTCHECK;

/* keeper_disk.c */
void keeper_turn_full(struct keeper *k, struct msg *list);
void keeper_probe(struct keeper *k);
/* Tells the disk's state how large the database is and will be; -> bytes of free pages. */
uint64_t keeper_note(struct keeper *k);
/* Once a turn. */
void keeper_watch(struct keeper *k);

void *keeper_main(void *arg); /* struct keeper */

/* keeper_apply.c; in a transaction, so that a failure rolls the whole group back. */
int keeper_apply(struct keeper *k, struct msg *m) MUSTCHECK;
/* Batches that the group steers, starts or brings to their end get their rows. */
int keeper_settle(struct keeper *k) MUSTCHECK;
/* One result more of a live batch (sets r->n). E_EXISTS: it has one. */
int keeper_add_result(struct keeper *k, struct live *l, struct result *r) MUSTCHECK;

/* keeper_finish.c */
/* After the commit: the counts of what it changed, and the ends of batches. */
void keeper_publish(struct keeper *k);
void keeper_clear_group(struct live *l);
/* After the commit (rc 0) or its failure: what a message brings about. Takes it over. */
void keeper_finish(struct keeper *k, struct msg *m, int rc);
void keeper_steered(struct keeper *k, struct msg_steer *m);
/* Pages to the fetchers, as far as the windows have room. */
void keeper_feed(struct keeper *k);

/* keeper_count.c */
int keeper_commit(struct keeper *k, bool durable) MUSTCHECK;
void keeper_checkpoint(struct keeper *k);
/* The whole log. False: not all of it, a reader is in the way (say). */
bool keeper_fold(struct keeper *k);
void keeper_count_result(struct keeper *k, const struct result *r);
void keeper_count_nothing(struct keeper *k); /* the group came to nothing */
/* With engine.mutex held: */
void keeper_count_group(struct keeper *k);
void keeper_count_accepted(const struct live *l);
void keeper_count_recovered(const struct live *l);
void keeper_count_end(const struct live *l);
void keeper_count_deleted(const struct live *l);

/* keeper_work.c */
/* Makes a live batch of a copy of *b and enters it everywhere. */
struct live *keeper_take_up(struct keeper *k, const struct batch *b, bool recovered);
/* Nothing more of it is handed out: its feeder, and what the fetchers asked of it, go. */
void keeper_unfeed(struct live *l);
/* Out of the keeper's own lists: it has ended or was deleted. */
void keeper_forget(struct keeper *k, struct live *l);
int keeper_recover(struct keeper *k) MUSTCHECK;
bool keeper_has_background(const struct keeper *k);
/* Before a transaction with keeper_background. */
int keeper_load(struct keeper *k) MUSTCHECK;
/* In a transaction: a slice of cancelling; then exactly one of _done and _undo. */
int keeper_background(struct keeper *k) MUSTCHECK;
void keeper_background_done(struct keeper *k);
void keeper_background_undo(struct keeper *k);
/* Frees what is left when the thread ends; what was not stored is fetched again. */
void keeper_drain(struct keeper *k);

/* keeper_fault.c */
/* Something of the batch's requests cannot be read (E_CORRUPT). What can be goes on; the rest gets
 * failed results when nothing else is left: see keeper_sweep. The log says it once. */
void keeper_damaged(struct keeper *k, struct live *l);
/* Outside a transaction: a damaged batch of which nothing else is left begins to end. */
void keeper_sweep(struct keeper *k, struct live *l);
/* In keeper_background: a slice of that. */
int keeper_sweep_slice(struct keeper *k, struct live *l) MUSTCHECK;
/* A request got its result in keeper_background. */
void keeper_note_done(struct keeper *k, uint64_t index);
/* The database lost what was committed (store_lost): ends the process, status KEEPER_LOST, with
 * nothing more written or answered. The next start goes on from what is there. */
void keeper_give_up(struct keeper *k) __attribute__((noreturn));

/* keeper_upkeep.c */
int upkeep_open(struct keeper *k) MUSTCHECK;
void upkeep_close(struct keeper *k);
/* At each turn's begin: by which time batches expire. */
void keeper_tell_time(struct keeper *k);
bool keeper_expired(const struct keeper *k, const struct batch *b);
void keeper_ended(struct keeper *k, const struct batch *b);
/* A batch's rows, or only its attempts, go in slices from now on. */
void keeper_remove_later(struct keeper *k, int64_t no, bool attempts_only);
/* Between transactions: a slice, if one is due (upkeep.due_us). */
void keeper_upkeep(struct keeper *k);
/* Whether the disk is in a state for it. */
bool keeper_may_upkeep(const struct keeper *k);
enum { UPKEEP_WORTH = 1024 * 1024 }; /* free pages that are given back when space is short */

#endif
