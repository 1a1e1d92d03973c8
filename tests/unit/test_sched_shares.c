/* Who gets how much of what is scarce: one scheduler, requests that take invented time, and the
 * shares and delays that come out. */
#include "sched_world.h"

enum { MS = 1000 };

struct sim_lane {
    struct sched_lane l;
    int64_t takes_us;
    uint64_t started, ended;
    int64_t slot_us; /* held, all requests together */
};

struct flight {
    struct heap_node node; /* by its end */
    struct sim_lane *lane;
};

struct sim {
    struct quota global;
    struct sched s;
    struct heap flights;
    int64_t now, end_at;
    uint64_t started;
    struct sim_lane *stop_at; /* ends when this lane has nothing left */
};

static void sim_init(struct sim *m, uint32_t global)
{
    memset(m, 0, sizeof(*m));
    quota_init(&m->global, global);
    sched_init(&m->s, &m->global, 0);
}

static void sim_lane(struct sim *m, struct sim_lane *l, struct sched_host *h, struct sched_batch *b,
                     int64_t takes_us, uint32_t queued)
{
    memset(l, 0, sizeof(*l));
    sched_lane_init(&l->l, h, b);
    l->takes_us = takes_us;
    sched_queue(&m->s, &l->l, queued);
}

static void batch(struct sched_batch *b, uint8_t priority)
{
    sched_batch_init(b, NULL, 0, sched_rate_of(0), priority);
}

static void host(struct sched_host *h, uint32_t limit)
{
    sched_host_init(h, limit, sched_rate_of(0));
}

static void sim_start(struct sim *m)
{
    struct sched_lane *l;
    sched_turn(&m->s, m->now, false);
    while ((l = sched_pick(&m->s)) != NULL) {
        struct flight *f = calloc(1, sizeof(*f));
        f->lane = CONTAINER_OF(l, struct sim_lane, l);
        f->lane->started++;
        m->started++;
        heap_add(&m->flights, &f->node, m->now + f->lane->takes_us);
    }
}

/* Until `starts` more were made, or `for_us` has passed, or stop_at is done. */
static void run(struct sim *m, uint64_t starts, int64_t for_us)
{
    uint64_t most = m->started + starts;
    int64_t until = m->now + for_us;
    for (;;) {
        sim_start(m);
        if (m->started >= most ||
            (m->stop_at != NULL && m->stop_at->l.queued + m->stop_at->l.in_flight == 0))
            return;
        int64_t next = sched_due(&m->s);
        if (m->flights.root != NULL && m->flights.root->key < next)
            next = m->flights.root->key;
        if (next > until) {
            m->now = until;
            return;
        }
        m->now = next;
        while (m->flights.root != NULL && m->flights.root->key <= m->now) {
            struct flight *f = CONTAINER_OF(m->flights.root, struct flight, node);
            heap_remove(&m->flights, &f->node);
            f->lane->ended++;
            f->lane->slot_us += f->lane->takes_us;
            sched_release(&m->s, &f->lane->l);
            free(f);
        }
    }
}

static void sim_fini(struct sim *m)
{
    while (m->flights.root != NULL) {
        struct flight *f = CONTAINER_OF(m->flights.root, struct flight, node);
        heap_remove(&m->flights, &f->node);
        free(f);
    }
}

static void assert_near(double value, double want, double tolerance)
{
    if (fabs(value - want) > want * tolerance)
        fail_msg("%g is not %g within %g %%", value, want, tolerance * 100);
}

static const uint8_t three[] = {9, 5, 0};

/* Each step of priority doubles the share, whatever the resource is, and nobody stands still. */
static void check_priorities(struct sim_lane *l)
{
    assert_near((double)l[0].started / (double)l[1].started, 16, 0.05);
    assert_near((double)l[1].started / (double)l[2].started, 32, 0.10);
}

