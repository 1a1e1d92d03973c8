#define _GNU_SOURCE
#include "tests/power/check.h"

#include <err.h>
#include <errno.h>
#include <inttypes.h>
#include <sqlite3.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/item.h"
#include "storage/store.h"

enum { REQUESTS_MAX = 100000, BODY_MAX = 4 * 1024 * 1024, BATCHES_MAX = 4096 };

struct looker {
    struct store *s;
    struct checked *sum;
    char *why;
    size_t why_size;
    struct batch batches[BATCHES_MAX];
    size_t n;
    const struct batch *b; /* the one being looked at */
    uint8_t in_pages[REQUESTS_MAX], in_results[REQUESTS_MAX];
    int64_t completed_ms[REQUESTS_MAX];
    uint64_t last_n, count[3];
};

static bool wrong(struct looker *k, const char *format, ...) __attribute__((format(printf, 2, 3)));
static bool wrong(struct looker *k, const char *format, ...)
{
    va_list ap;
    va_start(ap, format);
    /* NOLINTNEXTLINE(clang-analyzer-valist.Uninitialized): clang-tidy 14 loses sight of va_start */
    vsnprintf(k->why, k->why_size, format, ap);
    va_end(ap);
    return false;
}

struct fact *check_facts(const char *path, size_t *n)
{
    static const char *const kinds[] = {"accepted", "cancelled", "deleted",
                                        "paused",   "ended",     "read"};
    FILE *f = fopen(path, "r");
    if (f == NULL)
        err(2, "%s", path);
    struct fact *v = NULL, x;
    char kind[16];
    *n = 0;
    /* NOLINTNEXTLINE(cert-err34-c): made by facts.py a moment ago */
    while (fscanf(f, "%" SCNu64 " %" SCNu64 " %15s %39s %" SCNd64 " %" SCNd64, &x.from, &x.until,
                  kind, x.id, &x.a, &x.b) == 6) {
        unsigned i = 0;
        while (i < sizeof(kinds) / sizeof(kinds[0]) && strcmp(kinds[i], kind) != 0)
            i++;
        if (i == sizeof(kinds) / sizeof(kinds[0]))
            errx(2, "%s: a fact of kind %s", path, kind);
        x.kind = i;
        v = realloc(v, (*n + 1) * sizeof(*v));
        if (v == NULL)
            err(2, "facts");
        v[(*n)++] = x;
    }
    if (!feof(f))
        errx(2, "%s: fact %zu cannot be read", path, *n);
    fclose(f);
    return v;
}

/* The URL of request `index`: its size, and its token for the body. */
static bool url_fits(struct looker *k, struct span url, uint64_t index, size_t *size,
                     char token[128])
{
    char end[128], *text = strndup(url.ptr, url.len);
    snprintf(end, sizeof(end), "?t=%s-%" PRIu64, k->b->name, index);
    const char *at = text != NULL ? strstr(text, "/bytes/") : NULL;
    bool fits = at != NULL && url.len > strlen(end) &&
                strcmp(text + url.len - strlen(end), end) == 0;
    if (fits) {
        *size = (size_t)strtoul(at + 7, NULL, 10);
        snprintf(token, 128, "%s", end + 3);
    } else {
        wrong(k, "batch %s: request %" PRIu64 " has the URL %.100s", k->b->name, index,
              text != NULL ? text : "");
    }
    free(text);
    return fits;
}

static bool look_at_page(struct looker *k, uint64_t lane, uint32_t no, uint32_t count)
{
    struct page p;
    int rc = store_lane_page(k->s, k->b->no, lane, (int64_t)no - 1, &p);
    if (rc != 0 || p.no != no || p.count != count)
        return wrong(k, "batch %s: page %u: %d %s", k->b->name, no, rc, store_error(k->s));
    size_t pos = 0;
    uint32_t n = 0;
    for (; pos < p.len; n++) {
        struct item it;
        size_t size;
        char token[128];
        if (item_decode(p.data, p.len, &pos, &it) != 0 || it.index >= k->b->total)
            return wrong(k, "batch %s: page %u cannot be decoded", k->b->name, no);
        if (k->in_pages[it.index]++)
            return wrong(k, "batch %s: request %" PRIu64 " is twice in its pages", k->b->name,
                         it.index);
        if (!url_fits(k, it.url, it.index, &size, token))
            return false;
    }
    return n == count || wrong(k, "batch %s: page %u holds %u of %u", k->b->name, no, n, count);
}

