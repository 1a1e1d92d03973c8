/* store_check agrees with store_open, and leaves everything as it was. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/unit/store_fixture.h"

/* Names, sizes and times of all that is below the test's directory. */
static struct {
    char text[4096];
    size_t n;
} tree;

static int note(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)type;
    (void)ftw;
    int n = snprintf(tree.text + tree.n, sizeof(tree.text) - tree.n, "%s %ld %lld.%09ld\n", path,
                     (long)st->st_size, (long long)st->st_mtim.tv_sec, st->st_mtim.tv_nsec);
    assert_in_range(n, 1, sizeof(tree.text) - tree.n - 1);
    tree.n += (size_t)n;
    return 0;
}

static void take_stock(void)
{
    tree.n = 0;
    OK(nftw(base, note, 16, FTW_PHYS));
}

static void check_at(const char *path, int expected, const char *text)
{
    char why[256] = "", before[sizeof(tree.text)];
    take_stock();
    memcpy(before, tree.text, tree.n + 1);
    int rc = store_check(path, why, sizeof(why));
    if (rc != expected || strstr(why, text) == NULL || (rc == 0) != (why[0] == '\0'))
        fail_msg("%s: %d: \"%s\", not %d with \"%s\"", path, rc, why, expected, text);
    take_stock();
    assert_string_equal(tree.text, before);
}

static void check(int expected, const char *text)
{
    check_at(dir, expected, text);
}

static void test_directories(void **state)
{
    (void)state;
    char path[5000];
    check(0, ""); /* a/data, and not even a is there */
    check_at(base, 0, "");
    snprintf(path, sizeof(path), "%s/", base);
    check_at(path, 0, "");
    snprintf(path, sizeof(path), "%s/x/", base);
    check_at(path, 0, "");
    OK(chdir(base));
    check_at("x/y", 0, "");
    OK(mkdir("x", 0700));
    check_at("x", 0, "");
    OK(chdir("/"));
    snprintf(path, sizeof(path), "%s/file", base);
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    OK(close(fd));
    check_at(path, E_IO, "Not a directory");
    snprintf(path, sizeof(path), "%s/file/below", base);
    check_at(path, E_IO, "Not a directory");
    memset(path, 'x', sizeof(path) - 1);
    path[sizeof(path) - 1] = '\0';
    check_at(path, E_INVAL, "too long");
}

/* In a child that is not root, which may write anywhere. */
static int check_denied(void)
{
    char why[256] = "", path[128];
    if (geteuid() == 0 && (setegid(65534) != 0 || seteuid(65534) != 0))
        return 1;
    if (store_check(dir, why, sizeof(why)) != E_IO || strstr(why, "Permission denied") == NULL)
        return 2;
    snprintf(path, sizeof(path), "%s/new/data", base);
    if (store_check(path, why, sizeof(why)) != E_IO || strstr(why, "cannot make it in") == NULL)
        return 3;
    return 0;
}

static int check_denied_file(void)
{
    char why[256] = "";
    if (geteuid() == 0 && (setegid(65534) != 0 || seteuid(65534) != 0))
        return 1;
    return store_check(dir, why, sizeof(why)) == E_IO && strstr(why, "batchfetch.db: P") != NULL
               ? 0
               : 2;
}

static void test_denied(void **state)
{
    (void)state;
    store_close(open_store(STORE_WRITE));
    OK(chmod(base, 0555));
    if (geteuid() != 0)
        OK(chmod(dir, 0));
    assert_int_equal(in_child(check_denied), 0);
    char path[128];
    snprintf(path, sizeof(path), "%s/a", base);
    OK(chmod(base, 0755));
    OK(chmod(path, 0755));
    OK(chmod(dir, 0777));
    OK(chmod(file("lock"), 0666));
    OK(chmod(file("batchfetch.db"), geteuid() == 0 ? 0444 : 0400));
    assert_int_equal(in_child(check_denied_file), 0);
}

static void refused(int expected, const char *text)
{
    struct store *s;
    char why[256];
    check(expected, text);
    assert_int_equal(store_open(&s, dir, STORE_WRITE, why, sizeof(why)), expected);
    assert_non_null(strstr(why, text));
}

static void test_databases(void **state)
{
    (void)state;
    struct store *s = open_store(STORE_WRITE);
    OK(store_begin(s, true));
    add_batch(s, 1, BATCH_OPEN, NULL);
    OK(store_commit(s));
    check(0, ""); /* also while it runs */
    store_close(s);
    check(0, "");
    OK(truncate(file("batchfetch.db"), 99));
    check(E_CORRUPT, "not one of batchfetch's");
    OK(unlink(file("batchfetch.db")));
    store_close(open_store(STORE_WRITE));
    change("PRAGMA user_version=1");
    check(0, "");
    change("PRAGMA user_version=1000");
    refused(E_TOONEW, "version 1000");
    change("PRAGMA user_version=-1");
    refused(E_CORRUPT, "not one of batchfetch's");
    change("PRAGMA user_version=1; PRAGMA application_id=7");
    refused(E_CORRUPT, "not one of batchfetch's");
    change("PRAGMA user_version=0; PRAGMA application_id=0");
    refused(E_CORRUPT, "not one of batchfetch's");
    OK(truncate(file("batchfetch.db"), 0)); /* a first start that was cut short */
    check(0, "");
    store_close(open_store(STORE_WRITE));
    check(0, "");
    OK(unlink(file("batchfetch.db")));
    change("PRAGMA journal_mode=WAL"); /* one without tables: as store_open sees it */
    check(0, "");
    store_close(open_store(STORE_WRITE));
    OK(unlink(file("batchfetch.db")));
    change("CREATE TABLE theirs(x)");
    refused(E_CORRUPT, "not one of batchfetch's");
    OK(unlink(file("batchfetch.db")));
    OK(mkdir(file("batchfetch.db"), 0700));
    check(E_IO, "Is a directory");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_directories),
        TEST(test_denied),
        TEST(test_databases),
    };
    return cmocka_run_group_tests_name("store_check", tests, NULL, NULL);
}
