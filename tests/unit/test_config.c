/* Tests of config.c. Each case loads the configuration in a child process of its own, with an
 * environment of its own and its output in pipes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "server/config.h"

enum { ARGS = 24 };

struct run {
    const char *args[ARGS]; /* without the program's name */
    const char *env[ARGS];  /* beside HOME */
    bool no_home;
};

static char out[32768], err[8192];
static char dir[] = "/tmp/test_config.XXXXXX";

static void read_all(int fd, char *to, size_t cap)
{
    size_t at = 0;
    ssize_t n;

    while ((n = read(fd, to + at, cap - 1 - at)) > 0)
        at += (size_t)n;
    to[at] = '\0';
    assert_true(at < cap - 1);
    close(fd);
}

/* Returns config_load's result; on 0 the child has printed the configuration. */
static int load(const struct run *r)
{
    int o[2], e[2], status;

    assert_int_equal(pipe(o), 0);
    assert_int_equal(pipe(e), 0);
    fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        char *argv[ARGS + 2] = {(char *)(uintptr_t) "batchfetch"};
        int argc = 1;
        struct config c;
        dup2(o[1], STDOUT_FILENO);
        dup2(e[1], STDERR_FILENO);
        clearenv();
        if (!r->no_home)
            setenv("HOME", "/home/someone", 1);
        for (int i = 0; i < ARGS && r->env[i] != NULL; i++)
            putenv(strdup(r->env[i]));
        for (int i = 0; i < ARGS && r->args[i] != NULL; i++)
            argv[argc++] = strdup(r->args[i]);
        int rc = config_load(&c, argc, argv);
        if (rc == 0) {
            config_print(&c);
            printf("check=%d list_routes=%d version=%s\n", c.check, c.list_routes,
                   batchfetch_version);
            config_fini(&c);
            config_fini(&c);
        }
        for (int i = 1; i < argc; i++)
            free(argv[i]);
        fflush(stdout);
        _exit(-rc & 0xff);
    }
    close(o[1]);
    close(e[1]);
    read_all(o[0], out, sizeof(out));
    read_all(e[0], err, sizeof(err));
    assert_int_equal(waitpid(pid, &status, 0), pid);
    if (!WIFEXITED(status))
        fail_msg("the child ended with status %x: %s", (unsigned)status, err);
    return -(int)(int8_t)WEXITSTATUS(status);
}

static void expect_line(const char *line)
{
    size_t n = strlen(line);

    for (const char *p = out; (p = strstr(p, line)) != NULL; p++)
        if ((p == out || p[-1] == '\n') && p[n] == '\n')
            return;
    fail_msg("no line \"%s\" in:\n%s(stderr: %s)", line, out, err);
}

static const char *write_file(const char *name, const char *text, size_t n)
{
    static char path[128];
    snprintf(path, sizeof(path), "%s/%s", dir, name);
    FILE *f = fopen(path, "w");

    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
    return path;
}

static void test_defaults(void **state)
{
    static const char *const lines[] = {
        "listen = 127.0.0.1:8080",
        "data = /home/someone/.local/share/batchfetch",
        "max-parallel = auto",
        "max-per-host = 16",
        "rate-per-host = none",
        "fetchers = auto",
        "# allow-net =",
        "# dns-servers =",
        "# ca-file =",
        "user-agent = batchfetch/0.1.0",
        "timeout-ms = 30000",
        "connect-timeout-ms = 10000",
        "max-body-bytes = 10485760",
        "max-submission-bytes = 2147483648",
        "max-urls = 10000000",
        "max-connections = 1024",
        "memory-limit = auto",
        "max-disk = auto",
        "retain = 7d",
        "backup-max-log = auto",
        "log-level = info",
        "log-format = text",
        "log-requests = no",
        "check=0 list_routes=0 version=0.1.0",
    };

    (void)state;
    assert_int_equal(load(&(struct run){0}), 0);
    for (size_t i = 0; i < ARRAY_LEN(lines); i++)
        expect_line(lines[i]);
    assert_string_equal(err, "");
}

