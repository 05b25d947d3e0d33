/* arrange.c - the plain kernels of broadcast_to, transpose, cat, slice and pad_dim: for each
 * element of the result the place it comes from. What the fast kernels are compared with. */
#include "ops/dims.h"

static void copy_element(const sz_tensor *to, int64_t i, const sz_tensor *from, int64_t j)
{
    size_t size = sz_dtype_size(to->dtype);
    memcpy((char *)to->data + (size_t)i * size, (const char *)from->data + (size_t)j * size, size);
}

int sz_ref_broadcast_to(const sz_call *c)
{
    const sz_tensor *x = c->in[0];
    const sz_tensor *y = c->out[0];
    int64_t strides[SZ_MAX_DIMS] = { 0 };
    sz_broadcast_strides(x, y, strides);
    for (int64_t i = 0; i < y->numel; i++) {
        int64_t from = 0;
        int64_t rest = i;
        for (int k = y->ndim - 1; k >= 0; k--) {
            from += rest % y->shape[k] * strides[k];
            rest /= y->shape[k];
        }
        copy_element(y, i, x, from);
    }
    return 0;
}

int sz_ref_transpose(const sz_call *c)
{
    const sz_swap s = sz_swap_dims(c->in[0], (int)c->args[0], (int)c->args[1]);
    int64_t to = 0;
    for (int64_t a = 0; a < s.a; a++)
        for (int64_t n = 0; n < s.n; n++)
            for (int64_t b = 0; b < s.b; b++)
                for (int64_t m = 0; m < s.m; m++)
                    for (int64_t k = 0; k < s.c; k++) {
                        int64_t from = (((a * s.m + m) * s.b + b) * s.n + n) * s.c + k;
                        copy_element(c->out[0], to++, c->in[0], from);
                    }
    return 0;
}

int sz_ref_cat(const sz_call *c)
{
    const int dim = (int)c->args[0];
    const sz_around whole = sz_around_dim(c->out[0], dim);
    int64_t first = 0;
    for (int i = 0; i < SZ_MAX_IN && c->in[i]; i++) {
        const sz_around part = sz_around_dim(c->in[i], dim);
        const int64_t run = part.n * part.inner;
        for (int64_t k = 0; k < c->in[i]->numel; k++) {
            int64_t to = (k / run * whole.n + first) * whole.inner + k % run;
            copy_element(c->out[0], to, c->in[i], k);
        }
        first += part.n;
    }
    return 0;
}

/* The place in the larger tensor of element i of the smaller one, which starts at `start` of the
 * dimension. */
static int64_t place_in_whole(sz_around whole, sz_around part, int64_t start, int64_t i)
{
    int64_t run = part.n * part.inner;
    return (i / run * whole.n + start) * whole.inner + i % run;
}

int sz_ref_slice(const sz_call *c)
{
    const sz_around whole = sz_around_dim(c->in[0], (int)c->args[0]);
    const sz_around part = sz_around_dim(c->out[0], (int)c->args[0]);
    for (int64_t i = 0; i < c->out[0]->numel; i++)
        copy_element(c->out[0], i, c->in[0], place_in_whole(whole, part, (int64_t)c->args[1], i));
    return 0;
}

int sz_ref_pad_dim(const sz_call *c)
{
    const sz_around whole = sz_around_dim(c->out[0], (int)c->args[0]);
    const sz_around part = sz_around_dim(c->in[0], (int)c->args[0]);
    memset(c->out[0]->data, 0, sz_bytes(c->out[0]));
    for (int64_t i = 0; i < c->in[0]->numel; i++)
        copy_element(c->out[0], place_in_whole(whole, part, (int64_t)c->args[1], i), c->in[0], i);
    return 0;
}
