/* body.c - any part of a page's unpacked bytes.
 *
 * Snappy packs each 64 KB of a page by itself, and stores what cannot be packed, as an image's
 * bytes, as a few long literals. So walking over a page's tags is quick, and a part costs the 64 KB
 * pieces that it is in. A page without a codec is read in place. Of other codecs a page is unpacked
 * first, into memory or a temporary file (spool.c).
 * Leaves out: checksums, which peek.c checks.
 */
#include "parquet.h"
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PIECE = 1 << 16, AROUND = 1 << 16 };

/* ---- snappy's tags ---- */

/* A tag: the bytes it makes, and those it takes in the packed data, of which `head` are before a
 * literal's bytes. A literal has back 0. */
typedef struct {
    size_t makes, takes, head, back;
} snappy_tag;

static bool read_tag(const uint8_t *p, size_t left, snappy_tag *t)
{
    if (left == 0) return false;
    const unsigned low = p[0] & 3;
    if (low == 0) {
        size_t n = p[0] >> 2;
        t->head = 1;
        if (n >= 60) {
            const size_t more = n - 59;
            if (left < 1 + more) return false;
            n = 0;
            for (size_t i = 0; i < more; i++) n |= (size_t)p[1 + i] << (8 * i);
            t->head = 1 + more;
        }
        t->makes = n + 1;
        t->back = 0;
        t->takes = t->head + t->makes;
        return true;
    }
    static const size_t takes[] = { 0, 2, 3, 5 };
    t->head = t->takes = takes[low];
    if (left < t->takes) return false;
    if (low == 1) {
        t->makes = 4 + (size_t)((p[0] >> 2) & 7);
        t->back = (size_t)(p[0] >> 5) << 8 | p[1];
    } else {
        t->makes = 1 + (size_t)(p[0] >> 2);
        t->back = 0;
        for (size_t i = 1; i < t->takes; i++) t->back |= (size_t)p[i] << (8 * (i - 1));
    }
    return t->back > 0;
}

/* ---- pieces ---- */

/* A walk reads few bytes of each 64 KB. Without advice the kernel would make all of them resident.
 */
static void advise(const uint8_t *from, size_t len, int advice)
{
    const uintptr_t size = (uintptr_t)sysconf(_SC_PAGESIZE);
    const uintptr_t first = (uintptr_t)from / size * size;
    madvise((void *)first, (uintptr_t)from + len - first, advice);
}

static size_t pieces_of(const parquet_body *b) { return (b->room + PIECE - 1) / PIECE; }

/* Finds where the pieces up to `piece` begin; false if the data are damaged, or not packed piece by
 * piece. */
static bool walk_pieces(parquet_body *b, size_t piece)
{
    while (b->known <= piece) {
        size_t at = b->next;
        size_t size = b->room - b->known * PIECE;
        if (size > PIECE) size = PIECE;
        for (size_t made = 0; made < size;) {
            snappy_tag t;
            if (!read_tag(b->from + at, b->len - at, &t)) return false;
            if (t.takes > b->len - at || t.makes > size - made) return false;
            made += t.makes;
            at += t.takes;
        }
        b->starts[b->known++] = b->next;
        b->next = at;
    }
    return b->known < pieces_of(b) || b->next == b->len;
}

/* The unpacked length comes first. */
static bool start_walk(parquet_body *b)
{
    uint64_t length = 0;
    size_t at = 0;
    for (int shift = 0; shift < 35; shift += 7) {
        if (at == b->len) return false;
        length |= (uint64_t)(b->from[at] & 127) << shift;
        if (!(b->from[at++] & 128)) break;
    }
    b->next = at;
    b->starts = malloc((pieces_of(b) + 1) * sizeof *b->starts);
    return b->starts && length == b->room;
}

/* Unpacks one piece; false if it is damaged. */
static bool unpack_piece(const parquet_body *b, size_t piece, uint8_t *to)
{
    size_t at = b->starts[piece];
    size_t size = b->room - piece * PIECE;
    if (size > PIECE) size = PIECE;
    size_t made = 0;
    while (made < size) {
        snappy_tag t;
        if (!read_tag(b->from + at, b->len - at, &t)) return false;
        if (t.takes > b->len - at || t.makes > size - made || t.back > made) return false;
        uint8_t *out = to + made;
        if (t.back == 0) memcpy(out, b->from + at + t.head, t.makes);
        else
            for (size_t i = 0; i < t.makes; i++) out[i] = out[(ptrdiff_t)i - (ptrdiff_t)t.back];
        made += t.makes;
        at += t.takes;
    }
    return true;
}

/* A piece in the file's buffer; NULL if it is damaged. */
static const uint8_t *buffered_piece(const parquet_body *b, size_t piece)
{
    parquet_file *file = (parquet_file *)b->file;
    if (file->piece_owner == b && file->piece_number == piece) return file->piece;
    file->piece_owner = NULL;
    if (!file->piece) file->piece = malloc(PIECE);
    if (!file->piece || !unpack_piece(b, piece, file->piece)) return NULL;
    file->piece_owner = b;
    file->piece_number = piece;
    return file->piece;
}

