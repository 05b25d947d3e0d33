/* mma.cuh - the tensor-core step and the moves around it, for one warp.
 *
 *   sz_mma           c [16 x 8] f32 += a [16 x 16] bf16 times b [16 x 8] bf16
 *   sz_mma_s8        c [16 x 8] i32 += a [16 x 32] bytes times b [32 x 8] bytes, signed
 *   sz_matrices      four 8 x 8 bf16 matrices from shared memory into fragments (ldmatrix), as they lie or transposed
 *   sz_copy16        16 bytes from global to shared memory without passing registers; sz_copies_wait waits for all of a thread's
 *
 * Fragments, with r = lane / 4 and t = lane % 4, pairs are neighbours (the lower index in the lower half):
 *   a[0] (row r,     k 2t, 2t+1)    a[2] (row r,     k 8 + 2t, ..)     b0 (k 2t, 2t+1, column r)
 *   a[1] (row r + 8, k 2t, 2t+1)    a[3] (row r + 8, k 8 + 2t, ..)     b1 (k 8 + 2t, .., column r)
 *   c[0], c[1] (row r, columns 2t, 2t+1)    c[2], c[3] (row r + 8, the same columns)
 * Of bytes a register holds four, k 4t .. 4t+3, and 16 + 4t .. in a[2], a[3] and b1.
 * The bodies for a host processor follow these layouts through shuffles, so tests there prove that the callers do.
 * Leaves out: Hopper's wgmma and bulk copies; sm_80 and later run this. */
#ifndef SZ_MMA_CUH
#define SZ_MMA_CUH

#include "cuda.cuh"
#ifdef SZ_EMULATE
#include <vector>
#endif

/* low and high as two bf16, to nearest even. */
__device__ __forceinline__ uint32_t sz_bf16_pair(float low, float high)
{
    __nv_bfloat162 two = __floats2bfloat162_rn(low, high);
    uint32_t pair;
    memcpy(&pair, &two, 4);
    return pair;
}

#ifdef SZ_EMULATE

static inline void sz_mma(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
    const uint32_t b[2] = { b0, b1 };
    sz_emu_mma_m16n8k16(c, a, b);
}

static inline void sz_mma_s8(int32_t c[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
    const uint32_t b[2] = { b0, b1 };
    sz_emu_mma_m16n8k32(c, a, b);
}

/* Lane 8m + i names row i (16 bytes) of matrix m; to[m] is its elements (row r, columns 2t, 2t+1). */
static inline void sz_matrices(uint32_t to[4], const bf16 *row)
{
    int lane = (int)threadIdx.x % 32;
    for (int m = 0; m < 4; m++) {
        const bf16 *from = (const bf16 *)(uintptr_t)__shfl_sync(0xffffffffu, (unsigned long long)(uintptr_t)row, 8 * m + lane / 4);
        memcpy(to + m, from + 2 * (lane % 4), 4);
    }
}

/* The same with every matrix transposed: to[m] is (rows 2t, 2t+1, column r). */
static inline void sz_matrices_transposed(uint32_t to[4], const bf16 *row)
{
    int lane = (int)threadIdx.x % 32;
    for (int m = 0; m < 4; m++) {
        uint16_t bits[2];
        for (int i = 0; i < 2; i++) {
            unsigned long long at = __shfl_sync(0xffffffffu, (unsigned long long)(uintptr_t)row, 8 * m + 2 * (lane % 4) + i);
            memcpy(bits + i, (const bf16 *)(uintptr_t)at + lane / 4, 2);
        }
        to[m] = bits[0] | (uint32_t)bits[1] << 16;
    }
}

/* The bytes arrive when the thread waits and not before, so that a wait that lacks shows. */
struct sz_emu_copy { void *to; const void *from; bool there; };
static inline std::vector<sz_emu_copy> &sz_emu_copies()
{
    static std::vector<sz_emu_copy> of[1024];
    return of[threadIdx.x];
}
static inline void sz_copy16(void *to, const void *from, bool there) { sz_emu_copies().push_back(sz_emu_copy{ to, from, there }); }
static inline void sz_copies_wait(void)
{
    for (const sz_emu_copy &c : sz_emu_copies()) {
        if (c.there) memcpy(c.to, c.from, 16);
        else memset(c.to, 0, 16);
    }
    sz_emu_copies().clear();
}

#else

__device__ __forceinline__ void sz_mma(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void sz_mma_s8(int32_t c[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void sz_matrices(uint32_t to[4], const bf16 *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"((uint32_t)__cvta_generic_to_shared(row)) : "memory");
}

__device__ __forceinline__ void sz_matrices_transposed(uint32_t to[4], const bf16 *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"((uint32_t)__cvta_generic_to_shared(row)) : "memory");
}

/* Zeros if not there; from must then still be an address of the tensor. */
__device__ __forceinline__ void sz_copy16(void *to, const void *from, bool there)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :: "r"((uint32_t)__cvta_generic_to_shared(to)), "l"(__cvta_generic_to_global(from)), "r"(there ? 16 : 0) : "memory");
}
__device__ __forceinline__ void sz_copies_wait(void) { asm volatile("cp.async.wait_all;" ::: "memory"); }

#endif
#endif
