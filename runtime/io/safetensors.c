/* safetensors.c - safetensors files: mapping, tensors over parts of the mapping, writing.
 *
 * Format: u64 little endian header length n, n bytes of JSON, then the data part; offsets in the
 * JSON count from the start of the data part. Lua reads and writes the JSON
 * (lua/segzero/formats/safetensors.lua); every number that came from it is checked again here. The
 * mapping is private and writable: training may update mapped weights in place, and the file never
 * changes.
 *
 * Mapping reads nothing. When the first tensor is made, a thread for each large file asks the
 * system to read the file ahead, one file at a time and at most half of the machine's memory in
 * total. So the caller goes on at once, and the first pass over the weights runs at the disk's
 * speed, not a page fault's.
 * Leaves out: big-endian machines.
 */
#define XXH_INLINE_ALL
#include "core/device.h"
#include "io.h"
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
               "safetensors data is little endian and is used in place");

enum {
    MAX_HEADER = 100000000,    /* the limit of the reference implementation */
    READ_AHEAD_STEP = 16 << 20 /* bytes; soon stopped, yet large enough to keep a disk busy */
};

typedef struct {
    void *base;
    size_t bytes;
    int fd;       /* -1: the file is not read ahead */
    bool started; /* reader runs or has run */
    pthread_t reader;
    atomic_int stop;
} mapping;

struct sz_file {
    char *path;
    mapping *map;        /* owned by storage */
    sz_storage *storage; /* one reference; each tensor holds another */
    uint8_t *base;
    size_t header, bytes; /* header length, file size */
};

/* ---- reading ahead ---- */

static pthread_mutex_t reading = PTHREAD_MUTEX_INITIALIZER; /* held by the thread that reads */
static atomic_llong bytes_ahead;                            /* since the program started */

static void *read_ahead(void *p)
{
    mapping *m = p;
    long long most = (long long)sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE) / 2;

    /* One file at a time. */
    while (pthread_mutex_trylock(&reading) != 0) {
        if (atomic_load(&m->stop)) return NULL;
        usleep(1000);
    }
    for (size_t at = 0; at < m->bytes && !atomic_load(&m->stop); at += READ_AHEAD_STEP) {
        if (atomic_fetch_add(&bytes_ahead, READ_AHEAD_STEP) >= most) break;
        if (posix_fadvise(m->fd, (off_t)at, READ_AHEAD_STEP, POSIX_FADV_WILLNEED) != 0) break;
    }
    pthread_mutex_unlock(&reading);
    return NULL;
}

/* Called for each tensor. When the first is made, the headers of all shards have been read; they
 * would otherwise wait behind the data. */
static void start_reading(mapping *m)
{
    if (m->fd < 0 || m->started) return;
    m->started = pthread_create(&m->reader, NULL, read_ahead, m) == 0;
}

/* ---- mapping ---- */

static void unmap(void *owner)
{
    mapping *m = owner;
    if (m->started) {
        atomic_store(&m->stop, 1);
        pthread_join(m->reader, NULL);
    }
    if (m->fd >= 0) close(m->fd);
    munmap(m->base, m->bytes);
    free(m);
}

/* Reads and checks the sizes: 0, or -1 with a message. */
static int read_sizes(int fd, const char *path, uint64_t *header, size_t *bytes)
{
    struct stat st;
    if (fstat(fd, &st) != 0) return sz_fail("%s: %s", path, strerror(errno));
    if (!S_ISREG(st.st_mode)) return sz_fail("%s: not a regular file", path);
    long long size = (long long)st.st_size;
    if (size < 8) return sz_fail("%s: %lld bytes are too few for a safetensors file", path, size);

    /* The header length must be possible for this file. */
    if (pread(fd, header, 8, 0) != 8) return sz_fail("%s: cannot read the header length", path);
    unsigned long long length = *header;
    if (length > MAX_HEADER)
        return sz_fail("%s: header length %llu is over the limit of %d: not a safetensors file?",
                       path, length, MAX_HEADER);
    if (length + 8 > (uint64_t)size)
        return sz_fail("%s: header length %llu, but the file has only %lld bytes", path, length,
                       size);
    *bytes = (size_t)size;
    return 0;
}

