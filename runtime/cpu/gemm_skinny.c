/* gemm_skinny.c - y[i, j] = x[i] . w[j] for few rows of x, as in decoding: one pass over w from
 * memory.
 *
 * A chunk of up to CHUNK_W weight rows meets a block of up to ROWS_X rows of x, panel by panel of
 * columns, so that the panel of x stays in the first-level cache; further blocks of x find the
 * chunk in the second. The products of R weight rows and M rows of x are vectors of sums in
 * registers, which are kept in memory between panels. With 16 registers (AVX2, SSE) a block is
 * computed in two passes of up to 4 rows, which share the weights in the first-level cache. Lane l
 * sums its own columns, and the lanes are added only at the end. The order of a sum depends on k
 * alone, so an answer's numbers do not depend on how many answers decode with it.
 *
 * While a chunk is computed, the next one of the same thread is prefetched, spread evenly over all
 * passes: otherwise memory idles while a later pass computes.
 *
 * A vector of 32-bit words holds two bf16 weights in each lane. Where the processor multiplies such
 * pairs well, one instruction adds both products. Elsewhere a shift gives the even columns, a mask
 * the odd ones. x is packed for that: pairs as they are; f32, the even columns of each BLOCK_K
 * first (in order for f32 weights); zeros up to whole blocks.
 * Leaves out: other products than x w^T. Measurements: docs/speed.md.
 */
#include "bf16_words.h"
#include "gemm.h"
#include "gemm_tile.h"
#include "tasks.h"
#include "fetch.h"

/* Long rows of weights: in chunks of half the size if there is only one block of x. */
enum { CHUNK_W = 24, LONG_ROW_BYTES = 8192 };

/* R * M is at most MAX_SUMS. */
enum { ROWS_X = 8, BLOCK_K = 2 * SZ_LANES, PANEL_FLOATS = 2048, MAX_R = 4, MAX_SUMS = 24 };

/* Rows of x of one pass: with 16 registers and FMA, 4 times the sums of 3 weight rows. Without FMA
 * (SSE) the products are limited before the registers are. */
#if defined(__FMA__) && !defined(__AVX512F__)
#define NARROW_PASSES
enum { PASS_ROWS = 4 };
#else
enum { PASS_ROWS = ROWS_X };
#endif

/* What is multiplied: f32, bf16 that is widened to f32, or bf16 in pairs. */
typedef enum { FULL, WIDENED, PAIRS } form;

/* How many vectors of x a block of columns has. */
#define HALVES(form) ((form) == PAIRS ? 1 : 2)

typedef uint32_t word_vec __attribute__((vector_size(4 * SZ_LANES)));
typedef uint32_t word_vec_any __attribute__((vector_size(4 * SZ_LANES), aligned(2), may_alias));

/* The odd columns of a vector of words. Volatile where it would take one of 16 registers. */
#ifdef NARROW_PASSES
static const volatile uint32_t odd_mask[SZ_LANES]
    __attribute__((aligned(64))) = { [0 ... SZ_LANES - 1] = 0xffff0000u };
#define ODD_MASK (*(const volatile word_vec *)odd_mask)
#else
#define ODD_MASK 0xffff0000u
#endif

/* A vector of BLOCK_K elements: the first or second half of f32; of bf16 that is widened, the even
 * or the odd ones; all pairs. */
static inline __attribute__((always_inline)) sz_vec load_half(const char *src, const form f,
                                                              const int half)
{
    if (f == FULL) return sz_vec_load((const float *)src + half * SZ_LANES);
    word_vec both = *(const word_vec_any *)src;
    if (f == PAIRS) return (sz_vec)both;
    if (half == 0) return (sz_vec)(both << 16);
    return (sz_vec)(both & ODD_MASK);
}

/* sum + a * b in each lane; of pairs, both products. */
static inline __attribute__((always_inline)) sz_vec add_product(sz_vec sum, sz_vec a, sz_vec b,
                                                                const form f)
{
#ifdef SZ_HAS_PAIRS
    if (f == PAIRS) return sz_pairs_add(sum, a, b);
#endif
    (void)f;
    return sum + a * b;
}

#ifdef NARROW_PASSES
/* add_product to three sums, of a vector of x times those of three weight rows. Twelve sums, three
 * weights and x are all 16 registers, and only in assembly do they stay there: GCC loads x earlier
 * and keeps some of the sums in memory, which made 8 rows a quarter slower. */
static inline __attribute__((always_inline)) void add_three(sz_vec *s0, sz_vec *s1, sz_vec *s2,
                                                            const sz_vec *a, const float *x)
{
    sz_vec in;
    __asm__ volatile("vmovups %7, %3\n\t"
                     "vfmadd231ps %3, %4, %0\n\t"
                     "vfmadd231ps %3, %5, %1\n\t"
                     "vfmadd231ps %3, %6, %2"
                     : "+x"(*s0), "+x"(*s1), "+x"(*s2), "=&x"(in)
                     : "x"(a[0]), "x"(a[1]), "x"(a[2]), "m"(*(const sz_vec_any *)x));
}
#endif

