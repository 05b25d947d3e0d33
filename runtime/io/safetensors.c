/* safetensors.c - safetensors files: mapping, tensors over parts of the mapping, writing.
 *
 * Format: u64 little endian header length n, n bytes of JSON, then the data part; offsets in the JSON count from the
 * start of the data part. The JSON is read and made by Lua (lua/segzero/formats/safetensors.lua); here every number that came
 * from it is checked again. The mapping is private and writable: training may update mapped weights in place, the file
 * never changes.
 *
 * Mapping reads nothing. From the first tensor on a thread for each large file asks the system to read it ahead, one file at a time and at most half of
 * the machine's memory in all, so that the caller goes on at once and the first pass over the weights finds them at the
 * disk's speed rather than a page fault's. Leaves out big-endian machines. */
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

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "safetensors data is little endian and is used in place");

enum { MAX_HEADER = 100000000 };    /* the limit of the reference implementation */
enum { AHEAD_STEP = 16 << 20 };     /* read ahead at a time: small enough to stop soon, large enough to keep a disk busy */

typedef struct {
    void *base;
    size_t bytes;
    int fd;                         /* -1: read ahead is out of the question */
    bool started;                   /* reader runs or has run */
    pthread_t reader;
    atomic_int stop;
} mapping;

struct sz_file {
    char *path;
    mapping *map;           /* owned by storage */
    sz_storage *storage;    /* one reference; each tensor holds another */
    uint8_t *base;
    size_t header, bytes;   /* header length, file size */
};

static pthread_mutex_t reading = PTHREAD_MUTEX_INITIALIZER;     /* held by the thread that reads ahead */
static atomic_llong ahead_bytes;                                /* read ahead since the program started */

static void *read_ahead(void *p)
{
    mapping *m = p;
    long long most = (long long)sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE) / 2;
    while (pthread_mutex_trylock(&reading) != 0) {
        if (atomic_load(&m->stop)) return NULL;
        usleep(1000);
    }
    for (size_t at = 0; at < m->bytes && !atomic_load(&m->stop); at += AHEAD_STEP) {
        if (atomic_fetch_add(&ahead_bytes, AHEAD_STEP) >= most) break;
        if (posix_fadvise(m->fd, (off_t)at, AHEAD_STEP, POSIX_FADV_WILLNEED) != 0) break;
    }
    pthread_mutex_unlock(&reading);
    return NULL;
}

/* At the first tensor: by then the headers of all the shards have been read, which would otherwise queue behind the data. */
static void start_reading(mapping *m)
{
    if (m->fd >= 0 && !m->started) m->started = pthread_create(&m->reader, NULL, read_ahead, m) == 0;
}

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

sz_file *sz_file_map(const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return sz_null("%s: %s", path, strerror(errno));
    struct stat st;
    uint64_t header = 0;
    int ok = -1;
    if (fstat(fd, &st) != 0) sz_fail("%s: %s", path, strerror(errno));
    else if (!S_ISREG(st.st_mode)) sz_fail("%s: not a regular file", path);
    else if (st.st_size < 8) sz_fail("%s: %lld bytes are too few for a safetensors file", path, (long long)st.st_size);
    else if (pread(fd, &header, 8, 0) != 8) sz_fail("%s: cannot read the header length", path);
    else if (header > MAX_HEADER) sz_fail("%s: header length %llu is over the limit of %d: not a safetensors file?", path, (unsigned long long)header, MAX_HEADER);
    else if (header + 8 > (uint64_t)st.st_size) sz_fail("%s: header length %llu, but the file has only %lld bytes", path, (unsigned long long)header, (long long)st.st_size);
    else ok = 0;
    void *base = MAP_FAILED;
    size_t bytes = ok == 0 ? (size_t)st.st_size : 0;
    if (ok == 0) {
        /* Pages are reserved only when something writes to them, so a checkpoint larger than free memory still maps. */
        base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, fd, 0);
        if (base == MAP_FAILED) sz_fail("%s: cannot map: %s", path, strerror(errno));
    }
    if (base == MAP_FAILED) {
        close(fd);
        return NULL;
    }

    mapping *m = malloc(sizeof *m);
    sz_file *f = calloc(1, sizeof *f);
    char *name = strdup(path);
    if (!m || !f || !name) {
        munmap(base, bytes);
        close(fd);
        free(m);
        free(f);
        free(name);
        return sz_null("%s: out of memory", path);
    }
    *m = (mapping){ .base = base, .bytes = bytes, .fd = fd };
    if (bytes <= AHEAD_STEP) {
        close(fd);
        m->fd = -1;
    }
    *f = (sz_file){ name, m, sz_storage_new(base, bytes, unmap, m), base, (size_t)header, bytes };
    if (!f->storage) {
        unmap(m);
        free(name);
        free(f);
        return NULL;
    }
    return f;
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

