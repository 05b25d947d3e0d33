/* body.c - any part of a page's unpacked bytes.
 *
 * Snappy packs each 64 KB of a page by itself, and stores what cannot be packed, as an image's
 * bytes, as a few long literals. So walking over a page's tags is quick, and a part costs the 64 KB
 * pieces that it is in. A page without a codec is read in place. Of other codecs a page is unpacked
 * first, into memory or a temporary file (spool.c).
 * Leaves out: checksums, which peek.c checks.
 */
#include "parquet.h"
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PIECE = 1 << 16, WINDOW = 512, LONGEST_HEAD = 5 };

static int64_t large = 1 << 20;

void sz_parquet_set_large(int64_t bytes) { large = bytes; }
int64_t parquet_large_chunk(void) { return large; }
int64_t parquet_small_page(void) { return 4 * large; }

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

/* ---- walking ---- */

/* A walk reads a few bytes of each 64 KB of a page. It reads the file: in the map, the kernel would
 * make all 64 KB resident. */
typedef struct {
    const parquet_body *body;
    int fd; /* -1: the map is read */
    size_t start, size;
    uint8_t bytes[WINDOW];
} walk;

static void walk_open(walk *w, const parquet_body *b)
{
    const parquet_file *file = b->file;
    struct stat st;
    *w = (walk){ .body = b, .fd = -1 };
    if (b->owned || b->is_spooled) return;
    w->fd = open(file->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (w->fd < 0) return;
    /* It must be the file that is mapped. */
    if (fstat(w->fd, &st) == 0 && st.st_size == file->bytes && st.st_dev == file->device &&
        st.st_ino == file->number)
        return;
    close(w->fd);
    w->fd = -1;
}

static void walk_close(walk *w)
{
    if (w->fd >= 0) close(w->fd);
}

/* The packed bytes at `at`, which is inside the page. *left: how many can be read, as many as a
 * tag's head has unless the page ends. NULL if the file cannot be read. */
static const uint8_t *walk_to(walk *w, size_t at, size_t *left)
{
    const parquet_body *b = w->body;
    if (w->fd < 0) {
        *left = b->len - at;
        return b->from + at;
    }
    if (at < w->start || at + LONGEST_HEAD > w->start + w->size) {
        size_t n = b->len - at;
        if (n > WINDOW) n = WINDOW;
        const off_t place = (off_t)(b->from - b->file->base) + (off_t)at;
        w->size = 0;
        if (pread(w->fd, w->bytes, n, place) != (ssize_t)n) return NULL;
        w->start = at;
        w->size = n;
    }
    *left = w->start + w->size - at;
    return w->bytes + (at - w->start);
}

/* ---- pieces ---- */

static size_t pieces_of(const parquet_body *b) { return (b->room + PIECE - 1) / PIECE; }

/* Finds where the pieces up to `piece` begin; false if the data are damaged, or not packed piece by
 * piece. */
static bool walk_pieces(parquet_body *b, walk *w, size_t piece)
{
    while (b->known <= piece) {
        size_t at = b->next;
        size_t size = b->room - b->known * PIECE;
        if (size > PIECE) size = PIECE;
        for (size_t made = 0; made < size;) {
            snappy_tag t;
            size_t left;
            if (at >= b->len) return false;
            const uint8_t *p = walk_to(w, at, &left);
            if (!p || !read_tag(p, left, &t)) return false;
            if (t.takes > b->len - at || t.makes > size - made) return false;
            made += t.makes;
            at += t.takes;
        }
        b->starts[b->known++] = b->next;
        b->next = at;
    }
    return b->known < pieces_of(b) || b->next == b->len;
}

/* The same, if that is not done yet. */
static bool find_pieces(parquet_body *b, size_t piece)
{
    if (b->known > piece) return b->known < pieces_of(b) || b->next == b->len;
    walk w;
    walk_open(&w, b);
    const bool good = walk_pieces(b, &w, piece);
    walk_close(&w);
    return good;
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
    if (!find_pieces(b, (at + n - 1) / PIECE)) return false;
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
    if (room <= parquet_small_page()) return unpack_small(b, codec);
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
    if (b->is_spooled) sz_io_forget(b->from, b->room, b->from + at, n);
    else parquet_file_forget(b->file, b->from + at, n);
    return true;
}

/* ---- lengths ---- */

/* Reads the four unpacked bytes at `at`, which are inside the page. */
static bool packed_length(parquet_body *b, walk *w, size_t at, uint32_t *length)
{
    if (!walk_pieces(b, w, (at + 3) / PIECE)) return false;
    size_t place = b->starts[at / PIECE];
    size_t made = at - at % PIECE;
    for (;;) {
        snappy_tag t;
        size_t left;
        if (place >= b->len) return false;
        const uint8_t *p = walk_to(w, place, &left);
        if (!p || !read_tag(p, left, &t) || t.takes > b->len - place) return false;
        if (at < made + t.makes) {
            /* One literal has them all as a rule. Otherwise the piece is unpacked. */
            if (t.back != 0 || at + 4 > made + t.makes)
                return read_packed(b, at, 4, (uint8_t *)length);
            p = walk_to(w, place + t.head + (at - made), &left);
            if (!p || left < 4) return false;
            memcpy(length, p, 4);
            return true;
        }
        made += t.makes;
        place += t.takes;
    }
}

bool parquet_body_lengths(parquet_body *b, int64_t *starts, int64_t *known, int64_t until)
{
    walk w;
    bool good = true;
    if (*known >= until) return true;
    const size_t first = (size_t)starts[*known];
    walk_open(&w, b);
    while (good && *known < until) {
        const size_t at = (size_t)starts[*known];
        uint32_t n = 0;
        size_t left;
        good = at <= b->room && b->room - at >= 4;
        if (!good) break;
        if (b->is_packed) {
            good = packed_length(b, &w, at, &n);
        } else {
            const uint8_t *p = walk_to(&w, at, &left);
            good = p && left >= 4;
            if (good) memcpy(&n, p, 4);
        }
        good = good && n <= b->room - at - 4;
        if (good) starts[++*known] = (int64_t)(at + 4 + n);
    }
    walk_close(&w);
    if (b->is_spooled)
        sz_io_forget(b->from, b->room, b->from + first, (size_t)starts[*known] - first);
    return good;
}
