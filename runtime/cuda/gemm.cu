/* gemm.cu - matrix products: cuBLASLt, an own kernel for few rows, and a plain one.
 *
 * cuBLASLt thinks in columns: a row-major C = A B is a column-major C^T = B^T A^T, so the operands change places. Its heuristic
 * chooses an algorithm once for a shape; algorithms that add partial sums in the output's dtype are not allowed. f32
 * products are f32 (CUBLAS_COMPUTE_32F); with SEGZERO_TF32=1 in the environment their inputs are rounded to TF32 on the way, several times
 * faster and good to three digits. bf16 products are exact and summed in f32. A bias of the result's dtype is added by
 * cuBLASLt; its GELU is the tanh form, not the exact one, so ours follows in a pass of its own, from f32.
 *
 * Up to FEW rows (decoding) the product is bound by reading the weight once: each warp has two rows of it and all of X.
 * The plain kernel stands in where cuBLASLt has no algorithm, and for all of it where there is no GPU (emulate.h).
 *
 * One thread at a time: the table of algorithms has no lock. */
#include "gemm.cuh"
#ifndef SZ_EMULATE
#include <cublasLt.h>
#include <stdio.h>
#endif

enum { THREADS = 256, WARPS = THREADS / 32, FEW = 8, OUTPUTS = 2 };

typedef struct {
    bool ta, tb;
    int64_t m, n, k, lda, ldb, ldc, count;
    const void *a, *b, *bias;       /* bias [n] of C's dtype, or NULL */
    void *c;
    int dtype, c_dtype;
    float beta;
} product;

/* An element of C for each thread; strides step, so that no shape is too large. */
template <typename T, typename C> __global__ void plain_kernel(product p)
{
    for (int64_t e = (int64_t)blockIdx.x * THREADS + threadIdx.x; e < p.count * p.m * p.n; e += (int64_t)gridDim.x * THREADS) {
        const int64_t z = e / (p.m * p.n), i = e / p.n % p.m, j = e % p.n;
        const T *a = (const T *)p.a + z * p.m * p.k + (p.ta ? i : i * p.lda), *b = (const T *)p.b + z * p.n * p.k + (p.tb ? j * p.ldb : j);
        const int64_t a_step = p.ta ? p.lda : 1, b_step = p.tb ? 1 : p.ldb;
        C *c = (C *)p.c + z * p.m * p.n + i * p.ldc + j;
        float sum = p.bias ? sz_load((const C *)p.bias + j) : 0;
        for (int64_t q = 0; q < p.k; q++) sum += sz_load(a + q * a_step) * sz_load(b + q * b_step);
        sz_store(c, p.beta != 0 ? sz_load(c) + sum : sum);
    }
}

static int plain(const product &p)
{
    const unsigned grid = sz_grid(sz_blocks(p.count * p.m * p.n, THREADS));
    if (p.dtype == SZ_F32) SZ_LAUNCH((plain_kernel<float, float>), grid, THREADS, 0, p);
    else if (p.c_dtype == SZ_F32) SZ_LAUNCH((plain_kernel<bf16, float>), grid, THREADS, 0, p);
    else SZ_LAUNCH((plain_kernel<bf16, bf16>), grid, THREADS, 0, p);
    return sz_cuda_launched("matrix product");
}

/* ---- cuBLASLt ---- */
#ifdef SZ_EMULATE
static int multiply(const product &p) { return plain(p); }
const char *sz_cuda_gemm_describe(void) { return "cublasLt: none, products are plain loops\n"; }
#else
enum { TABLE = 4096 };
static const size_t WORKSPACE = (size_t)32 << 20;

/* What an algorithm depends on. align: powers of two of a, b, c, bias, two bits each from 2 bytes on. */
typedef struct {
    int64_t m, n, k, lda, ldb, ldc, count;
    uint32_t kind, align;
} shape_key;

