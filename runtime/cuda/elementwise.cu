/* elementwise.cu - the "elementwise" rows of ops.def except adamw_: one pass over memory each,
 * arithmetic in f32; and the sums over all elements or over leading dimensions.
 *
 * A thread takes 16 bytes of the first tensor at a time (V elements) if all pointers allow it,
 * else one element. A shorter second tensor repeats. Sums are added in f64: per thread, per block,
 * then over the blocks, whose number depends on the size alone.
 * Leaves out: adamw_ (optim.cu). */
#include "cuda.cuh"

enum { THREADS = 256, SUM_BLOCKS = 1024 };

template <class T, int V> struct __align__(sizeof(T) * V) pack { T v[V]; };

static bool aligned16(const void *p) { return ((uintptr_t)p & 15) == 0; }

/* Grid size for kernels with a grid-stride loop. */
static unsigned blocks_for(int64_t items)
{
    const int64_t blocks = (items + THREADS - 1) / THREADS;
    const int64_t most = (int64_t)sz_cuda_processors() * 32;
    return (unsigned)(blocks < most ? blocks : most);
}

/* The first element of this thread, V elements a thread, and the grid's stride. */
template <int V> __device__ __forceinline__ int64_t first_of_thread()
{
    return ((int64_t)blockIdx.x * THREADS + threadIdx.x) * V;
}
template <int V> __device__ __forceinline__ int64_t grid_stride()
{
    return (int64_t)gridDim.x * THREADS * V;
}

/* ---- maps ---- */
/* The second or third operand of a call: of either dtype, repeating after numel elements. */
struct operand {
    const void *p;
    int64_t numel;
    int is_f32;
};

static operand as_operand(const sz_tensor *t)
{
    if (!t) return operand{ NULL, 1, 1 };
    return operand{ t->data, t->numel, t->dtype == SZ_F32 };
}

__device__ __forceinline__ float element(const operand &o, int64_t i)
{
    return o.is_f32 ? ((const float *)o.p)[i] : sz_load((const bf16 *)o.p + i);
}

/* y[i] = f(x[i]) */
template <class T, int V, class F> __global__ void map1_kernel(F f, const T *x, T *y, int64_t n)
{
    const int64_t stride = grid_stride<V>();
    for (int64_t i = first_of_thread<V>(); i < n; i += stride) {
        if (i + V <= n) {
            pack<T, V> a = *(const pack<T, V> *)(x + i);
            for (int j = 0; j < V; j++) sz_store(&a.v[j], f(sz_load(&a.v[j])));
            *(pack<T, V> *)(y + i) = a;
        } else {
            for (int64_t j = i; j < n; j++) sz_store(y + j, f(sz_load(x + j)));
        }
    }
}

/* y[i] = f(a[i], b[i]), where a, b and y have the same dtype and size; y may be a. */
template <class T, int V, class F>
__global__ void map2_kernel(F f, const T *a, const T *b, T *y, int64_t n)
{
    const int64_t stride = grid_stride<V>();
    for (int64_t i = first_of_thread<V>(); i < n; i += stride) {
        if (i + V <= n) {
            pack<T, V> p = *(const pack<T, V> *)(a + i);
            pack<T, V> q = *(const pack<T, V> *)(b + i);
            for (int j = 0; j < V; j++) sz_store(&p.v[j], f(sz_load(&p.v[j]), sz_load(&q.v[j])));
            *(pack<T, V> *)(y + i) = p;
        } else {
            for (int64_t j = i; j < n; j++) sz_store(y + j, f(sz_load(a + j), sz_load(b + j)));
        }
    }
}

/* y[i] = f(a[i], b[i], x[i]) with operands of other dtypes and sizes. The division that finds the
 * place in b is done once for V elements. */
template <class T, int V, class F>
__global__ void map3_kernel(F f, const T *a, operand b, operand x, T *y, int64_t n)
{
    const int64_t stride = grid_stride<V>();
    for (int64_t i = first_of_thread<V>(); i < n; i += stride) {
        int64_t at = n >> 32 ? i % b.numel : (int64_t)((unsigned)i % (unsigned)b.numel);
        for (int64_t j = i; j < i + V && j < n; j++) {
            sz_store(y + j, f(sz_load(a + j), element(b, at), x.p ? element(x, j) : 0.0f));
            if (++at == b.numel) at = 0;
        }
    }
}

