/* Which pages of a batch go to the fetchers, and when. Runs on the keeper.
 *
 * Pages are gone through in the order of their numbers until a window of requests is out; a page
 * of a lane not seen yet opens that lane and goes to the lane's fetcher. Further pages of an open
 * lane are sent when its fetcher asks (feeder_want), by the lane's own cursor; the scan passes
 * them over, since a bit for each page says that it has been sent. So a slow host holds at most
 * its first page and what its fetcher asked for, however many of its requests are queued. */
#include <stdlib.h>
#include <string.h>

#include "server/budget.h"
#include "server/fetch.h"
#include "server/pause.h"
#include "server/waiting.h"

enum {
    HEADS = 64, /* page heads read ahead */
    FIRST_SLOTS = 8,
    WANT_MAX = 8192,
};

struct lane_slot {
    uint64_t lane;
    int64_t last; /* the last page sent; the slot is free while used is false */
    bool used;
};

/* Open lanes, by open addressing with linear probing; removal shifts back. */
struct page_map {
    uint8_t *sent; /* a bit for each page */
    int64_t scan;  /* pages up to this one have been scanned */
    bool scanned;  /* all of them */
    bool plain;    /* feeder_plain */
    struct head {
        uint64_t lane;
        uint32_t no;
    } * heads; /* of HEADS; NULL before the first, and when all are scanned */
    size_t n_heads, head;
    struct lane_slot *slots;
    size_t cap, used;
};

static size_t slot_at(const struct page_map *f, uint64_t lane)
{
    size_t i = (size_t)(lane * 0x9e3779b97f4a7c15ULL >> 20) & (f->cap - 1);
    while (f->slots[i].used && f->slots[i].lane != lane)
        i = (i + 1) & (f->cap - 1);
    return i;
}

static struct lane_slot *lane_find(const struct page_map *f, uint64_t lane)
{
    struct lane_slot *s = &f->slots[slot_at(f, lane)];
    return s->used ? s : NULL;
}

static void lane_add(struct page_map *f, uint64_t lane, int64_t last)
{
    if (f->used * 2 >= f->cap) {
        struct lane_slot *old = f->slots;
        size_t n = f->cap;
        f->cap *= 2;
        f->slots = xcalloc(f->cap, sizeof(*f->slots));
        for (size_t i = 0; i < n; i++) {
            if (old[i].used)
                f->slots[slot_at(f, old[i].lane)] = old[i];
        }
        free(old);
    }
    f->slots[slot_at(f, lane)] = (struct lane_slot){.lane = lane, .last = last, .used = true};
    f->used++;
}

static void lane_remove(struct page_map *f, uint64_t lane)
{
    size_t i = slot_at(f, lane);
    if (!f->slots[i].used)
        return;
    f->slots[i].used = false;
    f->used--;
    for (size_t j = (i + 1) & (f->cap - 1); f->slots[j].used; j = (j + 1) & (f->cap - 1)) {
        struct lane_slot s = f->slots[j];
        f->slots[j].used = false;
        f->slots[slot_at(f, s.lane)] = s;
    }
}

int feeder_open(struct engine *e, struct live *l)
{
    (void)e;
    struct page_map *f = xcalloc(1, sizeof(*f));
    f->sent = xcalloc(l->b.pages / 8 + 1, 1);
    f->scan = -1;
    f->cap = FIRST_SLOTS;
    f->slots = xcalloc(f->cap, sizeof(*f->slots));
    l->feed = f;
    if (l->damaged)
        feeder_plain(l);
    return 0;
}

void feeder_close(struct live *l)
{
    if (l->feed == NULL)
        return;
    free(l->feed->sent);
    free(l->feed->heads);
    free(l->feed->slots);
    free(l->feed);
    l->feed = NULL;
}

static bool page_sent(const struct page_map *f, uint32_t no)
{
    return (f->sent[no / 8] >> (no % 8)) & 1;
}

/* Copies the records of requests that are still to be begun: after a restart, or a pause, others of
 * the page have their result, wait for another attempt, or are under way. */
static int copy_pending(struct live *l, const struct page *p, struct msg_page *m)
{
    size_t pos = 0;
    uint32_t n = 0;
    while (pos < p->len) {
        size_t from = pos;
        struct item it;
        int rc = item_decode(p->data, p->len, &pos, &it);
        if (rc != 0 || it.index >= l->b.total)
            return E_CORRUPT;
        n++;
        if (!l->recovered)
            continue;
        if (((l->done_bits[it.index / 8] >> (it.index % 8)) & 1) || waiting_has(l, it.index) ||
            pause_flies(l, it.index))
            continue;
        memcpy(m->data + m->len, (const char *)p->data + from, pos - from);
        m->len += pos - from;
        m->count++;
    }
    if (n != p->count)
        return E_CORRUPT;
    if (!l->recovered) { /* all of them */
        memcpy(m->data, p->data, p->len);
        m->len = p->len;
        m->count = n;
    }
    return 0;
}

