/* elementwise.cu - the "elementwise" rows of ops.def but for adamw_: one pass over memory each, arithmetic in f32.
 *
 * A thread takes 16 bytes of the first tensor at a time where all pointers allow it (V elements), one element otherwise. A
 * shorter second tensor repeats. Sums are added in f64, per thread, per block, then over blocks, whose number depends on the
 * size alone.
 * Leaves out: adamw_ (optim.cu). */
#include "cuda.cuh"

enum { THREADS = 256, SUM_BLOCKS = 1024 };

template <class T, int V> struct __align__(sizeof(T) * V) pack { T v[V]; };

static bool aligned16(const void *p) { return ((uintptr_t)p & 15) == 0; }

static unsigned blocks_for(int64_t items)
{
    int64_t blocks = (items + THREADS - 1) / THREADS, most = (int64_t)sz_cuda_processors() * 32;
    return (unsigned)(blocks < most ? blocks : most);
}

/* The second and third operand of a call: either dtype, repeating after numel elements. */
struct operand {
    const void *p;
    int64_t numel;
    int f32;
};
static operand as_operand(const sz_tensor *t) { return t ? operand{ t->data, t->numel, t->dtype == SZ_F32 } : operand{ NULL, 1, 1 }; }
__device__ __forceinline__ float element(const operand &o, int64_t i)
{
    return o.f32 ? ((const float *)o.p)[i] : sz_load((const bf16 *)o.p + i);
}

/* y[i] = f(x[i]) */
template <class T, int V, class F> __global__ void map1_kernel(F f, const T *x, T *y, int64_t n)
{
    int64_t step = (int64_t)gridDim.x * THREADS * V;
    for (int64_t i = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * V; i < n; i += step) {
        if (i + V <= n) {
            pack<T, V> a = *(const pack<T, V> *)(x + i);
            for (int j = 0; j < V; j++) sz_store(&a.v[j], f(sz_load(&a.v[j])));
            *(pack<T, V> *)(y + i) = a;
        } else {
            for (int64_t j = i; j < n; j++) sz_store(y + j, f(sz_load(x + j)));
        }
    }
}

/* y[i] = f(a[i], b[i]), a, b and y of one dtype and size; y may be a. */
template <class T, int V, class F> __global__ void map2_kernel(F f, const T *a, const T *b, T *y, int64_t n)
{
    int64_t step = (int64_t)gridDim.x * THREADS * V;
    for (int64_t i = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * V; i < n; i += step) {
        if (i + V <= n) {
            pack<T, V> p = *(const pack<T, V> *)(a + i), q = *(const pack<T, V> *)(b + i);
            for (int j = 0; j < V; j++) sz_store(&p.v[j], f(sz_load(&p.v[j]), sz_load(&q.v[j])));
            *(pack<T, V> *)(y + i) = p;
        } else {
            for (int64_t j = i; j < n; j++) sz_store(y + j, f(sz_load(a + j), sz_load(b + j)));
        }
    }
}

/* The same with operands of other dtypes and sizes: the place in b is found once for V elements. */
template <class T, int V, class F> __global__ void map3_kernel(F f, const T *a, operand b, operand x, T *y, int64_t n)
{
    int64_t step = (int64_t)gridDim.x * THREADS * V;
    for (int64_t i = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * V; i < n; i += step) {
        int64_t at = n >> 32 ? i % b.numel : (int64_t)((unsigned)i % (unsigned)b.numel);
        for (int64_t j = i; j < i + V && j < n; j++) {
            sz_store(y + j, f(sz_load(a + j), element(b, at), x.p ? element(x, j) : 0.0f));
            if (++at == b.numel) at = 0;
        }
    }
}

template <class F> static int map1(const sz_call *c, const char *op, F f)
{
    const sz_tensor *x = c->in[0], *y = c->out[0];
    if (!y->numel) return 0;
    bool wide = aligned16(x->data) && aligned16(y->data);
    SZ_FLOATING(x->dtype, T, {
        constexpr int V = 16 / (int)sizeof(T);
        if (wide) SZ_LAUNCH((map1_kernel<T, V, F>), blocks_for((y->numel + V - 1) / V), THREADS, 0, f, (const T *)x->data, (T *)y->data, y->numel);
        else SZ_LAUNCH((map1_kernel<T, 1, F>), blocks_for(y->numel), THREADS, 0, f, (const T *)x->data, (T *)y->data, y->numel);
    });
    return sz_cuda_launched(op);
}

