/* Status polls on a fixed schedule, whatever the answers take: the poll of the k-th moment counts
 * from that moment, also when it had to wait for a free connection.
 *
 * Usage: poll PORT PATH RATE SECONDS CONNECTIONS
 *
 * Asks GET PATH of 127.0.0.1:PORT, RATE times a second. Prints one line of JSON: quantiles of the
 * latency in ms, from the scheduled moment ("scheduled") and from the sending ("sent"). It takes a
 * real-time priority if it may, so that its own waiting for a processor is not counted: it stands
 * for a client on another machine. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

struct conn {
    int fd;
    bool busy;
    uint32_t poll; // what it waits for
    size_t have;
    char in[16384];
};

static struct conn *conns;
static uint32_t n_conns;
static char request[2048];
static size_t request_len;
static double *scheduled, *sent, *latency, *latency_sent; // of each poll, seconds
static uint32_t n_done, n_failed;

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void ask(struct conn *c, uint32_t poll)
{
    c->busy = true;
    c->poll = poll;
    c->have = 0;
    sent[poll] = now();
    if (send(c->fd, request, request_len, MSG_NOSIGNAL) != (ssize_t)request_len)
        die("send");
}

// -> whether the answer is whole
static bool answer(struct conn *c)
{
    ssize_t n = recv(c->fd, c->in + c->have, sizeof c->in - 1 - c->have, 0);
    if (n <= 0) {
        if (n < 0 && errno == EAGAIN)
            return false;
        die("the service closed a connection");
    }
    c->have += (size_t)n;
    c->in[c->have] = '\0';
    char *end = strstr(c->in, "\r\n\r\n");
    if (end == NULL)
        return false;
    char *length = strcasestr(c->in, "\r\nContent-Length:");
    if (length == NULL || length > end)
        die("an answer without Content-Length");
    size_t whole = (size_t)(end + 4 - c->in) + strtoul(length + 17, NULL, 10);
    if (c->have < whole)
        return false;
    if (strncmp(c->in, "HTTP/1.1 200", 12) != 0)
        n_failed++;
    double at = now();
    latency[n_done] = at - scheduled[c->poll];
    latency_sent[n_done++] = at - sent[c->poll];
    c->busy = false;
    return true;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void print_quantiles(const char *name, double *values)
{
    qsort(values, n_done, sizeof *values, by_value);
    printf("\"%s\": {\"p50\": %.3f, \"p90\": %.3f, \"p99\": %.3f, \"max\": %.3f}, ", name,
           values[n_done / 2] * 1e3, values[(size_t)(n_done * 0.9)] * 1e3,
           values[(size_t)(n_done * 0.99)] * 1e3, values[n_done - 1] * 1e3);
}

static void open_conns(int ep, uint16_t port)
{
    struct sockaddr_in addr = {.sin_family = AF_INET, .sin_port = htons(port)};
    addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    for (uint32_t i = 0; i < n_conns; i++) {
        conns[i].fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        int one = 1;
        setsockopt(conns[i].fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        if (conns[i].fd < 0 || connect(conns[i].fd, (struct sockaddr *)&addr, sizeof addr) != 0)
            die("connect");
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &conns[i]};
        if (epoll_ctl(ep, EPOLL_CTL_ADD, conns[i].fd, &event) != 0)
            die("epoll_ctl");
    }
}

static struct conn *free_conn(void)
{
    for (uint32_t i = 0; i < n_conns; i++)
        if (!conns[i].busy)
            return &conns[i];
    return NULL;
}

int main(int argc, char **argv)
{
    if (argc != 6) {
        fprintf(stderr, "usage: poll PORT PATH RATE SECONDS CONNECTIONS\n");
        return 2;
    }
    double rate = strtod(argv[3], NULL);
    uint32_t total = (uint32_t)(rate * strtod(argv[4], NULL));
    n_conns = (uint32_t)strtoul(argv[5], NULL, 10);
    request_len = (size_t)snprintf(
        request, sizeof request, "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%s\r\n\r\n", argv[2], argv[1]);
    conns = calloc(n_conns, sizeof *conns);
    scheduled = calloc(total, sizeof(double));
    sent = calloc(total, sizeof(double));
    latency = calloc(total, sizeof(double));
    latency_sent = calloc(total, sizeof(double));
    int ep = epoll_create1(EPOLL_CLOEXEC);
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (conns == NULL || scheduled == NULL || sent == NULL || latency == NULL ||
        latency_sent == NULL || total == 0 || ep < 0 || timer < 0)
        die("start");
    open_conns(ep, (uint16_t)strtoul(argv[1], NULL, 10));

    struct sched_param priority = {.sched_priority = 1};
    bool realtime = sched_setscheduler(0, SCHED_FIFO, &priority) == 0;
    (void)prctl(PR_SET_TIMERSLACK, 1);
    struct itimerspec tick = {.it_interval.tv_nsec = 200000, .it_value.tv_nsec = 200000};
    if (timerfd_settime(timer, 0, &tick, NULL) != 0)
        die("timerfd");
    struct epoll_event event = {.events = EPOLLIN};
    if (epoll_ctl(ep, EPOLL_CTL_ADD, timer, &event) != 0)
        die("epoll_ctl");

    double start = now() + 0.01, end = start + (double)total / rate + 30;
    for (uint32_t i = 0; i < total; i++)
        scheduled[i] = start + i / rate;
    uint32_t next = 0;
    while (n_done < total && now() < end) {
        struct epoll_event events[64];
        int n = epoll_wait(ep, events, 64, 1000);
        for (int i = 0; i < n; i++) {
            uint64_t ticks;
            if (events[i].data.ptr != NULL)
                answer(events[i].data.ptr);
            else if (read(timer, &ticks, sizeof ticks) < 0 && errno != EAGAIN)
                die("timerfd");
        }
        struct conn *c;
        while (next < total && scheduled[next] <= now() && (c = free_conn()) != NULL)
            ask(c, next++);
    }
    if (n_done == 0)
        die("no answers");
    printf("{");
    print_quantiles("scheduled", latency);
    print_quantiles("sent", latency_sent);
    printf("\"realtime\": %s, \"ok\": %u, \"failed\": %u}\n", realtime ? "true" : "false",
           n_done - n_failed, n_failed + total - n_done);
    return 0;
}
