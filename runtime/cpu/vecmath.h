/* vecmath.h - what the CPU's elementwise and rowwise kernels share: branch-free exp, log and normal
 * distribution that GCC can vectorise (it cannot vectorise calls into libm), and conversion of
 * blocks of elements between bf16 and f32.
 *
 * Accuracy against libm in double: exp and log 1e-7 relative; the normal distribution 5e-7 relative
 * above -3 and 4e-6 in the tail below. Results under FLT_MIN lose bits. Infinities and NaN come out
 * as in libm.
 * Leaves out: i32 and u8, which only casts and copies use.
 */
#ifndef SZ_CPU_VECMATH_H
#define SZ_CPU_VECMATH_H

#include "core/core.h"

enum {
    /* Elements that a kernel converts at once: 2 KiB a buffer; several fit the first-level
     * cache. */
    SZ_BLOCK = 512,
    /* Elements below which waking the threads costs more than it saves. */
    SZ_PARALLEL_FROM = 32768
};

static inline int64_t sz_min64(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t sz_ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* ---- scalar functions, written so that a loop over them becomes vector code ---- */

static inline float sz_bits_float(uint32_t u)
{
    union {
        uint32_t u;
        float f;
    } v = { u };
    return v.f;
}
static inline uint32_t sz_float_bits(float f)
{
    union {
        float f;
        uint32_t u;
    } v = { f };
    return v.u;
}

/* e^x = 2^k e^r with |r| <= ln2 / 2; the series of e^r up to r^7 leaves 5e-9. 2^k is applied in two
 * factors, so that k may reach 128 and -150: overflow gives inf, underflow passes through the
 * subnormals to 0. */
static inline float sz_exp(float x)
{
    /* k = x / ln2, rounded: adding 1.5 * 2^23 leaves the nearest integer in the low bits. */
    const float shifter = 12582912.0f;
    x = x > 89.0f ? 89.0f : x;
    x = x < -105.0f ? -105.0f : x;
    float kf = x * 1.44269504f + shifter;
    int32_t k = (int32_t)(sz_float_bits(kf) - 0x4b400000u);
    kf -= shifter;

    /* r = x - k ln2; ln2 = 0.693359375 - 2.12194440e-4, the first part exact in 10 bits. */
    float r = x - kf * 0.693359375f;
    r += kf * 2.12194440e-4f;

    /* The series of e^r. */
    float p = 1.0f / 5040.0f;
    p = p * r + 1.0f / 720.0f;
    p = p * r + 1.0f / 120.0f;
    p = p * r + 1.0f / 24.0f;
    p = p * r + 1.0f / 6.0f;
    p = p * r + 0.5f;
    p = p * r * r + r;
    p += 1.0f;

    /* Multiply by 2^k. */
    int32_t half = k >> 1;
    return p * sz_bits_float((uint32_t)(half + 127) << 23) *
           sz_bits_float((uint32_t)(k - half + 127) << 23);
}

/* ln(m 2^e) = e ln2 + 2 atanh(s), s = (m - 1) / (m + 1), with m in [sqrt(1/2), sqrt(2)), so that
 * |s| <= 0.172. */
static inline float sz_log(float x)
{
    /* Subnormals are scaled by 2^23 first. */
    float scale = x < 1.17549435e-38f ? 8388608.0f : 1.0f;
    float bias = x < 1.17549435e-38f ? 23.0f : 0.0f;

    /* Exponent and mantissa, relative to the bits of sqrt(1/2). */
    uint32_t u = sz_float_bits(x * scale) - 0x3f3504f3u;
    float e = (float)((int32_t)u >> 23) - bias;
    float m = sz_bits_float((u & 0x007fffffu) + 0x3f3504f3u);

    /* 2 atanh(s) = 2s + s z p, with 2s = f - s f, whose leading term stays exact. */
    float f = m - 1.0f;
    float s = f / (m + 1.0f);
    float z = s * s;
    float p = 2.0f / 9.0f;
    p = p * z + 2.0f / 7.0f;
    p = p * z + 2.0f / 5.0f;
    p = p * z + 2.0f / 3.0f;
    float y = f - s * (f - z * p);
    y = e * 0.693359375f + (y - e * 2.12194440e-4f);

    /* inf, 0, and NaN for negative x. */
    y = x > 3.40282347e+38f ? x : y;
    y = x == 0.0f ? -__builtin_inff() : y;
    return x >= 0.0f ? y : __builtin_nanf("");
}

static inline float sz_sigmoidf(float x) { return 1.0f / (1.0f + sz_exp(-x)); }

/* The normal distribution: returns P(X <= x) = (1 + erf(x / sqrt 2)) / 2 and sets *density to
 * exp(-x^2/2) / sqrt(2 pi). The tail P(X <= -|x|) is exp(-x^2/2) t Q(t), t = 1 / (1 + 0.3 |x|); Q
 * is a minimax fit on |x| <= 14.5 (3.5e-9 relative). */
static inline float sz_normal(float x, float *density)
{
    float a = x < 0.0f ? -x : x;
    float square = a * a;
    float g = sz_exp(-0.5f * square);
    float t = 1.0f / (1.0f + 0.3f * a);

    /* Q(t) */
    float q = -0.0206234693f;
    q = q * t + 0.112435614f;
    q = q * t - 0.228213602f;
    q = q * t + 0.191784537f;
    q = q * t - 0.0794234932f;
    q = q * t + 0.0961568337f;
    q = q * t + 0.0783896491f;
    q = q * t + 0.110235425f;
    q = q * t + 0.119571814f;
    q = q * t + 0.11968669f;

    float tail = g * t * q;
    *density = g * 0.398942280f;
    return x < 0.0f ? tail : 1.0f - tail;
}

/* ---- blocks: n <= SZ_BLOCK elements, starting with element i, as f32 ---- */

static inline void sz_bf16_to_f32(float *restrict dst, const uint16_t *restrict src, int64_t n)
{
    for (int64_t i = 0; i < n; i++) dst[i] = sz_from_bf16(src[i]);
}

/* Rounds to nearest even; NaN stays NaN. */
static inline void sz_f32_to_bf16(uint16_t *restrict dst, const float *restrict src, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        uint32_t u = sz_float_bits(src[i]);
        uint32_t rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
        uint32_t quiet = (u >> 16) | 0x40;
        dst[i] = (uint16_t)((u & 0x7fffffff) > 0x7f800000 ? quiet : rounded);
    }
}

