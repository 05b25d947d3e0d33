/* peek.c - one byte array of a column chunk, without unpacking the page that holds it.
 *
 * A page of images is 100 MB or more where a writer puts 100 rows into a row group, and a dictionary
 * of images as large. Snappy packs each 64 KB of a page by itself, and what cannot be packed, as an
 * image's bytes, is stored as a few long literals. So walking over a page's tags is quick. A peek
 * keeps, for one chunk: its pages with the number of each row's value, where each 64 KB of a packed
 * page begins, and where each value begins. Then a value costs the 64 KB pieces that it is in.
 *
 * Only for columns of byte arrays without repetition, plain or with a dictionary, packed by snappy or
 * not at all, in pages without checksums. All else is read by parquet.c, page by page.
 * Leaves out: other codecs, which cannot be entered in the middle.
 */
#include "parquet.h"
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PIECE = 1 << 16, MOST_SMALL = 16 << 20, WINDOW = 512, LONGEST_HEAD = 5 };

/* A page whose unpacked bytes are read in pieces. */
typedef struct {
    const uint8_t *from;
    size_t len, room; /* packed and unpacked bytes */
    bool packed;
    uint64_t *starts; /* [pieces] where each piece's tags begin; NULL unless packed */
    int64_t *values;  /* [count] where each value begins in the unpacked bytes */
    int64_t count, known, next;
    size_t piece; /* the piece that is in bytes; SIZE_MAX: none */
    uint8_t *bytes;
} packed_page;

typedef struct {
    parquet_page header;
    int64_t first, rows;
    int32_t *numbers; /* [rows] of the values, -1: null; NULL: the page is not open */
    bool in_dictionary;
    packed_page page;
} peek_page;

struct parquet_peek {
    const parquet_file *file;
    const parquet_node *node;
    int codec;
    peek_page *pages;
    int count;
    parquet_page dictionary_header;
    bool has_dictionary;
    packed_page dictionary; /* from is NULL: not open */
};

/* ---- snappy ---- */

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

/* The packed bytes that are walked over. They are read by pread: in the map, the kernel would make
 * 64 KB resident for each tag. */
typedef struct {
    int fd;
    int64_t base; /* of the page's bytes, in the file */
    size_t len, start, size;
    uint8_t bytes[WINDOW];
} walk;

/* The bytes at `at`, of which *left can be read; NULL if the file cannot be read. */
static const uint8_t *walk_to(walk *w, size_t at, size_t *left)
{
    const bool inside = at >= w->start && at + LONGEST_HEAD <= w->start + w->size;
    if (!inside) {
        size_t n = w->len - at;
        if (n > WINDOW) n = WINDOW;
        if (pread(w->fd, w->bytes, n, (off_t)(w->base + (int64_t)at)) != (ssize_t)n) return NULL;
        w->start = at;
        w->size = n;
    }
    *left = w->start + w->size - at;
    return w->bytes + (at - w->start);
}

/* Finds where the pieces begin; false if the data are damaged or not packed piece by piece. */
static bool walk_pieces(packed_page *g, walk *w)
{
    /* The unpacked length comes first. */
    size_t left;
    size_t at = 0;
    uint64_t length = 0;
    const uint8_t *p = walk_to(w, 0, &left);
    for (int shift = 0; shift < 35; shift += 7) {
        if (!p || at == left) return false;
        length |= (uint64_t)(p[at] & 127) << shift;
        if (!(p[at++] & 128)) break;
    }
    if (length != g->room) return false;

    size_t made = 0;
    while (made < g->room) {
        snappy_tag t;
        const size_t in_piece = made % PIECE;
        if (in_piece == 0) g->starts[made / PIECE] = at;
        if (at >= w->len) return false;
        p = walk_to(w, at, &left);
        if (!p || !read_tag(p, left, &t)) return false;
        if (t.takes > w->len - at || t.makes > PIECE - in_piece || t.makes > g->room - made)
            return false;
        made += t.makes;
        at += t.takes;
    }
    return at == g->len;
}

/* A walk over a page's packed bytes; its fd is -1 if the file is not what was mapped. */
static walk walk_open(const packed_page *g, const parquet_file *file)
{
    walk w = { .fd = open(file->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK),
               .base = g->from - file->base,
               .len = g->len };
    struct stat st;
    if (w.fd < 0 || (fstat(w.fd, &st) == 0 && st.st_size == file->bytes)) return w;
    close(w.fd);
    w.fd = -1;
    return w;
}

