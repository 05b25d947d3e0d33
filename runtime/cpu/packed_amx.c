/* packed_amx.c - products with 8 and 4-bit weights (int8.c, int4.c) with AMX, for many rows.
 *
 * The integer products of 256 columns are exact, and they are scaled and summed in f32 in the order
 * of the other kernels, so the results have the same bits as theirs.
 *
 * A task is up to SZ_PACKED_TASK_ROWS rows of x times some panels of 32 weight rows, in blocks of
 * 32 x 32 results. It goes through the columns in pieces of DEPTH groups: a piece of a panel's
 * weights and a piece of a block's x fit the first-level cache, and the piece's part of x stays in
 * the second-level cache while all panels pass by. 8-bit weights are stored as tiles already.
 * 4-bit weights are multiplied by their parts, which makes signed bytes, and so become tiles, a
 * piece of a panel at a time.
 *
 * Compiled to nothing except for processors with AMX.
 * Leaves out: few rows.
 */
#include "packed_amx.h"
#ifdef SZ_AMX
#include "amx.h"
#include "gemm_tile.h"
#include "packed_store.h"
#include "packed_x.h"
#include <omp.h>

enum {
    PANEL = SZ_PACKED_PANEL,               /* rows of x, and weight rows: two tiles */
    STEPS = SZ_Q_GROUP / SZ_AMX_ROW_BYTES, /* tiles of a group of 256 columns */
    DEPTH = 2,                             /* groups of a piece */
    STEP_BYTES = PANEL * SZ_AMX_ROW_BYTES, /* of x's tiles */
    PARTS = 4,                             /* tiles of a group's products */
    SCALED = PANEL / (2 * STEPS),          /* rows of them that are scaled at once */
};

/* ---- x ---- */

/* Rows of x, rounded up to whole panels. Codes as tiles [panel][group][step][2][16][64], and for
 * each group scale and start [panel][group][32]. start cancels the zero point of unsigned weights.
 */
typedef struct {
    int8_t *codes;
    float *scale;
    int32_t *start;
    int64_t rows, groups;
} quantized_x;

/* The part of a panel and group: its codes, or its first scale. */
static inline int64_t part_of(const quantized_x *x, int64_t row, int64_t g)
{
    return row / PANEL * x->groups + g;
}
static inline const int8_t *codes_of(const quantized_x *x, int64_t row, int64_t g)
{
    return x->codes + part_of(x, row, g) * PANEL * SZ_Q_GROUP;
}

static quantized_x quantize(const sz_tensor *x, int64_t groups, int32_t zero)
{
    const int64_t n = sz_rows(x);
    const int64_t rows = (n + PANEL - 1) / PANEL * PANEL;
    quantized_x q = {
        sz_scratch((size_t)(rows * groups * SZ_Q_GROUP)),
        sz_scratch((size_t)(rows * groups) * sizeof *q.scale),
        sz_scratch((size_t)(rows * groups) * sizeof *q.start),
        rows,
        groups,
    };
    if (!q.codes || !q.scale || !q.start) return (quantized_x){ 0 };
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows; i++)
        for (int64_t g = 0; g < groups; g++) {
            const int64_t part = part_of(&q, i, g);
            const int64_t at = part * PANEL + i % PANEL;
            int8_t codes[SZ_Q_GROUP] = { 0 };
            float scale = 0;
            const int32_t sum = i < n ? sz_quantize_group(x, i, g, codes, &scale) : 0;
            q.scale[at] = scale;
            q.start[at] = -zero * sum;
            int8_t *to = q.codes + (part * STEPS * PANEL + i % PANEL) * SZ_AMX_ROW_BYTES;
            for (int s = 0; s < STEPS; s++)
                memcpy(to + s * STEP_BYTES, codes + s * SZ_AMX_ROW_BYTES, SZ_AMX_ROW_BYTES);
        }
    return q;
}

/* ---- blocks ---- */

/* Sums of a block of 32 rows of x and 32 weight rows: f32, by halves of the weight rows. */
typedef struct {
    float of[2][PANEL][SZ_AMX_TILE] __attribute__((aligned(64)));
} block_sums;

