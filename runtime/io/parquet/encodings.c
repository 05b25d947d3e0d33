/* encodings.c - the encodings of values and levels.
 *
 * PLAIN, dictionary indices, the hybrid of runs and bit-packed groups (RLE), the three DELTA
 * encodings, BYTE_STREAM_SPLIT, and the old BIT_PACKED for levels.
 * Leaves out: writing.
 */
#include "parquet.h"
#include <stdlib.h>

enum { MOST_BYTES = 1 << 29 }; /* of the values of a page */

static int cut_off(const char *encoding)
{
    return sz_fail("the page ends inside its values (%s)", encoding);
}

static uint32_t u32_at(const uint8_t *p)
{
    uint32_t v;
    memcpy(&v, p, 4);
    return v;
}

/* ---- values ---- */

void parquet_values_release(parquet_values *v)
{
    free(v->data);
    free(v->offsets);
    free(v->index);
    *v = (parquet_values){ 0 };
}

int parquet_values_make(parquet_values *v, int type, int width, int64_t count, size_t bytes)
{
    *v = (parquet_values){ .type = type, .width = width, .count = 0 };
    size_t room = bytes;
    if (width && __builtin_mul_overflow((size_t)count, (size_t)width, &room)) room = SIZE_MAX;
    if (room > MOST_BYTES)
        return sz_fail("%lld values of a page have over %d bytes", (long long)count, MOST_BYTES);
    /* Some bytes more: bit-packed groups are written whole. */
    v->room = room + 64;
    v->data = malloc(v->room);
    if (!width) v->offsets = calloc((size_t)count + 1, sizeof *v->offsets);
    if (v->data && (width || v->offsets)) return 0;
    parquet_values_release(v);
    return sz_fail("out of memory for %lld values", (long long)count);
}

/* Room for `more` bytes after the first `used` of the byte arrays. */
static int values_grow(parquet_values *v, size_t used, size_t more)
{
    if (more <= v->room - used) return 0;
    if (more > MOST_BYTES - used)
        return sz_fail("the values of a page have over %d bytes", MOST_BYTES);
    size_t room = v->room * 2;
    if (room < used + more) room = used + more;
    uint8_t *data = realloc(v->data, room);
    if (!data) return sz_fail("out of memory for %zu bytes of values", room);
    v->data = data;
    v->room = room;
    return 0;
}

/* ---- runs and packed groups ---- */

static void put(void *to, bool wide, int64_t i, uint32_t value)
{
    if (wide) ((uint32_t *)to)[i] = value;
    else ((uint8_t *)to)[i] = (uint8_t)value;
}

/* Unpacks bits to bytes of 0 or 1. */
static void unpack_ones(const uint8_t *p, int64_t count, uint8_t *to)
{
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) {
        /* Byte k keeps bit k, and becomes 1 if that is set. */
        uint64_t x = (p[i / 8] * 0x0101010101010101u) & 0x8040201008040201u;
        x = ((x + 0x7f7f7f7f7f7f7f7fu) >> 7) & 0x0101010101010101u;
        memcpy(to + i, &x, 8);
    }
    for (; i < count; i++) to[i] = p[i / 8] >> (i % 8) & 1;
}

/* Unpacks up to `most` numbers, least significant bit first. */
static void unpack_bits(const uint8_t *p, size_t len, int bits, int64_t most, void *to, bool wide,
                        int64_t at)
{
    uint64_t buffer = 0;
    int held = 0;
    if (bits == 1 && !wide) {
        unpack_ones(p, most, (uint8_t *)to + at);
        return;
    }
    const uint8_t *end = p + len;
    const uint32_t mask = bits == 32 ? UINT32_MAX : (1u << bits) - 1;
    for (int64_t i = 0; i < most; i++) {
        while (held < bits) {
            buffer |= (uint64_t)(p < end ? *p++ : 0) << held;
            held += 8;
        }
        put(to, wide, at + i, (uint32_t)buffer & mask);
        buffer >>= bits;
        held -= bits;
    }
}

