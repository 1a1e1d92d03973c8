/* See pause.h. */
#include "server/pause.h"

#include <stdlib.h>
#include <uthash.h>

#include "server/budget.h"
#include "server/waiting.h"

struct flight {
    uint64_t index, lane;
    bool handed;
    UT_hash_handle hh;
};

static struct flight *find(const struct live *l, uint64_t index)
{
    struct flight *f;
    HASH_FIND(hh, l->flights, &index, sizeof(index), f);
    return f;
}

bool pause_flies(const struct live *l, uint64_t index)
{
    return l->flights != NULL && find(l, index) != NULL;
}

void pause_landed(struct live *l, uint64_t index)
{
    struct flight *f = l->flights != NULL ? find(l, index) : NULL;
    if (f == NULL)
        return;
    HASH_DEL(l->flights, f);
    free(f);
}

void pause_each_handed(struct live *l, void (*fn)(void *arg, uint64_t lane), void *arg)
{
    struct flight *f, *tmp;
    HASH_ITER(hh, l->flights, f, tmp)
    {
        if (f->handed)
            fn(arg, f->lane);
    }
}

void pause_free(struct live *l)
{
    struct flight *f, *tmp;
    HASH_ITER(hh, l->flights, f, tmp)
    {
        HASH_DEL(l->flights, f);
        free(f);
    }
}

void pause_begin(struct live *l)
{
    atomic_store(&l->paused, true);
    l->resuming = l->settled = false;
    l->halting++;
    l->recovered = true;
    keeper_unfeed(l);
}

void pause_report(struct keeper *k, struct msg_flying *m)
{
    struct live *l = m->live;
    bool ended = l->all_next == NULL; /* cancelled meanwhile, say: nobody waits for this any more */
    ASSERT(ended || l->outstanding >= m->dropped);
    budget_back(k->e, l, m->dropped);
    for (size_t i = 0; i < m->n && !ended; i++) {
        if (find(l, m->v[i].index) != NULL) /* on its way from one fetcher to another */
            continue;
        struct flight *f = xcalloc(1, sizeof(*f));
        f->index = m->v[i].index;
        f->lane = m->v[i].lane;
        f->handed = m->v[i].handed;
        HASH_ADD(hh, l->flights, index, sizeof(f->index), f);
    }
    live_unref(l);
    free(m);
}

void pause_end(struct live *l)
{
    l->resuming = atomic_load(&l->paused);
}

void pause_recover(struct live *l)
{
    atomic_store(&l->paused, true);
    l->settled = true;
    feeder_close(l);
}

void pause_turn(struct keeper *k, struct live *l)
{
    /* What is out and not among the flights is a result that is not stored yet, or on its way
     * between two fetchers. */
    if (!l->settled && l->halting == 0 && l->outstanding == HASH_COUNT(l->flights)) {
        waiting_halted(l);
        l->settled = true;
    }
    if (!l->settled || !l->resuming)
        return;
    int rc = feeder_open(k->e, l);
    ASSERT(rc == 0);
    l->resuming = false;
    atomic_store(&l->paused, false);
}
