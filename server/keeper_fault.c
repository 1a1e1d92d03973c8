/* What the keeper does where the database is damaged. */
#include <unistd.h>

#include "server/keeper_int.h"

void keeper_give_up(struct keeper *k)
{
    log_event(LOG_ERROR, "data_lost", LOG_S("msg", "ending, to start again from what is stored"),
              LOG_S("error", store_error(k->e->store)));
    _exit(KEEPER_LOST);
}
