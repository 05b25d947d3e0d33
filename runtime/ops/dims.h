/* dims.h - a tensor seen around one of its dimensions, as [outer, n, inner]: what ops that take a
 * `dim` walk over.
 *
 * Dimensions are counted from 0, as in PyTorch; the shape checks have refused what is out of range.
 * Leaves out: negative dimensions, which Lua turns into positive ones. */
#ifndef SZ_OPS_DIMS_H
#define SZ_OPS_DIMS_H

#include "core/core.h"

typedef struct {
    int64_t outer; /* product of the dimensions before dim */
    int64_t n;     /* the dimension itself */
    int64_t inner; /* product of the dimensions after it */
} sz_around;

/* The product of the dimensions first .. last - 1. */
static inline int64_t sz_dims_product(const sz_tensor *t, int first, int last)
{
    int64_t product = 1;
    for (int i = first; i < last; i++) product *= t->shape[i];
    return product;
}

static inline sz_around sz_around_dim(const sz_tensor *t, int dim)
{
    sz_around a;
    a.outer = sz_dims_product(t, 0, dim);
    a.n = t->shape[dim];
    a.inner = sz_dims_product(t, dim + 1, t->ndim);
    return a;
}

/* Two dimensions that change places: [a, m, b, n, c] becomes [a, n, b, m, c]. */
typedef struct {
    int64_t a;
    int64_t m;
    int64_t b;
    int64_t n;
    int64_t c;
} sz_swap;

static inline sz_swap sz_swap_dims(const sz_tensor *t, int dim0, int dim1)
{
    int first = dim0 < dim1 ? dim0 : dim1;
    int second = dim0 < dim1 ? dim1 : dim0;
    sz_swap s = { .a = 1, .m = 1, .b = 1, .n = 1, .c = t->numel };
    if (first == second) return s;
    s.a = sz_dims_product(t, 0, first);
    s.m = t->shape[first];
    s.b = sz_dims_product(t, first + 1, second);
    s.n = t->shape[second];
    s.c = sz_dims_product(t, second + 1, t->ndim);
    return s;
}

/* How many elements of x a step along each dimension of y passes by: 0 where x is repeated. The
 * dimensions of x are those of y counted from the last; x has 1 where it differs. */
static inline void sz_broadcast_strides(const sz_tensor *x, const sz_tensor *y, int64_t *strides)
{
    int64_t stride = 1;
    for (int i = 1; i <= y->ndim; i++) {
        int64_t size = i <= x->ndim ? x->shape[x->ndim - i] : 1;
        strides[y->ndim - i] = size == 1 ? 0 : stride;
        stride *= size;
    }
}

/* Numbers of compare's `kind`. */
enum { SZ_EQ, SZ_NE, SZ_LT, SZ_LE, SZ_GT, SZ_GE, SZ_COMPARISONS };

#endif
