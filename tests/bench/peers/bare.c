/* The physical limit: what one thread with epoll needs for the same URLs, with nothing around it.
 *
 * Usage: bare URLFILE CONNECTIONS close|keep
 *
 * Fetches the URLs of the file (http://IPV4:PORT/PATH, a line each), CONNECTIONS at once, 0: all.
 * Keeps every body in memory. Prints one line of JSON: wall and CPU seconds from before it reads
 * the file to the last body, and counts. It does nothing that a fetcher for any origin needs: no
 * names, no limits, no timeouts, no retries, no chunks. A file is all it believes. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define READ_BYTES ((size_t)256 * 1024)

struct url {
    struct sockaddr_in addr;
    const char *host; // up to path
    const char *path;
    size_t host_len;
    size_t path_len;
};

struct conn {
    int fd;        // -1: none
    uint32_t url;  // what it fetches
    bool sent;     // the request, whole
    bool reused;   // it carried a response before
    char *partial; // what came of a response that did not come in one read
    size_t have;   // bytes of it
};

static struct url *urls;
static uint32_t n_urls, next_url;
static char **bodies;
static uint32_t n_ok, n_failed, n_connects;
static bool keep;
static int ep;
static char in[READ_BYTES];

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static double seconds_of(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static bool parse_url(char *line, size_t len, struct url *u)
{
    if (len < 8 || memcmp(line, "http://", 7) != 0)
        return false;
    char *host = line + 7, *end = line + len;
    char *path = memchr(host, '/', (size_t)(end - host));
    char *colon = path ? memchr(host, ':', (size_t)(path - host)) : NULL;
    if (colon == NULL)
        return false;
    *colon = '\0';
    u->addr.sin_family = AF_INET;
    u->addr.sin_port = htons((uint16_t)strtoul(colon + 1, NULL, 10));
    if (inet_pton(AF_INET, host, &u->addr.sin_addr) != 1)
        return false;
    *colon = ':';
    u->host = host;
    u->host_len = (size_t)(path - host);
    u->path = path;
    u->path_len = (size_t)(end - path);
    return true;
}

static void read_urls(const char *path)
{
    FILE *file = fopen(path, "r");
    if (file == NULL)
        die(path);
    fseek(file, 0, SEEK_END);
    size_t size = (size_t)ftell(file);
    rewind(file);
    char *text = malloc(size + 1); // stays: the URLs point into it
    if (text == NULL || fread(text, 1, size, file) != size)
        die(path);
    fclose(file);
    text[size] = '\0';

    for (size_t i = 0; i < size; i++)
        n_urls += text[i] == '\n';
    urls = calloc(n_urls, sizeof *urls);
    bodies = calloc(n_urls, sizeof *bodies);
    if (urls == NULL || bodies == NULL)
        die("memory");
    char *line = text;
    for (uint32_t i = 0; i < n_urls; i++) {
        char *end = strchr(line, '\n');
        if (!parse_url(line, (size_t)(end - line), &urls[i])) {
            fprintf(stderr, "bare: line %u is no http://IPV4:PORT/PATH\n", i + 1);
            exit(1);
        }
        line = end + 1;
    }
}

static bool same_origin(const struct url *a, const struct url *b)
{
    return a->addr.sin_addr.s_addr == b->addr.sin_addr.s_addr &&
           a->addr.sin_port == b->addr.sin_port;
}

static void disconnect(struct conn *c)
{
    if (c->fd >= 0)
        close(c->fd);
    c->fd = -1;
    c->have = 0;
}

static void connect_it(struct conn *c)
{
    const struct url *u = &urls[c->url];
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0)
        die("socket");
    int one = 1;
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    c->sent = c->reused = false;
    c->have = 0;
    n_connects++;
    if (connect(c->fd, (const struct sockaddr *)&u->addr, sizeof u->addr) != 0 &&
        errno != EINPROGRESS)
        die("connect");
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.ptr = c};
    if (epoll_ctl(ep, EPOLL_CTL_ADD, c->fd, &event) != 0)
        die("epoll_ctl");
}

// -> whether the connection still stands
static bool send_it(struct conn *c)
{
    const struct url *u = &urls[c->url];
    char request[1024];
    int len = snprintf(request, sizeof request,
                       "GET %.*s HTTP/1.1\r\nHost: %.*s\r\nUser-Agent: bare\r\nAccept: */*\r\n\r\n",
                       (int)u->path_len, u->path, (int)u->host_len, u->host);
    ssize_t n = send(c->fd, request, (size_t)len, MSG_NOSIGNAL);
    if (n == len) {
        c->sent = true;
        return true;
    }
    return n < 0 && (errno == EAGAIN || errno == ENOTCONN); // a short write: give up
}

// Takes the next URL, on this connection if it may be kept. -> whether there is one
static bool take_next(struct conn *c, bool stays)
{
    if (next_url == n_urls) {
        disconnect(c);
        return false;
    }
    uint32_t before = c->url;
    c->url = next_url++;
    if (stays && c->fd >= 0 && same_origin(&urls[before], &urls[c->url])) {
        c->reused = true;
        c->sent = false;
        c->have = 0;
        if (send_it(c))
            return true;
    }
    disconnect(c);
    connect_it(c);
    return true;
}

