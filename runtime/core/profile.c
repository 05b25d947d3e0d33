/* profile.c - SEGZERO_PROFILE=1: where the time of a run's ops went, printed at its end (stderr): seconds, calls, and for products and attention
 * 10^9 operations a second. Of kernels alone, on the CPU processor time of all threads, so that other programs do not count; on a device the wall's,
 * each kernel waited for. What is computed again in backward counts as it is done. Leaves out: work between ops, operations of convolutions. */
#include "core.h"
#include "device.h"
#include "tape.h"
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static struct { int64_t calls; double seconds, flops; } spent[SZ_OP_COUNT];

static double now(int device)
{
    struct timespec t;
    clock_gettime(device == SZ_CPU ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Query and key pairs of a segment table. */
static double pairs(const sz_tensor *segments, bool causal)
{
    double sum = 0;
    for (int64_t i = 0; i < segments->shape[0]; i++) {
        const int32_t *s = sz_i32(segments) + 6 * i;
        double q = s[1], k = s[3];
        sum += q * s[5] + (causal ? q * (k - q) + q * (q + 1) / 2 : q * k);
    }
    return sum;
}

static double flops(int op, const sz_call *c)
{
    sz_tensor *const *in = c->in, *y = c->out[0];
    switch (op) {
    case SZ_OP_matmul: return 2 * (double)y->numel * (double)in[0]->shape[in[0]->ndim - (c->args[0] != 0 ? 2 : 1)];
    case SZ_OP_linear: case SZ_OP_linear_cat: case SZ_OP_linear_f32_out: case SZ_OP_linear_gelu: case SZ_OP_linear_int8: case SZ_OP_linear_dx:
        return 2 * (double)in[0]->numel * (double)sz_cols(y);
    case SZ_OP_linear_add_: return 2 * (double)in[1]->numel * (double)in[2]->shape[0];
    case SZ_OP_linear_dw_: return 2 * (double)y->numel * (double)sz_rows(in[1]);
    case SZ_OP_logprob: return 2 * (double)in[0]->numel * (double)in[1]->shape[0];
    case SZ_OP_logprob_backward: return (in[7] ? 6 : 4) * (double)in[0]->numel * (double)in[1]->shape[0];      /* the logits again, dx, dw */
    case SZ_OP_attention: return 4 * c->args[0] * c->args[2] * pairs(in[1], c->args[3] != 0);
    case SZ_OP_attention_backward: return 10 * c->args[0] * c->args[2] * pairs(in[1], c->args[3] != 0);
    case SZ_OP_attention_cached: return 4 * c->args[0] * c->args[2] * pairs(in[3], c->args[3] != 0);
    default: return 0;
    }
}

static int by_time(const void *a, const void *b)
{
    double x = spent[*(const int *)a].seconds, y = spent[*(const int *)b].seconds;
    return (x < y) - (x > y);
}

static void report(void)
{
    int order[SZ_OP_COUNT];
    double total = 0;
    for (int i = 0; i < SZ_OP_COUNT; i++) {
        order[i] = i;
        total += spent[i].seconds;
    }
    qsort(order, SZ_OP_COUNT, sizeof *order, by_time);
    fprintf(stderr, "%-26s %9s %6s %9s %8s\n", "op", "seconds", "%", "calls", "GFLOP/s");
    for (int i = 0; i < SZ_OP_COUNT && spent[order[i]].calls; i++) {
        int op = order[i];
        fprintf(stderr, "%-26s %9.3f %6.1f %9lld", sz_op_names[op], spent[op].seconds, 100 * spent[op].seconds / total, (long long)spent[op].calls);
        fprintf(stderr, spent[op].flops > 0 ? " %8.1f\n" : "\n", spent[op].flops / spent[op].seconds / 1e9);
    }
    fprintf(stderr, "%-26s %9.3f\n", "all ops", total);
}

bool sz_profiling(void)
{
    static int on = -1;
    if (on < 0) {
        const char *wanted = getenv("SEGZERO_PROFILE");
        on = wanted && strcmp(wanted, "1") == 0;
        if (on) atexit(report);
    }
    return on;
}

int sz_profile(int op, sz_kernel kernel, const sz_call *c, int device)
{
    double start = now(device);
    int rc = kernel(c);
    if (device != SZ_CPU && rc == 0) rc = sz_device_synchronise();
    spent[op].seconds += now(device) - start;
    spent[op].flops += flops(op, c);
    spent[op].calls++;
    return rc;
}
