/* From a lane that may start something to a transfer that libcurl runs: the record is decoded, the
 * name resolved, the address judged, the easy handle set up. Runs on the fetcher's thread. */
#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>

#include "server/budget.h"
#include "server/fetch_int.h"
#include "server/metrics.h"

enum { RECORD_SMALL = 4 * 1024 };

static void reset_response(struct transfer *t)
{
    t->status = t->version = 0;
    t->heads = t->lines = 0;
    t->field_bytes = 0;
    buf_reset(&t->fields_in);
    buf_reset(&t->location);
    body_drop(t);
    t->retry_after_ms = -1;
    t->location_cut = t->too_many_hops = t->has_length = t->connected = t->resumes = false;
    t->is_h2 = t->lost = t->ends_by_close = false;
    t->fd = -1;
    t->broken = NULL;
    t->undecodable = NULL;
    t->coded_len = 0;
    t->decoded = t->pending_lost = false;
    t->head_ended = t->follow = t->hop_cut = t->too_large = t->too_many_fields = false;
    t->no_descriptor = t->space_refused = t->truncated = false;
    t->no_space = 0;
    t->blocked_by = NULL;
    t->remote_ip[0] = '\0';
    t->error[0] = '\0';
}

void start_undo(struct transfer *t)
{
    if (t->state == TRANSFER_RESOLVING)
        start_unwait(t);
    if (t->state == TRANSFER_JOINING)
        h2_unjoin(t);
    if (t->shard != NULL && t->offers_h2)
        h2_left(t);
    multi_remove(t);
    if (t->uses_tls)
        atomic_fetch_sub(&t->f->e->tls_running, 1);
    t->uses_tls = false;
    coded_drop(t);
    if (t->easy != NULL)
        easy_give(t->f, t->easy);
    t->easy = NULL;
    curl_slist_free_all(t->fields);
    t->fields = NULL;
    curl_slist_free_all(t->resolve);
    t->resolve = NULL;
    if (t->state == TRANSFER_RUNNING)
        t->state = TRANSFER_IDLE;
}

static void charge_resolving(struct transfer *t)
{
    t->timing[TIMING_DNS] += (uint64_t)(t->f->now - t->resolve_us);
    t->active_us += t->f->now - t->resolve_us;
}

static void run_now(struct transfer *t)
{
    struct fetcher *f = t->f;
    int rc = E_NOMEM;
    t->offers_h2 = h2_offered(t);
    struct shard *s = multi_shard(f, t->lane->host, t->offers_h2);
    t->easy = easy_take(f);
    t->uses_tls = t->url.https;
    if (t->uses_tls)
        atomic_fetch_add(&f->e->tls_running, 1);
    if (t->easy != NULL)
        rc = easy_tell_address(t, s);
    if (rc == 0)
        rc = easy_set_up(t);
    if (rc == 0)
        rc = multi_add(t, s);
    if (rc != 0) {
        end_with(t, (struct verdict){OUTCOME_INTERNAL, "out of memory", true});
        return;
    }
    t->state = TRANSFER_RUNNING;
    h2_started(t);
}

/* When a wait that is part of connecting has to be over. */
static int64_t wait_limit(const struct transfer *t)
{
    int64_t left = easy_timeout_us(t) - t->active_us;
    int64_t connect = easy_connect_timeout_us(t) - (t->f->now - t->resolve_us);
    return t->f->now + (left < connect ? left : connect);
}

static void run(struct transfer *t)
{
    charge_resolving(t);
    if (h2_join(t))
        timer_set(t, wait_limit(t));
    else
        run_now(t);
}

/* ---- names ---- */

void start_use_address(struct host *h, size_t i)
{
    h->cur = i;
    h->ip[0] = '\0';
    if (++h->addr_gen == 0)
        h->addr_gen = 1;
}

