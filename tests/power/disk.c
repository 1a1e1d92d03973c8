/* See disk.h. Names and files are apart, as on a disk: a file that was synced is still missing if
 * the directory that names it was not. The order of changes to directories is kept (journals of
 * file systems keep it), the order of writes is not. */
#define _GNU_SOURCE
#include "tests/power/disk.h"

#include <err.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { SECTOR = 512, NAMES = 32 };

struct bytes {
    char *p;
    size_t len, cap;
};

struct change {
    bool size; /* ftruncate to `at`; else a write of `text` there */
    uint64_t at;
    uint32_t len;
    const char *text;
};

/* A file, known by its inode; the number of one that is gone may come again. */
struct file {
    struct file *next;
    uint64_t ino;
    struct bytes synced;
    struct change *v; /* not synced */
    size_t n, cap;
    char name[64]; /* the last path that it had */
};

/* A directory's entries; `file` NULL: a directory. */
struct names {
    struct name {
        char path[192];
        struct file *file;
    } v[NAMES];
    size_t n;
};

struct dir_change {
    enum event_type type; /* CREATE, UNLINK, RENAME or MKDIR */
    const char *path, *to;
    struct file *file;
};

struct disk {
    struct file *files;
    struct names now, synced;
    struct dir_change *v; /* not synced */
    size_t n, cap;
};

static void *need(void *p)
{
    if (p == NULL)
        err(2, "memory");
    return p;
}

static uint64_t next_random(uint64_t *s)
{
    *s ^= *s << 13;
    *s ^= *s >> 7;
    *s ^= *s << 17;
    return *s >> 11;
}

static void set_size(struct bytes *b, size_t len)
{
    if (len > b->cap) {
        b->cap = len * 2;
        b->p = need(realloc(b->p, b->cap));
    }
    if (len > b->len)
        memset(b->p + b->len, 0, len - b->len);
    b->len = len;
}

static void write_part(struct bytes *b, const struct change *c, size_t from, size_t to)
{
    if (b->len < c->at + to)
        set_size(b, c->at + to);
    memcpy(b->p + c->at + from, c->text + from, to - from);
}

static void change(struct bytes *b, const struct change *c)
{
    if (c->size)
        set_size(b, c->at);
    else
        write_part(b, c, 0, c->len);
}

/* Each sector that the write touches comes or not. */
static void change_sectors(struct bytes *b, const struct change *c, uint64_t *seed)
{
    for (size_t from = 0; from < c->len;) {
        size_t to = ((c->at + from) / SECTOR + 1) * SECTOR - c->at;
        to = to < c->len ? to : c->len;
        if (next_random(seed) & 1)
            write_part(b, c, from, to);
        from = to;
    }
}

/* ---- names ---- */

static struct name *name_find(struct names *t, const char *path)
{
    for (size_t i = 0; i < t->n; i++) {
        if (strcmp(t->v[i].path, path) == 0)
            return &t->v[i];
    }
    return NULL;
}

static void name_remove(struct names *t, const char *path)
{
    struct name *p = name_find(t, path);
    if (p != NULL)
        *p = t->v[--t->n];
}

static void name_add(struct names *t, const char *path, struct file *file)
{
    name_remove(t, path);
    if (t->n == NAMES || strlen(path) >= sizeof(t->v[0].path))
        errx(2, "more names than expected: %s", path);
    snprintf(t->v[t->n].path, sizeof(t->v[0].path), "%s", path);
    t->v[t->n++].file = file;
}

static void rename_in(struct names *t, const struct dir_change *c)
{
    switch (c->type) {
    case EVENT_CREATE:
    case EVENT_MKDIR: name_add(t, c->path, c->file); break;
    case EVENT_UNLINK: name_remove(t, c->path); break;
    default: name_remove(t, c->path); name_add(t, c->to, c->file);
    }
}

