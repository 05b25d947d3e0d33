/* reference/conv.c - the reference kernels of cpu/conv.c: a loop over every index of the sum that
 * defines the op, in double. Images [b, h, w, c], weights [o, c, kh, kw]; x is the input of conv2d,
 * y its output. Leaves out: speed. */
#include "core/core.h"

/* Indices of elements; image_index is -1 outside the image. */
static int64_t image_index(const sz_tensor *x, int64_t b, int64_t y, int64_t col, int64_t ch)
{
    if (y < 0 || y >= x->shape[1] || col < 0 || col >= x->shape[2]) return -1;
    return ((b * x->shape[1] + y) * x->shape[2] + col) * x->shape[3] + ch;
}
static int64_t weight_index(const sz_tensor *w, int64_t o, int64_t ch, int64_t ky, int64_t kx)
{
    return ((o * w->shape[1] + ch) * w->shape[2] + ky) * w->shape[3] + kx;
}

int sz_ref_conv2d(const sz_call *c)
{
    sz_tensor *x = c->in[0];
    sz_tensor *w = c->in[1];
    sz_tensor *bias = c->in[2];
    sz_tensor *y = c->out[0];
    int64_t stride = (int64_t)c->args[0];
    int64_t padding = (int64_t)c->args[1];
    int64_t next = 0;

    /* One output at a time. */
    for (int64_t b = 0; b < y->shape[0]; b++)
        for (int64_t oy = 0; oy < y->shape[1]; oy++)
            for (int64_t ox = 0; ox < y->shape[2]; ox++)
                for (int64_t o = 0; o < y->shape[3]; o++) {
                    double s = bias ? sz_get(bias, o) : 0;
                    for (int64_t ch = 0; ch < w->shape[1]; ch++)
                        for (int64_t ky = 0; ky < w->shape[2]; ky++)
                            for (int64_t kx = 0; kx < w->shape[3]; kx++) {
                                int64_t row = oy * stride - padding + ky;
                                int64_t col = ox * stride - padding + kx;
                                int64_t i = image_index(x, b, row, col, ch);
                                if (i < 0) continue;
                                int64_t cell = weight_index(w, o, ch, ky, kx);
                                s += (double)sz_get(x, i) * sz_get(w, cell);
                            }
                    sz_put(y, next++, (float)s);
                }
    return 0;
}

/* The position of dy whose kernel cell k covers position i of x; -1 if there is none. */
static int64_t output_position(int64_t i, int64_t k, int64_t stride, int64_t padding)
{
    int64_t scaled = i + padding - k;
    return scaled >= 0 && scaled % stride == 0 ? scaled / stride : -1;
}

static int input_gradient(const sz_tensor *dy, const sz_tensor *w, const sz_tensor *bias,
                          sz_tensor *dx, const double *args)
{
    int64_t stride = (int64_t)args[0];
    int64_t padding = (int64_t)args[1];
    int64_t next = 0;

    /* One input at a time: all outputs that read it. */
    for (int64_t b = 0; b < dx->shape[0]; b++)
        for (int64_t y = 0; y < dx->shape[1]; y++)
            for (int64_t x = 0; x < dx->shape[2]; x++)
                for (int64_t ch = 0; ch < dx->shape[3]; ch++) {
                    double s = bias ? sz_get(bias, ch) : 0;
                    for (int64_t ky = 0; ky < w->shape[2]; ky++)
                        for (int64_t kx = 0; kx < w->shape[3]; kx++) {
                            int64_t oy = output_position(y, ky, stride, padding);
                            int64_t ox = output_position(x, kx, stride, padding);
                            int64_t i = image_index(dy, b, oy, ox, 0);
                            for (int64_t o = 0; i >= 0 && o < w->shape[0]; o++)
                                s += (double)sz_get(dy, i + o) *
                                     sz_get(w, weight_index(w, o, ch, ky, kx));
                        }
                    sz_put(dx, next++, (float)s);
                }
    return 0;
}

int sz_ref_conv2d_dx(const sz_call *c)
{
    return input_gradient(c->in[0], c->in[1], NULL, c->out[0], c->args);
}

int sz_ref_conv_transpose2d(const sz_call *c)
{
    return input_gradient(c->in[0], c->in[1], c->in[2], c->out[0], c->args);
}

int sz_ref_conv2d_dw_(const sz_call *c)
{
    sz_tensor *acc = c->in[0];
    sz_tensor *x = c->in[1];
    sz_tensor *dy = c->in[2];
    int64_t stride = (int64_t)c->args[0];
    int64_t padding = (int64_t)c->args[1];

    /* One weight at a time. */
    for (int64_t o = 0; o < acc->shape[0]; o++)
        for (int64_t ch = 0; ch < acc->shape[1]; ch++)
            for (int64_t ky = 0; ky < acc->shape[2]; ky++)
                for (int64_t kx = 0; kx < acc->shape[3]; kx++) {
                    double s = 0;
                    for (int64_t b = 0; b < dy->shape[0]; b++)
                        for (int64_t oy = 0; oy < dy->shape[1]; oy++)
                            for (int64_t ox = 0; ox < dy->shape[2]; ox++) {
                                int64_t row = oy * stride - padding + ky;
                                int64_t col = ox * stride - padding + kx;
                                int64_t i = image_index(x, b, row, col, ch);
                                if (i < 0) continue;
                                int64_t j = image_index(dy, b, oy, ox, o);
                                s += (double)sz_get(x, i) * sz_get(dy, j);
                            }
                    sz_f32(acc)[weight_index(acc, o, ch, ky, kx)] += (float)s;
                }
    return 0;
}
