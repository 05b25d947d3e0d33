/* attention.cuh - what the attention files share: the call's arguments, query columns, key rows,
 * the tasks of a forward pass.
 *
 * There are H query heads and G key heads (kv_heads); query head h reads key head h / (H/G), and
 * heads_per_kv = H/G. For one key head, a segment (ops.def) with q_len queries has
 * q_len * heads_per_kv query columns: column c is query c / heads_per_kv with head c %
 * heads_per_kv of the key head's query heads. A block of 128 threads processes 64 columns, 16 in
 * each warp. A segment's keys are numbered from its parent's first key on: key j < p_len is row
 * p_start + j, any other key is row k_start + j - p_len. A query sees the keys below its limit.
 * Leaves out: head widths above 128. */
#ifndef SZ_ATTENTION_CUH
#define SZ_ATTENTION_CUH

#include "device.cuh"

enum {
    SZ_ATTENTION_THREADS = 128,
    SZ_ATTENTION_COLUMNS = 64,
    SZ_ATTENTION_MAX_DIM = 128,
};

/* A row of the segment table. */
struct sz_segment_row {
    int32_t q_start, q_len;
    int32_t k_start, k_len;
    int32_t p_start, p_len;
};

/* Addresses are those of head 0 in row 0, in device memory. */
struct sz_attention_args {
    const void *q, *k, *v;
    int64_t q_ld; /* elements from one row of q to the next */
    int64_t k_ld; /* the same for k and v */
    const sz_segment_row *segments;
    int32_t heads, kv_heads;
    int32_t heads_per_kv;
    int32_t dim;      /* width of a head */
    uint32_t inverse; /* 2^31 / heads_per_kv, for sz_columns */
    float scale;
    bool causal;
    bool aligned16; /* rows can be copied 16 bytes at a time */
};

/* Returns how many of the segment's own keys its query with this number sees. */
__host__ __device__ __forceinline__ int64_t sz_own_keys(const sz_segment_row &s, int64_t query,
                                                        bool causal)
{
    int64_t n = query + s.k_len - s.q_len + 1;
    if (!causal || n > s.k_len) return s.k_len;
    return n < 0 ? 0 : n;
}

/* Returns the row of the segment's key number j. */
__device__ __forceinline__ int64_t sz_key_row(const sz_segment_row &s, int64_t j)
{
    return j < s.p_len ? s.p_start + j : s.k_start + (j - s.p_len);
}

/* Maps the columns that follow a first one to rows and heads. Offsets c stay below the columns of a
 * tile, so x / heads_per_kv can be computed as x * inverse / 2^31. That leaves one long division
 * for each block instead of one for every 16 bytes. */
struct sz_columns {
    int64_t first_row;
    int32_t first_head;  /* first query head of the key head */
    int32_t head_offset; /* of the first column, below heads_per_kv */
    int32_t heads_per_kv;
    uint32_t inverse;

    /* Rows between the first column and column c. */
    __device__ __forceinline__ int rows_before(int c) const
    {
        return (int)((uint64_t)(uint32_t)(head_offset + c) * inverse >> 31);
    }
    __device__ __forceinline__ int64_t row(int c) const { return first_row + rows_before(c); }
    __device__ __forceinline__ int head(int c) const
    {
        return first_head + head_offset + c - rows_before(c) * heads_per_kv;
    }
    /* Makes column c the first one. */
    __device__ __forceinline__ void advance(int c)
    {
        int n = rows_before(c);
        first_row += n;
        head_offset += c - n * heads_per_kv;
    }
};

__device__ __forceinline__ sz_columns sz_columns_at(const sz_attention_args &a, int64_t q_start,
                                                    int kv_head, int64_t column)
{
    int64_t query = column / a.heads_per_kv;
    return sz_columns{ q_start + query, kv_head * a.heads_per_kv,
                       (int32_t)(column - query * a.heads_per_kv), a.heads_per_kv, a.inverse };
}

/* ---- host: the arguments of a call ---- */
static inline bool sz_on16(const void *p) { return (uintptr_t)p % 16 == 0; }