static const char *judge(const struct fetcher *f, const struct dns_addr *a)
{
    struct sockaddr_in v4 = {.sin_family = AF_INET};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6};
    if (a->family == AF_INET) {
        memcpy(&v4.sin_addr, a->addr, 4);
        return guard_check(&f->e->guard, (const struct sockaddr *)&v4);
    }
    memcpy(&v6.sin6_addr, a->addr, 16);
    return guard_check(&f->e->guard, (const struct sockaddr *)&v6);
}

/* Keeps what may be connected to. The address in use stays in use while it is still among them:
 * its connections are warm. */
static void take_answer(struct fetcher *f, struct host *h, const struct dns_answer *a)
{
    struct dns_addr used = {0};
    if (h->n_addr > 0)
        used = h->addr[h->cur];
    size_t n = 0, cur = 0;
    const char *rule = NULL;
    for (size_t i = 0; i < a->n; i++) {
        const char *denied = judge(f, &a->addr[i]);
        if (denied != NULL) {
            rule = denied;
            continue;
        }
        if (memcmp(&a->addr[i], &used, sizeof(used)) == 0)
            cur = n;
        h->addr[n++] = a->addr[i];
    }
    h->n_addr = n;
    h->cur = cur;
    if (n == 0 || h->addr_gen == 0 || memcmp(&h->addr[cur], &used, sizeof(used)) != 0)
        start_use_address(h, cur);
    h->blocked_by = rule;
    h->state = n > 0 ? HOST_RESOLVED : HOST_BLOCKED;
    h->expires_us = a->expires_us;
}

static void blocked(struct transfer *t, const char *rule)
{
    t->blocked_by = rule;
    end_with(t, (struct verdict){OUTCOME_BLOCKED_ADDRESS, NULL, false});
}

static void resolved(struct transfer *t, struct host *h, const struct dns_answer *failure)
{
    if (failure != NULL) {
        charge_resolving(t);
        end_with(t, (struct verdict){OUTCOME_DNS, failure->error, failure->rc != E_NOTFOUND});
    } else if (h->state == HOST_BLOCKED) {
        blocked(t, h->blocked_by);
    } else if (t->parted) { /* in line for slots again */
        charge_resolving(t);
        start_release(t);
        t->named = true;
        t->ready_us = t->f->now;
        transfer_send(t);
    } else {
        t->addr_gen = h->addr_gen;
        run(t);
    }
}

void start_joined(struct transfer *t)
{
    struct host *h = t->lane->host;
    t->timing[TIMING_CONNECT] += (uint64_t)(t->f->now - t->join_us);
    t->active_us += t->f->now - t->join_us;
    if (t->addr_gen != 0 && h->state == HOST_BLOCKED) {
        blocked(t, h->blocked_by);
        return;
    }
    if (t->addr_gen != 0) /* the host may have moved on meanwhile */
        t->addr_gen = h->addr_gen;
    run_now(t);
}

void start_unwait(struct transfer *t)
{
    struct host *h = t->lane->host;
    if (t->list_prev != NULL)
        t->list_prev->list_next = t->list_next;
    else
        h->wait_head = t->list_next;
    if (t->list_next != NULL)
        t->list_next->list_prev = t->list_prev;
    else
        h->wait_tail = t->list_prev;
    t->list_prev = t->list_next = NULL;
    t->state = TRANSFER_IDLE;
    timer_set(t, INT64_MAX);
}

static int64_t part_at(const struct transfer *t)
{
    bool may = !t->parted && t->f->n_parted < NAME_WAITS_MAX;
    return may ? t->resolve_us + NAME_SLOT_US : INT64_MAX;
}

/* When its name has to be there. */
static int64_t name_limit(const struct transfer *t)
{
    int64_t left = easy_timeout_us(t) - t->active_us, connect = easy_connect_timeout_us(t);
    return t->resolve_us + (left < connect ? left : connect);
}

static void set_wait(struct transfer *t)
{
    int64_t limit = name_limit(t), part = part_at(t);
    timer_set(t, part < limit ? part : limit);
}

