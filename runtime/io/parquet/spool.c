/* spool.c - unpacked pages in a temporary file.
 *
 * A page of images is 100 MB or more, and a page that is packed by zstd, gzip, brotli or LZ4 cannot
 * be entered in the middle. So it is unpacked once, into a file without a name in $TMPDIR, /var/tmp
 * or /tmp, and its rows are read from a map of that. The file is gone when the process ends,
 * however it ends. It takes at most half of what is free where it is, and is not made on a file
 * system in memory.
 * Leaves out: use from several threads; snappy, of which body.c unpacks any part.
 */
#define _GNU_SOURCE
#include "parquet.h"
#include <brotli/decode.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/statfs.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

enum { PART = 1 << 20, FORGET = 8 << 20 };

static int fd = -1;
static bool is_refused;
static int64_t file_end; /* of what was written to it */

/* ---- the file ---- */

static bool is_in_memory(const char *folder)
{
    struct statfs s;
    if (statfs(folder, &s) != 0) return true;
    return s.f_type == TMPFS_MAGIC || s.f_type == RAMFS_MAGIC;
}

static int open_in(const char *folder)
{
    if (!folder || folder[0] != '/' || is_in_memory(folder)) return -1;
    const int opened = open(folder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (opened >= 0) return opened;
    /* Some file systems make no file without a name. */
    char path[4096];
    const int n = snprintf(path, sizeof path, "%s/segzero-XXXXXX", folder);
    if (n < 0 || (size_t)n >= sizeof path) return -1;
    const int made = mkostemp(path, O_CLOEXEC);
    if (made >= 0) unlink(path);
    return made;
}

static bool open_file(void)
{
    if (fd >= 0) return true;
    if (is_refused) return false;
    const char *folders[] = { getenv("TMPDIR"), "/var/tmp", "/tmp" };
    for (size_t i = 0; i < sizeof folders / sizeof *folders && fd < 0; i++)
        fd = open_in(folders[i]);
    is_refused = fd < 0;
    return fd >= 0;
}

static bool has_room(size_t bytes)
{
    struct statfs s;
    if (fstatfs(fd, &s) != 0 || s.f_bsize <= 0) return false;
    return bytes / (size_t)s.f_bsize < s.f_bavail / 2;
}

/* ---- unpacking in parts ---- */

typedef struct {
    int64_t at; /* in the file */
    size_t room, done;
    uint8_t *part; /* [PART] */
} output;

static bool put(output *o, const uint8_t *bytes, size_t n)
{
    if (n > o->room - o->done) return false;
    while (n > 0) {
        const ssize_t wrote = pwrite(fd, bytes, n, (off_t)(o->at + (int64_t)o->done));
        if (wrote <= 0) return false;
        bytes += wrote;
        n -= (size_t)wrote;
        o->done += (size_t)wrote;
    }
    return true;
}

/* The packed bytes, which are given back once they are read. */
typedef struct {
    const parquet_file *file;
    const uint8_t *from;
    size_t len, used, forgotten;
} input;

static void forget_used(input *in)
{
    if (in->used - in->forgotten < FORGET && in->used < in->len) return;
    parquet_file_forget(in->file, in->from + in->forgotten, in->used - in->forgotten);
    in->forgotten = in->used;
}

static bool unpack_zstd(input *in, output *o)
{
    ZSTD_DCtx *context = ZSTD_createDCtx();
    if (!context) return false;
    size_t hint = 1;
    bool good = true;
    while (good && hint != 0) {
        ZSTD_inBuffer from = { in->from, in->len, in->used };
        ZSTD_outBuffer to = { o->part, PART, 0 };
        hint = ZSTD_decompressStream(context, &to, &from);
        good = !ZSTD_isError(hint) && (to.pos > 0 || from.pos > in->used);
        in->used = from.pos;
        good = good && put(o, o->part, to.pos);
        forget_used(in);
    }
    ZSTD_freeDCtx(context);
    return good && in->used == in->len;
}

static bool unpack_gzip(input *in, output *o)
{
    z_stream z = { 0 };
    if (in->len > UINT32_MAX || inflateInit2(&z, 15 + 32) != Z_OK) return false;
    z.next_in = (uint8_t *)in->from;
    z.avail_in = (unsigned)in->len;
    int state = Z_OK;
    bool good = true;
    while (good && state == Z_OK) {
        z.next_out = o->part;
        z.avail_out = PART;
        state = inflate(&z, Z_NO_FLUSH);
        const size_t made = PART - z.avail_out;
        good = (state == Z_OK || state == Z_STREAM_END) && put(o, o->part, made);
        in->used = in->len - z.avail_in;
        forget_used(in);
        /* The next member. */
        if (state == Z_STREAM_END && z.avail_in > 0 && o->done < o->room) state = inflateReset(&z);
    }
    inflateEnd(&z);
    return good && state == Z_STREAM_END;
}

static bool unpack_brotli(input *in, output *o)
{
    BrotliDecoderState *b = BrotliDecoderCreateInstance(NULL, NULL, NULL);
    if (!b) return false;
    const uint8_t *next = in->from;
    size_t left = in->len;
    BrotliDecoderResult state = BROTLI_DECODER_RESULT_NEEDS_MORE_OUTPUT;
    bool good = true;
    while (good && state == BROTLI_DECODER_RESULT_NEEDS_MORE_OUTPUT) {
        uint8_t *to = o->part;
        size_t room = PART;
        state = BrotliDecoderDecompressStream(b, &left, &next, &room, &to, NULL);
        good = put(o, o->part, PART - room);
        in->used = in->len - left;
        forget_used(in);
    }
    BrotliDecoderDestroyInstance(b);
    return good && state == BROTLI_DECODER_RESULT_SUCCESS;
}

/* LZ4's blocks are unpacked as a whole. */
static bool unpack_whole(int codec, input *in, output *o)
{
    uint8_t *to = malloc(o->room + 64);
    const bool good = to && parquet_unpack(codec, in->from, in->len, to, o->room) == 0 &&
                      put(o, to, o->room);
    free(to);
    in->used = in->len;
    forget_used(in);
    return good;
}

static bool unpack(int codec, input *in, output *o)
{
    switch (codec) {
    case CODEC_ZSTD: return unpack_zstd(in, o);
    case CODEC_GZIP: return unpack_gzip(in, o);
    case CODEC_BROTLI: return unpack_brotli(in, o);
    case CODEC_LZ4:
    case CODEC_LZ4_RAW: return unpack_whole(codec, in, o);
    default: return false;
    }
}

/* ---- pages ---- */

const uint8_t *parquet_spool(int codec, const parquet_file *file, const uint8_t *from, size_t len,
                             size_t room)
{
    if (room == 0 || !open_file() || !has_room(room)) return NULL;
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    input in = { .file = file, .from = from, .len = len };
    output o = { .at = file_end, .room = room, .part = malloc(PART) };
    bool good = o.part && unpack(codec, &in, &o) && o.done == room;
    free(o.part);
    void *map = MAP_FAILED;
    if (good) map = mmap(NULL, room, PROT_READ, MAP_SHARED, fd, (off_t)o.at);
    /* What was written of a page that fails is overwritten by the next one. */
    if (map == MAP_FAILED) return NULL;
    file_end += (int64_t)((room + page - 1) / page * page);
    return map;
}

void parquet_spool_drop(const uint8_t *map, size_t room)
{
    /* The pages of the file are freed through the map that they are in. */
    madvise((void *)map, room, MADV_REMOVE);
    munmap((void *)map, room);
}