/* Fills *a from a call whose inputs are q, k, v, segments or, if packed, qkv, segments. Returns 0,
 * or -1 with a message. */
static inline int sz_attention_from(const sz_call *c, bool packed, const char *op,
                                    sz_attention_args *a)
{
    const sz_tensor *q = c->in[0];
    const sz_tensor *k = packed ? q : c->in[1];
    const sz_tensor *v = packed ? q : c->in[2];
    a->heads = (int32_t)c->args[0];
    a->kv_heads = (int32_t)c->args[1];
    a->dim = (int32_t)c->args[2];
    a->heads_per_kv = a->heads / a->kv_heads;
    a->inverse = (1u << 31) / (uint32_t)a->heads_per_kv + 1;
    a->causal = c->args[3] != 0;
    a->scale = (float)c->args[4];
    if (a->dim > SZ_ATTENTION_MAX_DIM)
        return sz_fail("%s: head_dim is %d; on CUDA it may be up to %d", op, a->dim,
                       SZ_ATTENTION_MAX_DIM);

    /* A packed row holds the query heads, then the key heads, then the value heads. */
    int64_t size = (int64_t)sz_dtype_size(q->dtype);
    int64_t first_key = packed ? (int64_t)a->heads * a->dim : 0;
    int64_t first_value = packed ? first_key + (int64_t)a->kv_heads * a->dim : 0;
    a->q = q->data;
    a->k = (const char *)k->data + first_key * size;
    a->v = (const char *)v->data + first_value * size;
    a->q_ld = sz_cols(q);
    a->k_ld = sz_cols(k);
    a->aligned16 = a->dim * size % 16 == 0 && a->q_ld * size % 16 == 0 &&
                   a->k_ld * size % 16 == 0 && sz_on16(a->q) && sz_on16(a->k) && sz_on16(a->v);
    a->segments = (const sz_segment_row *)sz_cuda_indices(c->in[packed ? 1 : 3]);
    return a->segments ? 0 : -1;
}

static inline const sz_segment_row *sz_segment_rows(const sz_tensor *table)
{
    return (const sz_segment_row *)table->data;
}

/* Returns the number of queries in the table; segments do not overlap. */
static inline int64_t sz_segment_queries(const sz_tensor *segments)
{
    int64_t n = 0;
    for (int64_t i = 0; i < segments->shape[0]; i++) n += sz_segment_rows(segments)[i].q_len;
    return n;
}

/* Runs the statement with T defined as the element type of dtype, and DIM as the width of a tile
 * that holds heads of width dim. */
#define SZ_ATTENTION_TILE(dtype, dim, T, DIM, ...) \
    do { \
        if ((dtype) == SZ_F32) { \
            typedef float T; \
            if ((dim) <= 32) { \
                enum { DIM = 32 }; \
                __VA_ARGS__; \
            } else if ((dim) <= 64) { \
                enum { DIM = 64 }; \
                __VA_ARGS__; \
            } else if ((dim) <= 96) { \
                enum { DIM = 96 }; \
                __VA_ARGS__; \
            } else { \
                enum { DIM = 128 }; \
                __VA_ARGS__; \
            } \
        } else { \
            typedef bf16 T; \
            if ((dim) <= 16) { \
                enum { DIM = 16 }; \
                __VA_ARGS__; \
            } else if ((dim) <= 32) { \
                enum { DIM = 32 }; \
                __VA_ARGS__; \
            } else if ((dim) <= 64) { \
                enum { DIM = 64 }; \
                __VA_ARGS__; \
            } else if ((dim) <= 80) { \
                enum { DIM = 80 }; \
                __VA_ARGS__; \
            } else if ((dim) <= 96) { \
                enum { DIM = 96 }; \
                __VA_ARGS__; \
            } else if ((dim) <= 112) { \
                enum { DIM = 112 }; \
                __VA_ARGS__; \
            } else { \
                enum { DIM = 128 }; \
                __VA_ARGS__; \
            } \
        } \
    } while (0)