/* Makes the mapping's object; on failure returns NULL with a message and unmaps. Owns fd. */
static mapping *mapping_new(void *base, size_t bytes, int fd, const char *path)
{
    mapping *m = malloc(sizeof *m);
    if (!m) {
        munmap(base, bytes);
        close(fd);
        return sz_null("%s: out of memory", path);
    }
    *m = (mapping){ .base = base, .bytes = bytes, .fd = fd };

    /* A small file is not worth a thread. */
    if (bytes <= READ_AHEAD_STEP) {
        close(fd);
        m->fd = -1;
    }
    return m;
}

sz_file *sz_file_map(const char *path)
{
    /* Opening a pipe does not wait for its writer; it is refused with all that is no file. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return sz_null("%s: %s", path, strerror(errno));
    uint64_t header = 0;
    size_t bytes = 0;
    if (read_sizes(fd, path, &header, &bytes) != 0) {
        close(fd);
        return NULL;
    }

    /* Pages are reserved only when something writes to them, so a checkpoint larger than free
     * memory can be mapped. */
    void *base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, fd, 0);
    if (base == MAP_FAILED) {
        sz_fail("%s: cannot map: %s", path, strerror(errno));
        close(fd);
        return NULL;
    }
    mapping *m = mapping_new(base, bytes, fd, path);
    if (!m) return NULL;

    /* The file object and its storage, which owns the mapping. */
    sz_file *f = calloc(1, sizeof *f);
    char *name = strdup(path);
    if (!f || !name) {
        sz_fail("%s: out of memory", path);
        goto fail;
    }
    *f = (sz_file){ .path = name,
                    .map = m,
                    .storage = sz_storage_new(base, bytes, unmap, m),
                    .base = base,
                    .header = (size_t)header,
                    .bytes = bytes };
    if (f->storage) return f;
fail:
    unmap(m);
    free(name);
    free(f);
    return NULL;
}

void sz_file_close(sz_file *f)
{
    if (!f) return;
    sz_storage_release(f->storage);
    free(f->path);
    free(f);
}

const char *sz_file_header(sz_file *f, size_t *len)
{
    *len = f->header;
    return (const char *)f->base + 8;
}

int64_t sz_file_data_bytes(sz_file *f) { return (int64_t)(f->bytes - 8 - f->header); }

/* ---- tensors ---- */

/* Checks that [begin, end) is inside the data part and numel * size bytes long. Returns its first
 * byte, or NULL with a message. */
static uint8_t *locate(sz_file *f, const char *name, size_t size, int ndim, const int64_t *shape,
                       int64_t begin, int64_t end)
{
    if (ndim < 0 || ndim > SZ_MAX_DIMS)
        return sz_null("%s: tensor '%s' has %d dimensions, at most %d are supported", f->path, name,
                       ndim, SZ_MAX_DIMS);

    /* The bytes that the shape needs. */
    int64_t want = (int64_t)size;
    for (int i = 0; i < ndim; i++)
        if (shape[i] < 0 || __builtin_mul_overflow(want, shape[i], &want))
            return sz_null("%s: tensor '%s' has an impossible size (dimension %d is %lld)", f->path,
                           name, i, (long long)shape[i]);

    /* The bytes that it has. */
    long long first = begin;
    long long last = end;
    long long available = sz_file_data_bytes(f);
    if (begin < 0 || end < begin || end > sz_file_data_bytes(f))
        return sz_null("%s: tensor '%s' has bytes %lld to %lld, "
                       "outside the data part of %lld bytes",
                       f->path, name, first, last, available);
    if (end - begin != want)
        return sz_null("%s: tensor '%s' has %lld bytes, its shape needs %lld", f->path, name,
                       last - first, (long long)want);
    return f->base + 8 + f->header + begin;
}

sz_tensor *sz_file_tensor(sz_file *f, const char *name, int dtype, int ndim, const int64_t *shape,
                          int64_t begin, int64_t end)
{
    if (dtype < SZ_F32 || dtype > SZ_U8)
        return sz_null("%s: tensor '%s' has unknown dtype %d", f->path, name, dtype);
    size_t size = sz_dtype_size(dtype);
    uint8_t *p = locate(f, name, size, ndim, shape, begin, end);
    if (!p) return NULL;
    start_reading(f->map);

    /* Aligned data is used in place, other data is copied. */
    if ((uintptr_t)p % size == 0) return sz_tensor_over(f->storage, dtype, ndim, shape, p);
    sz_tensor *t = sz_tensor_new_heap(dtype, ndim, shape, SZ_CPU);
    if (t && end > begin) memcpy(t->data, p, (size_t)(end - begin));
    if (t) sz_unload_pages(p, (size_t)(end - begin));
    return t;
}

