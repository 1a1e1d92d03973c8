/* See backup.h. */
#include "server/backup.h"

#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "storage/store.h"

enum { SHOW_US = 500 * 1000 };

static volatile sig_atomic_t stopped;

static void on_signal(int sig)
{
    (void)sig;
    stopped = 1;
}

struct showing {
    bool terminal; /* somebody looks on */
    bool shown;
    int64_t next_us;
};

static int on_progress(void *arg, const struct store_backup_progress *p)
{
    struct showing *s = arg;
    int64_t now = now_us();
    if (s->terminal && now >= s->next_us && p->total > 0) {
        fprintf(stderr, "\r%3" PRIu64 " %% of %" PRIu64 " MiB", p->done * 100 / p->total,
                p->total >> 20);
        s->shown = true;
        s->next_us = now + SHOW_US;
    }
    return stopped;
}

int backup_run(const struct config *cfg)
{
    char file[4096], why[512] = "";
    struct stat st;
    struct sigaction stop = {.sa_handler = on_signal}, ignore = {.sa_handler = SIG_IGN};
    sigemptyset(&stop.sa_mask);
    (void)sigaction(SIGINT, &stop, NULL);
    (void)sigaction(SIGTERM, &stop, NULL);
    (void)sigaction(SIGPIPE, &ignore, NULL);

    bool into = stat(cfg->operand, &st) == 0 && S_ISDIR(st.st_mode);
    snprintf(file, sizeof(file), "%s%s", cfg->operand, into ? "/batchfetch.db" : "");
    int64_t begin = now_us();
    struct showing showing = {.terminal = isatty(STDERR_FILENO) != 0, .next_us = begin + SHOW_US};
    struct store_backup_progress p;
    const struct store_backup how = {
        .dir = cfg->data,
        .file = file,
        .max_log = cfg->backup_max_log,
        .progress = on_progress,
        .arg = &showing,
    };
    int rc = store_backup(&how, &p, why, sizeof(why));
    if (showing.shown)
        fputc('\n', stderr);
    if (rc != 0) {
        fprintf(stderr, "batchfetch: backup: %s\n", why);
        return 1;
    }
    double s = (double)(now_us() - begin) / 1e6;
    printf("%s: %" PRIu64 " bytes of %s in %.1f s\n", file, p.total, cfg->data, s);
    return fflush(stdout) == 0 ? 0 : 1;
}