/* ---- tasks of the forward pass ---- */
/* A task processes up to 64 columns of one key head against a range of keys: columns
 * [column, column + columns) of the segment, against its keys [first_key, end_key).
 * If list >= 0, the task's queries are list[list], list[list + 1], ... instead, which carry their
 * own rows and limits; they may belong to several segments that share these keys. slot is -1 if
 * the task writes the final result, else the index of the first column's partial result, to be
 * combined later. A task with 0 columns does nothing. */
struct sz_flash_task {
    int64_t column;
    int32_t segment, list, columns;
    int32_t first_key, end_key;
    int32_t slot;
};

struct sz_flash_query {
    int32_t row, limit;
};

/* Partial results, indexed [slot + column, kv_head]: DIM unnormalised sums each, and the pair
 * {maximum, sum of weights} with scores in units of log2. */
struct sz_flash_partials {
    float *sums;
    float2 *weights;
};

/* Runs the tasks for every key head; tasks and list are in device memory. Tasks with slot -1 write
 * out [rows, H * dim] and lse f32 [H, rows] (NULL: not wanted). The others write partials, whose
 * width is sz_flash_width. Returns 0, or -1 with a message. */
int sz_flash_run(const char *op, int dtype, const sz_attention_args &a, const sz_flash_task *tasks,
                 int64_t count, const sz_flash_query *list, void *out, float *lse, int64_t rows,
                 const sz_flash_partials &partials);

/* Returns DIM for this dtype and head width. */
int sz_flash_width(int dtype, int dim);

/* Cuts one segment into tasks that write final results, the longest first, and returns their
 * number. tasks may be NULL. */
static inline int64_t sz_flash_cut(const sz_segment_row *table, int32_t segment,
                                   int32_t heads_per_kv, sz_flash_task *tasks)
{
    const int64_t columns = (int64_t)table[segment].q_len * heads_per_kv;
    const int64_t n = (columns + SZ_ATTENTION_COLUMNS - 1) / SZ_ATTENTION_COLUMNS;
    for (int64_t i = 0; tasks && i < n; i++) {
        int64_t first = (n - 1 - i) * SZ_ATTENTION_COLUMNS;
        int64_t left = columns - first;
        int32_t count = left < SZ_ATTENTION_COLUMNS ? (int32_t)left : (int32_t)SZ_ATTENTION_COLUMNS;
        tasks[i] = sz_flash_task{ first, segment, -1, count, 0, INT32_MAX, -1 };
    }
    return n;
}

/* Kinds of cache entries (cuda.cuh). */
enum { SZ_CACHE_FLASH = 1, SZ_CACHE_CACHED, SZ_CACHE_BACKWARD };

/* Returns the device's list of tasks for all segments of a table; number[0] is their count. NULL
 * with a message. */
static inline const sz_cuda_cache_entry *sz_flash_schedule(const char *op, const sz_tensor *table,
                                                           int32_t heads_per_kv)
{
    sz_cuda_cache_entry *entry = sz_cuda_cache_get(table, SZ_CACHE_FLASH, heads_per_kv, 0, 0);
    if (!entry || entry->device) return entry;

    /* Count the tasks, then write them. */
    const sz_segment_row *rows = sz_segment_rows(table);
    int64_t count = 0;
    for (int64_t i = 0; i < table->shape[0]; i++)
        count += sz_flash_cut(rows, (int32_t)i, heads_per_kv, NULL);
    sz_flash_task *tasks = (sz_flash_task *)malloc((size_t)(count + 1) * sizeof *tasks);
    if (!tasks) return (sz_cuda_cache_entry *)sz_null("%s: out of memory", op);
    int64_t written = 0;
    for (int64_t i = 0; i < table->shape[0]; i++)
        written += sz_flash_cut(rows, (int32_t)i, heads_per_kv, tasks + written);

    entry->number[0] = count;
    int rc = sz_cuda_cache_fill(entry, tasks, (size_t)count * sizeof *tasks);
    free(tasks);
    return rc == 0 ? entry : NULL;
}

#endif
