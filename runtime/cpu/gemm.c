/* gemm.c - matrix products through oneDNN; products with few rows go to gemm_skinny.c.
 *
 * Measured on two cores of a Cascade Lake Xeon, f32: for A B^T the matmul primitive beats
 * dnnl_sgemm (173 against 142 GFLOP/s at 711x384x128); for A B and A^T B dnnl_sgemm is as good or
 * better. bf16 without AVX512-BF16 or AMX runs at 50 GFLOP/s in oneDNN; converting the operands to
 * f32 first gives 150, so that is done there. With AMX products of bf16 go to gemm_amx.c. Our own
 * kernel is faster up to 16 rows, and up to 96 rows of bf16 that oneDNN would need converted. On
 * Zen 4, where it need not, ours is faster up to 48 rows and 6 % slower at 96 (docs/speed.md).
 * Primitives are kept in a small table by shape: oneDNN's own cache costs 8 us a hit.
 * Leaves out: outputs other than f32.
 */
#include "gemm.h"
#include "core/processor.h"
#include <dnnl.h>
#include <dnnl_version.h>
#include <sys/mman.h>

enum { SKINNY_ROWS = 16, SKINNY_ROWS_BF16 = 96 };

#ifdef SZ_AMX
enum { HAS_AMX = 1 };
#else
enum { HAS_AMX = 0 };
#endif

/* With AMX in gemm_amx.c, else in oneDNN, gemm_skinny.c and attention_pairs.h. Intel's AVX512-BF16
 * without AMX is slower than f32, 105 against 159 GFLOP/s on Granite Rapids; on AMD's Zen 4 and 5
 * it is twice as fast. A set of instructions has the bits of those that it contains. */
bool sz_gemm_multiplies_bf16(void)
{
    if (HAS_AMX) return true;
    static _Atomic int known = -1;
    if (known < 0) {
        const unsigned needed = dnnl_cpu_isa_avx512_core_bf16;
        known = (dnnl_get_effective_cpu_isa() & needed) == needed && !sz_processor_is_intel();
    }
    return known;
}

/* Whether an A B^T with m rows goes to gemm_skinny.c. */
static bool is_skinny(int64_t m, int dtype)
{
    if (HAS_AMX && dtype == SZ_BF16) return false;
    return m <= (dtype == SZ_BF16 ? SKINNY_ROWS_BF16 : SKINNY_ROWS);
}

/* ---- the matmul primitive ---- */

/* C [m, n] f32 = A B + beta C, or A B + bias, then GELU if gelu. */
typedef struct {
    bool ta, tb;
    int64_t m, n, k;
    const void *a, *b;
    int64_t lda, ldb;
    int dtype;         /* of A and B */
    float beta;        /* 0 or 1 */
    const float *bias; /* [n] or NULL */
    bool gelu;
    float *c;
    int64_t ldc;
} product;

/* What a primitive is made for; compared as bytes. */
typedef struct {
    int64_t m, n, k, lda, ldb, ldc;
    int32_t ta, tb, beta, dtype, bias, gelu;
} shape_key;

typedef struct {
    shape_key key;
    dnnl_primitive_t primitive; /* NULL: the slot is free */
    dnnl_memory_t a, b, c, bias;
} table_slot;

enum { TABLE_SLOTS = 512 };
static table_slot table[TABLE_SLOTS];
static dnnl_engine_t engine;
static dnnl_stream_t stream;

static int dnnl_check(dnnl_status_t s, const char *what)
{
    if (s == dnnl_success) return 0;
    if (s == dnnl_out_of_memory) return sz_fail("out of memory: a matrix product (%s)", what);
    return sz_fail("oneDNN: %s failed with status %d", what, (int)s);
}

/* oneDNN 2.6 compiles kernels when it makes a primitive and when a kind of product runs first, and
 * crashes if it gets no memory for the code. So room for them is tried before. Of 93 runs of a
 * small recipe under limits of 170 to 262 MB (ulimit -v), 7 crashed with 1 MB tried, 2 with 4 MB,
 * none with 8 MB. 0, or -1 with a message. */
static int check_room(void)
{
    const size_t room = (size_t)16 << 20;
    void *p = mmap(NULL, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                   -1, 0);
    if (p == MAP_FAILED)
        return sz_fail("out of memory: room for oneDNN's kernels (%zu bytes)", room);
    munmap(p, room);
    return 0;
}