/* The elements themselves if t is f32, else their values in buffer. */
static inline const float *sz_block(const sz_tensor *t, int64_t i, int64_t n, float *buffer)
{
    if (t->dtype == SZ_F32) return sz_f32(t) + i;
    sz_bf16_to_f32(buffer, sz_bf16(t) + i, n);
    return buffer;
}

/* Where to compute a block of t; sz_block_end then rounds it into place if t is bf16. */
static inline float *sz_block_begin(const sz_tensor *t, int64_t i, float *buffer)
{
    return t->dtype == SZ_F32 ? sz_f32(t) + i : buffer;
}
static inline void sz_block_end(const sz_tensor *t, int64_t i, int64_t n, const float *buffer)
{
    if (t->dtype != SZ_F32) sz_f32_to_bf16(sz_bf16(t) + i, buffer, n);
}

/* t[i .. i + n) = s[j .. j + n), converting between f32 and bf16 where the dtypes differ. */
static inline void sz_copy_elements(const sz_tensor *t, int64_t i, const sz_tensor *s, int64_t j,
                                    int64_t n)
{
    if (t->dtype == s->dtype) {
        size_t size = sz_dtype_size(t->dtype);
        char *dst = (char *)t->data + (size_t)i * size;
        memcpy(dst, (const char *)s->data + (size_t)j * size, (size_t)n * size);
    } else if (t->dtype == SZ_F32) {
        sz_bf16_to_f32(sz_f32(t) + i, sz_bf16(s) + j, n);
    } else {
        sz_f32_to_bf16(sz_bf16(t) + i, sz_f32(s) + j, n);
    }
}

/* Sums in eight or more double lanes: the build fixes the order, not the thread count. */
static inline double sz_block_sum(const float *x, int64_t n)
{
    double s = 0;
#pragma omp simd reduction(+ : s)
    for (int64_t i = 0; i < n; i++) s += (double)x[i];
    return s;
}
static inline double sz_block_dot(const float *x, const float *y, int64_t n)
{
    double s = 0;
#pragma omp simd reduction(+ : s)
    for (int64_t i = 0; i < n; i++) s += (double)x[i] * (double)y[i];
    return s;
}

#endif
