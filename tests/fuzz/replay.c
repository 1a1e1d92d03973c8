/* What libFuzzer would be for a fuzz_NAME.c, without the fuzzing: a plain program that runs the files
 * given as arguments. */
#include <stdio.h>

#include "server/base.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        FILE *f = fopen(argv[i], "rb");
        if (f == NULL) {
            perror(argv[i]);
            return 1;
        }
        struct buf b;
        char piece[4096];
        size_t n;
        buf_init(&b, 64 << 20);
        while ((n = fread(piece, 1, sizeof(piece), f)) > 0) {
            if (buf_add(&b, piece, n) != 0)
                return 1;
        }
        (void)fclose(f);
        (void)LLVMFuzzerTestOneInput((const uint8_t *)b.data, b.len);
        buf_fini(&b);
    }
    printf("%d files replayed\n", argc - 1);
    return 0;
}