template <class F> static int map1(const sz_call *c, const char *op, F f)
{
    const sz_tensor *x = c->in[0];
    const sz_tensor *y = c->out[0];
    const int64_t n = y->numel;
    if (!n) return 0;
    const bool vectors = aligned16(x->data) && aligned16(y->data);
    SZ_FLOATING(x->dtype, T, {
        constexpr int V = 16 / (int)sizeof(T);
        const T *from = (const T *)x->data;
        T *to = (T *)y->data;
        if (vectors)
            SZ_LAUNCH((map1_kernel<T, V, F>), blocks_for((n + V - 1) / V), THREADS, 0, f, from, to,
                      n);
        else SZ_LAUNCH((map1_kernel<T, 1, F>), blocks_for(n), THREADS, 0, f, from, to, n);
    });
    return sz_cuda_launched(op);
}

/* Adapts a function of (a, b) to map3_kernel. */
template <class F> struct ignore_third {
    F f;
    __device__ __forceinline__ float operator()(float a, float b, float) const { return f(a, b); }
};

template <class F> static int map2(const sz_call *c, const char *op, F f)
{
    const sz_tensor *a = c->in[0];
    const sz_tensor *b = c->in[1];
    const sz_tensor *y = c->out[0];
    const int64_t n = y->numel;
    if (!n) return 0;
    const bool same = a->dtype == b->dtype && a->numel == b->numel;
    const bool vectors = aligned16(a->data) && aligned16(b->data) && aligned16(y->data);
    SZ_FLOATING(a->dtype, T, {
        constexpr int V = 16 / (int)sizeof(T);
        const T *from = (const T *)a->data;
        T *to = (T *)y->data;
        if (same && vectors)
            SZ_LAUNCH((map2_kernel<T, V, F>), blocks_for((n + V - 1) / V), THREADS, 0, f, from,
                      (const T *)b->data, to, n);
        else
            SZ_LAUNCH((map3_kernel<T, 4, ignore_third<F>>), blocks_for((n + 3) / 4), THREADS, 0,
                      ignore_third<F>{ f }, from, as_operand(b), as_operand(NULL), to, n);
    });
    return sz_cuda_launched(op);
}

/* ---- the functions ---- */
__device__ __forceinline__ float sigmoid_of(float x) { return 1.0f / (1.0f + expf(-x)); }

/* The normal distribution's cumulative function and density. */
__device__ __forceinline__ float normal_cdf(float x)
{
    return 0.5f * erfcf(-x * 0.70710678118654752f);
}
__device__ __forceinline__ float normal_pdf(float x)
{
    return expf(-0.5f * x * x) * 0.39894228040143268f;
}

/* NaN stays NaN. */
__device__ __forceinline__ float clamped(float x, float low, float high)
{
    if (x < low) return low;
    return x > high ? high : x;
}

