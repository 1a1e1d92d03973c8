/* Whether a data directory, opened after a cut, holds all that was promised and nothing wrong. */
#ifndef TESTS_POWER_CHECK_H
#define TESTS_POWER_CHECK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What a client was told, good for cuts behind event `from` and not behind event `until` (there
 * another request for the same batch came in, and may have been carried out). */
struct fact {
    uint64_t from, until;
    enum {
        FACT_ACCEPTED, /* a: requests */
        FACT_CANCELLED,
        FACT_DELETED,
        FACT_PAUSED,
        FACT_ENDED, /* a: succeeded, b: failed */
        FACT_READ,  /* a result: a: index, b: completed_ms */
    } kind;
    char id[40];
    int64_t a, b;
};

/* The facts of a file: one a line, "FROM UNTIL KIND ID A B". The caller frees. */
struct fact *check_facts(const char *path, size_t *n);

struct checked {
    uint64_t batches, results; /* seen, in all */
    uint64_t facts;            /* that held */
};

/* Opens it with the storage code, looks at every row, and closes it. Batches must be named
 * "...xN", N being their number of requests, and their URLs end in /bytes/SIZE?t=NAME-INDEX, as
 * the tests' origin answers them. False: `why` says what is wrong. */
bool check_directory(const char *dir, const struct fact *facts, size_t n, uint64_t cut,
                     struct checked *sum, char *why, size_t why_size);

#endif
