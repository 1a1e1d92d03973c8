/* The metrics as text: Prometheus' exposition format 0.0.4
 * (prometheus.io/docs/instrumenting/exposition_formats). Any thread. */
#ifndef API_EXPOSITION_H
#define API_EXPOSITION_H

#include "server/metrics.h"

#define EXPOSITION_TYPE "text/plain; version=0.0.4; charset=utf-8"

/* Appends all families with these values. Returns 0 or the buffer's error. */
int exposition_write(struct buf *b, const int64_t v[METRIC_CELLS]) MUSTCHECK;

#endif
