/* The process: reads the configuration, starts engine and API, sleeps until a signal asks it to
 * stop, and takes everything down in reverse order. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "api/api.h"
#include "server/config.h"
#include "server/engine.h"
#include "server/fetch.h"
#include "server/health.h"
#include "server/tls.h"
#include "storage/store.h"

/* Exit statuses; sysexits(3) has no closer ones. */
enum { EXIT_OK = 0, EXIT_CONFIG = 2, EXIT_START = 3 };

enum { DRAIN_TICK_MS = 10 };

/* SIGINT and SIGTERM stop; SIGPIPE is of no use. Blocked before the first thread, so that every
 * thread inherits it and only sigwait gets them. */
static int block_signals(sigset_t *set)
{
    struct sigaction ignore = {.sa_handler = SIG_IGN};
    sigemptyset(set);
    sigaddset(set, SIGINT);
    sigaddset(set, SIGTERM);
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

/* Until a signal asks for the end, and everything in flight is over, or --drain-timeout, or a second
 * signal comes. */
static void wait_for_end(const struct config *cfg, struct engine *engine, const sigset_t *signals)
{
    const struct timespec tick = {.tv_nsec = DRAIN_TICK_MS * 1000000L};
    int sig = sigwaitinfo(signals, NULL);
    while (sig < 0)
        sig = sigwaitinfo(signals, NULL);
    log_event(LOG_INFO, "stopping", LOG_S("signal", strsignal(sig)));
    health_set(HEALTH_DRAINING, NULL);
    engine_drain(engine);
    int64_t until = now_us() + (int64_t)cfg->drain_timeout_s * 1000000;
    while (!engine_is_idle(engine) && now_us() < until) {
        sig = sigtimedwait(signals, NULL, &tick);
        if (sig > 0) {
            log_event(LOG_INFO, "hurrying", LOG_S("signal", strsignal(sig)));
            return;
        }
    }
}

static int serve(const struct config *cfg, const sigset_t *signals)
{
    char why[512] = "";
    struct engine *engine = NULL;
    struct api *api = NULL;
    int status = EXIT_START;
    int fd = -1;
    health_set(HEALTH_STARTING, NULL);
    int rc = api_listen(cfg, &fd, why, sizeof(why));
    if (rc == 0)
        rc = engine_start(&engine, cfg, why, sizeof(why));
    if (rc == 0) {
        rc = api_start(&api, cfg, engine, fd, why, sizeof(why));
        fd = -1;
    }
    if (rc != 0) {
        if (cfg->log_format == LOG_JSON)
            log_event(LOG_ERROR, "cannot_start", LOG_S("msg", why));
        else
            fprintf(stderr, "batchfetch: cannot start: %s\n", why);
        goto out;
    }
    health_clear(HEALTH_STARTING);
    greet(cfg, api_port(api));
    wait_for_end(cfg, engine, signals);
    status = EXIT_OK;
out:
    if (fd >= 0)
        close(fd);
    api_stop(api);
    engine_stop(engine);
    return status;
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
    struct tls_trust *trust = NULL;
    int trusts = fetch_trust(&trust, cfg, why, sizeof(why));
    if (trusts != 0)
        fprintf(stderr, "batchfetch: %s\n", why);
    tls_trust_unref(trust);
    return rc == 0 && trusts == 0 ? EXIT_OK : EXIT_START;
}

int main(int argc, char **argv)
{
    struct config cfg;
    sigset_t signals;
    int status = EXIT_CONFIG;
    umask(077);
    int rc = config_load(&cfg, argc, argv);
    if (rc != 0) {
        status = rc == 1 ? EXIT_OK : EXIT_CONFIG;
        goto out;
    }
    if (cfg.list_routes) {
        api_print_routes(stdout);
        status = EXIT_OK;
        goto out;
    }
    if (cfg.check) {
        status = check(&cfg);
        goto out;
    }
    log_set_level((enum log_level)cfg.log_level);
    log_set_format((enum log_format)cfg.log_format);
    log_find_journal();
#ifndef __SANITIZE_ADDRESS__ /* its leak check traces the process */
    /* Memory holds credentials of requests: no core dumps, no ptrace by others. */
    (void)prctl(PR_SET_DUMPABLE, 0);
#endif
    if (block_signals(&signals) != 0 || fetch_global_init() != 0) {
        fprintf(stderr, "batchfetch: cannot start: %s\n", strerror(errno));
        status = EXIT_START;
        goto out;
    }
    status = serve(&cfg, &signals);
    log_finish();
    fetch_global_fini();
out:
    config_fini(&cfg);
    return status;
}
