/* The scheduler and the shared limits: fixed cases, and random histories in which every limit,
 * every list and every count is checked after each step. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "server/sched.h"

enum { FETCHERS = 3, HOSTS = 7, BATCHES = 5 };

struct world {
    struct quota global;
    struct quota quotas[BATCHES];
    struct sched s[FETCHERS];
    struct sched_host hosts[FETCHERS][HOSTS];
    struct sched_batch batches[FETCHERS][BATCHES];
    struct sched_lane lanes[FETCHERS][HOSTS][BATCHES];
    uint32_t awake; /* fetchers that were told to wake */
};

static uint64_t seed;

static uint32_t rnd(uint32_t n)
{
    seed = seed * 6364136223846793005ULL + 1442695040888963407ULL;
    return (uint32_t)(seed >> 33) % n;
}

static void world_init(struct world *w, uint32_t global, uint32_t per_host, uint32_t per_batch,
                       uint32_t per_batch_host)
{
    memset(w, 0, sizeof(*w));
    quota_init(&w->global, global);
    for (int b = 0; b < BATCHES; b++) {
        if (per_batch != 0)
            quota_init(&w->quotas[b], per_batch);
    }
    for (unsigned f = 0; f < FETCHERS; f++) {
        sched_init(&w->s[f], &w->global, f);
        for (int b = 0; b < BATCHES; b++)
            sched_batch_init(&w->batches[f][b], per_batch != 0 ? &w->quotas[b] : NULL,
                             per_batch_host);
        for (int h = 0; h < HOSTS; h++) {
            sched_host_init(&w->hosts[f][h], per_host);
            for (int b = 0; b < BATCHES; b++)
                sched_lane_init(&w->lanes[f][h][b], &w->hosts[f][h], &w->batches[f][b]);
        }
    }
}

/* Everything that must hold between two calls. */
static void check(const struct world *w, uint32_t per_host, uint32_t per_batch,
                  uint32_t per_batch_host)
{
    uint32_t all = 0, of_batch[BATCHES] = {0};
    for (int f = 0; f < FETCHERS; f++) {
        uint32_t here = 0;
        for (int h = 0; h < HOSTS; h++) {
            uint32_t at_host = 0;
            bool startable = false;
            for (int b = 0; b < BATCHES; b++) {
                const struct sched_lane *l = &w->lanes[f][h][b];
                at_host += l->in_flight;
                of_batch[b] += l->in_flight;
                startable = startable || l->state == LANE_READY;
                assert_true(per_batch_host == 0 || l->in_flight <= per_batch_host);
                assert_true((l->state == LANE_EMPTY) == (l->queued == 0));
                if (l->state == LANE_CAPPED)
                    assert_int_equal(l->in_flight, per_batch_host);
            }
            const struct sched_host *host = &w->hosts[f][h];
            assert_int_equal(host->in_flight, at_host);
            assert_true(at_host <= per_host);
            assert_true((host->link.next != &host->link) == (startable && at_host < per_host));
            here += at_host;
        }
        assert_int_equal(w->s[f].in_flight, here);
        all += here;
    }
    assert_true(all <= w->global.limit);
    assert_int_equal(atomic_load(&w->global.free), (int32_t)(w->global.limit - all));
    for (int b = 0; per_batch != 0 && b < BATCHES; b++) {
        assert_true(of_batch[b] <= per_batch);
        assert_int_equal(atomic_load(&w->quotas[b].free), (int32_t)(per_batch - of_batch[b]));
    }
}

/* One loop turn of a fetcher as fetch.c makes it. */
static void turn(struct world *w, unsigned f)
{
    bool again = true;
    w->awake &= ~(1U << f);
    for (int i = 0; again && i < 100; i++) {
        sched_turn(&w->s[f]);
        while (sched_pick(&w->s[f]) != NULL)
            ;
        w->awake |= sched_wake_others(&w->s[f], &again);
    }
    assert_false(again);
}

static bool release_one(struct world *w, unsigned f)
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

/* Whatever happened before: when no more is queued, everything gets done, by wakes alone. */
static void drain(struct world *w)
{
    for (int i = 0; i < 1000000; i++) {
        bool busy = false;
        for (unsigned f = 0; f < FETCHERS; f++) {
            if (release_one(w, f)) {
                turn(w, f);
                busy = true;
            } else if (w->awake & (1U << f)) {
                turn(w, f);
                busy = true;
            }
        }
        if (!busy)
            break;
    }
    for (int f = 0; f < FETCHERS; f++)
        for (int h = 0; h < HOSTS; h++)
            for (int b = 0; b < BATCHES; b++)
                assert_int_equal(w->lanes[f][h][b].queued, 0);
}

