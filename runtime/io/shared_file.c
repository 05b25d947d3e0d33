/* shared_file.c - a safetensors file that several processes write: one makes it with its header and
 * its whole length, and each writes its own ranges of bytes at their places.
 *
 * A part of a tensor whose columns are divided is many runs of bytes, and each is one write; the
 * ranks make rows of them first where they can (comm/columns.c).
 * What a range holds before it is written is zeros that take no room on the disk. The caller gives
 * the file its final name once all have written, and removes it if one has failed.
 * Leaves out: who writes what (lua/segzero/train/run/checkpoint.lua).
 */
#include "core/device.h"
#include "io.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

static int fail(const char *path, const char *what)
{
    return sz_fail("%s: cannot %s: %s", path, what, strerror(errno));
}

/* Writes all bytes at their place: 0, or -1 with errno. */
static int put(int fd, const char *p, size_t len, int64_t at)
{
    const size_t most = 64u << 20;
    while (len > 0) {
        ssize_t n = pwrite(fd, p, len < most ? len : most, (off_t)at);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return -1;
        p += n;
        len -= (size_t)n;
        at += n;
    }
    return 0;
}

/* Writes elements first .. first + n of a part, which are at `bytes`, run by run. begin: of the
 * whole tensor in the file. */
static int put_runs(int fd, const char *bytes, const sz_place *place, int64_t first, int64_t n,
                    size_t size, int64_t begin)
{
    int64_t at = 0;
    int64_t run = 0;
    for (int64_t i = 0; i < n; i += run) {
        run = sz_place_run(place, first + i, first + n, &at);
        const char *p = bytes + (size_t)i * size;
        if (put(fd, p, (size_t)run * size, begin + at * (int64_t)size) != 0) return -1;
    }
    return 0;
}

/* A device tensor is copied to the host in pieces. */
static int put_tensor(int fd, const char *path, const sz_tensor *t, const sz_place *place,
                      int64_t begin)
{
    enum { PIECE = 1 << 20 };
    const size_t size = sz_dtype_size(t->dtype);
    if (t->device == SZ_CPU)
        return put_runs(fd, t->data, place, 0, t->numel, size, begin) == 0 ? 0
                                                                           : fail(path, "write");
    char *piece = malloc(PIECE * size);
    int rc = piece ? 0 : sz_fail("%s: out of memory", path);
    for (int64_t first = 0; rc == 0 && first < t->numel; first += PIECE) {
        const int64_t n = t->numel - first < PIECE ? t->numel - first : PIECE;
        const char *from = (char *)t->data + (size_t)first * size;
        rc = sz_bytes_copy(SZ_CPU, piece, t->device, from, (size_t)n * size);
        if (rc == 0 && put_runs(fd, piece, place, first, n, size, begin) != 0)
            rc = fail(path, "write");
    }
    free(piece);
    return rc;
}

/* Makes what was written durable, and closes. */
static int finish(int fd, const char *path, int rc)
{
    if (rc == 0 && fsync(fd) != 0) rc = fail(path, "sync");
    if (close(fd) != 0 && rc == 0) rc = fail(path, "close");
    return rc;
}

int sz_shared_file_begin(const char *path, const char *header, size_t header_len, int64_t bytes)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0) return fail(path, "create");
    const uint64_t length = header_len;
    int rc = 0;
    if (put(fd, (const char *)&length, sizeof length, 0) != 0 ||
        put(fd, header, header_len, sizeof length) != 0 || ftruncate(fd, (off_t)bytes) != 0)
        rc = fail(path, "write");
    return finish(fd, path, rc);
}

/* Opens the file that another process has made; -1 with a message. */
static int open_made(const char *path)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd >= 0) return fd;
    if (errno != ENOENT) return fail(path, "open");
    return sz_fail("%s is not there: rank 0 has made it, and the ranks need a file system that "
                   "they share",
                   path);
}

int sz_shared_file_put(const char *path, sz_tensor *t, int64_t begin, const sz_place *place)
{
    if (sz_tensor_alive(t) != 0 || sz_place_check(place, t->numel, INT64_MAX) != 0) return -1;
    int fd = open_made(path);
    if (fd < 0) return -1;
    int rc = put_tensor(fd, path, t, place, begin);
    if (close(fd) != 0 && rc == 0) rc = fail(path, "close");
    return rc;
}

int sz_shared_file_write(const char *path, sz_tensor **tensors, const int64_t *begin,
                         const sz_place *places, int n)
{
    for (int i = 0; i < n; i++)
        if (sz_place_check(&places[i], tensors[i]->numel, INT64_MAX) != 0) return -1;
    int fd = open_made(path);
    if (fd < 0) return -1;
    int rc = 0;
    for (int i = 0; rc == 0 && i < n; i++)
        rc = put_tensor(fd, path, tensors[i], &places[i], begin[i]);
    return finish(fd, path, rc);
}
