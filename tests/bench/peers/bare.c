/* The floor: what a client costs that does nothing but move the bytes. One thread, epoll, HTTP/1.1
 * with keep-alive, no names, no TLS, no limits but a number of connections. It keeps the bodies in
 * memory and trusts its origin (Content-Length, no chunks).
 *
 * bare CONNECTIONS FILE: the URLs of FILE, http://ADDRESS:PORT/PATH each; prints JSON. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

enum { EVENTS = 512, INPUT = 16384 };

struct request {
    struct sockaddr_in to;
    char *text; /* request line and fields, whole */
    char *body;
    size_t body_len;
};

struct conn {
    int fd;
    struct sockaddr_in to;
    size_t request; /* index */
    size_t sent, got;
    long need; /* of the whole response; -1: not known yet */
    char *in;
    bool connecting;
};

static struct request *requests;
static size_t n_requests, next_request, n_done, n_failed, n_open;
static int ep;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void load(const char *path)
{
    FILE *f = fopen(path, "r");
    char line[4096];
    size_t cap = 0;
    if (f == NULL)
        die(path);
    while (fgets(line, sizeof(line), f) != NULL) {
        char host[64], target[2048] = "/";
        unsigned port = 80;
        line[strcspn(line, "\r\n")] = '\0';
        if (sscanf(line, "http://%63[0-9.]:%u%2047s", host, &port, target) < 2)
            continue;
        if (n_requests == cap) {
            cap = cap == 0 ? 1024 : cap * 2;
            requests = realloc(requests, cap * sizeof(*requests));
        }
        struct request *r = &requests[n_requests++];
        memset(r, 0, sizeof(*r));
        r->to.sin_family = AF_INET;
        r->to.sin_port = htons((uint16_t)port);
        inet_pton(AF_INET, host, &r->to.sin_addr);
        if (asprintf(&r->text, "GET %s HTTP/1.1\r\nHost: %s:%u\r\nAccept: */*\r\n\r\n", target,
                     host, port) < 0)
            die("asprintf");
    }
    fclose(f);
}

static void give_up(struct conn *c)
{
    n_failed++;
    n_done++;
    close(c->fd);
    n_open--;
    free(c->in);
    free(c);
}

static void send_request(struct conn *c)
{
    const char *text = requests[c->request].text;
    size_t len = strlen(text);
    ssize_t n = send(c->fd, text + c->sent, len - c->sent, MSG_NOSIGNAL);
    if (n < 0 && errno != EAGAIN) {
        give_up(c);
        return;
    }
    c->sent += n > 0 ? (size_t)n : 0;
    struct epoll_event e = {.events = c->sent < len ? EPOLLOUT : EPOLLIN, .data.ptr = c};
    if (c->connecting || c->sent < len)
        epoll_ctl(ep, EPOLL_CTL_MOD, c->fd, &e);
    c->connecting = false;
}

static void start(struct conn *c, size_t request)
{
    c->request = request;
    c->sent = c->got = 0;
    c->need = -1;
}

static void open_conn(void)
{
    struct conn *c = calloc(1, sizeof(*c));
    start(c, next_request++);
    c->to = requests[c->request].to;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    n_open++;
    if (c->fd < 0 ||
        (connect(c->fd, (struct sockaddr *)&c->to, sizeof(c->to)) != 0 && errno != EINPROGRESS)) {
        give_up(c);
        return;
    }
    int one = 1;
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    c->connecting = true;
    c->in = malloc(INPUT);
    struct epoll_event e = {.events = EPOLLOUT, .data.ptr = c};
    epoll_ctl(ep, EPOLL_CTL_ADD, c->fd, &e);
}

/* The next request of the same origin, or none: the list is in order, so that is the next one. */
static void go_on(struct conn *c)
{
    if (next_request < n_requests &&
        memcmp(&requests[next_request].to, &c->to, sizeof(c->to)) == 0) {
        start(c, next_request++);
        send_request(c);
        return;
    }
    close(c->fd);
    n_open--;
    free(c->in);
    free(c);
}

static void receive(struct conn *c)
{
    ssize_t n = recv(c->fd, c->in + c->got, INPUT - 1 - c->got, 0);
    if (n < 0 && errno == EAGAIN)
        return;
    if (n <= 0) {
        give_up(c);
        return;
    }
    c->got += (size_t)n;
    c->in[c->got] = '\0';
    if (c->need < 0) {
        char *end = strstr(c->in, "\r\n\r\n"), *length = strcasestr(c->in, "\r\nContent-Length:");
        if (end == NULL)
            return;
        c->need = end + 4 - c->in + (length != NULL ? strtol(length + 17, NULL, 10) : 0);
    }
    if ((long)c->got < c->need)
        return;
    struct request *r = &requests[c->request];
    char *body = strstr(c->in, "\r\n\r\n") + 4;
    r->body_len = (size_t)(c->in + c->need - body);
    r->body = malloc(r->body_len + 1);
    memcpy(r->body, body, r->body_len);
    n_failed += memcmp(c->in + 9, "200", 3) != 0;
    n_done++;
    go_on(c);
}

int main(int argc, char **argv)
{
    if (argc != 3)
        return 2;
    size_t most = strtoul(argv[1], NULL, 10);
    struct rlimit r;
    getrlimit(RLIMIT_NOFILE, &r);
    r.rlim_cur = r.rlim_max;
    setrlimit(RLIMIT_NOFILE, &r);
    load(argv[2]);
    ep = epoll_create1(EPOLL_CLOEXEC);
    double begin = now();
    while (n_done < n_requests) {
        for (int i = 0; i < 256 && n_open < most && next_request < n_requests; i++)
            open_conn();
        struct epoll_event v[EVENTS];
        bool more = n_open < most && next_request < n_requests;
        int n = epoll_wait(ep, v, EVENTS, more ? 0 : 1000);
        for (int i = 0; i < n; i++) {
            struct conn *c = v[i].data.ptr;
            if (c->connecting || v[i].events & EPOLLOUT)
                send_request(c);
            else
                receive(c);
        }
    }
    double wall = now() - begin;
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    double cpu = (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
                 (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
    printf("{\"wall\": %.4f, \"cpu\": %.3f, \"done\": %zu, \"failed\": %zu}\n", wall, cpu, n_done,
           n_failed);
    return 0;
}
