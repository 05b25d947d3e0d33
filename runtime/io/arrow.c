/* arrow.c - what the reader of Arrow files (lua/segzero/formats/arrow.lua) needs of C: a map of the
 * file, and buffers unpacked.
 * Leaves out: everything about the format itself.
 */
#include "io.h"
#include <errno.h>
#include <fcntl.h>
#include <lz4frame.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zstd.h>

struct sz_map {
    const uint8_t *bytes;
    int64_t size;
};

/* ---- a map ---- */

static int map_file(sz_map *m, const char *path)
{
    /* Opening a named pipe would wait for its writer without O_NONBLOCK. */
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return sz_fail("%s: %s", path, strerror(errno));
    int rc = 0;
    if (fstat(fd, &st) != 0) rc = sz_fail("%s: %s", path, strerror(errno));
    else if (!S_ISREG(st.st_mode)) rc = sz_fail("%s: not a regular file", path);
    else if (st.st_size == 0) rc = sz_fail("%s: the file is empty", path);
    if (rc == 0) {
        void *p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (p == MAP_FAILED) {
            rc = sz_fail("%s: cannot map the file: %s", path, strerror(errno));
        } else {
            m->bytes = p;
            m->size = st.st_size;
        }
    }
    close(fd);
    return rc;
}

sz_map *sz_map_open(const char *path)
{
    sz_map *m = calloc(1, sizeof *m);
    if (!m) return sz_null("%s: out of memory", path);
    if (map_file(m, path) == 0) return m;
    free(m);
    return NULL;
}

const uint8_t *sz_map_bytes(const sz_map *m) { return m->bytes; }
int64_t sz_map_size(const sz_map *m) { return m->size; }

void sz_map_forget(sz_map *m, const uint8_t *from, int64_t len)
{
    sz_io_forget(m->bytes, (size_t)m->size, from, (size_t)len);
}

void sz_map_close(sz_map *m)
{
    if (!m) return;
    munmap((void *)m->bytes, (size_t)m->size);
    free(m);
}

/* ---- buffers ---- */

static bool unpack_lz4(const uint8_t *from, size_t len, uint8_t *to, size_t room)
{
    LZ4F_dctx *context = NULL;
    if (LZ4F_isError(LZ4F_createDecompressionContext(&context, LZ4F_VERSION))) return false;
    size_t used = 0;
    size_t done = 0;
    size_t hint = 1;
    while (hint != 0) {
        size_t in = len - used;
        size_t out = room - done;
        hint = LZ4F_decompress(context, to + done, &out, from + used, &in, NULL);
        if (LZ4F_isError(hint) || (in == 0 && out == 0)) break;
        used += in;
        done += out;
    }
    LZ4F_freeDecompressionContext(context);
    return hint == 0 && done == room;
}

uint8_t *sz_arrow_unpack(int codec, const uint8_t *from, int64_t len, int64_t room)
{
    enum { MOST = 1 << 30 };
    if (len < 0 || room < 0 || room > MOST)
        return sz_null("a compressed buffer of %lld bytes, more than the limit of %d",
                       (long long)room, MOST);
    uint8_t *to = malloc((size_t)room + 1);
    if (!to) return sz_null("out of memory for a buffer of %lld bytes", (long long)room);
    bool good = false;
    if (codec == 0) {
        good = unpack_lz4(from, (size_t)len, to, (size_t)room);
    } else if (codec == 1) {
        size_t n = ZSTD_decompress(to, (size_t)room, from, (size_t)len);
        good = !ZSTD_isError(n) && n == (size_t)room;
    }
    if (good) return to;
    free(to);
    if (codec != 0 && codec != 1) return sz_null("the compression %d is not known", codec);
    return sz_null("the %s data are damaged", codec == 0 ? "LZ4" : "zstd");
}

void sz_arrow_free(uint8_t *bytes) { free(bytes); }
