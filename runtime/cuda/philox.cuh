/* philox.cuh - Philox-4x32-10 on the device: the words of random.c's sz_random_bits for the same key and counter. */
#ifndef SZ_CUDA_PHILOX_CUH
#define SZ_CUDA_PHILOX_CUH
#include "cuda.cuh"

__device__ __forceinline__ uint4 sz_philox(uint64_t seed, uint64_t row, uint32_t answer, uint32_t position)
{
    uint32_t c0 = (uint32_t)row, c1 = (uint32_t)(row >> 32), c2 = answer, c3 = position;
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < 10; round++, k0 += 0x9e3779b9u, k1 += 0xbb67ae85u) {
        uint64_t a = (uint64_t)0xd2511f53u * c0, b = (uint64_t)0xcd9e8d57u * c2;
        c0 = (uint32_t)(b >> 32) ^ c1 ^ k0;
        c2 = (uint32_t)(a >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)b;
        c3 = (uint32_t)a;
    }
    return make_uint4(c0, c1, c2, c3);
}

#endif