/* F takes (a, b). */
template <class F> struct ignore_third {
    F f;
    __device__ __forceinline__ float operator()(float a, float b, float) const { return f(a, b); }
};
template <class F> static int map2(const sz_call *c, const char *op, F f)
{
    const sz_tensor *a = c->in[0], *b = c->in[1], *y = c->out[0];
    if (!y->numel) return 0;
    bool same = a->dtype == b->dtype && a->numel == b->numel, wide = aligned16(a->data) && aligned16(b->data) && aligned16(y->data);
    SZ_FLOATING(a->dtype, T, {
        constexpr int V = 16 / (int)sizeof(T);
        if (same && wide)
            SZ_LAUNCH((map2_kernel<T, V, F>), blocks_for((y->numel + V - 1) / V), THREADS, 0, f, (const T *)a->data, (const T *)b->data, (T *)y->data, y->numel);
        else
            SZ_LAUNCH((map3_kernel<T, 4, ignore_third<F>>), blocks_for((y->numel + 3) / 4), THREADS, 0, ignore_third<F>{ f },
                      (const T *)a->data, as_operand(b), as_operand(NULL), (T *)y->data, y->numel);
    });
    return sz_cuda_launched(op);
}

/* ---- the functions ---- */
__device__ __forceinline__ float sigmoid_of(float x) { return 1.0f / (1.0f + expf(-x)); }
__device__ __forceinline__ float normal_below(float x) { return 0.5f * erfcf(-x * 0.70710678118654752f); }
__device__ __forceinline__ float normal_density(float x) { return expf(-0.5f * x * x) * 0.39894228040143268f; }

#define MAP1(op, expression) \
    struct op##_function { float p, q; __device__ __forceinline__ float operator()(float a) const { (void)p; (void)q; return expression; } }; \
    extern "C" int sz_cuda_##op(const sz_call *c) { return map1(c, #op, op##_function{ (float)c->args[0], (float)c->args[1] }); }
#define MAP2(op, expression) \
    struct op##_function { float p, q; __device__ __forceinline__ float operator()(float a, float b) const { (void)p; (void)q; return expression; } }; \
    extern "C" int sz_cuda_##op(const sz_call *c) { return map2(c, #op, op##_function{ (float)c->args[0], (float)c->args[1] }); }

MAP2(add, a + b)
MAP2(sub, a - b)
MAP2(mul, a * b)
MAP2(div, a / b)
MAP2(minimum, isnan(a) || a < b ? a : b)
MAP2(maximum, isnan(a) || a > b ? a : b)
MAP1(affine, fmaf(a, p, q))
MAP1(exp, expf(a))
MAP1(log, logf(a))
MAP1(sigmoid, sigmoid_of(a))
MAP1(silu, a * sigmoid_of(a))
MAP2(silu_backward, b * sigmoid_of(a) * (1.0f + a * (1.0f - sigmoid_of(a))))
MAP1(gelu, a * normal_below(a))
MAP2(gelu_backward, b * (normal_below(a) + a * normal_density(a)))
MAP1(quick_gelu, a * sigmoid_of(1.702f * a))
MAP2(quick_gelu_backward, b * sigmoid_of(1.702f * a) * (1.0f + 1.702f * a * (1.0f - sigmoid_of(1.702f * a))))
MAP1(relu, a < 0.0f ? 0.0f : a)
MAP2(relu_backward, a > 0.0f ? b : 0.0f)
MAP1(softplus, (a > 0.0f ? a : 0.0f) + log1pf(expf(-fabsf(a))))
MAP1(clamp, a < p ? p : a > q ? q : a)
MAP2(clamp_backward, a >= p && a <= q ? b : 0.0f)
MAP2(add_, a + b)

struct mask_le_function { __device__ __forceinline__ float operator()(float x, float a, float b) const { return a <= b ? x : 0.0f; } };

