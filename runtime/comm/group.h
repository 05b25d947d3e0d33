/* group.h - what the files of runtime/comm share: the group itself, exchanging messages, and sums.
 * Leaves out: what others may call, which is comm.h.
 */
#ifndef SZ_COMM_GROUP_H
#define SZ_COMM_GROUP_H

#include "comm/comm.h"
#include "comm/transport.h"

enum { SZ_COMM_PIECE = 16 << 20 }; /* bytes of workspace that a sum takes */

struct sz_comm {
    int rank, size;
    int *world_rank; /* [size] */
    sz_message *messages;
};

/* The group of a handle; NULL with a message when there is none. */
sz_comm *sz_comm_of_handle(int handle);

/* Sends and receives the messages, whose peers are ranks of the world. `what` names the collective
 * in a message. 0, or -1 with a message. */
int sz_comm_exchange(const sz_message *messages, int count, const char *what);

/* Whether tensors of this dtype have a sum: f32, bf16, i32. */
bool sz_comm_can_sum(int dtype);
/* out [n] = parts[0] + parts[1] + ..., `count` of them, in this order; f32 and bf16 are added in
 * f32. out may be one of the parts. */
void sz_comm_sum_elements(int dtype, void *out, const void *const *parts, int count, int64_t n);

/* Host bytes of a tensor: its own on the CPU, or a copy; NULL with a message. The second one gives
 * them back: it copies them to t first if `status` is 0, and returns the status. */
void *sz_comm_to_host(const sz_tensor *t);
int sz_comm_to_tensor(sz_tensor *t, void *host, int status);

/* ---- shards.c: what the ops tp_sum and tp_gather do; tensors on any device ---- */
/* y = the sum of the ranks' x, which has y's shape; a handle of 0 is a group of one. */
int sz_comm_sum_into(int handle, const sz_tensor *x, sz_tensor *y);
/* y = the x of all ranks, joined along dim. sizes [ranks]: theirs in that dimension; NULL: all
 * equal. */
int sz_comm_join(int handle, const sz_tensor *x, int dim, const int32_t *sizes, sz_tensor *y);

#endif
