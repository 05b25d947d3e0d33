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
