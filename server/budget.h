/* The engine's accounts of memory, held against the plan (memory.h): what stands with the fetchers,
 * what unfinished batches take, what transfers and connections take. Counting is by atomics, so any
 * thread may ask; who may change an account is said with it. Not for api/. */
#ifndef SERVER_BUDGET_H
#define SERVER_BUDGET_H

#include "server/engine_int.h"

/* ---- requests with the fetchers ---- */

/* Sends a page (FETCH_PAGE, FETCH_AGAIN) to the fetcher of its lane. Keeper. */
void budget_send_page(struct engine *e, struct msg_page *m);
/* It has been used up, or is dropped. Fetcher of its lane. NULL is fine. */
void budget_free_page(struct engine *e, struct msg_page *m);
/* n requests of l went out, or came back. Keeper. */
void budget_sent(struct engine *e, struct live *l, uint64_t n);
void budget_back(struct engine *e, struct live *l, uint64_t n);
/* l is forgotten: what is out of it comes back without being counted. Keeper. */
void budget_forget(struct engine *e, struct live *l);
/* Half of what there may be is out: each batch gets no more than its part of the other half (when
 * that is out too, one request), and a lane asks for more only when it is dry. */
bool budget_crowded(const struct engine *e);
/* Very large requests: none is added to them. */
bool budget_full(const struct engine *e);
/* Requests of one batch that may be out. n_live > 0. Keeper. */
uint64_t budget_window(const struct engine *e, uint64_t n_live);

/* ---- unfinished batches ---- */

/* What a batch of so many requests takes for as long as it has not ended. */
int64_t budget_batch_cost(uint64_t requests);

/* Sets the gauges of all budgets but that of answers, which api/ counts. Any thread. */
void budget_show(const struct engine *e);

/* ---- transfers ---- */

/* No transfer more, until others or idle connections end. Fetcher. */
bool budget_transfers_full(const struct engine *e);
/* … or nearly so: new connections take the place of idle ones. */
bool budget_transfers_tight(const struct engine *e);

#endif
