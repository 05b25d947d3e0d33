/* optim.cu - the AdamW update on the device: one pass over gradient, moments, f32 parameter or master, and the bf16 parameter; the
 * same with moments of 8 or 16 bits and bf16 parameters without masters (codes and rounding: cpu/optim.c).
 * Bound by memory. The reference is cpu/ref_optim.c; sum_squares is in elementwise.cu. */
#include "vector.cuh"
#include "philox.cuh"
#include <math.h>

enum { THREADS = 256, QUAD = 4 };

typedef struct { float decay, one_minus_b1, b2, one_minus_b2, step_size, root_correction, eps, grad_scale; } adamw_numbers;

/* p is the f32 parameter or its f32 master; rounded, when not NULL, the bf16 (or another f32) parameter. Decoupled decay,
 * bias-corrected moments, as PyTorch's AdamW. */
template <int W> __global__ void adamw_kernel(float *p, sz_elements rounded, const float *grad, float *m, float *v, int64_t first, int64_t n, adamw_numbers a)
{
    const int64_t i = first + ((int64_t)blockIdx.x * THREADS + threadIdx.x) * W;
    if (i >= n) return;
    float g[W], m1[W], v1[W], now[W];
    sz_load_vector<W>(grad + i, g);
    sz_load_vector<W>(m + i, m1);
    sz_load_vector<W>(v + i, v1);
    sz_load_vector<W>(p + i, now);
    for (int j = 0; j < W; j++) {
        g[j] *= a.grad_scale;
        m1[j] += a.one_minus_b1 * (g[j] - m1[j]);
        v1[j] = a.b2 * v1[j] + a.one_minus_b2 * g[j] * g[j];
        now[j] = now[j] * a.decay - a.step_size * m1[j] / (sqrtf(v1[j]) * a.root_correction + a.eps);
    }
    sz_store_vector<W>(m + i, m1);
    sz_store_vector<W>(v + i, v1);
    sz_store_vector<W>(p + i, now);
    if (rounded.data) sz_store_vector<W>(rounded, i, now);
}

/* args: lr, b1, b2, eps, wd, step, grad_scale */
static adamw_numbers numbers_of(const double *args)
{
    const double lr = args[0], b1 = args[1], b2 = args[2], step = args[5];
    return adamw_numbers{
        (float)(1.0 - lr * args[4]), (float)(1.0 - b1), (float)b2, (float)(1.0 - b2), (float)(lr / (1.0 - pow(b1, step))),
        (float)(1.0 / sqrt(1.0 - pow(b2, step))), (float)args[3], (float)args[6],
    };
}

/* (param, grad, m, v, master | NULL; lr, b1, b2, eps, wd, step, grad_scale) */
extern "C" int sz_cuda_adamw_(const sz_call *c)
{
    const sz_tensor *param = c->in[0], *grad = c->in[1], *m = c->in[2], *v = c->in[3], *master = c->in[4];
    const adamw_numbers a = numbers_of(c->args);
    float *p = sz_f32(master ? master : param);
    const sz_elements rounded = master ? sz_elements_of(param) : sz_elements{ NULL, false };
    const bool wide = sz_is_aligned16(p) && sz_is_aligned16(rounded.data) && sz_is_aligned16(grad) && sz_is_aligned16(m) && sz_is_aligned16(v);
    const int64_t n = param->numel, quads = wide ? n / QUAD : 0, rest = n - quads * QUAD;
    if (quads) SZ_LAUNCH((adamw_kernel<QUAD>), (unsigned)sz_blocks(quads, THREADS), THREADS, 0, p, rounded, sz_f32(grad), sz_f32(m), sz_f32(v), (int64_t)0, quads * QUAD, a);
    if (rest) SZ_LAUNCH((adamw_kernel<1>), (unsigned)sz_blocks(rest, THREADS), THREADS, 0, p, rounded, sz_f32(grad), sz_f32(m), sz_f32(v), quads * QUAD, n, a);
    return sz_cuda_launched("adamw_");
}

/* ---- little memory ---- */
/* A warp has a block of 256 elements, a lane eight neighbours: their 16 random bits each are the four words of one Philox call. */
enum { EACH = 8, DRAWN = 512 };                 /* elements of a lane; of a block of random numbers, 192 calls: m, v, parameter */
static_assert(32 * EACH == SZ_MOMENT_BLOCK, "a warp has a block of a moment");

