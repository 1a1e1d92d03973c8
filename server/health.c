#include "server/health.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "server/metrics.h"
#include "server/pulse.h"

enum {
    STUCK_US = 5 * 1000 * 1000,
    DEAD_US = 60 * 1000 * 1000,
};

static const struct {
    const char *name, *text, *label;
    unsigned retry_s;
    bool unready;
} causes[] = {
#define X(sym, name_, unready_, retry, text_) \
    [sym] = {(name_), (text_), "cause=\"" name_ "\"", (retry), (unready_)},
    HEALTH_CAUSES(X)
#undef X
};

_Static_assert(HEALTH_CAUSES_N <= (int)METRIC_SET_CAUSE_SIZE, "the metric has a series for each");

static _Atomic uint32_t set; /* bit: cause */
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static struct { /* mutex */
    int64_t since_ms;
    char detail[HEALTH_DETAIL_SIZE];
} details[HEALTH_CAUSES_N];

static uint32_t bit(enum health_cause c)
{
    return 1U << c;
}

static uint32_t unready(void)
{
    uint32_t mask = 0;
    for (unsigned c = 0; c < HEALTH_CAUSES_N; c++)
        mask |= causes[c].unready ? bit(c) : 0;
    return mask;
}

static void show(enum health_cause c, bool on)
{
    metric_set(METRIC_HEALTH + c, on);
    metric_set(METRIC_READY, health_ready());
}

void health_set(enum health_cause c, const char *fmt, ...)
{
    char text[HEALTH_DETAIL_SIZE];
    va_list ap;
    ASSERT(c < HEALTH_CAUSES_N);
    va_start(ap, fmt);
    if (fmt == NULL || vsnprintf(text, sizeof(text), fmt, ap) < 0)
        snprintf(text, sizeof(text), "%s", causes[c].text);
    va_end(ap);
    pthread_mutex_lock(&mutex);
    memcpy(details[c].detail, text, sizeof(text));
    bool was = atomic_fetch_or(&set, bit(c)) & bit(c);
    if (!was)
        details[c].since_ms = wall_ms();
    show(c, true);
    pthread_mutex_unlock(&mutex);
    if (!was)
        log_event(c <= HEALTH_DRAINING ? LOG_DEBUG : LOG_WARN, "health_cause",
                  LOG_S("cause", causes[c].name), LOG_S("msg", text));
}

void health_clear(enum health_cause c)
{
    if (!health_is(c))
        return;
    pthread_mutex_lock(&mutex);
    bool was = atomic_fetch_and(&set, ~bit(c)) & bit(c);
    show(c, false);
    pthread_mutex_unlock(&mutex);
    if (was)
        log_event(c <= HEALTH_DRAINING ? LOG_DEBUG : LOG_INFO, "health_cause_over",
                  LOG_S("cause", causes[c].name));
}

bool health_is(enum health_cause c)
{
    return atomic_load_explicit(&set, memory_order_relaxed) & bit(c);
}

bool health_watch(int64_t now_us)
{
    int64_t us;
    const char *name = pulse_slowest(now_us, &us);
    if (name != NULL && us > STUCK_US)
        health_set(HEALTH_STUCK, "the %s has been at one thing for %d s", name,
                   (int)(us / 1000000));
    else
        health_clear(HEALTH_STUCK);
    return name == NULL || us <= DEAD_US;
}

bool health_ready(void)
{
    return (atomic_load_explicit(&set, memory_order_relaxed) & unready()) == 0;
}

unsigned health_read(struct health_entry out[HEALTH_CAUSES_N], unsigned *retry_after_s)
{
    unsigned n = 0;
    *retry_after_s = 0;
    pthread_mutex_lock(&mutex);
    uint32_t now = atomic_load(&set);
    for (unsigned c = 0; c < HEALTH_CAUSES_N; c++) {
        if (!(now & bit(c)))
            continue;
        struct health_entry *e = &out[n++];
        e->name = causes[c].name;
        e->unready = causes[c].unready;
        e->since_ms = details[c].since_ms;
        memcpy(e->detail, details[c].detail, sizeof(e->detail));
        if (causes[c].retry_s > *retry_after_s)
            *retry_after_s = causes[c].retry_s;
    }
    pthread_mutex_unlock(&mutex);
    return n;
}

/* The metric's labels, before anyone can read it. */
__attribute__((constructor)) static void label(void)
{
    for (unsigned c = 0; c < HEALTH_CAUSES_N; c++)
        metric_cause_labels[c] = causes[c].label;
    metric_set(METRIC_READY, 1);
}
