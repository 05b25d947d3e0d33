/* gemm_skinny.c - y[i, j] = x[i] . w[j] for few rows of x, as in decoding: one pass over w from
 * memory.
 *
 * A chunk of CHUNK_W weight rows meets a block of up to ROWS_X rows of x, panel by panel of
 * columns, so that the panel of x stays in the first-level cache; further blocks of x find the
 * chunk in the second. The products of R weight rows and M rows of x are vectors of sums in
 * registers, which are kept in memory between panels. Lane l sums its own columns, and the lanes
 * are added only at the end. The order of a sum depends on k alone, so an answer's numbers do not
 * depend on how many answers decode with it.
 *
 * A vector of 32-bit words holds two bf16 weights in each lane: a shift gives the even columns, a
 * mask the odd ones. x is packed for that: f32, the even columns of each BLOCK_K first (in order
 * for f32 weights), zeros up to whole blocks.
 * Leaves out: other products than x w^T. Measurements: docs/speed.md.
 */
#include "gemm.h"
#include "gemm_tile.h"

enum { CHUNK_W = 24, ROWS_X = 8, BLOCK_K = 2 * SZ_LANES, PANEL_FLOATS = 4096 };

typedef uint32_t word_vec __attribute__((vector_size(4 * SZ_LANES)));
typedef uint32_t word_vec_any __attribute__((vector_size(4 * SZ_LANES), aligned(2), may_alias));

/* BLOCK_K elements as two vectors: f32 in order; of bf16, the even and the odd ones. */
static inline __attribute__((always_inline)) void load_block(const char *src, const int dtype,
                                                             sz_vec v[2])
{
    if (dtype == SZ_F32) {
        v[0] = sz_vec_load((const float *)src);
        v[1] = sz_vec_load((const float *)src + SZ_LANES);
    } else {
        word_vec both = *(const word_vec_any *)src;
        v[0] = (sz_vec)(both << 16);
        v[1] = (sz_vec)(both & 0xffff0000u);
    }
}

/* Packs x into blocks of ROWS_X rows (the last may have fewer), each [k /
 * BLOCK_K][2][rows][SZ_LANES], which are read front to back. Rows k apart would compete for the
 * same sets of the cache if k is a power of two. padded: k rounded up to whole blocks. */
static float *pack_x(const void *x, int64_t m, int64_t k, int64_t ld, int dtype, int64_t padded)
{
    const size_t size = sz_dtype_size(dtype);
    float *packed = sz_scratch((size_t)(m * padded) * sizeof *packed);
    if (!packed) return NULL;

#pragma omp parallel for schedule(static) if (m * k > 65536)
    for (int64_t i = 0; i < m; i++) {
        int64_t first = i - i % ROWS_X;
        int64_t rows = m - first < ROWS_X ? m - first : ROWS_X;
        float *dst = packed + first * padded + (i - first) * SZ_LANES;
        const char *src = (const char *)x + (size_t)(i * ld) * size;
        for (int64_t p = 0; p < padded;
             p += BLOCK_K, dst += rows * BLOCK_K, src += BLOCK_K * size) {
            /* The last block may be partial: read it from a copy that ends in zeros. */
            char tail[BLOCK_K * sizeof(float)] = { 0 };
            const char *block = src;
            if (p + BLOCK_K > k) block = memcpy(tail, src, (size_t)(k - p) * size);
            sz_vec v[2];
            load_block(block, dtype, v);
            sz_vec_store(dst, v[0]);
            sz_vec_store(dst + rows * SZ_LANES, v[1]);
        }
    }
    return packed;
}

/* Lane l of the result is the sum of the lanes of v[l]. v has SZ_LANES vectors and is overwritten.
 */
static inline __attribute__((always_inline)) sz_vec lane_sums(sz_vec *v)
{
    sz_ivec even, odd;
    for (int l = 0; l < SZ_LANES; l++) {
        even[l] = 2 * l;
        odd[l] = 2 * l + 1;
    }
#pragma GCC unroll 4
    for (int n = SZ_LANES / 2; n > 0; n /= 2)
#pragma GCC unroll 8
        for (int i = 0; i < n; i++)
            v[i] = sz_shuffle(v[2 * i], v[2 * i + 1], even) +
                   sz_shuffle(v[2 * i], v[2 * i + 1], odd);
    return v[0];
}

/* sums [R][M] += R weight rows at w[r] times M rows of x over k columns, which are whole blocks.
 * The weights that are needed next are at w[r] + prefetch. M, R and dtype are constants where it is
 * inlined, so that the sums become registers. */