/* Checks that [begin, end) lies in the data part and is numel * size bytes long; returns its first byte. */
static uint8_t *locate(sz_file *f, const char *name, size_t size, int ndim, const int64_t *shape, int64_t begin, int64_t end)
{
    if (ndim < 0 || ndim > SZ_MAX_DIMS) return sz_null("%s: tensor '%s' has %d dimensions, at most %d are handled", f->path, name, ndim, SZ_MAX_DIMS);
    int64_t want = (int64_t)size;
    for (int i = 0; i < ndim; i++)
        if (shape[i] < 0 || __builtin_mul_overflow(want, shape[i], &want))
            return sz_null("%s: tensor '%s' has an impossible size (dimension %d is %lld)", f->path, name, i, (long long)shape[i]);
    if (begin < 0 || end < begin || end > sz_file_data_bytes(f))
        return sz_null("%s: tensor '%s' has bytes %lld to %lld, outside the data part of %lld bytes", f->path, name,
                       (long long)begin, (long long)end, (long long)sz_file_data_bytes(f));
    if (end - begin != want)
        return sz_null("%s: tensor '%s' has %lld bytes, its shape needs %lld", f->path, name, (long long)(end - begin), (long long)want);
    return f->base + 8 + f->header + begin;
}

sz_tensor *sz_file_tensor(sz_file *f, const char *name, int dtype, int ndim, const int64_t *shape, int64_t begin, int64_t end)
{
    if (dtype < SZ_F32 || dtype > SZ_U8) return sz_null("%s: tensor '%s' has unknown dtype %d", f->path, name, dtype);
    size_t size = sz_dtype_size(dtype);
    uint8_t *p = locate(f, name, size, ndim, shape, begin, end);
    if (!p) return NULL;
    start_reading(f->map);
    if ((uintptr_t)p % size == 0) return sz_tensor_over(f->storage, dtype, ndim, shape, p);
    sz_tensor *t = sz_tensor_new_heap(dtype, ndim, shape, SZ_CPU);
    if (t && end > begin) memcpy(t->data, p, (size_t)(end - begin));
    if (t) sz_unload_pages(p, (size_t)(end - begin));
    return t;
}

static float from_half(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = (h >> 10) & 31, fraction = h & 0x3ff;
    union { uint32_t u; float f; } v;
    if (exponent == 0) {    /* zero and subnormals: fraction * 2^-24 is exact in f32 */
        v.f = (float)fraction * 0x1p-24f;
        v.u |= sign;
    } else {
        v.u = sign | (exponent == 31 ? 0xffu : exponent + 112) << 23 | fraction << 13;
    }
    return v.f;
}

sz_tensor *sz_file_convert(sz_file *f, const char *name, int from, int to, int ndim, const int64_t *shape, int64_t begin, int64_t end)
{
    if (from != SZ_F32 && from != SZ_BF16 && from != SZ_FILE_F16) return sz_null("%s: tensor '%s' has unknown dtype %d", f->path, name, from);
    if (to != SZ_F32 && to != SZ_BF16) return sz_null("%s: tensor '%s' cannot become dtype %d", f->path, name, to);
    const size_t size = from == SZ_F32 ? 4 : 2;
    const uint8_t *p = locate(f, name, size, ndim, shape, begin, end);
    sz_tensor *t = p ? sz_tensor_new_heap(to, ndim, shape, SZ_CPU) : NULL;
    if (!t) return NULL;
    enum { PIECE = 16 << 20 };
    for (int64_t first = 0; first < t->numel; first += PIECE) {
        int64_t stop = first + PIECE < t->numel ? first + PIECE : t->numel;
        #pragma omp parallel for if (stop - first > 65536)
        for (int64_t i = first; i < stop; i++) {
            float x;
            uint16_t h;
            if (from == SZ_F32) memcpy(&x, p + 4 * i, 4);
            else memcpy(&h, p + 2 * i, 2), x = from == SZ_BF16 ? sz_from_bf16(h) : from_half(h);
            sz_put(t, i, x);
        }
        sz_unload_pages(p + size * (size_t)first, size * (size_t)(stop - first));
    }
    return t;
}

/* What lies on a device comes over in pieces. */
static int put_tensor(sz_writer *w, const sz_tensor *t)
{
    enum { PIECE = 4 << 20 };
    if (t->device == SZ_CPU) return sz_writer_put(w, t->data, sz_bytes(t));
    size_t total = sz_bytes(t);
    char *piece = malloc(PIECE);
    int rc = 0;
    if (!piece) {
        sz_writer_abort(w);
        return sz_fail("out of memory");
    }
    for (size_t at = 0; rc == 0 && at < total; at += PIECE) {
        size_t n = total - at < PIECE ? total - at : PIECE;
        if (sz_bytes_copy(SZ_CPU, piece, t->device, (char *)t->data + at, n) == 0) {
            rc = sz_writer_put(w, piece, n);
        } else {
            sz_writer_abort(w);
            rc = -1;
        }
    }
    free(piece);
    return rc;
}

int sz_safetensors_write(const char *path, const char *header, size_t header_len, sz_tensor **tensors, int n)
{
    if (header_len > MAX_HEADER) return sz_fail("%s: a header of %zu bytes is over the limit of %d", path, header_len, MAX_HEADER);
    for (int i = 0; i < n; i++) {
        if (!tensors[i]) return sz_fail("%s: tensor %d to be written is missing", path, i + 1);
        if (tensors[i]->numel && sz_tensor_alive(tensors[i]) != 0) return -1;
    }
    sz_writer w;
    uint64_t length = header_len;
    if (sz_writer_open(&w, path) != 0 || sz_writer_put(&w, &length, 8) != 0 || sz_writer_put(&w, header, header_len) != 0) return -1;
    for (int i = 0; i < n; i++)
        if (put_tensor(&w, tensors[i]) != 0) return -1;
    return sz_writer_commit(&w);
}