static bool look_at_pages(struct looker *k)
{
    struct page heads[64];
    int64_t after = -1;
    uint32_t pages = 0;
    for (size_t n = 64; n == 64;) {
        int rc = store_page_heads(k->s, k->b->no, after, heads, 64, &n);
        if (rc != 0)
            return wrong(k, "batch %s: heads: %d %s", k->b->name, rc, store_error(k->s));
        for (size_t i = 0; i < n; i++, pages++) {
            if (!look_at_page(k, heads[i].lane, heads[i].no, heads[i].count))
                return false;
            after = heads[i].no;
        }
    }
    if (pages != k->b->pages)
        return wrong(k, "batch %s has %u pages of %u", k->b->name, pages, k->b->pages);
    for (uint64_t i = 0; i < k->b->total; i++) {
        if (!k->in_pages[i])
            return wrong(k, "batch %s: request %" PRIu64 " is lost", k->b->name, i);
    }
    return true;
}

static bool body_fits(struct looker *k, const struct result *r, size_t size, const char *token)
{
    static char body[BODY_MAX];
    size_t got, unit = strlen(token) + 1;
    uint64_t n = r->n;
    if (size > BODY_MAX || r->body_len != size)
        return wrong(k, "batch %s: result %" PRIu64 ": %" PRIu64 " of %zu bytes", k->b->name,
                     r->index, r->body_len, size);
    if (size == 0)
        return true;
    int rc = store_body_read(k->s, k->b->no, n, 0, body, size, &got);
    if (rc != 0 || got != size)
        return wrong(k, "batch %s: body of %s: %d, %zu of %zu bytes", k->b->name, token, rc, got,
                     size);
    for (size_t i = 0; i < size; i++) {
        if (body[i] != (i % unit == unit - 1 ? '|' : token[i % unit]))
            return wrong(k, "batch %s: body of %s is wrong at %zu", k->b->name, token, i);
    }
    return true;
}

static int on_result(void *arg, const struct result *r)
{
    struct looker *k = arg;
    size_t size;
    char token[128];
    if (r->n <= k->last_n || r->index >= k->b->total || r->status > RESULT_CANCELLED)
        return wrong(k, "batch %s: result %" PRIu64 " after %" PRIu64 ", index %" PRIu64,
                     k->b->name, r->n, k->last_n, r->index)
                   ? 0
                   : E_CORRUPT;
    k->last_n = r->n;
    k->count[r->status]++;
    k->completed_ms[r->index] = r->completed_ms;
    k->sum->results++;
    if (k->in_results[r->index]++) {
        (void)wrong(k, "batch %s: request %" PRIu64 " has two results", k->b->name, r->index);
        return E_CORRUPT;
    }
    if (!url_fits(k, r->url, r->index, &size, token))
        return E_CORRUPT;
    if (r->status == RESULT_SUCCEEDED && (r->http_status != 200 || !body_fits(k, r, size, token)))
        return E_CORRUPT;
    return 0;
}