/* Integer products of a group, a tile each: 0 and 1 of the first 16 rows of x, 2 and 3 of the
 * others; 0 and 2 of the first 16 weight rows, 1 and 3 of the others. */
typedef struct {
    int32_t of[PARTS][SZ_AMX_TILE][SZ_AMX_TILE] __attribute__((aligned(64)));
} group_products;

/* How the products of a group become f32 and join the sums. */
typedef struct {
    const group_products *products;
    const float *x_scale; /* of 32 rows */
    const int32_t *start; /* of 32 rows, for unsigned weights */
    __m512 w_scale[2];    /* of the first 16 weight rows and the others */
    block_sums *sums;
    __mmask16 kept; /* lanes of the sums that are read: none for the first group, else all */
} scaling;

/* Bytes that are needed next, fetched some lines with each group. */
typedef struct {
    const char *line, *end;
    int64_t lines; /* a group */
} next_bytes;

/* Of `bytes` bytes within `groups` groups. */
static next_bytes next_of(const void *first, int64_t bytes, int64_t groups)
{
    const int64_t lines = (bytes + SZ_AMX_ROW_BYTES - 1) / SZ_AMX_ROW_BYTES;
    return (next_bytes){ first, (const char *)first + bytes, (lines + groups - 1) / groups };
}

static inline void fetch(next_bytes *next)
{
    for (int64_t l = 0; l < next->lines && next->line < next->end; l++) {
        _mm_prefetch(next->line, _MM_HINT_T1);
        next->line += SZ_AMX_ROW_BYTES;
    }
}

/* sums of one row += product, an integer, times a scale. */
static inline __attribute__((always_inline)) void add_scaled(float *sums, __mmask16 kept,
                                                             __m512i product, __m512 scale)
{
    const __m512 old = _mm512_maskz_load_ps(kept, sums);
    _mm512_store_ps(sums, _mm512_fmadd_ps(_mm512_cvtepi32_ps(product), scale, old));
}

/* Scales SCALED rows of the products: number `part` of halves * STEPS parts. Both halves of a row
 * share its scale and start. */
static inline __attribute__((always_inline)) void scale_part(const bool is_signed, const scaling *s,
                                                             const int part)
{
#pragma GCC unroll 8
    for (int row = part * SCALED; row < (part + 1) * SCALED; row++) {
        const int half = row / SZ_AMX_TILE;
        const __m512 x_scale = _mm512_set1_ps(s->x_scale[row]);
        const __m512i start = _mm512_set1_epi32(is_signed ? 0 : s->start[row]);
#pragma GCC unroll 2
        for (int i = 0; i < 2; i++) {
            const int32_t *from = s->products->of[2 * half + i][row % SZ_AMX_TILE];
            __m512i product = _mm512_load_si512(from);
            if (!is_signed) product = _mm512_add_epi32(product, start);
            add_scaled(s->sums->of[i][row], s->kept, product,
                       _mm512_mul_ps(s->w_scale[i], x_scale));
        }
    }
}

static inline __attribute__((always_inline)) void scale_all(const bool is_signed, const int halves,
                                                            const scaling *s)
{
#pragma GCC unroll 8
    for (int part = 0; part < halves * STEPS; part++) scale_part(is_signed, s, part);
}

/* Tiles a and b += 16 rows of x (tile 4 or 5) times the weights in tiles 6 and 7. */
#define MULTIPLY(is_signed, a, b, x) \
    do { \
        if (is_signed) { \
            _tile_dpbssd(a, x, 6); \
            _tile_dpbssd(b, x, 7); \
        } else { \
            _tile_dpbsud(a, x, 6); \
            _tile_dpbsud(b, x, 7); \
        } \
    } while (0)

/* Products of 256 columns. x: the tiles of 32 rows, of which the second half is left out if
 * `halves` is 1. w[i] has the tiles of the columns of 16 weight rows one after the other. Meanwhile
 * the group before is scaled, unless `before` is NULL: the tiles work by themselves, but only
 * within the few hundred instructions that the processor looks ahead. The new products may replace
 * its own. */
