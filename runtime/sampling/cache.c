/* cache.c - the memory of the key-value cache.
 * Leaves out: policy, that is, which token goes into which row.
 */
#include "cache.h"
#include "core/device.h"
#include <stdlib.h>

struct sz_cache {
    int layers;
    int64_t rows;
    sz_tensor *kv[]; /* keys of all layers, then values */
};

#pragma GCC visibility push(default)
void sz_cache_free(sz_cache *c);
int64_t sz_cache_rows(const sz_cache *c);
void sz_cache_clear(sz_cache *c);
int sz_cache_move(sz_cache *c, int64_t to, int64_t from, int64_t rows);
#pragma GCC visibility pop

sz_cache *sz_cache_new(int layers, int64_t rows, int64_t width, int dtype, int device)
{
    sz_cache *c = calloc(1, sizeof *c + 2 * (size_t)layers * sizeof c->kv[0]);
    if (!c) return sz_null("out of memory");
    c->layers = layers;
    c->rows = rows;
    for (int i = 0; i < 2 * layers; i++) {
        c->kv[i] = sz_tensor_new_heap(dtype, 2, (int64_t[]){ rows, width }, device);
        if (!c->kv[i]) {
            sz_cache_free(c);
            return NULL;
        }
    }
    return c;
}

void sz_cache_free(sz_cache *c)
{
    if (!c) return;
    for (int i = 0; i < 2 * c->layers; i++) sz_tensor_release(c->kv[i]);
    free(c);
}

/* Sets all rows to 0. */
void sz_cache_clear(sz_cache *c)
{
    for (int i = 0; i < 2 * c->layers; i++)
        sz_bytes_clear(c->kv[i]->device, c->kv[i]->data, sz_bytes(c->kv[i]));
}

/* Copies rows [from, from + rows) of every layer to rows [to, to + rows). 0, or -1 with a message.
 */
int sz_cache_move(sz_cache *c, int64_t to, int64_t from, int64_t rows)
{
    if (to < 0 || from < 0 || rows < 0 || to > c->rows - rows || from > c->rows - rows)
        return sz_fail("cache: cannot move %lld rows from %lld to %lld, it has %lld rows",
                       (long long)rows, (long long)from, (long long)to, (long long)c->rows);
    int rc = 0;
    for (int i = 0; i < 2 * c->layers && rc == 0; i++) {
        sz_tensor *t = c->kv[i];
        size_t row = sz_bytes(t) / (size_t)c->rows;
        char *dst = (char *)t->data + (size_t)to * row;
        const char *src = (const char *)t->data + (size_t)from * row;
        rc = sz_bytes_copy(t->device, dst, t->device, src, (size_t)rows * row);
    }
    return rc;
}

int64_t sz_cache_rows(const sz_cache *c) { return c->rows; }
sz_tensor *sz_cache_keys(sz_cache *c, int layer) { return c->kv[layer]; }
sz_tensor *sz_cache_values(sz_cache *c, int layer) { return c->kv[c->layers + layer]; }
