/* See fault.h. Only in the build with FAULTS. */
#include "storage/fault.h"

#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

extern const char __start_fault_points[], __stop_fault_points[]; /* made by the linker */

void fault_list(FILE *f)
{
    for (const char *p = __start_fault_points; p < __stop_fault_points; p += strlen(p) + 1) {
        if (*p != '\0') /* padding */
            fprintf(f, "%s\n", p);
    }
}

void fault_point(const char *name)
{
    static _Atomic long passed;
    const char *wanted = getenv("BATCHFETCH_FAULT");
    size_t n = strlen(name);
    if (wanted == NULL || strncmp(wanted, name, n) != 0 || wanted[n] != ':')
        return;
    if (atomic_fetch_add(&passed, 1) + 1 == strtol(wanted + n + 1, NULL, 10))
        kill(getpid(), SIGKILL);
}
