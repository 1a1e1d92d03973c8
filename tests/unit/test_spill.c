/* Bodies in the spill file: what was written is read, and space comes back. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "server/spill.h"

static char dir[64];
static struct spill *file;

static int set_up(void **state)
{
    char why[256] = "";
    (void)state;
    snprintf(dir, sizeof(dir), "/tmp/batchfetch-spill-XXXXXX");
    if (mkdtemp(dir) == NULL)
        return -1;
    return spill_open(&file, dir, why, sizeof(why));
}

static int tear_down(void **state)
{
    (void)state;
    spill_close(file);
    return rmdir(dir); /* the file has no name */
}

static char byte_at(unsigned body, uint64_t at)
{
    return (char)((at * 2654435761U + body * 40503U) >> 11);
}

static void add(struct spilled *b, unsigned body, size_t n)
{
    static char text[300000];
    assert_true(n <= sizeof(text));
    for (size_t i = 0; i < n; i++)
        text[i] = byte_at(body, b->len + i);
    uint64_t before = b->len;
    assert_int_equal(spill_add(b, text, n), 0);
    assert_int_equal(b->len, before + n);
}

static void check(const struct spilled *b, unsigned body, uint64_t from, size_t n)
{
    static char text[300000];
    assert_true(n <= sizeof(text));
    assert_int_equal(spill_read(b, from, text, n), 0);
    for (size_t i = 0; i < n; i++)
        assert_int_equal(text[i], byte_at(body, from + i));
}

static void bodies_that_come_at_once_do_not_mix(void **state)
{
    (void)state;
    enum { BODIES = 40, ROUNDS = 2000 };
    struct spilled b[BODIES];
    unsigned id[BODIES], next = 0;
    uint64_t random = 88172645463325252ULL;
    for (unsigned i = 0; i < BODIES; i++) {
        spill_init(&b[i], file);
        id[i] = next++;
    }
    for (unsigned round = 0; round < ROUNDS; round++) {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        unsigned i = (unsigned)(random % BODIES);
        size_t n = (size_t)(random >> 20) % (round % 3 == 0 ? 150000 : 3000);
        if (b[i].len > 1000000) {
            for (uint64_t at = 0; at < b[i].len; at += 70001) {
                uint64_t left = b[i].len - at;
                check(&b[i], id[i], at, left < 100000 ? (size_t)left : 100000);
            }
            spill_free(&b[i]);
            assert_int_equal(b[i].len, 0);
            id[i] = next++;
        }
        add(&b[i], id[i], n);
    }
    assert_true(next > BODIES + 20); /* pieces were used again */
    char c;
    assert_int_equal(spill_read(&b[0], b[0].len, &c, 1), E_IO);
    assert_int_equal(spill_read(&b[0], UINT64_MAX, &c, 1), E_IO);
    for (unsigned i = 0; i < BODIES; i++)
        spill_free(&b[i]);
}

static void space_is_given_back(void **state)
{
    (void)state;
    enum { BODIES = 200 };
    struct spilled b[BODIES];
    for (unsigned i = 0; i < BODIES; i++) {
        spill_init(&b[i], file);
        for (int k = 0; k < 5; k++)
            add(&b[i], i, 260000);
    }
    uint64_t full = spill_bytes(file);
    assert_true(full >= (uint64_t)BODIES * 1300000);
    /* All but one: holes; used again: no more space than before. */
    for (unsigned i = 1; i < BODIES; i++)
        spill_free(&b[i]);
    assert_true(spill_bytes(file) < 24 << 20);
    check(&b[0], 0, 0, 260000);
    for (unsigned i = 1; i < BODIES; i++)
        for (int k = 0; k < 5; k++)
            add(&b[i], i, 260000);
    assert_int_equal(spill_bytes(file), full);
    for (unsigned i = 0; i < BODIES; i++)
        check(&b[i], i, 1000000, 300000);
    for (unsigned i = 0; i < BODIES; i++)
        spill_free(&b[i]);
    assert_int_equal(spill_bytes(file), 0);
}

/* A disk that is full, as far as the file can tell. */
static void a_failure_leaves_what_was_written(void **state)
{
    (void)state;
    struct spilled b, other;
    struct rlimit was, small = {200000, RLIM_INFINITY};
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &was), 0);
    small.rlim_max = was.rlim_max;
    spill_init(&b, file);
    spill_init(&other, file);
    add(&b, 1, 65536);
    assert_true(signal(SIGXFSZ, SIG_IGN) != SIG_ERR);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    char *text = calloc(1, 200000);
    assert_non_null(text);
    assert_int_equal(spill_add(&b, text, 200000), E_IO);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &was), 0);
    check(&b, 1, 0, 65536);
    uint64_t len = b.len;
    assert_true(len < 265536);
    assert_int_equal(spill_add(&b, text, 1000), 0);
    assert_int_equal(b.len, len + 1000);
    assert_int_equal(spill_read(&b, len, text, 1000), 0);
    add(&other, 2, 100000);
    check(&other, 2, 0, 100000);
    free(text);
    spill_free(&b);
    spill_free(&other);
}

static void a_directory_that_is_not_there_is_an_error(void **state)
{
    (void)state;
    struct spill *s;
    char why[256] = "";
    assert_int_equal(spill_open(&s, "/nonexistent/dir", why, sizeof(why)), E_IO);
    assert_null(s);
    assert_non_null(strstr(why, "/nonexistent/dir"));
}

int main(void)
{
#define WITH_FILE(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        WITH_FILE(bodies_that_come_at_once_do_not_mix),
        WITH_FILE(space_is_given_back),
        WITH_FILE(a_failure_leaves_what_was_written),
        cmocka_unit_test(a_directory_that_is_not_there_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
