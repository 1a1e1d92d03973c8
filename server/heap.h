/* A priority queue whose nodes lie in the things that are queued: a pairing heap. Nothing is
 * allocated; adding costs O(1), taking out O(log n) amortised. Zeroed memory is an empty heap, and
 * a node that is in none. Pure. */
#ifndef SERVER_HEAP_H
#define SERVER_HEAP_H

#include "server/base.h"

struct heap_node {
    int64_t key;
    struct heap_node *child, *next;
    struct heap_node *prev; /* the left sibling; of a first child the parent; of the root itself */
};

struct heap {
    struct heap_node *root; /* the node with the smallest key; NULL: empty */
};

void heap_add(struct heap *h, struct heap_node *n, int64_t key);
void heap_remove(struct heap *h, struct heap_node *n);
static inline bool heap_has(const struct heap_node *n)
{
    return n->prev != NULL;
}

#endif