int64_t parquet_hybrid(const uint8_t *p, size_t len, int bits, int64_t count, void *to, bool wide)
{
    thrift t = { p, p + len, false };
    int64_t done = 0;
    const size_t run_bytes = (size_t)(bits + 7) / 8;
    while (done < count) {
        uint64_t head = thrift_varint(&t);
        if (t.bad) return -1;
        size_t left = (size_t)(t.end - t.p);
        if (head & 1) {
            /* head / 2 groups of 8 numbers, `bits` bytes each. */
            uint64_t groups = head >> 1;
            int64_t take = count - done;
            if (groups < (uint64_t)(take + 7) / 8) take = (int64_t)(groups * 8);
            size_t bytes = (size_t)(((uint64_t)take * (unsigned)bits + 7) / 8);
            if (bytes > left) return -1;
            unpack_bits(t.p, bytes, bits, take, to, wide, done);
            /* The last group may be cut off after the numbers that are wanted. */
            bool is_last = bits && groups > left / (unsigned)bits;
            t.p += is_last ? left : (size_t)(groups * (unsigned)bits);
            done += take;
        } else {
            uint64_t run = head >> 1;
            if (run_bytes > left) return -1;
            uint32_t value = 0;
            memcpy(&value, t.p, run_bytes);
            t.p += run_bytes;
            int64_t take = count - done;
            if (run < (uint64_t)take) take = (int64_t)run;
            if (!wide) memset((uint8_t *)to + done, (int)(value & 0xff), (size_t)take);
            else
                for (int64_t i = 0; i < take; i++) put(to, wide, done + i, value);
            done += take;
        }
    }
    return t.p - p;
}

int64_t parquet_bit_packed(const uint8_t *p, size_t len, int bits, int64_t count, uint8_t *to)
{
    uint64_t total = (uint64_t)count * (unsigned)bits;
    if ((total + 7) / 8 > len) return -1;
    uint64_t bit = 0;
    for (int64_t i = 0; i < count; i++) {
        unsigned value = 0;
        for (int b = 0; b < bits; b++, bit++)
            value = value << 1 | (p[bit / 8] >> (7 - bit % 8) & 1);
        to[i] = (uint8_t)value;
    }
    return (int64_t)((total + 7) / 8);
}

/* ---- PLAIN ---- */

static int plain_booleans(parquet_values *v, const uint8_t *p, size_t len, int64_t count)
{
    if (((uint64_t)count + 7) / 8 > len) return cut_off("PLAIN");
    unpack_ones(p, count, v->data);
    return 0;
}

static int plain_bytes(parquet_values *v, const uint8_t *p, size_t len, int64_t count)
{
    size_t used = 0;
    for (int64_t i = 0; i < count; i++) {
        if (len < 4) return cut_off("PLAIN");
        uint32_t n = u32_at(p);
        if (n > len - 4) return cut_off("PLAIN");
        if (values_grow(v, used, n) != 0) return -1;
        memcpy(v->data + used, p + 4, n);
        used += n;
        v->offsets[i + 1] = (int64_t)used;
        p += 4 + n;
        len -= 4 + n;
    }
    return 0;
}

static int plain(parquet_values *v, const uint8_t *p, size_t len, int64_t count)
{
    if (v->type == PARQUET_BOOLEAN) return plain_booleans(v, p, len, count);
    if (!v->width) return plain_bytes(v, p, len, count);
    if ((uint64_t)count > len / (unsigned)v->width) return cut_off("PLAIN");
    memcpy(v->data, p, (size_t)count * (unsigned)v->width);
    return 0;
}

/* ---- dictionary ---- */

static int from_dictionary(parquet_values *v, const uint8_t *p, size_t len, int64_t count,
                           const parquet_values *d)
{
    if (count == 0) return 0;
    if (!d) return sz_fail("a page needs a dictionary, and the column has none");
    if (len < 1 || p[0] > 32) return cut_off("dictionary");
    uint32_t *index = malloc((size_t)count * sizeof *index + 64);
    if (!index) return sz_fail("out of memory for %lld indices", (long long)count);

    int result = 0;
    if (parquet_hybrid(p + 1, len - 1, p[0], count, index, true) < 0)
        result = cut_off("dictionary");
    for (int64_t i = 0; i < count && result == 0; i++)
        if (index[i] >= (uint64_t)d->count)
            result = sz_fail("index %u of a dictionary of %lld values", index[i],
                             (long long)d->count);
    if (result == 0) {
        const size_t width = (size_t)v->width;
        if (!width) {
            v->index = index;
            return 0;
        }
        for (int64_t i = 0; i < count; i++)
            memcpy(v->data + (size_t)i * width, d->data + index[i] * width, width);
    }
    free(index);
    return result;
}

/* ---- DELTA ---- */

/* The head of DELTA_BINARY_PACKED. */
typedef struct {
    thrift t;
    uint64_t block, mini_blocks, total;
    int64_t first;
} delta;

static int delta_open(delta *d, const uint8_t *p, size_t len)
{
    d->t = (thrift){ p, p + len, false };
    d->block = thrift_varint(&d->t);
    d->mini_blocks = thrift_varint(&d->t);
    d->total = thrift_varint(&d->t);
    d->first = thrift_int(&d->t);
    bool fits = !d->t.bad && d->block > 0 && d->block <= 1 << 24 && d->mini_blocks > 0 &&
                d->mini_blocks <= d->block && d->block % d->mini_blocks == 0;
    return fits ? 0 : sz_fail("the head of the DELTA values is damaged");
}

