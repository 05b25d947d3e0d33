/* rows.cu - rows of ops.def that move or compare whole rows on the device: embedding, gather_rows,
 * index_add_, index_copy, scatter_cols_, pad_rows, max_pool_rows and its gradient; and the two
 * views, which compute nothing.
 *
 * Moves do not look at elements: a row is a run of units of 16, 4 or 2 bytes, as alignment allows,
 * and a warp moves a piece of a row. Where several rows add into one (index_add_,
 * max_pool_rows_backward), the host, which has the ids, lists for each distinct id the places
 * where it occurs, in order; the threads that own the row add them in that order. The core has
 * already checked the range of the ids.
 *
 * Leaves out: what PyTorch does with NaN in max_pool_rows. The reference is
 * cpu/reference/rowwise.c. */
#include "vector.cuh"
#include <stdlib.h>

enum {
    THREADS = 256,
    WARPS = THREADS / 32,
    UNITS = 4, /* units that a lane moves of a piece */
};

extern "C" int sz_cuda_reshape(const sz_call *) { return 0; }
extern "C" int sz_cuda_narrow(const sz_call *) { return 0; }

/* ---- moves ---- */
/* Copies `width` units of row from_ids[i] of `from` to row to_ids[i] of `to`, for i < n. NULL ids
 * stand for i itself. Strides are in units; a row has `pieces` pieces. */
template <typename U> __global__ void move_rows_kernel(U *to, const int32_t *to_ids,
                                                       int64_t to_stride, const U *from,
                                                       const int32_t *from_ids, int64_t from_stride,
                                                       int64_t n, int64_t width, int64_t pieces)
{
    const int lane = threadIdx.x % 32;
    const int64_t start = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32;
    for (int64_t item = start; item < n * pieces; item += (int64_t)gridDim.x * WARPS) {
        const int64_t i = item / pieces;
        const int64_t first = item % pieces * (32 * UNITS) + lane;
        U *dst = to + (to_ids ? to_ids[i] : i) * to_stride;
        const U *src = from + (from_ids ? from_ids[i] : i) * from_stride;
        for (int k = 0; k < UNITS; k++)
            if (first + k * 32 < width) dst[first + k * 32] = src[first + k * 32];
    }
}

typedef struct {
    uint32_t v[4];
} __attribute__((aligned(16))) unit16;

/* The rows of a move; strides in bytes. ids NULL: row i is the i-th. */
struct row_list {
    char *data;
    const int32_t *ids;
    int64_t stride;
};

template <typename U>
static void launch_move(const row_list &to, const row_list &from, int64_t n, int64_t width)
{
    const int64_t unit = sizeof(U);
    const int64_t units = width / unit;
    const int64_t pieces = sz_blocks(units, 32 * UNITS);
    SZ_LAUNCH((move_rows_kernel<U>), sz_grid(sz_blocks(n * pieces, WARPS)), THREADS, 0,
              (U *)to.data, to.ids, to.stride / unit, (const U *)from.data, from.ids,
              from.stride / unit, n, units, pieces);
}

/* Copies n rows of `width` bytes, in the largest units that all addresses and sizes allow. */
static void move_rows(const row_list &to, const row_list &from, int64_t n, int64_t width)
{
    if (n == 0 || width == 0) return;
    const uintptr_t all = (uintptr_t)to.data | (uintptr_t)from.data | (uintptr_t)to.stride |
                          (uintptr_t)from.stride | (uintptr_t)width;
    if (all % 16 == 0) launch_move<unit16>(to, from, n, width);
    else if (all % 4 == 0) launch_move<uint32_t>(to, from, n, width);
    else launch_move<uint16_t>(to, from, n, width);
}

static int64_t row_bytes(const sz_tensor *t)
{
    return sz_cols(t) * (int64_t)sz_dtype_size(t->dtype);
}