static bool read_packed(parquet_body *b, size_t at, size_t n, uint8_t *to)
{
    const size_t first = at / PIECE;
    if (n == 0) return true;
    if (!walk_pieces(b, (at + n - 1) / PIECE)) return false;
    while (n > 0) {
        const size_t in_piece = at % PIECE;
        size_t part = PIECE - in_piece;
        if (part > n) part = n;
        if (part == PIECE) {
            if (!unpack_piece(b, at / PIECE, to)) return false;
        } else {
            const uint8_t *piece = buffered_piece(b, at / PIECE);
            if (!piece) return false;
            memcpy(to, piece + in_piece, part);
        }
        to += part;
        at += part;
        n -= part;
    }
    const size_t last = (at - 1) / PIECE + 1;
    const uint64_t end = last < b->known ? b->starts[last] : b->next;
    parquet_file_forget(b->file, b->from + b->starts[first], (size_t)(end - b->starts[first]));
    return true;
}

/* ---- a page ---- */

static bool unpack_small(parquet_body *b, int codec)
{
    b->owned = malloc(b->room + 64);
    if (!b->owned || parquet_unpack(codec, b->from, b->len, b->owned, b->room) != 0) return false;
    parquet_file_forget(b->file, b->from, b->len);
    b->from = b->owned;
    b->len = b->room;
    return true;
}

bool parquet_body_open(parquet_body *b, const parquet_file *file, int64_t at, int64_t len,
                       int64_t room, int codec)
{
    *b = (parquet_body){
        .file = file, .from = file->base + at, .len = (size_t)len, .room = (size_t)room
    };
    if (codec == CODEC_NONE) return len == room;
    if (codec == CODEC_SNAPPY) {
        b->is_packed = true;
        return start_walk(b);
    }
    if (room <= PARQUET_SMALL_PAGE) return unpack_small(b, codec);
    b->from = parquet_spool(codec, file, b->from, b->len, b->room);
    b->len = b->room;
    b->is_spooled = b->from != NULL;
    return b->is_spooled;
}

void parquet_body_close(parquet_body *b)
{
    parquet_file *file = (parquet_file *)b->file;
    if (file && file->piece_owner == b) file->piece_owner = NULL;
    if (b->is_spooled) parquet_spool_drop(b->from, b->room);
    free(b->starts);
    free(b->owned);
    *b = (parquet_body){ 0 };
}

bool parquet_body_read(parquet_body *b, size_t at, size_t n, uint8_t *to)
{
    if (at > b->room || n > b->room - at) return false;
    if (b->is_packed) return read_packed(b, at, n, to);
    memcpy(to, b->from + at, n);
    if (b->owned) return true;
    if (b->is_spooled) parquet_forget(b->from, b->room, b->from + at, n);
    else parquet_file_forget(b->file, b->from + at, n);
    return true;
}

/* ---- lengths ---- */

/* The four unpacked bytes at `at`, which is inside the page with them. */
static bool packed_length(parquet_body *b, size_t at, uint32_t *length)
{
    if (!walk_pieces(b, (at + 3) / PIECE)) return false;
    size_t place = b->starts[at / PIECE];
    size_t made = at - at % PIECE;
    for (;;) {
        snappy_tag t;
        if (place >= b->len || !read_tag(b->from + place, b->len - place, &t)) return false;
        if (t.takes > b->len - place) return false;
        if (at < made + t.makes) {
            /* One literal has them all as a rule. Otherwise the piece is unpacked. */
            if (t.back != 0 || at + 4 > made + t.makes)
                return read_packed(b, at, 4, (uint8_t *)length);
            memcpy(length, b->from + place + t.head + (at - made), 4);
            return true;
        }
        made += t.makes;
        place += t.takes;
    }
}

static bool find_lengths(parquet_body *b, int64_t *starts, int64_t *known, int64_t until)
{
    while (*known < until) {
        const size_t at = (size_t)starts[*known];
        uint32_t n;
        if (at > b->room || b->room - at < 4) return false;
        if (b->is_packed) {
            if (!packed_length(b, at, &n)) return false;
        } else {
            memcpy(&n, b->from + at, 4);
        }
        if (n > b->room - at - 4) return false;
        starts[++*known] = (int64_t)(at + 4 + n);
    }
    return true;
}

bool parquet_body_lengths(parquet_body *b, int64_t *starts, int64_t *known, int64_t until)
{
    if (*known >= until) return true;
    const uint8_t *from = b->from + starts[*known];
    if (b->is_packed) from = b->from + b->next;
    const size_t len = (size_t)(b->from + b->len - from);
    if (len < AROUND || b->owned) return find_lengths(b, starts, known, until);
    advise(from, len, MADV_RANDOM);
    const bool good = find_lengths(b, starts, known, until);
    advise(from, len, MADV_NORMAL);
    advise(from, len, MADV_DONTNEED);
    return good;
}
