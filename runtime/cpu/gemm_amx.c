/* gemm_amx.c - products of bf16 with AMX: C [m, n] f32 = A B + beta C.
 *
 * One of the operands is the left one. Its rows are read where they are, 32 rows (a panel) at a
 * time; A^T is written out first. The right operand is packed into tiles first. A B^T, a linear
 * layer, has B, the weights, on the left, so that the larger operand is not packed: it computes
 * B A^T, and each block of results is transposed when it is stored. Otherwise A is on the left.
 *
 * A task is up to TASK_COLS columns of the right operand times some panels. The inner dimension is
 * cut into pieces of at most DEPTH, so that the task's part of the right operand stays in the
 * second-level cache while panels pass by; the next panel is fetched meanwhile. Four tiles of sums
 * hold 32 x 32 results. Up to 16 columns (decoding) have tiles of just these. A sum runs over the
 * inner dimension in order and in f32, whatever m and n are, so an answer's numbers do not depend
 * on how many answers decode with it.
 *
 * Compiled to nothing except for processors with AMX.
 * Leaves out: f32.
 */
#include "gemm.h"
#ifdef SZ_AMX
#include "amx.h"
#include "tasks.h"
#include "vecmath.h"
#include <omp.h>

enum {
    STEP = 32,              /* of the inner dimension: one row of a tile */
    PANEL = 32,             /* rows of the left operand, columns of the right one: two tiles */
    DEPTH = 4096,           /* of a piece of the inner dimension, at most */
    TASK_COLS = 256,        /* at most */
    TASK_NUMBERS = 1 << 19, /* of the right operand in a task: they stay in the cache */
    TASK_PANELS = 16,       /* at most */
    FEW_TASK_PANELS = 8,    /* at most, of up to 32 columns */
    AHEAD = 2,              /* steps that rows are fetched ahead if there is only one block */
    SLAB_BYTES = 32 << 20,  /* of the right operand that are packed at one time */
};

/* An operand: rows of the result or its columns, and the inner dimension. */
typedef struct {
    const uint16_t *data;
    int64_t count; /* rows or columns of the result */
    int64_t ld;
    bool inner_is_row; /* [count, k], or [k, count] */
} operand;

static int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

/* ---- packing ---- */

/* 32 numbers of the inner dimension of 16 rows of [count, k], from `first` on, one row a vector.
 * What is past `rows` rows or `width` numbers is 0. */
static inline void load_rows(__m512i r[SZ_AMX_TILE], const uint16_t *first, int64_t ld,
                             int64_t rows, int64_t width)
{
    const __mmask32 mask = width >= STEP ? ~(__mmask32)0 : ((__mmask32)1 << width) - 1;
    for (int i = 0; i < SZ_AMX_TILE; i++)
        r[i] = _mm512_maskz_loadu_epi16(i < rows ? mask : 0, first + (i < rows ? i : 0) * ld);
}

/* Tile of the operand at row or column `at` and inner number p. */
static inline void load_tile(__m512i r[SZ_AMX_TILE], const operand *x, int64_t at, int64_t p,
                             int64_t k, bool want_rows)
{
    const int64_t some = sz_min64(SZ_AMX_TILE, x->count - at);
    const int64_t inner = sz_min64(STEP, k - p);
    if (x->inner_is_row) load_rows(r, x->data + at * x->ld + p, x->ld, some, inner);
    else sz_words_load_pairs(r, x->data + p * x->ld + at, x->ld, some, inner);
    if (x->inner_is_row != want_rows) sz_words_transpose(r);
}

/* Columns from `first` on of the right operand as tiles: [columns / 32][k / 32][2][16 x 16
 * words]. */
