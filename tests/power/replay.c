/* Usage: power_replay RECORDING FACTS [--cuts N] [--seed S] [--forget SUFFIX] [--scratch DIR]
 *                     [--from EVENT] [--at EVENT --loss KIND] [--compare DIR]
 *
 * Cuts the power N times at events of a recording (record.c), builds the directory as its disk
 * could be then (disk.c), and holds it against what clients were told (check.c). With --at, one
 * cut, whose directory stays. --forget passes over the syncs of files that end so: the test of
 * the test. --compare: the recording must lead to the files that are there. Ends with 1 when a cut
 * broke a promise. */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <ftw.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/power/check.h"
#include "tests/power/disk.h"

enum { SHOWN = 5, GIVE_UP = 200 };

static struct {
    const char *data; /* the recording */
    size_t len;
    const struct event **v;
    size_t n;
    struct fact *facts;
    size_t n_facts;
    const char *forget;
    char scratch[200];
    struct checked sum;
    uint64_t cuts, broken, from;
    uint64_t seed;
} t;

static void load(const char *path)
{
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) != 0 || st.st_size == 0)
        err(2, "%s", path);
    t.len = (size_t)st.st_size;
    t.data = mmap(NULL, t.len, PROT_READ, MAP_PRIVATE, fd, 0);
    if (t.data == MAP_FAILED)
        err(2, "%s", path);
    close(fd);
    size_t cap = 0;
    for (size_t at = 0; at + sizeof(struct event) <= t.len;) {
        static struct event *copies; /* those in the file are not aligned */
        if (t.n == cap) {
            cap = cap * 2 + 1024;
            t.v = realloc(t.v, cap * sizeof(*t.v));
        }
        copies = malloc(sizeof(*copies) + sizeof(char *));
        if (t.v == NULL || copies == NULL)
            err(2, "events");
        memcpy(copies, t.data + at, sizeof(*copies));
        const char *text = t.data + at + sizeof(*copies);
        memcpy(copies + 1, &text, sizeof(text));
        t.v[t.n++] = copies;
        at += sizeof(*copies) + copies->len;
    }
}

static const char *text_of(const struct event *e)
{
    const char *p;
    memcpy(&p, e + 1, sizeof(p));
    return p;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st;
    (void)type;
    return ftw->level == 0 ? 0 : remove(path);
}

static void cut(const struct disk *d, size_t at, enum loss loss)
{
    char why[512], data[256];
    nftw(t.scratch, remove_one, 16, FTW_DEPTH | FTW_PHYS);
    disk_write(d, t.scratch, loss, t.seed + at);
    snprintf(data, sizeof(data), "%s/data", t.scratch);
    t.cuts++;
    alarm(60); /* a start that goes in circles is a fault, too */
    if (check_directory(data, t.facts, t.n_facts, at, &t.sum, why, sizeof(why)))
        return;
    if (t.broken++ < SHOWN)
        printf("cut at event %zu of %zu, loss %d, seed %" PRIu64 ": %s\n", at, t.n, (int)loss,
               t.seed, why);
}

/* Events behind which the disk, or what was told, is another one. */
static bool worth(const struct event *e)
{
    return e->type != EVENT_RECV && e->type != EVENT_SYNC_BEGIN;
}

/* Spread evenly over the recording; each place in another way. */
static void sweep(uint64_t cuts)
{
    size_t places = 1, seen = 0;
    for (size_t i = 0; i < t.n; i++)
        places += i >= t.from && worth(t.v[i]);
    struct disk *d = disk_new();
    uint64_t done = 0; /* the place of cut i is i * places / cuts */
    for (size_t i = 0; i <= t.n && t.broken < GIVE_UP; i++) {
        if (i > 0)
            disk_apply(d, t.v[i - 1], text_of(t.v[i - 1]), t.forget);
        if (i < t.from || (i > t.from && !worth(t.v[i - 1])))
            continue;
        for (; done * places / cuts <= seen && done < cuts && t.broken < GIVE_UP; done++) {
            enum loss loss = disk_unsynced(d) == 0 ? LOSS_ALL : (enum loss)(t.cuts % N_LOSSES);
            cut(d, i, loss);
        }
        seen++;
    }
    disk_free(d);
}

static struct disk *upto(size_t at)
{
    struct disk *d = disk_new();
    for (size_t i = 0; i < at && i < t.n; i++)
        disk_apply(d, t.v[i], text_of(t.v[i]), t.forget);
    return d;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"cuts", 1, NULL, 'c'},    {"seed", 1, NULL, 's'}, {"forget", 1, NULL, 'f'},
        {"scratch", 1, NULL, 'd'}, {"at", 1, NULL, 'a'},   {"loss", 1, NULL, 'l'},
        {"compare", 1, NULL, 'm'}, {"from", 1, NULL, 'r'}, {0},
    };
    uint64_t cuts = 1000, at = UINT64_MAX;
    int c, loss = LOSS_ALL;
    const char *compare = NULL;
    t.seed = 1;
    snprintf(t.scratch, sizeof(t.scratch), "/dev/shm/power.XXXXXX");
    while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (c) {
        case 'c': cuts = strtoull(optarg, NULL, 10); break;
        case 's': t.seed = strtoull(optarg, NULL, 10); break;
        case 'f': t.forget = optarg; break;
        case 'd': snprintf(t.scratch, sizeof(t.scratch), "%s/power.XXXXXX", optarg); break;
        case 'a': at = strtoull(optarg, NULL, 10); break;
        case 'l': loss = (int)strtol(optarg, NULL, 10); break;
        case 'm': compare = optarg; break;
        case 'r': t.from = strtoull(optarg, NULL, 10); break;
        default: return 2;
        }
    }
    if (argc - optind != 2 || cuts == 0 || loss < 0 || loss >= N_LOSSES)
        errx(2, "usage: see the head of replay.c");
    load(argv[optind]);
    t.facts = check_facts(argv[optind + 1], &t.n_facts);
    if (mkdtemp(t.scratch) == NULL)
        err(2, "%s", t.scratch);
    if (compare != NULL) {
        struct disk *d = upto(t.n);
        if (!disk_equals(d, compare, "-shm"))
            errx(2, "the recording has gaps");
        disk_free(d);
    }
    if (at != UINT64_MAX) {
        struct disk *d = upto(at);
        disk_write(d, t.scratch, (enum loss)loss, t.seed + at);
        disk_free(d);
        printf("%s\n", t.scratch);
        return 0;
    }
    sweep(cuts);
    nftw(t.scratch, remove_one, 16, FTW_DEPTH | FTW_PHYS);
    rmdir(t.scratch);
    printf("%" PRIu64 " cuts at %zu events: %" PRIu64 " broke a promise; seen: %" PRIu64
           " batches, %" PRIu64 " results, %" PRIu64 " promises of %zu\n",
           t.cuts, t.n, t.broken, t.sum.batches, t.sum.results, t.sum.facts, t.n_facts);
    return t.broken > 0;
}
