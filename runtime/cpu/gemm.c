/* gemm.c - matrix product through oneDNN, and our own kernel for the few rows of decoding.
 *
 * Measured on two cores of a Cascade Lake Xeon, f32: for A B^T the matmul primitive beats dnnl_sgemm (173 against 142
 * GFLOP/s at 711x384x128), for A B and A^T B dnnl_sgemm is as good or better. bf16 without AVX512-BF16 or AMX runs at 50
 * GFLOP/s in oneDNN; widening the operands to f32 first gives 150, so that is done there. Up to 16 rows our own kernel is
 * faster (docs/speed.md). Primitives are kept in a small table by shape: oneDNN's own cache costs 8 us a hit. */
#include "gemm.h"
#include "gemm_tile.h"
#include <dnnl.h>

/* bf16 rows to f32, contiguous. */
static float *widen_to(float *dst, const uint16_t *src, int64_t rows, int64_t cols, int64_t ld)
{
    if (!dst) return NULL;
    #pragma omp parallel for schedule(static) if (rows * cols > 32768)
    for (int64_t r = 0; r < rows; r++) {
        const uint16_t *restrict in = src + r * ld;
        uint32_t *restrict out = (uint32_t *)(dst + r * cols);
        for (int64_t i = 0; i < cols; i++) out[i] = (uint32_t)in[i] << 16;
    }
    return dst;
}

static float *widen(const uint16_t *src, int64_t rows, int64_t cols, int64_t ld)
{
    return widen_to(sz_scratch((size_t)(rows * cols) * sizeof(float)), src, rows, cols, ld);
}

/* ---- few rows: y[i, j] = x[i] . w[j] for few rows of x, one pass over w from memory ----
 * A chunk of CHUNK_W weight rows meets a block of up to ROWS_X rows of x, panel by panel of columns, so that the panel of x
 * stays in the first-level cache; further blocks of x find the chunk in the second. R weight rows times M rows of x are
 * vectors of sums in registers, and rest in memory between panels: lane l sums the columns of its place, and only at the end
 * the lanes are added. A sum's order depends on k alone: an answer's numbers do not hang on how many decode beside it.
 *
 * A vector of 32-bit words holds two bf16 weights in each lane: the even columns after a shift, the odd ones after a mask. x is
 * laid out for that: f32, of each BLOCK_K columns the even ones first (in order for f32 weights), zeros up to whole blocks. */
enum { FEW = 16, FEW_BF16 = 96, CHUNK_W = 24, ROWS_X = 8, BLOCK_K = 2 * SZ_LANES, PANEL_FLOATS = 4096 };

typedef uint32_t word_vec __attribute__((vector_size(4 * SZ_LANES)));
typedef uint32_t word_vec_any __attribute__((vector_size(4 * SZ_LANES), aligned(2), may_alias));

/* BLOCK_K elements as two vectors: f32 in order, of bf16 the even and the odd ones. */
static inline __attribute__((always_inline)) void halves(const char *from, const int dtype, sz_vec v[2])
{
    if (dtype == SZ_F32) {
        v[0] = sz_vec_load((const float *)from), v[1] = sz_vec_load((const float *)from + SZ_LANES);
    } else {
        word_vec both = *(const word_vec_any *)from;
        v[0] = (sz_vec)(both << 16), v[1] = (sz_vec)(both & 0xffff0000u);
    }
}

/* x in blocks of ROWS_X rows (the last may have fewer), each [k / BLOCK_K][2][rows][SZ_LANES]: read front to back. Rows with
 * k in between would meet in the same sets of the cache when k is a power of two. */
static float *lay_out(const void *x, int64_t m, int64_t k, int64_t ld, int dtype, int64_t padded)
{
    const size_t size = sz_dtype_size(dtype);
    float *out = sz_scratch((size_t)(m * padded) * sizeof *out);
    if (!out) return NULL;
    #pragma omp parallel for schedule(static) if (m * k > 65536)
    for (int64_t i = 0; i < m; i++) {
        int64_t first = i - i % ROWS_X, rows = m - first < ROWS_X ? m - first : ROWS_X;
        float *to = out + first * padded + (i - first) * SZ_LANES;
        const char *from = (const char *)x + (size_t)(i * ld) * size;
        for (int64_t p = 0; p < padded; p += BLOCK_K, to += rows * BLOCK_K, from += BLOCK_K * size) {
            char rest[BLOCK_K * sizeof(float)] = { 0 };
            const char *block = from;
            if (p + BLOCK_K > k) block = memcpy(rest, from, (size_t)(k - p) * size);
            sz_vec v[2];
            halves(block, dtype, v);
            sz_vec_store(to, v[0]);
            sz_vec_store(to + rows * SZ_LANES, v[1]);
        }
    }
    return out;
}

