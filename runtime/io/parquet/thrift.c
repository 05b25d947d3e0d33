/* thrift.c - Thrift's compact protocol, as far as Parquet's metadata uses it.
 * Leaves out: writing, checking that a struct has the fields that it must have.
 */
#include "parquet.h"

enum { MAX_DEPTH = 64 };

static uint8_t byte_of(thrift *t)
{
    if (t->p == t->end) {
        t->bad = true;
        return 0;
    }
    return *t->p++;
}

uint64_t thrift_varint(thrift *t)
{
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
        uint8_t byte = byte_of(t);
        value |= (uint64_t)(byte & 0x7f) << shift;
        if (!(byte & 0x80)) return value;
    }
    t->bad = true;
    return 0;
}

int64_t thrift_int(thrift *t)
{
    uint64_t n = thrift_varint(t);
    return (int64_t)(n >> 1) ^ -(int64_t)(n & 1);
}

const uint8_t *thrift_binary(thrift *t, size_t *len)
{
    uint64_t n = thrift_varint(t);
    const uint8_t *p = t->p;
    if (n > (uint64_t)(t->end - t->p)) {
        t->bad = true;
        n = 0;
    }
    t->p += n;
    *len = (size_t)n;
    return p;
}

int thrift_field(thrift *t, int *id)
{
    uint8_t head = byte_of(t);
    int type = head & 0x0f;
    if (t->bad || type == THRIFT_STOP) return THRIFT_STOP;
    int delta = head >> 4;
    if (delta) *id += delta;
    else *id = (int)thrift_int(t);
    return type;
}

int64_t thrift_list(thrift *t, int *type)
{
    uint8_t head = byte_of(t);
    *type = head & 0x0f;
    uint64_t n = head >> 4;
    if (n == 15) n = thrift_varint(t);
    /* An element has at least one byte. */
    if (n > (uint64_t)(t->end - t->p)) {
        t->bad = true;
        return 0;
    }
    return (int64_t)n;
}

static void skip_deep(thrift *t, int type, int depth);

static void skip_elements(thrift *t, int type, int64_t n, int depth)
{
    for (int64_t i = 0; i < n && !t->bad; i++) {
        /* A boolean in a list is a byte. */
        if (type == THRIFT_TRUE || type == THRIFT_FALSE) byte_of(t);
        else skip_deep(t, type, depth + 1);
    }
}

static void skip_map(thrift *t, int depth)
{
    uint64_t n = thrift_varint(t);
    if (n == 0) return;
    uint8_t types = byte_of(t);
    if (n > (uint64_t)(t->end - t->p)) t->bad = true;
    for (uint64_t i = 0; i < n && !t->bad; i++) {
        skip_elements(t, types >> 4, 1, depth);
        skip_elements(t, types & 0x0f, 1, depth);
    }
}

static void skip_deep(thrift *t, int type, int depth)
{
    size_t len;
    int id = 0;
    int element;
    if (depth > MAX_DEPTH) t->bad = true;
    if (t->bad) return;

    switch (type) {
    case THRIFT_TRUE:
    case THRIFT_FALSE: break;
    case THRIFT_BYTE: byte_of(t); break;
    case THRIFT_I16:
    case THRIFT_I32:
    case THRIFT_I64: thrift_varint(t); break;
    case THRIFT_DOUBLE:
        for (int i = 0; i < 8; i++) byte_of(t);
        break;
    case THRIFT_BINARY: thrift_binary(t, &len); break;
    case THRIFT_LIST:
    case THRIFT_SET: {
        int64_t n = thrift_list(t, &element);
        skip_elements(t, element, n, depth);
        break;
    }
    case THRIFT_MAP: skip_map(t, depth); break;
    case THRIFT_STRUCT:
        while ((element = thrift_field(t, &id)) != THRIFT_STOP) skip_deep(t, element, depth + 1);
        break;
    default: t->bad = true;
    }
}

void thrift_skip(thrift *t, int type) { skip_deep(t, type, 0); }
