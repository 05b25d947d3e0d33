/* optim_offload.c - AdamW of parameters on a device whose moments or masters are in page-locked
 * host memory, and on the device only while they are updated.
 *
 * The state goes through a few slots on the device in pieces of at most PIECE elements. While a
 * piece is updated, the next one is on its way up and the one before on its way down:
 *
 *     lane up      piece 1 | piece 2 | piece 3 | ...
 *     main                 | piece 1 | piece 2 | ...
 *     lane down                      | piece 1 | ...
 *
 * Pieces begin at multiples of SZ_ROUNDING_BLOCK elements, so the numbers are those of an update of
 * whole parameters. State of few elements stays on the device: copying it would take longer than
 * it saves. Scales of 8-bit moments stay, too: they are 1.6 % of the codes.
 * Leaves out: disks; a device without copies of its own.
 */
#include "optim.h"
#include "core/device.h"

enum {
    SLOTS = 3,
    PIECE = 4 << 20, /* elements: 16 MiB of each f32 state */
    FEW = 64 << 10,  /* elements */
};
static const int AWAY[] = { SZ_ADAMW_FIRST, SZ_ADAMW_SECOND, SZ_ADAMW_MASTER };
enum { KINDS = sizeof AWAY / sizeof *AWAY };

/* Marks (core/backend.h): one for each slot, and the beginning. */
enum { UPLOADED = 0, UPDATED = SLOTS, DOWNLOADED = 2 * SLOTS, BEGUN = 3 * SLOTS };

bool sz_adamw_is_away(const sz_adamw *o, int k, const sz_tensor *part)
{
    if (part->device == SZ_CPU || part->numel < FEW) return false;
    if (k == SZ_ADAMW_FIRST || k == SZ_ADAMW_SECOND) return o->offload & SZ_OFFLOAD_MOMENTS;
    return k == SZ_ADAMW_MASTER && (o->offload & SZ_OFFLOAD_MASTERS);
}

/* ---- pieces ---- */
/* `count` elements of parameter i's part, from `from` on. */
typedef struct {
    int i;
    int64_t from, count;
} piece;

static int64_t size_of(const sz_adamw *o, int i)
{
    return o->count ? o->count[i] : o->params[i]->numel;
}

/* Whether some state of parameter i is in host memory. */
static bool has_away(const sz_adamw *o, int i)
{
    const int device = o->params[i]->device;
    for (int k = 0; k < KINDS; k++) {
        const sz_tensor *state = o->state[AWAY[k]][i];
        if (state && state->device != device) return true;
    }
    return false;
}

/* The piece that follows p among those of parameters with state in host memory; false when there
 * is none. A piece of no elements comes before the first of its parameter. */
static bool next_piece(const sz_adamw *o, piece *p)
{
    p->from += p->count;
    while (p->i < o->n && (!has_away(o, p->i) || p->from >= size_of(o, p->i))) {
        p->i++;
        p->from = 0;
    }
    if (p->i >= o->n) return false;
    const int64_t left = size_of(o, p->i) - p->from;
    p->count = left < PIECE ? left : PIECE;
    return true;
}

/* ---- slots ---- */
typedef struct {
    sz_adamw *o;
    sz_tensor *slot[SLOTS][KINDS]; /* [elements of the largest piece], on the device */
} pipeline;

/* In the step arena; all parameters have the same kinds of state, of the same dtypes. */
static int make_slots(pipeline *l)
{
    const sz_adamw *o = l->o;
    int64_t largest = 0;
    int dtype[KINDS] = { 0 };
    bool used[KINDS] = { false };
    for (piece p = { 0 }; next_piece(o, &p);) {
        largest = p.count > largest ? p.count : largest;
        for (int k = 0; k < KINDS; k++) {
            const sz_tensor *state = o->state[AWAY[k]][p.i];
            if (!state || state->device != SZ_CPU) continue;
            used[k] = true;
            dtype[k] = state->dtype;
        }
    }
    for (int s = 0; s < SLOTS; s++) {
        for (int k = 0; k < KINDS; k++) {
            if (!used[k]) continue;
            l->slot[s][k] = sz_tensor_new(dtype[k], 1, &largest, SZ_CUDA);
            if (!l->slot[s][k]) return -1;
        }
    }
    return 0;
}

/* Copies the piece's state that is in host memory to its slot, or back. */
static int copy(const pipeline *l, int lane, const piece *p, int s)
{
    for (int k = 0; k < KINDS; k++) {
        const sz_tensor *state = l->o->state[AWAY[k]][p->i];
        if (!state || state->device != SZ_CPU) continue;
        const size_t width = sz_dtype_size(state->dtype);
        char *host = (char *)state->data + (size_t)p->from * width;
        void *device = l->slot[s][k]->data;
        const size_t bytes = (size_t)p->count * width;
        const int rc = lane == SZ_LANE_UP ? sz_device->copy_async(lane, device, host, bytes)
                                          : sz_device->copy_async(lane, host, device, bytes);
        if (rc != 0) return -1;
    }
    return 0;
}

static int upload(const pipeline *l, const piece *p, int s)
{
    if (sz_device->await(SZ_LANE_UP, DOWNLOADED + s) != 0) return -1;
    if (copy(l, SZ_LANE_UP, p, s) != 0) return -1;
    return sz_device->mark(SZ_LANE_UP, UPLOADED + s);
}