static int engine_open(void)
{
    if (engine) return 0;
    if (dnnl_check(dnnl_engine_create(&engine, dnnl_cpu, 0), "engine")) return -1;
    return dnnl_check(dnnl_stream_create(&stream, engine, dnnl_stream_default_flags), "stream");
}

static shape_key key_of(const product *p)
{
    shape_key key;
    memset(&key, 0, sizeof key);
    key.m = p->m;
    key.n = p->n;
    key.k = p->k;
    key.lda = p->lda;
    key.ldb = p->ldb;
    key.ldc = p->ldc;
    key.ta = p->ta;
    key.tb = p->tb;
    key.beta = p->beta != 0;
    key.dtype = p->dtype;
    key.bias = p->bias != NULL;
    key.gelu = p->gelu;
    return key;
}

/* FNV-1a. */
static uint64_t hash_of(const shape_key *key)
{
    const unsigned char *bytes = (const unsigned char *)key;
    uint64_t h = 1469598103934665603u;
    for (size_t i = 0; i < sizeof *key; i++) h = (h ^ bytes[i]) * 1099511628211u;
    return h;
}

static void slot_clear(table_slot *slot)
{
    if (!slot->primitive) return;
    dnnl_primitive_destroy(slot->primitive);
    dnnl_memory_destroy(slot->a);
    dnnl_memory_destroy(slot->b);
    dnnl_memory_destroy(slot->c);
    if (slot->bias) dnnl_memory_destroy(slot->bias);
    memset(slot, 0, sizeof *slot);
}

/* ---- oneDNN 2 and 3: descriptors are structs, or pointers to what the library keeps ---- */
typedef dnnl_memory_desc_t matrix_desc;

#if DNNL_VERSION_MAJOR >= 3
static dnnl_status_t desc_create(matrix_desc *desc, const dnnl_dims_t dims, dnnl_data_type_t dtype,
                                 const dnnl_dims_t strides)
{
    return dnnl_memory_desc_create_with_strides(desc, 2, dims, dtype, strides);
}

static void desc_free(matrix_desc desc)
{
    if (desc) dnnl_memory_desc_destroy(desc);
}

static dnnl_status_t memory_of(dnnl_memory_t *memory, const matrix_desc *desc)
{
    return dnnl_memory_create(memory, *desc, engine, DNNL_MEMORY_NONE);
}

static void append_sum(dnnl_post_ops_t post)
{
    dnnl_post_ops_append_sum(post, 1.0f, 0, dnnl_data_type_undef);
}

static void append_gelu(dnnl_post_ops_t post)
{
    dnnl_post_ops_append_eltwise(post, dnnl_eltwise_gelu_erf, 0.0f, 0.0f);
}

/* bias: NULL if there is none. */
static dnnl_status_t matmul_create(dnnl_primitive_desc_t *desc, const matrix_desc *a,
                                   const matrix_desc *b, const matrix_desc *bias,
                                   const matrix_desc *c, dnnl_primitive_attr_t attr)
{
    return dnnl_matmul_primitive_desc_create(desc, engine, *a, *b, bias ? *bias : NULL, *c, attr);
}
#else
static dnnl_status_t desc_create(matrix_desc *desc, const dnnl_dims_t dims, dnnl_data_type_t dtype,
                                 const dnnl_dims_t strides)
{
    return dnnl_memory_desc_init_by_strides(desc, 2, dims, dtype, strides);
}

static void desc_free(matrix_desc desc) { (void)desc; }

static dnnl_status_t memory_of(dnnl_memory_t *memory, const matrix_desc *desc)
{
    return dnnl_memory_create(memory, desc, engine, DNNL_MEMORY_NONE);
}

static void append_sum(dnnl_post_ops_t post) { dnnl_post_ops_append_sum(post, 1.0f); }

static void append_gelu(dnnl_post_ops_t post)
{
    dnnl_post_ops_append_eltwise(post, 1.0f, dnnl_eltwise_gelu_erf, 0.0f, 0.0f);
}

static dnnl_status_t matmul_create(dnnl_primitive_desc_t *desc, const matrix_desc *a,
                                   const matrix_desc *b, const matrix_desc *bias,
                                   const matrix_desc *c, dnnl_primitive_attr_t attr)
{
    dnnl_matmul_desc_t matmul;
    dnnl_status_t status = dnnl_matmul_desc_init(&matmul, a, b, bias, c);
    if (status != dnnl_success) return status;
    return dnnl_primitive_desc_create(desc, &matmul, attr, engine, NULL);
}
#endif

