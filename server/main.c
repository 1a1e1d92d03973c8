/* The process: reads the configuration, starts engine and API, sleeps until a signal asks it to
 * stop, and takes everything down in reverse order. */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "api/api.h"
#include "server/backup.h"
#include "server/config.h"
#include "server/engine.h"
#include "server/fetch.h"
#include "server/health.h"
#include "server/pulse.h"
#include "server/supervise.h"
#include "server/tls.h"
#include "storage/store.h"
#include "storage/fault.h"

/* Exit statuses; sysexits(3) has no closer ones. */
enum { EXIT_OK = 0, EXIT_CONFIG = 2, EXIT_START = 3 };

enum { DRAIN_TICK_MS = 10 };

/* SIGINT and SIGTERM stop, SIGHUP reloads; SIGPIPE is of no use. Blocked before the first thread, so that every
 * thread inherits it and only sigwait gets them. */
static int block_signals(sigset_t *set)
{
    struct sigaction ignore = {.sa_handler = SIG_IGN};
    sigemptyset(set);
    sigaddset(set, SIGINT);
    sigaddset(set, SIGTERM);
    sigaddset(set, SIGHUP);
    if (sigaction(SIGPIPE, &ignore, NULL) != 0)
        return E_IO;
    return pthread_sigmask(SIG_BLOCK, set, NULL) == 0 ? 0 : E_IO;
}

static void greet(const struct config *cfg, uint16_t port)
{
    bool v6 = strchr(cfg->listen_host, ':') != NULL;
    char base[300];
    snprintf(base, sizeof(base), v6 ? "http://[%s]:%u" : "http://%s:%u", cfg->listen_host, port);
    /* Programs that start us read this line from a pipe. */
    printf("batchfetch listening on %s\n", base);
    fflush(stdout);
    if (cfg->log_format == LOG_JSON) { /* for programs: no other lines */
        log_event(LOG_INFO, "listening", LOG_S("url", base), LOG_S("data", cfg->data));
        return;
    }
    fprintf(stderr,
            "Data in %s. Try:\n"
            "  curl -sS %s/v1/batches -H 'Content-Type: text/plain' --data-binary "
            "https://example.com/\n"
            "  curl -sS %s/v1/batches\n",
            cfg->data, base, base);
}

/* What main's functions share. */
struct process {
    struct config cfg;
    int argc;
    char **argv;
    sigset_t signals;
    struct engine *engine;
};

static void status(const struct process *p)
{
    uint64_t queued, in_flight;
    char text[100];
    engine_totals(p->engine, &queued, &in_flight);
    snprintf(text, sizeof(text), "%" PRIu64 " requests in flight, %" PRIu64 " queued", in_flight,
             queued);
    int64_t now = now_us(), stuck_us;
    (void)health_watch(now);
    (void)pulse_slowest(now, &stuck_us);
    supervise_alive(stuck_us, text);
}

/* SIGHUP */
static void reload(struct process *p)
{
    char why[512];
    supervise_reloading();
    if (config_reload(&p->cfg, p->argc, p->argv) == 0) {
        log_set_level((enum log_level)p->cfg.log_level);
        log_set_format((enum log_format)p->cfg.log_format);
        if (engine_reload(p->engine, why, sizeof(why)) == 0) {
            health_clear(HEALTH_RELOAD_FAILED);
        } else {
            log_event(LOG_ERROR, "reload_failed", LOG_S("msg", why));
            health_set(HEALTH_RELOAD_FAILED, "%s", why);
        }
    }
    supervise_ready();
}

/* Waits at most so long for a signal; 0: none came. */
static int next_signal(const struct process *p, int64_t ms)
{
    const struct timespec t = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};
    int sig = sigtimedwait(&p->signals, NULL, &t);
    return sig > 0 ? sig : 0;
}

/* Until a signal asks for the end, and everything in flight is over, or --drain-timeout, or a second
 * signal comes. */
static void run(struct process *p)
{
    const int interval = supervise_interval_ms();
    int sig = 0;
    status(p);
    supervise_ready();
    while (sig == 0 || sig == SIGHUP) {
        sig = next_signal(p, interval);
        if (sig == SIGHUP)
            reload(p);
        else if (sig == 0)
            status(p);
    }
    log_event(LOG_INFO, "stopping", LOG_S("signal", strsignal(sig)));
    supervise_stopping();
    health_set(HEALTH_DRAINING, NULL);
    engine_drain(p->engine);
    int64_t now = now_us(), told = now;
    int64_t until = now + (int64_t)p->cfg.drain_timeout_s * 1000000;
    for (; !engine_is_idle(p->engine) && now < until; now = now_us()) {
        sig = next_signal(p, DRAIN_TICK_MS);
        if (sig != 0 && sig != SIGHUP) {
            log_event(LOG_INFO, "hurrying", LOG_S("signal", strsignal(sig)));
            return;
        }
        if (now - told > interval * 1000L) {
            status(p);
            told = now;
        }
    }
}