/* An IEEE half as a float, exactly. */
static float from_half(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16;
    uint32_t exponent = (h >> 10) & 31;
    uint32_t fraction = h & 0x3ff;
    union {
        uint32_t u;
        float f;
    } v;
    if (exponent == 0) {
        /* Zero and subnormals: fraction * 2^-24 is exact in f32. */
        v.f = (float)fraction * 0x1p-24f;
        v.u |= sign;
    } else {
        uint32_t wide_exponent = exponent == 31 ? 0xffu : exponent + 112;
        v.u = sign | wide_exponent << 23 | fraction << 13;
    }
    return v.f;
}

/* Element i of unaligned data of one of the dtypes that sz_file_convert reads. */
static inline float element(const uint8_t *p, int dtype, int64_t i)
{
    float x;
    uint16_t h;
    if (dtype == SZ_F32) {
        memcpy(&x, p + 4 * i, 4);
        return x;
    }
    memcpy(&h, p + 2 * i, 2);
    return dtype == SZ_BF16 ? sz_from_bf16(h) : from_half(h);
}

/* out [n] = the unaligned data at p. */
static void widen(float *restrict out, const uint8_t *restrict p, int64_t n)
{
    for (int64_t i = 0; i < n; i++) out[i] = element(p, SZ_BF16, i);
}

static void narrow(uint16_t *restrict out, const uint8_t *restrict p, int64_t n)
{
    for (int64_t i = 0; i < n; i++) out[i] = sz_to_bf16(element(p, SZ_F32, i));
}

/* Elements i .. i + n of t become those from `from` on of the data. */
static void take(sz_tensor *t, int64_t i, int64_t n, const uint8_t *data, int dtype, int64_t from)
{
    const size_t size = dtype == SZ_F32 ? 4 : 2;
    const uint8_t *p = data + (size_t)from * size;
    if (dtype == t->dtype) memcpy((char *)t->data + (size_t)i * size, p, (size_t)n * size);
    else if (dtype == SZ_BF16) widen(sz_f32(t) + i, p, n);
    else if (dtype == SZ_F32) narrow(sz_bf16(t) + i, p, n);
    else
        for (int64_t k = 0; k < n; k++) sz_put(t, i + k, element(p, dtype, k));
}

/* t = its elements of the data at p. Piece by piece; the file's pages leave memory once they have
 * been read. */
static void fill_part(sz_tensor *t, const sz_place *place, const uint8_t *p, int dtype)
{
    enum { PIECE = 16 << 20, CHUNK = 1 << 15 };
    const size_t size = dtype == SZ_F32 ? 4 : 2;
    int64_t begin = 0;
    int64_t end = 0;
    for (int64_t first = 0; first < t->numel; first += PIECE) {
        const int64_t stop = first + PIECE < t->numel ? first + PIECE : t->numel;
#pragma omp parallel for schedule(static) if (stop - first > CHUNK)
        for (int64_t chunk = first; chunk < stop; chunk += CHUNK) {
            const int64_t last = chunk + CHUNK < stop ? chunk + CHUNK : stop;
            int64_t at = 0;
            int64_t n = 0;
            for (int64_t i = chunk; i < last; i += n) {
                n = sz_place_run(place, i, last, &at);
                take(t, i, n, p, dtype, at);
            }
        }
        sz_place_run(place, first, stop, &begin);
        sz_place_run(place, stop - 1, stop, &end);
        sz_unload_pages(p + size * (size_t)begin, size * (size_t)(end + 1 - begin));
    }
}

/* Bytes of an element, or 0 with a message. */
static size_t convertible(const sz_file *f, const char *name, int from, int to)
{
    if (from != SZ_F32 && from != SZ_BF16 && from != SZ_FILE_F16)
        sz_fail("%s: tensor '%s' has unknown dtype %d", f->path, name, from);
    else if (to != SZ_F32 && to != SZ_BF16)
        sz_fail("%s: tensor '%s' cannot be converted to dtype %d", f->path, name, to);
    else return from == SZ_F32 ? 4 : 2;
    return 0;
}