/* A row-major matrix [rows, cols], or its transpose if `transposed`. */
static int matrix(matrix_desc *desc, int64_t rows, int64_t cols, dnnl_data_type_t dtype,
                  bool transposed, int64_t ld)
{
    int64_t row_stride = transposed ? 1 : ld;
    int64_t col_stride = transposed ? ld : 1;
    return dnnl_check(desc_create(desc, (dnnl_dims_t){ rows, cols }, dtype,
                                  (dnnl_dims_t){ row_stride, col_stride }),
                      "matrix descriptor");
}

/* What happens to the product before it is stored: + C, GELU. */
static dnnl_primitive_attr_t attributes(const product *p)
{
    dnnl_primitive_attr_t attr = NULL;
    dnnl_post_ops_t post = NULL;
    dnnl_primitive_attr_create(&attr);
    if (p->beta == 0 && !p->gelu) return attr;
    dnnl_post_ops_create(&post);
    if (p->beta != 0) append_sum(post);
    if (p->gelu) append_gelu(post);
    dnnl_primitive_attr_set_post_ops(attr, post);
    dnnl_post_ops_destroy(post);
    return attr;
}

static int memory_create(dnnl_memory_t *memory, const matrix_desc *desc)
{
    return dnnl_check(memory_of(memory, desc), "memory");
}

/* Makes the primitive of a free slot and its memory objects, without key. */
static int slot_fill(table_slot *slot, const product *p)
{
    dnnl_data_type_t dtype = p->dtype == SZ_F32 ? dnnl_f32 : dnnl_bf16;
    matrix_desc a = { 0 };
    matrix_desc b = { 0 };
    matrix_desc c = { 0 };
    matrix_desc bias = { 0 };
    dnnl_primitive_desc_t desc = NULL;
    dnnl_primitive_attr_t attr = attributes(p);

    /* The primitive. */
    int rc = matrix(&a, p->m, p->k, dtype, p->ta, p->lda);
    if (rc == 0) rc = matrix(&b, p->k, p->n, dtype, p->tb, p->ldb);
    if (rc == 0) rc = matrix(&c, p->m, p->n, dnnl_f32, false, p->ldc);
    if (rc == 0) rc = matrix(&bias, 1, p->n, dnnl_f32, false, p->n);
    if (rc == 0)
        rc = dnnl_check(matmul_create(&desc, &a, &b, p->bias ? &bias : NULL, &c, attr),
                        "matmul primitive descriptor");
    if (rc == 0) rc = dnnl_check(dnnl_primitive_create(&slot->primitive, desc), "matmul primitive");

    /* Memory objects, whose addresses are set for each call. */
    if (rc == 0) rc = memory_create(&slot->a, &a);
    if (rc == 0) rc = memory_create(&slot->b, &b);
    if (rc == 0) rc = memory_create(&slot->c, &c);
    if (rc == 0 && p->bias) rc = memory_create(&slot->bias, &bias);

    if (desc) dnnl_primitive_desc_destroy(desc);
    dnnl_primitive_attr_destroy(attr);
    desc_free(a);
    desc_free(b);
    desc_free(c);
    desc_free(bias);
    return rc;
}

/* Runs the product with a primitive from the table, which is made if it is not there. */
static int run_primitive(const product *p)
{
    if (engine_open()) return -1;

    /* The table keeps one shape a slot: another shape with the same hash takes its place. */
    shape_key key = key_of(p);
    table_slot *slot = &table[hash_of(&key) % TABLE_SLOTS];
    if (!slot->primitive || memcmp(&slot->key, &key, sizeof key) != 0) {
        slot_clear(slot);
        int rc = check_room();
        if (rc == 0) rc = slot_fill(slot, p);
        if (rc != 0) return rc;
        slot->key = key;
    }

    dnnl_memory_set_data_handle(slot->a, (void *)(uintptr_t)p->a);
    dnnl_memory_set_data_handle(slot->b, (void *)(uintptr_t)p->b);
    dnnl_memory_set_data_handle(slot->c, p->c);
    if (p->bias) dnnl_memory_set_data_handle(slot->bias, (void *)(uintptr_t)p->bias);
    dnnl_exec_arg_t args[4] = {
        { DNNL_ARG_SRC, slot->a },
        { DNNL_ARG_WEIGHTS, slot->b },
        { DNNL_ARG_DST, slot->c },
        { DNNL_ARG_BIAS, slot->bias },
    };
    int count = p->bias ? 4 : 3;
    return dnnl_check(dnnl_primitive_execute(slot->primitive, stream, count, args), "matmul");
}

