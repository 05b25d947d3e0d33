/* codec.c - unpacks the bytes of a page.
 * Leaves out: LZO, which no writer of today uses; packing.
 */
#include "parquet.h"
#include <brotli/decode.h>
#include <lz4.h>
#include <snappy-c.h>
#include <zlib.h>
#include <zstd.h>

static int damaged(const char *codec) { return sz_fail("the %s data are damaged", codec); }

static int unpack_gzip(const uint8_t *from, size_t len, uint8_t *to, size_t room)
{
    z_stream z = { 0 };
    if (len > UINT32_MAX || room > UINT32_MAX) return sz_fail("a gzip page over 4 GB");
    /* 32: gzip or zlib, found from the first bytes. */
    if (inflateInit2(&z, 15 + 32) != Z_OK) return sz_fail("out of memory for gzip");
    z.next_in = (uint8_t *)from;
    z.avail_in = (unsigned)len;
    z.next_out = to;
    z.avail_out = (unsigned)room;

    /* A file may be several members, one after the other. */
    int state = Z_OK;
    while (state == Z_OK) {
        state = inflate(&z, Z_FINISH);
        if (state == Z_STREAM_END && z.avail_in > 0 && z.avail_out > 0) state = inflateReset(&z);
        else break;
    }
    inflateEnd(&z);
    return state == Z_STREAM_END && z.avail_out == 0 ? 0 : damaged("gzip");
}

static int unpack_lz4(const uint8_t *from, size_t len, uint8_t *to, size_t room)
{
    if (len > INT32_MAX || room > INT32_MAX) return sz_fail("an LZ4 page over 2 GB");
    int n = LZ4_decompress_safe((const char *)from, (char *)to, (int)len, (int)room);
    return n >= 0 && (size_t)n == room ? 0 : damaged("LZ4");
}

static uint32_t big_endian(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

/* The codec LZ4 of old writers: Hadoop's frames (two big-endian lengths before each block), or a
 * bare block. */
static int unpack_hadoop_lz4(const uint8_t *from, size_t len, uint8_t *to, size_t room)
{
    const uint8_t *p = from;
    size_t left = len;
    size_t done = 0;
    while (left >= 8) {
        size_t unpacked = big_endian(p);
        size_t packed = big_endian(p + 4);
        if (packed > left - 8 || unpacked > room - done) break;
        if (unpack_lz4(p + 8, packed, to + done, unpacked) != 0) break;
        p += 8 + packed;
        left -= 8 + packed;
        done += unpacked;
    }
    return left == 0 && done == room ? 0 : unpack_lz4(from, len, to, room);
}

int parquet_unpack(int codec, const uint8_t *from, size_t len, uint8_t *to, size_t room)
{
    size_t n = room;
    switch (codec) {
    case CODEC_NONE:
        if (len != room) return sz_fail("a page has %zu bytes, its header says %zu", len, room);
        memcpy(to, from, room);
        return 0;
    case CODEC_SNAPPY:
        if (snappy_uncompressed_length((const char *)from, len, &n) != SNAPPY_OK || n != room)
            return damaged("snappy");
        if (snappy_uncompress((const char *)from, len, (char *)to, &n) != SNAPPY_OK || n != room)
            return damaged("snappy");
        return 0;
    case CODEC_GZIP: return unpack_gzip(from, len, to, room);
    case CODEC_BROTLI:
        if (BrotliDecoderDecompress(len, from, &n, to) != BROTLI_DECODER_RESULT_SUCCESS ||
            n != room)
            return damaged("brotli");
        return 0;
    case CODEC_ZSTD:
        n = ZSTD_decompress(to, room, from, len);
        return !ZSTD_isError(n) && n == room ? 0 : damaged("zstd");
    case CODEC_LZ4_RAW: return unpack_lz4(from, len, to, room);
    case CODEC_LZ4: return unpack_hadoop_lz4(from, len, to, room);
    case CODEC_LZO: return sz_fail("the codec LZO is not read");
    default: return sz_fail("the codec %d is not known", codec);
    }
}