static inline __attribute__((always_inline)) void dots(const int M, const int R, const int dtype,
                                                       int64_t k, const float *x,
                                                       const char *const *w, ptrdiff_t prefetch,
                                                       bool add, sz_vec *sums)
{
    const int64_t size = dtype == SZ_F32 ? 4 : 2;
    sz_vec s[4 * 4 > 3 * ROWS_X ? 16 : 3 * ROWS_X];
#pragma GCC unroll 24
    for (int i = 0; i < R * M; i++) s[i] = add ? sums[i] : (sz_vec){ 0 };

    for (int64_t p = 0; p < k; p += BLOCK_K) {
        /* One block of each weight row. */
        sz_vec a[4][2];
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
            const char *block = w[r] + p * size;
            load_block(block, dtype, a[r]);
            for (int64_t line = 0; line < BLOCK_K * size; line += 64)
                __builtin_prefetch(block + line + prefetch);
        }

        /* Times the same block of each row of x. */
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

/* M rows of x times n rows of w over one panel. row_bytes is from one row of w to the next, next
 * from this panel of w to the one that follows. Rows from n on repeat the last one, and their sums
 * are not used. */
static inline __attribute__((always_inline)) void panel(const int M, const int dtype, int64_t n,
                                                        int64_t k, const float *x, const char *w,
                                                        size_t row_bytes, ptrdiff_t next, bool add,
                                                        sz_vec *sums)
{
    const int R = M <= 4 ? 4 : 3;
    for (int64_t j = 0; j < n; j += R) {
        const char *rows[4];
        for (int r = 0; r < R; r++) rows[r] = w + (size_t)(j + r < n ? j + r : n - 1) * row_bytes;
        ptrdiff_t to_next = next - (ptrdiff_t)((size_t)j * row_bytes);
        ptrdiff_t prefetch = j + R < n ? (ptrdiff_t)(R * row_bytes) : to_next;
        dots(M, R, dtype, k, x, rows, prefetch, add, sums + j * M);
    }
}

/* panel for any m <= ROWS_X. */
static __attribute__((noinline)) void any_panel(int64_t m, int dtype, int64_t n, int64_t k,
                                                const float *x, const char *w, size_t row_bytes,
                                                ptrdiff_t next, bool add, sz_vec *sums)
{
#define CASE(M, dtype) \
    case M + ROWS_X *(dtype): \
        panel(M, dtype, n, k, x, w, row_bytes, next, add, sums); \
        break
#define CASES(dtype) \
    CASE(1, dtype); \
    CASE(2, dtype); \
    CASE(3, dtype); \
    CASE(4, dtype); \
    CASE(5, dtype); \
    CASE(6, dtype); \
    CASE(7, dtype); \
    CASE(8, dtype)
    switch (m + ROWS_X * dtype) {
        CASES(SZ_F32);
        CASES(SZ_BF16);
    }
#undef CASES
#undef CASE
}

/* A block of m <= ROWS_X rows of x times n <= CHUNK_W rows of w. */
static void chunk_times_block(int64_t m, int64_t n, int64_t k, const float *x, const char *w,
                              int64_t ldw, int dtype, float beta, float *y, int64_t ldy)
{
    sz_vec sums[CHUNK_W * ROWS_X + SZ_LANES];
    const int64_t whole = k - k % BLOCK_K;
    const int64_t width = PANEL_FLOATS / m / BLOCK_K * BLOCK_K;
    const size_t size = sz_dtype_size(dtype);
    const size_t row_bytes = (size_t)ldw * size;

    /* The panels of whole blocks. After the last one comes the next chunk. */
    for (int64_t p = 0; p < whole; p += width) {
        int64_t cols = whole - p < width ? whole - p : width;
        size_t to_chunk = (size_t)n * row_bytes - (size_t)p * size;
        size_t next = p + cols < whole ? (size_t)cols * size : to_chunk;
        any_panel(m, dtype, n, cols, x + p * m, w + (size_t)p * size, row_bytes, (ptrdiff_t)next,
                  p > 0, sums);
    }

    /* The partial block at the end, from a copy that ends in zeros. */
    if (whole < k) {
        char tail[CHUNK_W][BLOCK_K * sizeof(float)] = { 0 };
        for (int64_t j = 0; j < n; j++)
            memcpy(tail[j], w + (size_t)j * row_bytes + (size_t)whole * size,
                   (size_t)(k - whole) * size);
        any_panel(m, dtype, n, BLOCK_K, x + whole * m, tail[0], sizeof tail[0], 0, whole > 0, sums);
    }

    /* Add the lanes, and store. */
    float results[CHUNK_W * ROWS_X + SZ_LANES];
    for (int64_t i = 0; i < n * m; i += SZ_LANES) sz_vec_store(results + i, lane_sums(sums + i));
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++)
            y[i * ldy + j] = results[j * m + i] + (beta != 0 ? y[i * ldy + j] : 0);
}

static int64_t padded_columns(int64_t k) { return (k + BLOCK_K - 1) / BLOCK_K * BLOCK_K; }

int64_t sz_gemm_skinny_workspace(int64_t m, int64_t k) { return 4 * m * padded_columns(k); }

int sz_gemm_skinny(int64_t m, int64_t n, int64_t k, const void *x, int64_t ldx, const void *w,
                   int64_t ldw, int dtype, float beta, float *y, int64_t ldy)
{
    const int64_t padded = padded_columns(k);
    const int64_t chunks = (n + CHUNK_W - 1) / CHUNK_W;
    const float *packed = pack_x(x, m, k, ldx, dtype, padded);
    if (!packed) return -1;

#pragma omp parallel for schedule(dynamic, 4) if (n * k > 16384)
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
        int64_t j = chunk * CHUNK_W;
        int64_t rows = n - j < CHUNK_W ? n - j : CHUNK_W;
        const char *w_rows = (const char *)w + (size_t)(j * ldw) * sz_dtype_size(dtype);
        for (int64_t i = 0; i < m; i += ROWS_X)
            chunk_times_block(m - i < ROWS_X ? m - i : ROWS_X, rows, k, packed + i * padded, w_rows,
                              ldw, dtype, beta, y + i * ldy + j, ldy);
    }
    return 0;
}
