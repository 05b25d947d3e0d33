/* philox.cuh - Philox-4x32-10 on the device. Returns the same four words as sz_random_bits of
 * core/random.c for the same key (seed) and counter (row, answer, position).
 * Leaves out: conversion to floats, which each kernel does in its own way. */
#ifndef SZ_CUDA_PHILOX_CUH
#define SZ_CUDA_PHILOX_CUH
#include "cuda.cuh"

__device__ __forceinline__ uint4 sz_philox(uint64_t seed, uint64_t row, uint32_t answer,
                                           uint32_t position)
{
    /* The counter and the key, as 32-bit words. */
    uint32_t c0 = (uint32_t)row;
    uint32_t c1 = (uint32_t)(row >> 32);
    uint32_t c2 = answer;
    uint32_t c3 = position;
    uint32_t k0 = (uint32_t)seed;
    uint32_t k1 = (uint32_t)(seed >> 32);
    /* Ten rounds; the key advances by the Weyl constants. */
    for (int round = 0; round < 10; round++, k0 += 0x9e3779b9u, k1 += 0xbb67ae85u) {
        uint64_t a = (uint64_t)0xd2511f53u * c0;
        uint64_t b = (uint64_t)0xcd9e8d57u * c2;
        c0 = (uint32_t)(b >> 32) ^ c1 ^ k0;
        c2 = (uint32_t)(a >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)b;
        c3 = (uint32_t)a;
    }
    return make_uint4(c0, c1, c2, c3);
}

#endif