static void random_histories_keep_every_limit(void **state)
{
    (void)state;
    for (uint64_t run = 1; run <= 300; run++) {
        seed = run * 0x9e3779b97f4a7c15ULL;
        uint32_t global = 1 + rnd(20), host = 1 + rnd(6), batch = rnd(3) == 0 ? 0 : 1 + rnd(6);
        uint32_t batch_host = rnd(2) == 0 ? 0 : 1 + rnd(3);
        struct world w;
        world_init(&w, global, host, batch, batch_host);
        for (int step = 0; step < 400; step++) {
            unsigned f = rnd(FETCHERS);
            switch (rnd(4)) {
            case 0: sched_queue(&w.s[f], &w.lanes[f][rnd(HOSTS)][rnd(BATCHES)], 1 + rnd(5)); break;
            case 1: (void)release_one(&w, f); break;
            case 2:
                if (rnd(10) == 0)
                    sched_drop_queued(&w.s[f], &w.lanes[f][rnd(HOSTS)][rnd(BATCHES)]);
                break;
            default: break;
            }
            check(&w, host, batch, batch_host);
            turn(&w, f);
            check(&w, host, batch, batch_host);
        }
        for (unsigned f = 0; f < FETCHERS; f++)
            turn(&w, f);
        drain(&w);
        check(&w, host, batch, batch_host);
    }
}

static void picks_go_round_robin_over_hosts_and_batches(void **state)
{
    (void)state;
    struct world w;
    world_init(&w, 1000, 1000, 0, 0);
    for (int h = 0; h < 2; h++)
        for (int b = 0; b < 2; b++)
            sched_queue(&w.s[0], &w.lanes[0][h][b], 3);
    const struct sched_lane *want[] = {&w.lanes[0][0][0], &w.lanes[0][1][0], &w.lanes[0][0][1],
                                       &w.lanes[0][1][1]};
    for (int i = 0; i < 12; i++)
        assert_ptr_equal(sched_pick(&w.s[0]), want[i % 4]);
    assert_null(sched_pick(&w.s[0]));
}

/* A host at its limit, with a million more waiting, holds up no other host. */
static void a_full_host_blocks_no_other(void **state)
{
    (void)state;
    struct world w;
    world_init(&w, 1000, 2, 0, 0);
    sched_queue(&w.s[0], &w.lanes[0][0][0], 1000000);
    assert_non_null(sched_pick(&w.s[0]));
    assert_non_null(sched_pick(&w.s[0]));
    assert_null(sched_pick(&w.s[0]));
    sched_queue(&w.s[0], &w.lanes[0][1][0], 1);
    assert_ptr_equal(sched_pick(&w.s[0]), &w.lanes[0][1][0]);
}

static void a_batch_at_its_limit_blocks_no_other_batch(void **state)
{
    (void)state;
    struct world w;
    world_init(&w, 1000, 10, 1, 0);
    sched_queue(&w.s[0], &w.lanes[0][0][0], 5);
    sched_queue(&w.s[0], &w.lanes[0][0][1], 5);
    assert_ptr_equal(sched_pick(&w.s[0]), &w.lanes[0][0][0]);
    assert_ptr_equal(sched_pick(&w.s[0]), &w.lanes[0][0][1]);
    assert_null(sched_pick(&w.s[0]));
    sched_release(&w.s[0], &w.lanes[0][0][1]);
    sched_turn(&w.s[0]);
    assert_ptr_equal(sched_pick(&w.s[0]), &w.lanes[0][0][1]);
}

/* The freed slots of a shared limit reach a fetcher that holds none, however greedy the first. */
static void a_waiting_fetcher_gets_its_share(void **state)
{
    (void)state;
    struct world w;
    world_init(&w, 4, 1000, 0, 0);
    sched_queue(&w.s[0], &w.lanes[0][0][0], 1000);
    turn(&w, 0);
    assert_int_equal(w.s[0].in_flight, 4);
    sched_queue(&w.s[1], &w.lanes[1][0][0], 1000);
    turn(&w, 1);
    assert_int_equal(w.s[1].in_flight, 0);
    for (int i = 0; i < 8; i++) {
        sched_release(&w.s[0], &w.lanes[0][0][0]);
        turn(&w, 0);
        if (w.awake & 2)
            turn(&w, 1);
    }
    assert_int_equal(w.s[0].in_flight, 2);
    assert_int_equal(w.s[1].in_flight, 2);
}

static void a_single_slot_alternates(void **state)
{
    (void)state;
    struct quota q;
    quota_init(&q, 1);
    assert_true(quota_take(&q, 0, 0));
    assert_false(quota_take(&q, 1, 0));
    quota_give(&q);
    assert_false(quota_take(&q, 0, 0)); /* the other one's turn */
    assert_int_equal(quota_wake(&q, 0), 2);
    assert_true(quota_take(&q, 1, 0));
    quota_give(&q);
    assert_int_equal(quota_wake(&q, 1), 1);
    assert_true(quota_take(&q, 0, 0));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_histories_keep_every_limit),
        cmocka_unit_test(picks_go_round_robin_over_hosts_and_batches),
        cmocka_unit_test(a_full_host_blocks_no_other),
        cmocka_unit_test(a_batch_at_its_limit_blocks_no_other_batch),
        cmocka_unit_test(a_waiting_fetcher_gets_its_share),
        cmocka_unit_test(a_single_slot_alternates),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
