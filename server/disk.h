/* Whether the data directory takes what we write. One state machine for a disk that is full, that is
 * full by --max-disk, that cannot be written or that fails; the keeper, uploads and fetchers ask it.
 *
 * Space is watched, not only waited for to run out: new work is refused and nothing new is started
 * while what is fetched, or on its way, could still be stored. A part of the space lies in a file
 * (DIR/reserve) and is given up when a write finds none, so that deleting, cancelling and results
 * work on a disk that others have filled. */
#ifndef SERVER_DISK_H
#define SERVER_DISK_H

#include "server/base.h"

#define DISK_AUTO ((uint64_t)0) /* --max-disk auto: leaves some of the file system to others */
#define DISK_NONE UINT64_MAX    /* --max-disk none */
#define DISK_LEAST ((uint64_t)16 << 20) /* --max-disk is at least this */

enum disk_state { DISK_WELL, DISK_FULL, DISK_QUOTA, DISK_READ_ONLY, DISK_FAILED };

/* Bytes, as last seen. */
struct disk_space {
    uint64_t total, free; /* of the file system; free: for us */
    uint64_t max;         /* --max-disk */
    uint64_t used;        /* by all of the below */
    uint64_t log;         /* write-ahead log */
    uint64_t unfolded;    /* of it, what is not in the database yet */
    uint64_t grows;       /* by how much the database grows when it is */
    uint64_t reserve;     /* the file that is given up */
    uint64_t unused;      /* free pages of the database */
    uint64_t pending;     /* results that were fetched and are not stored */
};

/* ---- pure ---- */

/* What the reserve takes, and again what is never used but to store what was fetched. */
uint64_t disk_reserve_size(const struct disk_space *s);
/* What may still be taken, by the file system and by --max-disk. */
uint64_t disk_left(const struct disk_space *s);
/* What must be left so that everything fetched can be stored: results go into the log, then into the
 * database, where free pages take them up first. */
uint64_t disk_need(const struct disk_space *s);
/* The next state. error: of the last write that failed, unless one has worked since; 0: none. */
enum disk_state disk_judge(enum disk_state now, int error, const struct disk_space *s);
/* How long to wait before the store is tried again: after 1, 2, … failures. */
int64_t disk_backoff_us(unsigned failures);

/* ---- the engine's ---- */

struct engine;
struct disk;

/* Before the database is opened: what another run has left. */
struct disk *disk_new(const char *dir, uint64_t max);
void disk_free(struct disk *d); /* NULL is fine; the reserve stays */
/* Gives the reserve up; whether there was one. Any thread. */
bool disk_give_up_reserve(struct disk *d);
/* From here on space is watched. */
void disk_watch(struct disk *d, struct engine *e);

/* Looks at the space again, unless that was done a moment ago. Any thread. */
void disk_look(struct disk *d);
enum disk_state disk_state(const struct disk *d);
/* Why no new work is taken: E_FULL, E_READONLY, E_IO. 0: it is. Any thread. */
int disk_refuses(const struct disk *d);
/* The same for people, whole sentences. "" if there is nothing to say. Any thread. */
void disk_text(struct disk *d, char *out, size_t size);

/* ---- the keeper ---- */

/* Writing failed; `text` says how. E_FULL gives the reserve up. Logs when the state changes. */
void disk_failed(struct disk *d, int rc, const char *text);
/* Whether an error stands, and whether it is time to try again (then: _failed or _worked). */
bool disk_broken(const struct disk *d);
bool disk_try(const struct disk *d);
/* Of the spilled bodies too: whether they can be written again. */
int disk_probe_spill(struct disk *d) MUSTCHECK;
void disk_worked(struct disk *d);
/* Free pages of the database; what of the log is not in it yet; its size when it is. */
void disk_note(struct disk *d, uint64_t unused, uint64_t unfolded, uint64_t size);
/* When to look again at the latest, in µs from now. */
int64_t disk_pace_us(const struct disk *d);
/* Space is short: the log is to be folded soon, free pages are to be given back. */
bool disk_tight(const struct disk *d);
/* Now: once a look at most. */
bool disk_fold(struct disk *d);
/* Whether the log can be folded at all: begun in vain, that takes the last space. As it is now, if
 * disk_note was called after the last commit. */
bool disk_may_fold(struct disk *d);

/* ---- fetchers ---- */

/* Whether one more transfer may be started, when so many run. */
bool disk_may_start(struct disk *d, uint32_t running);
/* Whether so many bytes may be spilled now (and counts them). */
bool disk_may_spill(struct disk *d, size_t n);
/* A body of so many bytes, about, could not be spilled; `refused`: by the system, not by
 * disk_may_spill. Starts are held back until there is room for it, or for a while. */
void disk_spill_failed(struct disk *d, int rc, uint64_t bytes, bool refused);
/* Bodies that are announced and have not come: by how much the sum changes. */
void disk_announce(struct disk *d, int64_t bytes);

#endif
