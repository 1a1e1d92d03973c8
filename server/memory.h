/* How much memory the process may have, and what part of it each consumer gets. The bound is on
 * resident memory (VmRSS of proc(5)); every budget is kept by back-pressure: starts wait, uploads
 * are stopped, readers are served at their pace.
 *
 * memory_plan_make is pure; memory_machine and memory_cgroup read the system. Any thread. */
#ifndef SERVER_MEMORY_H
#define SERVER_MEMORY_H

#include "server/base.h"

#define MEMORY_LEAST ((uint64_t)64 << 20) /* --memory-limit is at least this */
#define MEMORY_NONE UINT64_MAX            /* there is no such limit */

/* What each thing is reckoned with, resident, with what the allocator adds. docs/reliability.md
 * has the measurements. */
enum {
    MEMORY_TRANSFER = 20 * 1024,  /* in flight, plain, but for its body above 4 KiB */
    MEMORY_TLS = 80 * 1024,       /* more for one by TLS, or an idle connection of that kind */
    MEMORY_LANE = 1536,           /* a host's first page: its lane, host and message */
    MEMORY_REQUEST = 3 * 1024,    /* a request between two hops, without slots */
    MEMORY_CONNECTION = 6 * 1024, /* of the API, beside libmicrohttpd's memory for it */
    MEMORY_BATCH = 3 * 1024,      /* unfinished, beside its bits */
    MEMORY_NAME = 256,            /* in the name cache */
    MEMORY_KEPT = 768,            /* a host or lane that is kept for its rate alone */
};

/* What there is to share out for: no budget is larger than its consumer can use. */
struct memory_want {
    uint32_t transfers;   /* --max-parallel, or what descriptors allow */
    uint32_t connections; /* API connections */
    uint32_t fetchers;
};

/* Bytes, but where a name says otherwise. */
struct memory_plan {
    uint64_t limit; /* what the process may have */
    uint64_t fixed; /* program, libraries, stacks, SQLite's caches, and what each fetcher keeps */
    uint64_t slack; /* what the allocators leave unused between */
    uint64_t transfers, bodies, window, batches, unwritten, connections, answers, uploads, names,
        kept;
    uint64_t total;            /* all of these: never more than limit */
    uint32_t max_transfers;    /* in flight */
    uint32_t window_requests;  /* with the fetchers, all batches together */
    uint32_t max_connections;  /* of the API */
    uint32_t connection_bytes; /* libmicrohttpd's memory for each */
    uint32_t names_max;        /* a fetcher's name cache */
    uint32_t kept_max;         /* a fetcher's hosts and lanes */
    uint32_t max_uploads;
    uint32_t element_max; /* bytes of one request of a submission */
    uint32_t spares_max;  /* handles that a fetcher keeps for its next transfers */
    uint64_t unread;      /* of one answer that is made before it is sent */
};

/* limit: at least MEMORY_LEAST. */
void memory_plan_make(struct memory_plan *p, uint64_t limit, const struct memory_want *w);
/* "memory: at most 120.0m of 128.0m: transfers 28.6m (1464), …" without a line end. */
void memory_plan_text(const struct memory_plan *p, char *out, size_t size);

/* Returns what the calling thread freed to the system, which the allocator would keep for its next
 * allocations. It takes some ms at most. */
void memory_give_back(void);

/* What --memory-limit auto stands for: half of the least of machine and cgroup. */
uint64_t memory_auto(uint64_t machine, uint64_t cgroup);
/* The machine's memory; MEMORY_NONE: unknown. */
uint64_t memory_machine(void);
/* The tightest memory limit of this process's cgroup and those above it, of version 1
 * (memory.limit_in_bytes) and 2 (memory.max, memory.high); cgroups(7). MEMORY_NONE: none. root: ""
 * or, for tests, a directory that stands for /. */
uint64_t memory_cgroup(const char *root);
/* `option`, or what auto gives for 0. */
uint64_t memory_limit(uint64_t option);

#endif
