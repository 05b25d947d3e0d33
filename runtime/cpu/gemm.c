/* gemm.c - matrix product through oneDNN, and our own matrix-vector kernel where oneDNN is far below memory speed.
 *
 * Measured on two cores of a Cascade Lake Xeon, f32: for A B^T the matmul primitive beats dnnl_sgemm (173 against 142
 * GFLOP/s at 711x384x128), for A B and A^T B dnnl_sgemm is as good or better, for one to four rows both stay under a third
 * of what the memory gives. bf16 without AVX512-BF16 or AMX runs at 50 GFLOP/s in oneDNN; widening the operands to f32
 * first gives 150, so that is done there. Primitives are kept in a small table by shape: oneDNN's own cache costs 8 us a hit. */
#include "gemm.h"
#include <dnnl.h>

/* ---- few rows: y[i, j] = x[i] . w[j], one pass over w ---- */
enum { FEW = 4, LANES = 16 };

static inline void dot_f32(const float *restrict w, const float *restrict x, int64_t k, float *restrict sums)
{
    for (int64_t i = 0; i + LANES <= k; i += LANES)
        for (int l = 0; l < LANES; l++) sums[l] += w[i + l] * x[i + l];
}

static inline void dot_bf16(const uint16_t *restrict w, const uint16_t *restrict x, int64_t k, float *restrict sums)
{
    for (int64_t i = 0; i + LANES <= k; i += LANES)
        for (int l = 0; l < LANES; l++) {
            union { uint32_t u; float f; } a = { (uint32_t)w[i + l] << 16 }, b = { (uint32_t)x[i + l] << 16 };
            sums[l] += a.f * b.f;
        }
}

static void few_rows(int64_t m, int64_t n, int64_t k, const void *x, int64_t ldx, const void *w, int64_t ldw, int dtype, float beta, float *y, int64_t ldy)
{
    size_t size = sz_dtype_size(dtype);
    #pragma omp parallel for schedule(static) if (n * k > 16384)
    for (int64_t j = 0; j < n; j++)
        for (int64_t i = 0; i < m; i++) {
            const char *row = (const char *)w + (size_t)(j * ldw) * size, *in = (const char *)x + (size_t)(i * ldx) * size;
            float sums[LANES] = { 0 }, s = 0;
            if (dtype == SZ_F32) dot_f32((const float *)row, (const float *)in, k, sums);
            else dot_bf16((const uint16_t *)row, (const uint16_t *)in, k, sums);
            for (int64_t r = k - k % LANES; r < k; r++)
                s += dtype == SZ_F32 ? ((const float *)row)[r] * ((const float *)in)[r]
                                     : sz_from_bf16(((const uint16_t *)row)[r]) * sz_from_bf16(((const uint16_t *)in)[r]);
            for (int l = 0; l < LANES; l++) s += sums[l];
            float *out = &y[i * ldy + j];
            *out = beta ? *out + s : s;
        }
}

/* ---- the matmul primitive ---- */
typedef struct {
    int64_t m, n, k, lda, ldb, ldc;
    int32_t ta, tb, beta, dtype;
} shape_key;

enum { TABLE = 512 };
static struct { shape_key key; dnnl_primitive_t primitive; dnnl_memory_t a, b, c; } table[TABLE];
static dnnl_engine_t engine;
static dnnl_stream_t stream;

static int dnnl_check(dnnl_status_t s, const char *what)
{
    return s == dnnl_success ? 0 : sz_fail("oneDNN: %s failed with status %d", what, (int)s);
}