/* The directory that the change is in; "" the recorded one. */
static bool is_in(const struct dir_change *c, const char *dir)
{
    const char *slash = strrchr(c->path, '/');
    size_t n = slash != NULL ? (size_t)(slash - c->path) : 0;
    return strlen(dir) == n && memcmp(dir, c->path, n) == 0;
}

/* ---- the recording ---- */

struct disk *disk_new(void)
{
    return need(calloc(1, sizeof(struct disk)));
}

void disk_free(struct disk *d)
{
    for (struct file *f = d->files, *next; f != NULL; f = next) {
        next = f->next;
        free(f->synced.p);
        free(f->v);
        free(f);
    }
    free(d->v);
    free(d);
}

static struct file *file_of(struct disk *d, uint64_t ino)
{
    for (struct file *f = d->files; f != NULL; f = f->next) {
        if (f->ino == ino)
            return f;
    }
    errx(2, "a change to a file that is not known: start with an empty directory");
}

static void add_dir_change(struct disk *d, struct dir_change c)
{
    if (d->n == d->cap) {
        d->cap = d->cap * 2 + 16;
        d->v = need(realloc(d->v, d->cap * sizeof(*d->v)));
    }
    d->v[d->n++] = c;
    rename_in(&d->now, &c);
}

static void create(struct disk *d, const struct event *e, const char *text)
{
    struct dir_change c = {.type = (enum event_type)e->type, .path = need(strndup(text, e->len))};
    if (e->type == EVENT_RENAME)
        c.to = text + strlen(text) + 1;
    if (e->type == EVENT_CREATE) {
        struct file *f = c.file = need(calloc(1, sizeof(*f)));
        f->ino = e->ino;
        snprintf(f->name, sizeof(f->name), "%s", c.path);
        f->next = d->files; /* found before one that had the number earlier */
        d->files = f;
    } else if (e->type == EVENT_RENAME) {
        struct name *p = name_find(&d->now, c.path);
        c.file = p != NULL ? p->file : NULL;
    }
    add_dir_change(d, c);
}

static void add_change(struct file *f, struct change c)
{
    if (f->n == f->cap) {
        f->cap = f->cap * 2 + 16;
        f->v = need(realloc(f->v, f->cap * sizeof(*f->v)));
    }
    f->v[f->n++] = c;
}

static void sync_file(struct file *f)
{
    for (size_t i = 0; i < f->n; i++)
        change(&f->synced, &f->v[i]);
    f->n = 0;
}

/* In order, so an entry of another directory that came before goes along: harmless, and rare. */
static void sync_dir(struct disk *d, const char *dir)
{
    size_t left = 0;
    for (size_t i = 0; i < d->n; i++) {
        if (is_in(&d->v[i], dir))
            rename_in(&d->synced, &d->v[i]);
        else
            d->v[left++] = d->v[i];
    }
    d->n = left;
}

static bool ends_in(const char *s, const char *end)
{
    return end != NULL && strlen(s) >= strlen(end) && strcmp(s + strlen(s) - strlen(end), end) == 0;
}

void disk_apply(struct disk *d, const struct event *e, const char *text, const char *forget)
{
    struct file *f;
    char dir[PATH_MAX];
    switch ((enum event_type)e->type) {
    case EVENT_CREATE:
    case EVENT_UNLINK:
    case EVENT_RENAME:
    case EVENT_MKDIR: create(d, e, text); break;
    case EVENT_WRITE:
        add_change(file_of(d, e->ino), (struct change){.at = e->at, .len = e->len, .text = text});
        break;
    case EVENT_SIZE: add_change(file_of(d, e->ino), (struct change){true, e->at, 0, NULL}); break;
    case EVENT_SYNC_END:
        snprintf(dir, sizeof(dir), "%.*s", (int)e->len, text);
        if (e->at == 1 && !ends_in("data", forget)) {
            sync_dir(d, dir);
        } else if (e->at != 1) {
            f = file_of(d, e->ino);
            if (!ends_in(f->name, forget))
                sync_file(f);
        }
        break;
    case EVENT_SYNC_FAILED: /* the kernel holds it for written: no later sync brings it back */
        f = file_of(d, e->ino);
        f->n = 0;
        break;
    default: break;
    }
}

