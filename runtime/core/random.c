/* random.c - random numbers that are a function of what they are for: Philox-4x32-10 (Salmon et
 * al., "Parallel random numbers: as easy as 1, 2, 3", 2011).
 *
 * The key is the seed; the counter is {row low, row high, answer, position}, low words first. A
 * sample therefore depends neither on the batch, nor on threads, nor on earlier draws. Streams of
 * normal numbers use row = stream and a position with its top bit set, which no token position
 * has, so that they never meet the sampler's numbers.
 * Leaves out: any state.
 */
#include "core.h"
#include <math.h>

void sz_random_bits(uint64_t seed, uint64_t row, uint32_t answer, uint32_t position,
                    uint32_t out[4])
{
    enum { ROUNDS = 10 };
    const uint32_t multiplier0 = 0xd2511f53u;
    const uint32_t multiplier1 = 0xcd9e8d57u;
    const uint32_t key_step0 = 0x9e3779b9u;
    const uint32_t key_step1 = 0xbb67ae85u;
    uint32_t counter0 = (uint32_t)row;
    uint32_t counter1 = (uint32_t)(row >> 32);
    uint32_t counter2 = answer;
    uint32_t counter3 = position;
    uint32_t key0 = (uint32_t)seed;
    uint32_t key1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < ROUNDS; round++) {
        const uint64_t product0 = (uint64_t)multiplier0 * counter0;
        const uint64_t product1 = (uint64_t)multiplier1 * counter2;
        counter0 = (uint32_t)(product1 >> 32) ^ counter1 ^ key0;
        counter2 = (uint32_t)(product0 >> 32) ^ counter3 ^ key1;
        counter1 = (uint32_t)product1;
        counter3 = (uint32_t)product0;
        key0 += key_step0;
        key1 += key_step1;
    }
    out[0] = counter0;
    out[1] = counter1;
    out[2] = counter2;
    out[3] = counter3;
}

/* 52 random bits and a half, so that rounding never gives 0 or 1. */
double sz_random_uniform(uint64_t seed, uint64_t row, uint32_t answer, uint32_t position)
{
    uint32_t words[4];
    sz_random_bits(seed, row, answer, position, words);
    const uint64_t bits = (uint64_t)words[1] << 32 | words[0];
    return ((double)(bits >> 12) + 0.5) * 0x1p-52;
}

/* Normal number i of a stream. Numbers 4b .. 4b + 3 come from counter block b, in pairs by Box and
 * Muller's method, in double. */
static double normal_of(const uint32_t words[4], int64_t i)
{
    const double two_pi = 2 * 3.14159265358979323846;
    const uint32_t *pair = words + (i & 2);
    const double u = (pair[0] + 0.5) * 0x1p-32;
    const double angle = pair[1] * (0x1p-32 * two_pi);
    return sqrt(-2 * log(u)) * (i & 1 ? sin(angle) : cos(angle));
}

/* The numbers are the same on every device: they are made on the CPU and copied. */
static int random_normal_on_device(sz_tensor *t, const sz_place *place, uint64_t seed,
                                   uint64_t stream, double mean, double std)
{
    sz_tensor *host = sz_tensor_new_heap(t->dtype, t->ndim, t->shape, SZ_CPU);
    int rc = host ? sz_random_normal_part_(host, place, seed, stream, mean, std) : -1;
    if (rc == 0) rc = sz_tensor_copy(t, host);
    sz_tensor_release(host);
    return rc;
}

/* t's elements from i on, n of them, are numbers from `number` on. */
static void put_normals(sz_tensor *t, int64_t i, int64_t n, int64_t number, uint64_t seed,
                        uint64_t stream, double mean, double std)
{
    const uint32_t no_token = 0x80000000u;
    const int64_t offset = i - number;
    const int64_t end = number + n;
    for (int64_t b = number / 4; 4 * b < end; b++) {
        uint32_t words[4];
        const int64_t first = 4 * b < number ? number - 4 * b : 0;
        const int64_t stop = 4 * b + 4 > end ? end - 4 * b : 4;
        sz_random_bits(seed, stream, (uint32_t)b, no_token | (uint32_t)(b >> 32), words);
        /* The compiler shares what the numbers of a pair have in common. */
        for (int64_t k = 0; k < 4; k++)
            if (k >= first && k < stop)
                sz_put(t, offset + 4 * b + k, (float)(mean + std * normal_of(words, k)));
    }
}

int sz_random_normal_part_(sz_tensor *t, const sz_place *place, uint64_t seed, uint64_t stream,
                           double mean, double std)
{
    enum { PIECE = 1024, PARALLEL_FROM = 4096 };
    if (!t) return -1;
    if (!t->data) return sz_fail("normal_: the tensor's step has ended");
    if (t->dtype != SZ_F32 && t->dtype != SZ_BF16)
        return sz_fail("normal_: the tensor must be f32 or bf16");
    if (sz_place_check(place, t->numel, INT64_MAX) != 0) return -1;
    if (t->device != SZ_CPU) return random_normal_on_device(t, place, seed, stream, mean, std);

#pragma omp parallel for schedule(static) if (t->numel > PARALLEL_FROM)
    for (int64_t start = 0; start < t->numel; start += PIECE) {
        const int64_t stop = start + PIECE < t->numel ? start + PIECE : t->numel;
        int64_t at = 0;
        int64_t n = 0;
        for (int64_t i = start; i < stop; i += n) {
            n = sz_place_run(place, i, stop, &at);
            put_normals(t, i, n, at, seed, stream, mean, std);
        }
    }
    return 0;
}

int sz_random_normal_(sz_tensor *t, uint64_t seed, uint64_t stream, double mean, double std)
{
    const sz_place whole = { .run = 1, .stride = 1 };
    return sz_random_normal_part_(t, &whole, seed, stream, mean, std);
}