static void pack_right(uint16_t *to, const operand *x, int64_t first, int64_t columns, int64_t k)
{
    enum { SOME = 8 * SZ_AMX_TILE };
    const int64_t padded = round_up(k, STEP);
#pragma omp parallel for collapse(2) schedule(static) if (columns * k > 65536)
    for (int64_t c0 = 0; c0 < columns; c0 += SOME)
        for (int64_t p = 0; p < padded; p += STEP)
            for (int64_t c = c0; c < sz_min64(columns, c0 + SOME); c += SZ_AMX_TILE) {
                __m512i r[SZ_AMX_TILE] = { { 0 } };
                if (first + c < x->count) load_tile(r, x, first + c, p, k, false);
                const int64_t panel = c - c % PANEL;
                uint16_t *tile = to + panel * padded + p * PANEL + (c - panel) * STEP;
                sz_words_store(tile, STEP, r);
            }
}

/* The `width` columns of the right operand, at most 16, from `first` on, as tiles that are as wide:
 * [k / 32][16 x width words]. */
static void pack_narrow(uint16_t *to, const operand *x, int64_t first, int64_t width, int64_t k)
{
    const __mmask16 mask = (__mmask16)((1u << width) - 1);
    for (int64_t p = 0; p < round_up(k, STEP); p += STEP, to += STEP * width) {
        __m512i r[SZ_AMX_TILE] = { { 0 } };
        load_tile(r, x, first, p, k, false);
        for (int i = 0; i < SZ_AMX_TILE; i++)
            _mm512_mask_storeu_epi32(to + 2 * i * width, mask, r[i]);
    }
}

/* Rows from `first` on of the left operand, row by row: [rows][padded], from inner number `from`
 * on.
 */
static void pack_left(uint16_t *to, const operand *x, int64_t first, int64_t rows, int64_t from,
                      int64_t k)
{
    const int64_t padded = round_up(k - from, STEP);
#pragma omp parallel for collapse(2) schedule(static) if (rows * (k - from) > 65536)
    for (int64_t i = 0; i < rows; i += SZ_AMX_TILE)
        for (int64_t p = 0; p < padded; p += STEP) {
            __m512i r[SZ_AMX_TILE] = { { 0 } };
            if (first + i < x->count) load_tile(r, x, first + i, from + p, k, true);
            sz_words_store(to + i * padded + p, padded, r);
        }
}

/* ---- the left operand's panels ---- */
typedef struct {
    operand rows;
    int64_t k;
    /* The last panel if it has less than 32 rows, [32][k rounded up]; else NULL. */
    const uint16_t *edge;
    /* The last step of all rows if it has less than 32 numbers, [rows][32]; else NULL. */
    const uint16_t *tail;
} left_operand;

/* Some steps of a panel: `steps` that are read in place, and one more from tail if it is not NULL.
 */
typedef struct {
    const uint16_t *data;
    int64_t ld;
    int64_t steps;
    const uint16_t *tail;
} panel_piece;

static panel_piece piece_of(const left_operand *left, int64_t panel, int64_t from, int64_t depth)
{
    const int64_t first = panel * PANEL;
    const int64_t padded = round_up(left->k, STEP);
    const int64_t to = sz_min64(from + depth, padded);
    panel_piece piece = { NULL, 0, (to - from) / STEP, NULL };
    if (left->edge && first + PANEL > left->rows.count) {
        piece.data = left->edge + from;
        piece.ld = padded;
        return piece;
    }
    piece.data = left->rows.data + first * left->rows.ld + from;
    piece.ld = left->rows.ld;
    if (left->tail && to > left->k) {
        piece.steps--;
        piece.tail = left->tail + first * STEP;
    }
    return piece;
}

/* Makes what is not read in place. Advances *space, of sizes as left_bytes says. */
static left_operand prepare_left(const operand *x, int64_t k, uint16_t **space)
{
    left_operand left = { *x, k, NULL, NULL };
    const int64_t padded = round_up(k, STEP);
    const int64_t rows = round_up(x->count, PANEL);
    if (!x->inner_is_row) {
        pack_left(*space, x, 0, rows, 0, k);
        left.rows = (operand){ *space, rows, padded, true };
        left.k = padded;
        *space += rows * padded;
        return left;
    }
    if (rows != x->count) {
        pack_left(*space, x, rows - PANEL, PANEL, 0, k);
        left.edge = *space;
        *space += PANEL * padded;
    }
    if (padded != k) {
        pack_left(*space, x, 0, rows, padded - STEP, k);
        left.tail = *space;
        *space += rows * STEP;
    }
    return left;
}