static inline __attribute__((always_inline)) void multiply(const bool is_signed, const int halves,
                                                           const int8_t *x,
                                                           const uint8_t *const w[2],
                                                           group_products *to,
                                                           const scaling *before)
{
    sz_amx_clear_sums();
#pragma GCC unroll 4
    for (int s = 0; s < STEPS; s++) {
        _tile_loadd(6, w[0] + s * SZ_AMX_BYTES, SZ_AMX_ROW_BYTES);
        _tile_loadd(7, w[1] + s * SZ_AMX_BYTES, SZ_AMX_ROW_BYTES);
        _tile_loadd(4, x + 2 * s * SZ_AMX_BYTES, SZ_AMX_ROW_BYTES);
        MULTIPLY(is_signed, 0, 1, 4);
        if (before) scale_part(is_signed, before, halves * s);
        if (halves == 1) continue;
        _tile_loadd(5, x + (2 * s + 1) * SZ_AMX_BYTES, SZ_AMX_ROW_BYTES);
        MULTIPLY(is_signed, 2, 3, 5);
        if (before) scale_part(is_signed, before, 2 * s + 1);
    }
    _tile_stored(0, to->of[0], SZ_AMX_ROW_BYTES);
    _tile_stored(1, to->of[1], SZ_AMX_ROW_BYTES);
    if (halves == 1) return;
    _tile_stored(2, to->of[2], SZ_AMX_ROW_BYTES);
    _tile_stored(3, to->of[3], SZ_AMX_ROW_BYTES);
}

/* ---- weights ---- */

/* Groups [from, to) of a panel's weights: two blocks of 16 rows, of which an absent second one is
 * the first again. codes and scale begin with group `from`. */
typedef struct {
    int64_t from, to;
    const uint8_t *codes[2];
    const float *scale[2];
    /* 8 bits: the tiles of group `whole`, if it is not whole, with zeros behind. */
    int64_t whole;
    uint8_t tail[2][STEPS * SZ_AMX_BYTES] __attribute__((aligned(64)));
    /* 4 bits: what codes and scale point to. */
    uint8_t unpacked[2][DEPTH][STEPS * SZ_AMX_BYTES] __attribute__((aligned(64)));
    float wide[2][DEPTH][SZ_AMX_TILE] __attribute__((aligned(64)));
} panel_piece;

/* Block i of a panel, or the last one. */
static inline int64_t block_of(const sz_call *c, int64_t panel, int i)
{
    return sz_min64(2 * panel + i, c->in[1]->shape[0] - 1);
}

/* 8-bit codes of 16 weight rows, from group g on. */
static const uint8_t *codes_int8(const sz_call *c, int64_t panel, int i, int64_t g)
{
    const sz_tensor *q = c->in[1];
    const int64_t words = block_of(c, panel, i) * q->shape[1] + g * SZ_Q_WORDS;
    return (const uint8_t *)q->data + words * SZ_AMX_ROW_BYTES;
}

static void open_int8(panel_piece *p, const sz_call *c, int64_t panel)
{
    const int64_t words = c->in[1]->shape[1];
    const int64_t groups = c->in[2]->shape[1];
    p->whole = words / SZ_Q_WORDS;
    for (int i = 0; i < 2; i++) {
        const int64_t first = block_of(c, panel, i) * groups + p->from;
        p->codes[i] = codes_int8(c, panel, i, p->from);
        p->scale[i] = sz_f32(c->in[2]) + first * SZ_Q_ROWS;
        const size_t left = (size_t)(words % SZ_Q_WORDS) * SZ_AMX_ROW_BYTES;
        if (p->to <= p->whole) continue;
        memset(p->tail[i], 0, sizeof p->tail[i]);
        memcpy(p->tail[i], codes_int8(c, panel, i, p->whole), left);
    }
}

/* The signed bytes times the parts, a 16-bit number for each two of them: products of a low byte
 * are right in the low eight bits of the whole, and those of a high one if the low one is 0. */
static inline __m512i times_parts(__m512i bytes, __m512i parts)
{
    const __m512i low = _mm512_mullo_epi16(bytes, parts);
    const __m512i high = _mm512_mullo_epi16(_mm512_andnot_si512(_mm512_set1_epi16(0xff), bytes),
                                            parts);
    return _mm512_mask_blend_epi8(0x5555555555555555, high, low);
}