typedef struct {
    shape_key key;
    bool used, none;                /* none: cuBLASLt has no algorithm for it */
    cublasLtMatmulAlgo_t algorithm;
} chosen;

static cublasLtHandle_t handle;
static void *workspace;
static bool tf32;
static chosen *table;

const char *sz_cuda_gemm_describe(void)
{
    static char text[64];
    const size_t v = cublasLtGetVersion();
    snprintf(text, sizeof text, "cublasLt: %zu.%zu.%zu\n", v / 10000, v / 100 % 100, v % 100);
    return text;
}

static int failed(const char *what, cublasStatus_t s) { return sz_fail("%s: %s", what, cublasLtGetStatusString(s)); }

static int start(void)
{
    if (workspace) return 0;
    if (!table && !(table = (chosen *)calloc(TABLE, sizeof *table))) return sz_fail("no memory for the matrix products' table");
    if (!handle) {
        const cublasStatus_t s = cublasLtCreate(&handle);
        if (s != CUBLAS_STATUS_SUCCESS) return failed("cuBLASLt", s);
    }
    tf32 = sz_cuda_env_is("SEGZERO_TF32", '1');
    return sz_cuda_check(cudaMalloc(&workspace, WORKSPACE), "the matrix products' workspace");
}

/* 0 .. 3: p is a multiple of 2, 4, 8, 16 bytes. */
static uint32_t alignment(const void *p)
{
    const uintptr_t at = (uintptr_t)p;
    return at % 16 == 0 ? 3 : at % 8 == 0 ? 2 : at % 4 == 0 ? 1 : 0;
}

static shape_key key_of(const product &p)
{
    shape_key key;
    memset(&key, 0, sizeof key);
    key.m = p.m, key.n = p.n, key.k = p.k, key.lda = p.lda, key.ldb = p.ldb, key.ldc = p.ldc, key.count = p.count;
    key.kind = (uint32_t)p.ta | (uint32_t)p.tb << 1 | (uint32_t)(p.dtype == SZ_BF16) << 2 | (uint32_t)(p.c_dtype == SZ_BF16) << 3
             | (uint32_t)(p.beta != 0) << 4 | (uint32_t)(p.bias != NULL) << 5;
    key.align = alignment(p.a) | alignment(p.b) << 2 | alignment(p.c) << 4 | alignment(p.bias) << 6;
    return key;
}

/* The product in cuBLASLt's terms: its A is our B and its B our A. */
typedef struct {
    cublasLtMatmulDescOpaque_t desc;
    cublasLtMatrixLayoutOpaque_t a, b, c;
} description;

static cublasStatus_t layout(cublasLtMatrixLayout_t l, int dtype, int64_t rows, int64_t cols, int64_t ld, int64_t count, int64_t stride)
{
    const int32_t batch = (int32_t)count;
    cublasStatus_t s = cublasLtMatrixLayoutInit(l, dtype == SZ_F32 ? CUDA_R_32F : CUDA_R_16BF, (uint64_t)rows, (uint64_t)cols, ld);
    if (s == CUBLAS_STATUS_SUCCESS) s = cublasLtMatrixLayoutSetAttribute(l, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &batch, sizeof batch);
    if (s == CUBLAS_STATUS_SUCCESS) s = cublasLtMatrixLayoutSetAttribute(l, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &stride, sizeof stride);
    return s;
}