static void test_data(void **state)
{
    static const struct {
        struct run r;
        const char *line;
    } rows[] = {
        {{.env = {"STATE_DIRECTORY=/var/lib/b", "XDG_DATA_HOME=/x"}}, "data = /var/lib/b"},
        {{.env = {"STATE_DIRECTORY=/var/lib/b:/var/lib/c"}}, "data = /var/lib/b"},
        {{.env = {"XDG_DATA_HOME=/x"}}, "data = /x/batchfetch"},
        {{.env = {"XDG_DATA_HOME=relative"}}, "data = /home/someone/.local/share/batchfetch"},
        {{.env = {"BATCHFETCH_DATA=/e", "STATE_DIRECTORY=/s"}}, "data = /e"},
        {{.env = {"BATCHFETCH_DATA=/e"}, .args = {"--data", "d"}}, "data = d"},
        {{.no_home = true, .args = {"--data=/d"}}, "data = /d"},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
        if (load(&rows[i].r) != 0)
            fail_msg("%s: %s", rows[i].line, err);
        expect_line(rows[i].line);
    }
    assert_int_equal(load(&(struct run){.no_home = true}), E_INVAL);
    assert_non_null(strstr(err, "--data"));
}

static void test_values(void **state)
{
    static const struct {
        const char *args[6];
        const char *line;
    } rows[] = {
        {{"--listen", "127.0.0.1:0"}, "listen = 127.0.0.1:0"},
        {{"--listen=127.1.2.3:65535"}, "listen = 127.1.2.3:65535"},
        {{"--listen", "localhost:99"}, "listen = 127.0.0.1:99"},
        {{"--listen", "[::1]:8081"}, "listen = [::1]:8081"},
        {{"--max-parallel", "5000"}, "max-parallel = 5000"},
        {{"--max-parallel", "5", "--max-parallel", "auto"}, "max-parallel = auto"},
        {{"--max-per-host=1"}, "max-per-host = 1"},
        {{"--max-per-host=1", "--max-per-host=2"}, "max-per-host = 2"},
        {{"--rate-per-host", "0.5"}, "rate-per-host = 0.500"},
        {{"--rate-per-host", "20"}, "rate-per-host = 20"},
        {{"--rate-per-host", "0.001"}, "rate-per-host = 0.001"},
        {{"--rate-per-host", "1000000.000"}, "rate-per-host = 1000000"},
        {{"--rate-per-host", "123456.789"}, "rate-per-host = 123456.789"},
        {{"--rate-per-host", "5", "--rate-per-host", "none"}, "rate-per-host = none"},
        {{"--fetchers", "4"}, "fetchers = 4"},
        {{"--allow-net", "127.0.0.0/8"}, "allow-net = 127.0.0.0/8"},
        {{"--allow-net", "10.0.0.0/8,::1", "--allow-net", "192.168.0.1"},
         "allow-net = 10.0.0.0/8,::1/128,192.168.0.1/32"},
        {{"--allow-net", "10.0.0.0/8, fd00::/8"}, "allow-net = 10.0.0.0/8,fd00::/8"},
        {{"--dns-servers", "192.0.2.1"}, "dns-servers = 192.0.2.1"},
        {{"--dns-servers", "192.0.2.1:5353,[::1]:53,::1"},
         "dns-servers = 192.0.2.1:5353,[::1]:53,::1"},
        {{"--ca-file", "/proc/self/exe"}, "ca-file = /proc/self/exe"},
        {{"--user-agent", "me/1 (+https://example.org)"},
         "user-agent = me/1 (+https://example.org)"},
        {{"--user-agent=--odd"}, "user-agent = --odd"},
        {{"--timeout-ms", "1"}, "timeout-ms = 1"},
        {{"--connect-timeout-ms", "600000"}, "connect-timeout-ms = 600000"},
        {{"--max-body-bytes", "0"}, "max-body-bytes = 0"},
        {{"--max-body-bytes", "512k"}, "max-body-bytes = 524288"},
        {{"--max-body-bytes", "3M"}, "max-body-bytes = 3145728"},
        {{"--max-body-bytes", "3MiB"}, "max-body-bytes = 3145728"},
        {{"--max-body-bytes", "1g"}, "max-body-bytes = 1073741824"},
        {{"--max-submission-bytes", "1000KB"}, "max-submission-bytes = 1024000"},
        {{"--max-urls", "1000000000"}, "max-urls = 1000000000"},
        {{"--max-connections", "1"}, "max-connections = 1"},
        {{"--memory-limit", "128m"}, "memory-limit = 134217728"},
        {{"--memory-limit", "auto"}, "memory-limit = auto"},
        {{"--max-disk", "16m"}, "max-disk = 16777216"},
        {{"--max-disk", "auto"}, "max-disk = auto"},
        {{"--max-disk", "none"}, "max-disk = none"},
        {{"--retain", "90s"}, "retain = 90s"},
        {{"--retain", "120m"}, "retain = 7200s"},
        {{"--retain", "48h"}, "retain = 2d"},
        {{"--retain", "2w"}, "retain = 14d"},
        {{"--retain", "3650d"}, "retain = 3650d"},
        {{"--retain", "never"}, "retain = never"},
        {{"--log-level", "debug"}, "log-level = debug"},
        {{"--log-format", "json"}, "log-format = json"},
        {{"--log-requests", "yes"}, "log-requests = yes"},
        {{"--check"}, "check=1 list_routes=0 version=0.1.0"},
        {{"--list-routes"}, "check=0 list_routes=1 version=0.1.0"},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
        struct run r = {0};
        memcpy(r.args, rows[i].args, sizeof(rows[i].args));
        if (load(&r) != 0)
            fail_msg("\"%s\" refused: %s", rows[i].line, err);
        expect_line(rows[i].line);
    }
}

