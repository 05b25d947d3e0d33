/* dispatch.c - the front door of every op. sz_apply checks a call and makes its outputs
 * (sz_shape_<name>), runs the kernel of the device on which the inputs are, and records the call
 * on the tape. The table of ops is made from ops.def here.
 * Leaves out: the checks, gradients and wrappers of each op (ops/<family>.c), the kernels (cpu/,
 * cuda/).
 */
#include "core.h"
#include "device.h"
#include "memory.h"
#include "processor.h"
#include "tape.h"

/* ---- the functions that the rows name ---- */
#define SZ_OP(name, inputs, outputs, numbers, gradient, workspace, flops) \
    int sz_ref_##name(const sz_call *c); \
    int sz_shape_##name(int op, sz_call *c);
#include "ops/ops.def"
#undef SZ_OP

/* A row without a function of one kind declares one that nothing defines and nothing uses. */
#define NONE sz_no_gradient
#define SZ_OP(name, inputs, outputs, numbers, gradient, workspace, flops) int gradient(sz_node *n);
#include "ops/ops.def"
#undef SZ_OP
#undef NONE

#define NONE sz_no_workspace
#define SZ_OP(name, inputs, outputs, numbers, gradient, workspace, flops) \
    int64_t workspace(const sz_call *c);
#include "ops/ops.def"
#undef SZ_OP
#undef NONE

#define NONE sz_no_flops
#define SZ_OP(name, inputs, outputs, numbers, gradient, workspace, flops) \
    double flops(const sz_call *c);
#include "ops/ops.def"
#undef SZ_OP
#undef NONE

