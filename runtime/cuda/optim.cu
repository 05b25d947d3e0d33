/* optim.cu - the AdamW update on the device, in one pass over gradient, moments, f32 parameter or
 * master, and bf16 parameter; and the same with moments of 8 or 16 bits and bf16 parameters
 * without masters (codes and rounding: cpu/optim.c). Both are bound by memory.
 * Leaves out: sum_squares, which is in elementwise.cu. The reference is cpu/reference/optim.c. */
#include "vector.cuh"
#include "philox.cuh"
#include <math.h>

enum { THREADS = 256, QUAD = 4 };

typedef struct {
    float decay;
    float one_minus_b1;
    float b2, one_minus_b2;
    float step_size;
    float root_correction;
    float eps;
    float grad_scale;
} adamw_numbers;

/* args: lr, b1, b2, eps, wd, step, grad_scale */
static adamw_numbers numbers_of(const double *args)
{
    const double lr = args[0];
    const double b1 = args[1];
    const double b2 = args[2];
    const double step = args[5];
    adamw_numbers a;
    a.decay = (float)(1.0 - lr * args[4]);
    a.one_minus_b1 = (float)(1.0 - b1);
    a.b2 = (float)b2;
    a.one_minus_b2 = (float)(1.0 - b2);
    a.step_size = (float)(lr / (1.0 - pow(b1, step)));
    a.root_correction = (float)(1.0 / sqrt(1.0 - pow(b2, step)));
    a.eps = (float)args[3];
    a.grad_scale = (float)args[6];
    return a;
}

/* Updates W moments and parameters: decoupled decay and bias-corrected moments, as PyTorch's
 * AdamW. */
template <int W> static __device__ __forceinline__ void update(const adamw_numbers &a,
                                                               float (&g)[W], float (&m)[W],
                                                               float (&v)[W], float (&p)[W])
{
    for (int j = 0; j < W; j++) {
        g[j] *= a.grad_scale;
        m[j] += a.one_minus_b1 * (g[j] - m[j]);
        v[j] = a.b2 * v[j] + a.one_minus_b2 * g[j] * g[j];
        p[j] = p[j] * a.decay - a.step_size * m[j] / (sqrtf(v[j]) * a.root_correction + a.eps);
    }
}

/* ---- adamw_: f32 moments ---- */
/* Elements [first, n), W for each thread. p is the f32 parameter or its f32 master; `rounded`,
 * unless its data is NULL, is the bf16 (or another f32) parameter. */
template <int W> __global__ void adamw_kernel(float *p, sz_elements rounded, const float *grad,
                                              float *m, float *v, int64_t first, int64_t n,
                                              adamw_numbers a)
{
    const int64_t i = first + ((int64_t)blockIdx.x * THREADS + threadIdx.x) * W;
    if (i >= n) return;
    float g[W], m1[W], v1[W], now[W];
    sz_load_vector<W>(grad + i, g);
    sz_load_vector<W>(m + i, m1);
    sz_load_vector<W>(v + i, v1);
    sz_load_vector<W>(p + i, now);
    update<W>(a, g, m1, v1, now);
    sz_store_vector<W>(m + i, m1);
    sz_store_vector<W>(v + i, v1);
    sz_store_vector<W>(p + i, now);
    if (rounded.data) sz_store_vector<W>(rounded, i, now);
}

/* (param, grad, m, v, master | NULL; lr, b1, b2, eps, wd, step, grad_scale) */
extern "C" int sz_cuda_adamw_(const sz_call *c)
{
    const sz_tensor *param = c->in[0];
    const sz_tensor *master = c->in[4];
    const float *grad = sz_f32(c->in[1]);
    float *m = sz_f32(c->in[2]);
    float *v = sz_f32(c->in[3]);
    const adamw_numbers a = numbers_of(c->args);
    float *p = sz_f32(master ? master : param);
    const sz_elements rounded = master ? sz_elements_of(param) : sz_elements{ NULL, false };
    /* Vectors as far as they go, then single elements. */
    const bool aligned = sz_is_aligned16(p) && sz_is_aligned16(rounded.data) &&
                         sz_is_aligned16(grad) && sz_is_aligned16(m) && sz_is_aligned16(v);
    const int64_t n = param->numel;
    const int64_t quads = aligned ? n / QUAD : 0;
    const int64_t remaining = n - quads * QUAD;
    if (quads)
        SZ_LAUNCH((adamw_kernel<QUAD>), (unsigned)sz_blocks(quads, THREADS), THREADS, 0, p, rounded,
                  grad, m, v, (int64_t)0, quads * QUAD, a);
    if (remaining)
        SZ_LAUNCH((adamw_kernel<1>), (unsigned)sz_blocks(remaining, THREADS), THREADS, 0, p,
                  rounded, grad, m, v, quads * QUAD, n, a);
    return sz_cuda_launched("adamw_");
}

/* ---- adamw_compact_: 8 or 16 bits ---- */
/* A warp processes a block of 256 elements; each lane has eight neighbours, whose 16 random bits
 * each are the four words of one Philox call. */
