/* The clock by which ended batches expire. It is Unix time that a wrong step of the system's clock
 * does not move on: results that are removed don't come back when the clock is set right again. A
 * step back is followed at once, it only keeps batches for longer; a step forward when the clock has
 * stood by it for an hour. At the start, a clock that is more than 30 days ahead of all that the
 * database has recorded counts as a step. Pure, but for retain_boot_ms; one thread at a time. */
#ifndef SERVER_RETAIN_H
#define SERVER_RETAIN_H

#include <stdint.h>

enum {
    RETAIN_SLACK_MS = 2000,       /* less is drift */
    RETAIN_HOLD_MS = 3600 * 1000, /* until a step forward is believed */
};
#define RETAIN_GAP_MS ((int64_t)30 * 24 * 3600 * 1000)

struct retain_clock {
    int64_t offset_ms;  /* from boot time to the time that is believed */
    int64_t stepped_ms; /* from boot time to the system's clock, while that is not believed */
    int64_t since_ms;   /* boot time: has stood by it since */
    int64_t by_ms;      /* how far it is ahead; 0: it is believed */
};

/* wall_ms: Unix time; boot_ms: time that passes while the machine is suspended too, and never jumps
 * (retain_boot_ms); last_ms: the latest Unix time that was recorded before, 0: none. */
void retain_clock_init(struct retain_clock *c, int64_t wall_ms, int64_t boot_ms, int64_t last_ms);
/* The Unix time that is believed. *stepped_ms: by how much the clock was just found to have stepped
 * forward, which is not believed yet; 0: it was not. */
int64_t retain_clock_now(struct retain_clock *c, int64_t wall_ms, int64_t boot_ms,
                         int64_t *stepped_ms);

int64_t retain_boot_ms(void); /* any thread */

#endif