/* All rows of a tensor, or those with these ids. */
static row_list rows_of(const sz_tensor *t, const int32_t *ids)
{
    return row_list{ (char *)t->data, ids, row_bytes(t) };
}

static int copy_bytes(void *to, const void *from, size_t bytes)
{
    if (!bytes) return 0;
    return sz_cuda_check(
        cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, sz_cuda_stream()),
        "copying rows");
}

/* out[i] = x[ids[i]] */
static int take_rows(const char *op, const sz_call *c)
{
    const sz_tensor *x = c->in[0];
    const sz_tensor *out = c->out[0];
    const int32_t *ids = sz_cuda_indices(c->in[1]);
    if (!ids) return -1;
    const row_list to = { (char *)out->data, NULL, row_bytes(x) };
    move_rows(to, rows_of(x, ids), c->in[1]->numel, row_bytes(x));
    return sz_cuda_launched(op);
}

extern "C" int sz_cuda_embedding(const sz_call *c) { return take_rows("embedding", c); }
extern "C" int sz_cuda_gather_rows(const sz_call *c) { return take_rows("gather_rows", c); }

/* y = x, except that y[ids[i]] = src[i]. */
extern "C" int sz_cuda_index_copy(const sz_call *c)
{
    const sz_tensor *x = c->in[0];
    const sz_tensor *src = c->in[2];
    const sz_tensor *y = c->out[0];
    const int32_t *ids = sz_cuda_indices(c->in[1]);
    if (!ids || copy_bytes(y->data, x->data, sz_bytes(y)) != 0) return -1;
    const row_list to = { (char *)y->data, ids, row_bytes(x) };
    const row_list from = { (char *)src->data, NULL, row_bytes(x) };
    move_rows(to, from, c->in[1]->numel, row_bytes(x));
    return sz_cuda_launched("index_copy");
}

/* dst[ids[i]] = src[i, col : col + w]; puts keys and values into their cache. */
extern "C" int sz_cuda_scatter_cols_(const sz_call *c)
{
    const sz_tensor *dst = c->in[0];
    const sz_tensor *src = c->in[2];
    const int32_t *ids = sz_cuda_indices(c->in[1]);
    if (!ids) return -1;
    const int64_t col_bytes = (int64_t)c->args[0] * (int64_t)sz_dtype_size(src->dtype);
    const row_list from = { (char *)src->data + col_bytes, NULL, row_bytes(src) };
    move_rows(rows_of(dst, ids), from, c->in[1]->numel, row_bytes(dst));
    return sz_cuda_launched("scatter_cols_");
}

extern "C" int sz_cuda_pad_rows(const sz_call *c)
{
    const sz_tensor *x = c->in[0];
    const sz_tensor *y = c->out[0];
    const size_t padding = sz_bytes(y) - sz_bytes(x);
    if (copy_bytes(y->data, x->data, sz_bytes(x)) != 0) return -1;
    if (!padding) return 0;
    return sz_cuda_check(
        cudaMemsetAsync((char *)y->data + sz_bytes(x), 0, padding, sz_cuda_stream()), "pad_rows");
}

/* ---- sums of rows with the same id ---- */
/* Distinct id number g occurs at the places order[start[g]] .. order[start[g + 1] - 1], in rising
 * order. All arrays are in device memory. */
typedef struct {
    int64_t count;
    const int32_t *id, *start, *order;
} groups;

