/* gemm.cu - matrix products: by cuBLASLt, by an own kernel for few rows, or by a plain one.
 *
 * cuBLASLt is column-major: a row-major C = A B is a column-major C^T = B^T A^T, so the operands
 * swap. Its heuristic chooses an algorithm once for each shape; algorithms that add partial sums
 * in the output's dtype are not allowed. f32 products are f32 (CUBLAS_COMPUTE_32F). With
 * SEGZERO_TF32=1 in the environment their inputs are rounded to TF32, which is several times
 * faster and good to three digits. bf16 products are exact and summed in f32. cuBLASLt adds a bias
 * of the result's dtype. Its GELU is the tanh form, not the exact one, so ours follows in a pass
 * of its own, from f32.
 *
 * For up to SKINNY rows (decoding) the time goes into reading the weight once: each warp takes two
 * of its rows and all of X. The plain kernel is used where cuBLASLt has no algorithm, and for
 * everything in the emulated build.
 *
 * Leaves out: thread safety; the table of algorithms has no lock. */
#include "gemm.cuh"
#ifndef SZ_EMULATE
#include <cublasLt.h>
#include <stdio.h>
#endif

enum {
    THREADS = 256,
    WARPS = THREADS / 32,
    SKINNY = 8,  /* rows of X */
    OUTPUTS = 2, /* weight rows of a warp */
};

typedef struct {
    bool ta, tb;
    int64_t m, n, k;
    int64_t lda, ldb, ldc;
    int64_t count;
    const void *a, *b;
    const void *bias; /* [n] of C's dtype, or NULL */
    void *c;
    int dtype, c_dtype;
    float beta;
} product;