/* Codes of `exponents` - 1 octaves above the linear part; a sign before them if there is one. */
struct code_format { int exponents; bool sign; };

struct compact_call {
    sz_elements param, grad, m, v;              /* m and v: of their dtype, codes where m_scale is not NULL */
    float *m_scale, *v_scale, *master;
    int64_t n;
    uint32_t index, step;
    bool whole;                                 /* all of them may be moved in vectors */
    adamw_numbers a;
};

/* Eight elements from i on; those past n are 0, and are not written. */
static __device__ __forceinline__ void get8(const sz_elements &e, int64_t i, int64_t n, bool whole, float (&v)[EACH])
{
    if (whole && i + EACH <= n) sz_load_vector<EACH>(e, i, v);
    else for (int j = 0; j < EACH; j++) v[j] = i + j < n ? sz_load_element(e, i + j) : 0.0f;
}
static __device__ __forceinline__ void put8(const sz_elements &e, int64_t i, int64_t n, bool whole, const float (&v)[EACH])
{
    if (whole && i + EACH <= n) sz_store_vector<EACH>(e, i, v);
    else for (int j = 0; j < EACH && i + j < n; j++) sz_store_element(e, i + j, v[j]);
}

/* The lane's random numbers of stream 0 (m), 1 (v) or 2 (the parameter). */
static __device__ __forceinline__ void draw8(const compact_call &c, int stream, int64_t i, uint32_t (&r)[EACH])
{
    const uint4 w = sz_philox(SZ_ROUNDING_SEED, (uint64_t)(i / DRAWN * (3 * DRAWN / 8) + stream * (DRAWN / 8) + i % DRAWN / EACH), c.index, c.step);
    const uint32_t words[4] = { w.x, w.y, w.z, w.w };
    for (int j = 0; j < EACH; j++) r[j] = words[j / 2] >> 16 * (j % 2) & 0xffff;
}

/* Rounds to bf16 at random, to one of the two neighbours. Exact in f32, so that writing it rounds no more. */
static __device__ __forceinline__ void round8(const compact_call &c, int stream, int64_t i, float (&v)[EACH])
{
    uint32_t r[EACH];
    draw8(c, stream, i, r);
    for (int j = 0; j < EACH; j++) v[j] = __uint_as_float((__float_as_uint(v[j]) + r[j]) & 0xffff0000u);
}

static __device__ __forceinline__ float least_of(code_format f) { return __uint_as_float((uint32_t)(129 - f.exponents) << 23) / 8; }

static __device__ __forceinline__ void decode8(code_format f, const uint8_t *codes, float scale, int64_t i, int64_t n, bool whole, float (&v)[EACH])
{
    const uint32_t sign = f.sign ? 0x80 : 0, bias = (uint32_t)(128 - f.exponents);
    const float least = least_of(f);
    uint2 words = make_uint2(0, 0);
    if (whole && i + EACH <= n) words = *(const uint2 *)(codes + i);
    else for (int j = 0; j < EACH && i + j < n; j++) (j < 4 ? words.x : words.y) |= (uint32_t)codes[i + j] << 8 * (j % 4);
    for (int j = 0; j < EACH; j++) {
        const uint32_t code = (j < 4 ? words.x : words.y) >> 8 * (j % 4) & 0xff, size = code & (0xff ^ sign);
        const float normal = __uint_as_float((size << 20) + (bias << 23)), x = scale * (size < 8 ? (float)size * least : normal);
        v[j] = code & sign ? -x : x;
    }
}

/* All lanes of the warp: the largest of their elements is the block's scale. */
static __device__ __forceinline__ void encode8(const compact_call &c, int stream, code_format f, uint8_t *codes, float *scales, int64_t i, const float (&v)[EACH])
{
    const uint32_t sign = f.sign ? 0x80 : 0, most = 0xff ^ sign, bias = (uint32_t)(128 - f.exponents);
    const float least = least_of(f);
    float top = 0;
    for (int j = 0; j < EACH; j++) top = i + j < c.n ? fmaxf(top, fabsf(v[j])) : top;
    const float scale = sz_warp_max(top) / 1.875f;
    const bool any = scale > 1e-37f;                /* else nothing, or too small to divide by */
    if (threadIdx.x % 32 == 0) scales[i / SZ_MOMENT_BLOCK] = any ? scale : 0.0f;
    uint32_t r[EACH];
    uint2 words = make_uint2(0, 0);
    draw8(c, stream, i, r);
    for (int j = 0; any && j < EACH; j++) {
        const float size = fabsf(v[j]) / scale;
        const uint32_t normal = ((__float_as_uint(size) + (r[j] << 4)) >> 20) - (bias << 3);       /* garbage below the octaves: not taken there */
        const uint32_t linear = (uint32_t)(size / least + (float)r[j] * 0x1p-16f);
        uint32_t code = size < 8 * least ? linear : normal;
        code = code > most ? most : code;
        code = !f.sign && code == 0 && size > 0 ? 1 : code;
        (j < 4 ? words.x : words.y) |= (v[j] < 0 ? code | sign : code) << 8 * (j % 4);
    }
    if (c.whole && i + EACH <= c.n) *(uint2 *)(codes + i) = words;
    else for (int j = 0; j < EACH && i + j < c.n; j++) codes[i + j] = (uint8_t)((j < 4 ? words.x : words.y) >> 8 * (j % 4));
}

