/* shards.c - the CPU kernels of tp_copy, tp_sum, tp_sum_ and tp_gather. What they do over several
 * ranks is in comm/shards.c, which takes tensors on any device: a device's kernels may call these.
 * Leaves out: embedding_part (rows.c), logprob_part and logprob_join (logprob.c).
 */
#include "comm/group.h"
#include "core/core.h"

/* The result is a view. */
int sz_cpu_tp_copy(const sz_call *c)
{
    (void)c;
    return 0;
}

int sz_cpu_tp_sum(const sz_call *c)
{
    return sz_comm_sum_into((int)c->args[0], c->in[0], c->out[0]);
}

int sz_cpu_tp_sum_(const sz_call *c) { return sz_cpu_tp_sum(c); }

int sz_cpu_tp_gather(const sz_call *c)
{
    const int32_t *sizes = c->in[1] ? sz_i32(c->in[1]) : NULL;
    return sz_comm_join((int)c->args[0], c->in[0], (int)c->args[2], sizes, c->out[0]);
}