static cublasStatus_t describe(const product &p, description *d)
{
    const cublasOperation_t first = p.tb ? CUBLAS_OP_T : CUBLAS_OP_N, second = p.ta ? CUBLAS_OP_T : CUBLAS_OP_N;
    const cublasComputeType_t compute = p.dtype == SZ_F32 && tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
    const cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
    cublasStatus_t s = cublasLtMatmulDescInit(&d->desc, compute, CUDA_R_32F);
    if (s == CUBLAS_STATUS_SUCCESS) s = cublasLtMatmulDescSetAttribute(&d->desc, CUBLASLT_MATMUL_DESC_TRANSA, &first, sizeof first);
    if (s == CUBLAS_STATUS_SUCCESS) s = cublasLtMatmulDescSetAttribute(&d->desc, CUBLASLT_MATMUL_DESC_TRANSB, &second, sizeof second);
    if (s == CUBLAS_STATUS_SUCCESS && p.bias) {
        s = cublasLtMatmulDescSetAttribute(&d->desc, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue);
        if (s == CUBLAS_STATUS_SUCCESS) s = cublasLtMatmulDescSetAttribute(&d->desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &p.bias, sizeof p.bias);
    }
    if (s == CUBLAS_STATUS_SUCCESS) s = layout(&d->a, p.dtype, p.tb ? p.k : p.n, p.tb ? p.n : p.k, p.ldb, p.count, p.n * p.k);
    if (s == CUBLAS_STATUS_SUCCESS) s = layout(&d->b, p.dtype, p.ta ? p.m : p.k, p.ta ? p.k : p.m, p.lda, p.count, p.m * p.k);
    if (s == CUBLAS_STATUS_SUCCESS) s = layout(&d->c, p.c_dtype, p.n, p.m, p.ldc, p.count, p.m * p.n);
    return s;
}

/* Fills the entry. Pointers are only as aligned as they are: cuBLASLt would otherwise count on 256 bytes. */
static int choose(const product &p, description *d, const shape_key &key, chosen *e)
{
    static const cublasLtMatmulPreferenceAttributes_t aligned[4] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES };
    const void *pointers[4] = { p.b, p.a, p.c, p.c };
    const uint32_t schemes = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    cublasLtMatmulPreferenceOpaque_t preference;
    cublasLtMatmulHeuristicResult_t result;
    int found = 0;
    cublasStatus_t s = cublasLtMatmulPreferenceInit(&preference);
    if (s == CUBLAS_STATUS_SUCCESS) s = cublasLtMatmulPreferenceSetAttribute(&preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &WORKSPACE, sizeof WORKSPACE);
    if (s == CUBLAS_STATUS_SUCCESS) s = cublasLtMatmulPreferenceSetAttribute(&preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &schemes, sizeof schemes);
    for (int i = 0; i < 4 && s == CUBLAS_STATUS_SUCCESS; i++) {
        const uint32_t bytes = 2u << alignment(pointers[i]);
        s = cublasLtMatmulPreferenceSetAttribute(&preference, aligned[i], &bytes, sizeof bytes);
    }
    if (s != CUBLAS_STATUS_SUCCESS) return failed("cuBLASLt's preferences", s);
    s = cublasLtMatmulAlgoGetHeuristic(handle, &d->desc, &d->a, &d->b, &d->c, &d->c, &preference, 1, &result, &found);
    if (s != CUBLAS_STATUS_SUCCESS && s != CUBLAS_STATUS_NOT_SUPPORTED) return failed("choosing a matrix product", s);
    e->key = key;
    e->used = true;
    e->none = s != CUBLAS_STATUS_SUCCESS || found == 0 || result.state != CUBLAS_STATUS_SUCCESS;
    if (!e->none) e->algorithm = result.algo;
    return 0;
}

static int multiply(const product &p)
{
    const float one = 1;
    description d;
    if (p.count > 0x7fffffff) return plain(p);
    if (start()) return -1;
    cublasStatus_t s = describe(p, &d);
    if (s != CUBLAS_STATUS_SUCCESS) return failed("describing a matrix product", s);
    const shape_key key = key_of(p);
    chosen *e = sz_cuda_hash_slot(table, (int)TABLE, key);
    if ((!e->used || memcmp(&e->key, &key, sizeof key) != 0) && choose(p, &d, key, e)) return -1;
    if (e->none) return plain(p);
    s = cublasLtMatmul(handle, &d.desc, &one, p.b, &d.a, p.a, &d.b, &p.beta, p.c, &d.c, p.c, &d.c, &e->algorithm, workspace, WORKSPACE, sz_cuda_stream());
    if (s == CUBLAS_STATUS_SUCCESS) return 0;
    return sz_fail("matrix product [%lld, %lld] x [%lld, %lld]: %s", (long long)p.m, (long long)p.k, (long long)p.k, (long long)p.n, cublasLtGetStatusString(s));
}
#endif

