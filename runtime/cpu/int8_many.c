/* int8_many.c - many rows of x times 8-bit weights, on processors without VNNI.
 *
 * These multiply 16-bit numbers, so bytes are widened. For a panel of rows of x, each group of
 * weights is widened once. It and the panel's part of x stay in the caches; the sums wait in memory
 * for the next group. Their order is that of int8.c.
 * Leaves out: few rows, and processors with VNNI (int8.c).
 */
#include "int8_many.h"

#if SZ_Q_X_WORDS == 2
#include "packed_store.h"
#include "tasks.h"
#include <omp.h>

enum {
    R = SZ_Q_MANY_VECTORS,
    /* Blocks of weights that are widened together: those of a tile's R vectors. */
    UNIT = R / SZ_Q_VECTORS,
    /* A task is a panel of rows of x times up to MOST_UNITS units. */
    MOST_UNITS = 8 / UNIT,
    PANEL = 240,
    PANEL_TILES = PANEL / SZ_Q_MANY_TILE,
    TASKS_PER_THREAD = 4, /* at least, if there are enough weights */
};
_Static_assert(R % SZ_Q_VECTORS == 0 && PANEL % SZ_Q_MANY_TILE == 0, "whole blocks and tiles");

/* A tile's weights of a group, widened. */
typedef sz_uvec wide_weights[SZ_Q_WORDS][SZ_Q_X_WORDS][R];

/* What a thread needs: the unit of weights in use, and the sums of a task. */
typedef struct {
    wide_weights weights;
    sz_vec sums[MOST_UNITS][PANEL_TILES][R * SZ_Q_MANY_TILE];
} workspace;
/* sz_workspace_linear_int8 counts this. */
_Static_assert(sizeof(workspace) <= SZ_WIDENED_BYTES, "bytes of a thread");
_Static_assert((int)SZ_Q_MANY >= (int)SZ_WIDENED_ROWS, "least rows");

/* Rows [row, row + rows) of x times blocks [first, end) of weights. */
typedef struct {
    int64_t row, rows, first, end;
} task;

/* Where the codes of group g of a block begin. */
static const uint8_t *codes_of(const sz_tensor *q, int64_t block, int64_t g)
{
    return (const uint8_t *)q->data + (block * q->shape[1] + g * SZ_Q_WORDS) * 64;
}

/* The block that vector v of the unit from `first` on belongs to. The last block stands in for
 * those past the end. */
static int64_t block_of(const sz_tensor *q, int64_t first, int64_t v)
{
    return sz_min64(first + v / SZ_Q_VECTORS, q->shape[0] - 1);
}

/* Widens n words of group g of the unit that begins with block `first`. */
static void widen(const sz_tensor *q, int64_t first, int64_t g, int64_t n, wide_weights weights)
{
    for (int64_t v = 0; v < R; v++) {
        const uint8_t *codes = codes_of(q, block_of(q, first, v), g) +
                               v % SZ_Q_VECTORS * SZ_LANES * 4;
        for (int64_t p = 0; p < n; p++) {
            const sz_q_weights w = sz_q_load(codes + p * 64);
            for (int part = 0; part < SZ_Q_X_WORDS; part++) weights[p][part][v] = w.part[part];
        }
    }
}

/* Fetches words [first, end) of each block of a unit, whose codes begin at p. */
static void fetch(const uint8_t *p, int64_t block_bytes, int64_t first, int64_t end)
{
    for (int64_t word = first; word < end; word++)
        for (int i = 0; i < UNIT; i++) __builtin_prefetch(p + i * block_bytes + word * 64, 0, 2);
}

/* A tile of weights times M rows of x over n words of a group: adds to sums [R][M]. M is a constant
 * where it is inlined. */
static inline __attribute__((always_inline)) void tile(const int M, int64_t n,
                                                       const sz_uvec (*w)[SZ_Q_X_WORDS][R],
                                                       const float *const *w_scale,
                                                       const int32_t *x, const float *x_scale,
                                                       const int32_t *start, sz_vec *sums)
{
    const sz_ivec zero = { 0 };
    sz_ivec s[R * SZ_Q_MANY_TILE];
#pragma GCC unroll 4
    for (int r = 0; r < R; r++)
#pragma GCC unroll 12
        for (int i = 0; i < M; i++) s[r * M + i] = start[i] - zero;
    for (int64_t p = 0; p < n; p++, x += M * SZ_Q_X_WORDS)
#pragma GCC unroll 2
        for (int part = 0; part < SZ_Q_X_WORDS; part++) {
            /* In registers: GCC would read each again for every row of x. */
            sz_ivec a[R];
#pragma GCC unroll 4
            for (int r = 0; r < R; r++) {
                a[r] = (sz_ivec)w[p][part][r];
                SZ_IN_REGISTER(a[r]);
            }
#pragma GCC unroll 12
            for (int i = 0; i < M; i++) {
                sz_ivec b = x[i * SZ_Q_X_WORDS + part] - zero;
                SZ_IN_REGISTER(b);
#pragma GCC unroll 4
                for (int r = 0; r < R; r++) {
                    s[r * M + i] += sz_dot2(a[r], b);
                    SZ_IN_REGISTER(s[r * M + i]);
                }
            }
        }
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
        const sz_vec scale = sz_vec_load(w_scale[r]);
#pragma GCC unroll 12
        for (int i = 0; i < M; i++)
            sums[r * M + i] += __builtin_convertvector(s[r * M + i], sz_vec) * (scale * x_scale[i]);
    }
}

