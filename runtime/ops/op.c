/* op.c - the checks, outputs and gradient steps that the families share; op.h describes them. */
#include "op.h"
#include <math.h>
#include <stdarg.h>
#include <stdio.h>

/* ---- messages ---- */
/* A piece of a message that is being put together. */
typedef struct {
    char text[600];
    size_t length;
} message;

static void append(message *m, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void append(message *m, const char *format, ...)
{
    va_list values;
    va_start(values, format);
    int n = vsnprintf(m->text + m->length, sizeof m->text - m->length, format, values);
    va_end(values);
    if (n > 0) m->length += (size_t)n;
    if (m->length >= sizeof m->text) m->length = sizeof m->text - 1;
}

static void append_tensor(message *m, const sz_tensor *t)
{
    static const char *const dtypes[] = { "f32", "bf16", "i32", "u8" };
    append(m, "%s%s [", m->length ? ", " : "", dtypes[t->dtype]);
    for (int i = 0; i < t->ndim; i++) append(m, "%s%lld", i ? ", " : "", (long long)t->shape[i]);
    append(m, "]");
}

/* The name of number i, without its default; returns its length. */
static int number_name(int op, int i, const char **name)
{
    const char *p = sz_ops[op].numbers;
    for (; i > 0; i--) p += strcspn(p, " ") + 1;
    *name = p;
    return (int)strcspn(p, " =");
}

static void append_number(message *m, int op, const sz_call *c, int i)
{
    const char *name;
    int length = number_name(op, i, &name);
    append(m, "%s%.*s %g", m->length ? ", " : "", length, name, c->args[i]);
}

int sz_refuse(int op, const sz_call *c, const char *what)
{
    message given = { .length = 0 };
    for (int i = 0; i < SZ_MAX_IN; i++)
        if (c->in[i]) append_tensor(&given, c->in[i]);
    if (!given.length) append(&given, "no tensor");
    for (int i = 0; i < sz_op_args(op); i++) append_number(&given, op, c, i);
    return sz_fail("%s: %s; given %s", sz_ops[op].name, what, given.text);
}

int sz_refuse_number(int op, const sz_call *c, int i, const char *what)
{
    const char *name;
    int length = number_name(op, i, &name);
    return sz_fail("%s: %.*s is %g, it must be %s", sz_ops[op].name, length, name, c->args[i],
                   what);
}

int sz_whole(int op, const sz_call *c, int i, int64_t least, int64_t *value)
{
    const double x = c->args[i];
    if (x >= (double)least && x < 0x1p53 && x == floor(x)) {
        *value = (int64_t)x;
        return 0;
    }
    char what[64];
    snprintf(what, sizeof what, "a whole number of at least %lld", (long long)least);
    return sz_refuse_number(op, c, i, what);
}

/* ---- checks ---- */
bool sz_same_shape(const sz_tensor *a, const sz_tensor *b)
{
    return a->ndim == b->ndim &&
           memcmp(a->shape, b->shape, sizeof a->shape[0] * (size_t)a->ndim) == 0;
}

bool sz_ids_below(const sz_tensor *ids, int64_t limit)
{
    const int32_t *p = sz_i32(ids);
    int32_t least = 0;
    int64_t most = -1;
    for (int64_t i = 0; i < ids->numel; i++) {
        if (p[i] < least) least = p[i];
        if (p[i] > most) most = p[i];
    }
    return least >= 0 && most < limit;
}

/* ---- outputs ---- */
int sz_out(sz_call *c, sz_tensor *t)
{
    c->out[0] = t;
    return t ? 0 : -1;
}

int sz_out_like(sz_call *c, const sz_tensor *t) { return sz_out(c, sz_tensor_like(t)); }
int sz_out_in_place(sz_call *c) { return sz_out(c, sz_tensor_retain(c->in[0])); }

sz_tensor *sz_new_with_cols(const sz_tensor *x, int dtype, int64_t cols)
{
    int64_t shape[SZ_MAX_DIMS];
    memcpy(shape, x->shape, sizeof shape);
    shape[x->ndim - 1] = cols;
    return sz_tensor_new(dtype, x->ndim, shape, x->device);
}

/* ---- calls ---- */
sz_tensor *sz_run(int op, sz_call c) { return sz_apply(op, &c) == 0 ? c.out[0] : NULL; }

sz_tensor *sz_run_wrapped(int op, int required, sz_call c)
{
    for (int i = 0; i < required; i++)
        if (!c.in[i]) return NULL;
    return sz_apply(op, &c) == 0 ? c.out[0] : NULL;
}

sz_tensor *sz_run_consuming(int op, sz_call c)
{
    sz_tensor *y = c.in[0] ? sz_run(op, c) : NULL;
    sz_tensor_release(c.in[0]);
    return y;
}

/* ---- gradients ---- */
int sz_give(sz_node *n, int i, sz_tensor *g)
{
    return g ? sz_accumulate_grad(n->call.in[i], g) : -1;
}

int sz_give_outputs(sz_node *n, int count, sz_tensor **outputs)
{
    int rc = 0;
    for (int i = 0; i < count; i++) {
        if (rc == 0 && sz_wants(n, i)) rc = sz_accumulate_grad(n->call.in[i], outputs[i]);
        else sz_tensor_release(outputs[i]);
    }
    return rc;
}

sz_tensor *sz_shaped_like(sz_tensor *g, const sz_tensor *t)
{
    sz_tensor *view = g ? sz_tensor_view(g, t->ndim, t->shape, 0) : NULL;
    if (view) view->flags |= SZ_GRAD_SHARED;
    return view;
}

bool sz_sums_apart(const sz_tensor *w)
{
    return (w->flags & SZ_PARAMETER) && (w->flags & SZ_GRAD_BF16) && w->ndim > 1;
}

/* A parameter whose f32 buffer takes the sum directly. */
static bool sums_in_place(const sz_tensor *w)
{
    return (w->flags & SZ_PARAMETER) && !sz_sums_apart(w);
}

sz_tensor *sz_accumulator(sz_tensor *w)
{
    if (sums_in_place(w)) return sz_tensor_retain(sz_grad_buffer(w));
    return sz_tensor_zeros(SZ_F32, w->ndim, w->shape, w->device);
}

int sz_accumulated(sz_tensor *w, sz_tensor *acc, int rc)
{
    if (rc != 0 || sums_in_place(w)) {
        sz_tensor_release(acc);
        return rc;
    }
    if (w->dtype != SZ_F32 && !sz_sums_apart(w)) {
        sz_call cast = { .in = { acc }, .args = { w->dtype } };
        acc = sz_run_consuming(SZ_OP_cast, cast);
    }
    return acc ? sz_accumulate_grad(w, acc) : -1;
}

int sz_accumulate_into(sz_tensor *w, int op, sz_call c)
{
    /* A sum made apart is released with its scope: a vocabulary's would be the largest tensor
     * there is. */
    const bool apart = sz_sums_apart(w);
    if (apart) sz_scope_push();
    sz_tensor *acc = sz_accumulator(w);
    c.in[0] = acc;
    sz_tensor *sum = acc ? sz_run(op, c) : NULL;
    int rc = sz_accumulated(w, acc, sum ? 0 : -1);
    sz_tensor_release(sum);
    if (apart) sz_scope_pop();
    return rc;
}