static int primitive(bool ta, bool tb, int64_t m, int64_t n, int64_t k, const void *a, int64_t lda, const void *b, int64_t ldb,
                     int dtype, float beta, float *c, int64_t ldc)
{
    if (!engine && (dnnl_check(dnnl_engine_create(&engine, dnnl_cpu, 0), "engine") || dnnl_check(dnnl_stream_create(&stream, engine, dnnl_stream_default_flags), "stream")))
        return -1;
    shape_key key;
    memset(&key, 0, sizeof key);
    key.m = m, key.n = n, key.k = k, key.lda = lda, key.ldb = ldb, key.ldc = ldc;
    key.ta = ta, key.tb = tb, key.beta = beta != 0, key.dtype = dtype;
    uint64_t h = 1469598103934665603u;
    for (size_t i = 0; i < sizeof key; i++) h = (h ^ ((const unsigned char *)&key)[i]) * 1099511628211u;
    size_t slot = h % TABLE;
    if (!table[slot].primitive || memcmp(&table[slot].key, &key, sizeof key) != 0) {
        dnnl_memory_desc_t ad, bd, cd;
        dnnl_matmul_desc_t d;
        dnnl_primitive_desc_t pd = NULL;
        dnnl_primitive_attr_t attr = NULL;
        dnnl_post_ops_t post = NULL;
        dnnl_data_type_t dt = dtype == SZ_F32 ? dnnl_f32 : dnnl_bf16;
        if (table[slot].primitive) {
            dnnl_primitive_destroy(table[slot].primitive);
            dnnl_memory_destroy(table[slot].a);
            dnnl_memory_destroy(table[slot].b);
            dnnl_memory_destroy(table[slot].c);
            memset(&table[slot], 0, sizeof table[slot]);
        }
        dnnl_memory_desc_init_by_strides(&ad, 2, (dnnl_dims_t){ m, k }, dt, (dnnl_dims_t){ ta ? 1 : lda, ta ? lda : 1 });
        dnnl_memory_desc_init_by_strides(&bd, 2, (dnnl_dims_t){ k, n }, dt, (dnnl_dims_t){ tb ? 1 : ldb, tb ? ldb : 1 });
        dnnl_memory_desc_init_by_strides(&cd, 2, (dnnl_dims_t){ m, n }, dnnl_f32, (dnnl_dims_t){ ldc, 1 });
        dnnl_primitive_attr_create(&attr);
        if (beta != 0) {
            dnnl_post_ops_create(&post);
            dnnl_post_ops_append_sum(post, 1.0f);
            dnnl_primitive_attr_set_post_ops(attr, post);
            dnnl_post_ops_destroy(post);
        }
        int rc = dnnl_check(dnnl_matmul_desc_init(&d, &ad, &bd, NULL, &cd), "matmul descriptor");
        if (rc == 0) rc = dnnl_check(dnnl_primitive_desc_create(&pd, &d, attr, engine, NULL), "matmul primitive descriptor");
        if (rc == 0) rc = dnnl_check(dnnl_primitive_create(&table[slot].primitive, pd), "matmul primitive");
        if (rc == 0) rc = dnnl_check(dnnl_memory_create(&table[slot].a, &ad, engine, DNNL_MEMORY_NONE), "memory");
        if (rc == 0) rc = dnnl_check(dnnl_memory_create(&table[slot].b, &bd, engine, DNNL_MEMORY_NONE), "memory");
        if (rc == 0) rc = dnnl_check(dnnl_memory_create(&table[slot].c, &cd, engine, DNNL_MEMORY_NONE), "memory");
        if (pd) dnnl_primitive_desc_destroy(pd);
        dnnl_primitive_attr_destroy(attr);
        if (rc != 0) return rc;
        table[slot].key = key;
    }
    dnnl_memory_set_data_handle(table[slot].a, (void *)(uintptr_t)a);
    dnnl_memory_set_data_handle(table[slot].b, (void *)(uintptr_t)b);
    dnnl_memory_set_data_handle(table[slot].c, c);
    dnnl_exec_arg_t args[3] = { { DNNL_ARG_SRC, table[slot].a }, { DNNL_ARG_WEIGHTS, table[slot].b }, { DNNL_ARG_DST, table[slot].c } };
    return dnnl_check(dnnl_primitive_execute(table[slot].primitive, stream, 3, args), "matmul");
}

static bool native_bf16(void)
{
    static int known = -1;
    if (known < 0) {
        dnnl_cpu_isa_t isa = dnnl_get_effective_cpu_isa();
        known = isa == dnnl_cpu_isa_avx512_core_bf16 || isa == dnnl_cpu_isa_avx512_core_amx;
    }
    return known;
}

/* bf16 rows to f32, contiguous. */
static float *widen(const uint16_t *src, int64_t rows, int64_t cols, int64_t ld)
{
    float *dst = sz_scratch((size_t)(rows * cols) * sizeof *dst);
    if (!dst) return NULL;
    #pragma omp parallel for schedule(static) if (rows * cols > 32768)
    for (int64_t r = 0; r < rows; r++) {
        const uint16_t *restrict in = src + r * ld;
        uint32_t *restrict out = (uint32_t *)(dst + r * cols);
        for (int64_t i = 0; i < cols; i++) out[i] = (uint32_t)in[i] << 16;
    }
    return dst;
}

int sz_gemm(bool ta, bool tb, int64_t m, int64_t n, int64_t k, const void *a, int64_t lda, const void *b, int64_t ldb,
            int dtype, float beta, float *c, int64_t ldc)
{
    if (m == 0 || n == 0) return 0;
    if (k == 0) {
        for (int64_t i = 0; i < m && beta == 0; i++) memset(c + i * ldc, 0, (size_t)n * sizeof *c);
        return 0;
    }
    if (!ta && tb && m <= FEW) {
        few_rows(m, n, k, a, lda, b, ldb, dtype, beta, c, ldc);
        return 0;
    }
    if (dtype == SZ_BF16 && !native_bf16()) {
        int64_t arows = ta ? k : m, acols = ta ? m : k, brows = tb ? n : k, bcols = tb ? k : n;
        const float *wa = widen(a, arows, acols, lda), *wb = wa ? widen(b, brows, bcols, ldb) : NULL;
        return wb ? sz_gemm(ta, tb, m, n, k, wa, acols, wb, bcols, SZ_F32, beta, c, ldc) : -1;
    }
    if (dtype == SZ_BF16 || (!ta && tb)) return primitive(ta, tb, m, n, k, a, lda, b, ldb, dtype, beta, c, ldc);
    return dnnl_check(dnnl_sgemm(ta ? 'T' : 'N', tb ? 'T' : 'N', m, n, k, 1.0f, a, lda, b, ldb, beta, c, ldc), "sgemm");
}