static int serve(struct process *p)
{
    char why[512] = "";
    struct api *api = NULL;
    int result = EXIT_START;
    int fd = -1;
    health_set(HEALTH_STARTING, NULL);
    int rc = supervise_socket(&p->cfg, &fd, why, sizeof(why));
    if (rc == 0 && fd < 0)
        rc = api_listen(&p->cfg, &fd, why, sizeof(why));
    if (rc == 0)
        rc = engine_start(&p->engine, &p->cfg, why, sizeof(why));
    if (rc == 0) {
        health_clear(HEALTH_STARTING); /* before the first client that waits for that asks */
        rc = api_start(&api, &p->cfg, p->engine, fd, why, sizeof(why));
        fd = -1;
    }
    if (rc != 0) {
        if (p->cfg.log_format == LOG_JSON)
            log_event(LOG_ERROR, "cannot_start", LOG_S("msg", why));
        else
            fprintf(stderr, "batchfetch: cannot start: %s\n", why);
        goto out;
    }
    greet(&p->cfg, api_port(api));
    run(p);
    result = EXIT_OK;
out:
    if (fd >= 0)
        close(fd);
    api_stop(api);
    engine_stop(p->engine);
    return result;
}

static void print_fault(void *arg, const char *text)
{
    (void)arg;
    char line[500];
    snprintf(line, sizeof(line), "%s", text);
    for (char *p = line; *p != '\0'; p++)
        *p = *p == '\n' ? ' ' : *p;
    fprintf(stderr, "batchfetch: --data: %s\n", line);
}

/* Every row of it. */
static int verify(const struct config *cfg)
{
    struct store_summary sum;
    char why[512] = "";
    int n = store_verify(cfg->data, print_fault, NULL, &sum, why, sizeof(why));
    if (n == E_NOTFOUND) /* it will be made */
        return 0;
    if (n < 0)
        fprintf(stderr, "batchfetch: --data: %s\n", why);
    else if (n > 0)
        fprintf(stderr,
                "batchfetch: --data: the database is damaged (%d faults): restore a backup, "
                "or move the directory away to begin anew\n",
                n);
    else
        printf("# data: version %d, %" PRIu64 " batches, %" PRIu64 " requests, %" PRIu64
               " results: no fault found\n",
               sum.version, sum.batches, sum.requests, sum.results);
    return n == 0 ? 0 : n < 0 ? n : E_CORRUPT;
}

/* As a start would find it, but for what it takes to start. */
static int check(const struct config *cfg)
{
    char why[512] = "";
    config_print(cfg);
    engine_print_memory(cfg);
    int rc = store_check(cfg->data, why, sizeof(why));
    if (rc != 0)
        fprintf(stderr, "batchfetch: --data: %s\n", why);
    else
        rc = verify(cfg);
    struct tls_trust *trust = NULL;
    int trusts = fetch_trust(&trust, cfg, why, sizeof(why));
    if (trusts != 0)
        fprintf(stderr, "batchfetch: %s\n", why);
    tls_trust_unref(trust);
    return rc == 0 && trusts == 0 ? EXIT_OK : EXIT_START;
}

int main(int argc, char **argv)
{
    struct process p = {.argc = argc, .argv = argv};
    int result = EXIT_CONFIG;
    umask(077);
    int rc = config_load(&p.cfg, argc, argv);
    if (rc != 0) {
        result = rc == 1 ? EXIT_OK : EXIT_CONFIG;
        goto out;
    }
#ifdef BATCHFETCH_FAULTS
    if (getenv("BATCHFETCH_FAULT_LIST") != NULL) {
        fault_list(stdout);
        result = EXIT_OK;
        goto out;
    }
#endif
    if (p.cfg.list_routes) {
        api_print_routes(stdout);
        result = EXIT_OK;
        goto out;
    }
    if (p.cfg.command == COMMAND_BACKUP) {
        result = backup_run(&p.cfg);
        goto out;
    }
    if (p.cfg.check) {
        result = check(&p.cfg);
        goto out;
    }
    log_set_level((enum log_level)p.cfg.log_level);
    log_set_format((enum log_format)p.cfg.log_format);
    log_find_journal();
#ifndef __SANITIZE_ADDRESS__ /* its leak check traces the process */
    /* Memory holds credentials of requests: no core dumps, no ptrace by others. */
    (void)prctl(PR_SET_DUMPABLE, 0);
#endif
    if (block_signals(&p.signals) != 0 || fetch_global_init() != 0) {
        fprintf(stderr, "batchfetch: cannot start: %s\n", strerror(errno));
        result = EXIT_START;
        goto out;
    }
    result = serve(&p);
    log_finish();
    fetch_global_fini();
out:
    config_fini(&p.cfg);
    return result;
}
