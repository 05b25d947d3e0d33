/* arrange.c - ops that move elements without computing, on the CPU: broadcast_to, transpose, cat,
 * slice, pad_dim.
 *
 * Every dtype is moved as bytes. A thread takes a row of the result. Leaves out: what is a view
 * (reshape, narrow), rows chosen by index (rows.c). The reference is reference/arrange.c. */
#include "ops/dims.h"
#include "vecmath.h"

static char *element(const sz_tensor *t, int64_t i)
{
    return (char *)t->data + (size_t)i * sz_dtype_size(t->dtype);
}

/* ---- broadcast_to ---- */

/* `count` elements of `size` bytes, all equal to the one at `from`. */
static void repeat(void *to, const void *from, int64_t count, size_t size)
{
    switch (size) {
    case 4:
        for (int64_t i = 0; i < count; i++) ((uint32_t *)to)[i] = *(const uint32_t *)from;
        break;
    case 2:
        for (int64_t i = 0; i < count; i++) ((uint16_t *)to)[i] = *(const uint16_t *)from;
        break;
    default: memset(to, *(const uint8_t *)from, (size_t)count);
    }
}

/* A row of the result is its last dimension: of x it is either the same number of elements, or one
 * that is repeated. */
int sz_cpu_broadcast_to(const sz_call *c)
{
    const sz_tensor *x = c->in[0];
    const sz_tensor *y = c->out[0];
    const int64_t cols = sz_cols(y);
    const int64_t rows = sz_rows(y);
    const size_t size = sz_dtype_size(x->dtype);
    int64_t strides[SZ_MAX_DIMS] = { 0 };
    sz_broadcast_strides(x, y, strides);
    const bool repeats = y->ndim == 0 || strides[y->ndim - 1] == 0;
#pragma omp parallel for schedule(static) if (y->numel >= SZ_PARALLEL_FROM)
    for (int64_t row = 0; row < rows; row++) {
        int64_t from = 0;
        int64_t rest = row;
        for (int i = y->ndim - 2; i >= 0; i--) {
            from += rest % y->shape[i] * strides[i];
            rest /= y->shape[i];
        }
        if (repeats) repeat(element(y, row * cols), element(x, from), cols, size);
        else memcpy(element(y, row * cols), element(x, from), (size_t)cols * size);
    }
    return 0;
}

/* ---- transpose ---- */

enum { TILE = 16 }; /* columns read together: a cache line of f32 */

/* Single elements change places (c = 1): y[a, j, b, i] = x[a, i, b, j] for the columns j of one
 * tile. */
#define SWAP_TILE(TYPE) \
    static void swap_tile_##TYPE(const sz_swap *s, const void *from, void *to, int64_t outer, \
                                 int64_t middle, int64_t first) \
    { \
        const int64_t last = sz_min64(s->n, first + TILE); \
        const TYPE *x = (const TYPE *)from + (outer * s->m * s->b + middle) * s->n; \
        TYPE *y = (TYPE *)to + outer * s->n * s->b * s->m + middle * s->m; \
        for (int64_t i = 0; i < s->m; i++) \
            for (int64_t j = first; j < last; j++) \
                y[j * s->b * s->m + i] = x[i * s->b * s->n + j]; \
    }
SWAP_TILE(uint32_t)
SWAP_TILE(uint16_t)
SWAP_TILE(uint8_t)

static void swap_elements(const sz_call *c, const sz_swap *s)
{
    const void *from = c->in[0]->data;
    void *to = c->out[0]->data;
    const size_t size = sz_dtype_size(c->in[0]->dtype);
    const int64_t tiles = sz_ceil_div(s->n, TILE);
#pragma omp parallel for schedule(static) if (c->in[0]->numel >= SZ_PARALLEL_FROM)
    for (int64_t i = 0; i < s->a * s->b * tiles; i++) {
        int64_t first = i % tiles * TILE;
        int64_t middle = i / tiles % s->b;
        int64_t outer = i / tiles / s->b;
        if (size == 4) swap_tile_uint32_t(s, from, to, outer, middle, first);
        else if (size == 2) swap_tile_uint16_t(s, from, to, outer, middle, first);
        else swap_tile_uint8_t(s, from, to, outer, middle, first);
    }
}

