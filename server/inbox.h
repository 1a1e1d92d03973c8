/* How threads talk: a list of messages behind a mutex, and an eventfd that is written only when
 * the list was empty. The reader takes the whole list at once. Sending gives the message away.
 * Any thread may put; one thread takes. */
#ifndef SERVER_INBOX_H
#define SERVER_INBOX_H

#include <pthread.h>

#include "server/base.h"

/* Embed as the first member of a message. */
struct msg {
    struct msg *next;
    int type;
};

struct inbox {
    pthread_mutex_t mutex;
    struct msg *head, **tail;
    int fd; /* eventfd: readable while there is something to take; watch it, never read it */
};

int inbox_init(struct inbox *in) MUSTCHECK; /* E_IO: no descriptor */
void inbox_fini(struct inbox *in);          /* the list must be empty */
void inbox_put(struct inbox *in, struct msg *m);
/* The whole list in order of arrival, or NULL. */
struct msg *inbox_take(struct inbox *in);
/* Makes fd readable without a message. */
void inbox_wake(struct inbox *in);

#endif
