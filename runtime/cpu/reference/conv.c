/* ref_conv.c - the plain reference kernels of conv.c: a loop over every index of the sum that defines the op, in double.
 * Pictures [b, h, w, c], weights [o, c, kh, kw]; x is what conv2d reads, y what it makes. */
#include "core/core.h"

/* Element numbers; picture_at gives -1 outside. */
static int64_t picture_at(const sz_tensor *x, int64_t b, int64_t y, int64_t col, int64_t ch)
{
    if (y < 0 || y >= x->shape[1] || col < 0 || col >= x->shape[2]) return -1;
    return ((b * x->shape[1] + y) * x->shape[2] + col) * x->shape[3] + ch;
}
static int64_t weight_at(const sz_tensor *w, int64_t o, int64_t ch, int64_t ky, int64_t kx)
{
    return ((o * w->shape[1] + ch) * w->shape[2] + ky) * w->shape[3] + kx;
}

int sz_ref_conv2d(const sz_call *c)
{
    sz_tensor *x = c->in[0], *w = c->in[1], *bias = c->in[2], *y = c->out[0];
    int64_t stride = (int64_t)c->args[0], padding = (int64_t)c->args[1], at = 0;
    for (int64_t b = 0; b < y->shape[0]; b++)
        for (int64_t oy = 0; oy < y->shape[1]; oy++)
            for (int64_t ox = 0; ox < y->shape[2]; ox++)
                for (int64_t o = 0; o < y->shape[3]; o++) {
                    double s = bias ? sz_get(bias, o) : 0;
                    for (int64_t ch = 0; ch < w->shape[1]; ch++)
                        for (int64_t ky = 0; ky < w->shape[2]; ky++)
                            for (int64_t kx = 0; kx < w->shape[3]; kx++) {
                                int64_t i = picture_at(x, b, oy * stride - padding + ky, ox * stride - padding + kx, ch);
                                if (i >= 0) s += (double)sz_get(x, i) * sz_get(w, weight_at(w, o, ch, ky, kx));
                            }
                    sz_put(y, at++, (float)s);
                }
    return 0;
}

/* The place of dy whose kernel cell k lies on x's place i; -1 when there is none. */
static int64_t output_place(int64_t i, int64_t k, int64_t stride, int64_t padding)
{
    int64_t scaled = i + padding - k;
    return scaled >= 0 && scaled % stride == 0 ? scaled / stride : -1;
}

static int input_gradient(const sz_tensor *dy, const sz_tensor *w, const sz_tensor *bias, sz_tensor *dx, const double *args)
{
    int64_t stride = (int64_t)args[0], padding = (int64_t)args[1], at = 0;
    for (int64_t b = 0; b < dx->shape[0]; b++)
        for (int64_t y = 0; y < dx->shape[1]; y++)
            for (int64_t x = 0; x < dx->shape[2]; x++)
                for (int64_t ch = 0; ch < dx->shape[3]; ch++) {
                    double s = bias ? sz_get(bias, ch) : 0;
                    for (int64_t ky = 0; ky < w->shape[2]; ky++)
                        for (int64_t kx = 0; kx < w->shape[3]; kx++) {
                            int64_t oy = output_place(y, ky, stride, padding), ox = output_place(x, kx, stride, padding);
                            int64_t i = picture_at(dy, b, oy, ox, 0);
                            for (int64_t o = 0; i >= 0 && o < w->shape[0]; o++)
                                s += (double)sz_get(dy, i + o) * sz_get(w, weight_at(w, o, ch, ky, kx));
                        }
                    sz_put(dx, at++, (float)s);
                }
    return 0;
}
int sz_ref_conv2d_dx(const sz_call *c) { return input_gradient(c->in[0], c->in[1], NULL, c->out[0], c->args); }
int sz_ref_conv_transpose2d(const sz_call *c) { return input_gradient(c->in[0], c->in[1], c->in[2], c->out[0], c->args); }

int sz_ref_conv2d_dw_(const sz_call *c)
{
    sz_tensor *acc = c->in[0], *x = c->in[1], *dy = c->in[2];
    int64_t stride = (int64_t)c->args[0], padding = (int64_t)c->args[1];
    for (int64_t o = 0; o < acc->shape[0]; o++)
        for (int64_t ch = 0; ch < acc->shape[1]; ch++)
            for (int64_t ky = 0; ky < acc->shape[2]; ky++)
                for (int64_t kx = 0; kx < acc->shape[3]; kx++) {
                    double s = 0;
                    for (int64_t b = 0; b < dy->shape[0]; b++)
                        for (int64_t oy = 0; oy < dy->shape[1]; oy++)
                            for (int64_t ox = 0; ox < dy->shape[2]; ox++) {
                                int64_t i = picture_at(x, b, oy * stride - padding + ky, ox * stride - padding + kx, ch);
                                if (i >= 0) s += (double)sz_get(x, i) * sz_get(dy, picture_at(dy, b, oy, ox, o));
                            }
                    sz_f32(acc)[weight_at(acc, o, ch, ky, kx)] += (float)s;
                }
    return 0;
}
