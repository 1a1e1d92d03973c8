/* The keeper when the disk does not take what it writes: what can still be done is done, what came in
 * vain is refused, and results are kept until they can be stored. See disk.h. */
#include "server/disk.h"
#include "server/health.h"
#include "server/keeper_int.h"

enum { NOTE_US = 50 * 1000 };

static bool is_submission(const struct msg *m)
{
    return m->type == KEEPER_PAGES || m->type == KEEPER_COMMIT;
}

static void finish_all(struct keeper *k, struct msg *list, int rc)
{
    for (struct msg *m = list, *next; m != NULL; m = next) {
        next = m->next;
        keeper_finish(k, m, rc);
    }
}

/* A group found no space. Submissions are given up, and the reserve with them: it is for what ends or
 * removes batches, which goes first, and for results. */
void keeper_turn_full(struct keeper *k, struct msg *list)
{
    struct msg *steers = NULL, *others = NULL, *submissions = NULL;
    struct msg **tails[] = {&steers, &others, &submissions};
    for (struct msg *m = list, *next; m != NULL; m = next) {
        next = m->next;
        m->next = NULL;
        unsigned part = m->type == KEEPER_STEER ? 0 : is_submission(m) ? 2 : 1;
        *tails[part] = m;
        tails[part] = &m->next;
    }
    store_cut(k->e->store);
    if (disk_may_fold(k->e->disk))
        (void)keeper_fold(k);
    if (steers != NULL)
        finish_all(k, steers, keeper_attempt(k, steers, false));
    if (others != NULL)
        finish_all(k, others, keeper_attempt(k, others, false));
    finish_all(k, submissions, E_FULL);
}

/* An error stands, and it is time to see whether it still does; nothing has been written just now. */
void keeper_probe(struct keeper *k)
{
    struct disk *d = k->e->disk;
    int rc = store_probe(k->e->store);
    const char *why = store_error(k->e->store);
    if (rc == 0) {
        rc = disk_probe_spill(d);
        why = "bodies cannot be written";
    }
    if (rc == 0)
        disk_worked(d);
    else
        disk_failed(d, rc, why);
}

uint64_t keeper_note(struct keeper *k)
{
    struct store_stats s;
    if (store_stats(k->e->store, &s) == 0)
        disk_note(k->e->disk, s.free_bytes, store_unfolded(k->e->store), s.size_bytes);
    return s.free_bytes;
}

void keeper_watch(struct keeper *k)
{
    struct disk *d = k->e->disk;
    int64_t now = now_us();
    if (now >= k->noted_us) {
        k->noted_us = now + NOTE_US;
        uint64_t unused = keeper_note(k);
        if (disk_tight(d))
            spill_trim(k->e->spill);
        if (disk_tight(d) && unused >= UPKEEP_WORTH && !k->upkeep.failed)
            k->upkeep.due_us = 0; /* free pages go back now */
    }
    disk_look(d);
}