static bool look_at_results(struct looker *k)
{
    struct result_query q = {.after = -1, .status = -1, .limit = 100000, .scan_limit = 100000};
    int64_t next;
    bool more;
    const struct batch *b = k->b;
    k->last_n = 0;
    memset(k->count, 0, sizeof(k->count));
    int rc = store_results(k->s, b->no, &q, on_result, k, &next, &more);
    if (rc != 0 || more)
        return k->why[0] == '\0'
                   ? wrong(k, "batch %s: results: %d %s", b->name, rc, store_error(k->s))
                   : false;
    uint64_t n = k->count[0] + k->count[1] + k->count[2];
    bool ended = b->state == BATCH_COMPLETED || b->state == BATCH_CANCELLED;
    if (ended != (n == b->total))
        return wrong(k, "batch %s in state %d has %" PRIu64 " results of %" PRIu64, b->name,
                     (int)b->state, n, b->total);
    if (ended &&
        (b->succeeded != k->count[RESULT_SUCCEEDED] || b->failed != k->count[RESULT_FAILED] ||
         b->cancelled != k->count[RESULT_CANCELLED]))
        return wrong(k, "batch %s: its counts are not those of its results", b->name);
    return true;
}

/* ---- facts ---- */

static bool fact_holds(struct looker *k, const struct fact *f)
{
    const struct batch *b = k->b;
    switch (f->kind) {
    case FACT_ACCEPTED:
        return b->total == (uint64_t)f->a ||
               wrong(k, "%s was accepted with %" PRId64 " requests", b->name, f->a);
    case FACT_CANCELLED:
        return b->state == BATCH_CANCELLING || b->state == BATCH_CANCELLED ||
               b->state == BATCH_COMPLETED || wrong(k, "%s was cancelled", b->name);
    case FACT_PAUSED:
        return b->state == BATCH_PAUSED || b->state == BATCH_COMPLETED ||
               b->state == BATCH_CANCELLED || wrong(k, "%s was paused", b->name);
    case FACT_ENDED:
        return ((b->state == BATCH_COMPLETED || b->state == BATCH_CANCELLED) &&
                b->succeeded == (uint64_t)f->a && b->failed == (uint64_t)f->b) ||
               wrong(k, "%s was shown as ended, and is in state %d", b->name, (int)b->state);
    case FACT_READ:
        return (k->in_results[f->a] && k->completed_ms[f->a] == f->b) ||
               wrong(k, "%s: result %" PRId64 " was read, and %s", b->name, f->a,
                     k->in_results[f->a] ? "is another now" : "is gone");
    default: return wrong(k, "%s was deleted", b->name);
    }
}

static bool facts_hold(struct looker *k, const struct fact *facts, size_t n, uint64_t cut)
{
    for (size_t i = 0; i < n; i++) {
        const struct fact *f = &facts[i];
        if (f->from >= cut || f->until < cut || strcmp(f->id, k->b->id) != 0)
            continue;
        k->sum->facts++;
        if (!fact_holds(k, f))
            return false;
    }
    return true;
}

static bool none_lost(struct looker *k, const struct fact *facts, size_t n, uint64_t cut)
{
    for (size_t i = 0; i < n; i++) {
        const struct fact *f = &facts[i];
        if (f->kind != FACT_ACCEPTED || f->from >= cut || f->until < cut)
            continue;
        size_t j = 0;
        while (j < k->n && strcmp(k->batches[j].id, f->id) != 0)
            j++;
        if (j == k->n)
            return wrong(k, "batch %s was answered with 202 and is lost", f->id);
    }
    return true;
}

/* ---- the whole ---- */

static int on_batch(void *arg, const struct batch *b)
{
    struct looker *k = arg;
    if (k->n == BATCHES_MAX)
        return E_LIMIT;
    return batch_copy(&k->batches[k->n++], b);
}

static bool look_at_batches(struct looker *k, const struct fact *facts, size_t n, uint64_t cut)
{
    int rc = store_list(k->s, 0, 0, BATCHES_MAX, on_batch, k);
    if (rc != 0)
        return wrong(k, "listing: %d %s", rc, store_error(k->s));
    for (size_t i = 0; i < k->n; i++) {
        const struct batch *b = k->b = &k->batches[i];
        const char *x = b->name != NULL ? strrchr(b->name, 'x') : NULL;
        k->sum->batches++;
        if (x == NULL || strtoull(x + 1, NULL, 10) != b->total || b->total > REQUESTS_MAX)
            return wrong(k, "batch %s has %" PRIu64 " requests", b->name ? b->name : b->id,
                         b->total);
        memset(k->in_pages, 0, b->total);
        memset(k->in_results, 0, b->total);
        if (!look_at_pages(k) || !look_at_results(k) || !facts_hold(k, facts, n, cut))
            return false;
    }
    return none_lost(k, facts, n, cut);
}

