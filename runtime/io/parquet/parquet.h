/* parquet.h - what the files of this folder share: the Thrift reader, the file's metadata, codecs,
 * encodings and pages.
 *
 * A file is: "PAR1", column chunks, the metadata in Thrift's compact protocol, its length (u32),
 * "PAR1". A row group has one chunk for each leaf column, a chunk is a dictionary page (perhaps)
 * and data pages, a page is a Thrift header and its bytes. Everything is read from a map of the
 * file, and nothing in it is trusted: lengths, counts and offsets are checked where they are used.
 * Source: the Apache Parquet format, 2.11.
 */
#ifndef SZ_PARQUET_H
#define SZ_PARQUET_H

#include "io/io.h"

/* ---- thrift.c ---- */

/* A position in bytes; reading past the end sets bad, and gives zeros. */
typedef struct {
    const uint8_t *p, *end;
    bool bad;
} thrift;

enum { /* types of the compact protocol */
       THRIFT_STOP = 0,
       THRIFT_TRUE = 1,
       THRIFT_FALSE = 2,
       THRIFT_BYTE = 3,
       THRIFT_I16 = 4,
       THRIFT_I32 = 5,
       THRIFT_I64 = 6,
       THRIFT_DOUBLE = 7,
       THRIFT_BINARY = 8,
       THRIFT_LIST = 9,
       THRIFT_SET = 10,
       THRIFT_MAP = 11,
       THRIFT_STRUCT = 12
};

uint64_t thrift_varint(thrift *t);
/* A zigzag integer of type I16, I32 or I64. */
int64_t thrift_int(thrift *t);
/* A binary: its bytes inside the buffer, and their count. */
const uint8_t *thrift_binary(thrift *t, size_t *len);
/* The next field of a struct: its type, THRIFT_STOP after the last one. *id is updated. */
int thrift_field(thrift *t, int *id);
/* The head of a list: its length; the elements' type in *type. */
int64_t thrift_list(thrift *t, int *type);
/* Passes over a value. */
void thrift_skip(thrift *t, int type);

/* ---- metadata.c ---- */

enum { /* physical types */
       PARQUET_BOOLEAN,
       PARQUET_INT32,
       PARQUET_INT64,
       PARQUET_INT96,
       PARQUET_FLOAT,
       PARQUET_DOUBLE,
       PARQUET_BYTE_ARRAY,
       PARQUET_FIXED,
       PARQUET_GROUP /* no type: a node with children */
};

enum { /* where a chunk's pages are, and what they hold */
       CODEC_NONE,
       CODEC_SNAPPY,
       CODEC_GZIP,
       CODEC_LZO,
       CODEC_BROTLI,
       CODEC_LZ4,
       CODEC_ZSTD,
       CODEC_LZ4_RAW
};

typedef struct {
    char *name; /* owned */
    int type, width, repetition, children;
    int converted; /* ConvertedType, -1: none */
    int logical;   /* field id of LogicalType, 0: none */
    int scale;     /* of a decimal: its digits after the point */
    int unit;      /* of a logical time: 1, 2, 3 for ms, us, ns; 0: none */
    int is_utc;    /* of a logical time: whether it is counted from UTC */
    int leaf;      /* index of the leaf column, -1 for a group */
    int max_def, max_rep;
} parquet_node;

typedef struct {
    int codec;
    int64_t start; /* of its first page, in the file */
    int64_t bytes; /* of all its pages, as stored */
    int64_t values;
    int64_t unpacked;    /* bytes of all its pages */
    int64_t index;       /* where the list of its pages is, in the file; 0: there is none */
    int64_t index_bytes; /* of that list */
} parquet_chunk;

typedef struct {
    int64_t first, rows;
    parquet_chunk *chunks; /* [leaves] */
} parquet_group;

typedef struct {
    char *key, *value; /* owned */
} parquet_pair;

typedef struct {
    parquet_node *nodes;
    int node_count;
    int *leaf_nodes; /* [leaves] the node of each leaf column */
    int leaves;
    parquet_group *groups;
    int group_count;
    parquet_pair *pairs;
    int pair_count;
    int64_t rows;
} parquet_metadata;

/* 0, or -1 with a message that begins with `path`; release it in both cases. */
int parquet_metadata_read(parquet_metadata *m, const char *path, const uint8_t *bytes, size_t len,
                          int64_t file_bytes);
void parquet_metadata_release(parquet_metadata *m);

/* ---- codec.c ---- */

/* Unpacks len bytes into exactly room bytes; 0, or -1 with the reason as the message. */
int parquet_unpack(int codec, const uint8_t *from, size_t len, uint8_t *to, size_t room);

/* ---- encodings.c ---- */