/* Unpacks a block of 16 rows and 256 columns to tiles. */
static void unpack(const uint8_t *block, uint8_t *to)
{
    const __m512i nibble = _mm512_set1_epi8(0x0f);
    const __m512i zero = _mm512_set1_epi8(SZ_Q4_ZERO);
    const __m128i_u *part = (const __m128i_u *)(block + SZ_Q4_CODES);
    for (int g = 0; g < SZ_Q4_GROUPS; g++) {
        /* Each row's part in both halves of its lane. */
        __m512i parts = _mm512_cvtepi8_epi32(_mm_loadu_si128(part++));
        parts = _mm512_mask_blend_epi16(0x55555555, _mm512_slli_epi32(parts, 16), parts);
#pragma GCC unroll 2
        for (int p = 0; p < SZ_Q4_PIECES; p++) {
            const __m512i both = _mm512_loadu_si512(block);
            const __m512i low = _mm512_and_si512(both, nibble);
            const __m512i high = _mm512_and_si512(_mm512_srli_epi16(both, 4), nibble);
            _mm512_store_si512(to, times_parts(_mm512_sub_epi8(low, zero), parts));
            _mm512_store_si512(to + SZ_Q4_PIECE, times_parts(_mm512_sub_epi8(high, zero), parts));
            block += SZ_Q4_PIECE;
            to += 2 * SZ_Q4_PIECE;
        }
    }
}

static void open_int4(panel_piece *p, const sz_call *c, int64_t panel)
{
    const sz_tensor *q = c->in[1];
    p->whole = p->to;
    for (int i = 0; i < 2; i++) {
        const int64_t row = block_of(c, panel, i);
        for (int64_t g = 0; g < p->to - p->from; g++) {
            const int64_t at = sz_q4_place(row, p->from + g, q->shape[0], q->shape[1]);
            unpack((const uint8_t *)q->data + at * SZ_Q4_BLOCK, p->unpacked[i][g]);
            sz_bf16_to_f32(p->wide[i][g], sz_bf16(c->in[2]) + at * SZ_Q4_ROWS, SZ_Q4_ROWS);
        }
        p->codes[i] = p->unpacked[i][0];
        p->scale[i] = p->wide[i][0];
    }
}

static inline scaling scaling_of(const quantized_x *x, int64_t row, const panel_piece *p, int64_t g,
                                 const group_products *products, block_sums *sums)
{
    const int64_t first = part_of(x, row, g) * PANEL;
    const int64_t at = (g - p->from) * SZ_Q_ROWS;
    return (scaling){
        products,
        x->scale + first,
        x->start + first,
        { _mm512_loadu_ps(p->scale[0] + at), _mm512_loadu_ps(p->scale[1] + at) },
        sums,
        g > 0 ? 0xffff : 0,
    };
}

/* A piece's groups times rows first .. last - 1: whole blocks, or one without its second half.
 * sums: of these blocks. Each group is scaled while the next one is multiplied, and a block's last
 * group while the next block's first one is. */
static inline __attribute__((always_inline)) void add_piece(const bool is_signed, const int halves,
                                                            const quantized_x *x, int64_t first,
                                                            int64_t last, const panel_piece *p,
                                                            block_sums *sums, next_bytes next[2])
{
    group_products products;
    scaling before = { 0 };
    for (int64_t row = first; row < last; row += PANEL, sums++)
        for (int64_t g = p->from; g < p->to; g++) {
            fetch(&next[0]);
            fetch(&next[1]);
            const int64_t at = (g - p->from) * STEPS * SZ_AMX_BYTES;
            const uint8_t *w[2] = { p->codes[0] + at, p->codes[1] + at };
            if (g >= p->whole) w[0] = p->tail[0];
            if (g >= p->whole) w[1] = p->tail[1];
            const int8_t *codes = codes_of(x, row, g);
            if (before.products) multiply(is_signed, halves, codes, w, &products, &before);
            else multiply(is_signed, halves, codes, w, &products, NULL);
            before = scaling_of(x, row, p, g, &products, sums);
        }
    scale_all(is_signed, halves, &before);
}