bool start_parts(struct transfer *t)
{
    struct fetcher *f = t->f;
    if (name_limit(t) <= f->now)
        return false;
    if (part_at(t) <= f->now) { /* else too many others have parted since it began to wait */
        sched_hold_host(&f->sched, &t->lane->host->s, true); /* more of it would only wait too */
        sched_release(&f->sched, &t->lane->s);
        t->parted = true;
        f->n_parted++;
    }
    set_wait(t);
    return true;
}

void start_release(struct transfer *t)
{
    if (!t->parted)
        sched_release(&t->f->sched, &t->lane->s);
    t->f->n_parted -= t->parted;
    t->parted = false;
}

static void on_answer(void *arg, const struct dns_answer *a)
{
    struct host *h = arg;
    if (a->rc == 0)
        take_answer(h->f, h, a);
    else
        h->state = HOST_UNKNOWN;
    h->s.n_lanes++; /* held while its waiting transfers are told */
    sched_hold_host(&h->f->sched, &h->s, false);
    while (h->wait_head != NULL) {
        struct transfer *t = h->wait_head;
        start_unwait(t);
        resolved(t, h, a->rc == 0 ? NULL : a);
    }
    h->s.n_lanes--;
    host_release(h);
}

static void ask(struct transfer *t, struct host *h)
{
    struct fetcher *f = t->f;
    if (h->state != HOST_ASKING) {
        struct dns_answer a;
        int rc = dns_resolve(f->dns, h->name, f->now, on_answer, h, &a);
        if (rc != 1) {
            if (rc != 0)
                a = (struct dns_answer){.rc = E_IO, .error = "out of memory"};
            if (a.rc == 0)
                take_answer(f, h, &a);
            resolved(t, h, a.rc == 0 ? NULL : &a);
            return;
        }
        h->state = HOST_ASKING;
        f->asked = true;
    }
    t->state = TRANSFER_RESOLVING;
    t->list_prev = h->wait_tail;
    t->list_next = NULL;
    if (h->wait_tail != NULL)
        h->wait_tail->list_next = t;
    else
        h->wait_head = t;
    h->wait_tail = t;
    set_wait(t);
}

void start_hop(struct transfer *t)
{
    struct fetcher *f = t->f;
    struct host *h = t->lane->host;
    t->addr_gen = 0;
    reset_response(t); /* an earlier hop's, or attempt's, is not this one's */
    t->resolve_us = f->now;
    if (t->url.host_is_ip) {
        struct dns_addr a = {.family = AF_INET};
        if (inet_pton(AF_INET, t->url.host, a.addr) != 1) {
            a.family = AF_INET6;
            if (inet_pton(AF_INET6, t->url.host, a.addr) != 1) {
                blocked(t, "unknown");
                return;
            }
        }
        const char *rule = judge(f, &a);
        if (rule != NULL)
            blocked(t, rule);
        else
            run(t);
        return;
    }
    bool known = h->state == HOST_RESOLVED || h->state == HOST_BLOCKED;
    if (known && (t->named || f->now < h->expires_us))
        resolved(t, h, NULL);
    else
        ask(t, h);
}

/* ---- out of the lane ---- */

static struct transfer *pop_front(struct lane *l)
{
    struct transfer *t = l->front;
    if (t == NULL)
        return NULL;
    l->front = t->list_next;
    if (l->front == NULL)
        l->front_tail = &l->front;
    t->list_next = NULL;
    t->state = TRANSFER_IDLE;
    return t;
}

static void end_page(struct fetcher *f, struct page_in **list, struct page_in ***tail)
{
    struct page_in *p = *list;
    if (p->pos < p->m->len)
        return;
    *list = p->next;
    if (*list == NULL)
        *tail = list;
    budget_free_page(f->e, p->m);
    free(p);
}

