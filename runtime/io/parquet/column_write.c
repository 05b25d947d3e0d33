/* column_write.c - entries of a leaf column become data pages of version 1: levels as runs and
 * packed groups, values plain, packed by SNAPPY, with a checksum.
 *
 * A page ends when it is a megabyte long, between rows (writer.c), so a large value has a page of
 * its own and is read alone.
 * Leaves out: dictionaries, statistics, pages of version 2.
 */
#include "write.h"
#include <snappy-c.h>
#include <stdlib.h>
#include <zlib.h>

enum { PAGE_BYTES = 1 << 20 };

void parquet_column_put(parquet_column *c, int rep, int def, const void *bytes, size_t len)
{
    c->levels++;
    if (c->max_rep) parquet_buffer_byte(&c->rep, rep);
    if (c->max_def) parquet_buffer_byte(&c->def, def);
    if (!bytes) return;
    if (c->width == 0) parquet_buffer_u32(&c->values, (uint32_t)len);
    parquet_buffer_put(&c->values, bytes, len);
}

bool parquet_column_is_long(const parquet_column *c)
{
    return c->values.len >= PAGE_BYTES || c->levels >= PAGE_BYTES;
}

/* ---- encoding ---- */

static int bits_of(int largest)
{
    int bits = 0;
    while (largest >> bits) bits++;
    return bits;
}

/* How many of the n levels, from the first on, are equal. */
static size_t run_of(const uint8_t *levels, size_t n)
{
    size_t run = 1;
    while (run < n && levels[run] == levels[0]) run++;
    return run;
}

/* Packs groups of 8 levels, least significant bit first; the last group may lack some. */
static void put_groups(parquet_buffer *to, const uint8_t *levels, size_t n, int bits)
{
    parquet_buffer_varint(to, (n + 7) / 8 << 1 | 1);
    uint32_t held = 0;
    int filled = 0;
    for (size_t i = 0; i < (n + 7) / 8 * 8; i++) {
        uint32_t level = i < n ? levels[i] : 0;
        held |= level << filled;
        filled += bits;
        while (filled >= 8) {
            parquet_buffer_byte(to, (int)(held & 0xff));
            held >>= 8;
            filled -= 8;
        }
    }
}

/* The hybrid of runs and packed groups, with its length in front. */
static void put_levels(parquet_buffer *to, const parquet_buffer *from, int largest)
{
    enum { SHORTEST = 8 };
    if (!largest) return;
    int bits = bits_of(largest);
    size_t length_at = to->len;
    parquet_buffer_u32(to, 0);

    const uint8_t *levels = from->bytes;
    size_t n = from->len;
    for (size_t i = 0; i < n;) {
        size_t run = run_of(levels + i, n - i);
        if (run >= SHORTEST || run == n - i) {
            parquet_buffer_varint(to, run << 1);
            parquet_buffer_byte(to, levels[i]);
            i += run;
            continue;
        }
        /* Groups of 8 up to the next run. */
        size_t start = i;
        do i += 8;
        while (i < n && run_of(levels + i, n - i < SHORTEST ? n - i : SHORTEST) < SHORTEST);
        if (i > n) i = n;
        put_groups(to, levels + start, i - start, bits);
    }

    if (to->failed) return;
    size_t bytes = to->len - length_at - 4;
    for (int i = 0; i < 4; i++) to->bytes[length_at + (size_t)i] = (uint8_t)(bytes >> (8 * i));
}

static void put_values(parquet_buffer *to, const parquet_column *c)
{
    if (c->type != PARQUET_BOOLEAN) {
        parquet_buffer_put(to, c->values.bytes, c->values.len);
        return;
    }
    for (size_t i = 0; i < c->values.len; i += 8) {
        int byte = 0;
        for (size_t k = 0; k < 8 && i + k < c->values.len; k++)
            byte |= (c->values.bytes[i + k] != 0) << k;
        parquet_buffer_byte(to, byte);
    }
}

/* The bytes as they are stored; the caller frees *packed. 0, or -1 with a message. */
static int pack(int codec, const parquet_buffer *body, parquet_buffer *packed)
{
    if (codec == CODEC_NONE) {
        parquet_buffer_put(packed, body->bytes, body->len);
        return packed->failed ? sz_fail("out of memory for a page") : 0;
    }
    size_t room = snappy_max_compressed_length(body->len);
    uint8_t *to = parquet_buffer_more(packed, room);
    if (!to) return sz_fail("out of memory for a page of %zu bytes", body->len);
    if (snappy_compress((const char *)body->bytes, body->len, (char *)to, &room) != SNAPPY_OK)
        return sz_fail("a page of %zu bytes cannot be packed", body->len);
    packed->len = room;
    return 0;
}

/* ---- the page ---- */

/* The header of a data page of version 1. */
static void put_header(parquet_buffer *to, const parquet_column *c, size_t unpacked,
                       const parquet_buffer *packed)
{
    thrift_out t = { .to = to };
    uint32_t sum = (uint32_t)crc32(0, packed->bytes, (unsigned)packed->len);
    thrift_put_i32(&t, 1, 0);
    thrift_put_i32(&t, 2, (int64_t)unpacked);
    thrift_put_i32(&t, 3, (int64_t)packed->len);
    thrift_put_i32(&t, 4, (int32_t)sum);
    thrift_begin(&t, 5);
    thrift_put_i32(&t, 1, c->levels);
    thrift_put_i32(&t, 2, ENCODING_PLAIN);
    thrift_put_i32(&t, 3, ENCODING_RLE);
    thrift_put_i32(&t, 4, ENCODING_RLE);
    thrift_end(&t);
    thrift_end(&t);
}

static int finish_page(parquet_column *c, parquet_buffer *body, parquet_buffer *packed)
{
    /* Levels, then values. */
    put_levels(body, &c->rep, c->max_rep);
    put_levels(body, &c->def, c->max_def);
    put_values(body, c);
    if (body->failed || c->rep.failed || c->def.failed || c->values.failed)
        return sz_fail("out of memory for a page");
    if (body->len > INT32_MAX || c->levels > INT32_MAX)
        return sz_fail("a row has %zu bytes in a column, the most is 2 GB", body->len);
    if (pack(c->codec, body, packed) != 0) return -1;
    if (packed->len > INT32_MAX)
        return sz_fail("a row has %zu bytes in a column, the most is 2 GB", packed->len);

    /* The page joins its chunk. */
    size_t before = c->pages.len;
    put_header(&c->pages, c, body->len, packed);
    c->chunk_unpacked += (int64_t)(c->pages.len - before + body->len);
    c->chunk_levels += c->levels;
    parquet_buffer_put(&c->pages, packed->bytes, packed->len);
    return c->pages.failed ? sz_fail("out of memory for a row group") : 0;
}

int parquet_column_page(parquet_column *c)
{
    if (c->levels == 0) return 0;
    parquet_buffer body = { 0 };
    parquet_buffer packed = { 0 };
    int rc = finish_page(c, &body, &packed);
    parquet_buffer_release(&body);
    parquet_buffer_release(&packed);

    /* The next page begins; a large one's memory goes back. */
    c->levels = 0;
    c->rep.len = 0;
    c->def.len = 0;
    c->values.len = 0;
    return rc;
}

void parquet_column_release(parquet_column *c)
{
    parquet_buffer_release(&c->def);
    parquet_buffer_release(&c->rep);
    parquet_buffer_release(&c->values);
    parquet_buffer_release(&c->pages);
}