/* ---- results ---- */

/* Biases of `count` columns from `first` on, in f32; zeros without a bias and past its end. */
static void load_bias(const sz_tensor *bias, int64_t first, int64_t count, float *to)
{
    memset(to, 0, (size_t)count * sizeof *to);
    const int64_t some = bias ? sz_min64(count, bias->numel - first) : 0;
    for (int64_t j = 0; j < some; j++) to[j] = sz_get(bias, first + j);
}

/* Stores 32 sums of a row plus their biases as bf16, of which `kept` are stored. */
static inline void store_32(uint16_t *to, __mmask32 kept, const block_sums *sums, int64_t r,
                            const float *bias)
{
    const __m512 low = _mm512_add_ps(_mm512_load_ps(sums->of[0][r]), _mm512_loadu_ps(bias));
    const __m512 high = _mm512_add_ps(_mm512_load_ps(sums->of[1][r]),
                                      _mm512_loadu_ps(bias + SZ_AMX_TILE));
    _mm512_mask_storeu_epi16(to, kept, sz_words_round_32(low, high));
}

/* Stores the sums of rows row .. row + 31 and some panels, the sums of two panels `next` apart. A
 * row's results lie together, and two rows' are pages apart: so row by row, and with each row the
 * place of one that is stored later is fetched. */
static void store(const sz_call *c, int64_t row, int64_t first_panel, int64_t last_panel,
                  const block_sums *sums, int64_t next)
{
    enum { LATER = 16, SOON = 4 };
    sz_tensor *y = c->out[0];
    const int64_t m = sz_cols(y);
    const int64_t n = sz_min64(PANEL, sz_rows(y) - row);
    const int64_t panels = last_panel - first_panel;
    if (y->dtype == SZ_F32) {
        for (int64_t p = first_panel; p < last_panel; p++, sums += next)
            for (int i = 0; i < 2; i++)
                sz_store_columns(y, c->in[3], row, n, p * PANEL + i * SZ_AMX_TILE,
                                 (const sz_vec *)sums->of[i]);
        return;
    }
    float bias[SZ_PACKED_TASK_PANELS * PANEL];
    load_bias(c->in[3], first_panel * PANEL, panels * PANEL, bias);
    uint16_t *to = sz_bf16(y) + row * m + first_panel * PANEL;
    for (int64_t r = 0; r < n; r++, to += m)
        for (int64_t p = 0; p < panels; p++) {
            const int64_t width = m - (first_panel + p) * PANEL;
            const __mmask32 kept = width < PANEL ? (1u << width) - 1 : ~0u;
            if (row + r + LATER < sz_rows(y)) __builtin_prefetch(to + LATER * m + p * PANEL, 1);
            _mm_prefetch(sums[p * next].of[0][r] + SOON * SZ_AMX_TILE, _MM_HINT_T0);
            _mm_prefetch(sums[p * next].of[1][r] + SOON * SZ_AMX_TILE, _MM_HINT_T0);
            store_32(to + p * PANEL, kept, sums + p * next, r, bias + p * PANEL);
        }
}

/* ---- tasks ---- */

/* Whether at most 16 rows are left from `row` on. */
static bool is_half(const sz_call *c, int64_t row)
{
    return sz_rows(c->in[0]) - row <= SZ_AMX_TILE;
}

/* Rows first to last - 1 of x times some panels of weights. */
typedef struct {
    int64_t first, last;
    int64_t first_panel, last_panel;
    block_sums *sums; /* [panels][rows / 32] */
} packed_task;

static block_sums *sums_of(const packed_task *t, int64_t row, int64_t panel)
{
    const int64_t blocks = (t->last - t->first) / PANEL;
    return t->sums + (panel - t->first_panel) * blocks + (row - t->first) / PANEL;
}

/* The place of groups [from, from + DEPTH) of block i of a panel, of which `steps` times some lines
 * are fetched. */