/* Lane l of the result is the sum of the lanes of v[l]; v has SZ_LANES vectors and is used up. */
static inline __attribute__((always_inline)) sz_vec lane_sums(sz_vec *v)
{
    sz_ivec even, odd;
    for (int l = 0; l < SZ_LANES; l++) even[l] = 2 * l, odd[l] = 2 * l + 1;
#pragma GCC unroll 4
    for (int n = SZ_LANES / 2; n > 0; n /= 2)
#pragma GCC unroll 8
        for (int i = 0; i < n; i++) v[i] = sz_shuffle(v[2 * i], v[2 * i + 1], even) + sz_shuffle(v[2 * i], v[2 * i + 1], odd);
    return v[0];
}

/* sums [R][M] += R weight rows at w[r] times M rows of x over k columns, k whole blocks; the next weights to come are at w[r] +
 * ahead. M, R and dtype are constants where it is inlined, so that the sums become registers. */
static inline __attribute__((always_inline)) void dots(const int M, const int R, const int dtype, int64_t k, const float *x,
                                                       const char *const *w, ptrdiff_t ahead, bool add, sz_vec *sums)
{
    const int64_t size = dtype == SZ_F32 ? 4 : 2;
    sz_vec s[4 * 4 > 3 * ROWS_X ? 16 : 3 * ROWS_X];
#pragma GCC unroll 24
    for (int i = 0; i < R * M; i++) s[i] = add ? sums[i] : (sz_vec){ 0 };
    for (int64_t p = 0; p < k; p += BLOCK_K) {
        sz_vec a[4][2];
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
            const char *at = w[r] + p * size;
            halves(at, dtype, a[r]);
            for (int64_t line = 0; line < BLOCK_K * size; line += 64) __builtin_prefetch(at + line + ahead);
        }
#pragma GCC unroll 2
        for (int half = 0; half < 2; half++)
#pragma GCC unroll 8
            for (int i = 0; i < M; i++) {
                sz_vec in = sz_vec_load(x + p * M + (half * M + i) * SZ_LANES);
#pragma GCC unroll 4
                for (int r = 0; r < R; r++) s[r * M + i] += a[r][half] * in;
            }
    }
#pragma GCC unroll 24
    for (int i = 0; i < R * M; i++) sums[i] = s[i];
}

/* M rows of x times n rows of w over one panel. Rows past the last are the last again, and their sums are not used. */
static inline __attribute__((always_inline)) void panel(const int M, const int dtype, int64_t n, int64_t k, const float *x,
                                                        const char *w, size_t step, ptrdiff_t next, bool add, sz_vec *sums)
{
    const int R = M <= 4 ? 4 : 3;
    for (int64_t j = 0; j < n; j += R) {
        const char *rows[4];
        for (int r = 0; r < R; r++) rows[r] = w + (size_t)(j + r < n ? j + r : n - 1) * step;
        dots(M, R, dtype, k, x, rows, j + R < n ? (ptrdiff_t)(R * step) : next - (ptrdiff_t)((size_t)j * step), add, sums + j * M);
    }
}

static __attribute__((noinline)) void any_panel(int64_t m, int dtype, int64_t n, int64_t k, const float *x, const char *w, size_t step,
                                                ptrdiff_t next, bool add, sz_vec *sums)
{
#define SZ_PANEL(M, dtype) case M + ROWS_X * (dtype): panel(M, dtype, n, k, x, w, step, next, add, sums); break
#define SZ_PANELS(dtype) SZ_PANEL(1, dtype); SZ_PANEL(2, dtype); SZ_PANEL(3, dtype); SZ_PANEL(4, dtype); \
                         SZ_PANEL(5, dtype); SZ_PANEL(6, dtype); SZ_PANEL(7, dtype); SZ_PANEL(8, dtype)
    switch (m + ROWS_X * dtype) {
        SZ_PANELS(SZ_F32);
        SZ_PANELS(SZ_BF16);
    }
#undef SZ_PANELS
#undef SZ_PANEL
}

