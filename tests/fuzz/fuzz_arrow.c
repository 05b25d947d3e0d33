/* fuzz_arrow.c - what Arrow's reader has in C: compressed buffers. The first bytes say the codec
 * and how many bytes are promised; the rest is packed.
 * Leaves out: the format itself, which Lua reads (mutate.lua).
 */
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_bytes b = { data, size };
    const int codec = (int)(fuzz_byte(&b) % 4) - 1;
    int64_t room = fuzz_number(&b);
    if (room > 1 << 18) room %= 1 << 18;
    uint8_t *packed = malloc(b.size + 1);
    if (!packed) abort();
    for (size_t i = 0; i < b.size; i++) packed[i] = b.data[i];

    uint8_t *bytes = sz_arrow_unpack(codec, packed, (int64_t)b.size, room);
    free(packed);
    if (!bytes) return 0;
    uint8_t sum = 0;
    for (int64_t i = 0; i < room; i++) sum ^= bytes[i];
    static volatile uint8_t seen;
    seen = sum;
    (void)seen;
    sz_arrow_free(bytes);
    return 0;
}