/* What storage does not show: SQLite's own check, and rows that belong to nothing. */
static bool sound(struct looker *k, const char *dir)
{
    static const char *const questions[] = {
        "SELECT group_concat(integrity_check) FROM pragma_integrity_check "
        "WHERE integrity_check<>'ok'",
        "SELECT 'bodies without results: '||count(*) FROM body WHERE id NOT IN "
        "(SELECT id FROM result) HAVING count(*)>0",
        "SELECT 'bodies are missing: '||count(*) FROM result WHERE body_len>0 AND id NOT IN "
        "(SELECT id FROM body) HAVING count(*)>0",
        "SELECT 'rows of no batch' WHERE EXISTS (SELECT 1 FROM page WHERE id>>32 NOT IN (SELECT no "
        "FROM batch)) OR EXISTS (SELECT 1 FROM result WHERE id>>32 NOT IN (SELECT no FROM batch)) "
        "OR EXISTS (SELECT 1 FROM attempt WHERE id>>32 NOT IN (SELECT no FROM batch))",
    };
    char path[512];
    sqlite3 *db;
    bool good = true;
    snprintf(path, sizeof(path), "%s/batchfetch.db", dir);
    if (sqlite3_open_v2(path, &db, SQLITE_OPEN_READONLY, NULL) != SQLITE_OK)
        errx(2, "%s", path);
    sqlite3_db_config(db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, NULL);
    for (size_t i = 0; good && i < sizeof(questions) / sizeof(questions[0]); i++) {
        sqlite3_stmt *q;
        int code = sqlite3_prepare_v2(db, questions[i], -1, &q, NULL);
        if (code == SQLITE_OK)
            code = sqlite3_step(q);
        if (code == SQLITE_ROW && sqlite3_column_type(q, 0) != SQLITE_NULL)
            good = wrong(k, "%s", (const char *)sqlite3_column_text(q, 0));
        else if (code != SQLITE_DONE && code != SQLITE_ROW)
            good = wrong(k, "check %zu: %s", i, sqlite3_errmsg(db));
        sqlite3_finalize(q);
    }
    sqlite3_close(db);
    return good;
}

/* It goes on: a write, synced, and another check out. */
static bool writes(struct looker *k)
{
    struct batch b = {.no = 2000000000, .state = BATCH_STAGING};
    bool done = false;
    snprintf(b.id, sizeof(b.id), "check");
    int rc = store_begin(k->s, true);
    if (rc == 0)
        rc = store_add_batch(k->s, &b);
    if (rc == 0)
        rc = store_remove_step(k->s, b.no, 100, 1 << 20, &done);
    if (rc == 0)
        rc = store_commit(k->s);
    return (rc == 0 && done) || wrong(k, "writing afterwards: %d %s", rc, store_error(k->s));
}

bool check_directory(const char *dir, const struct fact *facts, size_t n, uint64_t cut,
                     struct checked *sum, char *why, size_t why_size)
{
    static struct looker k;
    char text[256] = "";
    memset(&k, 0, offsetof(struct looker, in_pages));
    k.sum = sum;
    k.why = why;
    k.why_size = why_size;
    why[0] = '\0';
    int rc = store_open(&k.s, dir, STORE_WRITE, text, sizeof(text));
    if (rc != 0)
        return wrong(&k, "it does not open: %d %s", rc, text);
    bool good = look_at_batches(&k, facts, n, cut) && sound(&k, dir) && writes(&k);
    for (size_t i = 0; i < k.n; i++)
        batch_fini(&k.batches[i]);
    store_close(k.s);
    return good;
}