/* A block of m <= ROWS_X rows of x times n <= CHUNK_W rows of w. */
static void chunk_times_block(int64_t m, int64_t n, int64_t k, const float *x, const char *w, int64_t ldw, int dtype, float beta, float *y, int64_t ldy)
{
    sz_vec sums[CHUNK_W * ROWS_X + SZ_LANES];
    const int64_t whole = k - k % BLOCK_K, width = PANEL_FLOATS / m / BLOCK_K * BLOCK_K;
    const size_t size = sz_dtype_size(dtype), step = (size_t)ldw * size;
    for (int64_t p = 0; p < whole; p += width) {
        int64_t here = whole - p < width ? whole - p : width;
        ptrdiff_t next = (ptrdiff_t)(p + here < whole ? (size_t)here * size : (size_t)n * step - (size_t)p * size);
        any_panel(m, dtype, n, here, x + p * m, w + (size_t)p * size, step, next, p > 0, sums);
    }
    if (whole < k) {
        char rest[CHUNK_W][BLOCK_K * sizeof(float)] = { 0 };
        for (int64_t j = 0; j < n; j++) memcpy(rest[j], w + (size_t)j * step + (size_t)whole * size, (size_t)(k - whole) * size);
        any_panel(m, dtype, n, BLOCK_K, x + whole * m, rest[0], sizeof rest[0], 0, whole > 0, sums);
    }
    float done[CHUNK_W * ROWS_X + SZ_LANES];
    for (int64_t at = 0; at < n * m; at += SZ_LANES) sz_vec_store(done + at, lane_sums(sums + at));
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) y[i * ldy + j] = done[j * m + i] + (beta != 0 ? y[i * ldy + j] : 0);
}

static int few_rows(int64_t m, int64_t n, int64_t k, const void *x, int64_t ldx, const void *w, int64_t ldw, int dtype, float beta, float *y, int64_t ldy)
{
    const int64_t padded = (k + BLOCK_K - 1) / BLOCK_K * BLOCK_K, chunks = (n + CHUNK_W - 1) / CHUNK_W;
    const float *in = lay_out(x, m, k, ldx, dtype, padded);
    if (!in) return -1;
    #pragma omp parallel for schedule(dynamic, 4) if (n * k > 16384)
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
        int64_t j = chunk * CHUNK_W, rows = n - j < CHUNK_W ? n - j : CHUNK_W;
        for (int64_t i = 0; i < m; i += ROWS_X)
            chunk_times_block(m - i < ROWS_X ? m - i : ROWS_X, rows, k, in + i * padded, (const char *)w + (size_t)(j * ldw) * sz_dtype_size(dtype),
                              ldw, dtype, beta, y + i * ldy + j, ldy);
    }
    return 0;
}

/* ---- the matmul primitive ---- */
typedef struct {
    int64_t m, n, k, lda, ldb, ldc;
    int32_t ta, tb, beta, dtype, bias, gelu;
} shape_key;

enum { TABLE = 512 };
static struct { shape_key key; dnnl_primitive_t primitive; dnnl_memory_t a, b, c, bias; } table[TABLE];
static dnnl_engine_t engine;
static dnnl_stream_t stream;

static int dnnl_check(dnnl_status_t s, const char *what)
{
    return s == dnnl_success ? 0 : sz_fail("oneDNN: %s failed with status %d", what, (int)s);
}