/* Sends one page, with the word whether it is its lane's last. *n: requests sent. */
static int send_page(struct engine *e, struct live *l, const struct page *p, bool ask, bool *last,
                     uint32_t *n)
{
    uint32_t no = p->no;
    struct msg_page *m = xcalloc(1, sizeof(*m) + p->len);
    m->m.type = FETCH_PAGE;
    m->lane = p->lane;
    m->no = no;
    m->ask = ask;
    int rc = copy_pending(l, p, m);
    if (rc != 0)
        goto out;
    struct page next; /* from here on p is no longer valid */
    rc = l->feed->plain ? E_NOTFOUND
                        : store_lane_page(e->store, l->b.no, m->lane, (int64_t)no, &next);
    if (rc != 0 && rc != E_NOTFOUND)
        goto out;
    *last = m->last = rc == E_NOTFOUND;
    rc = 0;

    l->feed->sent[no / 8] |= (uint8_t)(1U << (no % 8));
    *n = m->count;
    if (m->count > 0) {
        budget_sent(e, l, m->count);
        live_ref(l);
        m->live = l;
        budget_send_page(e, m);
        m = NULL;
    }
out:
    free(m);
    return rc;
}

/* Opens a lane with its page `head`. When nothing of that page is pending (after a restart), the
 * scan opens the lane at its next page. */
static int open_lane(struct engine *e, struct live *l, const struct head *head)
{
    uint64_t lane = head->lane;
    uint32_t no = head->no, n = 0;
    bool last = true;
    struct page p;
    int rc = store_lane_page(e->store, l->b.no, lane, (int64_t)no - 1, &p);
    if (rc == 0)
        rc = send_page(e, l, &p, true, &last, &n);
    if (rc == 0 && n > 0 && !last)
        lane_add(l->feed, lane, no);
    return rc;
}

static int read_heads(struct engine *e, struct live *l)
{
    struct page_map *f = l->feed;
    struct page pages[HEADS];
    f->head = f->n_heads = 0;
    size_t n;
    int rc = store_page_heads(e->store, l->b.no, f->scan, pages, HEADS, &n);
    if (rc != 0)
        return rc;
    if (n == 0) {
        f->scanned = true;
        free(f->heads);
        f->heads = NULL;
        return 0;
    }
    if (f->heads == NULL)
        f->heads = xcalloc(n, sizeof(*f->heads)); /* the first are the most */
    for (size_t i = 0; i < n; i++)
        f->heads[i] = (struct head){.lane = pages[i].lane, .no = pages[i].no};
    f->n_heads = n;
    f->scan = pages[n - 1].no;
    return 0;
}

void feeder_plain(struct live *l)
{
    struct page_map *f = l->feed;
    if (f == NULL || f->plain)
        return;
    f->plain = true;
    f->scanned = l->no_defaults;
    f->scan = -1;
    f->head = f->n_heads = 0;
    memset(f->slots, 0, f->cap * sizeof(*f->slots));
    f->used = 0;
}

bool feeder_over(const struct live *l)
{
    return l->feed == NULL || (l->feed->scanned && l->feed->used == 0);
}

static int scan_plain(struct engine *e, struct live *l, uint64_t n_live)
{
    struct page_map *f = l->feed;
    while (!f->scanned && l->outstanding < budget_window(e, n_live) && !budget_full(e)) {
        uint32_t no = (uint32_t)(f->scan + 1), n;
        bool last = true;
        struct page p = {0};
        if (no >= l->b.pages) {
            f->scanned = true;
            break;
        }
        int rc = page_sent(f, no) ? 0 : store_page(e->store, l->b.no, no, &p);
        if (rc == 0 && !page_sent(f, no))
            rc = send_page(e, l, &p, false, &last, &n);
        if (rc != 0 && rc != E_CORRUPT && rc != E_NOTFOUND)
            return rc;
        f->scan = no;
    }
    return 0;
}

int feeder_scan(struct engine *e, struct live *l, uint64_t n_live)
{
    struct page_map *f = l->feed;
    if (f->plain)
        return scan_plain(e, l, n_live);
    while (!f->scanned && l->outstanding < budget_window(e, n_live) && !budget_full(e)) {
        if (f->head == f->n_heads) {
            int rc = read_heads(e, l);
            if (rc != 0)
                return rc;
            continue;
        }
        const struct head *p = &f->heads[f->head++];
        if (p->no >= l->b.pages)
            return E_CORRUPT;
        if (page_sent(f, p->no) || lane_find(f, p->lane) != NULL)
            continue;
        int rc = open_lane(e, l, p);
        if (rc != 0) {
            f->head--; /* again, later */
            return rc;
        }
    }
    return 0;
}

int feeder_want(struct engine *e, struct live *l, uint64_t lane, uint32_t want)
{
    struct page_map *f = l->feed;
    struct lane_slot *s = lane_find(f, lane);
    uint32_t sent = 0;
    if (want > WANT_MAX)
        want = WANT_MAX;
    bool told = false; /* the fetcher has an answer that says how the lane stands */
    while (s != NULL && sent < want) {
        struct page p;
        bool last = false;
        uint32_t n = 0;
        int rc = store_lane_page(e->store, l->b.no, lane, s->last, &p);
        int64_t no = p.no;
        if (rc == 0)
            rc = send_page(e, l, &p, sent + p.count >= want, &last, &n);
        if (rc != 0)
            return rc;
        s->last = no;
        sent += n;
        told = n > 0;
        if (last) {
            lane_remove(f, lane);
            s = NULL;
        }
    }
    if (!told) {
        /* Nothing was left of it, or it ended with pages that were done before a restart. */
        struct msg_page *m = xcalloc(1, sizeof(*m));
        m->m.type = FETCH_PAGE;
        m->lane = lane;
        m->last = s == NULL;
        live_ref(l);
        m->live = l;
        fetcher_put(engine_fetcher(e, lane), &m->m);
    }
    return 0;
}
