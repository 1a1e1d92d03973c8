/* The memory bound: its shares, and what is read of cgroups. */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include <ftw.h>

#include "server/memory.h"

#define MIB ((uint64_t)1 << 20)

static const struct memory_want usual = {.transfers = 18000, .connections = 1024, .fetchers = 2};

static void every_share_fits(void **state)
{
    (void)state;
    for (uint64_t limit = MEMORY_LEAST; limit < (uint64_t)1 << 42; limit += limit / 7) {
        for (uint32_t i = 1; i <= 16; i *= 2) {
            struct memory_want w = {.transfers = 1250 * i, .connections = 700 * i, .fetchers = i};
            struct memory_plan p;
            memory_plan_make(&p, limit, &w);
            assert_true(p.total <= limit);
            assert_true(p.max_transfers >= 16 && p.max_transfers <= w.transfers);
            assert_true((uint64_t)p.max_transfers * MEMORY_TRANSFER <= p.transfers);
            assert_true(p.max_connections >= 16 && p.max_connections <= w.connections);
            assert_true((uint64_t)p.max_connections * (p.connection_bytes + MEMORY_CONNECTION) <=
                        p.connections);
            assert_true(p.connection_bytes >= 16 * 1024 && p.connection_bytes <= 64 * 1024);
            assert_true((uint64_t)p.window_requests * MEMORY_REQUEST <= p.window);
            assert_true((uint64_t)p.window_requests * MEMORY_LANE <= p.window);
            assert_true(p.window_requests >= 256);
            assert_true(p.names_max >= 64 && p.kept_max >= 16);
        }
    }
}

static void much_memory_gives_all_that_is_wanted(void **state)
{
    (void)state;
    struct memory_plan p, q;
    memory_plan_make(&p, 16384 * MIB, &usual);
    assert_int_equal(p.max_transfers, 18000);
    assert_int_equal(p.max_connections, 1024);
    assert_int_equal(p.connection_bytes, 64 * 1024);
    assert_int_equal(p.window_requests, 262144);
    /* and no more: the bound does not grow with the machine */
    memory_plan_make(&q, 1024 * 1024 * MIB, &usual);
    assert_int_equal(p.total, q.total);
    assert_true(p.total < 5000 * MIB);
}

static void more_memory_never_gives_less(void **state)
{
    (void)state;
    struct memory_plan before = {0}, p;
    for (uint64_t limit = MEMORY_LEAST; limit < 64 * 1024 * MIB; limit += 16 * MIB) {
        memory_plan_make(&p, limit, &usual);
        assert_true(p.max_transfers >= before.max_transfers);
        assert_true(p.max_connections >= before.max_connections);
        assert_true(p.connection_bytes >= before.connection_bytes);
        assert_true(p.window_requests >= before.window_requests);
        assert_true(p.bodies >= before.bodies && p.unwritten >= before.unwritten);
        before = p;
    }
}

static void auto_is_half_of_the_tightest(void **state)
{
    (void)state;
    assert_int_equal(memory_auto(1024 * MIB, MEMORY_NONE), 512 * MIB);
    assert_int_equal(memory_auto(1024 * MIB, 300 * MIB), 150 * MIB);
    assert_int_equal(memory_auto(MEMORY_NONE, 300 * MIB), 150 * MIB);
    assert_int_equal(memory_auto(1024 * MIB, 10 * MIB), MEMORY_LEAST);
    assert_int_equal(memory_auto(MEMORY_NONE, MEMORY_NONE), 512 * MIB);
    assert_int_equal(memory_limit(123 * MIB), 123 * MIB);
    assert_true(memory_machine() > 0 && memory_machine() != MEMORY_NONE);
    assert_true(memory_limit(0) >= MEMORY_LEAST && memory_limit(0) <= memory_machine());
}

/* ---- a made-up /proc and /sys ---- */

static char root[64];

static void put(const char *path, const char *text)
{
    char full[PATH_MAX];
    snprintf(full, sizeof(full), "%s/%s", root, path);
    for (char *p = full + strlen(root) + 1; (p = strchr(p, '/')) != NULL; p++) {
        *p = '\0';
        assert_true(mkdir(full, 0700) == 0 || errno == EEXIST);
        *p = '/';
    }
    FILE *f = fopen(full, "w");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    assert_int_equal(fclose(f), 0);
}

