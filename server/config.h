/* The configuration: one table of options (config.c) makes the command line, the BATCHFETCH_…
 * environment, the configuration file and --help. Read at start; by a reload only atomic members
 * change, from the main thread. */
#ifndef SERVER_CONFIG_H
#define SERVER_CONFIG_H

#include "server/base.h"
#include "server/guard.h"

enum command { COMMAND_SERVE, COMMAND_BACKUP };

struct config {
    enum command command;          /* the first argument that is no option */
    char *operand;                 /* of a command that takes one */
    char *listen_host;             /* --listen HOST:PORT; default 127.0.0.1:8080 */
    uint16_t listen_port;          /* 0: any free port */
    char *data;                    /* --data DIR; default see config_load */
    _Atomic uint32_t max_parallel; /* --max-parallel N|auto: transfers in flight, all batches
                                      together; 0 = auto (the engine computes it) */
    _Atomic uint32_t max_per_host; /* --max-per-host N: the same, per host name; default 16 */
    _Atomic uint32_t
        rate_per_host;           /* --rate-per-host N[.N]|none: requests that start a second at one
                                      host name, in thousandths; 0 = none, the default */
    uint32_t fetchers;           /* --fetchers N|auto: fetcher threads; 0 = auto: cores, <= 16 */
    struct guard_net *allow_net; /* --allow-net CIDR, may be given several times or as a list */
    size_t n_allow_net;
    char *dns_servers;           /* --dns-servers ip[:port],…; NULL: resolv.conf */
    char *ca_file;               /* --ca-file PEM: instead of the system's store; NULL: system */
    char *user_agent;            /* --user-agent TEXT; default "batchfetch/VERSION" */
    _Atomic uint32_t timeout_ms; /* --timeout-ms; default 30000 */
    _Atomic uint32_t connect_timeout_ms; /* --connect-timeout-ms; default 10000 */
    uint64_t max_body_bytes; /* --max-body-bytes: of a fetched body, decoded; default 10 MiB */
    uint64_t max_submission_bytes; /* --max-submission-bytes; default 2 GiB */
    uint64_t max_urls;             /* --max-urls: per batch; default 10,000,000 */
    uint32_t max_connections;      /* --max-connections: API connections; default 1024 */
    uint64_t max_disk;             /* --max-disk SIZE|auto|none: of the data directory; disk.h */
    uint64_t memory_limit;         /* --memory-limit SIZE|auto: resident memory; 0 = auto */
    uint64_t backup_max_log;       /* --backup-max-log SIZE|auto; 0 = auto */
    _Atomic uint64_t
        retain_s; /* --retain DURATION|never: of ended batches; 0 = never; default 7 days */
    _Atomic uint64_t drain_timeout_s; /* --drain-timeout DURATION: after SIGTERM; default 30 s */
    _Atomic uint32_t log_format;      /* enum log_format: --log-format text|json; default text */
    _Atomic uint32_t log_requests;    /* --log-requests yes|no; default no */
    _Atomic uint32_t
        log_level;    /* enum log_level: --log-level error|warn|info|debug; default info */
    bool check;       /* --check: validate the configuration, print it, exit 0 */
    bool list_routes; /* --list-routes: print "METHOD PATH" a line, exit 0 */
};

/* Sets the defaults, then reads (in this order, the later wins): the file named by --config or
 * BATCHFETCH_CONFIG ("name = value" lines, # comments), the environment, the command line.
 * Returns 0; 1 when the program should exit with status 0 now (--help and --version have been
 * printed); E_INVAL after a message on stderr that names the option and the reason. The default
 * data directory: $STATE_DIRECTORY (systemd), else $XDG_DATA_HOME/batchfetch, else
 * ~/.local/share/batchfetch. A listen address that is not loopback is refused (there are no API
 * keys yet to protect it). */
int config_load(struct config *c, int argc, char **argv) MUSTCHECK;
void config_fini(struct config *c);
/* Reads everything again, as config_load did, and takes over those options that may change while the
 * service runs (a column of the table). Others that differ are named in the log: they need a
 * restart. E_INVAL: something is wrong, the log says what, and nothing changes. Main thread. */
int config_reload(struct config *c, int argc, char **argv) MUSTCHECK;
/* Prints the effective configuration as "name = value" lines (--check). */
void config_print(const struct config *c);

extern const char batchfetch_version[]; /* "0.1.0" */

#endif
