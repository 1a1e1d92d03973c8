/* A recorded directory as its disk could be after the power was cut: what was synced is there, of
 * what was not, whatever part is chosen. */
#ifndef TESTS_POWER_DISK_H
#define TESTS_POWER_DISK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tests/power/record.h"

struct disk;

/* What becomes of the changes that were not synced. */
enum loss {
    LOSS_ALL,     /* none is there */
    LOSS_NONE,    /* all are */
    LOSS_TORN,    /* the first ones; of one more some sectors */
    LOSS_SOME,    /* each one or not */
    LOSS_SECTORS, /* of each write each sector or not, so also later ones before earlier ones */
    N_LOSSES,
};

struct disk *disk_new(void);
void disk_free(struct disk *d);
/* The next event of the recording; `text` (e->len bytes) must stay where it is. `forget`: a sync
 * of a file whose name ends so is passed over ("data": of directories), for a test of the test. */
void disk_apply(struct disk *d, const struct event *e, const char *text, const char *forget);
/* Writes the directory, which must be empty, as after a cut here. The choice follows the seed. */
void disk_write(const struct disk *d, const char *dir, enum loss loss, uint64_t seed);
/* Changes that were not synced: 0 means that every loss gives the same. */
size_t disk_unsynced(const struct disk *d);
/* After the last event: whether the files in `dir` are as they should be by the recording. Else
 * says where not. Files with names that end in `but` are left out. */
bool disk_equals(const struct disk *d, const char *dir, const char *but);

#endif
