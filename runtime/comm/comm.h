/* comm.h - ranks: processes that work on one job, and the collectives between them.
 *
 *     sz_comm *world = sz_comm_world();                one rank, or those of a launcher
 *     sz_comm_all_reduce(world, gradient);             the sum over all ranks, on all ranks
 *     sz_comm *half = sz_comm_split(world, rank % 2);  the ranks with the same colour
 *
 * Every rank of a group makes the same calls in the same order, with tensors of the same shape and
 * dtype. Sums are computed in f32, in the order of the ranks: the same ranks give the same bits.
 * Tensors may be on a device. There the calls only put the work in line behind other work of the
 * device, by NCCL; where that is missing, tensors pass through host memory.
 * A call fails with a message when a rank does not answer within the time limit. The group cannot
 * be used after that: the caller prints the message and calls sz_comm_abort.
 *
 * Without a launcher there is one rank, and nothing is opened. launch.h says which launchers there
 * are. Under Open MPI's, libsegzero_mpi.so, which is in the folder of the core's library, does the
 * talking (transport.h); under others, TCP does.
 * LuaJIT's ffi.cdef reads the part between the two "ffi" marks (see sz.h).
 * Leaves out: differentiable collectives.
 */
#ifndef SZ_COMM_H
#define SZ_COMM_H

#include "sz.h"

#pragma GCC visibility push(default)
/* ffi begin */
typedef struct sz_comm sz_comm;

/* Whether a launcher started this process as a rank of a job. */
int sz_comm_launched(void);
/* Why several processes that a launcher started cannot be joined; NULL: there is nothing wrong. */
const char *sz_comm_stray(void);
/* What carries bytes between the ranks: "MPI" or "TCP"; "" without a launcher. */
const char *sz_comm_transport_name(void);
/* All ranks of the job; borrowed, and the same object each time. NULL with a message. */
sz_comm *sz_comm_world(void);
/* A new group of the ranks of c that give the same colour, in the order of c. Collective. */
sz_comm *sz_comm_split(sz_comm *c, int colour);
void sz_comm_free(sz_comm *c); /* not for the world */
/* A small number from 1 for the group, by which the ops tp_copy, tp_sum and tp_gather are told of
 * it (ops.def); the same one each time, until the group is freed. 0 for NULL. -1 with a message
 * when there are too many groups. */
int sz_comm_handle(sz_comm *c);

int sz_comm_rank(const sz_comm *c);
int sz_comm_size(const sz_comm *c);
/* "3 (host b)", for messages; borrowed until the next call. rank: of c. */
const char *sz_comm_name(const sz_comm *c, int rank);
/* 1: its devices talk to each other; 0: not, or not yet. Collectives on them can be recorded. */
int sz_comm_is_linked(const sz_comm *c);
/* How long a collective waits for the slowest rank; at first 600 seconds. */
void sz_comm_set_timeout(double seconds);
/* Bytes that this rank has sent to others since the program began. */
int64_t sz_comm_bytes_sent(void);
/* Tests: the exchange of this rank after n more fails, without a message to the others; -1 switches
 * this off. */
void sz_comm_fail_after(int64_t n);
/* Exchanges of this rank since the program began. */
int64_t sz_comm_exchanges(void);
/* Ends all ranks with this exit status. Returns only if there is one rank. */
void sz_comm_abort(int status);

/* Each returns 0, or -1 with a message. */
int sz_comm_barrier(sz_comm *c);
/* t of rank `root`, any dtype, becomes t of all. */
int sz_comm_broadcast(sz_comm *c, sz_tensor *t, int root);
/* whole [size * n] = the parts [n] of all ranks, in their order; any dtype. */
int sz_comm_all_gather(sz_comm *c, sz_tensor *part, sz_tensor *whole);
/* part [n] = elements rank * n ... of the sum of all ranks' whole [size * n]; f32, bf16 or i32. */
int sz_comm_reduce_scatter(sz_comm *c, sz_tensor *whole, sz_tensor *part);
/* t = the sum of all ranks' t; f32, bf16 or i32. */
int sz_comm_all_reduce(sz_comm *c, sz_tensor *t);
/* The same for the gradient of a parameter, which counts as zeros where there is none yet. */
int sz_comm_sum_gradient(sz_comm *c, sz_tensor *parameter);
/* For n parameters that are divided among the ranks: bounds [n, size + 1], and rank r has elements
 * [bounds[i][r], bounds[i][r + 1]) of parameter i. The gradients of this rank's ranges become the
 * sums over all ranks; the rest of each gradient keeps this rank's values. */
int sz_comm_sum_gradient_parts(sz_comm *c, sz_tensor **parameters, int n, const int64_t *bounds);
/* The ranges of all ranks go to all. */
int sz_comm_gather_parts(sz_comm *c, sz_tensor **tensors, int n, const int64_t *bounds);
/* Each rank has elements skip .. skip + n of its columns [any, run] of a matrix, of which rank r
 * has the r-th. Of the part's whole rows each gets a range with all columns: *rows [count, size *
 * run] on the CPU, which the caller releases, and *first, the number of its first row; NULL where a
 * rank has none. The other elements, of the first and the last row, are not sent. */
int sz_comm_columns_to_rows(sz_comm *c, sz_tensor *part, int64_t run, int64_t skip,
                            sz_tensor **rows, int64_t *first);
/* The sum of n numbers in host memory, summed in double precision. */
int sz_comm_sum(sz_comm *c, double *numbers, int n);
/* sizes [size] = n of each rank. */
int sz_comm_sizes(sz_comm *c, int64_t n, int64_t *sizes);
/* all = the bytes of all ranks, one after another; rank r has sizes[r] of them. */
int sz_comm_all_gather_bytes(sz_comm *c, const void *bytes, const int64_t *sizes, void *all);
/* ffi end */
#pragma GCC visibility pop

#endif
