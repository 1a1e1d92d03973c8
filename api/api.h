/* The HTTP API: all that the process asks of api/. */
#ifndef API_API_H
#define API_API_H

#include <stdio.h>

#include "server/base.h"
#include "server/config.h"
#include "server/engine.h"

struct api;

/* Listens on cfg->listen_host and port, before the engine is started: that a port is taken shows at
 * once, and who connects while the engine takes up its batches is served then. */
int api_listen(const struct config *cfg, int *out, char *why, size_t why_size) MUSTCHECK;
/* Serves on listen_fd, which it takes over even if it fails. cfg and engine must outlive it. On
 * failure *out is NULL and *why says the cause. Threads started here block all signals. */
int api_start(struct api **out, const struct config *cfg, struct engine *engine, int listen_fd,
              char *why, size_t why_size) MUSTCHECK;
/* The port that is listened on: the real one when 0 was asked for. */
uint16_t api_port(const struct api *api);
/* Stops listening, lets the answers under way finish (for some seconds at most), and returns when
 * nothing of the API runs any more. Before engine_stop. NULL is fine. */
void api_stop(struct api *api);
/* "METHOD PATH", one line for each method and path. */
void api_print_routes(FILE *out);

#endif
