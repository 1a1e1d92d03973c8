/* Fuzzing of the submission reader: the same input whole, byte by byte and in pieces of changing
 * size must have the same outcome, for all three content types; and what our scanner accepts
 * cJSON must be able to read (else the reader says "internal"). The first byte of the input
 * chooses the type and the sizes. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/unit/submit_log.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static size_t piece_random(void *state, size_t left)
{
    uint32_t *x = state;
    *x = *x * 1664525u + 1013904223u;
    size_t n = 1 + (*x >> 16) % (1u << (*x >> 29));
    return n < left ? n : left;
}

static void check(enum submit_type type, uint8_t choice, const char *p, size_t n)
{
    static const struct submit_param params[] = {
        {{"ignore_invalid_urls", 19}, {"true", 4}},
        {{"defaults.method", 15}, {"POST", 4}},
    };
    struct submit_config cfg = {.type = type, .max_body_bytes = 1 << 20, .max_urls = 1000};
    if (type != SUBMIT_JSON && (choice & 0x80)) {
        cfg.params = params;
        cfg.n_params = ARRAY_LEN(params);
    }
    size_t one = 1;
    uint32_t seed = choice;
    struct submit_log whole = {0}, bytes = {.pause_every = 2}, pieces = {.pause_every = 3};
    submit_log_run(&whole, &cfg, p, n, NULL, NULL);
    submit_log_run(&bytes, &cfg, p, n, piece_fixed, &one);
    submit_log_run(&pieces, &cfg, p, n, piece_random, &seed);
    if (strcmp(whole.out.data, bytes.out.data) != 0 ||
        strcmp(whole.out.data, pieces.out.data) != 0 || whole.internal) {
        fprintf(stderr, "type %d\nwhole: %s\nbytes: %s\npieces: %s\n", (int)type, whole.out.data,
                bytes.out.data, pieces.out.data);
        abort();
    }
    buf_fini(&whole.out);
    buf_fini(&bytes.out);
    buf_fini(&pieces.out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    for (int type = SUBMIT_JSON; type <= SUBMIT_TEXT; type++) {
        if ((data[0] & 3) == type || (data[0] & 3) == 3)
            check((enum submit_type)type, data[0], (const char *)data + 1, size - 1);
    }
    return 0;
}