extern "C" int sz_cuda_mask_le(const sz_call *c)
{
    const sz_tensor *x = c->in[2], *y = c->out[0];
    if (!y->numel) return 0;
    SZ_FLOATING(x->dtype, T, SZ_LAUNCH((map3_kernel<T, 4, mask_le_function>), blocks_for((y->numel + 3) / 4), THREADS, 0, mask_le_function(),
                                       (const T *)x->data, as_operand(c->in[0]), as_operand(c->in[1]), (T *)y->data, y->numel));
    return sz_cuda_launched("mask_le");
}

/* ---- swiglu: a block takes a row ---- */
template <class T, int V> __global__ void swiglu_kernel(const T *x, T *y, int64_t w)
{
    const T *gate = x + (int64_t)blockIdx.x * 2 * w, *up = gate + w;
    T *out = y + (int64_t)blockIdx.x * w;
    for (int64_t i = (int64_t)threadIdx.x * V; i < w; i += (int64_t)blockDim.x * V) {
        pack<T, V> g = *(const pack<T, V> *)(gate + i), u = *(const pack<T, V> *)(up + i);
        for (int j = 0; j < V; j++) {
            float a = sz_load(&g.v[j]);
            sz_store(&g.v[j], a * sigmoid_of(a) * sz_load(&u.v[j]));
        }
        *(pack<T, V> *)(out + i) = g;
    }
}

template <class T, int V> __global__ void swiglu_backward_kernel(const T *x, const T *dy, T *dx, int64_t w)
{
    int64_t row = blockIdx.x;
    for (int64_t i = (int64_t)threadIdx.x * V; i < w; i += (int64_t)blockDim.x * V) {
        pack<T, V> g = *(const pack<T, V> *)(x + row * 2 * w + i), u = *(const pack<T, V> *)(x + row * 2 * w + w + i);
        pack<T, V> d = *(const pack<T, V> *)(dy + row * w + i);
        for (int j = 0; j < V; j++) {
            float a = sz_load(&g.v[j]), b = sz_load(&u.v[j]), e = sz_load(&d.v[j]), s = sigmoid_of(a);
            sz_store(&g.v[j], e * b * s * (1.0f + a * (1.0f - s)));
            sz_store(&u.v[j], e * a * s);
        }
        *(pack<T, V> *)(dx + row * 2 * w + i) = g;
        *(pack<T, V> *)(dx + row * 2 * w + w + i) = u;
    }
}

static unsigned row_threads(int64_t items) { return items >= THREADS ? (unsigned)THREADS : (unsigned)((items + 31) / 32 * 32); }

extern "C" int sz_cuda_swiglu(const sz_call *c)
{
    const sz_tensor *x = c->in[0], *y = c->out[0];
    int64_t w = sz_cols(y), rows = sz_rows(y);
    if (!y->numel) return 0;
    SZ_FLOATING(x->dtype, T, {
        constexpr int V = 16 / (int)sizeof(T);
        if (w % V == 0 && aligned16(x->data) && aligned16(y->data))
            SZ_LAUNCH((swiglu_kernel<T, V>), (unsigned)rows, row_threads(w / V), 0, (const T *)x->data, (T *)y->data, w);
        else
            SZ_LAUNCH((swiglu_kernel<T, 1>), (unsigned)rows, row_threads(w), 0, (const T *)x->data, (T *)y->data, w);
    });
    return sz_cuda_launched("swiglu");
}

extern "C" int sz_cuda_swiglu_backward(const sz_call *c)
{
    const sz_tensor *x = c->in[0], *dy = c->in[1], *dx = c->out[0];
    int64_t w = sz_cols(dy), rows = sz_rows(dy);
    if (!dy->numel) return 0;
    SZ_FLOATING(x->dtype, T, {
        constexpr int V = 16 / (int)sizeof(T);
        if (w % V == 0 && aligned16(x->data) && aligned16(dy->data) && aligned16(dx->data))
            SZ_LAUNCH((swiglu_backward_kernel<T, V>), (unsigned)rows, row_threads(w / V), 0, (const T *)x->data, (const T *)dy->data, (T *)dx->data, w);
        else
            SZ_LAUNCH((swiglu_backward_kernel<T, 1>), (unsigned)rows, row_threads(w), 0, (const T *)x->data, (const T *)dy->data, (T *)dx->data, w);
    });
    return sz_cuda_launched("swiglu_backward");
}