/* Defines the op of an expression in a (and b), and in the call's numbers p and q. */
#define MAP(op, map, arguments, expression) \
    struct op##_function { \
        float p, q; \
        __device__ __forceinline__ float operator() arguments const \
        { \
            (void)p; \
            (void)q; \
            return expression; \
        } \
    }; \
    extern "C" int sz_cuda_##op(const sz_call *c) \
    { \
        return map(c, #op, op##_function{ (float)c->args[0], (float)c->args[1] }); \
    }
#define MAP1(op, expression) MAP(op, map1, (float a), expression)
#define MAP2(op, expression) MAP(op, map2, (float a, float b), expression)

/* clang-format off */
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
MAP1(gelu, a * normal_cdf(a))
MAP2(gelu_backward, b * (normal_cdf(a) + a * normal_pdf(a)))
MAP1(quick_gelu, a * sigmoid_of(1.702f * a))
MAP2(quick_gelu_backward,
     b * sigmoid_of(1.702f * a) * (1.0f + 1.702f * a * (1.0f - sigmoid_of(1.702f * a))))
MAP1(relu, a < 0.0f ? 0.0f : a)
MAP2(relu_backward, a > 0.0f ? b : 0.0f)
MAP1(softplus, (a > 0.0f ? a : 0.0f) + log1pf(expf(-fabsf(a))))
MAP1(clamp, clamped(a, p, q))
MAP2(clamp_backward, a >= p && a <= q ? b : 0.0f)
MAP2(add_, a + b)
/* clang-format on */

struct mask_le_function {
    __device__ __forceinline__ float operator()(float x, float a, float b) const
    {
        return a <= b ? x : 0.0f;
    }
};

extern "C" int sz_cuda_mask_le(const sz_call *c)
{
    const sz_tensor *x = c->in[2];
    const sz_tensor *y = c->out[0];
    if (!y->numel) return 0;
    SZ_FLOATING(x->dtype, T,
                SZ_LAUNCH((map3_kernel<T, 4, mask_le_function>), blocks_for((y->numel + 3) / 4),
                          THREADS, 0, mask_le_function(), (const T *)x->data, as_operand(c->in[0]),
                          as_operand(c->in[1]), (T *)y->data, y->numel));
    return sz_cuda_launched("mask_le");
}

/* ---- swiglu: one block for each row ---- */
/* y [rows, w] = silu(gate) * up, where x [rows, 2w] holds gate and up side by side. */
template <class T, int V> __global__ void swiglu_kernel(const T *x, T *y, int64_t w)
{
    const T *gate = x + (int64_t)blockIdx.x * 2 * w;
    const T *up = gate + w;
    T *out = y + (int64_t)blockIdx.x * w;
    for (int64_t i = (int64_t)threadIdx.x * V; i < w; i += (int64_t)blockDim.x * V) {
        pack<T, V> g = *(const pack<T, V> *)(gate + i);
        pack<T, V> u = *(const pack<T, V> *)(up + i);
        for (int j = 0; j < V; j++) {
            float a = sz_load(&g.v[j]);
            sz_store(&g.v[j], a * sigmoid_of(a) * sz_load(&u.v[j]));
        }
        *(pack<T, V> *)(out + i) = g;
    }
}

template <class T, int V>
__global__ void swiglu_backward_kernel(const T *x, const T *dy, T *dx, int64_t w)
{
    int64_t row = blockIdx.x;
    for (int64_t i = (int64_t)threadIdx.x * V; i < w; i += (int64_t)blockDim.x * V) {
        pack<T, V> g = *(const pack<T, V> *)(x + row * 2 * w + i);
        pack<T, V> u = *(const pack<T, V> *)(x + row * 2 * w + w + i);
        pack<T, V> d = *(const pack<T, V> *)(dy + row * w + i);
        for (int j = 0; j < V; j++) {
            float a = sz_load(&g.v[j]);
            float b = sz_load(&u.v[j]);
            float e = sz_load(&d.v[j]);
            float s = sigmoid_of(a);
            sz_store(&g.v[j], e * b * s * (1.0f + a * (1.0f - s)));
            sz_store(&u.v[j], e * a * s);
        }
        *(pack<T, V> *)(dx + row * 2 * w + i) = g;
        *(pack<T, V> *)(dx + row * 2 * w + w + i) = u;
    }
}

/* Threads for a row with this many items: a multiple of 32, at most THREADS. */
static unsigned row_threads(int64_t items)
{
    return items >= THREADS ? (unsigned)THREADS : (unsigned)((items + 31) / 32 * 32);
}

extern "C" int sz_cuda_swiglu(const sz_call *c)
{
    const sz_tensor *x = c->in[0];
    const sz_tensor *y = c->out[0];
    const int64_t w = sz_cols(y);
    const unsigned rows = (unsigned)sz_rows(y);
    if (!y->numel) return 0;
    const bool aligned = aligned16(x->data) && aligned16(y->data);
    SZ_FLOATING(x->dtype, T, {
        constexpr int V = 16 / (int)sizeof(T);
        const T *from = (const T *)x->data;
        T *to = (T *)y->data;
        if (w % V == 0 && aligned)
            SZ_LAUNCH((swiglu_kernel<T, V>), rows, row_threads(w / V), 0, from, to, w);
        else SZ_LAUNCH((swiglu_kernel<T, 1>), rows, row_threads(w), 0, from, to, w);
    });
    return sz_cuda_launched("swiglu");
}

extern "C" int sz_cuda_swiglu_backward(const sz_call *c)
{
    const sz_tensor *x = c->in[0];
    const sz_tensor *dy = c->in[1];
    const sz_tensor *dx = c->out[0];
    const int64_t w = sz_cols(dy);
    const unsigned rows = (unsigned)sz_rows(dy);
    if (!dy->numel) return 0;
    const bool aligned = aligned16(x->data) && aligned16(dy->data) && aligned16(dx->data);
    SZ_FLOATING(x->dtype, T, {
        constexpr int V = 16 / (int)sizeof(T);
        const T *from = (const T *)x->data;
        const T *gradient = (const T *)dy->data;
        T *to = (T *)dx->data;
        if (w % V == 0 && aligned)
            SZ_LAUNCH((swiglu_backward_kernel<T, V>), rows, row_threads(w / V), 0, from, gradient,
                      to, w);
        else
            SZ_LAUNCH((swiglu_backward_kernel<T, 1>), rows, row_threads(w), 0, from, gradient, to,
                      w);
    });
    return sz_cuda_launched("swiglu_backward");
}

/* ---- cast ---- */
/* Converts as C does; through f32 where bf16 is one side. */
template <class To> struct cast_to {
    static __device__ __forceinline__ To from(float v) { return (To)v; }
    static __device__ __forceinline__ To from(int32_t v) { return (To)v; }
    static __device__ __forceinline__ To from(uint8_t v) { return (To)v; }
    static __device__ __forceinline__ To from(bf16 v) { return (To)__bfloat162float(v); }
};
template <> struct cast_to<bf16> {
    static __device__ __forceinline__ bf16 from(float v) { return __float2bfloat16(v); }
    static __device__ __forceinline__ bf16 from(int32_t v) { return __float2bfloat16((float)v); }
    static __device__ __forceinline__ bf16 from(uint8_t v) { return __float2bfloat16((float)v); }
    static __device__ __forceinline__ bf16 from(bf16 v) { return v; }
};
template <> struct cast_to<uint8_t> {
    static __device__ __forceinline__ uint8_t from(float v) { return (uint8_t)(int32_t)v; }
    static __device__ __forceinline__ uint8_t from(int32_t v) { return (uint8_t)v; }
    static __device__ __forceinline__ uint8_t from(uint8_t v) { return v; }
    static __device__ __forceinline__ uint8_t from(bf16 v) { return from(__bfloat162float(v)); }
};

template <class To, class From, int V> __global__ void cast_kernel(const From *x, To *y, int64_t n)
{
    const int64_t stride = grid_stride<V>();
    for (int64_t i = first_of_thread<V>(); i < n; i += stride) {
        if (i + V <= n) {
            pack<From, V> a = *(const pack<From, V> *)(x + i);
            pack<To, V> b;
            for (int j = 0; j < V; j++) b.v[j] = cast_to<To>::from(a.v[j]);
            *(pack<To, V> *)(y + i) = b;
        } else {
            for (int64_t j = i; j < n; j++) y[j] = cast_to<To>::from(x[j]);
        }
    }
}

template <class To, class From> static void cast(const sz_tensor *x, const sz_tensor *y)
{
    const int64_t n = y->numel;
    const From *from = (const From *)x->data;
    To *to = (To *)y->data;
    if (aligned16(from) && aligned16(to))
        SZ_LAUNCH((cast_kernel<To, From, 4>), blocks_for((n + 3) / 4), THREADS, 0, from, to, n);
    else SZ_LAUNCH((cast_kernel<To, From, 1>), blocks_for(n), THREADS, 0, from, to, n);
}

template <class From> static void cast_from(const sz_tensor *x, const sz_tensor *y)
{
    switch (y->dtype) {
    case SZ_F32: cast<float, From>(x, y); break;
    case SZ_BF16: cast<bf16, From>(x, y); break;
    case SZ_I32: cast<int32_t, From>(x, y); break;
    default: cast<uint8_t, From>(x, y);
    }
}

extern "C" int sz_cuda_cast(const sz_call *c)
{
    const sz_tensor *x = c->in[0];
    const sz_tensor *y = c->out[0];
    if (!y->numel) return 0;
    switch (x->dtype) {
    case SZ_F32: cast_from<float>(x, y); break;
    case SZ_BF16: cast_from<bf16>(x, y); break;
    case SZ_I32: cast_from<int32_t>(x, y); break;
    default: cast_from<uint8_t>(x, y);
    }
    return sz_cuda_launched("cast");
}

/* ---- expand: a scalar becomes a tensor ---- */
template <class T> __global__ void expand_kernel(operand s, T *y, int64_t n)
{
    float v = element(s, 0);
    for (int64_t i = first_of_thread<1>(); i < n; i += grid_stride<1>()) sz_store(y + i, v);
}

extern "C" int sz_cuda_expand(const sz_call *c)
{
    const sz_tensor *y = c->out[0];
    if (!y->numel) return 0;
    SZ_FLOATING(y->dtype, T,
                SZ_LAUNCH((expand_kernel<T>), blocks_for(y->numel), THREADS, 0,
                          as_operand(c->in[0]), (T *)y->data, y->numel));
    return sz_cuda_launched("expand");
}

/* ---- sums over all elements ---- */
/* Returns the block's sum to thread 0, and 0 to the others. */
__device__ __forceinline__ double block_total(double v)
{
    __shared__ double part[THREADS / 32];
    for (int distance = 16; distance > 0; distance /= 2)
        v += __shfl_xor_sync(0xffffffffu, v, distance);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = v;
    __syncthreads();
    double total = 0;
    if (threadIdx.x == 0)
        for (int i = 0; i < THREADS / 32; i++) total += part[i];
    return total;
}

/* part[block] = the sum of a block's elements, or of their squares. */
template <class T, bool SQUARES> __global__ void sum_kernel(const T *x, int64_t n, double *part)
{
    double sum = 0;
    for (int64_t i = first_of_thread<1>(); i < n; i += grid_stride<1>()) {
        double v = (double)sz_load(x + i);
        sum += SQUARES ? v * v : v;
    }
    sum = block_total(sum);
    if (threadIdx.x == 0) part[blockIdx.x] = sum;
}

/* y = the sum of n partial sums; one block. */
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
    int64_t blocks = (x->numel + 8 * THREADS - 1) / (8 * THREADS);
    if (blocks < 1) blocks = 1;
    if (blocks > SUM_BLOCKS) blocks = SUM_BLOCKS;
    double *part = (double *)sz_cuda_scratch((size_t)blocks * sizeof *part);
    if (!part) return -1;
    SZ_FLOATING(x->dtype, T,
                SZ_LAUNCH((sum_kernel<T, SQUARES>), (unsigned)blocks, THREADS, 0,
                          (const T *)x->data, x->numel, part));
    SZ_LAUNCH(sum_parts_kernel, 1, THREADS, 0, (const double *)part, (int)blocks,
              sz_f32(c->out[0]));
    return sz_cuda_launched(op);
}

