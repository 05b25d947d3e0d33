/* conv.c - convolutions and resizing of images [b, h, w, c], channels innermost; weights are
 * [o, c, kh, kw]. Shape checks, gradient rules, workspace, FLOP counts, typed wrappers.
 *
 * conv_transpose2d is conv2d with x and y exchanged, so each is the other's gradient.
 * Leaves out: dilation, groups, unequal strides, output padding.
 */
#include "op.h"
#include "cpu/gemm.h"
#include <omp.h>

static bool is_image(const sz_tensor *x) { return sz_is_float_nd(x, 4); }

/* A new [b, h, w, channels] with like's b, dtype and device. */
static sz_tensor *new_image(const sz_tensor *like, int64_t h, int64_t w, int64_t channels)
{
    const int64_t shape[] = { like->shape[0], h, w, channels };
    return sz_tensor_new(like->dtype, 4, shape, like->device);
}

/* Positions of a kernel of k cells on n cells; 0 or less when it does not fit. */
static int64_t positions(int64_t n, int64_t k, int64_t stride, int64_t padding)
{
    return n + 2 * padding < k ? 0 : (n + 2 * padding - k) / stride + 1;
}

static int read_stride(int op, const sz_call *c, int64_t *stride, int64_t *padding)
{
    return sz_whole(op, c, 0, 1, stride) != 0 ? -1 : sz_whole(op, c, 1, 0, padding);
}

/* bias is NULL or [channels] */
static bool bias_fits(const sz_tensor *bias, int64_t channels)
{
    return !bias || (sz_is_float(bias) && bias->numel == channels);
}

/* ---- shapes ---- */
int sz_shape_conv2d(int op, sz_call *c)
{
    sz_tensor *x = c->in[0];
    sz_tensor *w = c->in[1];
    int64_t stride;
    int64_t padding;
    SZ_REQUIRE(is_image(x) && is_image(w) && w->dtype == x->dtype,
               "takes x [b, h, w, c] and weight [o, c, kh, kw] of one dtype");
    if (read_stride(op, c, &stride, &padding) != 0) return -1;
    SZ_REQUIRE(w->shape[1] == x->shape[3] && bias_fits(c->in[2], w->shape[0]),
               "the weight must be [o, c, kh, kw] and the bias [o]");
    const int64_t oh = positions(x->shape[1], w->shape[2], stride, padding);
    const int64_t ow = positions(x->shape[2], w->shape[3], stride, padding);
    SZ_REQUIRE(oh > 0 && ow > 0, "the kernel is larger than the image");
    return sz_out(c, new_image(x, oh, ow, w->shape[0]));
}

int sz_shape_conv2d_dx(int op, sz_call *c)
{
    sz_tensor *dy = c->in[0];
    sz_tensor *w = c->in[1];
    int64_t stride;
    int64_t padding;
    int64_t height;
    int64_t width;
    SZ_REQUIRE(is_image(dy) && is_image(w) && w->dtype == dy->dtype && w->shape[0] == dy->shape[3],
               "takes dy [b, oh, ow, o] and weight [o, c, kh, kw] of one dtype");
    if (read_stride(op, c, &stride, &padding) != 0) return -1;
    if (sz_whole(op, c, 2, 1, &height) != 0 || sz_whole(op, c, 3, 1, &width) != 0) return -1;
    SZ_REQUIRE(positions(height, w->shape[2], stride, padding) == dy->shape[1] &&
                   positions(width, w->shape[3], stride, padding) == dy->shape[2],
               "dy is not what conv2d makes of height x width");
    return sz_out(c, new_image(dy, height, width, w->shape[1]));
}

int sz_shape_conv2d_dw_(int op, sz_call *c)
{
    sz_tensor *acc = c->in[0];
    sz_tensor *x = c->in[1];
    sz_tensor *dy = c->in[2];
    int64_t stride;
    int64_t padding;
    SZ_REQUIRE(sz_is_f32(acc) && acc->ndim == 4 && is_image(x) && is_image(dy) &&
                   x->dtype == dy->dtype,
               "takes acc f32 [o, c, kh, kw], x, dy");
    if (read_stride(op, c, &stride, &padding) != 0) return -1;
    SZ_REQUIRE(acc->shape[0] == dy->shape[3] && acc->shape[1] == x->shape[3] &&
                   x->shape[0] == dy->shape[0] &&
                   positions(x->shape[1], acc->shape[2], stride, padding) == dy->shape[1] &&
                   positions(x->shape[2], acc->shape[3], stride, padding) == dy->shape[2],
               "acc, x and dy do not fit each other");
    return sz_out_in_place(c);
}