// -> bytes of the response, 0: it is not whole yet, -1: no HTTP that we know
static ssize_t parse(const char *data, size_t len, uint32_t url, bool *stays)
{
    const char *end = memmem(data, len, "\r\n\r\n", 4);
    if (end == NULL)
        return len > 16384 ? -1 : 0;
    if (len < 12 || memcmp(data, "HTTP/1.1 200", 12) != 0)
        return -1;
    size_t body = SIZE_MAX;
    for (const char *line = data; line < end;) {
        line = (const char *)memmem(line, (size_t)(end + 2 - line), "\r\n", 2) + 2;
        if (strncasecmp(line, "Content-Length:", 15) == 0)
            body = strtoul(line + 15, NULL, 10);
        else if (strncasecmp(line, "Connection: close", 17) == 0)
            *stays = false;
    }
    size_t head = (size_t)(end + 4 - data);
    if (body == SIZE_MAX)
        return -1;
    if (len < head + body)
        return 0;
    bodies[url] = malloc(body + 1);
    if (bodies[url] == NULL)
        die("memory");
    memcpy(bodies[url], data + head, body);
    bodies[url][body] = '\0';
    return (ssize_t)(head + body);
}

static void failed(struct conn *c, uint32_t *open)
{
    n_failed++;
    disconnect(c);
    if (!take_next(c, false))
        (*open)--;
}

// Keeps what is there of a response for the next read.
static void put_aside(struct conn *c, size_t len)
{
    if (c->partial == NULL)
        c->partial = malloc(READ_BYTES);
    if (c->partial == NULL)
        die("memory");
    memcpy(c->partial, in, len);
    c->have = len;
}

static void on_event(struct conn *c, uint32_t *open)
{
    if (c->fd < 0)
        return;
    if (!c->sent) {
        if (!send_it(c)) {
            failed(c, open);
            return;
        }
        if (!c->sent)
            return;
    }
    if (c->have > 0)
        memcpy(in, c->partial, c->have);
    ssize_t n = recv(c->fd, in + c->have, READ_BYTES - c->have, 0);
    if (n < 0 && errno == EAGAIN)
        return;
    if (n <= 0) {
        if (c->reused && c->have == 0) { // closed while it was idle: once more, on a new one
            disconnect(c);
            connect_it(c);
        } else
            failed(c, open);
        return;
    }
    size_t len = c->have + (size_t)n;
    bool stays = keep;
    ssize_t whole = parse(in, len, c->url, &stays);
    if (whole < 0 || (whole > 0 && (size_t)whole != len)) {
        failed(c, open);
        return;
    }
    if (whole == 0) {
        put_aside(c, len);
        // Edge-triggered: what came meanwhile would not be told again.
        struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.ptr = c};
        epoll_ctl(ep, EPOLL_CTL_MOD, c->fd, &event);
        return;
    }
    n_ok++;
    if (!take_next(c, stays))
        (*open)--;
}

int main(int argc, char **argv)
{
    if (argc != 4) {
        fprintf(stderr, "usage: bare URLFILE CONNECTIONS close|keep\n");
        return 2;
    }
    double began = seconds_of(CLOCK_MONOTONIC), cpu = seconds_of(CLOCK_PROCESS_CPUTIME_ID);
    read_urls(argv[1]);
    keep = strcmp(argv[3], "keep") == 0;
    uint32_t n_conns = (uint32_t)strtoul(argv[2], NULL, 10);
    if (n_conns == 0 || n_conns > n_urls)
        n_conns = n_urls;
    ep = epoll_create1(EPOLL_CLOEXEC);
    struct conn *conns = calloc(n_conns, sizeof *conns);
    if (ep < 0 || conns == NULL)
        die("epoll");

    uint32_t open = 0;
    struct epoll_event events[1024];
    for (uint32_t i = 0; i < n_conns; i++) {
        conns[i].fd = -1;
        open += take_next(&conns[i], false);
        if (i % 256 != 255)
            continue;
        // Answers of the first are read while the last connect.
        int n = epoll_wait(ep, events, 1024, 0);
        for (int k = 0; k < n; k++)
            on_event(events[k].data.ptr, &open);
    }
    while (open > 0) {
        int n = epoll_wait(ep, events, 1024, 60000);
        if (n == 0) {
            fprintf(stderr, "bare: nothing happened for 60 s\n");
            break;
        }
        for (int k = 0; k < n; k++)
            on_event(events[k].data.ptr, &open);
    }
    printf("{\"wall\": %.6f, \"cpu\": %.6f, \"ok\": %u, \"failed\": %u, \"connects\": %u}\n",
           seconds_of(CLOCK_MONOTONIC) - began, seconds_of(CLOCK_PROCESS_CPUTIME_ID) - cpu, n_ok,
           n_urls - n_ok, n_connects);
    return 0;
}
