/* See disk.h. */
#define _GNU_SOURCE
#include "server/disk.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "server/engine_int.h"
#include "server/health.h"
#include "server/metrics.h"

#define MIB ((uint64_t)1 << 20)

enum {
    LOOK_US = 20 * 1000,
    PACE_IDLE_US = 1000 * 1000,
    PACE_SHORT_US = 100 * 1000,
    BACKOFF_US = 250 * 1000,
    BACKOFF_MAX_US = 2 * 1000 * 1000,
    SHORT_US = 1000 *
               1000, /* starts pause when a body found no space; doubled when it comes again */
    SHORT_MAX_US = 60 * 1000 * 1000,
    COPIES = 3,           /* a body is in the spill file, in the log and in the database */
    RESULT_LEAST = 4096,  /* what a result takes at least */
    RESULT_FIRST = 16384, /* … and is reckoned with while none is known */
};
#define RESERVE_LEAST (2 * MIB)
#define RESERVE_MOST (32 * MIB)
#define GROUP_MOST (64 * MIB) /* that the log grows by at once */

/* ---- pure ---- */

static uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

uint64_t disk_reserve_size(const struct disk_space *s)
{
    uint64_t of = s->max == DISK_AUTO ? s->total : least(s->max, s->total);
    uint64_t size = of / 32 < RESERVE_LEAST ? RESERVE_LEAST : of / 32;
    return least(size, RESERVE_MOST) / 4096 * 4096;
}

uint64_t disk_left(const struct disk_space *s)
{
    /* A full file system harms whoever else uses it. */
    uint64_t keep = s->max == DISK_AUTO ? least(s->total / 20, 1024 * MIB) : 0;
    uint64_t left = s->free > keep ? s->free - keep : 0;
    if (s->max == DISK_AUTO || s->max == DISK_NONE)
        return left;
    return least(left, s->max > s->used ? s->max - s->used : 0);
}

uint64_t disk_need(const struct disk_space *s)
{
    uint64_t written = least(s->pending, GROUP_MOST), again = s->unfolded == 0 ? s->log : 0;
    return disk_reserve_size(s) + (written > again ? written - again : 0) + s->grows +
           (s->pending > s->unused ? s->pending - s->unused : 0);
}

enum disk_state disk_judge(enum disk_state now, int error, const struct disk_space *s)
{
    uint64_t need = disk_need(s);
    switch (error) {
    case 0: break;
    case E_FULL: return DISK_FULL;
    case E_READONLY: return DISK_READ_ONLY;
    default: return DISK_FAILED;
    }
    if (now != DISK_WELL) /* not back and forth */
        need += disk_reserve_size(s) / 2;
    if (s->reserve == 0) /* it comes first */
        need += disk_reserve_size(s);
    if (disk_left(s) >= need)
        return DISK_WELL;
    struct disk_space unbound = *s;
    unbound.max = DISK_NONE;
    return s->max != DISK_NONE && s->max != DISK_AUTO && disk_left(&unbound) >= need ? DISK_QUOTA
                                                                                     : DISK_FULL;
}

int64_t disk_backoff_us(unsigned failures)
{
    int64_t us = BACKOFF_US;
    for (unsigned i = 1; i < failures && us < BACKOFF_MAX_US; i++)
        us *= 2;
    return us < BACKOFF_MAX_US ? us : BACKOFF_MAX_US;
}

/* ---- the engine's ---- */

struct disk {
    int dir; /* -1: not there yet */
    uint64_t max;
    struct engine *e; /* NULL: not watched yet */
    _Atomic int64_t look_us;
    _Atomic int state;         /* enum disk_state */
    _Atomic int64_t retry_us;  /* an error stands: try again then; 0: none */
    _Atomic int64_t allowance; /* bytes that transfers may bring in, in all their copies */
    _Atomic int64_t spillable; /* … the same, for what goes to the spill file now */
    _Atomic int64_t each;      /* bytes that a result takes, about */
    _Atomic int64_t announced;
    _Atomic int64_t short_until;             /* monotonic: starts pause; 0: they do not */
    _Atomic uint64_t unused, unfolded, size; /* of the database */
    _Atomic bool tight, fold;

    pthread_mutex_t mutex; /* what follows */
    struct disk_space space;
    int error;            /* 0: none */
    uint64_t failed_left; /* when it came */
    uint64_t most_left;   /* since the one before */
    bool spill_failed;
    unsigned failures;
    char text[128]; /* of the error */
    uint64_t received, results;
    int64_t short_us, short_end;
    uint64_t short_left; /* so much must be left to end a pause early */
    int64_t reserve_us;  /* not to be made again before */
};

