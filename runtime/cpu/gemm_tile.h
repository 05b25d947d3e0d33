/* gemm_tile.h - vectors of f32 and integers for the kernels that keep a tile of results in
 * registers.
 *
 * A vector has SZ_LANES elements, as many as the kind of processor has; the compiler makes its
 * instructions of plain operators on vectors. Products of such tiles: attention_product.h,
 * gemm_skinny.c.
 * Leaves out: bf16, which is widened first.
 */
#ifndef SZ_GEMM_TILE_H
#define SZ_GEMM_TILE_H

#include <stddef.h>
#include <stdint.h>
#if defined(__SSE__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

/* SZ_TILE_ROWS x 2 vectors of sums stay in registers. */
#if defined(__AVX512F__)
enum { SZ_LANES = 16, SZ_TILE_ROWS = 12 };
#elif defined(__AVX__)
enum { SZ_LANES = 8, SZ_TILE_ROWS = 6 };
#elif defined(__aarch64__)
enum { SZ_LANES = 4, SZ_TILE_ROWS = 12 };
#else
enum { SZ_LANES = 4, SZ_TILE_ROWS = 4 };
#endif

/* Vectors of SZ_LANES elements. The "any" types may be loaded from any float's address; sz_uvec is
 * for bits whose sums may wrap. */
typedef float sz_vec __attribute__((vector_size(4 * SZ_LANES)));
typedef uint32_t sz_uvec __attribute__((vector_size(4 * SZ_LANES)));
typedef int32_t sz_ivec __attribute__((vector_size(4 * SZ_LANES)));
typedef float sz_vec_any __attribute__((vector_size(4 * SZ_LANES), aligned(4), may_alias));
typedef uint32_t sz_uvec_any __attribute__((vector_size(4 * SZ_LANES), aligned(4), may_alias));
typedef int32_t sz_ivec_any __attribute__((vector_size(4 * SZ_LANES), aligned(4), may_alias));

/* The same bits as halves of 16. */
typedef uint16_t sz_half_words __attribute__((vector_size(4 * SZ_LANES)));

/* Vectors of four elements. */
typedef float sz_vec4 __attribute__((vector_size(16)));
typedef float sz_vec4_any __attribute__((vector_size(16), aligned(4), may_alias));
typedef int32_t sz_ivec4 __attribute__((vector_size(16)));

/* Selects lanes of a and b, which are numbered consecutively. clang has no __builtin_shuffle; it
 * builds only for the thread sanitizer. No caller may have a variable with one of the names in
 * here: it would be read before it has a value. */
#ifdef __clang__
#define sz_shuffle(a, b, ...) \
    __extension__({ \
        __typeof__(a) shuffle_a_ = (a); \
        __typeof__(a) shuffle_b_ = (b); \
        __typeof__(a) shuffled_ = shuffle_a_; \
        __typeof__(__VA_ARGS__) lane_ = __VA_ARGS__; \
        const int lanes_ = (int)(sizeof shuffled_ / sizeof(float)); \
        for (int l_ = 0; l_ < lanes_; l_++) { \
            const int from_ = lane_[l_]; \
            shuffled_[l_] = from_ < lanes_ ? shuffle_a_[from_] : shuffle_b_[from_ - lanes_]; \
        } \
        shuffled_; \
    })
#else
#define sz_shuffle(a, b, ...) __builtin_shuffle(a, b, __VA_ARGS__)
#endif

/* Has the compiler hold v in a register: left alone, GCC reads operands again, regroups sums, and
 * keeps both in memory. Without FMA (SSE2), reading again is faster. */
#if defined(__FMA__)
#define SZ_IN_REGISTER(v) __asm__("" : "+v"(v))
#elif defined(__aarch64__)
#define SZ_IN_REGISTER(v) __asm__("" : "+w"(v))
#else
#define SZ_IN_REGISTER(v)
#endif

/* The cases of a switch that has an instance for each number of rows; the user defines CASE(M). */
#define SZ_CASES_TO_8 CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8)
#define SZ_CASES_TO_12 SZ_CASES_TO_8 CASE(9) CASE(10) CASE(11) CASE(12)

static inline sz_vec sz_vec_load(const float *p) { return *(const sz_vec_any *)p; }
static inline void sz_vec_store(float *p, sz_vec v) { *(sz_vec_any *)p = v; }
static inline sz_vec sz_vec_all(float x) { return x - (sz_vec){ 0 }; }

/* Lanes of yes where mask is -1, of no where it is 0. */
static inline sz_vec sz_vec_pick(sz_ivec mask, sz_vec yes, sz_vec no)
{
    return (sz_vec)((mask & (sz_ivec)yes) | (~mask & (sz_ivec)no));
}

/* Where a > b lanes of a, else of b. x86 has one instruction for it; gcc would make four. */
static inline sz_vec sz_vec_max(sz_vec a, sz_vec b)
{
#if defined(__AVX512F__)
    return (sz_vec)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX__)
    return (sz_vec)_mm256_max_ps((__m256)a, (__m256)b);