int sz_shape_conv_transpose2d(int op, sz_call *c)
{
    sz_tensor *x = c->in[0];
    sz_tensor *w = c->in[1];
    int64_t stride;
    int64_t padding;
    SZ_REQUIRE(is_image(x) && is_image(w) && w->dtype == x->dtype,
               "takes x [b, h, w, c] and weight [c, o, kh, kw] of one dtype");
    if (read_stride(op, c, &stride, &padding) != 0) return -1;
    SZ_REQUIRE(w->shape[0] == x->shape[3] && bias_fits(c->in[2], w->shape[1]),
               "the weight must be [c, o, kh, kw] and the bias [o]");
    const int64_t oh = (x->shape[1] - 1) * stride - 2 * padding + w->shape[2];
    const int64_t ow = (x->shape[2] - 1) * stride - 2 * padding + w->shape[3];
    SZ_REQUIRE(oh > 0 && ow > 0, "the padding leaves nothing");
    return sz_out(c, new_image(x, oh, ow, w->shape[1]));
}

static int shape_resize(int op, sz_call *c)
{
    sz_tensor *x = c->in[0];
    int64_t height;
    int64_t width;
    int64_t mode;
    SZ_REQUIRE(is_image(x) && x->numel > 0, "takes an image [b, h, w, c] that is not empty");
    if (sz_whole(op, c, 0, 1, &height) != 0 || sz_whole(op, c, 1, 1, &width) != 0) return -1;
    if (sz_whole(op, c, 2, SZ_NEAREST, &mode) != 0) return -1;
    if (mode > SZ_BILINEAR_ANTIALIASED) return sz_refuse_number(op, c, 2, "from 0 to 3");
    return sz_out(c, new_image(x, height, width, x->shape[3]));
}

int sz_shape_resize(int op, sz_call *c) { return shape_resize(op, c); }
int sz_shape_resize_backward(int op, sz_call *c) { return shape_resize(op, c); }

/* ---- workspace ---- */
/* The weight as f32, and once more in the order of the image's channels. */
static int64_t weight_bytes(const sz_tensor *w)
{
    const int64_t f32 = w->dtype == SZ_F32 ? 0 : w->numel;
    const bool reordered = w->shape[1] > 1 && w->shape[2] * w->shape[3] > 1;
    return (int64_t)sizeof(float) * (f32 + (reordered ? w->numel : 0));
}

/* A block of rows [k] of the image under the kernel, and of results or gradients [o] where they
 * are bf16: 256 KiB of rows for each thread, 64 rows at least, `most` at most. */
static int64_t block_bytes(const sz_tensor *w, int64_t most, int dtype)
{
    const int64_t k = w->numel / w->shape[0];
    int64_t rows = ((int64_t)omp_get_max_threads() << 18) / ((int64_t)sizeof(float) * (k + 1));
    if (rows < 64) rows = 64;
    if (rows > most) rows = most;
    const int64_t narrow = dtype == SZ_F32 ? 0 : w->shape[0];
    return (int64_t)sizeof(float) * rows * (k + narrow);
}

int64_t sz_workspace_conv2d(const sz_call *c)
{
    const sz_tensor *y = c->out[0];
    const sz_tensor *w = c->in[1];
    return weight_bytes(w) + block_bytes(w, y->numel / y->shape[3], y->dtype);
}

/* (dy or x, weight): the kernel's results are added up for one image at a time. */
int64_t sz_workspace_conv2d_dx(const sz_call *c)
{
    const sz_tensor *from = c->in[0];
    const sz_tensor *to = c->out[0];
    const sz_tensor *w = c->in[1];
    const int64_t images = to->shape[0] > 0 ? to->shape[0] : 1;
    const int64_t block = block_bytes(w, from->shape[1] * from->shape[2], from->dtype);
    return weight_bytes(w) + block + sz_workspace_sums(to) / images;
}