static int make_root(void **state)
{
    (void)state;
    snprintf(root, sizeof(root), "/tmp/batchfetch-memory-XXXXXX");
    return mkdtemp(root) != NULL ? 0 : -1;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *at)
{
    (void)st;
    (void)type;
    (void)at;
    return remove(path);
}

static int remove_root(void **state)
{
    (void)state;
    return nftw(root, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

#define V2 "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
#define V1                                                                                 \
    "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n"                                    \
    "33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n" \
    "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"

static void version_2_takes_the_tightest_up_to_the_root(void **state)
{
    (void)state;
    put("proc/self/cgroup", "0::/a.slice/b.service\n");
    put("proc/self/mountinfo", V2);
    assert_int_equal(memory_cgroup(root), MEMORY_NONE);
    put("sys/fs/cgroup/a.slice/b.service/memory.max", "max\n");
    assert_int_equal(memory_cgroup(root), MEMORY_NONE);
    put("sys/fs/cgroup/a.slice/b.service/memory.max", "500000000\n");
    assert_int_equal(memory_cgroup(root), 500000000);
    put("sys/fs/cgroup/a.slice/memory.max", "400000000\n");
    assert_int_equal(memory_cgroup(root), 400000000);
    put("sys/fs/cgroup/a.slice/b.service/memory.high", "300000000\n");
    assert_int_equal(memory_cgroup(root), 300000000);
    put("sys/fs/cgroup/memory.max", "200000000\n");
    assert_int_equal(memory_cgroup(root), 200000000);
    put("sys/fs/cgroup/other/memory.max", "100\n");
    assert_int_equal(memory_cgroup(root), 200000000);
}

static void version_1_takes_the_tightest_up_to_the_root(void **state)
{
    (void)state;
    put("proc/self/cgroup", "9:name=systemd:/\n4:cpu,cpuacct:/x\n3:memory:/a/b\n0::/\n");
    put("proc/self/mountinfo", V1);
    put("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
    put("sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", "9223372036854771712\n");
    put("sys/fs/cgroup/cpu,cpuacct/x/memory.limit_in_bytes", "7\n");
    assert_int_equal(memory_cgroup(root), MEMORY_NONE);
    put("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "300000000\n");
    assert_int_equal(memory_cgroup(root), 300000000);
    put("sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", "200000000\n");
    assert_int_equal(memory_cgroup(root), 200000000);
}

/* Its mount shows its own group as the root; the path may be seen from outside or from inside. */
static void a_container_sees_its_own_group(void **state)
{
    (void)state;
    put("proc/self/cgroup", "5:memory:/docker/abc/inner\n");
    put("proc/self/mountinfo",
        "35 31 0:32 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n");
    put("sys/fs/cgroup/memory/memory.limit_in_bytes", "300000000\n");
    assert_int_equal(memory_cgroup(root), 300000000);
    put("sys/fs/cgroup/memory/inner/memory.limit_in_bytes", "200000000\n");
    assert_int_equal(memory_cgroup(root), 200000000);
    put("proc/self/cgroup", "5:memory:/elsewhere\n");
    assert_int_equal(memory_cgroup(root), 300000000);
}

static void nothing_is_known_without_proc(void **state)
{
    (void)state;
    assert_int_equal(memory_cgroup(root), MEMORY_NONE);
    put("proc/self/cgroup", "what is this\n\n:\n0::/\n");
    put("proc/self/mountinfo", "1 2\n - cgroup2\n");
    assert_int_equal(memory_cgroup(root), MEMORY_NONE);
}

int main(void)
{
#define WITH_ROOT(f) cmocka_unit_test_setup_teardown(f, make_root, remove_root)
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_share_fits),
        cmocka_unit_test(much_memory_gives_all_that_is_wanted),
        cmocka_unit_test(more_memory_never_gives_less),
        cmocka_unit_test(auto_is_half_of_the_tightest),
        WITH_ROOT(version_2_takes_the_tightest_up_to_the_root),
        WITH_ROOT(version_1_takes_the_tightest_up_to_the_root),
        WITH_ROOT(a_container_sees_its_own_group),
        WITH_ROOT(nothing_is_known_without_proc),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