#elif defined(__SSE__)
    return (sz_vec)_mm_max_ps((__m128)a, (__m128)b);
#else
    return sz_vec_pick(a > b, a, b);
#endif
}

/* In each lane, the sum of the products of the two signed halves of a and b. */
static inline __attribute__((always_inline)) sz_ivec sz_dot2(sz_ivec a, sz_ivec b)
{
#if defined(__AVX512BW__)
    return (sz_ivec)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return (sz_ivec)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__x86_64__)
    return (sz_ivec)_mm_madd_epi16((__m128i)a, (__m128i)b);
#elif defined(__aarch64__)
    const int32x4_t low = vmull_s16(vget_low_s16((int16x8_t)a), vget_low_s16((int16x8_t)b));
    return (sz_ivec)vpaddq_s32(low, vmull_high_s16((int16x8_t)a, (int16x8_t)b));
#else
    return (a << 16 >> 16) * (b << 16 >> 16) + (a >> 16) * (b >> 16);
#endif
}

/* Whether any lane of mask, which are 0 or -1, is -1. */
static inline int sz_mask_any(sz_ivec mask)
{
#if defined(__AVX512DQ__)
    return _mm512_movepi32_mask((__m512i)mask) != 0;
#elif defined(__AVX__)
    return _mm256_movemask_ps((__m256)mask) != 0;
#elif defined(__SSE__)
    return _mm_movemask_ps((__m128)mask) != 0;
#else
    int any = 0;
    for (int l = 0; l < SZ_LANES; l++) any |= mask[l];
    return any;
#endif
}

/* e^x for x <= 88: 0 below -87; relative error about 1e-7; NaN stays NaN. */
static inline sz_vec sz_vec_exp(sz_vec x)
{
    /* n = x / ln 2, rounded: adding 1.5 * 2^23 leaves the integer in the low bits. */
    const float magic = 12582912.0f;
    sz_vec t = x * 1.44269504f + magic;
    sz_ivec n = (sz_ivec)t;
    t -= magic;

    /* f = x - n ln 2, with ln 2 in two parts. */
    sz_vec f = x - t * 0.693145752f;
    f -= t * 1.42860677e-6f;

    /* e^f as a polynomial. */
    sz_vec p = 0.00139337514f + f * 1.98911035e-4f;
    p = 0.00833331082f + f * p;
    p = 0.0416664640f + f * p;
    p = 0.166666667f + f * p;
    p = 0.500000001f + f * p;
    p = 1.0f + f * p;
    p = 1.0f + f * p;

    /* Multiply by 2^n in the exponent bits. */
    sz_vec e = (sz_vec)((sz_uvec)p + ((sz_uvec)n << 23));
    return (sz_vec)((sz_ivec)e & ~(x < -87.0f));
}

/* dst[i * dst_stride + j] = src[j * src_stride + i] for i < n, j < 4. */
static inline void sz_transpose4(float *dst, ptrdiff_t dst_stride, const float *src,
                                 ptrdiff_t src_stride, int n)
{
    int i = 0;
    for (; i + 4 <= n; i += 4) {
        /* Four rows of four. */
        sz_vec4 a = *(const sz_vec4_any *)(src + i);
        sz_vec4 b = *(const sz_vec4_any *)(src + src_stride + i);
        sz_vec4 c = *(const sz_vec4_any *)(src + 2 * src_stride + i);
        sz_vec4 d = *(const sz_vec4_any *)(src + 3 * src_stride + i);

        /* Columns 0 and 1. */
        sz_vec4 ab = sz_shuffle(a, b, (sz_ivec4){ 0, 4, 1, 5 });
        sz_vec4 cd = sz_shuffle(c, d, (sz_ivec4){ 0, 4, 1, 5 });
        *(sz_vec4_any *)(dst + i * dst_stride) = sz_shuffle(ab, cd, (sz_ivec4){ 0, 1, 4, 5 });
        *(sz_vec4_any *)(dst + (i + 1) * dst_stride) = sz_shuffle(ab, cd, (sz_ivec4){ 2, 3, 6, 7 });

        /* Columns 2 and 3. */
        ab = sz_shuffle(a, b, (sz_ivec4){ 2, 6, 3, 7 });
        cd = sz_shuffle(c, d, (sz_ivec4){ 2, 6, 3, 7 });
        *(sz_vec4_any *)(dst + (i + 2) * dst_stride) = sz_shuffle(ab, cd, (sz_ivec4){ 0, 1, 4, 5 });
        *(sz_vec4_any *)(dst + (i + 3) * dst_stride) = sz_shuffle(ab, cd, (sz_ivec4){ 2, 3, 6, 7 });
    }
    for (; i < n; i++)
        for (int j = 0; j < 4; j++) dst[i * dst_stride + j] = src[j * src_stride + i];
}

#endif