static int64_t left_bytes(int64_t count, int64_t k, bool inner_is_row)
{
    const int64_t padded = round_up(k, STEP);
    const int64_t rows = round_up(count, PANEL);
    if (!inner_is_row) return 2 * rows * padded;
    return 2 * ((rows != count ? PANEL * padded : 0) + (padded != k ? rows * STEP : 0));
}

/* ---- a block of 32 x 32 results ---- */

/* Sums of one step into tiles 0 to 3. */
static inline __attribute__((always_inline)) void step(const uint16_t *left, int64_t ld,
                                                       const uint16_t *right)
{
    _tile_loadd(4, left, 2 * ld);
    _tile_loadd(6, right, SZ_AMX_ROW_BYTES);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, right + SZ_AMX_BYTES / 2, SZ_AMX_ROW_BYTES);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, left + SZ_AMX_TILE * ld, 2 * ld);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
}

/* Rows of a panel that is needed next: they are fetched line by line while another is
 * multiplied. */
typedef struct {
    const char *line;
    int64_t ld;       /* bytes from row to row */
    int64_t steps;    /* lines of a row */
    int64_t position; /* in the row */
    int64_t lines;    /* a step */
} fetcher;

static inline void fetch(fetcher *f)
{
    for (int64_t l = 0; l < f->lines; l++) {
        _mm_prefetch(f->line + f->position * SZ_AMX_ROW_BYTES, _MM_HINT_T1);
        if (++f->position < f->steps) continue;
        f->position = 0;
        f->line += f->ld;
    }
}

/* All steps of a piece. right: the tiles of its 32 columns. */
static void multiply(const panel_piece *left, const uint16_t *right, fetcher *next)
{
    const uint16_t *from = left->data;
    for (int64_t s = 0; s < left->steps; s++) {
        fetch(next);
        step(from, left->ld, right);
        from += STEP;
        right += SZ_AMX_BYTES;
    }
    if (left->tail) step(left->tail, STEP, right);
}

/* Fetches 16 rows AHEAD of step s, and past their end, the rows that are 16 further down. */
static inline __attribute__((always_inline)) void fetch_ahead(const panel_piece *left,
                                                              const uint16_t *rows, int64_t s)
{
    const int64_t past = s + AHEAD - left->steps;
    const uint16_t *later = rows + (s + AHEAD) * STEP;
    if (past >= 0) later = rows + SZ_AMX_TILE * left->ld + past * STEP;
#pragma GCC unroll 16
    for (int row = 0; row < SZ_AMX_TILE; row++)
        _mm_prefetch((const char *)(later + row * left->ld), _MM_HINT_T0);
}

/* All steps of 16 rows: tile x of the left operand, sums in tiles a and b. */
#define SIXTEEN_ROWS(x, a, b, rows, left, right) \
    for (int64_t s = 0; s < (left)->steps; s++) { \
        fetch_ahead(left, rows, s); \
        _tile_loadd(x, (rows) + s * STEP, 2 * (left)->ld); \
        _tile_loadd(6, (right) + s * SZ_AMX_BYTES, SZ_AMX_ROW_BYTES); \
        _tile_dpbf16ps(a, x, 6); \
        _tile_loadd(7, (right) + s * SZ_AMX_BYTES + SZ_AMX_BYTES / 2, SZ_AMX_ROW_BYTES); \
        _tile_dpbf16ps(b, x, 7); \
    }

/* multiply for a panel that meets only one block, as in decoding: its first 16 rows, then the
 * others. So memory is read in 16 streams instead of 32, and the processor looks further ahead in
 * each. */
static void multiply_alone(const panel_piece *left, const uint16_t *right)
{
    SIXTEEN_ROWS(4, 0, 1, left->data, left, right)
    SIXTEEN_ROWS(5, 2, 3, left->data + SZ_AMX_TILE * left->ld, left, right)
    if (left->tail) step(left->tail, STEP, right + left->steps * SZ_AMX_BYTES);
}

