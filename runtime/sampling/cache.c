/* cache.c - storage of the key-value cache. Policy (which token in which row) is the caller's. */
#include "cache.h"
#include "core/device.h"
#include <stdlib.h>

struct sz_cache {
    int layers;
    int64_t rows;
    sz_tensor *kv[];                /* keys of all layers, then values */
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
    for (int i = 0; i < 2 * layers; i++)
        if (!(c->kv[i] = sz_tensor_new_heap(dtype, 2, (int64_t[]){ rows, width }, device))) {
            sz_cache_free(c);
            return NULL;
        }
    return c;
}

void sz_cache_free(sz_cache *c)
{
    if (!c) return;
    for (int i = 0; i < 2 * c->layers; i++) sz_tensor_release(c->kv[i]);
    free(c);
}

void sz_cache_clear(sz_cache *c)
{
    for (int i = 0; i < 2 * c->layers; i++) sz_bytes_clear(c->kv[i]->device, c->kv[i]->data, sz_bytes(c->kv[i]));
}

int sz_cache_move(sz_cache *c, int64_t to, int64_t from, int64_t rows)
{
    if (to < 0 || from < 0 || rows < 0 || to > c->rows - rows || from > c->rows - rows)
        return sz_fail("cache: rows %lld to %lld, %lld of them, of %lld", (long long)from, (long long)to, (long long)rows, (long long)c->rows);
    int rc = 0;
    for (int i = 0; i < 2 * c->layers && rc == 0; i++) {
        sz_tensor *t = c->kv[i];
        size_t row = sz_bytes(t) / (size_t)c->rows;
        rc = sz_bytes_copy(t->device, (char *)t->data + (size_t)to * row, t->device, (const char *)t->data + (size_t)from * row, (size_t)rows * row);
    }
    return rc;
}

int64_t    sz_cache_rows(const sz_cache *c) { return c->rows; }
sz_tensor *sz_cache_keys(sz_cache *c, int layer) { return c->kv[layer]; }
sz_tensor *sz_cache_values(sz_cache *c, int layer) { return c->kv[c->layers + layer]; }