static void test_errors(void **state)
{
    static const struct {
        const char *args[4];
        const char *part[2]; /* of the message */
    } rows[] = {
        {{"--listen", "0.0.0.0:80"}, {"--listen", "loopback"}},
        {{"--listen", "[::]:80"}, {"--listen", "loopback"}},
        {{"--listen", "192.0.2.1:80"}, {"--listen", "loopback"}},
        {{"--listen", "127.0.0.1"}, {"--listen", "port is missing"}},
        {{"--listen", "127.0.0.1:"}, {"--listen", "port"}},
        {{"--listen", "127.0.0.1:65536"}, {"--listen", "0 to 65535"}},
        {{"--listen", "127.0.0.1:-1"}, {"--listen", "port"}},
        {{"--listen", "example.com:80"}, {"--listen", "IP address"}},
        {{"--listen", "::1:80"}, {"--listen", "brackets"}},
        {{"--listen", "[::1:80"}, {"--listen", "]"}},
        {{"--listen", "[::1]80"}, {"--listen", "]"}},
        {{"--listen", ""}, {"--listen", "port is missing"}},
        {{"--data", ""}, {"--data", "empty"}},
        {{"--data", "a\nb"}, {"--data", "control"}},
        {{"--data", "a\xff"}, {"--data", "UTF-8"}},
        {{"--max-parallel", "0"}, {"--max-parallel", "1 to 1000000"}},
        {{"--max-parallel", "many"}, {"\"many\"", "whole number"}},
        {{"--max-per-host", "auto"}, {"--max-per-host", "whole number"}},
        {{"--max-per-host", "0"}, {"--max-per-host", "range"}},
        {{"--max-per-host", "1k"}, {"--max-per-host", "whole number"}},
        {{"--max-per-host", "1.5"}, {"--max-per-host", "whole number"}},
        {{"--max-per-host", " 1"}, {"--max-per-host", "whole number"}},
        {{"--max-per-host", "+1"}, {"--max-per-host", "whole number"}},
        {{"--max-per-host", "4294967297"}, {"--max-per-host", "range"}},
        {{"--rate-per-host", "0"}, {"--rate-per-host", "0.001 to 1000000"}},
        {{"--rate-per-host", "1000000.001"}, {"--rate-per-host", "range"}},
        {{"--rate-per-host", "99999999999999999999999"}, {"--rate-per-host", "range"}},
        {{"--rate-per-host", "0.0001"}, {"--rate-per-host", "decimal places"}},
        {{"--rate-per-host", "1."}, {"--rate-per-host", "neither"}},
        {{"--rate-per-host", ".5"}, {"--rate-per-host", "neither"}},
        {{"--rate-per-host", "1e3"}, {"--rate-per-host", "neither"}},
        {{"--rate-per-host", "-1"}, {"--rate-per-host", "neither"}},
        {{"--rate-per-host", ""}, {"--rate-per-host", "neither"}},
        {{"--max-urls", "99999999999999999999999"}, {"--max-urls", "range"}},
        {{"--fetchers", "65"}, {"--fetchers", "1 to 64"}},
        {{"--timeout-ms", "30s"}, {"--timeout-ms", "whole number"}},
        {{"--timeout-ms", "3600001"}, {"--timeout-ms", "range"}},
        {{"--max-body-bytes", "10x"}, {"--max-body-bytes", "size"}},
        {{"--max-body-bytes", "k"}, {"--max-body-bytes", "size"}},
        {{"--max-body-bytes", "1kk"}, {"--max-body-bytes", "size"}},
        {{"--max-body-bytes", "2g"}, {"--max-body-bytes", "range"}},
        {{"--memory-limit", "63m"}, {"--memory-limit", "range"}},
        {{"--max-disk", "15m"}, {"--max-disk", "range"}},
        {{"--max-disk", "all"}, {"--max-disk", "size"}},
        {{"--max-submission-bytes", "18014398509481984k"}, {"--max-submission-bytes", "range"}},
        {{"--allow-net", "10.0.0.1/8"}, {"--allow-net", "behind the prefix"}},
        {{"--allow-net", "10.0.0.0/8,x"}, {"--allow-net", "\"x\""}},
        {{"--allow-net", "example.com"}, {"--allow-net", "example.com"}},
        {{"--dns-servers", "dns.example"}, {"--dns-servers", "IP address"}},
        {{"--dns-servers", "192.0.2.1:0"}, {"--dns-servers", "port 0"}},
        {{"--dns-servers", "192.0.2.1,"}, {"--dns-servers", "IP address"}},
        {{"--dns-servers", "[192.0.2.1]:53"}, {"--dns-servers", "IP address"}},
        {{"--ca-file", "/no/such/file"}, {"--ca-file", "No such file"}},
        {{"--ca-file", "/"}, {"--ca-file", "not a file"}},
        {{"--retain", "7"}, {"--retain", "90s, 12h or 7d"}},
        {{"--retain", "d"}, {"--retain", "90s, 12h or 7d"}},
        {{"--retain", "7days"}, {"--retain", "90s, 12h or 7d"}},
        {{"--retain", "-7d"}, {"--retain", "90s, 12h or 7d"}},
        {{"--retain", "0s"}, {"--retain", "range"}},
        {{"--retain", "3651d"}, {"--retain", "range"}},
        {{"--retain", "99999999999999999999w"}, {"--retain", "range"}},
        {{"--log-level", "trace"}, {"--log-level", "error, warn, info, debug"}},
        {{"--log-format", "xml"}, {"--log-format", "text, json"}},
        {{"--log-requests", "true"}, {"--log-requests", "yes, no"}},
        {{"--log-level", "INFO"}, {"--log-level", "error, warn, info, debug"}},
        {{"--max-url", "5"}, {"--max-url\"", "did you mean \"--max-urls\"?"}},
        {{"--max-paralel=5"}, {"unknown option", "\"--max-parallel\""}},
        {{"--alow-net", "::1"}, {"unknown option", "\"--allow-net\""}},
        {{"--max-conn", "5"}, {"unknown option", "\"--max-connections\""}},
        {{"--timeout_ms", "5"}, {"unknown option", "\"--timeout-ms\""}},
        {{"--zzzzzz"}, {"unknown option \"--zzzzzz\"", "--help"}},
        {{"--a-name-that-is-much-longer-than-any-that-there-is-in-this-program-and-some-more"},
         {"unknown option", "--help"}},
        {{"--max-urls"}, {"--max-urls", "missing"}},
        {{"--max-urls", "--check"}, {"--max-urls", "missing"}},
        {{"--check=1"}, {"--check", "takes no value"}},
        {{"file"}, {"unexpected argument", "\"file\""}},
        {{"backup"}, {"backup", "FILE is missing"}},
        {{"backup", "a", "b"}, {"unexpected argument", "\"b\""}},
        {{"file", "backup"}, {"unexpected argument", "\"file\""}},
        {{"backup", "-a"}, {"unexpected argument", "\"-a\""}},
        {{"backup", "a", "--backup-max-log", "1k"}, {"--backup-max-log", "range"}},
        {{"-x"}, {"unexpected argument", "\"-x\""}},
        {{"--"}, {"unexpected argument", "\"--\""}},
        {{"--config", "/no/such/file"}, {"/no/such/file", "No such file"}},
        {{"--config"}, {"--config", "missing"}},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
        struct run r = {0};
        memcpy(r.args, rows[i].args, sizeof(rows[i].args));
        int rc = load(&r);
        if (rc != E_INVAL || strncmp(err, "batchfetch: ", 12) != 0 ||
            strstr(err, rows[i].part[0]) == NULL || strstr(err, rows[i].part[1]) == NULL)
            fail_msg("%s %s: rc %d: %s", rows[i].args[0], rows[i].args[1], rc, err);
        if (strchr(err, '\n') == NULL || strchr(err, '\n')[1] != '\0')
            fail_msg("not one line: %s", err);
        if (rows[i].args[0][2] != 'c' && strstr(err, "command line") == NULL)
            fail_msg("no source: %s", err);
        assert_string_equal(out, "");
    }
}

