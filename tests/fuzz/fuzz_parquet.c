/* fuzz_parquet.c - Parquet files: every column of the first and last rows, forwards and backwards,
 * from decoded pages and from pages that are entered in the middle.
 * Leaves out: putting nested values together, which Lua does (mutate.lua).
 */
#include "fuzz.h"

enum { ROWS = 8, LEAVES = 32 };

static void use(sz_parquet_values *v)
{
    if (!v) return;
    uint8_t sum = 0;
    for (int64_t i = 0; i < v->levels; i++) sum ^= v->def[i] ^ v->rep[i];
    int64_t bytes = v->offsets ? v->offsets[v->count] : v->count * v->width;
    for (int64_t i = 0; i < bytes; i++) sum ^= v->data[i];
    static volatile uint8_t seen;
    seen = sum;
    (void)seen;
    sz_parquet_values_free(v);
}

static void read_file(const char *path, int64_t large)
{
    sz_parquet_set_large(large);
    sz_parquet *f = sz_parquet_open(path);
    if (!f) return;
    int64_t rows = sz_parquet_rows(f);
    sz_parquet_pair(f, "huggingface");
    for (int i = 0; i < sz_parquet_nodes(f) && i < LEAVES; i++) {
        sz_parquet_node node;
        if (sz_parquet_node_at(f, i, &node) != 0) abort();
        if (node.leaf < 0) continue;
        for (int64_t r = 0; r < rows && r < ROWS; r++) use(sz_parquet_read(f, node.leaf, r, 1));
        if (rows > 2) use(sz_parquet_read(f, node.leaf, rows - 2, 2));
        if (rows > 0) use(sz_parquet_read(f, node.leaf, 0, 1));
    }
    sz_parquet_close(f);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *path = fuzz_file(data, size);
    read_file(path, 1 << 20);
    read_file(path, 0);
    return 0;
}
