/* `batchfetch backup FILE`: a consistent copy of the database, while the service runs or not. */
#ifndef SERVER_BACKUP_H
#define SERVER_BACKUP_H

#include "server/config.h"

/* Copies cfg->data's database to cfg->operand, or to a file in it where that is a directory, and prints
 * what it did. Returns the exit status: 0, or 1 with a message on stderr and nothing left behind.
 * SIGINT and SIGTERM stop it. */
int backup_run(const struct config *cfg);

#endif
