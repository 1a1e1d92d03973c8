/* See held.h. */
#include "api/held.h"

#include <stdlib.h>

#include "api/answer.h"
#include "server/metrics.h"

enum {
    FREED_WORTH = 4 * 1024 * 1024, /* is given back … */
    GIVE_BACK_US = 1000 * 1000,    /* … not more often than so */
};

static uint64_t budget(const struct api *api)
{
    return engine_memory(api->engine)->answers;
}

bool held_short(const struct api *api)
{
    return api->held >= budget(api) / 2;
}

size_t held_room(const struct api *api)
{
    uint64_t all = budget(api), one = engine_memory(api->engine)->unread;
    uint64_t left = api->held < all / 2 ? (all / 2 - api->held) / 2 : 0;

    left = left < one ? left : one;
    return left > HELD_LEAST ? (size_t)left : HELD_LEAST;
}

void held_change(struct api *api, size_t *mine, size_t now)
{
    api->held += now;
    api->held -= *mine;
    api->freed += *mine > now ? *mine - now : 0;
    *mine = now;
    metric_set(METRIC_MEMORY_USED + METRIC_BUDGET_ANSWERS, (int64_t)api->held);
}

void held_ended(struct api *api, uint64_t bytes)
{
    int64_t now = now_us();

    api->freed += bytes;
    if (api->freed < FREED_WORTH || now < api->give_back_us)
        return;
    api->freed = 0;
    api->give_back_us = now + GIVE_BACK_US;
    memory_give_back();
}

void held_be_patient(struct request *r)
{
    MHD_set_connection_option(r->conn, MHD_CONNECTION_OPTION_TIMEOUT, (unsigned)READER_TIMEOUT_S);
    r->patient = true;
}

struct text {
    struct api *api;
    size_t size;
    char *data;
};

static void text_free(void *arg)
{
    struct text *t = arg;

    held_change(t->api, &t->size, 0);
    free(t->data);
    free(t);
}

struct MHD_Response *held_response(struct api *api, struct buf *b, const char *type)
{
    struct MHD_Response *resp;
    struct text *t;

    if (b->len == 0)
        return answer_take(b, type);
    t = xcalloc(1, sizeof(*t));
    t->api = api;
    t->data = b->data;
    resp = MHD_create_response_from_buffer_with_free_callback_cls(b->len, b->data, text_free, t);
    if (resp) {
        held_change(api, &t->size, b->cap);
        *b = (struct buf){.max = b->max};
        answer_header(resp, "Content-Type", type);
    } else {
        free(t);
        buf_fini(b);
    }
    return resp;
}