/* The bits of number i of a packed miniblock. */
static uint64_t bits_at(const uint8_t *p, int bits, uint64_t i)
{
    uint64_t value = 0;
    uint64_t bit = i * (unsigned)bits;
    for (int got = 0; got < bits;) {
        int offset = (int)(bit % 8);
        int take = 8 - offset;
        if (take > bits - got) take = bits - got;
        uint64_t part = (uint64_t)p[bit / 8] >> offset & ((1u << take) - 1);
        value |= part << got;
        got += take;
        bit += (unsigned)take;
    }
    return value;
}

/* Reads all of d's numbers into to, which has room for `most`. */
static int delta_numbers(delta *d, int64_t *to, uint64_t most)
{
    if (d->total > most) return sz_fail("more DELTA values than the page has");
    const uint64_t per_mini = d->block / d->mini_blocks;
    uint64_t done = 0;
    uint64_t value = (uint64_t)d->first;
    if (d->total > 0) to[done++] = d->first;
    while (done < d->total) {
        const uint64_t least = (uint64_t)thrift_int(&d->t);
        const uint8_t *widths = d->t.p;
        if (d->mini_blocks > (uint64_t)(d->t.end - d->t.p)) return cut_off("DELTA");
        d->t.p += d->mini_blocks;
        for (uint64_t m = 0; m < d->mini_blocks && done < d->total; m++) {
            const int bits = widths[m];
            if (bits > 64) return sz_fail("DELTA values of %d bits", bits);
            const uint64_t bytes = (per_mini * (unsigned)bits + 7) / 8;
            if (bytes > (uint64_t)(d->t.end - d->t.p)) return cut_off("DELTA");
            for (uint64_t i = 0; i < per_mini && done < d->total; i++) {
                value += least + bits_at(d->t.p, bits, i);
                to[done++] = (int64_t)value;
            }
            d->t.p += bytes;
        }
    }
    return 0;
}

static int delta_packed(parquet_values *v, const uint8_t *p, size_t len, int64_t count)
{
    delta d;
    if (v->type != PARQUET_INT32 && v->type != PARQUET_INT64)
        return sz_fail("DELTA_BINARY_PACKED on a column that has no integers");
    if (delta_open(&d, p, len) != 0) return -1;
    int64_t *numbers = malloc((size_t)count * sizeof *numbers + 8);
    if (!numbers) return sz_fail("out of memory for %lld values", (long long)count);

    int result = delta_numbers(&d, numbers, (uint64_t)count);
    if (result == 0 && d.total != (uint64_t)count) result = cut_off("DELTA");
    for (int64_t i = 0; i < count && result == 0; i++)
        memcpy(v->data + i * v->width, &numbers[i], (size_t)v->width);
    free(numbers);
    return result;
}

/* Lengths by DELTA_BINARY_PACKED at *p, which moves behind them. The caller frees the result. */
static int64_t *delta_lengths(const uint8_t **p, const uint8_t *end, int64_t count)
{
    delta d;
    if (delta_open(&d, *p, (size_t)(end - *p)) != 0) return NULL;
    int64_t *lengths = malloc((size_t)count * sizeof *lengths + 8);
    if (!lengths) return sz_null("out of memory for %lld lengths", (long long)count);
    int result = delta_numbers(&d, lengths, (uint64_t)count);
    if (result == 0 && d.total != (uint64_t)count) result = cut_off("DELTA lengths");
    for (int64_t i = 0; i < count && result == 0; i++)
        if (lengths[i] < 0) result = sz_fail("a negative length");
    *p = d.t.p;
    if (result == 0) return lengths;
    free(lengths);
    return NULL;
}

static int delta_length_bytes(parquet_values *v, const uint8_t *p, size_t len, int64_t count)
{
    const uint8_t *end = p + len;
    int64_t *lengths = delta_lengths(&p, end, count);
    if (!lengths) return -1;
    size_t used = 0;
    int result = 0;
    for (int64_t i = 0; i < count && result == 0; i++) {
        const size_t n = (size_t)lengths[i];
        if (n > (size_t)(end - p)) result = cut_off("DELTA_LENGTH_BYTE_ARRAY");
        else result = values_grow(v, used, n);
        if (result != 0) break;
        memcpy(v->data + used, p, n);
        used += n;
        p += n;
        v->offsets[i + 1] = (int64_t)used;
    }
    free(lengths);
    return result;
}

