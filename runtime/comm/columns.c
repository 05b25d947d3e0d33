/* columns.c - columns to rows: each rank of a group has a range of columns of a matrix, and gets
 * all columns of a range of rows. A file stores rows together, so a rank then writes one range of
 * bytes in place of one for each row.
 *
 * A part is elements skip .. skip + n of a rank's columns [rows, run]. Its whole rows are
 * exchanged; what the part has of a row before and after them stays where it is. All ranks have
 * parts of the same run, skip and n, and rank r's columns are the r-th of the whole.
 * Workspace: SZ_COMM_PIECE bytes, or a row for each rank if that is more.
 * Leaves out: devices that talk to each other (parts pass through host memory); files
 * (lua/segzero/formats/safetensors_write.lua).
 */
#include "comm/group.h"
#include "core/core.h"
#include <stdlib.h>

typedef struct {
    sz_comm *comm;
    const char *whole_rows; /* this rank's columns of all of them */
    size_t run;             /* bytes of a row of one rank */
    int64_t count;          /* whole rows of the part */
    char *space;
    sz_message *messages;
} swap;

/* Rows begin_of(s, r) up to begin_of(s, r + 1) go to rank r. */
static int64_t begin_of(const swap *s, int r) { return s->count * r / s->comm->size; }

static int64_t rows_of(const swap *s, int r) { return begin_of(s, r + 1) - begin_of(s, r); }

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* Of the rows from `from` on of every rank's share, up to `most`: rank r's number of them. */
static int64_t piece_of(const swap *s, int r, int64_t from, int64_t most)
{
    const int64_t left = rows_of(s, r) - from;
    return left < 0 ? 0 : least(left, most);
}

/* Exchanges a piece of every share; out: this rank's rows, whole. */
static int swap_piece(swap *s, int64_t from, int64_t most, char *out)
{
    const sz_comm *c = s->comm;
    const int64_t own = piece_of(s, c->rank, from, most);
    const size_t own_bytes = (size_t)own * s->run;
    int count = 0;
    for (int r = 0; r < c->size; r++) {
        const size_t bytes = (size_t)piece_of(s, r, from, most) * s->run;
        const char *rows = s->whole_rows + (size_t)(begin_of(s, r) + from) * s->run;
        if (r == c->rank) continue;
        if (bytes)
            s->messages[count++] = (sz_message){ (char *)rows, bytes, c->world_rank[r], true };
        if (own_bytes)
            s->messages[count++] = (sz_message){ s->space + (size_t)r * own_bytes, own_bytes,
                                                 c->world_rank[r], false };
    }
    if (sz_comm_exchange(s->messages, count, "columns to rows") != 0) return -1;

    /* Every rank's columns to their places. */
    const char *mine = s->whole_rows + (size_t)(begin_of(s, c->rank) + from) * s->run;
    for (int r = 0; r < c->size; r++) {
        const char *columns = r == c->rank ? mine : s->space + (size_t)r * own_bytes;
        for (int64_t i = 0; i < own; i++)
            memcpy(out + ((size_t)(from + i) * (size_t)c->size + (size_t)r) * s->run,
                   columns + (size_t)i * s->run, s->run);
    }
    return 0;
}

static int swap_all(swap *s, char *out)
{
    const size_t row = s->run * (size_t)s->comm->size;
    const int64_t most = row < SZ_COMM_PIECE ? (int64_t)(SZ_COMM_PIECE / row) : 1;
    const int64_t longest = (s->count + s->comm->size - 1) / s->comm->size;
    s->space = malloc((size_t)least(most, longest) * row + 1);
    s->messages = calloc(2 * (size_t)s->comm->size, sizeof *s->messages);
    int rc = s->space && s->messages ? 0 : sz_fail("no memory to exchange columns");
    for (int64_t from = 0; rc == 0 && from < longest; from += most)
        rc = swap_piece(s, from, most, out);
    free(s->space);
    free(s->messages);
    return rc;
}

int sz_comm_columns_to_rows(sz_comm *c, sz_tensor *part, int64_t run, int64_t skip,
                            sz_tensor **rows, int64_t *first)
{
    *rows = NULL;
    *first = 0;
    if (sz_tensor_alive(part) != 0) return -1;
    if (run < 1 || skip < 0) return sz_fail("columns to rows: rows of %lld", (long long)run);
    const int64_t head = (run - skip % run) % run;
    if (part->numel < head + run) return 0;

    const size_t size = sz_dtype_size(part->dtype);
    swap s = { .comm = c, .run = (size_t)run * size, .count = (part->numel - head) / run };
    const int64_t shape[] = { rows_of(&s, c->rank), run * c->size };
    *first = (skip + head) / run + begin_of(&s, c->rank);
    sz_tensor *out = sz_tensor_new_heap(part->dtype, 2, shape, SZ_CPU);
    char *host = out ? sz_comm_to_host(part) : NULL;
    int rc = -1;
    if (host) {
        s.whole_rows = host + (size_t)head * size;
        rc = swap_all(&s, out->data);
    }
    if (host && part->device != SZ_CPU) free(host);
    if (rc == 0 && shape[0] > 0) *rows = out;
    else sz_tensor_release(out);
    return rc;
}