/* ---- bf16 operands converted to f32 ---- */

/* bf16 rows as contiguous f32 in dst; returns dst. */
static float *convert_rows(float *dst, const uint16_t *src, int64_t rows, int64_t cols, int64_t ld)
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

/* The same in workspace; NULL if memory is out. */
static float *converted(const uint16_t *src, int64_t rows, int64_t cols, int64_t ld)
{
    return convert_rows(sz_scratch((size_t)(rows * cols) * sizeof(float)), src, rows, cols, ld);
}

/* Columns of B that are converted at one time: 64 MB. All of a vocabulary would be over a GB. */
static int64_t slab_columns(int64_t n, int64_t k)
{
    const int64_t columns = ((16 << 20) / k + 15) / 16 * 16;
    return columns < n ? columns : n;
}

/* sz_gemm for bf16 on f32 hardware. */
static int gemm_converted(bool ta, bool tb, int64_t m, int64_t n, int64_t k, const uint16_t *a,
                          int64_t lda, const uint16_t *b, int64_t ldb, float beta, float *c,
                          int64_t ldc)
{
    const int64_t a_cols = ta ? m : k;
    const int64_t slab = slab_columns(n, k);
    const float *a_f32 = converted(a, ta ? k : m, a_cols, lda);
    float *b_f32 = a_f32 ? sz_scratch((size_t)(slab * k) * sizeof *b_f32) : NULL;
    if (!b_f32) return -1;

    for (int64_t j = 0; j < n; j += slab) {
        /* A slab of B is [k, width], or [width, k] if tb. */
        int64_t width = n - j < slab ? n - j : slab;
        int64_t rows = tb ? width : k;
        int64_t cols = tb ? k : width;
        convert_rows(b_f32, b + (tb ? j * ldb : j), rows, cols, ldb);
        if (sz_gemm(ta, tb, m, width, k, a_f32, a_cols, b_f32, cols, SZ_F32, beta, c + j, ldc))
            return -1;
    }
    return 0;
}

/* ---- the products ---- */

/* check_room() before the first product of a kind: oneDNN has kernels for each. */
static int check_first_sgemm(bool ta, bool tb, int64_t m, int64_t n, float beta)
{
    static uint32_t seen;
    uint32_t kind = 1u << (ta | tb << 1 | (beta != 0) << 2 | (m == 1) << 3 | (n == 1) << 4);
    if (seen & kind) return 0;
    if (check_room()) return -1;
    seen |= kind;
    return 0;
}

int64_t sz_gemm_workspace(bool ta, bool tb, int64_t m, int64_t n, int64_t k, int dtype)
{
    if (!ta && tb && is_skinny(m, dtype)) return sz_gemm_skinny_workspace(m, k, dtype);
#ifdef SZ_AMX
    if (dtype == SZ_BF16) return sz_gemm_amx_workspace(ta, tb, m, n, k);
#endif
    const bool is_gradient = ta && !tb && sz_gemm_gradient_fits(m, n, k);
    const int64_t panels = is_gradient ? sz_gemm_gradient_workspace(m) : 0;
    if (dtype == SZ_F32) return panels;
    if (sz_gemm_multiplies_bf16()) return 0;
    return panels + 4 * k * (m + slab_columns(n, k));
}