static void priorities_share_the_slots_of_a_host(void **state)
{
    (void)state;
    for (uint32_t limit = 1; limit <= 64; limit *= 4) {
        struct sim m;
        struct sched_host h;
        struct sched_batch b[3];
        struct sim_lane l[3];
        sim_init(&m, 1000);
        host(&h, limit);
        for (int i = 0; i < 3; i++) {
            batch(&b[i], three[i]);
            sim_lane(&m, &l[i], &h, &b[i], 20 * MS + 7 * i, 10000000);
        }
        run(&m, 1000, INT64_MAX / 2); /* the beginning has rules of its own */
        for (int i = 0; i < 3; i++)
            l[i].started = 0;
        run(&m, 200000, INT64_MAX / 2);
        if (limit == 1)
            check_priorities(l);
        assert_true(l[0].started > 8 * l[1].started && l[1].started > 2 * l[2].started);
        assert_true(l[2].started > 100);
        sim_fini(&m);
    }
}

static void priorities_share_the_global_limit(void **state)
{
    (void)state;
    struct sim m;
    struct sched_host h[3];
    struct sched_batch b[3];
    struct sim_lane l[3];
    sim_init(&m, 2000);
    for (int i = 0; i < 3; i++) {
        host(&h[i], 5000);
        batch(&b[i], three[i]);
        sim_lane(&m, &l[i], &h[i], &b[i], 20 * MS + 777 * i, 10000000);
    }
    run(&m, 10000, INT64_MAX / 2);
    for (int i = 0; i < 3; i++)
        l[i].started = 0;
    run(&m, 400000, INT64_MAX / 2);
    check_priorities(l);
    sim_fini(&m);
}

static void priorities_share_the_rate_of_a_host(void **state)
{
    (void)state;
    struct sim m;
    struct sched_host h;
    struct sched_batch b[3];
    struct sim_lane l[3];
    sim_init(&m, 100);
    sched_host_init(&h, 16, sched_rate_of(30000)); /* 30 a second */
    for (int i = 0; i < 3; i++) {
        batch(&b[i], three[i]);
        sim_lane(&m, &l[i], &h, &b[i], 1 * MS, 10000000);
    }
    run(&m, 1000, INT64_MAX / 2);
    for (int i = 0; i < 3; i++)
        l[i].started = 0;
    int64_t from = m.now;
    run(&m, 100000, INT64_MAX / 2);
    check_priorities(l);
    assert_near(100000.0 / ((double)(m.now - from) / 1e6), 30, 0.01);
    sim_fini(&m);
}

/* A batch's own rate holds at each of its hosts, whatever the others do there. */
static void a_batch_keeps_its_rate_at_each_host(void **state)
{
    (void)state;
    struct sim m;
    struct sched_host h[2];
    struct sched_batch slow, other;
    struct sim_lane l[3];
    sim_init(&m, 100);
    host(&h[0], 4);
    host(&h[1], 4);
    sched_batch_init(&slow, NULL, 0, sched_rate_of(7500), 5);
    batch(&other, 5);
    sim_lane(&m, &l[0], &h[0], &slow, 10 * MS, 1000000);
    sim_lane(&m, &l[1], &h[1], &slow, 10 * MS, 1000000);
    sim_lane(&m, &l[2], &h[1], &other, 10 * MS, 1000000);
    run(&m, UINT64_MAX / 2, 100 * 1000 * MS);
    assert_in_range(l[0].started, 749, 751);
    assert_in_range(l[1].started, 700, 751); /* a slot may be late by a moment */
    assert_near((double)(l[1].started + l[2].started), 100 * 400, 0.01); /* no slot stood idle */
    sim_fini(&m);
}

enum { WIDE = 10000 };

struct wide {
    struct sched_host hosts[WIDE];
    struct sim_lane lanes[WIDE];
    struct sched_batch b;
};

static void wide_init(struct sim *m, struct wide *w, uint32_t limit, int64_t takes_us)
{
    batch(&w->b, 5);
    for (int i = 0; i < WIDE; i++) {
        host(&w->hosts[i], limit);
        sim_lane(m, &w->lanes[i], &w->hosts[i], &w->b, takes_us + 13 * i, 100000);
    }
}