/* The same for a right operand of one tile of `width` columns: sums in tile a. */
#define SIXTEEN_ROWS_NARROW(x, a, rows, left, right, width) \
    for (int64_t s = 0; s < (left)->steps; s++) { \
        fetch_ahead(left, rows, s); \
        _tile_loadd(x, (rows) + s * STEP, 2 * (left)->ld); \
        _tile_loadd(6, (right) + s * STEP * (width), 4 * (width)); \
        _tile_dpbf16ps(a, x, 6); \
    }

static void multiply_narrow(const panel_piece *left, const uint16_t *right, int64_t width)
{
    SIXTEEN_ROWS_NARROW(4, 0, left->data, left, right, width)
    SIXTEEN_ROWS_NARROW(5, 2, left->data + SZ_AMX_TILE * left->ld, left, right, width)
    if (!left->tail) return;
    _tile_loadd(6, right + left->steps * STEP * width, 4 * width);
    _tile_loadd(4, left->tail, SZ_AMX_ROW_BYTES);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(5, left->tail + SZ_AMX_TILE * STEP, SZ_AMX_ROW_BYTES);
    _tile_dpbf16ps(2, 5, 6);
}

/* Where a block's results go: rows x columns of C from c on. */
typedef struct {
    char *c;
    int64_t ldc;
    int dtype;
    int64_t rows, columns; /* at most 32 each */
    bool add;              /* to C, which is f32 then */
    const float *bias;     /* of the columns, or NULL */
} block_place;

static inline __mmask16 mask_of(int64_t n)
{
    if (n >= SZ_AMX_TILE) return 0xffff;
    return n <= 0 ? 0 : (__mmask16)((1u << n) - 1);
}

static inline char *address(const block_place *to, int64_t row, int64_t column)
{
    return to->c + (row * to->ldc + column) * sz_dtype_size(to->dtype);
}

/* One row's 16 results. */
static inline void put(const block_place *to, int64_t row, int64_t column, __m512 v)
{
    const __mmask16 mask = mask_of(to->columns - column);
    char *c = address(to, row, column);
    if (to->bias) v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(mask, to->bias + column));
    if (to->add) v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(mask, c));
    if (to->dtype == SZ_F32) _mm512_mask_storeu_ps(c, mask, v);
    else _mm256_mask_storeu_epi16(c, mask, sz_words_round_16(v));
}

/* Stores the sums [32][32] of the block; transposed: C's rows are their columns. */
static void store_block(const block_place *to, const float *sums, bool transposed)
{
    for (int64_t i = 0; i < to->rows; i += SZ_AMX_TILE)
        for (int64_t j = 0; j < to->columns; j += SZ_AMX_TILE) {
            const float *from = transposed ? sums + j * PANEL + i : sums + i * PANEL + j;
            __m512i r[SZ_AMX_TILE];
            for (int l = 0; l < SZ_AMX_TILE; l++) r[l] = _mm512_load_si512(from + l * PANEL);
            if (transposed) sz_words_transpose(r);
            const int64_t rows = sz_min64(SZ_AMX_TILE, to->rows - i);
            if (rows == SZ_AMX_TILE) {
#pragma GCC unroll 16
                for (int l = 0; l < SZ_AMX_TILE; l++) put(to, i + l, j, _mm512_castsi512_ps(r[l]));
            } else {
                for (int l = 0; l < rows; l++) put(to, i + l, j, _mm512_castsi512_ps(r[l]));
            }
        }
}

