/* The options as --help and --check show them. */
#include <arpa/inet.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "server/config_int.h"
#include "server/disk.h"

/* `left`, and the text beside it; no line break at its end. */
static void print_lines(const char *left, const char *text)
{
    for (const char *line = text;; line++) {
        size_t n = strcspn(line, "\n");
        printf("%-31s %.*s", left, (int)n, line);
        left = "";
        line += n;
        if (*line == '\0')
            break;
        putchar('\n');
    }
}

void config_help(void)
{
    char left[64];

    printf(
        "batchfetch %s: fetches batches of URLs through an HTTP API\n\n"
        "Usage: batchfetch [OPTION]...\n"
        "       batchfetch COMMAND [OPTION]...\n\n"
        "Each option but those of the last group can also be given as an environment variable\n"
        "(--max-urls as BATCHFETCH_MAX_URLS) or in the file of --config or BATCHFETCH_CONFIG\n"
        "(max-urls = N). The command line wins over the environment, and that over the file.\n"
        "SIZE is in bytes, or with k, m, g for KiB, MiB, GiB. DURATION is a number with s, m, h, d\n"
        "or w (seconds to weeks): 90s, 12h, 7d.\n",
        batchfetch_version);
    printf("\nCommands:\n");
    for (size_t i = 0; i < config_n_commands; i++) {
        snprintf(left, sizeof(left), "  %s %s", config_commands[i].name,
                 config_commands[i].operand);
        print_lines(left, config_commands[i].help);
        putchar('\n');
    }
    for (size_t i = 0; i < config_n_options; i++) {
        const struct option *o = &config_options[i];
        if (o->name == NULL) {
            printf("\n%s:\n", o->help);
            continue;
        }
        snprintf(left, sizeof(left), "  --%s%s%s", o->name, o->arg != NULL ? " " : "",
                 o->arg != NULL ? o->arg : "");
        print_lines(left, o->help);
        if (o->value != NULL)
            printf(" (default: %s)", o->value);
        else if (strcmp(o->name, "user-agent") == 0)
            printf(" (default: batchfetch/%s)", batchfetch_version);
        else if (strcmp(o->name, "data") == 0)
            printf("\n%-31s (default: $STATE_DIRECTORY, $XDG_DATA_HOME/batchfetch\n"
                   "%-31s or ~/.local/share/batchfetch)",
                   "", "");
        putchar('\n');
    }
}

static void print_rate(const char *name, uint32_t rate)
{
    if (rate == 0)
        printf("%s = none\n", name);
    else
        printf(rate % 1000 != 0 ? "%s = %u.%03u\n" : "%s = %u\n", name, rate / 1000, rate % 1000);
}

static void print_duration(const struct option *o, uint64_t s)
{
    const char *name = o->name;
    if (s == 0 && o->min > 0)
        printf("%s = never\n", name);
    else if (s > 0 && s % 86400 == 0)
        printf("%s = %" PRIu64 "d\n", name, s / 86400);
    else
        printf("%s = %" PRIu64 "s\n", name, s);
}

/* Options without a value are shown as comments, so that the output can be read as a file again. */
void config_print(const struct config *c)
{
    for (size_t i = 0; i < config_n_options; i++) {
        const struct option *o = &config_options[i];
        const void *m = (const char *)c + o->offset;
        char ip[INET6_ADDRSTRLEN];
        uint64_t n;

        if (o->name == NULL || o->arg == NULL || o->kind == K_CONFIG)
            continue;
        switch (o->kind) {
        case K_NUM32:
        case K_NUM64:
        case K_SIZE:
            n = o->kind == K_NUM32 ? *(const uint32_t *)m : *(const uint64_t *)m;
            if (n == 0 && o->value != NULL && strcmp(o->value, "auto") == 0)
                printf("%s = auto\n", o->name);
            else if (o->kind == K_SIZE && n == DISK_NONE)
                printf("%s = none\n", o->name);
            else
                printf("%s = %" PRIu64 "\n", o->name, n);
            break;
        case K_DURATION: print_duration(o, *(const uint64_t *)m); break;
        case K_RATE: print_rate(o->name, *(const uint32_t *)m); break;
        case K_LISTEN:
            printf(strchr(c->listen_host, ':') != NULL ? "%s = [%s]:%u\n" : "%s = %s:%u\n", o->name,
                   c->listen_host, (unsigned)c->listen_port);
            break;
        case K_NETS:
            printf("%s%s", c->n_allow_net > 0 ? "" : "# ", o->name);
            printf(" =");
            for (size_t k = 0; k < c->n_allow_net; k++)
                printf("%s%s/%u", k > 0 ? "," : " ",
                       inet_ntop(c->allow_net[k].family, c->allow_net[k].addr, ip, sizeof(ip)),
                       c->allow_net[k].prefix);
            putchar('\n');
            break;
        case K_LEVEL:
        case K_FORMAT:
        case K_YES:
            printf("%s = %s\n", o->name, config_words[o->kind][*(const uint32_t *)m]);
            break;
        default:
            if (*(char *const *)m != NULL)
                printf("%s = %s\n", o->name, *(char *const *)m);
            else
                printf("# %s =\n", o->name);
            break;
        }
    }
}
