/* fuzz.h - what the fuzz targets share: libFuzzer's entry point, a file that holds the input, and
 * a reader of small numbers.
 *
 *   int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)      each target defines it
 *
 * Leaves out: mutation (libFuzzer's own; the corpus and the dictionaries guide it).
 */
#ifndef SZ_FUZZ_H
#define SZ_FUZZ_H

#define _GNU_SOURCE

#include "sz.h"
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The path of a file in memory that holds the bytes. The same file is used by every call. */
static inline const char *fuzz_file(const uint8_t *data, size_t size)
{
    static char path[64];
    static int fd = -1;
    if (fd < 0) {
        fd = memfd_create("fuzz", 0);
        if (fd < 0) abort();
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    }
    if (ftruncate(fd, 0) != 0) abort();
    if (pwrite(fd, data, size, 0) != (ssize_t)size) abort();
    return path;
}

/* The next byte of the input, 0 after its end. */
typedef struct {
    const uint8_t *data;
    size_t size;
} fuzz_bytes;

static inline unsigned fuzz_byte(fuzz_bytes *b)
{
    if (b->size == 0) return 0;
    b->size--;
    return *b->data++;
}

/* A number of up to 8 bytes, most often small: the first byte says how many follow. */
static inline int64_t fuzz_number(fuzz_bytes *b)
{
    unsigned count = fuzz_byte(b) % 9;
    uint64_t value = 0;
    while (count-- > 0) value = value << 8 | fuzz_byte(b);
    return (int64_t)value;
}

#endif
