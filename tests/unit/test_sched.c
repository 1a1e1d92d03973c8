/* The scheduler and the shared limits: fixed cases. */
#include "sched_world.h"

static struct world w;

static void init(uint32_t global, uint32_t per_host, uint32_t per_batch)
{
    world_init(&w, (struct limits){.global = global, .host = per_host, .batch = per_batch});
    sched_turn(&w.s[0], w.now, false);
}

static void all_hosts_and_batches_have_their_turn(void **state)
{
    (void)state;
    init(1000, 1000, 0);
    for (int h = 0; h < 2; h++)
        for (int b = 0; b < 2; b++)
            sched_queue(&w.s[0], &w.lanes[0][h][b], 8);
    /* their priorities are 0 and 2: one start against four; each at both hosts in turn */
    uint64_t n[2] = {0, 0};
    for (int i = 0; i < 10; i++) {
        ptrdiff_t b = (world_pick(&w, 0) - &w.lanes[0][0][0]) % BATCHES;
        n[b]++;
        assert_true(llabs((long long)(w.starts[0][0][b] - w.starts[0][1][b])) <= 1);
    }
    assert_int_equal(n[0], 2);
    assert_int_equal(n[1], 8);
    while (world_pick(&w, 0) != NULL)
        ;
    assert_int_equal(w.s[0].in_flight, 32);
}

/* A host at its limit, with a million more waiting, holds up no other host. */
static void a_full_host_blocks_no_other(void **state)
{
    (void)state;
    init(1000, 2, 0);
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
    init(1000, 10, 1);
    sched_queue(&w.s[0], &w.lanes[0][0][0], 5);
    sched_queue(&w.s[0], &w.lanes[0][0][1], 5);
    assert_ptr_equal(sched_pick(&w.s[0]), &w.lanes[0][0][0]);
    assert_ptr_equal(sched_pick(&w.s[0]), &w.lanes[0][0][1]);
    assert_null(sched_pick(&w.s[0]));
    sched_release(&w.s[0], &w.lanes[0][0][1]);
    assert_ptr_equal(sched_pick(&w.s[0]), &w.lanes[0][0][1]);
}

/* A slot is held for one of several that wait, not for one who is alone: when its batch's turn
 * comes late, a newcomer takes it. */
static void a_slot_without_rivals_is_held_for_nobody(void **state)
{
    (void)state;
    init(1000, 1, 0);
    sched_queue(&w.s[0], &w.lanes[0][0][0], 5);
    assert_ptr_equal(sched_pick(&w.s[0]), &w.lanes[0][0][0]);
    assert_null(sched_pick(&w.s[0]));
    sched_release(&w.s[0], &w.lanes[0][0][0]);
    assert_int_equal(w.hosts[0][0].offered, 0);
    sched_queue(&w.s[0], &w.lanes[0][0][4], 1); /* of a higher priority */
    assert_ptr_equal(sched_pick(&w.s[0]), &w.lanes[0][0][4]);
    sched_queue(&w.s[0], &w.lanes[0][0][3], 1);
    assert_null(sched_pick(&w.s[0]));
    sched_release(&w.s[0], &w.lanes[0][0][4]);
    assert_int_equal(w.hosts[0][0].offered, 1);
}

/* A slot of a full host that falls to a batch without a slot of its own goes to the next one. */
static void a_batch_at_its_limit_holds_no_slot_of_a_host(void **state)
{
    (void)state;
    init(1000, 1, 1);
    sched_queue(&w.s[0], &w.lanes[0][0][0], 2);
    sched_queue(&w.s[0], &w.lanes[0][0][1], 2);
    sched_queue(&w.s[0], &w.lanes[0][1][0], 1);
    assert_ptr_equal(sched_pick(&w.s[0]), &w.lanes[0][0][0]);
    assert_null(sched_pick(&w.s[0]));
    /* batch 0 is offered host 0 again only when it has a slot */
    sched_release(&w.s[0], &w.lanes[0][0][0]);
    sched_turn(&w.s[0], w.now, false);
    const struct sched_lane *a = sched_pick(&w.s[0]), *b = sched_pick(&w.s[0]);
    assert_non_null(a);
    assert_non_null(b);
    assert_ptr_not_equal(a->batch, b->batch);
    assert_null(sched_pick(&w.s[0]));
}