static inline size_t element_size(form f) { return f == FULL ? 4 : 2; }

/* Packs x into blocks of ROWS_X rows (the last may have fewer), each [k /
 * BLOCK_K][HALVES][rows][SZ_LANES], which are read front to back. Rows k apart would compete for
 * the same sets of the cache if k is a power of two. floats: of a packed row. */
static float *pack_x(const void *x, int64_t m, int64_t k, int64_t ld, form f, int64_t floats)
{
    const size_t size = element_size(f);
    const int64_t step = HALVES(f) * SZ_LANES;
    float *packed = sz_scratch((size_t)(m * floats) * sizeof *packed);
    if (!packed) return NULL;

#pragma omp parallel for schedule(static) if (m * k > 65536)
    for (int64_t i = 0; i < m; i++) {
        int64_t first = i - i % ROWS_X;
        int64_t rows = m - first < ROWS_X ? m - first : ROWS_X;
        float *dst = packed + first * floats + (i - first) * SZ_LANES;
        const char *src = (const char *)x + (size_t)(i * ld) * size;
        for (int64_t p = 0; p < k; p += BLOCK_K, dst += rows * step, src += BLOCK_K * size) {
            /* The last block may be partial: read it from a copy that ends in zeros. */
            char tail[BLOCK_K * sizeof(float)] = { 0 };
            const char *block = src;
            if (p + BLOCK_K > k) block = memcpy(tail, src, (size_t)(k - p) * size);
            sz_vec_store(dst, load_half(block, f, 0));
            if (HALVES(f) == 2) sz_vec_store(dst + rows * SZ_LANES, load_half(block, f, 1));
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

/* Where the weights that are needed later are: `distance` bytes after those in use, of which pass
 * `pass` of `passes` fetches its part, into the second-level cache alone if to_l2. */
typedef struct {
    ptrdiff_t distance;
    int64_t pass, passes;
    bool to_l2;
} prefetcher;

/* s [R][M] += half a block of each weight row times that of each row of x; it is `at` bytes after
 * w[r]. */
static inline __attribute__((always_inline)) void add_half(const int M, const int R, const form f,
                                                           const int half, const float *x,
                                                           const char *const *w, int64_t at,
                                                           sz_vec *s)
{
    sz_vec a[MAX_R];
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) a[r] = load_half(w[r] + at, f, half);
#pragma GCC unroll 8
    for (int i = 0; i < M; i++) {
#ifdef NARROW_PASSES
        if (R == 3) {
            add_three(s + i, s + M + i, s + 2 * M + i, a, x + i * SZ_LANES);
            continue;
        }
#endif
        sz_vec in = sz_vec_load(x + i * SZ_LANES);
        SZ_IN_REGISTER(in);
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
            s[r * M + i] = add_product(s[r * M + i], a[r], in, f);
            SZ_IN_REGISTER(s[r * M + i]);
        }
    }
}

/* sums [R][M] += R weight rows at w[r] times M rows of x over k columns, which are whole blocks. x
 * and sums have `rows` rows. M, R and f are constants where it is inlined, so that the sums
 * become registers. A single row of weights is not fetched. */
static inline __attribute__((always_inline)) void dots(const int M, const int R, const form f,
                                                       int64_t rows, int64_t k, const float *x,
                                                       const char *const *w,
                                                       const prefetcher *ahead, bool add,
                                                       sz_vec *sums)
{
    const int64_t size = (int64_t)element_size(f);
    ptrdiff_t later = ahead->distance + ahead->pass * k * size / ahead->passes;
    const ptrdiff_t step = BLOCK_K * size / ahead->passes;
    sz_vec s[MAX_SUMS];
#pragma GCC unroll 4
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int i = 0; i < M; i++) s[r * M + i] = add ? sums[r * rows + i] : (sz_vec){ 0 };

    for (int64_t p = 0; p < k; p += BLOCK_K, x += rows * HALVES(f) * SZ_LANES, later += step) {
#pragma GCC unroll 4
        for (int r = 0; r < R && R > 1; r++)
            for (int64_t line = 0; line < BLOCK_K * size; line += 64)
                sz_fetch(w[r] + later + line, ahead->to_l2);

        add_half(M, R, f, 0, x, w, p * size, s);
        if (HALVES(f) == 2) add_half(M, R, f, 1, x + rows * SZ_LANES, w, p * size, s);
    }

#pragma GCC unroll 4
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int i = 0; i < M; i++) sums[r * rows + i] = s[r * M + i];
}

/* What the sums of a panel come from: n rows of w, row_bytes apart, times the rows of x, over k
 * columns. */
