/* thrift_write.c - a growing buffer, and Thrift's compact protocol written into it, as far as
 * Parquet's metadata uses it.
 * Leaves out: booleans, doubles, maps, sets.
 */
#include "write.h"
#include <stdlib.h>

/* ---- the buffer ---- */

uint8_t *parquet_buffer_more(parquet_buffer *b, size_t n)
{
    if (b->failed) return NULL;
    if (n > b->room - b->len) {
        size_t room = b->room + b->room / 2 + n + 64;
        uint8_t *bytes = realloc(b->bytes, room);
        if (!bytes) {
            b->failed = true;
            return NULL;
        }
        b->bytes = bytes;
        b->room = room;
    }
    return b->bytes + b->len;
}

void parquet_buffer_put(parquet_buffer *b, const void *bytes, size_t n)
{
    if (n == 0) return;
    uint8_t *to = parquet_buffer_more(b, n);
    if (!to) return;
    memcpy(to, bytes, n);
    b->len += n;
}

void parquet_buffer_byte(parquet_buffer *b, int byte)
{
    uint8_t v = (uint8_t)byte;
    parquet_buffer_put(b, &v, 1);
}

void parquet_buffer_u32(parquet_buffer *b, uint32_t v)
{
    for (int i = 0; i < 4; i++) parquet_buffer_byte(b, (int)(v >> (8 * i) & 0xff));
}

void parquet_buffer_varint(parquet_buffer *b, uint64_t v)
{
    for (; v >= 0x80; v >>= 7) parquet_buffer_byte(b, (int)(v & 0x7f) | 0x80);
    parquet_buffer_byte(b, (int)v);
}

void parquet_buffer_release(parquet_buffer *b)
{
    free(b->bytes);
    *b = (parquet_buffer){ 0 };
}

/* ---- the protocol ---- */

static void put_int(parquet_buffer *b, int64_t v)
{
    parquet_buffer_varint(b, (uint64_t)v << 1 ^ (uint64_t)(v >> 63));
}

/* A field's head: the step from the last id, or the id itself if the step is long. */
static void head(thrift_out *t, int id, int type)
{
    int step = id - t->last[t->depth];
    t->last[t->depth] = id;
    if (step > 0 && step <= 15) {
        parquet_buffer_byte(t->to, step << 4 | type);
        return;
    }
    parquet_buffer_byte(t->to, type);
    put_int(t->to, id);
}

static void put_binary(parquet_buffer *b, const void *bytes, size_t len)
{
    parquet_buffer_varint(b, len);
    parquet_buffer_put(b, bytes, len);
}

static void put_number(thrift_out *t, int id, int type, int64_t v)
{
    head(t, id, type);
    put_int(t->to, v);
}

void thrift_put_i16(thrift_out *t, int id, int64_t v) { put_number(t, id, THRIFT_I16, v); }
void thrift_put_i32(thrift_out *t, int id, int64_t v) { put_number(t, id, THRIFT_I32, v); }
void thrift_put_i64(thrift_out *t, int id, int64_t v) { put_number(t, id, THRIFT_I64, v); }

void thrift_put_binary(thrift_out *t, int id, const void *bytes, size_t len)
{
    head(t, id, THRIFT_BINARY);
    put_binary(t->to, bytes, len);
}

void thrift_begin(thrift_out *t, int id)
{
    head(t, id, THRIFT_STRUCT);
    thrift_element(t);
}

void thrift_put_list(thrift_out *t, int id, int type, int64_t n)
{
    head(t, id, THRIFT_LIST);
    if (n < 15) {
        parquet_buffer_byte(t->to, (int)n << 4 | type);
        return;
    }
    parquet_buffer_byte(t->to, 15 << 4 | type);
    parquet_buffer_varint(t->to, (uint64_t)n);
}

void thrift_element_i32(thrift_out *t, int64_t v) { put_int(t->to, v); }

void thrift_element_binary(thrift_out *t, const void *bytes, size_t len)
{
    put_binary(t->to, bytes, len);
}

void thrift_element(thrift_out *t)
{
    t->depth++;
    t->last[t->depth] = 0;
}

void thrift_end(thrift_out *t)
{
    parquet_buffer_byte(t->to, THRIFT_STOP);
    if (t->depth > 0) t->depth--;
}