sz_tensor *sz_file_convert(sz_file *f, const char *name, int from, int to, int ndim,
                           const int64_t *shape, int64_t begin, int64_t end)
{
    const sz_place whole = { .run = 1, .stride = 1 };
    const size_t size = convertible(f, name, from, to);
    const uint8_t *p = size ? locate(f, name, size, ndim, shape, begin, end) : NULL;
    sz_tensor *t = p ? sz_tensor_new_heap(to, ndim, shape, SZ_CPU) : NULL;
    if (t) fill_part(t, &whole, p, from);
    return t;
}

sz_tensor *sz_file_part(sz_file *f, const char *name, int from, int to, int ndim,
                        const int64_t *shape, const sz_place *place, int64_t begin, int64_t end)
{
    const size_t size = convertible(f, name, from, to);
    if (!size) return NULL;
    const int64_t whole = (end - begin) / (int64_t)size;
    const uint8_t *p = locate(f, name, size, 1, &whole, begin, end);
    sz_tensor *t = p ? sz_tensor_new_heap(to, ndim, shape, SZ_CPU) : NULL;
    if (!t) return NULL;
    if (sz_place_check(place, t->numel, whole) != 0) {
        sz_tensor_release(t);
        return NULL;
    }
    start_reading(f->map);
    fill_part(t, place, p, from);
    return t;
}

/* ---- writing ---- */

/* Writes bytes and, if sum is not NULL, adds them to a checksum. */
static int put(sz_writer *w, XXH3_state_t *sum, const void *bytes, size_t len)
{
    if (sum) XXH3_64bits_update(sum, bytes, len);
    return sz_writer_put(w, bytes, len);
}

/* A device tensor is copied to the host in pieces. */
static int put_tensor(sz_writer *w, XXH3_state_t *sum, const sz_tensor *t)
{
    enum { PIECE = 4 << 20 };
    size_t total = sz_bytes(t);
    char *piece = NULL;
    if (t->device != SZ_CPU && !(piece = malloc(PIECE))) {
        sz_writer_abort(w);
        return sz_fail("out of memory");
    }

    /* A failed write closes the writer by itself, a failed copy does not. */
    int rc = 0;
    for (size_t first = 0; rc == 0 && first < total; first += PIECE) {
        size_t n = total - first < PIECE ? total - first : PIECE;
        char *bytes = (char *)t->data + first;
        if (piece && sz_bytes_copy(SZ_CPU, piece, t->device, bytes, n) != 0) {
            sz_writer_abort(w);
            rc = -1;
        } else {
            rc = put(w, sum, piece ? piece : bytes, n);
        }
    }
    free(piece);
    return rc;
}

/* Header and tensors, with their checksums if sums is not NULL. */
static int put_all(sz_writer *w, const char *header, size_t header_len, sz_tensor **tensors, int n,
                   uint64_t *sums)
{
    XXH3_state_t state;
    XXH3_INITSTATE(&state);
    XXH3_state_t *sum = sums ? &state : NULL;
    uint64_t length = header_len;
    XXH3_64bits_reset(&state);
    if (put(w, sum, &length, 8) != 0) return -1;
    if (put(w, sum, header, header_len) != 0) return -1;
    if (sums) sums[0] = XXH3_64bits_digest(&state);
    for (int i = 0; i < n; i++) {
        XXH3_64bits_reset(&state);
        if (put_tensor(w, sum, tensors[i]) != 0) return -1;
        if (sums) sums[i + 1] = XXH3_64bits_digest(&state);
    }
    return 0;
}

int sz_safetensors_write_sums(const char *path, const char *header, size_t header_len,
                              sz_tensor **tensors, int n, uint64_t *sums)
{
    /* Check everything before the file is opened. */
    if (header_len > MAX_HEADER)
        return sz_fail("%s: a header of %zu bytes is over the limit of %d", path, header_len,
                       MAX_HEADER);
    for (int i = 0; i < n; i++) {
        if (!tensors[i]) return sz_fail("%s: tensor %d to be written is missing", path, i + 1);
        if (tensors[i]->numel && sz_tensor_alive(tensors[i]) != 0) return -1;
    }

    sz_writer w;
    if (sz_writer_open(&w, path) != 0) return -1;
    if (put_all(&w, header, header_len, tensors, n, sums) != 0) return -1;
    return sz_writer_commit(&w);
}

int sz_safetensors_write(const char *path, const char *header, size_t header_len,
                         sz_tensor **tensors, int n)
{
    return sz_safetensors_write_sums(path, header, header_len, tensors, n, NULL);
}