/* ---- the reserve ---- */

static uint64_t taken(int dir, const char *name)
{
    struct stat st;
    return dir >= 0 && fstatat(dir, name, &st, 0) == 0 ? (uint64_t)st.st_blocks * 512 : 0;
}

bool disk_give_up_reserve(struct disk *d)
{
    uint64_t had = taken(d->dir, "reserve");
    if (had == 0)
        return false;
    /* Unlinking works where truncating would need space for a new copy of the file's head. */
    return unlinkat(d->dir, "reserve", 0) == 0;
}

/* Blocks that are ours for certain: fallocate(2), or zeros where the file system has none. */
static void make_reserve(struct disk *d, uint64_t size)
{
    static const char zeros[64 * 1024];
    int fd = openat(d->dir, "reserve", O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0)
        return;
    int rc = fallocate(fd, 0, 0, (off_t)size);
    if (rc != 0 && errno == EOPNOTSUPP) {
        rc = 0;
        for (uint64_t at = 0; rc == 0 && at < size; at += sizeof(zeros))
            rc = pwrite(fd, zeros, sizeof(zeros), (off_t)at) == (ssize_t)sizeof(zeros) ? 0 : -1;
    }
    close(fd);
    if (rc != 0)
        (void)unlinkat(d->dir, "reserve", 0);
}

/* ---- looking ---- */

static void measure(struct disk *d)
{
    struct disk_space *s = &d->space;
    struct statvfs fs;
    if (fstatvfs(d->dir, &fs) == 0) {
        s->total = (uint64_t)fs.f_blocks * fs.f_frsize;
        s->free = (uint64_t)fs.f_bavail * fs.f_frsize;
    }
    uint64_t spilled = spill_bytes(d->e->spill);
    int64_t unwritten = atomic_load(&d->e->unwritten), bodies = atomic_load(&d->e->bodies);
    unwritten = unwritten > bodies ? unwritten : bodies; /* those that still come in, too */
    s->max = d->max;
    s->log = taken(d->dir, "batchfetch.db-wal");
    s->reserve = taken(d->dir, "reserve");
    uint64_t db = taken(d->dir, "batchfetch.db"), size = atomic_load(&d->size);
    s->grows = size > db ? size - db : 0;
    s->used = db + taken(d->dir, "batchfetch.db-shm") + s->log + s->reserve + spilled;
    s->unused = atomic_load(&d->unused);
    s->unfolded = least(atomic_load(&d->unfolded), s->log);
    s->pending = spill_used(d->e->spill) + (uint64_t)(unwritten > 0 ? unwritten : 0);
}

/* What a result takes: the mean of the last ones, and at once more when they grow. */
static void measure_results(struct disk *d)
{
    uint64_t received = (uint64_t)metric_value(METRIC_RECEIVED), results = 0;
    for (unsigned i = 0; i < METRIC_SET_RESULT_SIZE; i++)
        results += (uint64_t)metric_value(METRIC_RESULTS + i);
    if (results == d->results)
        return;
    int64_t mean = (int64_t)((received - d->received) / (results - d->results)) + RESULT_LEAST;
    int64_t was = atomic_load(&d->each);
    if (d->results > 0 && mean < was - was / 8)
        mean = was - was / 8;
    d->received = received;
    d->results = results;
    atomic_store(&d->each, mean);
}

static const struct {
    enum health_cause cause;
    const char *what;
} causes[] = {
    [DISK_WELL] = {HEALTH_CAUSES_N, ""},
    [DISK_FULL] = {HEALTH_DISK_FULL, "no space is left for the service's data"},
    [DISK_QUOTA] = {HEALTH_QUOTA, "the service's data has reached --max-disk"},
    [DISK_READ_ONLY] = {HEALTH_READ_ONLY, "the service's data directory cannot be written"},
    [DISK_FAILED] = {HEALTH_STORE_FAILED, "the service's storage failed"},
};

static double mib(uint64_t n)
{
    return (double)n / (double)MIB;
}

static void describe(const struct disk *d, enum disk_state state, char *out, size_t size)
{
    const struct disk_space *s = &d->space;
    const char *what = causes[state].what;
    uint64_t left = disk_left(s), need = disk_need(s);
    if (state == DISK_WELL)
        snprintf(out, size, "%s", "");
    else if (d->error != 0 && !(d->error == E_FULL && left < need))
        snprintf(out, size, "%s: %s", what, d->text);
    else if (state == DISK_QUOTA)
        snprintf(out, size,
                 "%s %.1fm: %.1fm used, %.1fm of it free pages; deleting batches frees space", what,
                 mib(s->max), mib(s->used), mib(s->unused));
    else
        snprintf(out, size, "%s: %.1fm left%s, %.1fm wanted; deleting batches frees space", what,
                 mib(left), s->max == DISK_AUTO ? " by --max-disk auto" : "", mib(need));
}