static next_bytes next_piece(const sz_call *c, const quantized_x *x, bool is_int8, int64_t panel,
                             int i, int64_t from, int64_t steps)
{
    const int64_t groups = sz_min64(DEPTH, x->groups - from);
    if (is_int8)
        return next_of(codes_int8(c, panel, i, from), groups * STEPS * SZ_AMX_BYTES, steps);
    const int64_t block = block_of(c, panel, i) * x->groups + from;
    return next_of((const uint8_t *)c->in[1]->data + block * SZ_Q4_BLOCK, groups * SZ_Q4_BLOCK,
                   steps);
}

/* A task's rows times groups from .. to - 1 of a panel. */
static void run_piece(const sz_call *c, const quantized_x *x, bool is_int8, const packed_task *t,
                      int64_t panel, int64_t from, int64_t to)
{
    panel_piece p;
    p.from = from;
    p.to = to;
    if (is_int8) open_int8(&p, c, panel);
    else open_int4(&p, c, panel);

    /* The piece after this one: of the next panel, or the next piece of the first. */
    const bool is_last = panel + 1 == t->last_panel;
    const int64_t next_panel = is_last ? t->first_panel : panel + 1;
    const int64_t steps = (t->last - t->first) / PANEL * (to - from);
    next_bytes next[2];
    for (int i = 0; i < 2; i++)
        next[i] = next_piece(c, x, is_int8, next_panel, i, is_last ? to : from, steps);

    /* Only the last block can lack its second half. */
    const int64_t half = is_half(c, t->last - PANEL) ? t->last - PANEL : t->last;
    if (t->first < half) {
        block_sums *sums = sums_of(t, t->first, panel);
        if (is_int8) add_piece(false, 2, x, t->first, half, &p, sums, next);
        else add_piece(true, 2, x, t->first, half, &p, sums, next);
    }
    if (half < t->last) {
        block_sums *sums = sums_of(t, half, panel);
        if (is_int8) add_piece(false, 1, x, half, t->last, &p, sums, next);
        else add_piece(true, 1, x, half, t->last, &p, sums, next);
    }
}

static void run_task(const sz_call *c, const quantized_x *x, bool is_int8, const packed_task *t)
{
    const int64_t used = sz_min64(t->last, sz_rows(c->in[0]));
    sz_amx_begin();
    for (int64_t from = 0; from < x->groups; from += DEPTH) {
        const int64_t to = sz_min64(from + DEPTH, x->groups);
        for (int64_t panel = t->first_panel; panel < t->last_panel; panel++)
            run_piece(c, x, is_int8, t, panel, from, to);
    }
    sz_amx_end();
    for (int64_t row = t->first; row < used; row += PANEL)
        store(c, row, t->first_panel, t->last_panel, sums_of(t, row, t->first_panel),
              (t->last - t->first) / PANEL);
}

static int linear(const sz_call *c, int64_t groups, bool is_int8)
{
    const quantized_x x = quantize(c->in[0], groups, is_int8 ? SZ_Q_ZERO : 0);
    if (!x.codes) return -1;

    const int64_t rows = sz_min64(SZ_PACKED_TASK_ROWS, x.rows);
    const int64_t across = (x.rows + rows - 1) / rows;
    const int64_t panels = (c->in[1]->shape[0] + 1) / 2;
    int64_t some = sz_min64(SZ_PACKED_TASK_PANELS, panels * across / (4 * omp_get_max_threads()));
    if (some < 1) some = 1;
    const int64_t down = (panels + some - 1) / some;
    const int64_t blocks = some * (rows / PANEL);
    block_sums *sums = sz_scratch(sizeof *sums * (size_t)(blocks * omp_get_max_threads()));
    if (!sums) return -1;

#pragma omp parallel for schedule(dynamic, 1)
    for (int64_t i = 0; i < across * down; i++) {
        const int64_t row = i % across * rows;
        const int64_t panel = i / across * some;
        const packed_task t = {
            row,
            sz_min64(row + rows, x.rows),
            panel,
            sz_min64(panel + some, panels),
            sums + blocks * omp_get_thread_num(),
        };
        run_task(c, &x, is_int8, &t);
    }
    return 0;
}

int sz_amx_linear_int8(const sz_call *c) { return linear(c, c->in[2]->shape[1], true); }
int sz_amx_linear_int4(const sz_call *c) { return linear(c, c->in[1]->shape[1], false); }
#endif