/* width: of a narrow right operand, or 0. next: rows to fetch meanwhile, or NULL. */
static void block(const panel_piece *left, const uint16_t *right, int64_t width, fetcher *next,
                  const block_place *to, bool transposed)
{
    float sums[PANEL * PANEL] __attribute__((aligned(64)));
    if (width) memset(sums, 0, sizeof sums);
    for (int64_t row = 0; row < to->rows; row++) {
        __builtin_prefetch(address(to, row, 0), 1);
        __builtin_prefetch(address(to, row, to->columns - 1), 1);
    }
    sz_amx_clear_sums();
    if (width) multiply_narrow(left, right, width);
    else if (next) multiply(left, right, next);
    else multiply_alone(left, right);
    _tile_stored(0, sums, 4 * PANEL);
    _tile_stored(2, sums + SZ_AMX_TILE * PANEL, 4 * PANEL);
    if (!width) {
        _tile_stored(1, sums + SZ_AMX_TILE, 4 * PANEL);
        _tile_stored(3, sums + SZ_AMX_TILE * PANEL + SZ_AMX_TILE, 4 * PANEL);
    }
    store_block(to, sums, transposed);
}

/* ---- tasks ---- */
typedef struct {
    left_operand left;
    const uint16_t *right; /* packed columns from first_col on */
    int64_t first_col, columns;
    int64_t width; /* of the right operand's tiles if they are narrow, else 0 */
    bool transposed;
    float beta;
    const float *bias;
    char *c;
    int64_t ldc;
    int dtype; /* of C */
} product;

/* How the inner dimension is cut into pieces, and the columns of a task. */
static int64_t depth_of(int64_t k)
{
    const int64_t pieces = (k + DEPTH - 1) / DEPTH;
    return round_up((k + pieces - 1) / pieces, STEP);
}
static int64_t task_columns(int64_t k)
{
    return sz_min64(TASK_COLS, TASK_NUMBERS / depth_of(k) / PANEL * PANEL);
}

/* A task's panels, and its columns (of the packed ones). */
typedef struct {
    int64_t first_panel, last_panel;
    int64_t col;
} task;

/* A panel's steps [from, from + depth) times the task's columns. */
static void run_panel(const product *p, const task *t, int64_t panel, int64_t from)
{
    const int64_t padded = round_up(p->left.k, STEP);
    const int64_t depth = depth_of(p->left.k);
    const int64_t columns = sz_min64(task_columns(p->left.k), p->columns - t->col);
    const int64_t blocks = (columns + PANEL - 1) / PANEL;
    const panel_piece left = piece_of(&p->left, panel, from, depth);
    panel_piece next = left;
    if (panel + 1 < t->last_panel) next = piece_of(&p->left, panel + 1, from, depth);
    else if (from + depth < padded) next = piece_of(&p->left, t->first_panel, from + depth, depth);
    /* Each block fetches its share of the next panel's rows. If there is only one, memory is busy
     * with this panel. */
    fetcher ahead = { (const char *)next.data, 2 * next.ld, next.steps, 0,
                      (PANEL + blocks - 1) / blocks };
    for (int64_t b = 0; b < blocks; b++) {
        const int64_t at = t->col + b * PANEL;
        const uint16_t *right = p->right + at * padded + from * (p->width ? p->width : PANEL);
        const int64_t rows = sz_min64(PANEL, p->left.rows.count - panel * PANEL);
        const int64_t some = sz_min64(PANEL, p->columns - at);
        const int64_t out_row = p->transposed ? p->first_col + at : panel * PANEL;
        const int64_t out_col = p->transposed ? panel * PANEL : p->first_col + at;
        const block_place to = {
            p->c + (out_row * p->ldc + out_col) * sz_dtype_size(p->dtype),
            p->ldc,
            p->dtype,
            p->transposed ? some : rows,
            p->transposed ? rows : some,
            from > 0 || p->beta != 0,
            p->bias && from == 0 ? p->bias + out_col : NULL,
        };
        block(&left, right, p->width, blocks > 1 ? &ahead : NULL, &to, p->transposed);
    }
}

/* With one block of columns each row is read to its end before the next panel's, in the order of
 * memory. */
