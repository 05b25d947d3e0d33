/* write.h - what the writer's files share: a growing buffer, Thrift's compact protocol, and a
 * column whose pages are being made.
 *
 *   parquet_column c = { .type = PARQUET_INT64, .width = 8, .max_def = 1, .codec = CODEC_SNAPPY };
 *   parquet_column_put(&c, 0, 1, &value, 8);         one entry: levels, and a value
 *   parquet_column_page(&c);                         a page of the entries so far is in c.pages
 *
 * A buffer that runs out of memory fails and stays failed, so that it is checked once, at the end.
 */
#ifndef SZ_PARQUET_WRITE_H
#define SZ_PARQUET_WRITE_H

#include "parquet.h"

/* ---- thrift_write.c ---- */

typedef struct {
    uint8_t *bytes; /* owned */
    size_t len, room;
    bool failed;
} parquet_buffer;

/* Room for n more bytes at the end, or NULL; the caller adds them to len. */
uint8_t *parquet_buffer_more(parquet_buffer *b, size_t n);
void parquet_buffer_put(parquet_buffer *b, const void *bytes, size_t n);
void parquet_buffer_byte(parquet_buffer *b, int byte);
void parquet_buffer_u32(parquet_buffer *b, uint32_t v); /* least significant byte first */
void parquet_buffer_varint(parquet_buffer *b, uint64_t v);
void parquet_buffer_release(parquet_buffer *b);

enum { THRIFT_DEEPEST = 8 };

/* A writer of one struct and those inside of it. Start with all zero but `to`. */
typedef struct {
    parquet_buffer *to;
    int last[THRIFT_DEEPEST]; /* the last field's id in each open struct */
    int depth;
} thrift_out;

void thrift_put_i16(thrift_out *t, int id, int64_t v);
void thrift_put_i32(thrift_out *t, int id, int64_t v);
void thrift_put_i64(thrift_out *t, int id, int64_t v);
void thrift_put_binary(thrift_out *t, int id, const void *bytes, size_t len);
/* A struct as a field; thrift_end closes it. */
void thrift_begin(thrift_out *t, int id);
/* A list of n elements as a field. Its elements follow: i32 by thrift_element_i32, binaries by
 * thrift_element_binary, structs by thrift_element and thrift_end. */
void thrift_put_list(thrift_out *t, int id, int type, int64_t n);
void thrift_element_i32(thrift_out *t, int64_t v);
void thrift_element_binary(thrift_out *t, const void *bytes, size_t len);
void thrift_element(thrift_out *t);
/* Ends the innermost struct, or the outermost one. */
void thrift_end(thrift_out *t);

/* ---- column_write.c ---- */

typedef struct {
    int type, width; /* width 0: byte arrays */
    int max_def, max_rep;
    int codec;               /* CODEC_NONE or CODEC_SNAPPY */
    int64_t levels;          /* of the page */
    parquet_buffer def, rep; /* of the page, a byte each */
    parquet_buffer values;   /* of the page, plain; a boolean is a byte */
    parquet_buffer pages;    /* of the chunk: headers and packed bodies */
    int64_t chunk_levels;    /* of the chunk */
    int64_t chunk_unpacked;  /* bytes of the chunk before packing, with headers */
} parquet_column;

/* Adds an entry; bytes: the value, or NULL if def says that there is none. */
void parquet_column_put(parquet_column *c, int rep, int def, const void *bytes, size_t len);
/* Whether the page is long enough to end. */
bool parquet_column_is_long(const parquet_column *c);
/* Makes a page of what there is, if anything: 0, or -1 with a message. */
int parquet_column_page(parquet_column *c);
void parquet_column_release(parquet_column *c);

#endif