static void test_environment(void **state)
{
    (void)state;
    assert_int_equal(load(&(struct run){
                         .env = {"BATCHFETCH_MAX_PER_HOST=7", "BATCHFETCH_ALLOW_NET=10.0.0.0/8,::1",
                                 "BATCHFETCH_LOG_LEVEL=warn", "BATCHFETCH_PORT=tcp://10.0.0.1:80",
                                 "BATCHFETCH_SERVICE_HOST=10.0.0.1"},
                         .args = {"--log-level", "error", "--allow-net", "fd00::/8"}}),
                     0);
    expect_line("max-per-host = 7");
    expect_line("log-level = error");
    expect_line("allow-net = 10.0.0.0/8,::1/128,fd00::/8");
    assert_string_equal(err, "");

    assert_int_equal(load(&(struct run){.env = {"BATCHFETCH_MAX_URLS=x"}}), E_INVAL);
    assert_non_null(strstr(err, "environment: BATCHFETCH_MAX_URLS: \"x\""));
    assert_int_equal(load(&(struct run){.env = {"BATCHFETCH_MAX_URL=5"}}), E_INVAL);
    assert_non_null(strstr(err, "did you mean BATCHFETCH_MAX_URLS?"));
    /* Flags are for the command line. */
    assert_int_equal(load(&(struct run){.env = {"BATCHFETCH_CHECK=1"}}), 0);
    expect_line("check=0 list_routes=0 version=0.1.0");
    assert_string_equal(err, "batchfetch: environment: BATCHFETCH_CHECK is ignored: command line "
                             "only\n");
    /* Nor is there a port of its own. */
    static const char *const others[] = {"BATCHFETCH_PORT=9000", "BATCHFETCH_PORT=", "BATCHFETCH_=",
                                         "BATCHFETCH_SERVICE_PORT=1", "BATCHFETCH_THREADS=4"};
    for (size_t i = 0; i < ARRAY_LEN(others); i++) {
        assert_int_equal(load(&(struct run){.env = {others[i]}}), 0);
        char line[200];
        snprintf(line, sizeof(line), "environment: %.*s is ignored: there is no such option\n",
                 (int)strcspn(others[i], "="), others[i]);
        assert_non_null(strstr(err, line));
    }
}

