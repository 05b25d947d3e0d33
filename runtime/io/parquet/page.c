/* page.c - pages: headers, and the levels and values of a data page.
 *
 * Version 1: repetition levels, definition levels and values are packed together. Version 2: the
 * levels come first and are never packed.
 * Leaves out: index pages.
 */
#include "parquet.h"
#include <stdlib.h>
#include <zlib.h>

enum { MAX_PAGE = 1 << 30, MAX_VALUES = 1 << 26 };

void parquet_piece_release(parquet_piece *p)
{
    free(p->def);
    free(p->rep);
    parquet_values_release(&p->values);
    *p = (parquet_piece){ 0 };
}

/* ---- headers ---- */

static void data_header(thrift *t, parquet_page *page)
{
    int id = 0;
    int type;
    while ((type = thrift_field(t, &id)) != THRIFT_STOP) {
        switch (id) {
        case 1: page->values = thrift_int(t); break;
        case 2: page->encoding = (int)thrift_int(t); break;
        case 3: page->def_encoding = (int)thrift_int(t); break;
        case 4: page->rep_encoding = (int)thrift_int(t); break;
        default: thrift_skip(t, type);
        }
    }
}

static void data_header_2(thrift *t, parquet_page *page)
{
    int id = 0;
    int type;
    page->packed = true;
    while ((type = thrift_field(t, &id)) != THRIFT_STOP) {
        switch (id) {
        case 1: page->values = thrift_int(t); break;
        case 3: page->rows = thrift_int(t); break;
        case 4: page->encoding = (int)thrift_int(t); break;
        case 5: page->def_bytes = thrift_int(t); break;
        case 6: page->rep_bytes = thrift_int(t); break;
        case 7: page->packed = type == THRIFT_TRUE; break;
        default: thrift_skip(t, type);
        }
    }
}

static void dictionary_header(thrift *t, parquet_page *page)
{
    int id = 0;
    int type;
    while ((type = thrift_field(t, &id)) != THRIFT_STOP) {
        if (id == 1) page->values = thrift_int(t);
        else if (id == 2) page->encoding = (int)thrift_int(t);
        else thrift_skip(t, type);
    }
}

static bool header_fits(const parquet_page *page, int64_t end)
{
    int64_t levels = page->def_bytes + page->rep_bytes;
    return page->bytes >= 0 && page->bytes <= end - page->body && page->unpacked >= 0 &&
           page->unpacked <= MAX_PAGE && page->values >= 0 && page->values <= MAX_VALUES &&
           page->def_bytes >= 0 && page->rep_bytes >= 0 && page->def_bytes <= page->bytes &&
           page->rep_bytes <= page->bytes && levels <= page->bytes && levels <= page->unpacked;
}

int parquet_page_header(parquet_page *page, const uint8_t *file, int64_t at, int64_t end)
{
    thrift t = { file + at, file + end, false };
    *page = (parquet_page){ .at = at, .rows = -1, .type = -1 };
    int id = 0;
    int type;
    while ((type = thrift_field(&t, &id)) != THRIFT_STOP) {
        switch (id) {
        case 1: page->type = (int)thrift_int(&t); break;
        case 2: page->unpacked = thrift_int(&t); break;
        case 3: page->bytes = thrift_int(&t); break;
        case 4:
            page->sum = (uint32_t)thrift_int(&t);
            page->has_sum = true;
            break;
        case 5: data_header(&t, page); break;
        case 7: dictionary_header(&t, page); break;
        case 8: data_header_2(&t, page); break;
        default: thrift_skip(&t, type);
        }
    }
    page->body = t.p - file;
    if (t.bad || !header_fits(page, end))
        return sz_fail("the page header at %lld is damaged", (long long)at);
    return 0;
}

/* ---- bodies ---- */

static int sum_checks(const parquet_page *page, const uint8_t *body)
{
    if (!page->has_sum) return 0;
    uint32_t sum = (uint32_t)crc32_z(0, body, (size_t)page->bytes);
    if (sum == page->sum) return 0;
    return sz_fail("the page at %lld is damaged: its checksum does not fit", (long long)page->at);
}

/* The unpacked bytes of `len` packed ones; *owned is what the caller frees. */
static const uint8_t *unpacked_body(const uint8_t *body, size_t len, size_t room, int codec,
                                    uint8_t **owned)
{
    *owned = NULL;
    if (codec == CODEC_NONE) {
        if (len == room) return body;
        return sz_null("a page has %zu bytes, its header says %zu", len, room);
    }
    uint8_t *to = malloc(room + 64);
    if (!to) return sz_null("out of memory for a page of %zu bytes", room);
    if (room && parquet_unpack(codec, body, len, to, room) != 0) {
        free(to);
        return NULL;
    }
    *owned = to;
    return to;
}

static int bits_for(int most)
{
    int bits = 0;
    while (most >> bits) bits++;
    return bits;
}

/* Levels of 0 to `most` at *p, which moves behind them. v1: with their length or encoding. */
static uint8_t *levels_read(const uint8_t **p, const uint8_t *end, int most, int encoding,
                            int64_t count)
{
    uint8_t *levels = malloc((size_t)count + 64);
    if (!levels) return sz_null("out of memory for %lld levels", (long long)count);
    const int bits = bits_for(most);
    size_t left = (size_t)(end - *p);
    int64_t used = -1;
    if (encoding == ENCODING_BIT_PACKED) {
        used = parquet_bit_packed(*p, left, bits, count, levels);
    } else if (left >= 4) {
        uint32_t len;
        memcpy(&len, *p, 4);
        bool whole = len <= left - 4;
        if (whole && parquet_hybrid(*p + 4, len, bits, count, levels, false) >= 0)
            used = 4 + (int64_t)len;
    }
    if (used >= 0) {
        *p += used;
        return levels;
    }
    free(levels);
    return sz_null("the levels of a page are damaged");
}

