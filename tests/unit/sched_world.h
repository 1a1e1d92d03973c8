/* Schedulers that share quotas, as the fetchers do, in invented time: a model of its own says
 * what may start, and each start and each rest is held against it. */
#ifndef TESTS_SCHED_WORLD_H
#define TESTS_SCHED_WORLD_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "server/sched.h"

enum { FETCHERS = 3, HOSTS = 7, BATCHES = 5 };

struct limits {
    uint32_t global, host, batch, batch_host; /* batch, batch_host: 0 none */
    uint32_t host_rate, batch_rate;           /* thousandths a second; 0: none */
    unsigned fetchers;
};

/* A token bucket as textbooks have it: filled by time, emptied by starts. */
struct model_bucket {
    double level; /* tokens */
    int64_t at_us;
};

struct world {
    struct limits lim;
    int64_t now;
    struct quota global;
    struct quota quotas[BATCHES];
    struct sched s[FETCHERS];
    struct sched_host hosts[FETCHERS][HOSTS];
    struct sched_batch batches[FETCHERS][BATCHES];
    struct sched_lane lanes[FETCHERS][HOSTS][BATCHES];
    struct model_bucket host_bucket[FETCHERS][HOSTS];
    struct model_bucket lane_bucket[FETCHERS][HOSTS][BATCHES];
    int64_t paused[FETCHERS][HOSTS];
    bool held[FETCHERS][HOSTS];
    uint64_t starts[FETCHERS][HOSTS][BATCHES];
    uint32_t awake; /* fetchers that were told to wake */
};

static uint64_t seed;

static inline uint32_t rnd(uint32_t n)
{
    seed = seed * 6364136223846793005ULL + 1442695040888963407ULL;
    return (uint32_t)(seed >> 33) % n;
}

static inline void world_init(struct world *w, struct limits lim)
{
    memset(w, 0, sizeof(*w));
    w->lim = lim;
    w->now = 1000000;
    quota_init(&w->global, lim.global);
    for (int b = 0; b < BATCHES; b++) {
        if (lim.batch != 0)
            quota_init(&w->quotas[b], lim.batch);
    }
    for (unsigned f = 0; f < FETCHERS; f++) {
        sched_init(&w->s[f], &w->global, f);
        for (int b = 0; b < BATCHES; b++)
            sched_batch_init(&w->batches[f][b], lim.batch != 0 ? &w->quotas[b] : NULL,
                             lim.batch_host, sched_rate_of(lim.batch_rate), (uint8_t)(b * 2));
        for (int h = 0; h < HOSTS; h++) {
            sched_host_init(&w->hosts[f][h], lim.host, sched_rate_of(lim.host_rate));
            w->host_bucket[f][h].level = 1e9;
            for (int b = 0; b < BATCHES; b++) {
                sched_lane_init(&w->lanes[f][h][b], &w->hosts[f][h], &w->batches[f][b]);
                w->lane_bucket[f][h][b].level = 1e9;
            }
        }
    }
}

static inline double burst_of(uint32_t rate)
{
    double burst = floor(rate / 1000.0 * 0.05);
    return burst < 1 ? 1 : burst;
}

static inline double model_level(const struct model_bucket *m, uint32_t rate, int64_t now)
{
    double level = m->level + (double)(now - m->at_us) / 1e6 * rate / 1000;
    return level < burst_of(rate) ? level : burst_of(rate);
}

/* Microseconds until it has a whole token. */
static inline double model_wait(const struct model_bucket *m, uint32_t rate, int64_t now)
{
    double level = rate == 0 ? 1 : model_level(m, rate, now);
    return level >= 1 ? 0 : (1 - level) * 1e9 / rate;
}

static inline void model_take(struct model_bucket *m, uint32_t rate, int64_t now)
{
    if (rate == 0)
        return;
    m->level = model_level(m, rate, now);
    m->at_us = now;
    assert_true(m->level >= 1 - 1e-6);
    m->level -= 1;
}

/* What the model says of a lane, but for the quotas: when it may start something, µs from now;
 * negative: only after something else has happened. */
static inline double model_may(const struct world *w, unsigned f, int h, int b)
{
    const struct sched_lane *l = &w->lanes[f][h][b];
    if (l->queued == 0 || w->held[f][h] || w->hosts[f][h].in_flight >= w->hosts[f][h].limit ||
        (w->lim.batch_host != 0 && l->in_flight >= w->lim.batch_host))
        return -1;
    double wait = fmax(model_wait(&w->host_bucket[f][h], w->lim.host_rate, w->now),
                       model_wait(&w->lane_bucket[f][h][b], w->lim.batch_rate, w->now));
    return fmax(wait, (double)(w->paused[f][h] - w->now));
}

/* A start, held against the model. */
static inline struct sched_lane *world_pick(struct world *w, unsigned f)
{
    struct sched_lane *l = sched_pick(&w->s[f]);
    if (l == NULL)
        return NULL;
    ptrdiff_t n = l - &w->lanes[f][0][0], h = n / BATCHES, b = n % BATCHES;
    assert_true(n >= 0 && n < HOSTS * BATCHES);
    assert_true(w->paused[f][h] <= w->now && !w->held[f][h]);
    model_take(&w->host_bucket[f][h], w->lim.host_rate, w->now);
    model_take(&w->lane_bucket[f][h][b], w->lim.batch_rate, w->now);
    w->starts[f][h][b]++;
    return l;
}

/* One loop turn of a fetcher as fetch.c makes it. */
static inline void turn(struct world *w, unsigned f)
{
    bool again = true;
    bool woken = w->awake & (1U << f);
    w->awake &= ~(1U << f);
    for (int i = 0; again && i < 100; i++) {
        sched_turn(&w->s[f], w->now, woken && i == 0);
        while (world_pick(w, f) != NULL)
            ;
        w->awake |= sched_wake_others(&w->s[f], &again);
    }
    assert_false(again);
}

static inline bool release_one(struct world *w, unsigned f)
{
    if (w->s[f].in_flight == 0)
        return false;
    for (;;) {
        struct sched_lane *l = &w->lanes[f][rnd(HOSTS)][rnd(BATCHES)];
        if (l->in_flight == 0)
            continue;
        sched_release(&w->s[f], l);
        return true;
    }
}

#endif