static void test_file(void **state)
{
    static const char good[] = "# a comment\n\n  max-urls=5  \r\n\tmax-per-host \t=\t 6\n"
                               "user-agent = a = b # c\nallow-net = 10.0.0.0/8\n"
                               "allow-net = ::1\nmax-urls = 7\nlog-level = warn";
    static const struct {
        const char *text;
        const char *part[2];
    } bad[] = {
        {"max-urls = 5\n\nmax-urls = x\n", {":3: max-urls: \"x\"", "whole number"}},
        {"max-url = 5\n", {":1: unknown option \"max-url\"", "\"max-urls\""}},
        {"# x\nmax-urls 5\n", {":2: ", "name = value"}},
        {"--max-urls = 5\n", {":1: unknown option", ""}},
        {"check = 1\n", {":1: check", "command line only"}},
        {"config = x\n", {":1: config", "command line only"}},
        {"help = x\n", {":1: help", "command line only"}},
        {"= 5\n", {":1: unknown option", ""}},
        {"max-urls =\n", {":1: max-urls: \"\"", "whole number"}},
    };
    char option[160], env[192];

    (void)state;
    const char *path = write_file("good.conf", good, sizeof(good) - 1);
    snprintf(option, sizeof(option), "--config=%s", path);
    snprintf(env, sizeof(env), "BATCHFETCH_CONFIG=%s", path);
    const struct run runs[] = {{.args = {option}},
                               {.env = {env}},
                               {.args = {option}, .env = {"BATCHFETCH_CONFIG=/no/such"}},
                               {.args = {"--config", "/no/such", option}}};
    for (size_t i = 0; i < ARRAY_LEN(runs); i++) {
        assert_int_equal(load(&runs[i]), 0);
        expect_line("max-urls = 7");
        expect_line("max-per-host = 6");
        expect_line("user-agent = a = b # c");
        expect_line("allow-net = 10.0.0.0/8,::1/128");
        expect_line("log-level = warn");
    }
    /* File, environment, command line: the later wins. */
    assert_int_equal(load(&(struct run){.args = {"--max-urls", "9", option},
                                        .env = {"BATCHFETCH_MAX_URLS=8", "BATCHFETCH_LOG_LEVEL="
                                                                         "debug"}}),
                     0);
    expect_line("max-urls = 9");
    expect_line("log-level = debug");
    expect_line("max-per-host = 6");

    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        path = write_file("bad.conf", bad[i].text, strlen(bad[i].text));
        snprintf(option, sizeof(option), "--config=%s", path);
        assert_int_equal(load(&(struct run){.args = {option}}), E_INVAL);
        if (strstr(err, path) == NULL || strstr(err, bad[i].part[0]) == NULL ||
            strstr(err, bad[i].part[1]) == NULL)
            fail_msg("%s: %s", bad[i].text, err);
    }
    path = write_file("nul.conf", "max-urls = 5\nuser-agent = a\0b\n", 30);
    snprintf(option, sizeof(option), "--config=%s", path);
    assert_int_equal(load(&(struct run){.args = {option}}), E_INVAL);
    assert_non_null(strstr(err, ":2: "));
    char *longer = malloc(20000);
    memset(longer, '#', 20000);
    path = write_file("long.conf", longer, 20000);
    free(longer);
    assert_int_equal(load(&(struct run){.args = {option, "--config", path}}), E_INVAL);
    assert_non_null(strstr(err, ":1: the line is longer"));
    assert_int_equal(load(&(struct run){.args = {"--config", dir}}), E_INVAL);
    assert_non_null(strstr(err, "directory"));
}