typedef struct {
    int64_t n, k;
    const float *x;
    const char *w;
    size_t row_bytes;
    bool add; /* to sums, instead of setting them */
} panel_work;

/* M1 and then M2 rows of x (M2 may be 0), R rows of w at a time. Rows from n on repeat the last
 * one, and their sums are not used. */
static inline __attribute__((always_inline)) void panel(const int M1, const int M2, const int R,
                                                        const form f, const panel_work *p,
                                                        prefetcher ahead, sz_vec *sums)
{
    const int M = M1 + M2;
    prefetcher second = ahead;
    second.pass++;
    for (int64_t j = 0; j < p->n; j += R) {
        const char *w[MAX_R];
        for (int r = 0; r < R; r++)
            w[r] = p->w + (size_t)(j + r < p->n ? j + r : p->n - 1) * p->row_bytes;
        dots(M1, R, f, M, p->k, p->x, w, &ahead, p->add, sums + j * M);
        if (M2)
            dots(M2, R, f, M, p->k, p->x + M1 * SZ_LANES, w, &second, p->add, sums + j * M + M1);
    }
}

/* panel for a single row of x, one row of weights after another without fetching them. */
static __attribute__((noinline)) void panel_in_order(form f, const panel_work *p, sz_vec *sums)
{
    const prefetcher none = { 0, 0, 1, false };
#ifdef SZ_HAS_PAIRS
    if (f == PAIRS) {
        panel(1, 0, 1, PAIRS, p, none, sums);
        return;
    }
#endif
    if (f == FULL) panel(1, 0, 1, FULL, p, none, sums);
    else panel(1, 0, 1, WIDENED, p, none, sums);
}

/* panel for any m <= ROWS_X. */
static __attribute__((noinline)) void any_panel(int64_t m, form f, const panel_work *p,
                                                prefetcher ahead, sz_vec *sums)
{
#define CASE(M1, M2, R, f) \
    case M1 + M2 + ROWS_X *(f): panel(M1, M2, R, f, p, ahead, sums); break

    /* The sums of R rows of weights and those of x in one pass are 12, or 24 of 32 registers. In
     * pairs 16 are 5 % faster than 24. */
#define CASES_FEW(f) \
    CASE(1, 0, 4, f); \
    CASE(2, 0, 4, f)
#ifndef NARROW_PASSES
#define CASES(f) \
    CASES_FEW(f); \
    CASE(3, 0, 4, f); \
    CASE(4, 0, 4, f); \
    CASE(5, 0, 3, f); \
    CASE(6, 0, 3, f); \
    CASE(7, 0, (f) == PAIRS ? 2 : 3, f); \
    CASE(8, 0, (f) == PAIRS ? 2 : 3, f)
#else
#define CASES(f) \
    CASES_FEW(f); \
    CASE(3, 0, 3, f); \
    CASE(4, 0, 3, f); \
    CASE(3, 2, 3, f); \
    CASE(3, 3, 3, f); \
    CASE(4, 3, 3, f); \
    CASE(4, 4, 3, f)
#endif
    switch (m + ROWS_X * f) {
        CASES(FULL);
        CASES(WIDENED);
#ifdef SZ_HAS_PAIRS
        CASES(PAIRS);
#endif
    }
#undef CASES
#undef CASES_FEW
#undef CASE
}

/* Whether a single row of x meets one row of weights after another, each k columns. Zen 1 to 4 read
 * memory fastest that way and need no fetching. But there is only one sum, and each addition to it
 * waits for the one before: with less than IN_ORDER_BYTES of weights for each, that is slower than
 * memory. And x must not be driven out of the first-level cache by the row of weights. */
static bool reads_in_order(form f, int64_t k)
{
    enum { IN_ORDER_BYTES = 32, CACHE_BYTES = 26 << 10 };
    const size_t block = BLOCK_K * element_size(f);
    const size_t block_of_x = (size_t)HALVES(f) * sizeof(sz_vec);
    return block / HALVES(f) >= IN_ORDER_BYTES &&
           (size_t)k / BLOCK_K * (block + block_of_x) <= CACHE_BYTES &&
           sz_processor_is_zen_1_to_4();
}

/* The size of a panel of m rows of x. Both sizes fit the first-level cache; which one is faster was
 * measured. */
static int64_t panel_floats(int64_t m, form f)
{
    const bool wide = f == PAIRS ? m > 6 : m <= 4;
    return wide ? 2 * PANEL_FLOATS : PANEL_FLOATS;
}

