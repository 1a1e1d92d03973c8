/* Usage: power_damage DIRECTORY OTHER [--step BYTES] [--flips N] [--seed S]
 *
 * Damages copies of a data directory with a log (as a loss of power left it), and opens each with
 * the storage code: the log cut at every 512 bytes of its last 64 KiB, N random bytes flipped in
 * the database and the log, holes of zeros, no index or a foreign one, the log of another
 * database (OTHER's), a directory that cannot be written to. Each must open with whole batches, or
 * say what is wrong; a crash or more than 20 s are faults, and so are wrong rows, but for bytes
 * flipped within a value of the database itself, which SQLite has no checksum for: counted. */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/power/check.h"

enum outcome { OPENED, REFUSED, UNREADABLE, UNNOTICED, WRONG, CRASHED, N_OUTCOMES };
static const char *const names[] = {"opened, whole", "refused", "opened, damage reported",
                                    "not noticed",   "WRONG",   "CRASHED"};

static char scratch[64] = "/dev/shm/damage.XXXXXX";
static struct {
    char *p;
    size_t len;
} db, wal, foreign;
static unsigned count[N_OUTCOMES];
static uint64_t seed = 1;
static char *shared; /* the child's word */

static uint64_t next_random(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed >> 11;
}

static char *load(const char *dir, const char *name, size_t *len)
{
    char path[512];
    struct stat st;
    snprintf(path, sizeof(path), "%s/%s", dir, name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) != 0)
        err(2, "%s", path);
    *len = (size_t)st.st_size;
    char *p = malloc(*len + 1);
    if (p == NULL || read(fd, p, *len) != (ssize_t)*len)
        err(2, "%s", path);
    close(fd);
    return p;
}

static void put(const char *name, const char *p, size_t len)
{
    char path[256];
    snprintf(path, sizeof(path), "%s/%s", scratch, name);
    (void)unlink(path);
    if (p == NULL)
        return;
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0 || write(fd, p, len) != (ssize_t)len)
        err(2, "%s", path);
    close(fd);
}

/* `mine`: the damage is in the database's own file. */
static enum outcome classify(bool good, const char *why, bool mine)
{
    if (good)
        return OPENED;
    if (strncmp(why, "it does not open", 16) == 0)
        return strstr(why, "damaged") != NULL || strstr(why, "not one of batchfetch's") != NULL ||
                       strstr(why, "use a newer program") != NULL || strstr(why, scratch) != NULL
                   ? REFUSED
                   : WRONG;
    if (!mine)
        return WRONG;
    return strstr(why, "malformed") != NULL || strstr(why, "(11)") != NULL ? UNREADABLE : UNNOTICED;
}

static void look(const char *what, size_t at, bool mine)
{
    fflush(stdout);
    shared[0] = '\0';
    pid_t pid = fork();
    if (pid < 0)
        err(2, "fork");
    if (pid == 0) {
        struct checked sum = {0};
        alarm(20);
        bool good = check_directory(scratch, NULL, 0, 0, &sum, shared, 512);
        _exit(good ? 0 : 1);
    }
    int status;
    if (waitpid(pid, &status, 0) != pid)
        err(2, "waitpid");
    enum outcome o = WIFEXITED(status) ? classify(WEXITSTATUS(status) == 0, shared, mine) : CRASHED;
    count[o]++;
    if (o >= WRONG)
        printf("%s at %zu: %s: %s\n", what, at, names[o], shared);
}

static void lay_out(void)
{
    put("batchfetch.db", db.p, db.len);
    put("batchfetch.db-wal", wal.p, wal.len);
    put("batchfetch.db-shm", NULL, 0);
}

static void report(const char *what)
{
    printf("%s:", what);
    for (unsigned i = 0; i < N_OUTCOMES; i++) {
        if (count[i] > 0)
            printf(" %s %u;", names[i], count[i]);
    }
    printf("\n");
    static unsigned bad;
    bad += count[WRONG] + count[CRASHED];
    memset(count, 0, sizeof(count));
    if (what[0] == '\0')
        exit(bad > 0);
}