/* Value i shares its first prefixes[i] bytes with the one before. */
static int join_prefixes(parquet_values *v, const int64_t *prefixes, const parquet_values *rest)
{
    size_t used = 0;
    for (int64_t i = 0; i < rest->count; i++) {
        const int64_t before = i ? v->offsets[i] - v->offsets[i - 1] : 0;
        const size_t shared = (size_t)prefixes[i];
        if (prefixes[i] > before) return sz_fail("a prefix is longer than the value before it");
        const int64_t from = rest->offsets[i];
        const size_t n = (size_t)(rest->offsets[i + 1] - from);
        if (values_grow(v, used, shared + n) != 0) return -1;
        if (i) memmove(v->data + used, v->data + v->offsets[i - 1], shared);
        memcpy(v->data + used + shared, rest->data + from, n);
        used += shared + n;
        v->offsets[i + 1] = (int64_t)used;
    }
    return 0;
}

static int delta_bytes(parquet_values *v, const uint8_t *p, size_t len, int64_t count)
{
    const uint8_t *end = p + len;
    int64_t *prefixes = delta_lengths(&p, end, count);
    if (!prefixes) return -1;

    /* Fixed-length values are joined as byte arrays first. */
    parquet_values rest;
    parquet_values joined;
    int result = parquet_values_make(&rest, PARQUET_BYTE_ARRAY, 0, count, len);
    if (result == 0) {
        result = parquet_values_make(&joined, PARQUET_BYTE_ARRAY, 0, count, len);
        if (result == 0) {
            result = delta_length_bytes(&rest, p, (size_t)(end - p), count);
            rest.count = count;
            if (result == 0) result = join_prefixes(&joined, prefixes, &rest);
            if (result == 0 && v->width) {
                const int64_t total = joined.offsets[count];
                if (total != count * v->width) result = sz_fail("a value of another length");
                else memcpy(v->data, joined.data, (size_t)total);
                parquet_values_release(&joined);
            } else if (result == 0) {
                joined.type = v->type;
                parquet_values_release(v);
                *v = joined;
            } else parquet_values_release(&joined);
        }
        parquet_values_release(&rest);
    }
    free(prefixes);
    return result;
}

/* ---- BYTE_STREAM_SPLIT: all first bytes, then all second bytes, ... ---- */

static int byte_stream_split(parquet_values *v, const uint8_t *p, size_t len, int64_t count)
{
    if (!v->width || v->type == PARQUET_BOOLEAN)
        return sz_fail("BYTE_STREAM_SPLIT on a column without numbers");
    if ((uint64_t)count > len / (unsigned)v->width) return cut_off("BYTE_STREAM_SPLIT");
    for (int b = 0; b < v->width; b++)
        for (int64_t i = 0; i < count; i++) v->data[i * v->width + b] = p[b * count + i];
    return 0;
}

/* RLE of booleans has its length before it. */
static int rle_booleans(parquet_values *v, const uint8_t *p, size_t len, int64_t count)
{
    if (v->type != PARQUET_BOOLEAN) return sz_fail("RLE on a column without booleans");
    if (len < 4 || u32_at(p) > len - 4) return cut_off("RLE");
    return parquet_hybrid(p + 4, u32_at(p), 1, count, v->data, false) < 0 ? cut_off("RLE") : 0;
}

int parquet_decode(parquet_values *v, int encoding, const uint8_t *p, size_t len, int64_t count,
                   const parquet_values *dictionary)
{
    int result;
    switch (encoding) {
    case ENCODING_PLAIN: result = plain(v, p, len, count); break;
    case ENCODING_PLAIN_DICTIONARY:
    case ENCODING_RLE_DICTIONARY: result = from_dictionary(v, p, len, count, dictionary); break;
    case ENCODING_RLE: result = rle_booleans(v, p, len, count); break;
    case ENCODING_DELTA_BINARY_PACKED: result = delta_packed(v, p, len, count); break;
    case ENCODING_DELTA_LENGTH_BYTE_ARRAY:
        if (v->width) return sz_fail("DELTA_LENGTH_BYTE_ARRAY on a column without byte arrays");
        result = delta_length_bytes(v, p, len, count);
        break;
    case ENCODING_DELTA_BYTE_ARRAY:
        if (v->type != PARQUET_BYTE_ARRAY && v->type != PARQUET_FIXED)
            return sz_fail("DELTA_BYTE_ARRAY on a column without byte arrays");
        result = delta_bytes(v, p, len, count);
        break;
    case ENCODING_BYTE_STREAM_SPLIT: result = byte_stream_split(v, p, len, count); break;
    default: return sz_fail("the encoding %d is not known", encoding);
    }
    if (result == 0) v->count = count;
    return result;
}
