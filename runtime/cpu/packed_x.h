/* packed_x.h - rows that meet 8 and 4-bit weights are rounded to 8 bits (int8.h) here.
 * Leaves out: where the kernels put the codes (int8.c, int4.c, packed_amx.c).
 */
#ifndef SZ_PACKED_X_H
#define SZ_PACKED_X_H

#include "int8.h"
#include "vecmath.h"

/* Rounds columns 256 g to 256 g + 255 of row i of x, f32 or bf16 [n, k], to codes; those past the
 * end are 0. *scale: what a code is worth. All codes are 0 if an element is not finite; then the
 * scale is NaN. Returns the sum of the codes. */
static inline int32_t sz_quantize_group(const sz_tensor *x, int64_t i, int64_t g,
                                        int8_t codes[SZ_Q_GROUP], float *scale)
{
    const int64_t k = sz_cols(x);
    const int64_t first = i * k + g * SZ_Q_GROUP;
    const int64_t n = sz_min64(SZ_Q_GROUP, k - g * SZ_Q_GROUP);
    float v[SZ_Q_GROUP];
    if (n == SZ_Q_GROUP && x->dtype == SZ_BF16) {
        /* Nearly all groups: a loop of constant length becomes vectors. */
        sz_bf16_to_f32(v, sz_bf16(x) + first, SZ_Q_GROUP);
    } else {
        memset(v, 0, sizeof v);
        if (x->dtype == SZ_F32) memcpy(v, sz_f32(x) + first, (size_t)n * sizeof *v);
        else sz_bf16_to_f32(v, sz_bf16(x) + first, n);
    }

    float inverse;
    *scale = sz_q_scale(v, SZ_Q_GROUP, &inverse);
    if (inverse == 0) memset(v, 0, sizeof v);
    int32_t sum = 0;
    for (int j = 0; j < SZ_Q_GROUP; j++) {
        const int32_t code = (int32_t)rintf(v[j] * inverse);
        codes[j] = (int8_t)code;
        sum += code;
    }
    return sum;
}

#endif