static __global__ void __launch_bounds__(THREADS) compact_kernel(compact_call c)
{
    const int64_t i = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * EACH;
    if (i / SZ_MOMENT_BLOCK * SZ_MOMENT_BLOCK >= c.n) return;           /* the whole warp */
    const code_format first = { 16, true }, second = { 32, false };
    const sz_elements wide = sz_elements{ c.master, false };
    const adamw_numbers a = c.a;
    float g[EACH], m[EACH], v[EACH], p[EACH];
    get8(c.grad, i, c.n, c.whole, g);
    get8(c.master ? wide : c.param, i, c.n, c.whole, p);
    if (c.m_scale) {
        decode8(first, (const uint8_t *)c.m.data, c.m_scale[i / SZ_MOMENT_BLOCK], i, c.n, c.whole, m);
        decode8(second, (const uint8_t *)c.v.data, c.v_scale[i / SZ_MOMENT_BLOCK], i, c.n, c.whole, v);
        __syncwarp();                                                   /* the scales are read: encode8 writes them */
    } else {
        get8(c.m, i, c.n, c.whole, m);
        get8(c.v, i, c.n, c.whole, v);
    }
    for (int j = 0; j < EACH; j++) {
        g[j] *= a.grad_scale;
        m[j] += a.one_minus_b1 * (g[j] - m[j]);
        v[j] = a.b2 * v[j] + a.one_minus_b2 * g[j] * g[j];
        p[j] = p[j] * a.decay - a.step_size * m[j] / (sqrtf(v[j]) * a.root_correction + a.eps);
    }
    if (c.m_scale) {
        encode8(c, 0, first, (uint8_t *)c.m.data, c.m_scale, i, m);
        encode8(c, 1, second, (uint8_t *)c.v.data, c.v_scale, i, v);
    } else {
        if (c.m.is_bf16) {
            round8(c, 0, i, m);
            round8(c, 1, i, v);
        }
        put8(c.m, i, c.n, c.whole, m);
        put8(c.v, i, c.n, c.whole, v);
    }
    if (c.master) put8(wide, i, c.n, c.whole, p);
    else if (c.param.is_bf16) round8(c, 2, i, p);
    put8(c.param, i, c.n, c.whole, p);
}

/* (param, grad, m, v, m_scale | NULL, v_scale | NULL, master | NULL; lr, b1, b2, eps, wd, step, grad_scale, index) */
extern "C" int sz_cuda_adamw_compact_(const sz_call *c)
{
    const sz_tensor *param = c->in[0], *grad = c->in[1], *m = c->in[2], *v = c->in[3], *master = c->in[6];
    const bool codes = m->dtype == SZ_U8;
    compact_call k = { sz_elements_of(param), sz_elements_of(grad), sz_elements_of(m), sz_elements_of(v), codes ? sz_f32(c->in[4]) : NULL,
                       codes ? sz_f32(c->in[5]) : NULL, master ? sz_f32(master) : NULL, param->numel, (uint32_t)c->args[7], (uint32_t)c->args[5],
                       sz_is_aligned16(param) && sz_is_aligned16(grad) && sz_is_aligned16(m) && sz_is_aligned16(v) && (!master || sz_is_aligned16(master)), numbers_of(c->args) };
    if (param->numel == 0) return 0;
    SZ_LAUNCH(compact_kernel, (unsigned)sz_blocks(param->numel, THREADS * EACH), THREADS, 0, k);
    return sz_cuda_launched("adamw_compact_");
}
