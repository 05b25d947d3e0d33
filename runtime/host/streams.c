/* streams.c - the standard streams: descriptors 0-2 are open, stdout flushes each line, a failed
 * write is reported at the end, and an error message is one write that shows control characters.
 *
 * A program that is started with a closed stdout would give number 1 to the first file that it
 * opens, and print() would then write into that file.
 * Leaves out: text in UTF-8 that is no control character (lua/segzero/core/visible.lua is
 * stricter).
 */
#include "host.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Runs at exit, also after os.exit: a program whose output is incomplete has not succeeded. */
static void finish(int status, void *unused)
{
    (void)unused;
    bool failed_before = ferror(stdout) != 0;
    bool failed_now = fflush(stdout) != 0;
    if (!failed_before && !failed_now) return;

    const char *reason = failed_now ? strerror(errno) : "an earlier write failed";
    fprintf(stderr, "segzero: cannot write standard output: %s\n", reason);
    if (status == 0) _exit(EXIT_SCRIPT);
}

void sz_streams_prepare(void)
{
    /* open() returns the lowest free number, which is the one that was found closed. */
    for (int fd = 0; fd <= STDERR_FILENO; fd++)
        if (fcntl(fd, F_GETFD) < 0 && errno == EBADF && open("/dev/null", O_RDWR) < 0)
            _exit(EXIT_SCRIPT);
    setvbuf(stdout, NULL, _IOLBF, BUFSIZ);
    on_exit(finish, NULL);
}

/* What sz_print_error has yet to write. */
typedef struct {
    size_t n;
    char bytes[4096];
} pending;

static void flush(pending *out)
{
    fwrite(out->bytes, 1, out->n, stderr);
    out->n = 0;
}

static void put(pending *out, unsigned char byte)
{
    if (out->n == sizeof(out->bytes)) flush(out);
    out->bytes[out->n++] = (char)byte;
}

static void put_escaped(pending *out, unsigned char byte)
{
    static const char digits[] = "0123456789abcdef";
    put(out, '\\');
    put(out, 'x');
    put(out, digits[byte >> 4]);
    put(out, digits[byte & 15]);
}

void sz_print_error(const char *name, const char *text)
{
    pending out = { .n = 0 };
    for (const char *p = name; *p; p++) put(&out, *p);
    put(&out, ':');
    put(&out, ' ');
    for (const unsigned char *p = (const unsigned char *)text; *p; p++) {
        bool plain = (*p >= ' ' && *p != 0x7f) || *p == '\n' || *p == '\t';
        if (*p == 0xc2 && p[1] >= 0x80 && p[1] <= 0x9f) {
            /* U+0080 to U+009F, which some terminals obey. */
            put_escaped(&out, *p++);
            put_escaped(&out, *p);
        } else if (plain) {
            put(&out, *p);
        } else {
            put_escaped(&out, *p);
        }
    }
    put(&out, '\n');
    flush(&out);
}