static void cuts(size_t step)
{
    size_t from = wal.len > 65536 ? wal.len - 65536 : 0;
    for (size_t at = from; at < wal.len; at += step) {
        lay_out();
        put("batchfetch.db-wal", wal.p, at);
        look("the log cut", at, false);
    }
    report("the log cut");
}

static void flips(unsigned n)
{
    for (int mine = 0; mine < 2; mine++) {
        char *p = mine ? db.p : wal.p;
        size_t len = mine ? db.len : wal.len;
        for (unsigned i = 0; i < n / 2; i++) {
            size_t at = next_random() % len;
            char was = p[at];
            p[at] = (char)(was ^ (1 << next_random() % 8));
            lay_out();
            p[at] = was;
            look(mine ? "a byte of the database" : "a byte of the log", at, mine);
        }
        report(mine ? "a byte of the database flipped" : "a byte of the log flipped");
    }
}

static void holes(unsigned n)
{
    for (int mine = 0; mine < 2; mine++) {
        char *p = mine ? db.p : wal.p, *keep = malloc(4096);
        size_t len = mine ? db.len : wal.len;
        for (unsigned i = 0; i < n && keep != NULL; i++) {
            size_t at = next_random() % (len / 4096) * 4096;
            memcpy(keep, p + at, 4096);
            memset(p + at, 0, 4096);
            lay_out();
            memcpy(p + at, keep, 4096);
            look("zeros", at, mine);
        }
        free(keep);
        report(mine ? "4 KiB of zeros in the database" : "4 KiB of zeros in the log");
    }
}

static void others(void)
{
    char junk[65536];
    for (size_t i = 0; i < sizeof(junk); i++)
        junk[i] = (char)next_random();
    lay_out(); /* no index */
    look("as it was", 0, false);
    lay_out();
    put("batchfetch.db-shm", junk, sizeof(junk));
    look("junk for an index", 0, false);
    lay_out();
    put("batchfetch.db-shm", junk, 100);
    look("a short index", 0, false);
    lay_out();
    put("batchfetch.db-wal", junk, sizeof(junk));
    look("junk for a log", 0, true);
    put("batchfetch.db-wal", NULL, 0);
    put("batchfetch.db", db.p, db.len / 2);
    look("half a database", 0, true);
    lay_out();
    put("batchfetch.db", db.p, 0);
    put("batchfetch.db-wal", NULL, 0);
    look("an empty database", 0, true);
    report("the index, the log, half of it");
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"step", 1, NULL, 'p'}, {"flips", 1, NULL, 'f'}, {"seed", 1, NULL, 's'}, {0}};
    size_t step = 512;
    unsigned n = 1000;
    int c;
    while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (c) {
        case 'p': step = strtoul(optarg, NULL, 10); break;
        case 'f': n = (unsigned)strtoul(optarg, NULL, 10); break;
        case 's': seed = strtoull(optarg, NULL, 10) * 2 + 1; break;
        default: return 2;
        }
    }
    if (argc - optind != 2 || step == 0)
        errx(2, "usage: see the head of damage.c");
    db.p = load(argv[optind], "batchfetch.db", &db.len);
    wal.p = load(argv[optind], "batchfetch.db-wal", &wal.len);
    foreign.p = load(argv[optind + 1], "batchfetch.db-wal", &foreign.len);
    shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED || mkdtemp(scratch) == NULL)
        err(2, "%s", scratch);
    printf("%zu bytes of database, %zu of log\n", db.len, wal.len);
    others();
    cuts(step);
    flips(n);
    holes(n / 20 + 1);
    lay_out();
    put("batchfetch.db-wal", foreign.p, foreign.len);
    look("another's log", 0, true);
    report("the log of another database");
    static const char *const files[] = {"batchfetch.db", "batchfetch.db-wal", "batchfetch.db-shm",
                                        "lock"};
    for (size_t i = 0; i < sizeof(files) / sizeof(files[0]); i++)
        put(files[i], NULL, 0);
    rmdir(scratch);
    report("");
}