/* What --check prints can be read again, and means the same. */
static void test_round_trip(void **state)
{
    char first[sizeof(out)];

    (void)state;
    assert_int_equal(
        load(&(struct run){.args = {"--listen", "[::1]:9", "--allow-net", "10.0.0.0/8,fd00::/8",
                                    "--max-parallel", "77", "--dns-servers", "192.0.2.1:54",
                                    "--user-agent", "x y", "--max-body-bytes", "5k"}}),
        0);
    char *end = strstr(out, "check=");
    assert_non_null(end);
    memcpy(first, out, sizeof(out));
    const char *path = write_file("again.conf", first, (size_t)(end - out));
    assert_int_equal(load(&(struct run){.args = {"--config", path}}), 0);
    assert_string_equal(out, first);
}

static void test_help(void **state)
{
    static const char *const args[] = {"--help", "-h", "--version", "-V"};

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(args); i++) {
        /* Whatever else is wrong further on. */
        assert_int_equal(load(&(struct run){.args = {args[i]}, .no_home = true}), 1);
        assert_string_equal(err, "");
        if (i < 2) {
            static const char *const words[] = {"Usage:",
                                                "\nService:\n",
                                                "\nFetching:\n",
                                                "\nNetwork:\n",
                                                "--listen HOST:PORT",
                                                "(default: 127.0.0.1:8080)",
                                                "--max-parallel N|auto",
                                                "--allow-net CIDR",
                                                "--dns-servers",
                                                "--ca-file",
                                                "--user-agent",
                                                "batchfetch/0.1.0",
                                                "--timeout-ms",
                                                "--connect-timeout-ms",
                                                "--max-body-bytes",
                                                "--max-submission-bytes",
                                                "--max-urls",
                                                "--max-connections",
                                                "--memory-limit",
                                                "--max-disk",
                                                "--log-level",
                                                "--config",
                                                "--check",
                                                "--list-routes",
                                                "--version",
                                                "--fetchers",
                                                "--max-per-host",
                                                "--data",
                                                "BATCHFETCH_"};
            for (size_t k = 0; k < ARRAY_LEN(words); k++)
                if (strstr(out, words[k]) == NULL)
                    fail_msg("no \"%s\" in the help", words[k]);
            for (const char *p = out; *p != '\0'; p += strcspn(p, "\n") + 1)
                assert_true(strcspn(p, "\n") <= 100);
        } else {
            assert_string_equal(out, "batchfetch 0.1.0\n");
        }
    }
    assert_int_equal(load(&(struct run){.args = {"--data", "x", "--help"}}), 1);
}

static int setup(void **state)
{
    (void)state;
    return mkdtemp(dir) != NULL ? 0 : -1;
}

static int teardown(void **state)
{
    static const char *const names[] = {"good.conf", "bad.conf", "nul.conf", "long.conf",
                                        "again.conf"};
    char path[128];

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        snprintf(path, sizeof(path), "%s/%s", dir, names[i]);
        unlink(path);
    }
    return rmdir(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),    cmocka_unit_test(test_data),
        cmocka_unit_test(test_values),      cmocka_unit_test(test_errors),
        cmocka_unit_test(test_environment), cmocka_unit_test(test_file),
        cmocka_unit_test(test_round_trip),  cmocka_unit_test(test_help),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