enum {
    EACH = 8,    /* elements of a lane */
    DRAWN = 512, /* elements with 192 Philox calls, 64 each for m, v, parameter */
};
static_assert(32 * EACH == SZ_MOMENT_BLOCK, "a warp processes one block of a moment");

/* Codes have `exponents` - 1 octaves above the linear part, and a sign in front if is_signed. */
struct code_format {
    int exponents;
    bool is_signed;
};

struct compact_call {
    sz_elements param, grad, m, v; /* m and v hold codes if m_scale is not NULL */
    float *m_scale, *v_scale, *master;
    int64_t n;
    int64_t first; /* where the part begins in its parameter, for the random numbers */
    uint32_t index, step;
    bool aligned; /* all of them can be accessed in vectors */
    adamw_numbers a;
};

/* Loads eight elements from i on; those past n are 0. */
static __device__ __forceinline__ void load8(const sz_elements &e, int64_t i, int64_t n,
                                             bool aligned, float (&v)[EACH])
{
    if (aligned && i + EACH <= n) sz_load_vector<EACH>(e, i, v);
    else
        for (int j = 0; j < EACH; j++) v[j] = i + j < n ? sz_load_element(e, i + j) : 0.0f;
}

/* Stores eight elements from i on, but none past n. */
static __device__ __forceinline__ void store8(const sz_elements &e, int64_t i, int64_t n,
                                              bool aligned, const float (&v)[EACH])
{
    if (aligned && i + EACH <= n) sz_store_vector<EACH>(e, i, v);
    else
        for (int j = 0; j < EACH && i + j < n; j++) sz_store_element(e, i + j, v[j]);
}

/* Draws the lane's random numbers of stream 0 (m), 1 (v) or 2 (the parameter): 16 bits for each
 * element. */
static __device__ __forceinline__ void draw8(const compact_call &c, int stream, int64_t i,
                                             uint32_t (&r)[EACH])
{
    i += c.first;
    const int64_t call = i / DRAWN * (3 * DRAWN / 8) + stream * (DRAWN / 8) + i % DRAWN / EACH;
    const uint4 w = sz_philox(SZ_ROUNDING_SEED, (uint64_t)call, c.index, c.step);
    const uint32_t words[4] = { w.x, w.y, w.z, w.w };
    for (int j = 0; j < EACH; j++) r[j] = words[j / 2] >> 16 * (j % 2) & 0xffff;
}

/* Rounds stochastically to one of the two neighbouring bf16 values, kept as f32, so that storing
 * them as bf16 is exact. */
static __device__ __forceinline__ void round8(const compact_call &c, int stream, int64_t i,
                                              float (&v)[EACH])
{
    uint32_t r[EACH];
    draw8(c, stream, i, r);
    for (int j = 0; j < EACH; j++)
        v[j] = __uint_as_float((__float_as_uint(v[j]) + r[j]) & 0xffff0000u);
}

/* The step of the linear part. */
static __device__ __forceinline__ float linear_step(code_format f)
{
    return __uint_as_float((uint32_t)(129 - f.exponents) << 23) / 8;
}

/* Eight codes are the bytes of two words; code j is in this word. */
static __device__ __forceinline__ uint32_t &word_of(uint2 &words, int j)
{
    return j < 4 ? words.x : words.y;
}

static __device__ __forceinline__ void decode8(code_format f, const uint8_t *codes, float scale,
                                               int64_t i, int64_t n, bool aligned, float (&v)[EACH])
{
    const uint32_t sign = f.is_signed ? 0x80 : 0;
    const uint32_t bias = (uint32_t)(128 - f.exponents);
    const float step = linear_step(f);
    /* Load the codes. */
    uint2 words = make_uint2(0, 0);
    if (aligned && i + EACH <= n) words = *(const uint2 *)(codes + i);
    else
        for (int j = 0; j < EACH && i + j < n; j++)
            word_of(words, j) |= (uint32_t)codes[i + j] << 8 * (j % 4);
    /* A magnitude below 8 is linear; the others are the top bits of a float. */
    for (int j = 0; j < EACH; j++) {
        const uint32_t code = word_of(words, j) >> 8 * (j % 4) & 0xff;
        const uint32_t magnitude = code & (0xff ^ sign);
        const float normal = __uint_as_float((magnitude << 20) + (bias << 23));
        const float x = scale * (magnitude < 8 ? (float)magnitude * step : normal);
        v[j] = code & sign ? -x : x;
    }
}

/* Encodes the block and stores codes and scale. All lanes of the warp: the largest of their
 * elements determines the scale. */
