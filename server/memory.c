/* The memory bound and its shares; see memory.h. */
#include "server/memory.h"

#include <inttypes.h>
#include <limits.h>
#ifdef HAVE_MIMALLOC
#include <mimalloc.h>
#endif
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define KIB ((uint64_t)1024)
#define MIB (1024 * KIB)

enum {
    FIXED_MIB = 26,   /* measured: 15 MiB at rest, 8 MiB of SQLite's caches */
    SPARES_PART = 32, /* of the limit, for handles that are kept for the next transfers */
    SPARES_MOST = 512,
    SLACK_PART = 8,       /* of the limit */
    POOL_MOST = 64,       /* KiB of an API connection … */
    POOL_LEAST = 16,      /* … and the least that takes a usual request's header */
    WINDOW_MOST = 262144, /* requests */
    UPLOADS_MOST = 1024,
    UPLOAD_LEAST = 12 * 1024, /* of one that stands still */
    NAMES_MOST = 65536,
    KEPT_MOST = 50000,
    LINE_MAX_BYTES = 4096,
};

/* ---- shares ---- */

static uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static uint64_t share(uint64_t all, unsigned percent, uint64_t most)
{
    return least(all / 100 * percent, most);
}

/* They get smaller before they get fewer, and when very many are wanted, other things get less. */
static void share_connections(struct memory_plan *p, uint64_t all, const struct memory_want *w)
{
    const uint64_t largest = POOL_MOST * KIB + MEMORY_CONNECTION;
    const uint64_t smallest = POOL_LEAST * KIB + MEMORY_CONNECTION;
    uint64_t usual = share(all, 15, w->connections * largest);
    uint64_t many = share(all, 40, w->connections * smallest);
    p->connections = usual > many ? usual : many;
    uint64_t each = p->connections / (w->connections > 0 ? w->connections : 1) / KIB * KIB;
    each = each < smallest ? smallest : each > largest ? largest : each;
    p->connection_bytes = (uint32_t)(each - MEMORY_CONNECTION);
    p->max_connections = (uint32_t)least(w->connections, p->connections / each);
}

void memory_plan_make(struct memory_plan *p, uint64_t limit, const struct memory_want *w)
{
    ASSERT(limit >= MEMORY_LEAST && w->fetchers > 0);
    *p = (struct memory_plan){.limit = limit};
    p->slack = least(limit / SLACK_PART, 512 * MIB);
    p->fixed = FIXED_MIB * MIB +
               least(limit / SPARES_PART, (uint64_t)w->fetchers * SPARES_MOST * MEMORY_TRANSFER);
    uint64_t all = limit - p->slack - p->fixed;

    share_connections(p, all, w);
    all -= p->connections;
    p->transfers = share(all, 34, (uint64_t)w->transfers * (MEMORY_TRANSFER + MEMORY_TLS));
    p->bodies = share(all, 13, 256 * MIB);
    p->window = share(all, 15, (uint64_t)WINDOW_MOST * MEMORY_REQUEST);
    p->batches = share(all, 12, 1024 * MIB);
    p->unwritten = share(all, 7, 64 * MIB);
    p->answers = share(all, 5, 128 * MIB);
    p->uploads = share(all, 10, 256 * MIB);
    p->names = share(all, 2, (uint64_t)NAMES_MOST * MEMORY_NAME * w->fetchers);
    p->kept = share(all, 2, (uint64_t)KEPT_MOST * MEMORY_KEPT * w->fetchers);
    p->total = p->fixed + p->slack + p->transfers + p->bodies + p->window + p->batches +
               p->unwritten + p->connections + p->answers + p->uploads + p->names + p->kept;
    ASSERT(p->total <= limit);

    p->max_transfers = (uint32_t)least(w->transfers, p->transfers / MEMORY_TRANSFER);
    p->window_requests = (uint32_t)least(p->window / MEMORY_REQUEST, WINDOW_MOST);
    p->names_max = (uint32_t)least(p->names / w->fetchers / MEMORY_NAME, NAMES_MOST);
    p->kept_max = (uint32_t)least(p->kept / w->fetchers / MEMORY_KEPT, KEPT_MOST);
    uint64_t spares = limit / SPARES_PART / w->fetchers / MEMORY_TRANSFER;
    p->spares_max = (uint32_t)least(spares, SPARES_MOST);
    p->max_uploads = (uint32_t)least(p->uploads / UPLOAD_LEAST, UPLOADS_MOST);
    /* It is there as a line, as values, as a record, in a page and in SQLite. */
    p->element_max = (uint32_t)least(p->uploads / 6 / KIB * KIB, 8 * MIB);
    p->unread = least(p->answers / 4, 16 * MIB);
}

static double mib(uint64_t n)
{
    return (double)n / (double)MIB;
}

void memory_plan_text(const struct memory_plan *p, char *out, size_t size)
{
    snprintf(out, size,
             "memory: at most %.1f MiB of %.1f MiB: program %.1f, transfers %.1f (%u at once), "
             "bodies %.1f, queued requests %.1f (%u at once), batches %.1f, unwritten results "
             "%.1f, API connections %.1f (%u, %u KiB each), answers %.1f, uploads %.1f, names "
             "and hosts %.1f, slack %.1f",
             mib(p->total), mib(p->limit), mib(p->fixed), mib(p->transfers), p->max_transfers,
             mib(p->bodies), mib(p->window), p->window_requests, mib(p->batches), mib(p->unwritten),
             mib(p->connections), p->max_connections, p->connection_bytes / 1024, mib(p->answers),
             mib(p->uploads), mib(p->names + p->kept), mib(p->slack));
}

/* ---- the system ---- */

void memory_give_back(void)
{
#ifdef HAVE_MIMALLOC /* the sanitizers' allocators have nothing of the kind */
    mi_collect(true);
#endif
}