int sz_cuda_gemm(bool ta, bool tb, int64_t m, int64_t n, int64_t k, const void *a, int64_t lda, const void *b, int64_t ldb,
                 int dtype, float beta, void *c, int64_t ldc, int c_dtype, int64_t count)
{
    const product p = { ta, tb, m, n, k, lda, ldb, ldc, count, a, b, NULL, c, dtype, c_dtype, beta };
    if (m == 0 || n == 0 || count == 0 || (k == 0 && beta != 0)) return 0;
    return k == 0 ? plain(p) : multiply(p);
}

/* ---- results on their way from f32 ---- */
static __device__ __forceinline__ float exact_gelu(float v) { return v * 0.5f * erfcf(v * -0.70710678f); }

template <int W> __global__ void finish_kernel(const float *sums, int64_t n, int64_t m, sz_elements bias, bool gelu, sz_elements y, int64_t ldy)
{
    const int64_t vectors = m / W;
    for (int64_t e = (int64_t)blockIdx.x * THREADS + threadIdx.x; e < n * vectors; e += (int64_t)gridDim.x * THREADS) {
        const int64_t row = e / vectors, col = e % vectors * W;
        float v[W], more[W];
        sz_load_vector<W>(sums + row * m + col, v);
        if (bias.data) {
            sz_load_vector<W>(bias, col, more);
            for (int j = 0; j < W; j++) v[j] += more[j];
        }
        if (gelu)
            for (int j = 0; j < W; j++) v[j] = exact_gelu(v[j]);
        sz_store_vector<W>(y, row * ldy + col, v);
    }
}

static sz_elements elements_or_null(const sz_tensor *t) { return t ? sz_elements_of(t) : sz_elements{ NULL, false }; }

void sz_cuda_finish(const float *sums, int64_t n, int64_t m, const sz_tensor *bias, bool gelu, sz_elements y, int64_t ldy)
{
    const sz_elements b = elements_or_null(bias);
    if (n == 0 || m == 0) return;
    if (m % SZ_VECTOR == 0 && ldy % SZ_VECTOR == 0 && sz_is_aligned16(sums) && sz_is_aligned16(y.data) && sz_is_aligned16(b.data))
        SZ_LAUNCH((finish_kernel<SZ_VECTOR>), sz_grid(sz_blocks(n * m / SZ_VECTOR, THREADS)), THREADS, 0, sums, n, m, b, gelu, y, ldy);
    else SZ_LAUNCH((finish_kernel<1>), sz_grid(sz_blocks(n * m, THREADS)), THREADS, 0, sums, n, m, b, gelu, y, ldy);
}