static uint64_t wide_started(const struct wide *w)
{
    uint64_t n = 0;
    for (int i = 0; i < WIDE; i++)
        n += w->lanes[i].started;
    return n;
}

/* One host against ten thousand: half for each, and the wide batch's hosts in turn. */
static void a_batch_of_one_host_gets_its_share(void **state)
{
    (void)state;
    struct sim m;
    struct wide *w = calloc(1, sizeof(*w));
    struct sched_host h;
    struct sched_batch b;
    struct sim_lane l;
    sim_init(&m, 500);
    wide_init(&m, w, 16, 20 * MS);
    run(&m, 5000, INT64_MAX / 2);
    host(&h, 1000);
    batch(&b, 5);
    sim_lane(&m, &l, &h, &b, 80 * MS, 10000000);
    uint64_t before = wide_started(w);
    run(&m, 100000, INT64_MAX / 2);
    /* half of the slots, though each of its requests takes longer */
    assert_near((double)l.slot_us / (double)(m.now), 250, 0.15);
    assert_true(wide_started(w) > before + 40000);
    uint64_t least = UINT64_MAX, most = 0;
    for (int i = 0; i < WIDE; i++) {
        least = w->lanes[i].started < least ? w->lanes[i].started : least;
        most = w->lanes[i].started > most ? w->lanes[i].started : most;
    }
    assert_true(most - least <= 1);
    sim_fini(&m);
    free(w);
}

/* Servers that take 30 s against servers that take 50 ms. */
static void a_slow_batch_does_not_slow_a_quick_one(void **state)
{
    (void)state;
    struct sim m;
    struct wide *w = calloc(1, sizeof(*w));
    struct sched_host h;
    struct sched_batch b;
    struct sim_lane l;
    sim_init(&m, 1000);
    wide_init(&m, w, 16, 30000 * MS);
    run(&m, UINT64_MAX / 2, 29000 * MS); /* it has every slot */
    host(&h, 5000);
    batch(&b, 5);
    sim_lane(&m, &l, &h, &b, 50 * MS, 10000000);
    run(&m, UINT64_MAX / 2, 120000 * MS);
    l.slot_us = 0;
    run(&m, UINT64_MAX / 2, 60000 * MS);
    assert_near((double)l.slot_us / (60000.0 * MS), 500, 0.05);
    assert_near(w->b.in_flight, 500, 0.05);
    sim_fini(&m);
    free(w);
}

/* Ten URLs at one host, posted at any moment while others are queued: at most twice as long as
 * alone (one request's time: they are fewer than the host's limit). */
static void few_urls_at_a_busy_host(void **state)
{
    (void)state;
    for (int64_t after = 0; after < 2000 * MS; after += 97 * MS) {
        for (int64_t spread = 0; spread < 300 * MS; spread += 123 * MS) {
            struct sim m;
            struct sched_host h;
            struct sched_batch giant, few;
            struct sim_lane g, f;
            sim_init(&m, 1000);
            host(&h, 16);
            batch(&giant, 5);
            sim_lane(&m, &g, &h, &giant, 2000 * MS, 0);
            for (int i = 0; i < 16; i++) { /* its requests end together, or spread */
                sched_queue(&m.s, &g.l, 1);
                run(&m, UINT64_MAX / 2, spread / 16);
            }
            sched_queue(&m.s, &g.l, 1000000);
            run(&m, UINT64_MAX / 2, 6000 * MS + after);
            batch(&few, 5);
            int64_t from = m.now;
            sim_lane(&m, &f, &h, &few, 2000 * MS, 10);
            m.stop_at = &f;
            run(&m, UINT64_MAX / 2, 60000 * MS);
            assert_int_equal(f.ended, 10);
            assert_true(m.now - from <= 2 * 2000 * MS);
            sim_fini(&m);
        }
    }
}

/* The same at a host of their own while a hundred batches fill the global limit; and at hosts
 * that a batch of ten thousand hosts is at too. */
