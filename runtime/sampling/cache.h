/* cache.h - the memory of the key-value cache: for every layer two tensors [rows, width].
 *
 * The caller (lua/segzero/inference/kv_blocks.lua) chooses a token's row, so a group's prompt is
 * stored once and each answer has rows of its own; the segment table (runtime/cpu/attention.c) says
 * which token sees which rows.
 * Leaves out: which rows are free.
 */
#ifndef SZ_CACHE_H
#define SZ_CACHE_H

#include "graph.h"

typedef struct sz_cache sz_cache;

/* Lives on the heap; the caller frees it with sz_cache_free. NULL with a message on failure. */
sz_cache *sz_cache_new(int layers, int64_t rows, int64_t width, int dtype, int device);
sz_tensor *sz_cache_keys(sz_cache *c, int layer);   /* borrowed [rows, width] */
sz_tensor *sz_cache_values(sz_cache *c, int layer); /* borrowed [rows, width] */

#endif