enum {
    ENCODING_PLAIN = 0,
    ENCODING_PLAIN_DICTIONARY = 2,
    ENCODING_RLE = 3,
    ENCODING_BIT_PACKED = 4,
    ENCODING_DELTA_BINARY_PACKED = 5,
    ENCODING_DELTA_LENGTH_BYTE_ARRAY = 6,
    ENCODING_DELTA_BYTE_ARRAY = 7,
    ENCODING_RLE_DICTIONARY = 8,
    ENCODING_BYTE_STREAM_SPLIT = 9
};

/* Values of one leaf column: numbers of `width` bytes each, or byte arrays, whose bytes follow one
 * another, with count + 1 offsets. Byte arrays of a page with a dictionary are numbers of its
 * values, so that a page needs no copies of them. */
typedef struct {
    int type, width; /* width 0: byte arrays. A boolean is a byte of 0 or 1 */
    int64_t count;
    uint8_t *data;    /* owned */
    int64_t *offsets; /* owned; NULL unless width is 0 */
    uint32_t *index;  /* owned; [count] of byte arrays in the dictionary, or NULL */
    size_t room;      /* bytes allocated at data */
} parquet_values;

void parquet_values_release(parquet_values *v);
/* Makes room for `count` values and `bytes` bytes of byte arrays; 0, or -1 with a message. */
int parquet_values_make(parquet_values *v, int type, int width, int64_t count, size_t bytes);

/* Decodes count values of the type and width that v has; dictionary: for the two encodings that
 * use one, or NULL. 0, or -1 with the reason as the message. */
int parquet_decode(parquet_values *v, int encoding, const uint8_t *p, size_t len, int64_t count,
                   const parquet_values *dictionary);

/* Decodes count numbers below 2^bits of the hybrid of runs and packed groups. Returns the bytes
 * used, or -1 without a message when the data end first. to has u8 or, if wide, u32 elements. */
int64_t parquet_hybrid(const uint8_t *p, size_t len, int bits, int64_t count, void *to, bool wide);
/* The same for the old bit-packed levels, most significant bit first. */
int64_t parquet_bit_packed(const uint8_t *p, size_t len, int bits, int64_t count, uint8_t *to);

/* ---- page.c ---- */

typedef struct {
    int64_t at;    /* of the header, in the file */
    int64_t body;  /* of the bytes after it */
    int64_t bytes; /* of the body as stored */
    int64_t unpacked;
    int type;     /* 0 data, 2 dictionary, 3 data of version 2 */
    int encoding; /* of the values */
    int def_encoding, rep_encoding;
    int64_t values; /* with nulls: levels */
    int64_t rows;   /* -1: not stated */
    int64_t def_bytes, rep_bytes;
    bool packed; /* version 2: whether the values are compressed */
    bool has_sum;
    uint32_t sum; /* CRC-32 of the body */
} parquet_page;

/* The levels and values of one data page. */
typedef struct {
    int64_t levels;
    uint8_t *def, *rep; /* owned; NULL where the column has no such level */
    parquet_values values;
} parquet_piece;

void parquet_piece_release(parquet_piece *p);

/* Reads the header at `at`; 0, or -1 with the reason as the message. */
int parquet_page_header(parquet_page *page, const uint8_t *file, int64_t at, int64_t end);
/* Decodes a data page. */
int parquet_page_decode(parquet_piece *piece, const parquet_page *page, const uint8_t *file,
                        const parquet_node *node, int codec, const parquet_values *dictionary);
/* Decodes a dictionary page. */
int parquet_page_dictionary(parquet_values *v, const parquet_page *page, const uint8_t *file,
                            const parquet_node *node, int codec);

/* ---- pages.c ---- */

/* The map of a file, and the unpacked 64 KB that were used last. */
typedef struct {
    const char *path;
    const uint8_t *base;
    int64_t bytes;
    uint64_t device, number; /* of the file that is mapped */
    uint8_t *piece;          /* owned */
    const void *piece_owner; /* the parquet_body that the piece belongs to */
    size_t piece_number;
} parquet_file;

/* sz_io_forget for the map of a file. */
void parquet_file_forget(const parquet_file *file, const uint8_t *from, size_t len);

typedef struct parquet_entry parquet_entry;

typedef struct {
    parquet_page page;
    bool is_read;  /* whether page has more than its place */
    int64_t first; /* rows of the group that start before it */
    int64_t rows;  /* rows that start in it; -1: not known yet */
    parquet_entry *entry;
} parquet_place;

/* The data pages of a column chunk. They are listed as they are met, or all at once from the page
 * index. */
typedef struct {
    const parquet_file *file;
    const parquet_node *node;
    const parquet_chunk *chunk;
    int64_t rows; /* of the row group */
    parquet_place *places;
    int count, room;
    bool is_whole;  /* whether all pages are listed */
    int64_t next;   /* where the next header is */
    int64_t values; /* levels in the pages met so far */
    bool has_dictionary;
    parquet_page dictionary;
    parquet_entry *dictionary_entry;
} parquet_pages;