/* The freed slots of a shared limit reach a fetcher that holds none, however greedy the first. */
static void a_waiting_fetcher_gets_its_share(void **state)
{
    (void)state;
    init(4, 1000, 0);
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

/* Priorities hold over fetchers too: one has a batch of priority 6, the other one of 4. */
static void a_fetcher_gets_by_the_priorities_of_its_batches(void **state)
{
    (void)state;
    init(20, 1000, 0);
    sched_queue(&w.s[0], &w.lanes[0][0][3], 1000000);
    sched_queue(&w.s[1], &w.lanes[1][0][2], 1000000);
    seed = 1;
    turn(&w, 0);
    turn(&w, 1);
    uint64_t sum[2] = {0, 0};
    for (int i = 0; i < 20000; i++) {
        unsigned f = rnd(20) < w.s[0].in_flight ? 0 : 1;
        assert_true(release_one(&w, f));
        for (unsigned k = f; k < f + 3; k++)
            turn(&w, k % 2);
        for (unsigned k = 0; k < 2; k++)
            sum[k] += w.s[k].in_flight;
    }
    double ratio = (double)sum[0] / (double)sum[1];
    assert_true(ratio > 3.2 && ratio < 4.8);
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

static void rates(void **state)
{
    (void)state;
    struct sched_rate r = sched_rate_of(0);
    assert_int_equal(r.interval_ns, 0);
    r = sched_rate_of(1); /* one in a thousand seconds */
    assert_int_equal(r.interval_ns, 1000000000000);
    assert_int_equal(r.burst, 1);
    r = sched_rate_of(39999);
    assert_int_equal(r.burst, 1);
    r = sched_rate_of(3000000); /* never faster than asked for */
    assert_int_equal(r.interval_ns, 333334);
    assert_int_equal(r.burst, 150);
}

/* A pause ends at its time, to the microsecond; a later, shorter one changes nothing; other hosts
 * go on; a lane that was offered a slot before does not start either. */
static void a_paused_host(void **state)
{
    (void)state;
    init(1, 2, 0);
    struct sched *s = &w.s[0];
    for (int b = 0; b < 3; b++)
        sched_queue(s, &w.lanes[0][0][b], 3);
    struct sched_lane *l = sched_pick(s);
    assert_non_null(l);
    assert_null(sched_pick(s)); /* the global limit: one slot of the host is free */
    sched_pause_host(s, &w.hosts[0][0], w.now + 500);
    sched_pause_host(s, &w.hosts[0][0], w.now + 200);
    sched_release(s, l);
    assert_null(sched_pick(s));
    assert_int_equal(sched_due(s), w.now + 500);
    sched_queue(s, &w.lanes[0][1][0], 1);
    l = sched_pick(s);
    assert_ptr_equal(l, &w.lanes[0][1][0]);
    sched_release(s, l);
    sched_turn(s, w.now + 499, false);
    assert_null(sched_pick(s));
    sched_turn(s, w.now + 500, false);
    assert_non_null(sched_pick(s));
}

/* What is left of a pause or a rate outlives the lanes: the caller is told when to forget. */
static void hosts_and_lanes_are_kept_while_their_past_counts(void **state)
{
    (void)state;
    struct quota global;
    struct sched s;
    struct sched_host h;
    struct sched_batch b;
    struct sched_lane l;
    quota_init(&global, 10);
    sched_init(&s, &global, 0);
    sched_turn(&s, 1000000, false);
    sched_host_init(&h, 4, sched_rate_of(0));
    sched_batch_init(&b, NULL, 0, sched_rate_of(2000), 5);
    sched_lane_init(&l, &h, &b);
    assert_false(sched_lane_keep(&s, &l));
    sched_queue(&s, &l, 1);
    assert_ptr_equal(sched_pick(&s), &l);
    sched_release(&s, &l);
    assert_true(sched_lane_keep(&s, &l));
    assert_int_equal(sched_due(&s), 1500000);
    sched_queue(&s, &l, 1); /* used again meanwhile */
    assert_null(sched_pick(&s));
    sched_turn(&s, 1500000, false);
    assert_ptr_equal(sched_pick(&s), &l);
    sched_release(&s, &l);
    assert_true(sched_lane_keep(&s, &l));
    sched_turn(&s, 1999999, false);
    assert_null(sched_forgotten_lane(&s));
    sched_turn(&s, 2000000, false);
    assert_ptr_equal(sched_forgotten_lane(&s), &l);
    assert_null(sched_forgotten_lane(&s));
    assert_false(sched_lane_keep(&s, &l));

    sched_pause_host(&s, &h, 3000000);
    sched_lane_fini(&s, &l);
    sched_batch_fini(&s, &b);
    assert_true(sched_host_keep(&s, &h));
    sched_turn(&s, 2999999, false);
    assert_null(sched_forgotten_host(&s));
    sched_turn(&s, 3000000, false);
    assert_ptr_equal(sched_forgotten_host(&s), &h);
    assert_false(sched_host_keep(&s, &h));
    assert_int_equal(s.kept, 0);
    sched_host_fini(&s, &h);
    assert_int_equal(sched_due(&s), INT64_MAX);
}

static void a_limit_that_changes(void **state)
{
    (void)state;
    init(100, 4, 0);
    sched_queue(&w.s[0], &w.lanes[0][0][2], 100);
    while (sched_pick(&w.s[0]) != NULL)
        ;
    assert_int_equal(w.s[0].in_flight, 4);
    sched_host_limit(&w.s[0], &w.hosts[0][0], 6);
    while (sched_pick(&w.s[0]) != NULL)
        ;
    assert_int_equal(w.s[0].in_flight, 6);
    sched_host_limit(&w.s[0], &w.hosts[0][0], 1);
    for (int i = 0; i < 6; i++) {
        assert_null(sched_pick(&w.s[0]));
        sched_release(&w.s[0], &w.lanes[0][0][2]);
    }
    assert_non_null(sched_pick(&w.s[0]));
    assert_null(sched_pick(&w.s[0]));
}

static void heaps_sort(void **state)
{
    (void)state;
    enum { N = 3000 };
    static struct heap_node n[N];
    struct heap h = {0};
    memset(n, 0, sizeof(n));
    seed = 7;
    for (int i = 0; i < N; i++)
        heap_add(&h, &n[i], rnd(1000));
    for (int i = 0; i < N; i += 3)
        heap_remove(&h, &n[i]);
    int64_t last = 0;
    int left = 0;
    for (; h.root != NULL; left++) {
        assert_true(h.root->key >= last);
        last = h.root->key;
        heap_remove(&h, h.root);
    }
    assert_int_equal(left, N - N / 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_hosts_and_batches_have_their_turn),
        cmocka_unit_test(a_full_host_blocks_no_other),
        cmocka_unit_test(a_batch_at_its_limit_blocks_no_other_batch),
        cmocka_unit_test(a_batch_at_its_limit_holds_no_slot_of_a_host),
        cmocka_unit_test(a_slot_without_rivals_is_held_for_nobody),
        cmocka_unit_test(a_waiting_fetcher_gets_its_share),
        cmocka_unit_test(a_fetcher_gets_by_the_priorities_of_its_batches),
        cmocka_unit_test(a_single_slot_alternates),
        cmocka_unit_test(rates),
        cmocka_unit_test(a_paused_host),
        cmocka_unit_test(hosts_and_lanes_are_kept_while_their_past_counts),
        cmocka_unit_test(a_limit_that_changes),
        cmocka_unit_test(heaps_sort),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