static uint8_t largest(const uint8_t *levels, int64_t count)
{
    uint8_t most = 0;
    for (int64_t i = 0; i < count; i++) most = levels[i] > most ? levels[i] : most;
    return most;
}

/* Checks the levels and counts the values that are not null; -1 with a message. */
static int64_t present(const parquet_piece *piece, const parquet_node *node)
{
    if (piece->rep && largest(piece->rep, piece->levels) > node->max_rep)
        return sz_fail("a repetition level is too large");
    if (!piece->def) return piece->levels;
    if (largest(piece->def, piece->levels) > node->max_def)
        return sz_fail("a definition level is too large");
    const uint8_t most = (uint8_t)node->max_def;
    int64_t count = 0;
    for (int64_t i = 0; i < piece->levels; i++) count += piece->def[i] == most;
    return count;
}

static int values_read(parquet_piece *piece, const parquet_page *page, const uint8_t *p, size_t len,
                       const parquet_node *node, const parquet_values *dictionary)
{
    int64_t count = present(piece, node);
    if (count < 0) return -1;
    if (parquet_values_make(&piece->values, node->type, node->width, count, len) != 0) return -1;
    return parquet_decode(&piece->values, page->encoding, p, len, count, dictionary);
}

static int decode_1(parquet_piece *piece, const parquet_page *page, const uint8_t *body,
                    const parquet_node *node, int codec, const parquet_values *dictionary)
{
    uint8_t *owned;
    const uint8_t *p = unpacked_body(body, (size_t)page->bytes, (size_t)page->unpacked, codec,
                                     &owned);
    if (!p) return -1;
    const uint8_t *end = p + page->unpacked;
    int result = 0;
    if (node->max_rep > 0) {
        piece->rep = levels_read(&p, end, node->max_rep, page->rep_encoding, page->values);
        if (!piece->rep) result = -1;
    }
    if (result == 0 && node->max_def > 0) {
        piece->def = levels_read(&p, end, node->max_def, page->def_encoding, page->values);
        if (!piece->def) result = -1;
    }
    if (result == 0) result = values_read(piece, page, p, (size_t)(end - p), node, dictionary);
    free(owned);
    return result;
}

/* Levels of version 2, whose length the header has. */
static uint8_t *levels_of_2(const uint8_t *p, int64_t len, int most, int64_t count)
{
    uint8_t *levels = malloc((size_t)count + 64);
    if (!levels) return sz_null("out of memory for %lld levels", (long long)count);
    if (parquet_hybrid(p, (size_t)len, bits_for(most), count, levels, false) >= 0) return levels;
    free(levels);
    return sz_null("the levels of a page are damaged");
}

static int decode_2(parquet_piece *piece, const parquet_page *page, const uint8_t *body,
                    const parquet_node *node, int codec, const parquet_values *dictionary)
{
    if (node->max_rep > 0) {
        piece->rep = levels_of_2(body, page->rep_bytes, node->max_rep, page->values);
        if (!piece->rep) return -1;
    }
    if (node->max_def > 0) {
        const uint8_t *p = body + page->rep_bytes;
        piece->def = levels_of_2(p, page->def_bytes, node->max_def, page->values);
        if (!piece->def) return -1;
    }
    const int64_t levels = page->rep_bytes + page->def_bytes;
    const size_t len = (size_t)(page->bytes - levels);
    const size_t room = (size_t)(page->unpacked - levels);
    uint8_t *owned;
    const uint8_t *p = unpacked_body(body + levels, len, room, page->packed ? codec : CODEC_NONE,
                                     &owned);
    if (!p) return -1;
    int result = values_read(piece, page, p, room, node, dictionary);
    free(owned);
    return result;
}

int parquet_page_decode(parquet_piece *piece, const parquet_page *page, const uint8_t *file,
                        const parquet_node *node, int codec, const parquet_values *dictionary)
{
    const uint8_t *body = file + page->body;
    *piece = (parquet_piece){ .levels = page->values };
    int result = sum_checks(page, body);
    if (result == 0 && page->type == 3)
        result = decode_2(piece, page, body, node, codec, dictionary);
    else if (result == 0) result = decode_1(piece, page, body, node, codec, dictionary);
    if (result != 0) parquet_piece_release(piece);
    return result;
}

int parquet_page_dictionary(parquet_values *v, const parquet_page *page, const uint8_t *file,
                            const parquet_node *node, int codec)
{
    const uint8_t *body = file + page->body;
    if (sum_checks(page, body) != 0) return -1;
    if (page->encoding != ENCODING_PLAIN && page->encoding != ENCODING_PLAIN_DICTIONARY)
        return sz_fail("a dictionary has the encoding %d", page->encoding);
    uint8_t *owned;
    const uint8_t *p = unpacked_body(body, (size_t)page->bytes, (size_t)page->unpacked, codec,
                                     &owned);
    if (!p) return -1;
    int result = parquet_values_make(v, node->type, node->width, page->values, 0);
    if (result == 0)
        result = parquet_decode(v, ENCODING_PLAIN, p, (size_t)page->unpacked, page->values, NULL);
    if (result != 0) parquet_values_release(v);
    free(owned);
    return result;
}