/* ---- the table ---- */
#define SZ_OP(name, inputs, outputs, numbers, gradient, workspace, flops) \
    _Static_assert((inputs) <= SZ_MAX_IN && (outputs) <= SZ_MAX_OUT, #name " has too many tensors");
#include "ops/ops.def"
#undef SZ_OP

#define NONE NULL
const sz_op_row sz_ops[SZ_OP_COUNT] = {
#define SZ_OP(name, inputs, outputs, numbers, gradient, workspace, flops) \
    { #name, numbers, inputs, outputs, sz_shape_##name, sz_ref_##name, gradient, workspace, flops },
#include "ops/ops.def"
#undef SZ_OP
};
#undef NONE

/* ---- facts about an op ---- */
static int use_reference;
void sz_use_reference(int on) { use_reference = on; }

static bool is_op(int op) { return op >= 0 && op < SZ_OP_COUNT; }

int sz_op_count(void) { return SZ_OP_COUNT; }
const char *sz_op_name(int op)
{
    return is_op(op) ? sz_ops[op].name : sz_null("there is no op %d", op);
}
int sz_op_inputs(int op)
{
    return is_op(op) ? sz_ops[op].inputs : sz_fail("there is no op %d", op);
}
int sz_op_outputs(int op)
{
    return is_op(op) ? sz_ops[op].outputs : sz_fail("there is no op %d", op);
}
int sz_op_has_grad(int op) { return is_op(op) && sz_ops[op].gradient != NULL; }

const char *sz_op_number_names(int op)
{
    return is_op(op) ? sz_ops[op].numbers : sz_null("there is no op %d", op);
}

static int count_words(const char *text)
{
    int words = 0;
    for (const char *p = text; *p; p++)
        if (*p != ' ' && (p == text || p[-1] == ' ')) words++;
    return words;
}

int sz_op_args(int op)
{
    static int8_t known[SZ_OP_COUNT]; /* the count plus one; 0 where it was never asked for */
    if (!is_op(op)) return sz_fail("there is no op %d", op);
    if (!known[op]) {
        int count = count_words(sz_ops[op].numbers);
        SZ_ASSERT(count <= SZ_MAX_ARGS, "an op has too many numbers");
        known[op] = (int8_t)(count + 1);
    }
    return known[op] - 1;
}

/* ---- a call ---- */
/* The device of a call: the one on which its inputs are. Index tensors stay in host memory, where
 * they are checked; a cast and the views take anything. -1 with a message when the inputs do not
 * agree. */
static int device_of(int op, const sz_call *c)
{
    const bool any_dtype = op == SZ_OP_cast || op == SZ_OP_reshape || op == SZ_OP_narrow;
    const char *name = sz_ops[op].name;
    int device = -1;
    int first = 0;
    for (int i = 0; i < sz_ops[op].inputs; i++) {
        const sz_tensor *t = c->in[i];
        if (!t) continue;
        if (t->dtype == SZ_I32 && !any_dtype) {
            if (t->device != SZ_CPU)
                return sz_fail("%s: input %d, i32, must be on the cpu, not on %s", name, i + 1,
                               sz_device_name(t->device));
        } else if (device < 0) {
            device = t->device;
            first = i;
        } else if (t->device != device) {
            return sz_fail("%s: input %d is on %s, input %d on %s", name, first + 1,
                           sz_device_name(device), i + 1, sz_device_name(t->device));
        }
    }
    return device < 0 ? SZ_CPU : device;
}

/* Whether the call must be recorded: 1 or 0; -1 with a message when it cannot be made. */
static int check_inputs(int op, const sz_call *c)
{
    bool wants_grad = false;
    for (int i = 0; i < sz_ops[op].inputs; i++) {
        if (!c->in[i]) continue;
        if (!c->in[i]->data)
            return sz_fail("%s: input %d belonged to a step that has ended", sz_ops[op].name,
                           i + 1);
        wants_grad |= sz_needs_grad(c->in[i]);
    }
    if (!wants_grad || !sz_grad_enabled()) return 0;
    if (!sz_ops[op].gradient)
        return sz_fail("%s has no gradient, and an input requires one (detach it, or use no_grad)",
                       sz_ops[op].name);
    return 1;
}

static sz_kernel kernel_of(int op, int device)
{
    if (device != SZ_CPU) return sz_device->kernels[op];
    return use_reference ? sz_ops[op].reference : sz_processor()->ops[op];
}

/* Runs the kernel, or in a dry run only takes the workspace that it would take. */
static int run_kernel(int op, const sz_call *c, int device)
{
    if (!sz_is_dry_run()) {
        sz_kernel kernel = kernel_of(op, device);
        return sz_profiling() ? sz_profile(op, kernel, c, device) : kernel(c);
    }
    size_t bytes = 0;
    if (sz_ops[op].workspace) bytes = (size_t)sz_ops[op].workspace(c);
    return sz_scratch(bytes) ? 0 : -1;
}

int sz_apply_again(int op, const sz_call *c)
{
    const int device = device_of(op, c);
    if (device < 0) return -1;
    sz_scratch_begin();
    const int rc = run_kernel(op, c, device);
    sz_scratch_end();
    return rc;
}

int sz_apply(int op, sz_call *c)
{
    if (sz_interrupt_pending()) return sz_fail("interrupted");
    const int recorded = check_inputs(op, c);
    if (recorded < 0) return -1;
    memset(c->out, 0, sizeof c->out);
    const int device = device_of(op, c);
    if (device < 0) return -1;

    int rc = sz_ops[op].shape(op, c);
    if (rc == 0) {
        sz_scratch_begin();
        rc = run_kernel(op, c, device);
        sz_scratch_end();
    }
    if (rc == 0 && recorded) rc = sz_tape_record(op, c);
    if (rc == 0) return 0;

    for (int i = 0; i < SZ_MAX_OUT; i++) {
        sz_tensor_release(c->out[i]);
        c->out[i] = NULL;
    }
    return rc;
}

int sz_op_apply(int op, sz_tensor **in, const double *args, sz_tensor **out)
{
    if (!is_op(op)) return sz_fail("there is no op %d", op);
    const int numbers = sz_op_args(op);
    sz_call c = { 0 };
    for (int i = 0; i < sz_ops[op].inputs; i++) c.in[i] = in[i];
    for (int i = 0; i < numbers; i++) c.args[i] = args[i];
    if (sz_apply(op, &c) != 0) return -1;
    for (int i = 0; i < sz_ops[op].outputs; i++) out[i] = c.out[i];
    return 0;
}