/* ---- cast ---- */
template <class To, class From> __device__ __forceinline__ To convert(From v) { return (To)v; }
template <> __device__ __forceinline__ bf16 convert<bf16, float>(float v) { return __float2bfloat16(v); }
template <> __device__ __forceinline__ bf16 convert<bf16, int32_t>(int32_t v) { return __float2bfloat16((float)v); }
template <> __device__ __forceinline__ bf16 convert<bf16, uint8_t>(uint8_t v) { return __float2bfloat16((float)v); }
template <> __device__ __forceinline__ bf16 convert<bf16, bf16>(bf16 v) { return v; }
template <> __device__ __forceinline__ float convert<float, bf16>(bf16 v) { return __bfloat162float(v); }
template <> __device__ __forceinline__ int32_t convert<int32_t, bf16>(bf16 v) { return (int32_t)__bfloat162float(v); }
template <> __device__ __forceinline__ uint8_t convert<uint8_t, bf16>(bf16 v) { return (uint8_t)(int32_t)__bfloat162float(v); }
template <> __device__ __forceinline__ uint8_t convert<uint8_t, float>(float v) { return (uint8_t)(int32_t)v; }

template <class To, class From, int V> __global__ void cast_kernel(const From *x, To *y, int64_t n)
{
    int64_t step = (int64_t)gridDim.x * THREADS * V;
    for (int64_t i = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * V; i < n; i += step) {
        if (i + V <= n) {
            pack<From, V> a = *(const pack<From, V> *)(x + i);
            pack<To, V> b;
            for (int j = 0; j < V; j++) b.v[j] = convert<To, From>(a.v[j]);
            *(pack<To, V> *)(y + i) = b;
        } else {
            for (int64_t j = i; j < n; j++) y[j] = convert<To, From>(x[j]);
        }
    }
}

template <class To, class From> static void cast_to(const sz_tensor *x, const sz_tensor *y)
{
    if (aligned16(x->data) && aligned16(y->data))
        SZ_LAUNCH((cast_kernel<To, From, 4>), blocks_for((y->numel + 3) / 4), THREADS, 0, (const From *)x->data, (To *)y->data, y->numel);
    else
        SZ_LAUNCH((cast_kernel<To, From, 1>), blocks_for(y->numel), THREADS, 0, (const From *)x->data, (To *)y->data, y->numel);
}

template <class From> static void cast_from(const sz_tensor *x, const sz_tensor *y)
{
    switch (y->dtype) {
    case SZ_F32: cast_to<float, From>(x, y); break;
    case SZ_BF16: cast_to<bf16, From>(x, y); break;
    case SZ_I32: cast_to<int32_t, From>(x, y); break;
    default: cast_to<uint8_t, From>(x, y);
    }
}

extern "C" int sz_cuda_cast(const sz_call *c)
{
    const sz_tensor *x = c->in[0], *y = c->out[0];
    if (!y->numel) return 0;
    switch (x->dtype) {
    case SZ_F32: cast_from<float>(x, y); break;
    case SZ_BF16: cast_from<bf16>(x, y); break;
    case SZ_I32: cast_from<int32_t>(x, y); break;
    default: cast_from<uint8_t>(x, y);
    }
    return sz_cuda_launched("cast");
}

template <class T> __global__ void expand_kernel(operand s, T *y, int64_t n)
{
    float v = element(s, 0);
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < n; i += (int64_t)gridDim.x * THREADS) sz_store(y + i, v);
}

extern "C" int sz_cuda_expand(const sz_call *c)
{
    const sz_tensor *y = c->out[0];
    if (!y->numel) return 0;
    SZ_FLOATING(y->dtype, T, SZ_LAUNCH((expand_kernel<T>), blocks_for(y->numel), THREADS, 0, as_operand(c->in[0]), (T *)y->data, y->numel));
    return sz_cuda_launched("expand");
}

/* ---- sums ---- */
/* Thread 0 gets the sum over the block. */
__device__ __forceinline__ double block_total(double v)
{
    __shared__ double part[THREADS / 32];
    for (int step = 16; step > 0; step /= 2) v += __shfl_xor_sync(0xffffffffu, v, step);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = v;
    __syncthreads();
    double total = 0;
    if (threadIdx.x == 0)
        for (int i = 0; i < THREADS / 32; i++) total += part[i];
    return total;
}