uint64_t memory_auto(uint64_t machine, uint64_t cgroup)
{
    uint64_t n = least(machine, cgroup);
    n = n == MEMORY_NONE ? 512 * MIB : n / 2;
    return n < MEMORY_LEAST ? MEMORY_LEAST : n;
}

uint64_t memory_machine(void)
{
    long pages = sysconf(_SC_PHYS_PAGES), bytes = sysconf(_SC_PAGESIZE);
    return pages > 0 && bytes > 0 ? (uint64_t)pages * (uint64_t)bytes : MEMORY_NONE;
}

uint64_t memory_limit(uint64_t option)
{
    return option != 0 ? option : memory_auto(memory_machine(), memory_cgroup(""));
}

/* "max", or a number; version 1 has one near 2^63 for none. */
static uint64_t read_limit(const char *dir, const char *file)
{
    char path[PATH_MAX], text[32] = "";
    if (snprintf(path, sizeof(path), "%s/%s", dir, file) >= (int)sizeof(path))
        return MEMORY_NONE;
    FILE *f = fopen(path, "re");
    if (f == NULL)
        return MEMORY_NONE;
    char *line = fgets(text, sizeof(text), f);
    fclose(f);
    if (line == NULL || text[0] < '0' || text[0] > '9')
        return MEMORY_NONE;
    uint64_t n = strtoull(text, NULL, 10);
    return n >= (uint64_t)INT64_MAX / 2 ? MEMORY_NONE : n;
}

/* From the group at mount + path up to the mount: the tightest. */
static uint64_t walk_up(const char *mount, char *path, bool v2)
{
    uint64_t n = MEMORY_NONE;
    char dir[PATH_MAX];
    for (;;) {
        if (snprintf(dir, sizeof(dir), "%s%s", mount, path) < (int)sizeof(dir)) {
            n = least(n, read_limit(dir, v2 ? "memory.max" : "memory.limit_in_bytes"));
            if (v2)
                n = least(n, read_limit(dir, "memory.high"));
        }
        char *slash = strrchr(path, '/');
        if (slash == NULL)
            return n;
        *slash = '\0';
    }
}

static bool listed(const char *list, const char *word)
{
    size_t n = strlen(word);
    for (const char *p = list; p != NULL; p = strchr(p, ',')) {
        p += *p == ',';
        if (strncmp(p, word, n) == 0 && (p[n] == ',' || p[n] == '\0' || p[n] == '\n'))
            return true;
    }
    return false;
}

/* The process's path in the hierarchy; see cgroups(7), /proc/PID/cgroup: "4:memory:/a/b", or
 * "0::/a/b" of version 2. */
static bool find_path(const char *root, bool v2, char *out, size_t size)
{
    char name[PATH_MAX], line[LINE_MAX_BYTES];
    snprintf(name, sizeof(name), "%s/proc/self/cgroup", root);
    FILE *f = fopen(name, "re");
    bool found = false;
    while (f != NULL && !found && fgets(line, sizeof(line), f) != NULL) {
        char *controllers = strchr(line, ':');
        char *path = controllers != NULL ? strchr(controllers + 1, ':') : NULL;
        if (path == NULL)
            continue;
        *path++ = '\0';
        controllers++;
        path[strcspn(path, "\n")] = '\0';
        found = v2 ? controllers[0] == '\0' : listed(controllers, "memory");
        if (found)
            snprintf(out, size, "%s", strcmp(path, "/") == 0 ? "" : path);
    }
    if (f != NULL)
        fclose(f);
    return found;
}

/* A line of /proc/self/mountinfo (proc(5)): "36 35 98:0 /root /mount options … - type source
 * super-options". */
static bool is_mount(char *line, bool v2, char **group, char **mount)
{
    char *words[5], *save = NULL;
    char *rest = strstr(line, " - ");
    if (rest == NULL)
        return false;
    *rest = '\0';
    rest += 3;
    for (size_t i = 0; i < ARRAY_LEN(words); i++) {
        words[i] = strtok_r(i == 0 ? line : NULL, " ", &save);
        if (words[i] == NULL)
            return false;
    }
    *group = words[3];
    *mount = words[4];
    if (v2)
        return strncmp(rest, "cgroup2 ", 8) == 0;
    char *options = strrchr(rest, ' ');
    return strncmp(rest, "cgroup ", 7) == 0 && options != NULL && listed(options + 1, "memory");
}

static uint64_t of_version(const char *root, bool v2)
{
    char name[PATH_MAX], path[PATH_MAX], dir[PATH_MAX], line[LINE_MAX_BYTES];
    uint64_t n = MEMORY_NONE;
    if (!find_path(root, v2, path, sizeof(path)))
        return n;
    snprintf(name, sizeof(name), "%s/proc/self/mountinfo", root);
    FILE *f = fopen(name, "re");
    while (f != NULL && fgets(line, sizeof(line), f) != NULL) {
        char *group, *mount, *below = path;
        if (!is_mount(line, v2, &group, &mount))
            continue;
        /* A container sees a part of the hierarchy: what is above the mount is not there. */
        size_t len = strcmp(group, "/") == 0 ? 0 : strlen(group);
        if (strncmp(path, group, len) == 0 && (path[len] == '/' || path[len] == '\0'))
            below = path + len;
        else if (len > 0)
            below = path + strlen(path);
        if (snprintf(dir, sizeof(dir), "%s%s", root, mount) < (int)sizeof(dir))
            n = least(n, walk_up(dir, below, v2));
        break;
    }
    if (f != NULL)
        fclose(f);
    return n;
}

uint64_t memory_cgroup(const char *root)
{
    return least(of_version(root, false), of_version(root, true));
}
