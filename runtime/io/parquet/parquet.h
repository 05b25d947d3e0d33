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
    int leaf;      /* index of the leaf column, -1 for a group */
    int max_def, max_rep;
} parquet_node;

typedef struct {
    int codec;
    int64_t start; /* of its first page, in the file */
    int64_t bytes; /* of all its pages, as stored */
    int64_t values;
    int64_t unpacked; /* bytes of all its pages */
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
 * another, with count + 1 offsets. */
typedef struct {
    int type, width; /* width 0: byte arrays. A boolean is a byte of 0 or 1 */
    int64_t count;
    uint8_t *data;    /* owned */
    int64_t *offsets; /* owned; NULL unless width is 0 */
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

/* ---- peek.c ---- */

/* Reads single values of a chunk without unpacking its pages. NULL without a message: the chunk is
 * not of a kind for which that works. file and node outlive it. */
typedef struct parquet_peek parquet_peek;
typedef struct {
    const char *path;
    const uint8_t *base; /* the map of the file */
    int64_t bytes;
} parquet_file;
parquet_peek *parquet_peek_open(const parquet_file *file, const parquet_chunk *chunk,
                                const parquet_node *node);
void parquet_peek_close(parquet_peek *p);
/* The value of a row of the chunk's group, allocated in v: 1; 0 for a null; -1 without a message
 * if it cannot be read. */
int parquet_peek_read(parquet_peek *p, int64_t row, parquet_values *v);

#endif