extern "C" int sz_cuda_sum(const sz_call *c) { return sum_all<false>(c, "sum"); }
extern "C" int sz_cuda_sum_squares(const sz_call *c) { return sum_all<true>(c, "sum_squares"); }

/* ---- sums of the columns of x [m, n] ---- */
/* A block adds 32 columns over a range of rows, ROWS rows at a time; part [ranges, n]. */
enum { ROWS = 8 };
template <class T>
__global__ void columns_kernel(const T *x, int64_t m, int64_t n, int64_t range, double *part)
{
    __shared__ double sums[ROWS][32];
    const int64_t col = (int64_t)blockIdx.x * 32 + threadIdx.x;
    const int64_t first = (int64_t)blockIdx.y * range;
    const int64_t end = first + range < m ? first + range : m;
    double sum = 0;
    if (col < n)
        for (int64_t row = first + threadIdx.y; row < end; row += ROWS)
            sum += (double)sz_load(x + row * n + col);
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y != 0 || col >= n) return;
    for (int i = 1; i < ROWS; i++) sum += sums[i][threadIdx.x];
    part[(int64_t)blockIdx.y * n + col] = sum;
}

/* y [n] = the sum over the ranges. */
__global__ void ranges_kernel(const double *part, int ranges, int64_t n, float *y)
{
    int64_t col = first_of_thread<1>();
    if (col >= n) return;
    double sum = 0;
    for (int i = 0; i < ranges; i++) sum += part[(int64_t)i * n + col];
    y[col] = (float)sum;
}

extern "C" int sz_cuda_sum_leading(const sz_call *c)
{
    const sz_tensor *x = c->in[0];
    const int64_t n = c->out[0]->numel;
    const int64_t m = x->numel / n;
    const int64_t groups = (n + 31) / 32;
    /* Enough blocks for a large device, and at least 64 rows for each of them. */
    int64_t ranges = 1024 / groups;
    const int64_t most = (m + 63) / 64;
    if (ranges > most) ranges = most;
    if (ranges < 1) ranges = 1;
    double *part = (double *)sz_cuda_scratch((size_t)(ranges * n) * sizeof *part);
    if (!part) return -1;
    const dim3 grid((unsigned)groups, (unsigned)ranges);
    SZ_FLOATING(x->dtype, T,
                SZ_LAUNCH((columns_kernel<T>), grid, dim3(32, ROWS), 0, (const T *)x->data, m, n,
                          (m + ranges - 1) / ranges, part));
    SZ_LAUNCH(ranges_kernel, (unsigned)((n + THREADS - 1) / THREADS), THREADS, 0,
              (const double *)part, (int)ranges, n, sz_f32(c->out[0]));
    return sz_cuda_launched("sum_leading");
}