template <class T, bool SQUARES> __global__ void sum_kernel(const T *x, int64_t n, double *part)
{
    double sum = 0;
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < n; i += (int64_t)gridDim.x * THREADS) {
        double v = (double)sz_load(x + i);
        sum += SQUARES ? v * v : v;
    }
    sum = block_total(sum);
    if (threadIdx.x == 0) part[blockIdx.x] = sum;
}

__global__ void sum_parts_kernel(const double *part, int n, float *y)
{
    double sum = 0;
    for (int i = (int)threadIdx.x; i < n; i += THREADS) sum += part[i];
    sum = block_total(sum);
    if (threadIdx.x == 0) *y = (float)sum;
}

template <bool SQUARES> static int sum_all(const sz_call *c, const char *op)
{
    const sz_tensor *x = c->in[0];
    int64_t wanted = (x->numel + 8 * THREADS - 1) / (8 * THREADS);
    unsigned blocks = (unsigned)(wanted < 1 ? 1 : wanted < SUM_BLOCKS ? wanted : (int64_t)SUM_BLOCKS);
    double *part = (double *)sz_cuda_scratch(blocks * sizeof *part);
    if (!part) return -1;
    SZ_FLOATING(x->dtype, T, SZ_LAUNCH((sum_kernel<T, SQUARES>), blocks, THREADS, 0, (const T *)x->data, x->numel, part));
    SZ_LAUNCH(sum_parts_kernel, 1, THREADS, 0, (const double *)part, (int)blocks, sz_f32(c->out[0]));
    return sz_cuda_launched(op);
}
extern "C" int sz_cuda_sum(const sz_call *c) { return sum_all<false>(c, "sum"); }
extern "C" int sz_cuda_sum_squares(const sz_call *c) { return sum_all<true>(c, "sum_squares"); }

/* Columns of x [m, n]: a block takes 32 columns of a range of rows, eight rows at a time; ranges are added afterwards. */
enum { LANES = 8 };
template <class T> __global__ void columns_kernel(const T *x, int64_t m, int64_t n, int64_t range, double *part)
{
    __shared__ double sums[LANES][32];
    int64_t col = (int64_t)blockIdx.x * 32 + threadIdx.x, first = (int64_t)blockIdx.y * range, end = first + range < m ? first + range : m;
    double sum = 0;
    if (col < n)
        for (int64_t row = first + threadIdx.y; row < end; row += LANES) sum += (double)sz_load(x + row * n + col);
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y != 0 || col >= n) return;
    for (int i = 1; i < LANES; i++) sum += sums[i][threadIdx.x];
    part[(int64_t)blockIdx.y * n + col] = sum;
}

__global__ void ranges_kernel(const double *part, int ranges, int64_t n, float *y)
{
    int64_t col = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (col >= n) return;
    double sum = 0;
    for (int i = 0; i < ranges; i++) sum += part[(int64_t)i * n + col];
    y[col] = (float)sum;
}

extern "C" int sz_cuda_sum_leading(const sz_call *c)
{
    const sz_tensor *x = c->in[0];
    int64_t n = c->out[0]->numel, m = x->numel / n, groups = (n + 31) / 32;
    /* Enough blocks for a large device, and at least 64 rows for each. */
    int64_t ranges = 1024 / groups, most = (m + 63) / 64;
    if (ranges > most) ranges = most;
    if (ranges < 1) ranges = 1;
    double *part = (double *)sz_cuda_scratch((size_t)(ranges * n) * sizeof *part);
    if (!part) return -1;
    SZ_FLOATING(x->dtype, T, SZ_LAUNCH((columns_kernel<T>), dim3((unsigned)groups, (unsigned)ranges), dim3(32, LANES), 0,
                                       (const T *)x->data, m, n, (m + ranges - 1) / ranges, part));
    SZ_LAUNCH(ranges_kernel, (unsigned)((n + THREADS - 1) / THREADS), THREADS, 0, (const double *)part, (int)ranges, n, sz_f32(c->out[0]));
    return sz_cuda_launched("sum_leading");
}