/* mutex held */
static void judge(struct disk *d)
{
    const struct disk_space *s = &d->space;
    enum disk_state was = (enum disk_state)atomic_load(&d->state);
    enum disk_state state = disk_judge(was, d->error, s);
    uint64_t left = disk_left(s), need = disk_need(s), size = disk_reserve_size(s);
    if (s->reserve == 0 && d->error == 0 && state == DISK_WELL && now_us() >= d->reserve_us) {
        d->reserve_us = now_us() + PACE_IDLE_US;
        make_reserve(d, size);
        left = left > size ? left - size : 0;
    }
    d->most_left = d->most_left > left ? d->most_left : left;
    if (d->error == E_FULL && left > d->failed_left + MIB) { /* it may work now */
        atomic_store(&d->retry_us, now_us());
    }
    int64_t over = left > need ? (int64_t)least(left - need, INT64_MAX) : 0;
    atomic_store(&d->allowance, over);
    atomic_store(&d->spillable, over + (int64_t)size / 2);
    bool tight = state != DISK_WELL || left < need + 2 * s->log;
    /* On a small disk the log stays below the reserve, so that there is always room to fold it. */
    uint64_t fold = state != DISK_WELL ? 0 : tight || size == RESERVE_MOST ? MIB : size / 2;
    atomic_store(&d->fold, (tight || size < RESERVE_MOST) && s->log > fold);
    atomic_store(&d->tight, tight);
    int64_t until = atomic_load(&d->short_until);
    if (until != 0 && (left >= d->short_left || now_us() >= until))
        atomic_store(&d->short_until, 0);
    atomic_store(&d->state, (int)state);
    metric_set(METRIC_DISK_USED, (int64_t)s->used);
    metric_set(METRIC_DISK_LEFT, (int64_t)least(left, INT64_MAX));
    if (state != was && was != DISK_WELL)
        health_clear(causes[was].cause);
    if (state != DISK_WELL) {
        char text[HEALTH_DETAIL_SIZE];
        describe(d, state, text, sizeof(text));
        health_set(causes[state].cause, "%s", text);
    }
}

static void look_now(struct disk *d)
{
    if (d->e == NULL)
        return;
    atomic_store(&d->look_us, now_us() + LOOK_US);
    measure(d);
    measure_results(d);
    judge(d);
}

void disk_look(struct disk *d)
{
    if (now_us() < atomic_load_explicit(&d->look_us, memory_order_relaxed) ||
        pthread_mutex_trylock(&d->mutex) != 0)
        return; /* another thread does it */
    look_now(d);
    pthread_mutex_unlock(&d->mutex);
}

/* ---- life ---- */

struct disk *disk_new(const char *dir, uint64_t max)
{
    struct disk *d = xcalloc(1, sizeof(*d));
    pthread_mutex_init(&d->mutex, NULL);
    d->max = max;
    d->dir = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    atomic_init(&d->each, RESULT_FIRST);
    d->short_us = SHORT_US;
    return d;
}