/* Groups the ids, which are below `rows`, by value. Returns 0, or -1 with a message. */
static int find_groups(const sz_tensor *ids, int64_t rows, groups *out)
{
    const int64_t n = ids->numel;
    const int32_t *value = sz_i32(ids);
    /* One zeroed allocation: group [rows] (an id's group + 1, or 0), id [n], start [n + 1], order
     * [n], and next [n], where the group's next place goes. */
    int32_t *group = (int32_t *)calloc((size_t)(rows + 4 * n + 1), sizeof *group);
    if (!group) return sz_fail("no memory for %lld rows' ids", (long long)n);
    int32_t *id = group + rows;
    int32_t *start = id + n;
    int32_t *order = start + n + 1;
    int32_t *next = order + n;

    /* Number the distinct ids and count their places, at start[g + 1]. */
    int32_t count = 0;
    for (int64_t i = 0; i < n; i++) {
        int32_t *g = &group[value[i]];
        if (*g == 0) {
            id[count++] = value[i];
            *g = count;
        }
        start[*g]++;
    }
    /* Running sums of the counts, then the places. */
    for (int32_t g = 0; g < count; g++) {
        start[g + 1] += start[g];
        next[g] = start[g];
    }
    for (int64_t i = 0; i < n; i++) order[next[group[value[i]] - 1]++] = (int32_t)i;

    const int32_t *device = (const int32_t *)sz_cuda_upload(id, (size_t)(3 * n + 1) * sizeof *id);
    free(group);
    *out = groups{ count, device, device + n, device + 2 * n + 1 };
    return device ? 0 : -1;
}

/* acc[id] += the rows x[place]. One block for each group and THREADS vectors of columns. */
template <int W> __global__ void index_add_kernel(float *acc, groups g, sz_elements x, int64_t d)
{
    const int64_t col = ((int64_t)blockIdx.y * THREADS + threadIdx.x) * W;
    const int64_t group = blockIdx.x;
    if (col >= d) return;
    float sum[W];
    float *to = acc + g.id[group] * d + col;
    sz_load_vector<W>(to, sum);
    for (int32_t k = g.start[group]; k < g.start[group + 1]; k++) {
        float v[W];
        sz_load_vector<W>(x, g.order[k] * d + col, v);
        for (int j = 0; j < W; j++) sum[j] += v[j];
    }
    sz_store_vector<W>(to, sum);
}

extern "C" int sz_cuda_index_add_(const sz_call *c)
{
    const sz_tensor *acc = c->in[0];
    const sz_tensor *ids = c->in[1];
    const sz_tensor *x = c->in[2];
    const int64_t d = sz_cols(acc);
    groups g;
    if (x->numel == 0) return 0;
    if (find_groups(ids, acc->shape[0], &g) != 0) return -1;
    const bool vectors = d % SZ_VECTOR == 0 && sz_is_aligned16(acc) && sz_is_aligned16(x);
    const int64_t per_block = THREADS * (vectors ? SZ_VECTOR : 1);
    const dim3 grid((unsigned)g.count, (unsigned)sz_blocks(d, per_block));
    if (vectors)
        SZ_LAUNCH((index_add_kernel<SZ_VECTOR>), grid, THREADS, 0, sz_f32(acc), g,
                  sz_elements_of(x), d);
    else SZ_LAUNCH((index_add_kernel<1>), grid, THREADS, 0, sz_f32(acc), g, sz_elements_of(x), d);
    return sz_cuda_launched("index_add_");
}

/* ---- max_pool_rows: y[i] = max over k of x[ids[i, k]], column by column; ids [n, count] ---- */
/* One vector of columns for each thread. y may be NULL, and so may winner [n, d], which receives
 * the first k that has the maximum. */
template <int W> __global__ void max_pool_rows_kernel(sz_elements x, const int32_t *ids, int64_t n,
                                                      int count, int64_t d, sz_elements y,
                                                      int32_t *winner)
{
    const int64_t vectors = d / W;
    const int64_t start = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    for (int64_t e = start; e < n * vectors; e += (int64_t)gridDim.x * THREADS) {
        const int64_t i = e / vectors;
        const int64_t col = e % vectors * W;
        float best[W], v[W];
        int first[W];
        sz_load_vector<W>(x, ids[i * count] * d + col, best);
        for (int j = 0; j < W; j++) first[j] = 0;
        for (int k = 1; k < count; k++) {
            sz_load_vector<W>(x, ids[i * count + k] * d + col, v);
            for (int j = 0; j < W; j++)
                if (v[j] > best[j]) {
                    best[j] = v[j];
                    first[j] = k;
                }
        }
        if (y.data) sz_store_vector<W>(y, i * d + col, best);
        if (winner)
            for (int j = 0; j < W; j++) winner[i * d + col + j] = first[j];
    }
}

