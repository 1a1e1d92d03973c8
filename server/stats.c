/* What /metrics shows beside what is counted as it happens: what is now. Runs on the api thread, when
 * it is asked for. */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "server/budget.h"
#include "server/health.h"
#include "server/metrics.h"

static int64_t started_us; /* Unix time */

__attribute__((constructor)) static void note_start(void)
{
    started_us = wall_ms() * 1000;
}

/* ---- the process ---- */

/* Since Linux 6.2 the directory's size is the number of its entries (proc(5)). */
static int64_t open_descriptors(void)
{
    struct stat st;
    if (stat("/proc/self/fd", &st) == 0 && st.st_size > 0)
        return st.st_size;
    DIR *d = opendir("/proc/self/fd");
    if (d == NULL)
        return 0;
    int64_t n = -3; /* ".", ".." and its own */
    while (readdir(d) != NULL)
        n++;
    closedir(d);
    return n;
}

/* proc(5), /proc/pid/stat: the name may hold anything, so from the last ')' on. */
static void read_stat(void)
{
    enum { THREADS = 20, VIRTUAL = 23, PAGES = 24 }; /* as numbered there */
    char text[1024];
    FILE *f = fopen("/proc/self/stat", "re");
    size_t n = f != NULL ? fread(text, 1, sizeof(text) - 1, f) : 0;
    if (f != NULL)
        (void)fclose(f);
    text[n] = '\0';
    const char *p = strrchr(text, ')');
    for (int field = 3; p != NULL && field <= PAGES; field++) {
        p = strchr(p + 1, ' ');
        long long v = p != NULL ? strtoll(p, NULL, 10) : 0;
        if (p != NULL && field == THREADS)
            metric_set(METRIC_PROCESS_THREADS, v);
        else if (p != NULL && field == VIRTUAL)
            metric_set(METRIC_PROCESS_VIRTUAL, v);
        else if (p != NULL && field == PAGES)
            metric_set(METRIC_PROCESS_RSS, v * sysconf(_SC_PAGESIZE));
    }
}

static void process(void)
{
    struct rlimit r;
    struct timespec cpu;
    read_stat();
    metric_set(METRIC_PROCESS_FDS, open_descriptors());
    if (getrlimit(RLIMIT_NOFILE, &r) == 0)
        metric_set(METRIC_PROCESS_MAX_FDS,
                   r.rlim_cur == RLIM_INFINITY ? INT64_MAX : (int64_t)r.rlim_cur);
    if (clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu) == 0)
        metric_set(METRIC_PROCESS_CPU, (int64_t)cpu.tv_sec * 1000000 + cpu.tv_nsec / 1000);
    metric_set(METRIC_PROCESS_START, started_us);
}

/* ---- storage ---- */

static void storage(struct engine *e, struct store *reader)
{
    struct store_stats s;
    if (store_stats(reader, &s) == 0) {
        metric_set(METRIC_DB_SIZE, (int64_t)s.db_bytes);
        metric_set(METRIC_DB_FREE, (int64_t)s.free_bytes);
        metric_set(METRIC_WAL_SIZE, (int64_t)s.wal_bytes);
        metric_set(METRIC_DISK_FREE, (int64_t)s.disk_free_bytes);
    }
    metric_set(METRIC_UNWRITTEN, atomic_load(&e->unwritten));
}

/* ---- batches ---- */

static enum metric_label_LIVE label(const struct batch *b)
{
    if (b->state == BATCH_CANCELLING)
        return METRIC_LIVE_CANCELLING;
    if (b->state == BATCH_PAUSED)
        return METRIC_LIVE_PAUSED;
    return b->started_ms != 0 ? METRIC_LIVE_IN_PROGRESS : METRIC_LIVE_QUEUED;
}

/* engine.mutex */
static void batches(struct engine *e)
{
    int64_t live[METRIC_SET_LIVE_SIZE] = {0}, requests[METRIC_SET_PENDING_SIZE] = {0};
    for (size_t i = 0; i < LIVE_BUCKETS; i++) {
        for (struct live *l = e->buckets[i]; l != NULL; l = l->bucket_next) {
            struct batch_view v;
            engine_view(l, &v);
            live[label(&v.b)]++;
            requests[METRIC_PENDING_QUEUED] += (int64_t)v.queued;
            requests[METRIC_PENDING_IN_FLIGHT] += (int64_t)v.in_flight;
            requests[METRIC_PENDING_RETRY_WAIT] += (int64_t)v.retry_wait;
        }
    }
    for (unsigned i = 0; i < ARRAY_LEN(live); i++)
        metric_set(METRIC_BATCHES + i, live[i]);
    for (unsigned i = 0; i < ARRAY_LEN(requests); i++)
        metric_set(METRIC_REQUESTS + i, requests[i]);
}

bool engine_watch(struct engine *e)
{
    int64_t now = now_us();
    if (atomic_load(&e->starved_until) > now)
        health_set(HEALTH_DESCRIPTORS, NULL);
    else
        health_clear(HEALTH_DESCRIPTORS);
    return health_watch(now);
}

void engine_metrics(struct engine *e, struct store *reader, int64_t out[METRIC_CELLS])
{
    (void)engine_watch(e);
    process();
    storage(e, reader);
    metric_set(METRIC_MAX_PARALLEL, e->max_parallel);
    metric_set(METRIC_MEMORY_LIMIT, (int64_t)e->memory.limit);
    budget_show(e);
    /* Together, so that requests accepted = pending + results + dropped at any moment. */
    pthread_mutex_lock(&e->mutex);
    batches(e);
    metric_snapshot(out);
    pthread_mutex_unlock(&e->mutex);
}