/* tile for any m <= SZ_Q_MANY_TILE. */
static __attribute__((noinline)) void any_tile(int64_t m, int64_t n,
                                               const sz_uvec (*w)[SZ_Q_X_WORDS][R],
                                               const float *const *w_scale, const int32_t *x,
                                               const float *x_scale, const int32_t *start,
                                               sz_vec *sums)
{
#define CASE(M) \
    case M: \
        if (M <= SZ_Q_MANY_TILE) tile(M, n, w, w_scale, x, x_scale, start, sums); \
        break;
    switch (m) {
        SZ_CASES_TO_12
    }
#undef CASE
}

/* A task's products over group g with the unit that begins with block `first`: adds to sums.
 * Meanwhile the unit's words at `later` are fetched. */
static void multiply_unit(const sz_call *c, const sz_q_rows *in, const task *t, int64_t g,
                          int64_t first, const uint8_t *later, const wide_weights weights,
                          sz_vec (*sums)[R * SZ_Q_MANY_TILE])
{
    const sz_tensor *q = c->in[1];
    const sz_tensor *scale = c->in[2];
    const int64_t words = q->shape[1];
    const int64_t groups = scale->shape[1];
    const int64_t n = sz_min64(SZ_Q_WORDS, words - g * SZ_Q_WORDS);
    const int64_t tiles = (t->rows + SZ_Q_MANY_TILE - 1) / SZ_Q_MANY_TILE;
    const float *w_scale[R];
    for (int64_t v = 0; v < R; v++)
        w_scale[v] = sz_f32(scale) + (block_of(q, first, v) * groups + g) * SZ_Q_ROWS +
                     v % SZ_Q_VECTORS * SZ_LANES;
    for (int64_t i = 0; i < tiles; i++) {
        const int64_t row = t->row + i * SZ_Q_MANY_TILE;
        const int64_t m = sz_min64(SZ_Q_MANY_TILE, t->row + t->rows - row);
        const int64_t scales = row * groups + g * m;
        fetch(later, words * 64, i * n / tiles, (i + 1) * n / tiles);
        any_tile(m, n, weights, w_scale,
                 in->words + (row * words + g * SZ_Q_WORDS * m) * SZ_Q_X_WORDS, in->scale + scales,
                 in->start + scales, sums[i]);
    }
}

/* All of a task's products: sets work->sums. */
static void multiply(const sz_call *c, const sz_q_rows *in, const task *t, workspace *work)
{
    const sz_tensor *q = c->in[1];
    const int64_t words = q->shape[1];
    const int64_t groups = c->in[2]->shape[1];
    const int64_t tiles = (t->rows + SZ_Q_MANY_TILE - 1) / SZ_Q_MANY_TILE;
    for (int64_t g = 0; g < groups; g++)
        for (int64_t first = t->first; first < t->end; first += UNIT) {
            const int64_t n = sz_min64(SZ_Q_WORDS, words - g * SZ_Q_WORDS);
            const bool is_last = first + UNIT >= t->end;
            const uint8_t *later = is_last ? codes_of(q, t->first, g + 1)
                                           : codes_of(q, first + UNIT, g);
            sz_vec(*sums)[R * SZ_Q_MANY_TILE] = work->sums[(first - t->first) / UNIT];
            if (g == 0) memset(sums, 0, (size_t)tiles * sizeof *sums);
            widen(q, first, g, n, work->weights);
            multiply_unit(c, in, t, g, first, later, work->weights, sums);
        }
}

/* Stores a task's sums in y. */
static void store(const sz_call *c, const task *t, const workspace *work)
{
    for (int64_t v = 0; v < (t->end - t->first) * SZ_Q_VECTORS; v++)
        for (int64_t i = 0; i < t->rows; i += SZ_Q_MANY_TILE) {
            const int64_t m = sz_min64(SZ_Q_MANY_TILE, t->rows - i);
            const sz_vec *sums = work->sums[v / R][i / SZ_Q_MANY_TILE];
            sz_store_columns(c->out[0], c->in[3], t->row + i, m,
                             t->first * SZ_Q_ROWS + v * SZ_LANES, sums + v % R * m);
        }
}

/* Blocks of a task, so that all threads have some. */
static int64_t task_blocks(int64_t panels, int64_t blocks)
{
    int64_t units = MOST_UNITS;
    while (units > 1 &&
           panels * (blocks / (units * UNIT)) < TASKS_PER_THREAD * omp_get_max_threads())
        units /= 2;
    return units * UNIT;
}

int sz_q_many(const sz_call *c, const sz_q_rows *in)
{
    const int64_t n = sz_rows(c->in[0]);
    const int64_t blocks = c->in[1]->shape[0];
    const int64_t panels = (n + PANEL - 1) / PANEL;
    const int64_t some = task_blocks(panels, blocks);
    const int64_t across = (blocks + some - 1) / some;
    workspace *work = sz_scratch((size_t)omp_get_max_threads() * sizeof *work);
    if (!work) return -1;

    int64_t taken = 0;
#pragma omp parallel
    for (int64_t i; (i = sz_take(&taken, 1)) < panels * across;) {
        workspace *own = work + omp_get_thread_num();
        const int64_t row = i / across * PANEL;
        const int64_t first = i % across * some;
        const task t = { row, sz_min64(PANEL, n - row), first, sz_min64(first + some, blocks) };
        multiply(c, in, &t, own);
        store(c, &t, own);
    }
    return 0;
}
#endif