static void max_pool_rows(const sz_tensor *x, const sz_tensor *ids, const int32_t *device_ids,
                          sz_elements y, int32_t *winner)
{
    const int64_t n = ids->shape[0];
    const int64_t d = x->shape[1];
    const int count = (int)ids->shape[1];
    if (n == 0 || d == 0) return;
    if (d % SZ_VECTOR == 0 && sz_is_aligned16(x) && sz_is_aligned16(y.data))
        SZ_LAUNCH((max_pool_rows_kernel<SZ_VECTOR>), sz_grid(sz_blocks(n * d / SZ_VECTOR, THREADS)),
                  THREADS, 0, sz_elements_of(x), device_ids, n, count, d, y, winner);
    else
        SZ_LAUNCH((max_pool_rows_kernel<1>), sz_grid(sz_blocks(n * d, THREADS)), THREADS, 0,
                  sz_elements_of(x), device_ids, n, count, d, y, winner);
}

extern "C" int sz_cuda_max_pool_rows(const sz_call *c)
{
    const int32_t *ids = sz_cuda_indices(c->in[1]);
    if (!ids) return -1;
    max_pool_rows(c->in[0], c->in[1], ids, sz_elements_of(c->out[0]), NULL);
    return sz_cuda_launched("max_pool_rows");
}

/* dx[id] = the sum of dy[i] over the places (i, k) of id that won. Rows without an id are zero
 * already. */
__global__ void max_pool_rows_backward_kernel(groups g, const int32_t *winner, sz_elements dy,
                                              int count, int64_t d, sz_elements dx)
{
    const int64_t col = (int64_t)blockIdx.y * THREADS + threadIdx.x;
    const int64_t group = blockIdx.x;
    if (col >= d) return;
    float sum = 0;
    for (int32_t place = g.start[group]; place < g.start[group + 1]; place++) {
        const int64_t i = g.order[place] / count;
        if (winner[i * d + col] == g.order[place] % count) sum += sz_load_element(dy, i * d + col);
    }
    sz_store_element(dx, g.id[group] * d + col, sum);
}

extern "C" int sz_cuda_max_pool_rows_backward(const sz_call *c)
{
    const sz_tensor *x = c->in[0];
    const sz_tensor *ids = c->in[1];
    const sz_tensor *dy = c->in[2];
    const sz_tensor *dx = c->out[0];
    const int64_t d = x->shape[1];
    groups g;
    if (dx->numel == 0) return 0;
    if (sz_cuda_check(cudaMemsetAsync(dx->data, 0, sz_bytes(dx), sz_cuda_stream()),
                      "max_pool_rows_backward") != 0)
        return -1;
    if (dy->numel == 0) return 0;

    /* Find the winners again, then add the gradients of each row's wins. */
    const int32_t *device_ids = sz_cuda_indices(ids);
    int32_t *winner = (int32_t *)sz_cuda_scratch((size_t)dy->numel * sizeof *winner);
    if (!device_ids || !winner || find_groups(ids, x->shape[0], &g) != 0) return -1;
    max_pool_rows(x, ids, device_ids, sz_elements{ NULL, false }, winner);
    const dim3 grid((unsigned)g.count, (unsigned)sz_blocks(d, THREADS));
    SZ_LAUNCH(max_pool_rows_backward_kernel, grid, THREADS, 0, g, winner, sz_elements_of(dy),
              (int)ids->shape[1], d, sz_elements_of(dx));
    return sz_cuda_launched("max_pool_rows_backward");
}
