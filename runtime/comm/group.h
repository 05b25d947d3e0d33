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
    int *world_rank;      /* [size] */
    sz_message *messages; /* room for one to and one from each rank */
    struct sz_link *link; /* its devices (nccl.c); NULL before they are joined */
    int link_state;
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

const sz_transport *sz_comm_transport(void); /* NULL: one rank */
double sz_comm_timeout(void);
/* Counts the messages as sent. -1 with a message when a test wants this exchange to fail. */
int sz_comm_count_messages(const sz_message *messages, int count, const char *what);

/* ---- nccl.c: collectives of tensors on a device that do not pass through host memory ---- */
/* 1: the devices of c's ranks talk to each other, and the calls below are for t; 0: they do not; -1
 * with a message. Collective: it joins the devices when it is first called for one of them. */
int sz_comm_is_direct(sz_comm *c, const sz_tensor *t);
void sz_comm_unlink(sz_comm *c);
/* As sz_comm_exchange and sz_comm_sum_elements, in device memory; they return before the work is
 * done. At most SZ_LINK_MESSAGES messages. */
int sz_comm_exchange_direct(sz_comm *c, const sz_message *messages, int count, const char *what);
int sz_comm_sum_direct(int dtype, void *out, const void *const *parts, int count, int64_t n);
/* The collectives themselves, of tensors that were checked. */
int sz_comm_reduce_direct(sz_comm *c, sz_tensor *t, const char *what);
int sz_comm_scatter_direct(sz_comm *c, sz_tensor *whole, sz_tensor *part);
int sz_comm_broadcast_direct(sz_comm *c, sz_tensor *t, int root);
int sz_comm_gather_direct(sz_comm *c, const sz_tensor *part, sz_tensor *whole);
/* y = the x of all ranks, sizes[r] bytes of rank r; each x is `outer` runs of bytes, and
 * the ranks' runs with one number are next to each other in y. */
int sz_comm_join_direct(sz_comm *c, const sz_tensor *x, const int64_t *sizes, int64_t outer,
                        sz_tensor *y);
/* Whether Ctrl-C was pressed; looks after the devices' work, too. */
int sz_comm_interrupted(void);

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
