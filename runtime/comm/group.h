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

#endif