int sz_cpu_transpose(const sz_call *c)
{
    const sz_tensor *x = c->in[0];
    const sz_tensor *y = c->out[0];
    const sz_swap s = sz_swap_dims(x, (int)c->args[0], (int)c->args[1]);
    if (s.c == 1) {
        swap_elements(c, &s);
        return 0;
    }
    const size_t run = (size_t)s.c * sz_dtype_size(x->dtype);
#pragma omp parallel for schedule(static) if (x->numel >= SZ_PARALLEL_FROM)
    for (int64_t row = 0; row < s.a * s.n * s.b; row++) {
        int64_t middle = row % s.b;
        int64_t j = row / s.b % s.n;
        int64_t outer = row / s.b / s.n;
        for (int64_t i = 0; i < s.m; i++) {
            int64_t from = ((outer * s.m + i) * s.b + middle) * s.n + j;
            memcpy(element(y, (row * s.m + i) * s.c), element(x, from * s.c), run);
        }
    }
    return 0;
}

/* ---- cat, slice, pad_dim: runs of bytes, one for each outer index ---- */

typedef struct {
    char *to;
    size_t to_step; /* bytes from a run to the next */
    const char *from;
    size_t from_step;
    size_t run;
    int64_t count;
} runs;

static void copy_runs(runs r)
{
#pragma omp parallel for schedule(static) if (r.count * (int64_t)r.run >= 4 * SZ_PARALLEL_FROM)
    for (int64_t i = 0; i < r.count; i++)
        memcpy(r.to + (size_t)i * r.to_step, r.from + (size_t)i * r.from_step, r.run);
}

/* Bytes of one outer index of t. */
static size_t bytes_around(const sz_tensor *t, int dim)
{
    sz_around a = sz_around_dim(t, dim);
    return (size_t)(a.n * a.inner) * sz_dtype_size(t->dtype);
}

int sz_cpu_cat(const sz_call *c)
{
    const int dim = (int)c->args[0];
    const size_t to_step = bytes_around(c->out[0], dim);
    const int64_t outer = sz_around_dim(c->out[0], dim).outer;
    char *to = c->out[0]->data;
    for (int i = 0; i < SZ_MAX_IN && c->in[i]; i++) {
        size_t run = bytes_around(c->in[i], dim);
        copy_runs((runs){ .to = to,
                          .to_step = to_step,
                          .from = c->in[i]->data,
                          .from_step = run,
                          .run = run,
                          .count = outer });
        to += run;
    }
    return 0;
}

int sz_cpu_slice(const sz_call *c)
{
    const int dim = (int)c->args[0];
    const sz_around a = sz_around_dim(c->in[0], dim);
    const size_t run = bytes_around(c->out[0], dim);
    copy_runs((runs){ .to = c->out[0]->data,
                      .to_step = run,
                      .from = element(c->in[0], (int64_t)c->args[1] * a.inner),
                      .from_step = bytes_around(c->in[0], dim),
                      .run = run,
                      .count = a.outer });
    return 0;
}

int sz_cpu_pad_dim(const sz_call *c)
{
    const int dim = (int)c->args[0];
    const sz_around a = sz_around_dim(c->out[0], dim);
    const size_t run = bytes_around(c->in[0], dim);
    memset(c->out[0]->data, 0, sz_bytes(c->out[0]));
    copy_runs((runs){ .to = element(c->out[0], (int64_t)c->args[1] * a.inner),
                      .to_step = bytes_around(c->out[0], dim),
                      .from = c->in[0]->data,
                      .from_step = run,
                      .run = run,
                      .count = a.outer });
    return 0;
}
