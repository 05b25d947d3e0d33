/* packed_amx.h - products with 8 and 4-bit weights with AMX (packed_amx.c), for int8.c and int4.c.
 * There with SZ_AMX alone.
 */
#ifndef SZ_PACKED_AMX_H
#define SZ_PACKED_AMX_H

#include "core/core.h"
#include "int4.h"
#include "ops/op.h"

/* linear_int8 and linear_int4 of ops.def from SZ_PACKED_MANY rows of x on; the bits are those of
 * int8.c and int4.c. Return 0, or -1 with a message on failure. */
int sz_amx_linear_int8(const sz_call *c);
int sz_amx_linear_int4(const sz_call *c);

#endif
