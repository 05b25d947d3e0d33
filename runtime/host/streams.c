/* streams.c - the standard streams: descriptors 0-2 are open, stdout flushes each line, a failed
 * write is reported at the end, and error messages show control characters.
 *
 * A program that is started with a closed stdout would give number 1 to the first file that it
 * opens, and print() would then write into that file.
 * Leaves out: text in UTF-8 that is no control character (lua/segzero/core/visible.lua is stricter).
 */
#include "host.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

void sz_streams_prepare(void)
{
    /* open() returns the lowest free number, which is the one that was found closed. */
    for (int fd = 0; fd <= STDERR_FILENO; fd++)
        if (fcntl(fd, F_GETFD) < 0 && errno == EBADF && open("/dev/null", O_RDWR) < 0) _exit(1);
    setvbuf(stdout, NULL, _IOLBF, BUFSIZ);
}

int sz_streams_finish(void)
{
    bool failed_before = ferror(stdout) != 0;
    bool failed_now = fflush(stdout) != 0;
    const char *reason = failed_now ? strerror(errno) : "an earlier write failed";

    if (failed_before || failed_now)
        fprintf(stderr, "segzero: cannot write standard output: %s\n", reason);
    return failed_before || failed_now ? -1 : 0;
}

void sz_print_visible(FILE *stream, const char *text)
{
    for (const unsigned char *p = (const unsigned char *)text; *p; p++) {
        bool plain = (*p >= ' ' && *p != 0x7f) || *p == '\n' || *p == '\t';
        if (*p == 0xc2 && p[1] >= 0x80 && p[1] <= 0x9f) {
            /* U+0080 to U+009F, which some terminals obey. */
            fprintf(stream, "\\xc2\\x%02x", p[1]);
            p++;
        } else if (plain) {
            fputc(*p, stream);
        } else {
            fprintf(stream, "\\x%02x", *p);
        }
    }
}