size_t disk_unsynced(const struct disk *d)
{
    size_t n = d->n;
    for (const struct file *f = d->files; f != NULL; f = f->next)
        n += f->n;
    return n;
}

/* ---- a cut ---- */

static void choose(const struct file *f, struct bytes *b, enum loss loss, uint64_t *seed)
{
    set_size(b, 0);
    set_size(b, f->synced.len);
    if (b->len > 0)
        memcpy(b->p, f->synced.p, b->len);
    size_t torn = f->n > 0 ? next_random(seed) % f->n : 0;
    uint64_t share = next_random(seed) % 256;
    for (size_t i = 0; i < f->n && loss != LOSS_ALL; i++) {
        if (loss == LOSS_TORN && i > torn)
            break;
        if (loss == LOSS_NONE || (loss == LOSS_TORN && i < torn))
            change(b, &f->v[i]);
        else if (loss == LOSS_SOME || f->v[i].size) {
            if (next_random(seed) % 256 < share)
                change(b, &f->v[i]);
        } else
            change_sectors(b, &f->v[i], seed);
    }
}

static void put_file(const char *path, const struct bytes *b)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        err(2, "%s", path);
    for (size_t at = 0; at < b->len;) {
        ssize_t n = write(fd, b->p + at, b->len - at);
        if (n <= 0)
            err(2, "%s", path);
        at += (size_t)n;
    }
    close(fd);
}

void disk_write(const struct disk *d, const char *dir, enum loss loss, uint64_t seed)
{
    static struct bytes b;
    char path[PATH_MAX];
    struct names t = d->synced;
    uint64_t s = seed * 0x9e3779b97f4a7c15ULL + 0x1234567;
    size_t kept = loss == LOSS_ALL ? 0 : loss == LOSS_NONE ? d->n : next_random(&s) % (d->n + 1);
    for (size_t i = 0; i < kept; i++)
        rename_in(&t, &d->v[i]);
    for (size_t i = 0; i < t.n; i++) { /* a directory's parent was made before it */
        snprintf(path, sizeof(path), "%s/%s", dir, t.v[i].path);
        if (t.v[i].file == NULL && mkdir(path, 0700) != 0)
            err(2, "%s", path);
    }
    for (size_t i = 0; i < t.n; i++) {
        const char *slash = strrchr(t.v[i].path, '/');
        snprintf(path, sizeof(path), "%.*s", slash ? (int)(slash - t.v[i].path) : 0, t.v[i].path);
        if (t.v[i].file == NULL ||
            ends_in(t.v[i].path, "-shm") || /* nobody trusts it after a boot */
            (slash != NULL && name_find(&t, path) == NULL))
            continue;
        choose(t.v[i].file, &b, loss, &s);
        snprintf(path, sizeof(path), "%s/%s", dir, t.v[i].path);
        put_file(path, &b);
    }
}

bool disk_equals(const struct disk *d, const char *dir, const char *but)
{
    struct bytes b = {0};
    char path[PATH_MAX];
    uint64_t s = 1;
    bool same = true;
    for (size_t i = 0; i < d->now.n; i++) {
        const struct name *p = &d->now.v[i];
        if (p->file == NULL || ends_in(p->path, but))
            continue;
        choose(p->file, &b, LOSS_NONE, &s);
        snprintf(path, sizeof(path), "%s/%s", dir, p->path);
        FILE *f = fopen(path, "rb");
        char *got = need(malloc(b.len + 2));
        size_t n = f != NULL ? fread(got, 1, b.len + 1, f) : SIZE_MAX;
        if (n != b.len || memcmp(got, b.p, n) != 0) {
            warnx("%s is not as the recording says: %zu bytes, %zu recorded", path, n, b.len);
            same = false;
        }
        free(got);
        if (f != NULL)
            fclose(f);
    }
    free(b.p);
    return same;
}
