/* lines.c - files of text lines that grow, such as metrics.jsonl, and standard output. Lines are
 * written whole: if the disk is full in the middle of one, the file is cut back to where it ended
 * before.
 *
 * Each call is one write(2), so nothing waits in a buffer when the process is killed.
 * Leaves out: syncing to the disk (checkpoints do), what the lines mean.
 */
#include "io.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

static int fail(const char *path, const char *what)
{
    return sz_fail("cannot %s %s: %s", what, path, strerror(errno));
}

/* Cuts off what follows the last newline, which a process that was killed may have left. Returns 0,
 * or -1 with errno set. */
static int drop_unfinished(int fd)
{
    char block[4096];
    off_t end = lseek(fd, 0, SEEK_END);
    if (end < 0) return -1;

    /* Search backwards, block by block. */
    off_t keep = 0;
    for (off_t stop = end; stop > 0 && keep == 0;) {
        size_t n = stop < (off_t)sizeof block ? (size_t)stop : sizeof block;
        if (pread(fd, block, n, stop - (off_t)n) != (ssize_t)n) return -1;
        stop -= (off_t)n;
        for (size_t i = n; i > 0 && keep == 0; i--)
            if (block[i - 1] == '\n') keep = stop + (off_t)i;
    }
    return keep == end ? 0 : ftruncate(fd, keep);
}

int sz_lines_open(const char *path, int empty)
{
    int flags = O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC;
    if (empty) flags |= O_TRUNC;
    int fd = open(path, flags, 0666);
    if (fd < 0) return fail(path, "open");

    /* A fifo or a terminal cannot be cut back. */
    struct stat st;
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
        close(fd);
        return sz_fail("cannot write %s: not a regular file", path);
    }
    if (drop_unfinished(fd) != 0) {
        fail(path, "continue");
        close(fd);
        return -1;
    }
    return fd;
}

int sz_lines_write(int fd, const char *path, const char *text, size_t len)
{
    off_t end = lseek(fd, 0, SEEK_END);
    if (end < 0) return fail(path, "write");

    while (len > 0) {
        ssize_t n = write(fd, text, len);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) {
            const char *reason = strerror(n < 0 ? errno : ENOSPC);
            if (ftruncate(fd, end) == 0) return sz_fail("cannot write %s: %s", path, reason);
            return sz_fail("cannot write %s: %s; its last line is incomplete", path, reason);
        }
        text += n;
        len -= (size_t)n;
    }
    return 0;
}

int sz_lines_close(int fd, const char *path)
{
    /* Some file systems report a failed write here. */
    return close(fd) == 0 ? 0 : fail(path, "write");
}

/* ---- standard output ---- */
/* Waits until a stream that another program made non-blocking takes more. */
static void wait_until_writable(int fd)
{
    struct pollfd p = { .fd = fd, .events = POLLOUT };
    poll(&p, 1, -1);
}

int sz_print(const char *text, size_t len)
{
    /* stdio would drop what it cannot write, and would not always say so. A closed pipe is no
     * failure of the caller: SIGPIPE has ended the process, or will end the run. */
    fflush(stdout);
    while (len > 0) {
        ssize_t n = write(STDOUT_FILENO, text, len);
        if (n < 0 && errno == EAGAIN) wait_until_writable(STDOUT_FILENO);
        if (n < 0 && (errno == EINTR || errno == EAGAIN)) continue;
        if (n < 0 && errno == EPIPE) return 0;
        if (n < 0) return fail("standard output", "write");
        text += n;
        len -= (size_t)n;
    }
    return 0;
}
