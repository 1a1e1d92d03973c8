/* Parking of requests, waiting for a batch's end, and lingering closes. Runs on the api thread,
 * on the keeper (park_wake, park_batch_ended) and on a ticker thread of its own, which ticks only
 * while there is something to watch: libmicrohttpd walks all suspended connections for each
 * resume, so resumes of waiters are gathered into ticks. */
#include "api/park.h"

#include <errno.h>
#include <fcntl.h>
#include <microhttpd.h>
#include <netinet/in.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    TICK_US = 20 * 1000,
    NUDGE_US = 50 * 1000,
    LINGER_US = 3 * 1000 * 1000,
    DRAIN_ROUNDS = 8, /* reads of a lingering socket in one tick */
};

bool park_arm(struct request *r)
{
    struct api *api = r->api;
    bool ok;

    pthread_mutex_lock(&api->lock);
    ok = !api->stopping;
    if (ok) {
        ASSERT(r->park == PARK_NONE);
        r->park = PARK_ARMED;
        api->calls++;
    }
    pthread_mutex_unlock(&api->lock);
    return ok;
}

/* The call that park_arm counted is over. */
static void call_over(struct api *api)
{
    ASSERT(api->calls > 0);
    if (--api->calls == 0)
        pthread_cond_broadcast(&api->quiet);
}

void park_disarm(struct request *r)
{
    struct api *api = r->api;

    pthread_mutex_lock(&api->lock);
    ASSERT(r->park == PARK_ARMED);
    r->park = PARK_NONE;
    call_over(api);
    pthread_mutex_unlock(&api->lock);
}

bool park_suspend(struct request *r)
{
    struct api *api = r->api;
    bool suspended = false;

    pthread_mutex_lock(&api->lock);
    if (r->park == PARK_ARMED) {
        r->park = PARK_SUSPENDED;
        metric_change(METRIC_API_SUSPENDED, 1);
        MHD_suspend_connection(r->conn);
        suspended = true;
    } else {
        ASSERT(r->park == PARK_WOKEN);
        r->park = PARK_NONE;
    }
    pthread_mutex_unlock(&api->lock);
    return suspended;
}

static void wake_locked(struct request *r)
{
    if (r->park == PARK_SUSPENDED) {
        r->park = PARK_NONE;
        metric_change(METRIC_API_SUSPENDED, -1);
        MHD_resume_connection(r->conn);
    } else {
        ASSERT(r->park == PARK_ARMED);
        r->park = PARK_WOKEN;
    }
}

void park_wake(struct request *r)
{
    struct api *api = r->api;

    pthread_mutex_lock(&api->lock);
    wake_locked(r); /* r may be gone as soon as the lock is open */
    call_over(api);
    pthread_mutex_unlock(&api->lock);
}

bool park_is_suspended(struct request *r)
{
    bool yes;

    pthread_mutex_lock(&r->api->lock);
    yes = r->park == PARK_SUSPENDED;
    pthread_mutex_unlock(&r->api->lock);
    return yes;
}

/* ---- waiting for the end of a batch ---- */

static void unlink_waiter(struct api *api, struct request *r)
{
    if (r->wait_prev)
        r->wait_prev->wait_next = r->wait_next;
    else
        api->waiters = r->wait_next;
    if (r->wait_next)
        r->wait_next->wait_prev = r->wait_prev;
    r->wait_prev = r->wait_next = NULL;
    r->waiter = false;
    api->n_waiters--;
}

int park_wait(struct request *r, int64_t deadline_us)
{
    struct api *api = r->api;
    int rc = 0;

    pthread_mutex_lock(&api->lock);
    if (api->stopping) {
        rc = E_STOPPING;
    } else if (api->n_waiters >= (engine_max_clients(api->engine) + 1) / 2) {
        rc = E_BUSY;
    } else {
        ASSERT(r->park == PARK_NONE);
        r->park = PARK_ARMED;
        r->waiter = true;
        r->due = false;
        r->deadline_us = deadline_us;
        r->wait_next = api->waiters;
        if (api->waiters)
            api->waiters->wait_prev = r;
        api->waiters = r;
        api->n_waiters++;
        pthread_cond_signal(&api->tick);
    }
    pthread_mutex_unlock(&api->lock);
    return rc;
}

void park_wait_cancel(struct request *r)
{
    struct api *api = r->api;

    pthread_mutex_lock(&api->lock);
    if (r->waiter)
        unlink_waiter(api, r);
    ASSERT(r->park == PARK_ARMED || r->park == PARK_WOKEN);
    r->park = PARK_NONE;
    pthread_mutex_unlock(&api->lock);
}

void park_batch_ended(void *arg, const char *batch_id)
{
    struct api *api = arg;

    pthread_mutex_lock(&api->lock);
    for (struct request *r = api->waiters; r; r = r->wait_next)
        if (strcmp(r->id, batch_id) == 0)
            r->due = true;
    pthread_mutex_unlock(&api->lock);
}

static void wake_due(struct api *api, int64_t now)
{
    struct request *next;

    for (struct request *r = api->waiters; r; r = next) {
        next = r->wait_next;
        if (!r->due && r->deadline_us > now && !api->stopping)
            continue;
        unlink_waiter(api, r);
        wake_locked(r);
    }
}