/* The times of the attempts that it has had, or its first wait. */
static void take_times(struct transfer *t, struct page_in *p)
{
    const struct live *live = t->live;
    if (p->m->m.type == FETCH_AGAIN) {
        struct again a;
        memcpy(&a, p->m->data + p->pos, sizeof(a));
        p->pos += sizeof(a);
        memcpy(t->timing, a.timing_us, sizeof(t->timing));
        t->attempts = a.attempts;
        t->page = a.page;
        t->handed = true;
        if (p->arrived_us > a.since_us)
            t->timing[TIMING_RETRY_WAIT] += (uint64_t)(p->arrived_us - a.since_us);
    } else {
        int64_t queued = p->arrived_us - live->accept_us;
        t->timing[TIMING_QUEUED] = queued > 0 ? (uint64_t)queued : 0;
        t->page = p->m->no;
    }
    t->home = p->m->lane;
    t->ready_us = p->arrived_us;
}

/* A fresh transfer from what the keeper sent for the lane. */
static struct transfer *take_record(struct fetcher *f, struct lane *l)
{
    struct page_in *p = l->again != NULL ? l->again : l->pages;
    ASSERT(p != NULL && l->in_pages > 0);
    struct live *live = l->batch->live;
    struct transfer *t = transfer_new(f, live);
    live_ref(live);
    live_begun(live);
    atomic_fetch_add(&live->in_flight, 1);

    take_times(t, p);
    size_t from = p->pos;
    int rc = item_decode(p->m->data, p->m->len, &p->pos, &t->item);
    ASSERT(rc == 0); /* checked when the page came */
    rc = buf_add(&t->record, p->m->data + from, p->pos - from);
    ASSERT(rc == 0);
    from = 0;
    rc = item_decode(t->record.data, t->record.len, &from, &t->item);
    ASSERT(rc == 0);
    l->in_pages--;
    f->in_pages--;
    if (t->record.len > RECORD_SMALL) { /* as much as its page */
        t->record_cost = t->record.len;
        atomic_fetch_add(&f->e->queued_bytes, (int64_t)t->record_cost);
    }
    if (p == l->again)
        end_page(f, &l->again, &l->again_tail);
    else
        end_page(f, &l->pages, &l->pages_tail);
    transfer_attach(f, t, l);

    const char *why;
    rc = item_apply_defaults(&t->item, &live->defaults, &t->joined);
    if (rc == 0)
        rc = url_parse(&t->url, t->item.url.ptr, t->item.url.len, &why);
    t->method = t->item.method;
    t->with_body = t->item.body.ptr != NULL || span_is(t->method, "POST") ||
                   span_is(t->method, "PUT") || span_is(t->method, "PATCH");
    if (rc != 0) { /* it was fine when it was accepted */
        lane_settle_want(f, l);
        sched_release(&f->sched, &l->s);
        transfer_detach(t);
        struct verdict v = {OUTCOME_INTERNAL, "the stored request cannot be read", false};
        out_result(t, &v);
        transfer_free(t);
        return NULL;
    }
    return t;
}

void start_next(struct fetcher *f, struct lane *l)
{
    struct transfer *t = pop_front(l);
    if (t == NULL)
        t = take_record(f, l);
    if (t == NULL)
        return;
    lane_settle_want(f, l);
    /* ready_us of a hop is another fetcher's clock of its turn, which may be ahead of ours */
    if (f->now > t->ready_us)
        t->timing[TIMING_LIMIT_WAIT] += (uint64_t)(f->now - t->ready_us);
    /* Two names may share a lane's hash: the limit is the host's. */
    if (strcmp(t->url.host, l->host->name) != 0) {
        t->ready_us = f->now;
        sched_release(&f->sched, &l->s);
        transfer_send(t);
        return;
    }
    t->attempts += t->new_attempt;
    metric_add(METRIC_ATTEMPTS, t->new_attempt);
    t->new_attempt = false;
    start_hop(t);
}
