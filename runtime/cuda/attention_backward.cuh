/* attention_backward.cuh - the schedule of the kernel that computes dk and dv
 * (attention_backward.cu), which attention_keys.cu makes on the host from a segment table.
 *
 * The host cuts the key rows into tiles of up to 64 rows that do not cross the ends of separate
 * ranges, and lists for each tile which columns (attention.cuh) of which segments see it, as own
 * keys or as a parent's. A tile that many columns see, such as a prompt's by its answers, becomes
 * several tasks, whose f32 sums are combined in order afterwards. The cut depends on the shapes
 * alone. Leaves out: the kernels. */
#ifndef SZ_ATTENTION_BACKWARD_CUH
#define SZ_ATTENTION_BACKWARD_CUH

#include "attention.cuh"

enum { SZ_KEY_ROWS = 64 }; /* key rows in a tile */

/* Columns [first, end) of a segment, which see keys of a tile as own keys or as its parent's. */
struct sz_key_columns {
    int64_t first, end;
    int32_t segment, parent;
};

/* Key rows [row, row + rows) and the column ranges [first, first + ranges) that see them. slot is
 * -1 if the task writes the final result, else the index of its partial sums. */
struct sz_key_task {
    int64_t first;
    int32_t row, rows, ranges, slot;
};

/* Key rows whose result is the sum of the partial sums [slot, slot + slots). */
struct sz_key_combine {
    int32_t row, rows, slot, slots;
};

/* Meaning of the cache entry's number[]. */
enum {
    SZ_KEY_TASKS,
    SZ_KEY_COMBINES,
    SZ_KEY_SLOTS,
    SZ_KEY_COVERED, /* key rows that are in some tile */
    SZ_KEY_RANGES,
};

/* Returns the schedule: in device memory, tasks, then column ranges, then combines. NULL with a
 * message. */
const sz_cuda_cache_entry *sz_key_schedule(const char *op, const sz_attention_args &a,
                                           const sz_tensor *table);

#endif
