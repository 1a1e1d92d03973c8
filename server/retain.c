/* See retain.h. */
#include "server/retain.h"

#include <time.h>

void retain_clock_init(struct retain_clock *c, int64_t wall_ms, int64_t boot_ms, int64_t last_ms)
{
    *c = (struct retain_clock){.offset_ms = wall_ms - boot_ms};
    if (last_ms > 0 && wall_ms - last_ms > RETAIN_GAP_MS)
        c->offset_ms = last_ms - boot_ms;
}

int64_t retain_clock_now(struct retain_clock *c, int64_t wall_ms, int64_t boot_ms,
                         int64_t *stepped_ms)
{
    int64_t seen = wall_ms - boot_ms, ahead = seen - c->offset_ms;
    *stepped_ms = 0;
    if (ahead <= RETAIN_SLACK_MS) {
        c->offset_ms = seen;
        c->by_ms = 0;
    } else if (c->by_ms == 0 || seen > c->stepped_ms + RETAIN_SLACK_MS ||
               seen < c->stepped_ms - RETAIN_SLACK_MS) {
        c->stepped_ms = seen;
        c->since_ms = boot_ms;
        c->by_ms = *stepped_ms = ahead;
    } else if (boot_ms - c->since_ms >= RETAIN_HOLD_MS) {
        c->offset_ms = seen;
        c->by_ms = 0;
    } else {
        c->stepped_ms = seen; /* drift goes on meanwhile */
    }
    return boot_ms + c->offset_ms;
}

int64_t retain_boot_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_BOOTTIME, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}
