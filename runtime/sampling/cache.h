/* cache.h - the key-value cache: for every layer two tensors [rows, width]. A token's row is chosen by the caller (Lua), so a
 * group's prompt is stored once and each answer has rows of its own; segments (ops.def) say who sees what. */
#ifndef SZ_CACHE_H
#define SZ_CACHE_H
#include "graph.h"

typedef struct sz_cache sz_cache;
sz_cache  *sz_cache_new(int layers, int64_t rows, int64_t width, int dtype, int device);    /* heap lifetime; caller frees */
sz_tensor *sz_cache_keys(sz_cache *c, int layer);                              /* borrowed [rows, width] */
sz_tensor *sz_cache_values(sz_cache *c, int layer);

#endif