int sz_gemm(bool ta, bool tb, int64_t m, int64_t n, int64_t k, const void *a, int64_t lda,
            const void *b, int64_t ldb, int dtype, float beta, float *c, int64_t ldc)
{
    /* Empty products. */
    if (m == 0 || n == 0) return 0;
    if (k == 0) {
        for (int64_t i = 0; i < m && beta == 0; i++) memset(c + i * ldc, 0, (size_t)n * sizeof *c);
        return 0;
    }

    /* Ours, or oneDNN on converted operands. A kernel may call this for each of many chunks, so the
     * workspace is released here. */
    const bool skinny = !ta && tb && is_skinny(m, dtype);
    if (skinny || (dtype == SZ_BF16 && !sz_gemm_multiplies_bf16())) {
        const sz_scratch_state before = sz_scratch_save();
        int rc;
        if (skinny) rc = sz_gemm_skinny(m, n, k, a, lda, b, ldb, dtype, beta, c, ldc);
        else rc = gemm_converted(ta, tb, m, n, k, a, lda, b, ldb, beta, c, ldc);
        sz_scratch_restore(before);
        return rc;
    }

#ifdef SZ_AMX
    if (dtype == SZ_BF16) {
        const sz_scratch_state before = sz_scratch_save();
        const int rc = sz_gemm_amx(ta, tb, m, n, k, a, lda, b, ldb, beta, NULL, c, ldc, SZ_F32);
        sz_scratch_restore(before);
        return rc;
    }
#endif

    /* oneDNN: whichever of its two functions is faster. */
    if (dtype == SZ_BF16 || (!ta && tb))
        return run_primitive(&(product){ .ta = ta,
                                         .tb = tb,
                                         .m = m,
                                         .n = n,
                                         .k = k,
                                         .a = a,
                                         .lda = lda,
                                         .b = b,
                                         .ldb = ldb,
                                         .dtype = dtype,
                                         .beta = beta,
                                         .c = c,
                                         .ldc = ldc });
    if (ta && !tb && beta != 0 && sz_gemm_gradient_fits(m, n, k)) {
        const sz_scratch_state before = sz_scratch_save();
        const int rc = sz_gemm_gradient(m, n, k, a, lda, b, ldb, c, ldc);
        sz_scratch_restore(before);
        return rc;
    }
    if (check_first_sgemm(ta, tb, m, n, beta)) return -1;
    char a_mode = ta ? 'T' : 'N';
    char b_mode = tb ? 'T' : 'N';
    dnnl_status_t status = dnnl_sgemm(a_mode, b_mode, m, n, k, 1.0f, a, lda, b, ldb, beta, c, ldc);
    return dnnl_check(status, "sgemm");
}

int sz_gemm_linear(int64_t n, int64_t m, int64_t k, const void *x, const void *w, int dtype,
                   const float *bias, bool gelu, float *y, int64_t ldy)
{
#ifdef SZ_AMX
    if (dtype == SZ_BF16 && !is_skinny(n, dtype) && m > 0 && k > 0) {
        const sz_scratch_state before = sz_scratch_save();
        const int rc = sz_gemm_amx(false, true, n, m, k, x, k, w, k, 0, bias, y, ldy, SZ_F32);
        sz_scratch_restore(before);
        return rc;
    }
#endif

    /* The primitive adds the bias and applies GELU while it stores. */
    bool convert = dtype == SZ_BF16 && !sz_gemm_multiplies_bf16();
    if (bias && !is_skinny(n, dtype) && m > 0 && k > 0) {
        const sz_scratch_state before = sz_scratch_save();
        if (convert) {
            x = converted(x, n, k, k);
            w = x ? converted(w, m, k, k) : NULL;
            if (!w) return -1;
            dtype = SZ_F32;
        }
        int rc = run_primitive(&(product){ .tb = true,
                                           .m = n,
                                           .n = m,
                                           .k = k,
                                           .a = x,
                                           .lda = k,
                                           .b = w,
                                           .ldb = k,
                                           .dtype = dtype,
                                           .bias = bias,
                                           .gelu = gelu,
                                           .c = y,
                                           .ldc = ldy });
        sz_scratch_restore(before);
        return rc == 0 ? gelu : -1;
    }

    /* Otherwise the product is added to rows that hold the bias. */
    for (int64_t r = 0; bias && r < n; r++) memcpy(y + r * ldy, bias, (size_t)m * sizeof *bias);
    return sz_gemm(false, true, n, m, k, x, k, w, k, dtype, bias ? 1 : 0, y, ldy);
}

bool sz_gemm_stores_bf16(int64_t n, int64_t k)
{
#ifdef SZ_AMX
    return !is_skinny(n, SZ_BF16) && k > 0 && sz_gemm_amx_rounds(k);
#else
    (void)n;
    (void)k;
    return false;
#endif
}

int sz_gemm_linear_bf16(int64_t n, int64_t m, int64_t k, const void *x, const void *w,
                        const float *bias, uint16_t *y, int64_t ldy)
{
#ifdef SZ_AMX
    const sz_scratch_state before = sz_scratch_save();
    const int rc = sz_gemm_amx(false, true, n, m, k, x, k, w, k, 0, bias, y, ldy, SZ_BF16);
    sz_scratch_restore(before);
    return rc;
#else
    (void)n, (void)m, (void)k, (void)x, (void)w, (void)bias, (void)y, (void)ldy;
    return sz_fail("products of bf16 are stored as f32 here");
#endif
}