static void few_urls_while_all_slots_are_taken(void **state)
{
    (void)state;
    struct sim m;
    struct wide *w = calloc(1, sizeof(*w));
    static struct sched_host h[100], own;
    static struct sched_batch b[100], few, few2;
    static struct sim_lane l[100], f, f2;
    sim_init(&m, 1000);
    wide_init(&m, w, 16, 2000 * MS);
    for (int i = 0; i < 100; i++) {
        host(&h[i], 16);
        batch(&b[i], (uint8_t)(i % 6));
        sim_lane(&m, &l[i], &h[i], &b[i], (1500 + 11 * i) * MS, 10000);
    }
    run(&m, UINT64_MAX / 2, 20000 * MS);
    assert_int_equal(m.s.in_flight, 1000);
    batch(&few, 5);
    host(&own, 16);
    int64_t from = m.now;
    sim_lane(&m, &f, &own, &few, 2000 * MS, 10);
    m.stop_at = &f;
    run(&m, UINT64_MAX / 2, 60000 * MS);
    assert_true(m.now - from <= 2 * 2000 * MS);

    batch(&few2, 5);
    from = m.now;
    sim_lane(&m, &f2, &w->hosts[77], &few2, 2000 * MS, 10);
    m.stop_at = &f2;
    run(&m, UINT64_MAX / 2, 60000 * MS);
    assert_true(m.now - from <= 2 * 2000 * MS);
    sim_fini(&m);
    free(w);
}

/* However many small batches come: what was there before goes on. */
static void newcomers_do_not_starve_the_others(void **state)
{
    (void)state;
    struct sim m;
    struct sched_host h;
    struct sched_batch giant;
    struct sim_lane g;
    enum { N = 3000 };
    struct sched_batch *b = calloc(N, sizeof(*b));
    struct sim_lane *l = calloc(N, sizeof(*l));
    sim_init(&m, 1000);
    host(&h, 2);
    batch(&giant, 5);
    sim_lane(&m, &g, &h, &giant, 10 * MS, 1000000);
    run(&m, 100, INT64_MAX / 2);
    g.started = 0;
    for (int i = 0; i < N; i++) {
        batch(&b[i], 9);
        sim_lane(&m, &l[i], &h, &b[i], 10 * MS, 10);
        run(&m, 10, INT64_MAX / 2);
    }
    assert_true(g.started >= N * 10 / 5);
    sim_fini(&m);
    free(b);
    free(l);
}

/* A host that answers nothing, with very many queued. */
static void a_dead_host_holds_up_no_other(void **state)
{
    (void)state;
    struct sim m;
    struct sched_host dead, good;
    struct sched_batch b;
    struct sim_lane d, g;
    sim_init(&m, 100);
    host(&dead, 16);
    host(&good, 16);
    batch(&b, 5);
    sim_lane(&m, &d, &dead, &b, 30000 * MS, 1000000);
    sim_lane(&m, &g, &good, &b, 10 * MS, 16000);
    m.stop_at = &g;
    run(&m, UINT64_MAX / 2, 60000 * MS);
    assert_int_equal(g.ended, 16000);
    assert_int_equal(m.now, 16000 / 16 * 10 * MS);
    sim_fini(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(priorities_share_the_slots_of_a_host),
        cmocka_unit_test(priorities_share_the_global_limit),
        cmocka_unit_test(priorities_share_the_rate_of_a_host),
        cmocka_unit_test(a_batch_keeps_its_rate_at_each_host),
        cmocka_unit_test(a_batch_of_one_host_gets_its_share),
        cmocka_unit_test(a_slow_batch_does_not_slow_a_quick_one),
        cmocka_unit_test(few_urls_at_a_busy_host),
        cmocka_unit_test(few_urls_while_all_slots_are_taken),
        cmocka_unit_test(newcomers_do_not_starve_the_others),
        cmocka_unit_test(a_dead_host_holds_up_no_other),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