static bool index_pieces(packed_page *g, const parquet_file *file)
{
    if (g->len == 0) return false;
    walk w = walk_open(g, file);
    if (w.fd < 0) return false;
    g->starts = malloc((g->room / PIECE + 1) * sizeof *g->starts);
    const bool good = g->starts && walk_pieces(g, &w);
    close(w.fd);
    return good;
}

/* Reads the four unpacked bytes at `at` if one literal has them all. */
static bool walk_length(packed_page *g, walk *w, size_t at, uint32_t *length)
{
    if (at > g->room || g->room - at < 4) return false;
    size_t place = g->starts[at / PIECE];
    size_t made = at - at % PIECE;
    for (;;) {
        size_t left;
        snappy_tag t;
        if (place >= w->len) return false;
        const uint8_t *p = walk_to(w, place, &left);
        if (!p || !read_tag(p, left, &t) || t.takes > w->len - place) return false;
        if (at < made + t.makes) {
            if (t.back != 0 || at + 4 > made + t.makes) return false;
            const off_t in_file = (off_t)(w->base + (int64_t)(place + t.head + (at - made)));
            return pread(w->fd, length, 4, in_file) == 4;
        }
        made += t.makes;
        place += t.takes;
    }
}

/* Finds where values begin, as far as literals show it. */
static void walk_values(packed_page *g, const parquet_file *file)
{
    walk w = walk_open(g, file);
    uint32_t n;
    while (w.fd >= 0 && g->known < g->count && walk_length(g, &w, (size_t)g->next, &n)) {
        if (n > g->room - (size_t)g->next - 4) break;
        g->values[g->known++] = g->next;
        g->next += 4 + (int64_t)n;
    }
    if (w.fd >= 0) close(w.fd);
}

/* Unpacks one piece into g->bytes; false if it is damaged. */
static bool unpack_piece(packed_page *g, size_t piece)
{
    if (g->piece == piece) return true;
    g->piece = SIZE_MAX;
    size_t at = g->starts[piece];
    size_t size = g->room - piece * PIECE;
    if (size > PIECE) size = PIECE;
    size_t made = 0;
    while (made < size) {
        snappy_tag t;
        if (!read_tag(g->from + at, g->len - at, &t)) return false;
        if (t.takes > g->len - at || t.makes > size - made || t.back > made) return false;
        uint8_t *to = g->bytes + made;
        if (t.back == 0) memcpy(to, g->from + at + t.head, t.makes);
        else
            for (size_t i = 0; i < t.makes; i++) to[i] = to[(ptrdiff_t)i - (ptrdiff_t)t.back];
        made += t.makes;
        at += t.takes;
    }
    g->piece = piece;
    return true;
}

/* Copies n unpacked bytes from `at` on; false if there are fewer. */
static bool read_bytes(packed_page *g, int64_t at, size_t n, uint8_t *to)
{
    if (at < 0 || (size_t)at > g->room || n > g->room - (size_t)at) return false;
    if (!g->packed) {
        memcpy(to, g->from + at, n);
        return true;
    }
    size_t from = (size_t)at;
    while (n > 0) {
        const size_t in_piece = from % PIECE;
        size_t part = PIECE - in_piece;
        if (part > n) part = n;
        if (!unpack_piece(g, from / PIECE)) return false;
        memcpy(to, g->bytes + in_piece, part);
        to += part;
        from += part;
        n -= part;
    }
    return true;
}

/* ---- pages ---- */

static bool open_page(packed_page *g, const parquet_file *file, int64_t at, int64_t len_,
                      int64_t room_, int codec)
{
    const uint8_t *from = file->base + at;
    const size_t len = (size_t)len_;
    const size_t room = (size_t)room_;
    *g = (packed_page){
        .from = from, .len = len, .room = room, .packed = codec != CODEC_NONE, .piece = SIZE_MAX
    };
    if (codec == CODEC_NONE) return len == room;
    if (codec != CODEC_SNAPPY) return false;
    g->bytes = malloc(PIECE);
    return g->bytes && index_pieces(g, file);
}

/* The page's values begin at `at` of its unpacked bytes. */
static bool start_values(packed_page *g, const parquet_file *file, int64_t at, int64_t count)
{
    /* A value has a length of four bytes. */
    if (at < 0 || (size_t)at > g->room || count < 0) return false;
    if ((size_t)count > (g->room - (size_t)at) / 4) return false;
    g->next = at;
    g->count = count;
    g->values = malloc((size_t)(count + 1) * sizeof *g->values);
    if (g->values && g->packed) walk_values(g, file);
    return g->values != NULL;
}

