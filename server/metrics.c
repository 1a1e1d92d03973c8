#include "server/metrics.h"

enum { THREADS_MAX = 64 }; /* with cells of their own; later ones share `rest` */

/* Memory that nobody has written to costs nothing. */
static struct metric_cells all[THREADS_MAX], rest = {.shared = true};
static _Atomic unsigned n_all;
static _Atomic int64_t gauges[METRIC_CELLS];

_Thread_local struct metric_cells *metric_own;

const char *metric_route_labels[METRIC_SET_ROUTE_SIZE];
const char *metric_cause_labels[METRIC_SET_CAUSE_SIZE];

#define ONE(sym, text) [sym] = (text),
#define X(set) \
    static const char *const metric_##set##_labels[METRIC_SET_##set##_SIZE] = {LABELS_##set(ONE)};
METRIC_LABEL_SETS(X)
#undef X
#undef ONE
#define metric_ROUTE_labels metric_route_labels
#define metric_CAUSE_labels metric_cause_labels

const struct metric_family metric_families[] = {
#define X(sym, type_, one, two, name_, help_)                  \
    {.name = (name_),                                          \
     .help = (help_),                                          \
     .type = METRIC_##type_,                                   \
     .first = sym,                                             \
     .last = sym##_LAST,                                       \
     .labels = {metric_##one##_labels, metric_##two##_labels}, \
     .n_labels = {METRIC_SET_##one##_SIZE, METRIC_SET_##two##_SIZE}},
    METRICS(X)
#undef X
};
const unsigned metric_n_families = ARRAY_LEN(metric_families);

const uint64_t metric_time_bounds[METRIC_N_TIME] = {METRIC_TIME_BOUNDS};
const uint64_t metric_size_bounds[METRIC_N_SIZE] = {METRIC_SIZE_BOUNDS};

struct metric_cells *metric_take(void)
{
    unsigned i = atomic_fetch_add(&n_all, 1);
    metric_own = i < THREADS_MAX ? &all[i] : &rest;
    return metric_own;
}

void metric_set(unsigned cell, int64_t v)
{
    atomic_store_explicit(&gauges[cell], v, memory_order_relaxed);
}

void metric_change(unsigned cell, int64_t by)
{
    atomic_fetch_add_explicit(&gauges[cell], by, memory_order_relaxed);
}

static void observe(unsigned first, uint64_t v, const uint64_t *bounds, unsigned n)
{
    unsigned i = 0;
    while (i < n && v > bounds[i])
        i++;
    metric_add(first + i, 1);
    metric_add(first + n + 1, v);
}

void metric_observe_us(unsigned metric, unsigned label, int64_t us)
{
    observe(metric + label * METRIC_CELLS_TIME, us > 0 ? (uint64_t)us : 0, metric_time_bounds,
            METRIC_N_TIME);
}

void metric_observe(unsigned metric, unsigned label, uint64_t n)
{
    observe(metric + label * METRIC_CELLS_SIZE, n, metric_size_bounds, METRIC_N_SIZE);
}

int64_t metric_value(unsigned cell)
{
    uint64_t sum = atomic_load_explicit(&rest.v[cell], memory_order_relaxed);
    unsigned n = atomic_load(&n_all);
    for (unsigned i = 0; i < n && i < THREADS_MAX; i++)
        sum += atomic_load_explicit(&all[i].v[cell], memory_order_relaxed);
    return (int64_t)sum + atomic_load_explicit(&gauges[cell], memory_order_relaxed);
}

void metric_snapshot(int64_t out[METRIC_CELLS])
{
    for (unsigned i = 0; i < METRIC_CELLS; i++)
        out[i] = metric_value(i);
}