/* ---- the plain kernel ---- */
/* One element of C for each thread, with a grid stride, so no shape is too large. */
template <typename T, typename C> __global__ void plain_kernel(product p)
{
    const int64_t start = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    for (int64_t e = start; e < p.count * p.m * p.n; e += (int64_t)gridDim.x * THREADS) {
        /* Element (i, j) of product z. */
        const int64_t z = e / (p.m * p.n);
        const int64_t i = e / p.n % p.m;
        const int64_t j = e % p.n;
        const T *a = (const T *)p.a + z * p.m * p.k + (p.ta ? i : i * p.lda);
        const T *b = (const T *)p.b + z * p.n * p.k + (p.tb ? j * p.ldb : j);
        const int64_t a_stride = p.ta ? p.lda : 1;
        const int64_t b_stride = p.tb ? 1 : p.ldb;
        C *c = (C *)p.c + z * p.m * p.n + i * p.ldc + j;
        float sum = p.bias ? sz_load((const C *)p.bias + j) : 0;
        for (int64_t q = 0; q < p.k; q++)
            sum += sz_load(a + q * a_stride) * sz_load(b + q * b_stride);
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

/* What an algorithm depends on. align holds alignment() of a, b, c and bias, two bits each. */
typedef struct {
    int64_t m, n, k, lda, ldb, ldc, count;
    uint32_t kind, align;
} shape_key;

typedef struct {
    shape_key key;
    bool used;
    bool none; /* cuBLASLt has no algorithm for this shape */
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

static int failed(const char *what, cublasStatus_t s)
{
    return sz_fail("%s: %s", what, cublasLtGetStatusString(s));
}

/* Creates table, handle and workspace at the first call. Returns 0, or -1 with a message. */
static int start(void)
{
    if (workspace) return 0;
    if (!table && !(table = (chosen *)calloc(TABLE, sizeof *table)))
        return sz_fail("no memory for the matrix products' table");
    if (!handle) {
        const cublasStatus_t s = cublasLtCreate(&handle);
        if (s != CUBLAS_STATUS_SUCCESS) return failed("cuBLASLt", s);
    }
    tf32 = sz_cuda_env_is("SEGZERO_TF32", '1');
    return sz_cuda_check(cudaMalloc(&workspace, WORKSPACE), "the matrix products' workspace");
}

/* Returns 0, 1, 2 or 3 if the address is a multiple of 2, 4, 8 or 16 bytes. */
static uint32_t alignment(const void *p)
{
    const uintptr_t address = (uintptr_t)p;
    if (address % 16 == 0) return 3;
    if (address % 8 == 0) return 2;
    return address % 4 == 0 ? 1 : 0;
}

static shape_key key_of(const product &p)
{
    shape_key key;
    memset(&key, 0, sizeof key);
    key.m = p.m;
    key.n = p.n;
    key.k = p.k;
    key.lda = p.lda;
    key.ldb = p.ldb;
    key.ldc = p.ldc;
    key.count = p.count;
    key.kind = (uint32_t)p.ta | (uint32_t)p.tb << 1 | (uint32_t)(p.dtype == SZ_BF16) << 2 |
               (uint32_t)(p.c_dtype == SZ_BF16) << 3 | (uint32_t)(p.beta != 0) << 4 |
               (uint32_t)(p.bias != NULL) << 5;
    key.align = alignment(p.a) | alignment(p.b) << 2 | alignment(p.c) << 4 | alignment(p.bias) << 6;
    return key;
}

/* The product in cuBLASLt's terms: its A is our B, and its B our A. */
typedef struct {
    cublasLtMatmulDescOpaque_t desc;
    cublasLtMatrixLayoutOpaque_t a, b, c;
} description;

/* Sets one attribute, unless an earlier call failed. */
#define SET(s, setter, object, name, value) \
    do { \
        if ((s) == CUBLAS_STATUS_SUCCESS) (s) = setter(object, name, &(value), sizeof(value)); \
    } while (0)

static cublasStatus_t layout(cublasLtMatrixLayout_t l, int dtype, int64_t rows, int64_t cols,
                             int64_t ld, int64_t count, int64_t stride)
{
    const int32_t batch = (int32_t)count;
    const cudaDataType_t type = dtype == SZ_F32 ? CUDA_R_32F : CUDA_R_16BF;
    cublasStatus_t s = cublasLtMatrixLayoutInit(l, type, (uint64_t)rows, (uint64_t)cols, ld);
    SET(s, cublasLtMatrixLayoutSetAttribute, l, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, batch);
    SET(s, cublasLtMatrixLayoutSetAttribute, l, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
        stride);
    return s;
}

static cublasStatus_t describe(const product &p, description *d)
{
    /* Operands, precision, and the bias. */
    const cublasOperation_t first = p.tb ? CUBLAS_OP_T : CUBLAS_OP_N;
    const cublasOperation_t second = p.ta ? CUBLAS_OP_T : CUBLAS_OP_N;
    const cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
    cublasComputeType_t compute = CUBLAS_COMPUTE_32F;
    if (p.dtype == SZ_F32 && tf32) compute = CUBLAS_COMPUTE_32F_FAST_TF32;
    cublasLtMatmulDesc_t desc = &d->desc;
    cublasStatus_t s = cublasLtMatmulDescInit(desc, compute, CUDA_R_32F);
    SET(s, cublasLtMatmulDescSetAttribute, desc, CUBLASLT_MATMUL_DESC_TRANSA, first);
    SET(s, cublasLtMatmulDescSetAttribute, desc, CUBLASLT_MATMUL_DESC_TRANSB, second);
    if (p.bias) {
        SET(s, cublasLtMatmulDescSetAttribute, desc, CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue);
        SET(s, cublasLtMatmulDescSetAttribute, desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, p.bias);
    }
    /* The matrices as they are in memory. */
    const int64_t b_rows = p.tb ? p.k : p.n;
    const int64_t b_cols = p.tb ? p.n : p.k;
    const int64_t a_rows = p.ta ? p.m : p.k;
    const int64_t a_cols = p.ta ? p.k : p.m;
    if (s == CUBLAS_STATUS_SUCCESS)
        s = layout(&d->a, p.dtype, b_rows, b_cols, p.ldb, p.count, p.n * p.k);
    if (s == CUBLAS_STATUS_SUCCESS)
        s = layout(&d->b, p.dtype, a_rows, a_cols, p.lda, p.count, p.m * p.k);
    if (s == CUBLAS_STATUS_SUCCESS)
        s = layout(&d->c, p.c_dtype, p.n, p.m, p.ldc, p.count, p.m * p.n);
    return s;
}

/* Asks the heuristic for an algorithm and fills the entry. Returns 0, or -1 with a message. */
static int choose(const product &p, description *d, const shape_key &key, chosen *e)
{
    /* State the real alignment; cuBLASLt assumes 256 bytes otherwise. */
    static const cublasLtMatmulPreferenceAttributes_t aligned[4] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
    };
    const void *pointers[4] = { p.b, p.a, p.c, p.c };
    const uint32_t schemes = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    cublasLtMatmulPreferenceOpaque_t preference;
    cublasStatus_t s = cublasLtMatmulPreferenceInit(&preference);
    SET(s, cublasLtMatmulPreferenceSetAttribute, &preference,
        CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, WORKSPACE);
    SET(s, cublasLtMatmulPreferenceSetAttribute, &preference,
        CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, schemes);
    for (int i = 0; i < 4; i++) {
        const uint32_t bytes = 2u << alignment(pointers[i]);
        SET(s, cublasLtMatmulPreferenceSetAttribute, &preference, aligned[i], bytes);
    }
    if (s != CUBLAS_STATUS_SUCCESS) return failed("cuBLASLt's preferences", s);

    cublasLtMatmulHeuristicResult_t result;
    int found = 0;
    s = cublasLtMatmulAlgoGetHeuristic(handle, &d->desc, &d->a, &d->b, &d->c, &d->c, &preference, 1,
                                       &result, &found);
    if (s != CUBLAS_STATUS_SUCCESS && s != CUBLAS_STATUS_NOT_SUPPORTED)
        return failed("choosing a matrix product", s);
    e->key = key;
    e->used = true;
    e->none = s != CUBLAS_STATUS_SUCCESS || found == 0 || result.state != CUBLAS_STATUS_SUCCESS;
    if (!e->none) e->algorithm = result.algo;
    return 0;
}

static int multiply(const product &p)
{
    if (p.count > 0x7fffffff) return plain(p);
    if (start() != 0) return -1;
    description d;
    cublasStatus_t s = describe(p, &d);
    if (s != CUBLAS_STATUS_SUCCESS) return failed("describing a matrix product", s);

    /* The algorithm: known, or chosen now. */
    const shape_key key = key_of(p);
    chosen *e = sz_cuda_hash_slot(table, (int)TABLE, key);
    const bool is_known = e->used && memcmp(&e->key, &key, sizeof key) == 0;
    if (!is_known && choose(p, &d, key, e) != 0) return -1;
    if (e->none) return plain(p);

    const float one = 1;
    s = cublasLtMatmul(handle, &d.desc, &one, p.b, &d.a, p.a, &d.b, &p.beta, p.c, &d.c, p.c, &d.c,
                       &e->algorithm, workspace, WORKSPACE, sz_cuda_stream());
    if (s == CUBLAS_STATUS_SUCCESS) return 0;
    return sz_fail("matrix product [%lld, %lld] x [%lld, %lld]: %s", (long long)p.m, (long long)p.k,
                   (long long)p.k, (long long)p.n, cublasLtGetStatusString(s));
}
#endif

int sz_cuda_gemm(bool ta, bool tb, int64_t m, int64_t n, int64_t k, const void *a, int64_t lda,
                 const void *b, int64_t ldb, int dtype, float beta, void *c, int64_t ldc,
                 int c_dtype, int64_t count)
{
    const product p = {
        ta, tb, m, n, k, lda, ldb, ldc, count, a, b, NULL, c, dtype, c_dtype, beta
    };
    if (m == 0 || n == 0 || count == 0 || (k == 0 && beta != 0)) return 0;
    return k == 0 ? plain(p) : multiply(p);
}

/* ---- from f32 sums to the result ---- */
static __device__ __forceinline__ float exact_gelu(float v)
{
    return v * 0.5f * erfcf(v * -0.70710678f);
}

template <int W> __global__ void finish_kernel(const float *sums, int64_t n, int64_t m,
                                               sz_elements bias, bool gelu, sz_elements y,
                                               int64_t ldy)
{
    const int64_t vectors = m / W;
    const int64_t start = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    for (int64_t e = start; e < n * vectors; e += (int64_t)gridDim.x * THREADS) {
        const int64_t row = e / vectors;
        const int64_t col = e % vectors * W;
        float v[W], added[W];
        sz_load_vector<W>(sums + row * m + col, v);
        if (bias.data) {
            sz_load_vector<W>(bias, col, added);
            for (int j = 0; j < W; j++) v[j] += added[j];
        }
        if (gelu)
            for (int j = 0; j < W; j++) v[j] = exact_gelu(v[j]);
        sz_store_vector<W>(y, row * ldy + col, v);
    }
}

static sz_elements elements_or_null(const sz_tensor *t)
{
    return t ? sz_elements_of(t) : sz_elements{ NULL, false };
}

void sz_cuda_finish(const float *sums, int64_t n, int64_t m, const sz_tensor *bias, bool gelu,
                    sz_elements y, int64_t ldy)
{
    const sz_elements b = elements_or_null(bias);
    if (n == 0 || m == 0) return;
    const bool vectors = m % SZ_VECTOR == 0 && ldy % SZ_VECTOR == 0 && sz_is_aligned16(sums) &&
                         sz_is_aligned16(y.data) && sz_is_aligned16(b.data);
    if (vectors)
        SZ_LAUNCH((finish_kernel<SZ_VECTOR>), sz_grid(sz_blocks(n * m / SZ_VECTOR, THREADS)),
                  THREADS, 0, sums, n, m, b, gelu, y, ldy);
    else
        SZ_LAUNCH((finish_kernel<1>), sz_grid(sz_blocks(n * m, THREADS)), THREADS, 0, sums, n, m, b,
                  gelu, y, ldy);
}

/* ---- few rows ---- */
/* A warp computes OUTPUTS columns of Y for all n <= N rows. */
template <typename T, int N> __global__ void skinny_kernel(const T *x, const T *w, int n, int64_t m,
                                                           int64_t k, sz_elements bias, bool gelu,
                                                           sz_elements y, int64_t ldy)
{
    constexpr int W = 16 / (int)sizeof(T);
    const int lane = threadIdx.x % 32;
    const int64_t first = ((int64_t)blockIdx.x * WARPS + threadIdx.x / 32) * OUTPUTS;
    if (first >= m) return;
    float sum[OUTPUTS][N];
    for (int o = 0; o < OUTPUTS; o++)
        for (int r = 0; r < N; r++) sum[o][r] = 0;
/* Each lane sums over its part of k. Rows past the end repeat the last one. */
#pragma unroll 2
    for (int64_t q = lane * W; q < k; q += 32 * W) {
        float weight[OUTPUTS][W];
        for (int o = 0; o < OUTPUTS; o++)
            sz_load_vector<W>(w + min(first + o, m - 1) * k + q, weight[o]);
        for (int r = 0; r < N; r++) {
            float v[W];
            sz_load_vector<W>(x + (int64_t)min(r, n - 1) * k + q, v);
            for (int o = 0; o < OUTPUTS; o++)
                for (int j = 0; j < W; j++) sum[o][r] += weight[o][j] * v[j];
        }
    }
    /* Add the lanes' sums; each result is written by a lane of its own. */
    for (int o = 0; o < OUTPUTS; o++)
        for (int r = 0; r < N; r++) {
            float v = sz_warp_sum(sum[o][r]);
            if (lane != o * N + r || r >= n || first + o >= m) continue;
            if (bias.data) v += sz_load_element(bias, first + o);
            sz_store_element(y, r * ldy + first + o, gelu ? exact_gelu(v) : v);
        }
}

template <typename T> static void skinny(const T *x, const T *w, int n, int64_t m, int64_t k,
                                         const sz_tensor *bias, bool gelu, sz_elements y,
                                         int64_t ldy)
{
    const unsigned grid = (unsigned)sz_blocks(m, WARPS * OUTPUTS);
    const sz_elements b = elements_or_null(bias);
    if (n == 1) SZ_LAUNCH((skinny_kernel<T, 1>), grid, THREADS, 0, x, w, n, m, k, b, gelu, y, ldy);
    else if (n == 2)
        SZ_LAUNCH((skinny_kernel<T, 2>), grid, THREADS, 0, x, w, n, m, k, b, gelu, y, ldy);
    else if (n <= 4)
        SZ_LAUNCH((skinny_kernel<T, 4>), grid, THREADS, 0, x, w, n, m, k, b, gelu, y, ldy);
    else SZ_LAUNCH((skinny_kernel<T, SKINNY>), grid, THREADS, 0, x, w, n, m, k, b, gelu, y, ldy);
}

/* ---- linear ---- */
/* Computes p = x W^T by blocks of rows in f32, and bias, GELU and rounding in a second pass. */
static int linear_in_blocks(product p, const sz_tensor *bias, bool gelu, sz_elements y, int64_t ldy)
{
    const int64_t n = p.m;
    const int64_t m = p.n;
    const char *x = (const char *)p.a;
    const int64_t row_bytes = p.k * (int64_t)sz_dtype_size(p.dtype);
    const int64_t y_row_bytes = ldy * (y.is_bf16 ? 2 : 4);
    const int64_t block = sz_cuda_block_rows(n, m);
    float *sums = (float *)sz_cuda_scratch((size_t)(block * m) * sizeof *sums);
    if (!sums) return -1;
    p.bias = NULL;
    p.c = sums;
    p.ldc = m;
    p.c_dtype = SZ_F32;
    for (int64_t first = 0; first < n; first += block) {
        p.m = block < n - first ? block : n - first;
        p.a = x + first * row_bytes;
        if ((p.k > 0 ? multiply(p) : plain(p)) != 0) return -1;
        const sz_elements rows = { (char *)y.data + first * y_row_bytes, y.is_bf16 };
        sz_cuda_finish(sums, p.m, m, bias, gelu, rows, ldy);
        if (sz_cuda_launched("linear") != 0) return -1;
    }
    return 0;
}

int sz_cuda_gemm_linear(int64_t n, int64_t m, int64_t k, const void *x, const void *w, int dtype,
                        const sz_tensor *bias, bool gelu, void *y, int64_t ldy, int y_dtype)
{
    if (n == 0 || m == 0) return 0;
    const int64_t row_bytes = k * (int64_t)sz_dtype_size(dtype);
    const sz_elements out = { y, y_dtype == SZ_BF16 };
    const bool aligned = row_bytes % 16 == 0 && sz_is_aligned16(x) && sz_is_aligned16(w);
    if (n <= SKINNY && k > 0 && aligned) {
        if (dtype == SZ_F32)
            skinny((const float *)x, (const float *)w, (int)n, m, k, bias, gelu, out, ldy);
        else skinny((const bf16 *)x, (const bf16 *)w, (int)n, m, k, bias, gelu, out, ldy);
        return sz_cuda_launched("linear");
    }
    const void *bias_data = bias ? bias->data : NULL;
    const product p = { false, true, n, m, k, k, k, ldy, 1, x, w, bias_data, y, dtype, y_dtype, 0 };
    if (!gelu && (!bias || bias->dtype == y_dtype)) return k > 0 ? multiply(p) : plain(p);
    return linear_in_blocks(p, bias, gelu, out, ldy);
}