/* Where value k begins, after its length, and how long it is. */
static bool find_value(packed_page *g, int64_t k, int64_t *at, uint32_t *length)
{
    if (k < 0 || k >= g->count) return false;
    while (g->known <= k) {
        uint32_t n;
        if (!read_bytes(g, g->next, 4, (uint8_t *)&n)) return false;
        if (n > g->room - (size_t)g->next - 4) return false;
        g->values[g->known++] = g->next;
        g->next += 4 + (int64_t)n;
    }
    *at = g->values[k] + 4;
    return read_bytes(g, g->values[k], 4, (uint8_t *)length);
}

static void close_page(packed_page *g)
{
    free(g->starts);
    free(g->values);
    free(g->bytes);
}

static int bits_of(int most)
{
    int bits = 0;
    while (most >> bits) bits++;
    return bits;
}

/* The numbers of a page's values, row by row, from `bytes` of definition levels (NULL: none are
 * null). Returns how many values there are, or -1. */
static int64_t number_rows(peek_page *k, const uint8_t *bytes, size_t len, int most)
{
    uint8_t *levels = bytes ? malloc((size_t)k->rows + 64) : NULL;
    if (bytes &&
        (!levels || parquet_hybrid(bytes, len, bits_of(most), k->rows, levels, false) < 0)) {
        free(levels);
        return -1;
    }
    int32_t n = 0;
    for (int64_t i = 0; i < k->rows; i++) {
        const bool valid = !levels || levels[i] == most;
        k->numbers[i] = valid ? n++ : -1;
    }
    free(levels);
    return n;
}

/* Turns numbers of values into numbers of the dictionary, with the indexes at `at`. */
static bool look_up(peek_page *k, int64_t at, int64_t count)
{
    packed_page *g = &k->page;
    if ((size_t)at >= g->room || g->room - (size_t)at > MOST_SMALL) return false;
    const size_t len = g->room - (size_t)at;
    uint8_t *bytes = malloc(len);
    uint32_t *indexes = malloc(((size_t)count + 64) * sizeof *indexes);
    bool good = bytes && indexes && read_bytes(g, at, len, bytes) && bytes[0] <= 31;
    good = good && parquet_hybrid(bytes + 1, len - 1, bytes[0], count, indexes, true) >= 0;
    for (int64_t i = 0; good && i < k->rows; i++) {
        if (k->numbers[i] < 0) continue;
        const uint32_t index = indexes[k->numbers[i]];
        if (index > INT32_MAX) good = false;
        else k->numbers[i] = (int32_t)index;
    }
    free(bytes);
    free(indexes);
    return good;
}

/* Where the levels of a page of version 1 are: after their length. */
static uint8_t *levels_of_1(packed_page *g, uint32_t *len)
{
    if (!read_bytes(g, 0, 4, (uint8_t *)len) || *len > MOST_SMALL) return NULL;
    uint8_t *bytes = malloc((size_t)*len + 1);
    if (bytes && read_bytes(g, 4, *len, bytes)) return bytes;
    free(bytes);
    return NULL;
}

/* Opens a page: the number of each row's value. */
static bool read_page(const parquet_peek *p, peek_page *k)
{
    const parquet_page *page = &k->header;
    const bool is_2 = page->type == 3;
    const bool plain = page->encoding == ENCODING_PLAIN;
    k->in_dictionary = page->encoding == ENCODING_PLAIN_DICTIONARY ||
                       page->encoding == ENCODING_RLE_DICTIONARY;
    if (page->has_sum || page->values > INT32_MAX || (!plain && !k->in_dictionary)) return false;
    k->numbers = malloc((size_t)(k->rows + 1) * sizeof *k->numbers);
    if (!k->numbers) return false;

    /* The levels: before the packed part in version 2, in it in version 1. */
    const int64_t before = is_2 ? page->def_bytes + page->rep_bytes : 0;
    int codec = p->codec;
    if (is_2 && !page->packed) codec = CODEC_NONE;
    if (!open_page(&k->page, p->file, page->body + before, page->bytes - before,
                   page->unpacked - before, codec))
        return false;
    const int most = p->node->max_def;
    int64_t at = 0;
    int64_t count;
    if (most == 0) {
        count = number_rows(k, NULL, 0, 0);
    } else if (is_2) {
        const uint8_t *levels = p->file->base + page->body + page->rep_bytes;
        count = number_rows(k, levels, (size_t)page->def_bytes, most);
    } else {
        if (page->def_encoding != ENCODING_RLE) return false;
        uint32_t len;
        uint8_t *levels = levels_of_1(&k->page, &len);
        if (!levels) return false;
        count = number_rows(k, levels, len, most);
        free(levels);
        at = 4 + (int64_t)len;
    }
    if (count < 0) return false;
    if (!k->in_dictionary) return start_values(&k->page, p->file, at, count);
    const bool good = count == 0 || look_up(k, at, count);
    close_page(&k->page);
    k->page = (packed_page){ .piece = SIZE_MAX };
    return good;
}

