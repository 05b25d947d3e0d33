/* file.c - whole files: read into memory, or written so that a reader sees the old file or the new
 * one, never a part.
 * Leaves out: mapping (safetensors.c) and every format.
 */
#include "io.h"
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* Memory for the whole of an open file; NULL with a message. */
static uint8_t *allocate_for(int fd, const char *path, size_t max, size_t *size)
{
    struct stat st;
    if (fstat(fd, &st) != 0) return sz_null("%s: %s", path, strerror(errno));
    if (!S_ISREG(st.st_mode)) return sz_null("%s: not a regular file", path);
    if (st.st_size == 0) return sz_null("%s: the file is empty", path);

    long long bytes = (long long)st.st_size;
    if ((uint64_t)bytes > max)
        return sz_null("%s: %lld bytes, more than the limit of %zu", path, bytes, max);
    *size = (size_t)bytes;
    uint8_t *memory = malloc(*size);
    return memory ? memory : sz_null("%s: out of memory for %lld bytes", path, bytes);
}

uint8_t *sz_io_read(const char *path, size_t max, size_t *len)
{
    /* Opening a named pipe would wait for its writer without O_NONBLOCK. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return sz_null("%s: %s", path, strerror(errno));

    /* A read may return less than asked for. */
    size_t size = 0;
    size_t got = 0;
    uint8_t *bytes = allocate_for(fd, path, max, &size);
    while (bytes && got < size) {
        ssize_t n = read(fd, bytes + got, size - got);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) {
            const char *reason = "the file became shorter while it was read";
            sz_fail("%s: %s", path, n ? strerror(errno) : reason);
            free(bytes);
            bytes = NULL;
            break;
        }
        got += (size_t)n;
    }
    close(fd);
    *len = got;
    return bytes;
}

/* ---- writing ---- */

static int writer_fail(sz_writer *w, const char *what)
{
    int code = errno;
    sz_fail("%s: cannot %s: %s", w->path ? w->path : "?", what, strerror(code));
    sz_writer_abort(w);
    return -1;
}

int sz_writer_open(sz_writer *w, const char *path)
{
    *w = (sz_writer){ -1, strdup(path), malloc(strlen(path) + 5) };
    if (!w->path || !w->tmp) {
        errno = ENOMEM;
        return writer_fail(w, "write");
    }
    sprintf(w->tmp, "%s.tmp", path);
    w->fd = open(w->tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    return w->fd < 0 ? writer_fail(w, "create its temporary file") : 0;
}

int sz_writer_put(sz_writer *w, const void *bytes, size_t len)
{
    /* Linux writes at most 0x7ffff000 bytes a call; smaller pieces also let an interrupt through
     * sooner. */
    const size_t most = 64u << 20;
    const char *p = bytes;
    while (len > 0) {
        ssize_t n = write(w->fd, p, len < most ? len : most);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return writer_fail(w, "write");
        p += n;
        len -= (size_t)n;
    }
    return 0;
}

void sz_io_forget(const uint8_t *map, size_t size, const uint8_t *from, size_t len)
{
    /* The kernel makes the pages around one that is read resident as well: 64 KB, or 2 MB of a
     * large page of its cache, aligned. */
    enum { AROUND = 2 << 20 };
    const uintptr_t start = (uintptr_t)map;
    uintptr_t first = (uintptr_t)from / AROUND * AROUND;
    uintptr_t end = ((uintptr_t)from + len + AROUND - 1) / AROUND * AROUND;
    if (first < start) first = start;
    if (end > start + size) end = start + size;
    if (first < end) madvise((void *)first, end - first, MADV_DONTNEED);
}

int sz_io_sync_folder_of(const char *path)
{
    char *copy = strdup(path);
    if (!copy) return sz_fail("%s: out of memory", path);
    int folder = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int rc = 0;
    if (folder >= 0) {
        if (fsync(folder) != 0 && errno != EINVAL && errno != ENOTSUP)
            rc = sz_fail("%s: cannot sync its folder: %s", path, strerror(errno));
        close(folder);
    }
    free(copy);
    return rc;
}

int sz_writer_commit(sz_writer *w)
{
    /* The bytes are durable before the name changes. */
    if (fsync(w->fd) != 0) return writer_fail(w, "sync");
    int fd = w->fd;
    w->fd = -1;
    if (close(fd) != 0) return writer_fail(w, "close");
    if (rename(w->tmp, w->path) != 0) return writer_fail(w, "rename its temporary file");

    /* The new name is durable once its folder is. */
    int rc = sz_io_sync_folder_of(w->path);
    free(w->tmp);
    free(w->path);
    w->tmp = NULL;
    w->path = NULL;
    return rc;
}

void sz_writer_abort(sz_writer *w)
{
    if (w->fd >= 0) {
        close(w->fd);
        unlink(w->tmp);
    } else if (w->tmp && w->path) {
        unlink(w->tmp);
    }
    free(w->tmp);
    free(w->path);
    *w = (sz_writer){ -1, NULL, NULL };
}
