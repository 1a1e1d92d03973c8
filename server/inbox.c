/* Messages between threads; see inbox.h. */
#include "server/inbox.h"

#include <errno.h>
#include <sys/eventfd.h>
#include <unistd.h>

int inbox_init(struct inbox *in)
{
    in->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (in->fd < 0)
        return E_IO;
    in->head = NULL;
    in->tail = &in->head;
    pthread_mutex_init(&in->mutex, NULL);
    return 0;
}

void inbox_fini(struct inbox *in)
{
    ASSERT(in->head == NULL);
    pthread_mutex_destroy(&in->mutex);
    close(in->fd);
}

void inbox_wake(struct inbox *in)
{
    uint64_t one = 1;
    ssize_t n;
    do {
        n = write(in->fd, &one, sizeof(one));
    } while (n < 0 && errno == EINTR);
    ASSERT(n == (ssize_t)sizeof(one) || errno == EAGAIN);
}

void inbox_put(struct inbox *in, struct msg *m)
{
    m->next = NULL;
    pthread_mutex_lock(&in->mutex);
    bool was_empty = in->head == NULL;
    *in->tail = m;
    in->tail = &m->next;
    pthread_mutex_unlock(&in->mutex);
    if (was_empty)
        inbox_wake(in);
}

struct msg *inbox_take(struct inbox *in)
{
    /* Clear the eventfd first: a message that arrives in between makes it readable again. */
    uint64_t count;
    ssize_t n = read(in->fd, &count, sizeof(count));
    ASSERT(n == (ssize_t)sizeof(count) || errno == EAGAIN || errno == EINTR);
    pthread_mutex_lock(&in->mutex);
    struct msg *list = in->head;
    in->head = NULL;
    in->tail = &in->head;
    pthread_mutex_unlock(&in->mutex);
    return list;
}
