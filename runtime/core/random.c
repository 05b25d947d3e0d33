/* random.c - random numbers that are a function of their place: Philox-4x32-10 (Salmon et al., "Parallel random numbers: as
 * easy as 1, 2, 3", 2011).
 *
 * The key is the seed, the counter is {row low, row high, answer, position}, low words first; a sample therefore depends on
 * neither batch, threads nor what was drawn before. Streams of normal numbers use row = stream and a position with its top
 * bit set, which no token position has, so that they never meet the sampler's numbers.
 * Leaves out: any state.
 */
#include "core.h"
#include <math.h>

void sz_random_bits(uint64_t seed, uint64_t row, uint32_t answer, uint32_t position, uint32_t out[4])
{
    uint32_t c0 = (uint32_t)row, c1 = (uint32_t)(row >> 32), c2 = answer, c3 = position;
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < 10; round++) {
        uint64_t a = (uint64_t)0xd2511f53u * c0, b = (uint64_t)0xcd9e8d57u * c2;
        uint32_t n0 = (uint32_t)(b >> 32) ^ c1 ^ k0, n2 = (uint32_t)(a >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)b;
        c3 = (uint32_t)a;
        c0 = n0;
        c2 = n2;
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

/* 52 random bits and a half, so that 0 and 1 are out of reach after rounding too. */
double sz_random_uniform(uint64_t seed, uint64_t row, uint32_t answer, uint32_t position)
{
    uint32_t w[4];
    sz_random_bits(seed, row, answer, position, w);
    uint64_t bits = (uint64_t)w[1] << 32 | w[0];
    return ((double)(bits >> 12) + 0.5) * 0x1p-52;
}

/* Elements 4i .. 4i+3 come from counter block i by Box and Muller, in double. */
int sz_random_normal_(sz_tensor *t, uint64_t seed, uint64_t stream, double mean, double std)
{
    if (!t) return -1;
    if (!t->data) return sz_fail("normal_: the tensor's step has ended");
    if (t->dtype != SZ_F32 && t->dtype != SZ_BF16) return sz_fail("normal_: the tensor must be f32 or bf16");
    if (t->device != SZ_CPU) {      /* the same numbers on every device */
        sz_tensor *here = sz_tensor_new_heap(t->dtype, t->ndim, t->shape, SZ_CPU);
        int rc = here && sz_random_normal_(here, seed, stream, mean, std) == 0 ? sz_tensor_copy(t, here) : -1;
        sz_tensor_release(here);
        return rc;
    }
#pragma omp parallel for schedule(static) if (t->numel > 4096)
    for (int64_t i = 0; i < (t->numel + 3) / 4; i++) {
        uint32_t w[4];
        sz_random_bits(seed, stream, (uint32_t)i, 0x80000000u | (uint32_t)(i >> 32), w);
        for (int64_t j = 0; j < 4 && 4 * i + j < t->numel; j++) {
            double u = (w[j & 2] + 0.5) * 0x1p-32, angle = w[(j & 2) + 1] * (0x1p-31 * 3.14159265358979323846);
            double x = sqrt(-2 * log(u)) * (j & 1 ? sin(angle) : cos(angle));
            sz_put(t, 4 * i + j, (float)(mean + std * x));
        }
    }
    return 0;
}
