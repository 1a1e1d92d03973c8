/* Pairing heap; see heap.h. */
#include "server/heap.h"

/* Both are roots. On equal keys a stays above. */
static struct heap_node *meld(struct heap_node *a, struct heap_node *b)
{
    if (b->key < a->key) {
        struct heap_node *t = a;
        a = b;
        b = t;
    }
    b->next = a->child;
    if (b->next != NULL)
        b->next->prev = b;
    b->prev = a;
    a->child = b;
    a->next = NULL;
    return a;
}

/* One tree of a list of siblings: in pairs from the left, then all from the right. */
static struct heap_node *meld_all(struct heap_node *list)
{
    struct heap_node *pairs = NULL, *root = NULL;
    while (list != NULL) {
        struct heap_node *a = list, *b = a->next;
        list = b != NULL ? b->next : NULL;
        if (b != NULL)
            a = meld(a, b);
        a->next = pairs;
        pairs = a;
    }
    while (pairs != NULL) {
        struct heap_node *next = pairs->next;
        pairs->next = NULL;
        root = root == NULL ? pairs : meld(root, pairs);
        pairs = next;
    }
    return root;
}

static void set_root(struct heap *h, struct heap_node *root)
{
    h->root = root;
    if (root != NULL)
        root->prev = root;
}

void heap_add(struct heap *h, struct heap_node *n, int64_t key)
{
    ASSERT(!heap_has(n));
    n->key = key;
    n->child = n->next = NULL;
    set_root(h, h->root == NULL ? n : meld(h->root, n));
}

void heap_remove(struct heap *h, struct heap_node *n)
{
    ASSERT(heap_has(n));
    struct heap_node *below = meld_all(n->child);
    if (n == h->root) {
        set_root(h, below);
    } else {
        if (n->prev->child == n)
            n->prev->child = n->next;
        else
            n->prev->next = n->next;
        if (n->next != NULL)
            n->next->prev = n->prev;
        if (below != NULL)
            set_root(h, meld(h->root, below));
    }
    n->child = n->next = n->prev = NULL;
}
