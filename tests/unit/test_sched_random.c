/* The scheduler over random histories in invented time: after each step every limit, count and
 * list is checked, and that nothing rests which could run. */
#include "sched_world.h"

static void check_lane(const struct world *w, unsigned f, int h, int b)
{
    const struct sched_lane *l = &w->lanes[f][h][b];
    const struct sched_batch *batch = &w->batches[f][b];
    assert_true(w->lim.batch_host == 0 || l->in_flight <= w->lim.batch_host);
    assert_true(l->offered <= l->queued);
    assert_int_equal(l->user.held, l->in_flight + l->offered);
    assert_true((l->state == LANE_EMPTY) == (l->queued == l->offered));
    assert_true((l->state == LANE_WAITING) == fair_has(&l->user));
    assert_true((l->offered > 0) == (l->offer.next != &l->offer));
    if (l->state == LANE_CAPPED)
        assert_int_equal(l->in_flight + l->offered, w->lim.batch_host);
    if (l->state == LANE_READY || l->offered > 0) /* somebody will come by */
        assert_true(fair_has(&batch->user) || batch->link.next != &batch->link);
}

/* Everything that must hold between two calls. */
static void check(const struct world *w)
{
    uint32_t all = 0, of_batch[BATCHES] = {0};
    for (unsigned f = 0; f < FETCHERS; f++) {
        uint32_t here = 0, here_of[BATCHES] = {0};
        for (int h = 0; h < HOSTS; h++) {
            uint32_t at_host = 0, offered = 0;
            for (int b = 0; b < BATCHES; b++) {
                check_lane(w, f, h, b);
                at_host += w->lanes[f][h][b].in_flight;
                offered += w->lanes[f][h][b].offered;
                here_of[b] += w->lanes[f][h][b].in_flight;
            }
            assert_int_equal(w->hosts[f][h].in_flight, at_host);
            assert_int_equal(w->hosts[f][h].offered, offered);
            assert_true(at_host + offered <= w->lim.host);
            here += at_host;
        }
        assert_int_equal(w->s[f].in_flight, here);
        all += here;
        for (int b = 0; b < BATCHES; b++) {
            assert_int_equal(w->batches[f][b].in_flight, here_of[b]);
            assert_int_equal(w->batches[f][b].user.held, here_of[b]);
            of_batch[b] += here_of[b];
        }
    }
    assert_true(all <= w->lim.global);
    assert_int_equal(atomic_load(&w->global.free), (int32_t)(w->lim.global - all));
    for (int b = 0; w->lim.batch != 0 && b < BATCHES; b++) {
        assert_true(of_batch[b] <= w->lim.batch);
        assert_int_equal(atomic_load(&w->quotas[b].free), (int32_t)(w->lim.batch - of_batch[b]));
    }
}

/* After its turn: what may start has started, and what waits for time alone has its alarm. */
static void check_rest(const struct world *w, unsigned f)
{
    int64_t due = sched_due(&w->s[f]);
    assert_true(due > w->now);
    for (int h = 0; h < HOSTS; h++) {
        for (int b = 0; b < BATCHES; b++) {
            bool slots = atomic_load(&w->global.free) > 0 &&
                         (w->lim.batch == 0 || atomic_load(&w->quotas[b].free) > 0);
            double wait = model_may(w, f, h, b);
            if (wait < 0 || !slots)
                continue;
            bool left = (w->awake & ~(1U << f)) != 0; /* for another fetcher, which knows */
            assert_true(left || (wait > 1e-3 && (double)(due - w->now) <= ceil(wait) + 1));
        }
    }
}

