#include "server/pulse.h"

#include <stdatomic.h>

enum { THREADS_MAX = 64 };

struct pulse {
    _Atomic(const char *) name;
    _Atomic int64_t since_us; /* 0: it waits */
} __attribute__((aligned(64)));

static struct pulse all[THREADS_MAX];
static _Atomic unsigned n_all;
static _Thread_local struct pulse *own;

void pulse_register(const char *name)
{
    unsigned i = atomic_fetch_add(&n_all, 1);
    if (i >= THREADS_MAX)
        return;
    own = &all[i];
    atomic_store(&own->name, name);
}

void pulse_begin(int64_t now_us)
{
    if (own != NULL)
        atomic_store_explicit(&own->since_us, now_us, memory_order_relaxed);
}

void pulse_end(void)
{
    if (own != NULL)
        atomic_store_explicit(&own->since_us, 0, memory_order_relaxed);
}

const char *pulse_slowest(int64_t now_us, int64_t *for_us)
{
    const char *name = NULL;
    unsigned n = atomic_load(&n_all);
    *for_us = 0;
    for (unsigned i = 0; i < n && i < THREADS_MAX; i++) {
        int64_t since = atomic_load_explicit(&all[i].since_us, memory_order_relaxed);
        if (since == 0 || now_us - since < *for_us)
            continue;
        *for_us = now_us - since;
        name = atomic_load(&all[i].name);
    }
    return name;
}