/* ---- few rows ---- */
/* A warp makes OUTPUTS columns of Y for all n <= N rows. */
template <typename T, int N> __global__ void few_rows_kernel(const T *x, const T *w, int n, int64_t m, int64_t k, sz_elements bias, bool gelu, sz_elements y,
                                                             int64_t ldy)
{
    constexpr int W = 16 / (int)sizeof(T);
    const int lane = threadIdx.x % 32;
    const int64_t first = ((int64_t)blockIdx.x * WARPS + threadIdx.x / 32) * OUTPUTS;
    if (first >= m) return;
    float sum[OUTPUTS][N];
    for (int o = 0; o < OUTPUTS; o++)
        for (int r = 0; r < N; r++) sum[o][r] = 0;
    #pragma unroll 2
    for (int64_t q = lane * W; q < k; q += 32 * W) {
        float weight[OUTPUTS][W];
        for (int o = 0; o < OUTPUTS; o++) sz_load_vector<W>(w + min(first + o, m - 1) * k + q, weight[o]);
        for (int r = 0; r < N; r++) {
            float v[W];
            sz_load_vector<W>(x + (int64_t)min(r, n - 1) * k + q, v);
            for (int o = 0; o < OUTPUTS; o++)
                for (int j = 0; j < W; j++) sum[o][r] += weight[o][j] * v[j];
        }
    }
    for (int o = 0; o < OUTPUTS; o++)
        for (int r = 0; r < N; r++) {
            float v = sz_warp_sum(sum[o][r]);
            if (lane != o * N + r || r >= n || first + o >= m) continue;
            if (bias.data) v += sz_load_element(bias, first + o);
            sz_store_element(y, r * ldy + first + o, gelu ? exact_gelu(v) : v);
        }
}

template <typename T> static void few_rows(const T *x, const T *w, int n, int64_t m, int64_t k, const sz_tensor *bias, bool gelu, sz_elements y, int64_t ldy)
{
    const unsigned grid = (unsigned)sz_blocks(m, WARPS * OUTPUTS);
    const sz_elements b = elements_or_null(bias);
    if (n == 1) SZ_LAUNCH((few_rows_kernel<T, 1>), grid, THREADS, 0, x, w, n, m, k, b, gelu, y, ldy);
    else if (n == 2) SZ_LAUNCH((few_rows_kernel<T, 2>), grid, THREADS, 0, x, w, n, m, k, b, gelu, y, ldy);
    else if (n <= 4) SZ_LAUNCH((few_rows_kernel<T, 4>), grid, THREADS, 0, x, w, n, m, k, b, gelu, y, ldy);
    else SZ_LAUNCH((few_rows_kernel<T, FEW>), grid, THREADS, 0, x, w, n, m, k, b, gelu, y, ldy);
}

int sz_cuda_gemm_linear(int64_t n, int64_t m, int64_t k, const void *x, const void *w, int dtype, const sz_tensor *bias, bool gelu,
                        void *y, int64_t ldy, int y_dtype)
{
    const int64_t size = (int64_t)sz_dtype_size(dtype), y_size = (int64_t)sz_dtype_size(y_dtype);
    const sz_elements out = { y, y_dtype == SZ_BF16 };
    if (n == 0 || m == 0) return 0;
    if (n <= FEW && k > 0 && k * size % 16 == 0 && sz_is_aligned16(x) && sz_is_aligned16(w)) {
        if (dtype == SZ_F32) few_rows((const float *)x, (const float *)w, (int)n, m, k, bias, gelu, out, ldy);
        else few_rows((const bf16 *)x, (const bf16 *)w, (int)n, m, k, bias, gelu, out, ldy);
        return sz_cuda_launched("linear");
    }
    product p = { false, true, n, m, k, k, k, ldy, 1, x, w, bias ? bias->data : NULL, y, dtype, y_dtype, 0 };
    if (!gelu && (!bias || bias->dtype == y_dtype)) return k > 0 ? multiply(p) : plain(p);
    /* By blocks of rows through f32. */
    const int64_t block = sz_cuda_block_rows(n, m);
    float *sums = (float *)sz_cuda_scratch((size_t)(block * m) * sizeof *sums);
    if (!sums) return -1;
    p.bias = NULL, p.c = sums, p.ldc = m, p.c_dtype = SZ_F32;
    for (int64_t first = 0; first < n; first += block) {
        p.m = block < n - first ? block : n - first;
        p.a = (const char *)x + first * k * size;
        if (k > 0 ? multiply(p) : plain(p)) return -1;
        sz_cuda_finish(sums, p.m, m, bias, gelu, sz_elements{ (char *)y + first * ldy * y_size, out.is_bf16 }, ldy);
        if (sz_cuda_launched("linear")) return -1;
    }
    return 0;
}