static void step(struct world *w, unsigned f)
{
    int h = (int)rnd(HOSTS), b = (int)rnd(BATCHES);
    struct sched *s = &w->s[f];
    switch (rnd(8)) {
    case 0:
    case 1: sched_queue(s, &w->lanes[f][h][b], 1 + rnd(5)); break;
    case 2:
    case 3: (void)release_one(w, f); break;
    case 4:
        if (rnd(10) == 0)
            sched_drop_queued(s, &w->lanes[f][h][b]);
        break;
    case 5:
        if (rnd(4) == 0) {
            int64_t until = w->now + rnd(300000);
            sched_pause_host(s, &w->hosts[f][h], until);
            if (until > w->paused[f][h])
                w->paused[f][h] = until;
        } else if (rnd(4) == 0) {
            w->held[f][h] = !w->held[f][h];
            sched_hold_host(s, &w->hosts[f][h], w->held[f][h]);
        }
        break;
    case 6: w->now += rnd(3) == 0 ? rnd(200000) : rnd(2000); break;
    default:
        if (sched_due(s) != INT64_MAX && sched_due(s) > w->now)
            w->now = sched_due(s) - rnd(2); /* to the moment, or just before */
        break;
    }
}

/* Whatever happened before: when no more is queued, everything gets done, by wakes and alarms
 * alone. */
static void drain(struct world *w)
{
    bool busy = true;
    for (int i = 0; busy && i < 1000000; i++) {
        int64_t due = INT64_MAX;
        busy = false;
        for (unsigned f = 0; f < FETCHERS; f++) {
            if (release_one(w, f) || (w->awake & (1U << f)) || sched_due(&w->s[f]) <= w->now) {
                turn(w, f);
                busy = true;
            }
            due = sched_due(&w->s[f]) < due ? sched_due(&w->s[f]) : due;
        }
        if (!busy && due != INT64_MAX) {
            w->now = due;
            busy = true;
        }
    }
    for (int f = 0; f < FETCHERS; f++)
        for (int h = 0; h < HOSTS; h++)
            for (int b = 0; b < BATCHES; b++)
                assert_int_equal(w->lanes[f][h][b].queued, 0);
}

static uint32_t some_rate(void)
{
    static const uint32_t rates[] = {0, 0, 500, 3000, 50000, 333333, 4000000};
    return rates[rnd(ARRAY_LEN(rates))];
}

static void random_histories_keep_every_promise(void **state)
{
    (void)state;
    for (uint64_t run = 1; run <= 1500; run++) {
        seed = run * 0x9e3779b97f4a7c15ULL;
        static struct world w;
        world_init(&w, (struct limits){
                           .global = 1 + rnd(20),
                           .host = 1 + rnd(6),
                           .batch = rnd(3) == 0 ? 1 + rnd(6) : 0,
                           .batch_host = rnd(2) == 0 ? 0 : 1 + rnd(3),
                           .host_rate = some_rate(),
                           .batch_rate = some_rate(),
                           .fetchers = rnd(3) == 0 ? 1 : FETCHERS,
                       });
        for (int i = 0; i < 300; i++) {
            unsigned f = rnd(w.lim.fetchers);
            step(&w, f);
            check(&w);
            turn(&w, f);
            check(&w);
            check_rest(&w, f);
        }
        for (unsigned f = 0; f < FETCHERS; f++) {
            for (int h = 0; h < HOSTS; h++) {
                w.held[f][h] = false;
                sched_hold_host(&w.s[f], &w.hosts[f][h], false);
            }
            turn(&w, f);
        }
        drain(&w);
        check(&w);
        for (unsigned f = 0; f < FETCHERS; f++) { /* nothing refers to them any more */
            for (int h = 0; h < HOSTS; h++) {
                for (int b = 0; b < BATCHES; b++)
                    sched_lane_fini(&w.s[f], &w.lanes[f][h][b]);
                sched_host_fini(&w.s[f], &w.hosts[f][h]);
            }
            for (int b = 0; b < BATCHES; b++)
                sched_batch_fini(&w.s[f], &w.batches[f][b]);
            assert_int_equal(sched_due(&w.s[f]), INT64_MAX);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_histories_keep_every_promise),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