/* A block of m <= ROWS_X rows of x times n <= CHUNK_W rows of w. */
static void chunk_times_block(int64_t m, int64_t n, int64_t k, const float *x, const char *w,
                              int64_t ldw, form f, prefetcher ahead, float beta, float *y,
                              int64_t ldy)
{
    sz_vec sums[CHUNK_W * ROWS_X + SZ_LANES];
    const int64_t whole = k - k % BLOCK_K;
    const int64_t step = HALVES(f) * SZ_LANES;
    const bool in_order = m == 1 && reads_in_order(f, k);
    const int64_t width = in_order ? k : panel_floats(m, f) / m / step * BLOCK_K;
    const size_t size = element_size(f);
    const size_t row_bytes = (size_t)ldw * size;

    /* The panels of whole blocks. */
    for (int64_t p = 0; p < whole; p += width) {
        panel_work work = { n,
                            whole - p < width ? whole - p : width,
                            x + p / BLOCK_K * step * m,
                            w + (size_t)p * size,
                            row_bytes,
                            p > 0 };
        if (in_order) panel_in_order(f, &work, sums);
        else any_panel(m, f, &work, ahead, sums);
    }

    /* The partial block at the end, from a copy that ends in zeros. */
    if (whole < k) {
        char tail[CHUNK_W][BLOCK_K * sizeof(float)] = { 0 };
        for (int64_t j = 0; j < n; j++)
            memcpy(tail[j], w + (size_t)j * row_bytes + (size_t)whole * size,
                   (size_t)(k - whole) * size);
        panel_work work = { n,       BLOCK_K,        x + whole / BLOCK_K * step * m,
                            tail[0], sizeof tail[0], whole > 0 };
        any_panel(m, f, &work, (prefetcher){ 0, 0, 1, false }, sums);
    }

    /* Add the lanes, and store. */
    float results[CHUNK_W * ROWS_X + SZ_LANES];
    for (int64_t i = 0; i < n * m; i += SZ_LANES) sz_vec_store(results + i, lane_sums(sums + i));
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++)
            y[i * ldy + j] = results[j * m + i] + (beta != 0 ? y[i * ldy + j] : 0);
}

static form form_of(int dtype)
{
    if (dtype == SZ_F32) return FULL;
#ifdef SZ_HAS_PAIRS
    if (sz_gemm_multiplies_bf16()) return PAIRS;
#endif
    return WIDENED;
}

/* Of a packed row of x. */
static int64_t row_floats(int64_t k, form f)
{
    return (k + BLOCK_K - 1) / BLOCK_K * HALVES(f) * SZ_LANES;
}

int64_t sz_gemm_skinny_workspace(int64_t m, int64_t k, int dtype)
{
    return m * row_floats(k, form_of(dtype)) * (int64_t)sizeof(float);
}

/* Whether weights for m rows of x are fetched into the second-level cache alone. The next chunk is
 * larger than the first level. Zen 1 to 4 read faster so, and Intel's processors with AVX-512 do
 * if few rows of x leave them waiting for memory. With AVX2 it makes no difference there. */
static bool fetches_to_l2(int64_t m)
{
#ifdef __AVX512F__
    enum { FEW_ROWS = 4 };
    if (sz_processor_is_intel()) return m <= FEW_ROWS;
#endif
    (void)m;
    return sz_processor_is_zen_1_to_4();
}

static int64_t passes(int64_t rows) { return (rows + PASS_ROWS - 1) / PASS_ROWS; }

int sz_gemm_skinny(int64_t m, int64_t n, int64_t k, const void *x, int64_t ldx, const void *w,
                   int64_t ldw, int dtype, float beta, float *y, int64_t ldy)
{
    const int64_t row_bytes = ldw * (int64_t)sz_dtype_size(dtype);
    const bool small = m <= ROWS_X && row_bytes > LONG_ROW_BYTES;
    const int64_t chunk_rows = small ? CHUNK_W / 2 : CHUNK_W;
    const int64_t chunks = (n + chunk_rows - 1) / chunk_rows;
    const form f = form_of(dtype);
    const int64_t floats = row_floats(k, f);
    const float *packed = pack_x(x, m, k, ldx, f, floats);
    if (!packed) return -1;

    int64_t taken = 0;
#pragma omp parallel if (n * k > 16384)
    for (sz_task t = sz_first_task(&taken, 1); t.first < chunks; sz_next_task(&t, &taken, 1)) {
        prefetcher ahead = { 0, 0, passes(m), fetches_to_l2(m) };
        if (t.next < chunks) ahead.distance = (t.next - t.first) * chunk_rows * row_bytes;
        const int64_t j = t.first * chunk_rows;
        const int64_t rows = n - j < chunk_rows ? n - j : chunk_rows;
        for (int64_t i = 0; i < m; i += ROWS_X) {
            ahead.pass = passes(i);
            chunk_times_block(m - i < ROWS_X ? m - i : ROWS_X, rows, k, packed + i * floats,
                              (const char *)w + j * row_bytes, ldw, f, ahead, beta, y + i * ldy + j,
                              ldy);
        }
    }
    return 0;
}
