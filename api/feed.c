/* Results as JSON text, step by step. A step is one short read transaction: the write-ahead log
 * must not be held by a slow client. api thread. */
#include "api/feed.h"

#include <stdlib.h>
#include <string.h>

#include "api/cursor.h"
#include "api/view.h"

enum {
    STEP_ROWS = 200,
    STEP_BYTES = 256 * 1024,
    STEP_SCAN = 5000,             /* rows looked at in a step */
    PAGE_BYTES = 8 * 1024 * 1024, /* of a page, about */
    PAGE_EMPTY_STEPS = 10,        /* steps without a match before a page ends short */
    OUT_MAX = 64 * 1024 * 1024,   /* hard bound of text not yet taken */
    LARGE_BODY = 1024 * 1024,
    BODY_PIECE = 3 * 87381, /* a multiple of three (base64), 256 KiB … */
    BODY_SHORT = 3 * 2730,  /* … or 8 KiB */
};

enum { PREFIX, ROWS, CHECK, BODY, SUFFIX };

void feed_init(struct feed *f)
{
    memset(f, 0, sizeof(*f));
    buf_init(&f->out, OUT_MAX);
    buf_init(&f->piece, BODY_PIECE);
    jw_init(&f->w, &f->out);
    f->after = -1;
    f->status = -1;
    f->left = UINT64_MAX;
    f->step_bytes = STEP_BYTES;
}

void feed_fini(struct feed *f)
{
    buf_fini(&f->out);
    buf_fini(&f->piece);
    free(f->custom_id);
    f->custom_id = NULL;
}

bool feed_is_large(const struct feed *f)
{
    return f->in_body && f->body_len > LARGE_BODY;
}

/* A page ends with the result that makes it this long, however the steps fall. */
static bool page_is_full(const struct feed *f)
{
    return f->form == FEED_PAGE && f->written + (f->out.len - f->step_from) >= PAGE_BYTES;
}

static void end_row(struct feed *f)
{
    jw_object_end(&f->w);
    if (f->form == FEED_NDJSON)
        jw_newline(&f->w);
    f->phase = f->form == FEED_SINGLE ? SUFFIX : ROWS;
}

/* store_result_fn */
static int on_row(void *arg, const struct result *r)
{
    struct feed *f = arg;

    view_result(&f->w, f->id, r, f->headers);
    if (f->w.rc != 0)
        return f->w.rc;
    if (f->left != UINT64_MAX)
        f->left--;
    f->empty_steps = 0;
    if (f->body && r->body.ptr) {
        /* The store can't be asked for the body in here: end this step, and go on with it. */
        f->in_body = true;
        f->n = r->n;
        f->body_len = r->body_len;
        f->body_at = 0;
        f->phase = CHECK;
        return 1;
    }
    end_row(f);
    return f->out.len - f->step_from >= f->step_bytes || page_is_full(f);
}

static int rows(struct feed *f)
{
    struct result_query q = {
        .order = f->order,
        .after = f->after,
        .status = f->status,
        .custom_id = {f->custom_id, f->custom_id ? strlen(f->custom_id) : 0},
        .limit = f->left < STEP_ROWS ? (uint32_t)f->left : STEP_ROWS,
        .scan_limit = STEP_SCAN,
    };
    int rc;

    if (f->form == FEED_SINGLE) {
        rc = store_result(f->api->store, f->batch, f->index, on_row, f);
        return rc == 1 ? 0 : rc;
    }
    if (f->left == 0) {
        f->phase = SUFFIX;
        return 0;
    }
    f->empty_steps++;
    rc = store_results(f->api->store, f->batch, &q, on_row, f, &f->after, &f->more);
    if (rc != 0 || f->phase == CHECK)
        return rc;
    if (!f->more)
        f->phase = SUFFIX;
    else if (f->form == FEED_PAGE &&
             (f->left == 0 || page_is_full(f) || f->empty_steps >= PAGE_EMPTY_STEPS))
        f->phase = SUFFIX;
    return 0;
}