void disk_watch(struct disk *d, struct engine *e)
{
    if (d->dir < 0) /* it has been made meanwhile */
        d->dir = open(e->cfg->data, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    pthread_mutex_lock(&d->mutex);
    d->e = e;
    look_now(d);
    pthread_mutex_unlock(&d->mutex);
}

void disk_free(struct disk *d)
{
    if (d == NULL)
        return;
    if (d->dir >= 0)
        close(d->dir);
    pthread_mutex_destroy(&d->mutex);
    free(d);
}

/* ---- what others ask ---- */

enum disk_state disk_state(const struct disk *d)
{
    return (enum disk_state)atomic_load_explicit(&d->state, memory_order_relaxed);
}

int disk_refuses(const struct disk *d)
{
    switch (disk_state(d)) {
    case DISK_WELL: return 0;
    case DISK_FULL:
    case DISK_QUOTA: return E_FULL;
    case DISK_READ_ONLY: return E_READONLY;
    default: return E_IO;
    }
}

void disk_text(struct disk *d, char *out, size_t size)
{
    pthread_mutex_lock(&d->mutex);
    describe(d, disk_state(d), out, size);
    pthread_mutex_unlock(&d->mutex);
}

bool disk_tight(const struct disk *d)
{
    return atomic_load_explicit(&d->tight, memory_order_relaxed);
}

bool disk_fold(struct disk *d)
{
    return atomic_exchange(&d->fold, false);
}

bool disk_may_fold(struct disk *d)
{
    pthread_mutex_lock(&d->mutex);
    look_now(d);
    bool may = d->space.free >= d->space.grows;
    pthread_mutex_unlock(&d->mutex);
    return may;
}

/* ---- the keeper ---- */

void disk_failed(struct disk *d, int rc, const char *text)
{
    pthread_mutex_lock(&d->mutex);
    d->error = rc;
    d->failures++;
    snprintf(d->text, sizeof(d->text), "%s", text);
    atomic_store(&d->retry_us, now_us() + disk_backoff_us(d->failures));
    if (rc == E_FULL)
        (void)disk_give_up_reserve(d);
    d->failed_left = UINT64_MAX - MIB;
    look_now(d);
    d->failed_left = d->most_left; /* not what the failure itself took, and gave back */
    d->most_left = 0;
    pthread_mutex_unlock(&d->mutex);
}

bool disk_broken(const struct disk *d)
{
    return atomic_load(&d->retry_us) != 0;
}

bool disk_try(const struct disk *d)
{
    return now_us() >= atomic_load(&d->retry_us);
}

int disk_probe_spill(struct disk *d)
{
    pthread_mutex_lock(&d->mutex);
    bool failed = d->spill_failed;
    pthread_mutex_unlock(&d->mutex);
    return failed ? spill_probe(d->e->spill) : 0;
}

void disk_worked(struct disk *d)
{
    pthread_mutex_lock(&d->mutex);
    d->error = 0;
    d->failures = 0;
    d->spill_failed = false;
    atomic_store(&d->retry_us, 0);
    look_now(d);
    pthread_mutex_unlock(&d->mutex);
}

void disk_note(struct disk *d, uint64_t unused, uint64_t unfolded, uint64_t size)
{
    atomic_store(&d->unused, unused);
    atomic_store(&d->unfolded, unfolded);
    atomic_store(&d->size, size);
}

int64_t disk_pace_us(const struct disk *d)
{
    int64_t left = disk_broken(d) ? atomic_load(&d->retry_us) - now_us() : INT64_MAX;
    if (left < PACE_SHORT_US)
        return left < 0 ? 0 : left;
    return disk_state(d) == DISK_WELL ? PACE_IDLE_US : PACE_SHORT_US;
}

/* ---- fetchers ---- */

bool disk_may_start(struct disk *d, uint32_t running)
{
    if (disk_state(d) != DISK_WELL || atomic_load_explicit(&d->short_until, memory_order_relaxed))
        return false;
    int64_t each = atomic_load_explicit(&d->each, memory_order_relaxed);
    int64_t comes = atomic_load_explicit(&d->announced, memory_order_relaxed) +
                    (int64_t)running * each;
    return running == 0 || /* one is never too many */
           comes < atomic_load_explicit(&d->allowance, memory_order_relaxed) / COPIES;
}

bool disk_may_spill(struct disk *d, size_t n)
{
    int64_t takes = (int64_t)n * COPIES;
    if (atomic_fetch_sub(&d->spillable, takes) >= takes)
        return true;
    pthread_mutex_lock(&d->mutex);
    look_now(d);
    pthread_mutex_unlock(&d->mutex);
    return atomic_fetch_sub(&d->spillable, takes) >= takes;
}

void disk_spill_failed(struct disk *d, int rc, uint64_t bytes, bool refused)
{
    metric_add(METRIC_DISK_REFETCHED, 1);
    if (rc != E_FULL) {
        pthread_mutex_lock(&d->mutex);
        d->spill_failed = true;
        pthread_mutex_unlock(&d->mutex);
        disk_failed(d, rc, "a body could not be written");
        return;
    }
    pthread_mutex_lock(&d->mutex);
    int64_t now = now_us(), until = atomic_load(&d->short_until);
    if (until == 0) { /* else this one is of the same shortage */
        if (d->short_end == 0 || now - d->short_end > SHORT_MAX_US)
            d->short_us = SHORT_US;
        else if (d->short_us < SHORT_MAX_US)
            d->short_us *= 2;
        d->short_end = now + d->short_us;
        d->short_left = 0;
        atomic_store(&d->short_until, d->short_end);
    }
    look_now(d);
    uint64_t wants = disk_need(&d->space) + bytes * COPIES;
    if (refused && disk_left(&d->space) > bytes) /* it does not show how much is left for us */
        wants = UINT64_MAX;
    d->short_left = wants > d->short_left ? wants : d->short_left;
    pthread_mutex_unlock(&d->mutex);
}

void disk_announce(struct disk *d, int64_t bytes)
{
    atomic_fetch_add_explicit(&d->announced, bytes, memory_order_relaxed);
}
