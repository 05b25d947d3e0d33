/* reads.c - what gradient rules read: of which inputs and outputs of its call an op's rule uses the
 * bytes, and which results are computed again rather than kept.
 *
 * An op without a line here is taken to read everything. A line may say too much, but never too
 * little: a tensor that a rule reads and that is not named here may have no bytes left. The shape
 * and dtype of a tensor are always there.
 * Leaves out: ops without a gradient.
 */
#include "op.h"

/* ---- bits ---- */
enum { NOTHING = 0, FIRST = 1, SECOND = 2, THIRD = 4, ALL = 0xff };

/* ---- the table ---- */
/* Set in each line, so that an op without a line is told from one that reads nothing. */
enum { LISTED = 1 };

static const struct {
    uint8_t listed, in, out;
    bool again;
} table[SZ_OP_COUNT] = {
    /* Rules that only pass dy on, scaled, moved or cut. */
    [SZ_OP_add] = { LISTED, NOTHING, NOTHING },
    [SZ_OP_sub] = { LISTED, NOTHING, NOTHING },
    [SZ_OP_affine] = { LISTED, NOTHING, NOTHING },
    [SZ_OP_cast] = { LISTED, NOTHING, NOTHING },
    [SZ_OP_reshape] = { LISTED, NOTHING, NOTHING },
    [SZ_OP_narrow] = { LISTED, NOTHING, NOTHING },
    [SZ_OP_pad_rows] = { LISTED, NOTHING, NOTHING },
    [SZ_OP_tp_copy] = { LISTED, NOTHING, NOTHING },
    [SZ_OP_tp_sum] = { LISTED, NOTHING, NOTHING },
    [SZ_OP_tp_sum_] = { LISTED, NOTHING, NOTHING },
    [SZ_OP_tp_gather] = { LISTED, SECOND, NOTHING },
    [SZ_OP_embedding] = { LISTED, SECOND, NOTHING },
    [SZ_OP_gather_rows] = { LISTED, SECOND, NOTHING },
    [SZ_OP_index_copy] = { LISTED, SECOND, NOTHING },
    [SZ_OP_rope] = { LISTED, SECOND | THIRD, NOTHING },

    /* Rules that read the inputs, or the result. */
    [SZ_OP_mul] = { LISTED, FIRST | SECOND, NOTHING },
    [SZ_OP_linear] = { LISTED, ALL, NOTHING },
    [SZ_OP_linear_cat] = { LISTED, ALL, NOTHING },
    [SZ_OP_linear_int8] = { LISTED, SECOND | THIRD, NOTHING },
    [SZ_OP_linear_int4] = { LISTED, SECOND | THIRD, NOTHING },
    [SZ_OP_linear_add_] = { LISTED, SECOND | THIRD, NOTHING },
    [SZ_OP_conv2d] = { LISTED, ALL, NOTHING },
    [SZ_OP_relu] = { LISTED, NOTHING, FIRST },
    [SZ_OP_exp] = { LISTED, NOTHING, FIRST },
    [SZ_OP_sigmoid] = { LISTED, NOTHING, FIRST },
    [SZ_OP_softmax] = { LISTED, NOTHING, FIRST },

    /* The same, and the result is computed again: a pass over the inputs costs little next to the
     * product that reads the result. */
    [SZ_OP_rmsnorm] = { LISTED, ALL, NOTHING, true },
    [SZ_OP_layernorm] = { LISTED, ALL, NOTHING, true },
    [SZ_OP_swiglu] = { LISTED, ALL, NOTHING, true },
    [SZ_OP_quick_gelu] = { LISTED, ALL, NOTHING, true },
};

sz_gradient_reads sz_reads_of(int op)
{
    /* A checkpointed part reads its input. */
    if (op < 0) return (sz_gradient_reads){ .in = ALL, .out = NOTHING };
    if (!table[op].listed) return (sz_gradient_reads){ .in = ALL, .out = ALL };
    return (sz_gradient_reads){ table[op].in, table[op].out, table[op].again };
}