static int primitive(bool ta, bool tb, int64_t m, int64_t n, int64_t k, const void *a, int64_t lda, const void *b, int64_t ldb,
                     int dtype, float beta, const float *bias, bool gelu, float *c, int64_t ldc)
{
    if (!engine && (dnnl_check(dnnl_engine_create(&engine, dnnl_cpu, 0), "engine") || dnnl_check(dnnl_stream_create(&stream, engine, dnnl_stream_default_flags), "stream")))
        return -1;
    shape_key key;
    memset(&key, 0, sizeof key);
    key.m = m, key.n = n, key.k = k, key.lda = lda, key.ldb = ldb, key.ldc = ldc;
    key.ta = ta, key.tb = tb, key.beta = beta != 0, key.dtype = dtype, key.bias = bias != NULL, key.gelu = gelu;
    uint64_t h = 1469598103934665603u;
    for (size_t i = 0; i < sizeof key; i++) h = (h ^ ((const unsigned char *)&key)[i]) * 1099511628211u;
    size_t slot = h % TABLE;
    if (!table[slot].primitive || memcmp(&table[slot].key, &key, sizeof key) != 0) {
        dnnl_memory_desc_t ad, bd, cd, bias_d;
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
            if (table[slot].bias) dnnl_memory_destroy(table[slot].bias);
            memset(&table[slot], 0, sizeof table[slot]);
        }
        dnnl_memory_desc_init_by_strides(&ad, 2, (dnnl_dims_t){ m, k }, dt, (dnnl_dims_t){ ta ? 1 : lda, ta ? lda : 1 });
        dnnl_memory_desc_init_by_strides(&bd, 2, (dnnl_dims_t){ k, n }, dt, (dnnl_dims_t){ tb ? 1 : ldb, tb ? ldb : 1 });
        dnnl_memory_desc_init_by_strides(&cd, 2, (dnnl_dims_t){ m, n }, dnnl_f32, (dnnl_dims_t){ ldc, 1 });
        dnnl_memory_desc_init_by_strides(&bias_d, 2, (dnnl_dims_t){ 1, n }, dnnl_f32, (dnnl_dims_t){ n, 1 });
        dnnl_primitive_attr_create(&attr);
        if (beta != 0 || gelu) {
            dnnl_post_ops_create(&post);
            if (beta != 0) dnnl_post_ops_append_sum(post, 1.0f);
            if (gelu) dnnl_post_ops_append_eltwise(post, 1.0f, dnnl_eltwise_gelu_erf, 0.0f, 0.0f);
            dnnl_primitive_attr_set_post_ops(attr, post);
            dnnl_post_ops_destroy(post);
        }
        int rc = dnnl_check(dnnl_matmul_desc_init(&d, &ad, &bd, bias ? &bias_d : NULL, &cd), "matmul descriptor");
        if (rc == 0) rc = dnnl_check(dnnl_primitive_desc_create(&pd, &d, attr, engine, NULL), "matmul primitive descriptor");
        if (rc == 0) rc = dnnl_check(dnnl_primitive_create(&table[slot].primitive, pd), "matmul primitive");
        if (rc == 0) rc = dnnl_check(dnnl_memory_create(&table[slot].a, &ad, engine, DNNL_MEMORY_NONE), "memory");
        if (rc == 0) rc = dnnl_check(dnnl_memory_create(&table[slot].b, &bd, engine, DNNL_MEMORY_NONE), "memory");
        if (rc == 0) rc = dnnl_check(dnnl_memory_create(&table[slot].c, &cd, engine, DNNL_MEMORY_NONE), "memory");
        if (rc == 0 && bias) rc = dnnl_check(dnnl_memory_create(&table[slot].bias, &bias_d, engine, DNNL_MEMORY_NONE), "memory");
        if (pd) dnnl_primitive_desc_destroy(pd);
        dnnl_primitive_attr_destroy(attr);
        if (rc != 0) return rc;
        table[slot].key = key;
    }
    dnnl_memory_set_data_handle(table[slot].a, (void *)(uintptr_t)a);
    dnnl_memory_set_data_handle(table[slot].b, (void *)(uintptr_t)b);
    dnnl_memory_set_data_handle(table[slot].c, c);
    if (bias) dnnl_memory_set_data_handle(table[slot].bias, (void *)(uintptr_t)bias);
    dnnl_exec_arg_t args[4] = { { DNNL_ARG_SRC, table[slot].a }, { DNNL_ARG_WEIGHTS, table[slot].b }, { DNNL_ARG_DST, table[slot].c },
                                { DNNL_ARG_BIAS, table[slot].bias } };
    return dnnl_check(dnnl_primitive_execute(table[slot].primitive, stream, bias ? 4 : 3, args), "matmul");
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

