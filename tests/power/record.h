/* What record.so writes down of a process, and replay reads: one event after the other, in the one
 * order in which they happened. */
#ifndef TESTS_POWER_RECORD_H
#define TESTS_POWER_RECORD_H

#include <stdint.h>

enum event_type {
    EVENT_CREATE = 1, /* a file that was not there; text: its path below the recorded directory */
    EVENT_WRITE,      /* text: the bytes */
    EVENT_SIZE,       /* ftruncate to `at` */
    EVENT_UNLINK,     /* text: the path */
    EVENT_RENAME,     /* text: the path, NUL, the new path */
    EVENT_MKDIR,      /* text: the path */
    EVENT_SYNC_BEGIN, /* ino; `at` 1: of a directory, text: its path */
    EVENT_SYNC_END,   /* likewise; what was written before its BEGIN is on the disk now */
    EVENT_SYNC_FAILED,
    EVENT_RECV, /* from a client; ino: number of the connection; text: the bytes */
    EVENT_SEND, /* to a client, about to leave */
};

struct event {
    uint32_t type;
    uint32_t len; /* of text, which follows */
    uint64_t ino;
    uint64_t at;
};

#endif