/* ---- lingering ---- */

void park_linger(struct api *api, int fd)
{
    int copy;

    pthread_mutex_lock(&api->lock);
    for (size_t i = 0; i < LINGER_MAX && !api->stopping; i++) {
        if (api->lingers[i].fd >= 0)
            continue;
        copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
        if (copy < 0)
            break; /* then it is closed the hard way */
        api->lingers[i] = (struct lingering){copy, now_us() + LINGER_US};
        api->n_lingers++;
        pthread_cond_signal(&api->tick);
        break;
    }
    pthread_mutex_unlock(&api->lock);
}

/* Throws away what the client sent. False: it has closed, or broken. */
static bool drain(int fd)
{
    for (int i = 0; i < DRAIN_ROUNDS; i++) {
        ssize_t n = recv(fd, NULL, 4 * 1024 * 1024, MSG_DONTWAIT | MSG_TRUNC);

        if (n == 0)
            return false;
        if (n < 0)
            return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR;
    }
    return true;
}

static void drain_lingers(struct api *api, int64_t now)
{
    for (size_t i = 0; i < LINGER_MAX; i++) {
        struct lingering *l = &api->lingers[i];

        if (l->fd < 0 || (drain(l->fd) && l->deadline_us > now && !api->stopping))
            continue;
        close(l->fd);
        l->fd = -1;
        api->n_lingers--;
    }
}

void park_accept_later(struct api *api)
{
    pthread_mutex_lock(&api->lock);
    api->nudge_us = now_us() + NUDGE_US;
    pthread_cond_signal(&api->tick);
    pthread_mutex_unlock(&api->lock);
}

/* A client of ours that comes and goes at once. Its descriptors are set aside, as there may be none
 * to be had when they are needed. */
static void make_nudge(struct api *api)
{
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, api->nudge_pair) != 0)
        api->nudge_pair[0] = api->nudge_pair[1] = -1;
}

static void nudge(struct api *api, int64_t now)
{
    const struct sockaddr_in from = {.sin_family = AF_INET};

    if (api->stopping)
        api->nudge_us = 0;
    if (api->nudge_us == 0 || now < api->nudge_us || !api->daemon)
        return;
    api->nudge_us = 0;
    if (api->nudge_pair[0] >= 0) {
        close(api->nudge_pair[1]);
        if (MHD_add_connection(api->daemon, api->nudge_pair[0], (const struct sockaddr *)&from,
                               sizeof(from)) != MHD_YES)
            api->nudge_us = now + NUDGE_US;
        api->nudge_pair[0] = api->nudge_pair[1] = -1; /* closed by the library in either case */
    } else {
        api->nudge_us = now + NUDGE_US;
    }
    make_nudge(api);
}

static void *ticker_main(void *arg)
{
    struct api *api = arg;

    pthread_mutex_lock(&api->lock);
    while (api->ticker_runs) {
        struct timespec until;
        int64_t now = now_us();

        wake_due(api, now);
        drain_lingers(api, now);
        nudge(api, now);
        if (!api->waiters && api->n_lingers == 0 && api->nudge_us == 0) {
            pthread_cond_wait(&api->tick, &api->lock);
            continue;
        }
        now += TICK_US;
        until.tv_sec = (time_t)(now / 1000000);
        until.tv_nsec = (long)(now % 1000000) * 1000;
        while (api->ticker_runs && !api->stopping &&
               pthread_cond_timedwait(&api->tick, &api->lock, &until) == 0)
            ; /* new work does not make the tick come sooner */
    }
    pthread_mutex_unlock(&api->lock);
    return NULL;
}

int park_start(struct api *api)
{
    pthread_condattr_t attr;
    int rc;

    pthread_mutex_init(&api->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&api->tick, &attr);
    pthread_cond_init(&api->quiet, &attr);
    pthread_condattr_destroy(&attr);
    for (size_t i = 0; i < LINGER_MAX; i++)
        api->lingers[i].fd = -1;
    make_nudge(api);
    api->ticker_runs = true;
    rc = pthread_create(&api->ticker, NULL, ticker_main, api);
    if (rc != 0)
        api->ticker_runs = false;
    return rc == 0 ? 0 : E_NOMEM;
}

void park_stop(struct api *api)
{
    bool join;

    pthread_mutex_lock(&api->lock);
    join = api->ticker_runs;
    api->ticker_runs = false;
    pthread_cond_signal(&api->tick);
    pthread_mutex_unlock(&api->lock);
    if (join)
        pthread_join(api->ticker, NULL);
    for (size_t i = 0; i < LINGER_MAX; i++)
        if (api->lingers[i].fd >= 0)
            close(api->lingers[i].fd);
    for (size_t i = 0; i < ARRAY_LEN(api->nudge_pair); i++)
        if (api->nudge_pair[i] >= 0)
            close(api->nudge_pair[i]);
    pthread_cond_destroy(&api->tick);
    pthread_cond_destroy(&api->quiet);
    pthread_mutex_destroy(&api->lock);
}