static int64_t few(int dtype) { return dtype == SZ_BF16 && !native_bf16() ? FEW_BF16 : FEW; }

/* Columns of a wide B that are widened at one time: 64 MB of it. The table of a vocabulary would be over a GB. */
static int64_t slab_columns(int64_t n, int64_t k)
{
    const int64_t columns = ((16 << 20) / k + 15) / 16 * 16;
    return columns < n ? columns : n;
}

/* sz_gemm where bf16 is widened first. */
static int widened(bool ta, bool tb, int64_t m, int64_t n, int64_t k, const uint16_t *a, int64_t lda, const uint16_t *b, int64_t ldb,
                   float beta, float *c, int64_t ldc)
{
    const int64_t acols = ta ? m : k, slab = slab_columns(n, k);
    const float *wa = widen(a, ta ? k : m, acols, lda);
    float *wb = wa ? sz_scratch((size_t)(slab * k) * sizeof *wb) : NULL;
    if (!wb) return -1;
    for (int64_t j = 0; j < n; j += slab) {
        int64_t width = n - j < slab ? n - j : slab;
        widen_to(wb, b + (tb ? j * ldb : j), tb ? width : k, tb ? k : width, ldb);
        if (sz_gemm(ta, tb, m, width, k, wa, acols, wb, tb ? k : width, SZ_F32, beta, c + j, ldc)) return -1;
    }
    return 0;
}

int64_t sz_gemm_workspace(int64_t m, int64_t n, int64_t k, int dtype)
{
    if (m <= few(dtype)) return 4 * m * ((k + BLOCK_K - 1) / BLOCK_K * BLOCK_K);
    if (dtype == SZ_F32 || native_bf16()) return 0;
    return 4 * k * (m + slab_columns(n, k));
}

int sz_gemm(bool ta, bool tb, int64_t m, int64_t n, int64_t k, const void *a, int64_t lda, const void *b, int64_t ldb,
            int dtype, float beta, float *c, int64_t ldc)
{
    if (m == 0 || n == 0) return 0;
    if (k == 0) {
        for (int64_t i = 0; i < m && beta == 0; i++) memset(c + i * ldc, 0, (size_t)n * sizeof *c);
        return 0;
    }
    const bool laid_out = !ta && tb && m <= few(dtype);
    if (laid_out || (dtype == SZ_BF16 && !native_bf16())) {
        const sz_scratch_state before = sz_scratch_save();      /* a kernel may come here for each of many chunks */
        int rc = laid_out ? few_rows(m, n, k, a, lda, b, ldb, dtype, beta, c, ldc)
                          : widened(ta, tb, m, n, k, a, lda, b, ldb, beta, c, ldc);
        sz_scratch_restore(before);
        return rc;
    }
    if (dtype == SZ_BF16 || (!ta && tb)) return primitive(ta, tb, m, n, k, a, lda, b, ldb, dtype, beta, NULL, false, c, ldc);
    return dnnl_check(dnnl_sgemm(ta ? 'T' : 'N', tb ? 'T' : 'N', m, n, k, 1.0f, a, lda, b, ldb, beta, c, ldc), "sgemm");
}

int sz_gemm_linear(int64_t n, int64_t m, int64_t k, const void *x, const void *w, int dtype, const float *bias, bool gelu, float *y, int64_t ldy)
{
    bool wide = dtype == SZ_BF16 && !native_bf16();
    if (bias && n > few(dtype) && m > 0 && k > 0) {
        const sz_scratch_state before = sz_scratch_save();
        if (wide) {
            x = widen(x, n, k, k);
            w = x ? widen(w, m, k, k) : NULL;
            if (!w) return -1;
        }
        int rc = primitive(false, true, n, m, k, x, k, w, k, wide ? SZ_F32 : dtype, 0, bias, gelu, y, ldy);
        sz_scratch_restore(before);
        return rc == 0 ? gelu : -1;
    }
    for (int64_t r = 0; bias && r < n; r++) memcpy(y + r * ldy, bias, (size_t)m * sizeof *bias);
    return sz_gemm(false, true, n, m, k, x, k, w, k, dtype, bias ? 1 : 0, y, ldy);
}