static __device__ __forceinline__ void encode8(const compact_call &c, int stream, code_format f,
                                               uint8_t *codes, float *scales, int64_t i,
                                               const float (&v)[EACH])
{
    const uint32_t sign = f.is_signed ? 0x80 : 0;
    const uint32_t most = 0xff ^ sign;
    const uint32_t bias = (uint32_t)(128 - f.exponents);
    const float step = linear_step(f);
    float top = 0;
    for (int j = 0; j < EACH; j++) top = i + j < c.n ? fmaxf(top, fabsf(v[j])) : top;
    const float scale = sz_warp_max(top) / 1.875f;
    const bool any = scale > 1e-37f; /* else all are 0, or too small to divide by */
    if (threadIdx.x % 32 == 0) scales[i / SZ_MOMENT_BLOCK] = any ? scale : 0.0f;

    /* Round each magnitude stochastically, in the linear part or in the octaves. */
    uint32_t r[EACH];
    uint2 words = make_uint2(0, 0);
    draw8(c, stream, i, r);
    for (int j = 0; any && j < EACH; j++) {
        const float size = fabsf(v[j]) / scale;
        /* `normal` is garbage below the octaves, where it is not used. */
        const uint32_t normal = ((__float_as_uint(size) + (r[j] << 4)) >> 20) - (bias << 3);
        const uint32_t linear = (uint32_t)(size / step + (float)r[j] * 0x1p-16f);
        uint32_t code = size < 8 * step ? linear : normal;
        code = code > most ? most : code;
        /* A second moment that is not 0 stays so. */
        code = !f.is_signed && code == 0 && size > 0 ? 1 : code;
        word_of(words, j) |= (v[j] < 0 ? code | sign : code) << 8 * (j % 4);
    }
    if (c.aligned && i + EACH <= c.n) *(uint2 *)(codes + i) = words;
    else
        for (int j = 0; j < EACH && i + j < c.n; j++)
            codes[i + j] = (uint8_t)(word_of(words, j) >> 8 * (j % 4));
}

static __global__ void __launch_bounds__(THREADS) compact_kernel(compact_call c)
{
    const int64_t i = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * EACH;
    if (i / SZ_MOMENT_BLOCK * SZ_MOMENT_BLOCK >= c.n) return; /* the same for a whole warp */
    const code_format first = { 16, true };
    const code_format second = { 32, false };
    const sz_elements master = sz_elements{ c.master, false };
    uint8_t *m_codes = (uint8_t *)c.m.data;
    uint8_t *v_codes = (uint8_t *)c.v.data;

    /* Load. */
    float g[EACH], m[EACH], v[EACH], p[EACH];
    load8(c.grad, i, c.n, c.aligned, g);
    load8(c.master ? master : c.param, i, c.n, c.aligned, p);
    if (c.m_scale) {
        const int64_t block = i / SZ_MOMENT_BLOCK;
        decode8(first, m_codes, c.m_scale[block], i, c.n, c.aligned, m);
        decode8(second, v_codes, c.v_scale[block], i, c.n, c.aligned, v);
        __syncwarp(); /* every lane has read the scales before encode8 writes them */
    } else {
        load8(c.m, i, c.n, c.aligned, m);
        load8(c.v, i, c.n, c.aligned, v);
    }

    update<EACH>(c.a, g, m, v, p);

    /* Store: moments as codes, bf16 or f32; then master and parameter. */
    if (c.m_scale) {
        encode8(c, 0, first, m_codes, c.m_scale, i, m);
        encode8(c, 1, second, v_codes, c.v_scale, i, v);
    } else {
        if (c.m.is_bf16) {
            round8(c, 0, i, m);
            round8(c, 1, i, v);
        }
        store8(c.m, i, c.n, c.aligned, m);
        store8(c.v, i, c.n, c.aligned, v);
    }
    if (c.master) store8(master, i, c.n, c.aligned, p);
    else if (c.param.is_bf16) round8(c, 2, i, p);
    store8(c.param, i, c.n, c.aligned, p);
}

/* (param, grad, m, v, m_scale | NULL, v_scale | NULL, master | NULL;
 *  lr, b1, b2, eps, wd, step, grad_scale, index, first) */
extern "C" int sz_cuda_adamw_compact_(const sz_call *c)
{
    const sz_tensor *param = c->in[0];
    const sz_tensor *grad = c->in[1];
    const sz_tensor *m = c->in[2];
    const sz_tensor *v = c->in[3];
    const sz_tensor *master = c->in[6];
    const bool has_codes = m->dtype == SZ_U8;
    if (param->numel == 0) return 0;
    compact_call k = {};
    k.param = sz_elements_of(param);
    k.grad = sz_elements_of(grad);
    k.m = sz_elements_of(m);
    k.v = sz_elements_of(v);
    k.m_scale = has_codes ? sz_f32(c->in[4]) : NULL;
    k.v_scale = has_codes ? sz_f32(c->in[5]) : NULL;
    k.master = master ? sz_f32(master) : NULL;
    k.n = param->numel;
    k.index = (uint32_t)c->args[7];
    k.first = (int64_t)c->args[8];
    k.step = (uint32_t)c->args[5];
    k.aligned = sz_is_aligned16(param) && sz_is_aligned16(grad) && sz_is_aligned16(m) &&
                sz_is_aligned16(v) && (!master || sz_is_aligned16(master));
    k.a = numbers_of(c->args);
    SZ_LAUNCH(compact_kernel, (unsigned)sz_blocks(param->numel, THREADS * EACH), THREADS, 0, k);
    return sz_cuda_launched("adamw_compact_");
}