static void run_task(const product *p, const task *t)
{
    const int64_t padded = round_up(p->left.k, STEP);
    const int64_t depth = depth_of(p->left.k);
    sz_amx_begin_narrow(p->width ? p->width : SZ_AMX_TILE);
    if (p->columns <= PANEL) {
        for (int64_t panel = t->first_panel; panel < t->last_panel; panel++)
            for (int64_t from = 0; from < padded; from += depth) run_panel(p, t, panel, from);
    } else {
        for (int64_t from = 0; from < padded; from += depth)
            for (int64_t panel = t->first_panel; panel < t->last_panel; panel++)
                run_panel(p, t, panel, from);
    }
    sz_amx_end();
}

/* The product's tasks. parallel: is it worth the threads? */
static void run_tasks(const product *p, int64_t panels, bool parallel)
{
    const int threads = omp_get_max_threads();
    if (p->columns <= PANEL) {
        int64_t taken = 0;
#pragma omp parallel if (parallel)
        {
            task t = { 0 };
            for (int64_t n; (n = sz_take_shrinking(&taken, panels, FEW_TASK_PANELS, threads,
                                                   &t.first_panel)) > 0;) {
                t.last_panel = t.first_panel + n;
                run_task(p, &t);
            }
        }
        return;
    }

    /* Enough tasks for all threads, but no smaller than needed. */
    const int64_t columns = task_columns(p->left.k);
    const int64_t across = (p->columns + columns - 1) / columns;
    int64_t some = sz_min64(TASK_PANELS, panels * across / (4 * threads));
    if (some < 1) some = 1;
    const int64_t down = (panels + some - 1) / some;
#pragma omp parallel for schedule(dynamic, 1) if (parallel)
    for (int64_t i = 0; i < across * down; i++) {
        const int64_t first = i / across * some;
        const task t = { first, sz_min64(panels, first + some), i % across * columns };
        run_task(p, &t);
    }
}

/* Columns of the right operand that are packed at one time. */
static int64_t slab_columns(int64_t count, int64_t k)
{
    const int64_t most = SLAB_BYTES / 2 / round_up(k, STEP) / TASK_COLS * TASK_COLS;
    return sz_min64(round_up(count, PANEL), most > TASK_COLS ? most : TASK_COLS);
}

/* The left operand is B if it is the weights of a linear layer. */
static bool swaps(bool ta, bool tb) { return !ta && tb; }

int64_t sz_gemm_amx_workspace(bool ta, bool tb, int64_t m, int64_t n, int64_t k)
{
    const int64_t rows = swaps(ta, tb) ? n : m;
    const int64_t columns = swaps(ta, tb) ? m : n;
    return left_bytes(rows, k, !ta) + 2 * slab_columns(columns, k) * round_up(k, STEP);
}

bool sz_gemm_amx_rounds(int64_t k) { return k <= DEPTH; }

int sz_gemm_amx(bool ta, bool tb, int64_t m, int64_t n, int64_t k, const void *a, int64_t lda,
                const void *b, int64_t ldb, float beta, const float *bias, void *c, int64_t ldc,
                int dtype)
{
    const operand A = { a, m, lda, !ta };
    const operand B = { b, n, ldb, tb };
    const bool swap = swaps(ta, tb);
    const operand *right = swap ? &A : &B;
    uint16_t *space = sz_scratch((size_t)sz_gemm_amx_workspace(ta, tb, m, n, k));
    if (!space) return -1;

    product p = {
        .left = prepare_left(swap ? &B : &A, k, &space),
        .right = space,
        .transposed = swap,
        .beta = beta,
        .bias = bias,
        .c = c,
        .ldc = ldc,
        .dtype = dtype,
    };
    const int64_t panels = ((swap ? n : m) + PANEL - 1) / PANEL;
    p.left.rows.count = swap ? n : m;

    const int64_t slab = slab_columns(right->count, k);
    for (p.first_col = 0; p.first_col < right->count; p.first_col += slab) {
        p.columns = sz_min64(slab, right->count - p.first_col);
        p.width = p.columns <= SZ_AMX_TILE ? p.columns : 0;
        if (p.width) pack_narrow(space, right, p.first_col, p.width, k);
        else pack_right(space, right, p.first_col, round_up(p.columns, PANEL), k);
        run_tasks(&p, panels, m * n * k > 65536);
    }
    return 0;
}
#endif
