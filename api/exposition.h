/* The metrics as text: Prometheus' exposition format 0.0.4
 * (prometheus.io/docs/instrumenting/exposition_formats). Any thread. */
#ifndef API_EXPOSITION_H
#define API_EXPOSITION_H

#include "server/base.h"

#define EXPOSITION_TYPE "text/plain; version=0.0.4; charset=utf-8"

/* Appends all families. Returns 0 or the buffer's error. */
int exposition_write(struct buf *b) MUSTCHECK;

#endif
