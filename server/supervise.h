/* The service manager: systemd's notifications, its watchdog and its sockets (sd_notify(3),
 * sd_watchdog_enabled(3), sd_listen_fds(3)). Everything does nothing when there is none. Main
 * thread. */
#ifndef SERVER_SUPERVISE_H
#define SERVER_SUPERVISE_H

#include "server/config.h"

/* The listening socket that we were given, or -1; c->listen_host and listen_port become its
 * address. E_INVAL: it is not one to serve on, *why says the reason. */
int supervise_socket(struct config *c, int *fd, char *why, size_t why_size) MUSTCHECK;
void supervise_ready(void);
void supervise_reloading(void); /* then supervise_ready() */
void supervise_stopping(void);
/* How often supervise_alive is to be called, in ms: for the watchdog and for the status line. */
int supervise_interval_ms(void);
/* A line for `systemctl status`, and the sign of life that the watchdog wants, unless some thread has
 * been at one thing for so long (µs) that it is to bite: half of its time. */
void supervise_alive(int64_t stuck_us, const char *status);

#endif
