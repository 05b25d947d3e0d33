/* int8.h - the format of 8-bit weights, shared by the fast and the reference kernels.
 *
 * A weight matrix [m, k] is cut into blocks of 16 rows and groups of 128 columns. q u8 [m/16, k/4,
 * 64] (both rounded up): the weight of row r and column c is q[r / 16, c / 4, r % 16 * 4 + c % 4] -
 * 128, between -127 and 127, times scale f32 [m/16, k/128, 16] at [r / 16, c / 128, r % 16].
 * Padding is weight 0. The layout is that of a product of four bytes in each of 16 lanes. When x is
 * multiplied it is quantized to 8 bits too, with one scale for each row and group.
 * Leaves out: other widths, zero points, gradients.
 */
#ifndef SZ_INT8_H
#define SZ_INT8_H

#include <math.h>
#include <stdint.h>

enum { SZ_Q_ROWS = 16, SZ_Q_GROUP = 128, SZ_Q_WORDS = SZ_Q_GROUP / 4, SZ_Q_ZERO = 128 };

/* The scale of n elements. *inverse is the factor to multiply them by before rounding to nearest
 * even; 0 if they are all 0. If one is not finite, the scale is NaN and the factor 0. */
static inline float sz_q_scale(const float *x, int64_t n, float *inverse)
{
    float largest = 0;
    float not_finite = 0; /* NaN if an element is not finite */
#pragma omp simd reduction(max : largest) reduction(+ : not_finite)
    for (int64_t i = 0; i < n; i++) {
        float a = fabsf(x[i]);
        largest = a > largest ? a : largest;
        not_finite += x[i] * 0.0f;
    }
    *inverse = largest > 0 && not_finite == 0 ? 127.0f / largest : 0.0f;
    return largest / 127.0f + not_finite;
}

#endif
