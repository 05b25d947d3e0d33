/* file.c - whole files: read into memory, or written so that a reader sees the old file or the new one, never a part.
 * Leaves out mapping (safetensors.c) and every format. */
#include "io.h"
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

uint8_t *sz_io_read(const char *path, size_t max, size_t *len)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return sz_null("%s: %s", path, strerror(errno));
    struct stat st;
    uint8_t *bytes = NULL;
    if (fstat(fd, &st) != 0) sz_fail("%s: %s", path, strerror(errno));
    else if (!S_ISREG(st.st_mode)) sz_fail("%s: not a regular file", path);
    else if (st.st_size == 0) sz_fail("%s: the file is empty", path);
    else if ((uint64_t)st.st_size > max) sz_fail("%s: %lld bytes, more than the limit of %zu", path, (long long)st.st_size, max);
    else if (!(bytes = malloc((size_t)st.st_size))) sz_fail("%s: out of memory for %lld bytes", path, (long long)st.st_size);
    size_t want = bytes ? (size_t)st.st_size : 0, got = 0;
    while (got < want) {
        ssize_t n = read(fd, bytes + got, want - got);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) {
            sz_fail("%s: %s", path, n ? strerror(errno) : "the file became shorter while it was read");
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
    const char *p = bytes;
    while (len > 0) {
        /* Linux writes at most 0x7ffff000 bytes a call; smaller pieces also keep an interrupt's delay short. */
        ssize_t n = write(w->fd, p, len < (64u << 20) ? len : 64u << 20);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return writer_fail(w, "write");
        p += n;
        len -= (size_t)n;
    }
    return 0;
}

int sz_writer_commit(sz_writer *w)
{
    if (fsync(w->fd) != 0) return writer_fail(w, "sync");
    int fd = w->fd;
    w->fd = -1;
    if (close(fd) != 0) return writer_fail(w, "close");
    if (rename(w->tmp, w->path) != 0) return writer_fail(w, "rename its temporary file");
    /* The new name is durable once its folder is; some file systems cannot sync a folder, which is no failure. */
    int dir = open(dirname(w->tmp), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dir >= 0) {
        fsync(dir);
        close(dir);
    }
    free(w->tmp);
    free(w->path);
    w->tmp = w->path = NULL;
    return 0;
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