static int download(const pipeline *l, const piece *p, int s)
{
    if (sz_device->mark(SZ_LANE_MAIN, UPDATED + s) != 0) return -1;
    if (sz_device->await(SZ_LANE_DOWN, UPDATED + s) != 0) return -1;
    if (copy(l, SZ_LANE_DOWN, p, s) != 0) return -1;
    return sz_device->mark(SZ_LANE_DOWN, DOWNLOADED + s);
}

/* ---- an update ---- */
/* Views of the piece's elements in `part`, the range of a parameter or a gradient. */
static sz_tensor *piece_of(const sz_adamw *o, const piece *p, sz_tensor *whole)
{
    sz_tensor *part = sz_adamw_part(o, p->i, whole);
    sz_tensor *view = part ? sz_tensor_view(part, 1, &p->count, p->from) : NULL;
    sz_tensor_release(part);
    return view;
}

/* The piece's state on the device: in its slot, or where it always is. NULL in *out if there is
 * none. */
static int find_state(const pipeline *l, const piece *p, int s, int k, sz_tensor **out)
{
    sz_tensor *state = l->o->state[k][p->i];
    *out = NULL;
    if (!state) return 0;
    const bool is_scale = k == SZ_ADAMW_FIRST_SCALE || k == SZ_ADAMW_SECOND_SCALE;
    int64_t from = p->from;
    int64_t count = p->count;
    if (is_scale) {
        from /= SZ_MOMENT_BLOCK;
        count = (count + SZ_MOMENT_BLOCK - 1) / SZ_MOMENT_BLOCK;
    }
    for (int j = 0; j < KINDS && state->device == SZ_CPU; j++) {
        if (AWAY[j] != k) continue;
        state = l->slot[s][j];
        from = 0;
    }
    *out = sz_tensor_view(state, 1, &count, from);
    return *out ? 0 : -1;
}

static int update_piece(const pipeline *l, const piece *p, int s, sz_tensor *whole_grad,
                        const double *numbers)
{
    const sz_adamw *o = l->o;
    sz_tensor *state[SZ_ADAMW_STATES] = { NULL };
    sz_tensor *param = piece_of(o, p, o->params[p->i]);
    sz_tensor *grad = param ? piece_of(o, p, whole_grad) : NULL;
    int rc = grad ? 0 : -1;
    for (int k = 0; rc == 0 && k < SZ_ADAMW_STATES; k++) rc = find_state(l, p, s, k, &state[k]);
    if (rc == 0) rc = sz_device->await(SZ_LANE_MAIN, UPLOADED + s);
    const int64_t first = p->from + (o->first ? o->first[p->i] : 0);
    if (rc == 0) rc = sz_adamw_update_part(param, grad, state, p->i, first, numbers);
    for (int k = 0; k < SZ_ADAMW_STATES; k++) sz_tensor_release(state[k]);
    sz_tensor_release(grad);
    sz_tensor_release(param);
    return rc;
}

/* All parameters in their order; the pieces' state comes one piece ahead. */
static int run(pipeline *l, const double *numbers)
{
    sz_adamw *o = l->o;
    piece ahead = { 0 };
    bool more = next_piece(o, &ahead);
    if (more && upload(l, &ahead, 0) != 0) return -1;
    int s = 0;
    for (int i = 0; i < o->n; i++) {
        if (!has_away(o, i)) {
            if (sz_adamw_update(o, i, numbers) != 0) return -1;
            continue;
        }
        sz_tensor *grad = sz_grad_buffer(o->params[i]);
        if (!grad) return -1;
        while (more && ahead.i == i) {
            const piece now = ahead;
            const int next = (s + 1) % SLOTS;
            more = next_piece(o, &ahead);
            if (more && upload(l, &ahead, next) != 0) return -1;
            if (update_piece(l, &now, s, grad, numbers) != 0) return -1;
            if (download(l, &now, s) != 0) return -1;
            s = next;
        }
        sz_tensor_zero_grad(o->params[i]);
    }
    return 0;
}

int sz_adamw_step_away(sz_adamw *o, const double *numbers)
{
    piece first = { 0 };
    pipeline l = { .o = o };
    if (sz_is_dry_run()) return 0;
    if (!next_piece(o, &first)) {
        for (int i = 0; i < o->n; i++)
            if (sz_adamw_update(o, i, numbers) != 0) return -1;
        return 0;
    }
    sz_scope_push();
    int rc = make_slots(&l);
    /* The slots' memory may be in use by earlier work. */
    if (rc == 0) rc = sz_device->mark(SZ_LANE_MAIN, BEGUN);
    if (rc == 0) rc = sz_device->await(SZ_LANE_UP, BEGUN);
    if (rc == 0) rc = run(&l, numbers);
    /* The next to use the slots' memory, or the state, is not in a lane. */
    if (sz_device->finish(SZ_LANE_UP) != 0 || sz_device->finish(SZ_LANE_DOWN) != 0) rc = -1;
    for (int s = 0; s < SLOTS; s++)
        for (int k = 0; k < KINDS; k++) sz_tensor_release(l.slot[s][k]);
    sz_scope_pop();
    return rc;
}
