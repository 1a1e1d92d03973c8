/* The configuration from within: the table of options, and what its files share. Main thread. */
#ifndef SERVER_CONFIG_INT_H
#define SERVER_CONFIG_INT_H

#include "server/config.h"

enum kind {
    K_NUM32,
    K_NUM64,
    K_SIZE,
    K_DURATION,
    K_RATE,
    K_TEXT,
    K_LISTEN,
    K_NETS,
    K_SERVERS,
    K_FILE,
    K_LEVEL,
    K_FORMAT,
    K_YES,
    K_FLAG,
    K_CONFIG,
    K_HELP,
    K_VERSION
};

struct option {
    const char *name;
    enum kind kind;
    size_t offset;     /* of the member in struct config */
    uint64_t min, max; /* of a number */
    const char *value; /* the default, in the option's own syntax; NULL: none */
    const char *arg;   /* as --help shows it; NULL: the option takes none */
    const char *help;  /* a line break starts a line of its own */
};

extern const struct option config_options[]; /* a row with a NULL name starts a group of --help */
extern const size_t config_n_options;

/* The first argument that is no option. */
struct config_command {
    const char *name;
    enum command command;
    const char *operand; /* NULL: it takes none */
    const char *help;
};
extern const struct config_command config_commands[];
extern const size_t config_n_commands;

/* The words that an option of a kind takes; their numbers are its values. */
extern const char *const config_words[][5];

/* Takes the value over into *c. Returns NULL, or the reason why it is refused (valid until the next
 * call). */
const char *config_set(struct config *c, const struct option *o, const char *v);
/* "--help". */
void config_help(void);

#endif
