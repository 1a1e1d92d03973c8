/* What the keeper does where the database is damaged. */
#include <unistd.h>

#include "server/keeper_int.h"

void keeper_give_up(struct keeper *k)
{
    log_line(LOG_ERROR, "keeper", "ending, to start again from what is stored: %s",
             store_error(k->e->store));
    _exit(KEEPER_LOST);
}
