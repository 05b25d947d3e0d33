/* int8.h - the format of 8-bit weights, shared by the fast and the reference kernels.
 *
 * A weight matrix [m, k] is cut into blocks of 16 rows and groups of 256 columns. q u8 [m/16, k/4,
 * 64] (both rounded up): the weight of row r and column c is q[r / 16, c / 4, r % 16 * 4 + c % 4] -
 * 128, between -127 and 127, times scale f32 [m/16, k/256, 16] at [r / 16, c / 256, r % 16].
 * Padding is weight 0. The layout is that of a product of four bytes in each of 16 lanes. When x is
 * multiplied it is quantized to 8 bits too, with one scale for each row and group.
 * Leaves out: other widths, zero points, gradients.
 */
#ifndef SZ_INT8_H
#define SZ_INT8_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

enum { SZ_Q_ROWS = 16, SZ_Q_GROUP = 256, SZ_Q_WORDS = SZ_Q_GROUP / 4, SZ_Q_ZERO = 128 };

/* If all of a group are smaller, their codes are 0: 127 / largest could be infinite. */
#define SZ_Q_LEAST 1e-36f

/* The scale of elements, from the largest absolute value's bits. The bits of absolute values, read
 * as integers, have the order of the values, with infinity and NaN last; so one maximum of integers
 * finds the largest and what is not finite. *inverse is the factor to multiply the elements by
 * before rounding to nearest even; 0 if all of them are smaller than SZ_Q_LEAST. If one is not
 * finite, the scale is NaN and the factor 0. */
static inline float sz_q_scale_of(int32_t most, float *inverse)
{
    enum { INFINITE = 0x7f800000 };
    float largest;
    memcpy(&largest, &most, sizeof largest);
    const bool is_finite = most < INFINITE;
    *inverse = is_finite && largest >= SZ_Q_LEAST ? 127.0f / largest : 0.0f;
    return is_finite ? largest / 127.0f : NAN;
}

/* The scale of n elements. */
static inline float sz_q_scale(const float *x, int64_t n, float *inverse)
{
    int32_t most = 0;
#pragma omp simd reduction(max : most)
    for (int64_t i = 0; i < n; i++) {
        int32_t bits;
        memcpy(&bits, x + i, sizeof bits);
        bits &= 0x7fffffff;
        most = bits > most ? bits : most;
    }
    return sz_q_scale_of(most, inverse);
}

#endif
