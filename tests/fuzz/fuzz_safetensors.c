/* fuzz_safetensors.c - safetensors files, with the offsets and shapes that a hostile JSON header
 * could hand to the core. The input is the file; its last bytes also give the requests.
 * Leaves out: the JSON itself, which Lua reads (mutate.lua).
 */
#include "fuzz.h"
#include "graph.h"

enum { REQUESTS = 4, MAX_DIMS = 6, LARGEST = 1 << 20 };

static volatile uint8_t seen; /* so that reading is not optimised away */

static const int dtypes[] = { SZ_F32, SZ_BF16, SZ_I32, SZ_U8, SZ_FILE_F16, 99, -1 };

static int dtype_of(unsigned byte) { return dtypes[byte % (sizeof dtypes / sizeof *dtypes)]; }

static void read_whole(sz_tensor *t)
{
    if (!t) return;
    uint8_t sum = 0;
    const uint8_t *p = sz_tensor_data(t);
    int64_t bytes = sz_tensor_numel(t) * (int64_t)sz_dtype_size(sz_tensor_dtype(t));
    for (int64_t i = 0; i < bytes; i++) sum ^= p[i];
    seen = sum;
    sz_tensor_release(t);
}

static void request(sz_file *file, fuzz_bytes *b)
{
    int64_t shape[MAX_DIMS];
    int dtype = dtype_of(fuzz_byte(b));
    int to = dtype_of(fuzz_byte(b));
    int ndim = (int)(fuzz_byte(b) % (MAX_DIMS + 1));
    for (int i = 0; i < ndim; i++) shape[i] = fuzz_number(b);
    int64_t begin = fuzz_number(b);
    int64_t end = fuzz_number(b);
    if (begin >= 0 && end > begin && end - begin > LARGEST) return;

    read_whole(sz_file_tensor(file, "t", dtype, ndim, shape, begin, end));
    read_whole(sz_file_convert(file, "t", dtype, to, ndim, shape, begin, end));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    sz_file *file = sz_file_map(fuzz_file(data, size));
    if (!file) return 0;
    size_t len;
    uint8_t sum = 0;
    const char *header = sz_file_header(file, &len);
    for (size_t i = 0; i < len; i++) sum ^= (uint8_t)header[i];
    seen = sum;

    fuzz_bytes rest = { data + size / 2, size - size / 2 };
    for (int i = 0; i < REQUESTS; i++) request(file, &rest);
    sz_file_close(file);
    return 0;
}
