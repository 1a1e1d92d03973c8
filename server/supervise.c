/* See supervise.h. */
#include "server/supervise.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <systemd/sd-daemon.h>

enum { STATUS_MS = 10 * 1000 };

/* Only loopback: nothing protects another address yet. */
static int name_of(int fd, char *host, size_t size, uint16_t *port)
{
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
    } a;
    socklen_t len = sizeof(a);
    if (getsockname(fd, &a.any, &len) != 0)
        return E_INVAL;
    if (a.any.sa_family == AF_INET && (ntohl(a.v4.sin_addr.s_addr) >> 24) == 127) {
        *port = ntohs(a.v4.sin_port);
        return inet_ntop(AF_INET, &a.v4.sin_addr, host, (socklen_t)size) != NULL ? 0 : E_INVAL;
    }
    if (a.any.sa_family == AF_INET6 && IN6_IS_ADDR_LOOPBACK(&a.v6.sin6_addr)) {
        *port = ntohs(a.v6.sin6_port);
        return inet_ntop(AF_INET6, &a.v6.sin6_addr, host, (socklen_t)size) != NULL ? 0 : E_INVAL;
    }
    return E_INVAL;
}

int supervise_socket(struct config *c, int *fd, char *why, size_t why_size)
{
    char host[INET6_ADDRSTRLEN];
    uint16_t port;
    *fd = -1;
    int n = sd_listen_fds(1);
    if (n <= 0)
        return 0;
    int own = SD_LISTEN_FDS_START;
    if (n != 1 || sd_is_socket(own, AF_UNSPEC, SOCK_STREAM, 1) <= 0 ||
        name_of(own, host, sizeof(host), &port) != 0) {
        snprintf(why, why_size,
                 "the %d socket(s) passed by the service manager are not one "
                 "listening TCP socket on a loopback address",
                 n);
        return E_INVAL;
    }
    int flags = fcntl(own, F_GETFL);
    if (flags < 0 || fcntl(own, F_SETFL, flags | O_NONBLOCK) != 0) {
        snprintf(why, why_size, "the passed socket cannot be used");
        return E_INVAL;
    }
    free(c->listen_host);
    c->listen_host = xstrdup(host);
    c->listen_port = port;
    *fd = own;
    return 0;
}

void supervise_ready(void)
{
    (void)sd_notify(0, "READY=1");
}

void supervise_reloading(void)
{
    /* Type=notify-reload wants the time, so that it knows which READY=1 answers it. */
    (void)sd_notifyf(0, "RELOADING=1\nMONOTONIC_USEC=%" PRId64, now_us());
}

void supervise_stopping(void)
{
    (void)sd_notify(0, "STOPPING=1");
}

static int64_t watchdog_us(void)
{
    uint64_t us = 0;
    return sd_watchdog_enabled(0, &us) > 0 ? (int64_t)us : INT64_MAX;
}

int supervise_interval_ms(void)
{
    int64_t ms = watchdog_us() / 2000;
    return ms >= STATUS_MS ? STATUS_MS : ms > 0 ? (int)ms : 1;
}

void supervise_alive(int64_t stuck_us, const char *status)
{
    bool alive = stuck_us < watchdog_us() / 2;
    (void)sd_notifyf(0, "STATUS=%s%s", status, alive ? "\nWATCHDOG=1" : "");
}