/* NULL with a message. */
parquet_pages *parquet_pages_open(const parquet_file *file, const parquet_node *node,
                                  const parquet_chunk *chunk, int64_t rows);
void parquet_pages_close(parquet_pages *p);
/* Lists the next page. 1: there is one; 0: the chunk has ended; -1: a message. */
int parquet_pages_next(parquet_pages *p);
/* Reads the header of page i if that has not been done; 0, or -1 with a message. */
int parquet_pages_header(parquet_pages *p, int i);
/* Sets the rows of page i; -1 with a message if other ones were stated. */
int parquet_pages_set_rows(parquet_pages *p, int i, int64_t rows);
/* The page in which row `row` of the group starts; -1 with a message. count_rows(context, i) sets
 * the rows of page i; 0, or -1 with a message. */
int parquet_pages_find(parquet_pages *p, int64_t row, int (*count_rows)(void *context, int i),
                       void *context);

/* ---- cache.c ---- */

/* Page i of the list, decoded; NULL with a message. It is kept until it is old and memory is
 * wanted, but not less long than until parquet_cache_next. */
const parquet_piece *parquet_cache_page(parquet_pages *p, int i);
/* The dictionary of the list, likewise; NULL with a message. */
const parquet_values *parquet_cache_dictionary(parquet_pages *p);
/* Nothing that was asked for before is needed any more. */
void parquet_cache_next(void);
void parquet_cache_drop(parquet_pages *p);

/* ---- rows.c ---- */

/* Where a leaf column was read last. */
typedef struct {
    int group, page;
    int64_t row, level, value; /* row `row` of the group starts at level `level` of the page */
} parquet_cursor;

typedef struct {
    sz_parquet_values head;
    uint8_t *def, *rep; /* owned */
    parquet_values values;
    size_t level_room;
    int64_t value_room;
    size_t used;  /* bytes of byte arrays */
    int64_t most; /* bytes of a byte array that a peek reads */
} parquet_result;

/* Appends rows [row, row + rows) of a row group; 0, or -1 with a message. */
int parquet_rows_read(parquet_pages *pages, parquet_cursor *c, int64_t row, int64_t rows,
                      parquet_result *r);

/* ---- body.c ---- */

/* See sz_parquet_set_large. */
int64_t parquet_large_chunk(void);
/* Pages up to this size are unpacked in memory where a codec cannot be entered in the middle. */
int64_t parquet_small_page(void);

/* The unpacked bytes of a page, of which any part can be read without the rest. */
typedef struct {
    const parquet_file *file;
    const uint8_t *from;
    size_t len, room; /* packed and unpacked bytes */
    bool is_packed;   /* by snappy, 64 KB after 64 KB; otherwise `from` has them unpacked */
    bool is_spooled;  /* `from` is in a temporary file */
    uint8_t *owned;   /* `from` is memory of the body, or NULL */
    uint64_t *starts; /* [pieces] where each piece's tags begin */
    size_t known;     /* pieces of which that is known */
    size_t next;      /* where the tags of the next piece begin */
} parquet_body;

/* Opens `len` bytes at `at` of the file, which the codec unpacks to `room`. False without a message
 * if that is not possible. */
bool parquet_body_open(parquet_body *b, const parquet_file *file, int64_t at, int64_t len,
                       int64_t room, int codec);
void parquet_body_close(parquet_body *b);
/* Copies n unpacked bytes from `at` on; false if there are fewer, or they are damaged. */
bool parquet_body_read(parquet_body *b, size_t at, size_t n, uint8_t *to);
/* Finds out where PLAIN byte arrays begin: starts[*known] is known, and more follow up to `until`.
 * False if a length is damaged. */
bool parquet_body_lengths(parquet_body *b, int64_t *starts, int64_t *known, int64_t until);

/* ---- spool.c ---- */

/* Unpacks a page into a temporary file without a name, and maps it. NULL without a message: there
 * is no room, or the data are damaged. */
const uint8_t *parquet_spool(int codec, const parquet_file *file, const uint8_t *from, size_t len,
                             size_t room);
void parquet_spool_drop(const uint8_t *map, size_t room);

/* ---- peek.c ---- */

/* Reads single values of a chunk without decoding its pages. NULL without a message: the chunk is
 * not of a kind for which that works. pages outlives it. */
typedef struct parquet_peek parquet_peek;
parquet_peek *parquet_peek_open(parquet_pages *pages);
void parquet_peek_close(parquet_peek *p);
/* Appends a row of the chunk's group; -1 without a message if it cannot be read, and r is then
 * released. */
int parquet_peek_read(parquet_peek *p, int64_t row, parquet_result *r);

#endif
