/* gemm_gradient.c - C [m, n] += A^T B, where the sum runs over many rows of A [k, m] and B [k, n]:
 * the gradient of a weight whose layer widens.
 *
 * oneDNN's kernel computes tall results slowly: 96 columns and 384 rows at two thirds of the rate
 * of 384 columns and 96 rows. Here blocks of ROWS x COLUMNS results are summed over DEPTH rows at a
 * time. The parts of A and B that meet are copied into panels, as wide as a tile of registers,
 * while the rows that come next are fetched. Threads own rows of C, so which thread computes an
 * element does not change it.
 * Leaves out: bf16, and n that is no multiple of SZ_LANES. Measurements: docs/speed.md.
 */
#include "attention_product.h"
#include "gemm.h"
#include "vecmath.h"
#include <omp.h>

enum { ROWS = 384, COLUMNS = 384, DEPTH = 128 };
enum { PANEL_A = SZ_TILE_ROWS, PANEL_B = 2 * SZ_LANES };

/* Floats between panels of A: whole vectors are stored, so the last one ends after the panel. */
enum { STRIDE_A = DEPTH * PANEL_A + SZ_LANES, STRIDE_B = DEPTH * PANEL_B };
enum { PANELS_A = (ROWS + PANEL_A - 1) / PANEL_A, PANELS_B = (COLUMNS + PANEL_B - 1) / PANEL_B };
enum { THREAD_FLOATS = (PANELS_A * STRIDE_A + PANELS_B * STRIDE_B + 15) / 16 * 16 };

/* Rows of C that a thread should have at least: it copies all of B for them. */
enum { THREAD_ROWS = 48, FEW_ROWS = 2048 };

static int64_t threads_for(int64_t m) { return sz_min64(omp_get_max_threads(), m / THREAD_ROWS); }

/* With vectors of 8 oneDNN is as fast. */
bool sz_gemm_gradient_fits(int64_t m, int64_t n, int64_t k)
{
    if (SZ_LANES < 16 || m < 2 * n || k < FEW_ROWS || n % SZ_LANES) return false;
    return threads_for(m) == omp_get_max_threads();
}

int64_t sz_gemm_gradient_workspace(int64_t m)
{
    return threads_for(m) * THREAD_FLOATS * (int64_t)sizeof(float);
}

/* `rows` rows of `columns` elements as panels of `width` columns, `stride` floats apart. A row of a
 * panel is copied in whole vectors where the source has them; the next row overwrites the
 * excess. */
static inline __attribute__((always_inline)) void pack(float *panels, const int width,
                                                       const int stride, const float *src,
                                                       int64_t ld, int64_t rows, int64_t columns)
{
    const int vectors = (width + SZ_LANES - 1) / SZ_LANES;
    for (int64_t i = 0; i < rows; i++, src += ld) {
        float *dst = panels + i * width;
        int64_t j = 0;
        for (; j + vectors * SZ_LANES <= columns; j += width, dst += stride)
#pragma GCC unroll 4
            for (int x = 0; x < vectors; x++)
                sz_vec_store(dst + x * SZ_LANES, sz_vec_load(src + j + x * SZ_LANES));
        for (; j < columns; j += width, dst += stride)
            for (int64_t x = 0; x < width && j + x < columns; x++) dst[x] = src[j + x];
    }
}

/* The next tile of C, into the first-level cache. */
static inline void fetch_tile(const float *c, int64_t ldc)
{
    for (int i = 0; i < SZ_TILE_ROWS; i++) {
        __builtin_prefetch(c + i * ldc, 1, 3);
        __builtin_prefetch(c + i * ldc + PANEL_B - 1, 1, 3);
    }
}

/* Both operands of a block of C, and C. */
typedef struct {
    const float *a, *b;
    float *c;
    int64_t lda, ldb, ldc;
} operands;

/* A block of m <= ROWS times n <= COLUMNS results, with panels of a thread. */
static void block(const operands *o, int64_t m, int64_t n, int64_t k, float *panels_a)
{
    float *panels_b = panels_a + PANELS_A * STRIDE_A;
    for (int64_t p = 0; p < k; p += DEPTH) {
        const int64_t depth = sz_min64(DEPTH, k - p);
        const float *a = o->a + p * o->lda;
        const float *b = o->b + p * o->ldb;
        pack(panels_a, PANEL_A, STRIDE_A, a, o->lda, depth, m);
        pack(panels_b, PANEL_B, STRIDE_B, b, o->ldb, depth, n);

        /* Fetch the rows that come next. */
        sz_ahead ahead;
        const int64_t next = sz_min64(DEPTH, k - p - depth);
        sz_ahead_clear(&ahead);
        sz_ahead_add(&ahead, a + depth * o->lda, next, 4 * m, 4 * o->lda);
        sz_ahead_add(&ahead, b + depth * o->ldb, next, 4 * n, 4 * o->ldb);

        /* A panel of B stays in the first-level cache while all of A passes. */
        for (int64_t j = 0; j < n; j += PANEL_B) {
            const float *panel_b = panels_b + j / PANEL_B * STRIDE_B;
            const int64_t width = sz_min64(PANEL_B, n - j);
            for (int64_t i = 0; i < m; i += PANEL_A) {
                const float *panel_a = panels_a + i / PANEL_A * STRIDE_A;
                const int64_t height = sz_min64(PANEL_A, m - i);
                float *c = o->c + i * o->ldc + j;
                if (i + 2 * PANEL_A <= m) fetch_tile(c + PANEL_A * o->ldc, o->ldc);
                sz_tile(height, width, depth, panel_a, 1, PANEL_A, panel_b, PANEL_B, c, o->ldc,
                        SZ_ADD, &ahead);
            }
        }
    }
}

int sz_gemm_gradient(int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, const float *b,
                     int64_t ldb, float *c, int64_t ldc)
{
    const int64_t threads = threads_for(m);
    float *panels = sz_scratch((size_t)sz_gemm_gradient_workspace(m));
    if (!panels) return -1;

#pragma omp parallel num_threads((int)threads)
    {
        /* This thread's rows of C: whole tiles. */
        const int64_t id = omp_get_thread_num();
        const int64_t tiles = (m + PANEL_A - 1) / PANEL_A;
        const int64_t first = tiles * id / threads * PANEL_A;
        const int64_t end = sz_min64(m, tiles * (id + 1) / threads * PANEL_A);
        for (int64_t j = 0; j < n; j += COLUMNS)
            for (int64_t i = first; i < end; i += ROWS) {
                const operands o = { a + i, b + j, c + i * ldc + j, lda, ldb, ldc };
                block(&o, sz_min64(ROWS, end - i), sz_min64(COLUMNS, n - j), k,
                      panels + id * THREAD_FLOATS);
            }
    }
    return 0;
}