/* Reads the next piece of the body. */
static int read_piece(struct feed *f, size_t *got)
{
    uint64_t left = f->body_len - f->body_at;
    size_t most = f->step_bytes < STEP_BYTES ? BODY_SHORT : BODY_PIECE;
    size_t want = left < most ? (size_t)left : most;
    int rc = buf_reserve(&f->piece, most);

    *got = 0;
    if (rc == 0 && want > 0)
        rc = store_body_read(f->api->store, f->batch, f->n, f->body_at, f->piece.data, want, got);
    if (rc == 0 && *got < want)
        rc = E_CORRUPT;
    return rc;
}

/* The length of p[0..n) without a character that is cut off at its end. */
static size_t whole_characters(const char *p, size_t n)
{
    size_t back = 0;

    while (back < 3 && back < n && ((unsigned char)p[n - 1 - back] & 0xc0) == 0x80)
        back++;
    if (back < n) {
        unsigned char lead = (unsigned char)p[n - 1 - back];
        size_t need = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : lead >= 0xc0 ? 2 : 1;

        if (need > back + 1)
            return n - 1 - back;
    }
    return n;
}

static size_t text_length(const struct feed *f, size_t got)
{
    return f->body_at + got < f->body_len ? whole_characters(f->piece.data, got) : got;
}

static void begin_body(struct feed *f, bool is_text)
{
    f->is_text = is_text;
    f->body_at = 0;
    jw_key(&f->w, is_text ? "body" : "body_base64");
    jw_text_begin(&f->w);
    f->phase = BODY;
}

/* Is the body text? Every piece is looked at before the first is written. */
static int check_body(struct feed *f)
{
    size_t got;
    int rc = read_piece(f, &got);

    if (rc != 0)
        return rc;
    got = text_length(f, got);
    if (!utf8_valid(f->piece.data, got)) {
        begin_body(f, false);
        return 0;
    }
    f->body_at += got;
    if (f->body_at == f->body_len)
        begin_body(f, true);
    else if (got == 0)
        return E_CORRUPT;
    return 0;
}

static int write_body(struct feed *f)
{
    size_t got;
    int rc = read_piece(f, &got);

    if (rc != 0)
        return rc;
    if (f->is_text) {
        got = text_length(f, got);
        jw_text_part(&f->w, (struct span){f->piece.data, got}, JW_REPLACE);
    } else {
        jw_base64_part(&f->w, f->piece.data, got);
    }
    f->body_at += got;
    if (f->body_at < f->body_len)
        return 0;
    jw_text_end(&f->w);
    f->in_body = false;
    end_row(f);
    if (page_is_full(f))
        f->phase = SUFFIX;
    return 0;
}

static int suffix(struct feed *f)
{
    struct batch b;
    int rc;
    char next[CURSOR_SIZE];

    if (f->form == FEED_PAGE) {
        jw_array_end(&f->w);
        jw_key(&f->w, "next");
        if (f->after >= 0) {
            cursor_format(next, (enum cursor_kind)f->order, f->batch, f->after);
            jw_str(&f->w, next);
        } else {
            jw_null(&f->w);
        }
        jw_key(&f->w, "has_more");
        jw_bool(&f->w, f->more);
        jw_object_end(&f->w);
    } else if (f->form == FEED_NDJSON) {
        /* The end of the rows must be the end of the results, not of a batch just deleted. */
        rc = store_find(f->api->store, f->id, &b);
        if (rc != 0)
            return rc;
        batch_fini(&b);
    }
    f->done = true;
    return 0;
}

int feed_step(struct feed *f)
{
    int rc = 0;

    f->step_from = f->out.len;

    switch (f->phase) {
    case PREFIX:
        if (f->form == FEED_PAGE) {
            jw_object(&f->w);
            jw_key(&f->w, "object");
            jw_str(&f->w, "list");
            jw_key(&f->w, "data");
            jw_array(&f->w);
        }
        f->phase = ROWS;
        break;
    case ROWS: rc = rows(f); break;
    case CHECK: rc = check_body(f); break;
    case BODY: rc = write_body(f); break;
    default: rc = suffix(f); break;
    }
    if (rc == 0)
        rc = f->w.rc;
    f->written += f->out.len - f->step_from;
    return rc;
}