int64_t sz_workspace_conv2d_dw_(const sz_call *c)
{
    const sz_tensor *acc = c->in[0];
    const sz_tensor *dy = c->in[2];
    const int64_t sums = (int64_t)sizeof(float) * acc->numel;
    return sums + block_bytes(acc, dy->numel / dy->shape[3], dy->dtype);
}

/* ---- FLOPs ---- */
/* Every element of t meets each weight of its channel, o of w [o, c, kh, kw]. */
static double count_flops(const sz_tensor *t, const sz_tensor *w)
{
    return 2.0 * (double)t->numel * (double)(w->numel / w->shape[0]);
}

double sz_flops_conv2d(const sz_call *c) { return count_flops(c->out[0], c->in[1]); }
double sz_flops_conv2d_dx(const sz_call *c) { return count_flops(c->in[0], c->in[1]); }
double sz_flops_conv2d_dw_(const sz_call *c) { return count_flops(c->in[2], c->in[0]); }

/* ---- gradients ---- */
/* The weight's and the bias's gradients of y = conv2d(x, w) + b. conv_transpose2d calls it with x
 * and dy exchanged. */
static int grad_weight_and_bias(sz_node *n, sz_tensor *x, sz_tensor *dy)
{
    sz_tensor *w = n->call.in[1];
    sz_tensor *b = n->call.in[2];
    sz_call sum = { .in = { NULL, x, dy }, .args = { n->call.args[0], n->call.args[1] } };
    if (sz_needs_grad(w) && sz_accumulate_into(w, SZ_OP_conv2d_dw_, sum) != 0) return -1;
    if (!sz_needs_grad(b)) return 0;
    return sz_accumulate_into(b, SZ_OP_column_sum_, (sz_call){ .in = { NULL, sz_dy(n) } });
}

int sz_grad_conv2d(sz_node *n)
{
    sz_tensor *x = n->call.in[0];
    if (grad_weight_and_bias(n, x, sz_dy(n)) != 0) return -1;
    if (!sz_needs_grad(x)) return 0;
    const double height = (double)x->shape[1];
    const double width = (double)x->shape[2];
    sz_call call = { .in = { sz_dy(n), n->call.in[1] },
                     .args = { n->call.args[0], n->call.args[1], height, width } };
    return sz_give(n, 0, sz_run(SZ_OP_conv2d_dx, call));
}

int sz_grad_conv_transpose2d(sz_node *n)
{
    if (grad_weight_and_bias(n, sz_dy(n), n->call.in[0]) != 0) return -1;
    if (!sz_wants(n, 0)) return 0;
    const int stride = (int)n->call.args[0];
    const int padding = (int)n->call.args[1];
    return sz_give(n, 0, sz_conv2d(sz_dy(n), n->call.in[1], NULL, stride, padding));
}

int sz_grad_resize(sz_node *n)
{
    const sz_tensor *x = n->call.in[0];
    sz_call call = { .in = { sz_dy(n) },
                     .args = { (double)x->shape[1], (double)x->shape[2], n->call.args[2] } };
    return sz_give(n, 0, sz_run(SZ_OP_resize_backward, call));
}

/* ---- wrappers ---- */
sz_tensor *sz_conv2d(sz_tensor *x, sz_tensor *w, sz_tensor *b, int stride, int padding)
{
    sz_call call = { .in = { x, w, b }, .args = { stride, padding } };
    return sz_run_wrapped(SZ_OP_conv2d, 2, call);
}

sz_tensor *sz_conv_transpose2d(sz_tensor *x, sz_tensor *w, sz_tensor *b, int stride, int padding)
{
    sz_call call = { .in = { x, w, b }, .args = { stride, padding } };
    return sz_run_wrapped(SZ_OP_conv_transpose2d, 2, call);
}

sz_tensor *sz_resize(sz_tensor *x, int64_t height, int64_t width, int mode)
{
    sz_call call = { .in = { x }, .args = { (double)height, (double)width, mode } };
    return sz_run_wrapped(SZ_OP_resize, 1, call);
}
