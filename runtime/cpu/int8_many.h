/* int8_many.h - many rows of x times 8-bit weights on processors without VNNI (int8_many.c), for
 * int8.c.
 */
#ifndef SZ_INT8_MANY_H
#define SZ_INT8_MANY_H

#include "int8_lanes.h"
#include "ops/op.h"

/* A tile is SZ_Q_MANY_TILE rows of x, the blocks that sz_q_many reads them in, times
 * SZ_Q_MANY_VECTORS vectors of weights. With AVX its sums, weights and a word of x fit the
 * registers. From SZ_Q_MANY rows on this is faster than int8.c (measured on x86). */
#if defined(__AVX512BW__)
enum { SZ_Q_MANY_TILE = 12, SZ_Q_MANY_VECTORS = 2, SZ_Q_MANY = 64 };
#elif defined(__AVX2__)
enum { SZ_Q_MANY_TILE = 6, SZ_Q_MANY_VECTORS = 2, SZ_Q_MANY = 24 };
#else
enum { SZ_Q_MANY_TILE = 3, SZ_Q_MANY_VECTORS = 4, SZ_Q_MANY = 24 };
#endif

/* linear_int8 of ops.def, with x in 8 bits already. The bits are those of int8.c. Returns 0, or -1
 * with a message on failure. */
int sz_q_many(const sz_call *c, const sz_q_rows *in);

#endif