static bool open_dictionary(parquet_peek *p)
{
    const parquet_page *page = &p->dictionary_header;
    packed_page *g = &p->dictionary;
    if (g->from) return g->values != NULL;
    if (!p->has_dictionary) return false;
    return open_page(g, p->file, page->body, page->bytes, page->unpacked, p->codec) &&
           start_values(g, p->file, 0, page->values);
}

static bool add_page(parquet_peek *p, const parquet_page *page)
{
    peek_page *pages = realloc(p->pages, (size_t)(p->count + 1) * sizeof *pages);
    if (!pages) return false;
    p->pages = pages;
    peek_page *k = &pages[p->count++];
    *k = (peek_page){ .header = *page, .rows = page->values, .page = { .piece = SIZE_MAX } };
    if (p->count > 1) k->first = pages[p->count - 2].first + pages[p->count - 2].rows;
    return true;
}

/* ---- a chunk ---- */

static bool open_chunk(parquet_peek *p, const parquet_chunk *chunk)
{
    const int64_t end = chunk->start + chunk->bytes;
    int64_t next = chunk->start;
    int64_t values = 0;
    while (next < end && values < chunk->values) {
        parquet_page page;
        if (parquet_page_header(&page, p->file->base, next, end) != 0) return false;
        next = page.body + page.bytes;
        if (page.type == 2) {
            const bool plain = page.encoding == ENCODING_PLAIN ||
                               page.encoding == ENCODING_PLAIN_DICTIONARY;
            if (p->has_dictionary || page.has_sum || !plain) return false;
            p->dictionary_header = page;
            p->has_dictionary = true;
        } else if (page.type == 0 || page.type == 3) {
            if (!add_page(p, &page)) return false;
            values += page.values;
        }
    }
    return true;
}

parquet_peek *parquet_peek_open(const parquet_file *file, const parquet_chunk *chunk,
                                const parquet_node *node)
{
    if (node->type != PARQUET_BYTE_ARRAY || node->max_rep > 0) return NULL;
    if (chunk->codec != CODEC_NONE && chunk->codec != CODEC_SNAPPY) return NULL;
    parquet_peek *p = calloc(1, sizeof *p);
    if (!p) return NULL;
    p->file = file;
    p->node = node;
    p->codec = chunk->codec;
    if (open_chunk(p, chunk)) return p;
    parquet_peek_close(p);
    return NULL;
}

void parquet_peek_close(parquet_peek *p)
{
    if (!p) return;
    for (int i = 0; i < p->count; i++) {
        close_page(&p->pages[i].page);
        free(p->pages[i].numbers);
    }
    close_page(&p->dictionary);
    free(p->pages);
    free(p);
}

int parquet_peek_read(parquet_peek *p, int64_t row, parquet_values *v)
{
    /* The page. */
    int low = 0;
    int high = p->count;
    while (low < high) {
        const int middle = (low + high) / 2;
        if (p->pages[middle].first + p->pages[middle].rows <= row) low = middle + 1;
        else high = middle;
    }
    if (low == p->count) return -1;
    peek_page *k = &p->pages[low];
    if (!k->numbers && !read_page(p, k)) return -1;
    if (!k->in_dictionary && !k->page.values) return -1;
    if (k->in_dictionary && !open_dictionary(p)) return -1;
    const int32_t number = k->numbers[row - k->first];
    if (number < 0) return 0;

    /* The value. */
    packed_page *g = k->in_dictionary ? &p->dictionary : &k->page;
    int64_t at;
    uint32_t length;
    if (!find_value(g, number, &at, &length) || length > g->room - (size_t)at) return -1;
    v->data = malloc((size_t)length + 64);
    v->offsets = malloc(2 * sizeof *v->offsets);
    if (!v->data || !v->offsets || !read_bytes(g, at, length, v->data)) return -1;
    v->offsets[0] = 0;
    v->offsets[1] = length;
    v->count = 1;
    v->room = (size_t)length + 64;
    return 1;
}
