/* mma.cuh - tensor-core products and the memory operations around them, for one warp.
 *
 *   sz_mma                  c [16 x 8] f32 += a [16 x 16] bf16 * b [16 x 8] bf16
 *   sz_mma_s8               c [16 x 8] i32 += a [16 x 32] i8 * b [32 x 8] i8
 *   sz_ldmatrix             four 8 x 8 bf16 matrices from shared memory into fragments
 *   sz_ldmatrix_transposed  the same, each matrix transposed
 *   sz_copy_async16         16 bytes from global to shared memory, bypassing registers
 *   sz_copy_async_wait      waits for all asynchronous copies of this thread
 *
 * Fragment layout, with r = lane / 4 and t = lane % 4. A register holds a pair of neighbours, the
 * lower index in the lower half:
 *   a[0] (row r,     k 2t, 2t+1)    a[2] (row r,     k 8 + 2t, ..)     b0 (k 2t, 2t+1, column r)
 *   a[1] (row r + 8, k 2t, 2t+1)    a[3] (row r + 8, k 8 + 2t, ..)     b1 (k 8 + 2t, .., column r)
 *   c[0], c[1] (row r, columns 2t, 2t+1)    c[2], c[3] (row r + 8, the same columns)
 * For i8 a register holds four values: k 4t .. 4t+3, and k 16 + 4t .. in a[2], a[3] and b1.
 * The host versions implement these layouts with shuffles, so the emulated tests prove that callers
 * follow them.
 * Leaves out: Hopper's wgmma and bulk copies. Everything here runs on sm_80 and later. */
#ifndef SZ_MMA_CUH
#define SZ_MMA_CUH

#include "cuda.cuh"
#ifdef SZ_EMULATE
#include <vector>
#endif

/* Packs two floats as bf16, rounded to nearest even; `low` goes to the lower half. */
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

/* The row address that the given lane passed. */
static inline const bf16 *sz_emu_lane_row(const bf16 *row, int lane)
{
    const unsigned long long address = (unsigned long long)(uintptr_t)row;
    return (const bf16 *)(uintptr_t)__shfl_sync(0xffffffffu, address, lane);
}

/* Lane 8m + i passes the address of row i (16 bytes) of matrix m. to[m] receives the elements
 * (row r, columns 2t, 2t+1) of matrix m. */
static inline void sz_ldmatrix(uint32_t to[4], const bf16 *row)
{
    int lane = (int)threadIdx.x % 32;
    for (int m = 0; m < 4; m++) {
        const bf16 *from = sz_emu_lane_row(row, 8 * m + lane / 4);
        memcpy(to + m, from + 2 * (lane % 4), 4);
    }
}

/* As sz_ldmatrix with each matrix transposed: to[m] receives (rows 2t, 2t+1, column r). */
static inline void sz_ldmatrix_transposed(uint32_t to[4], const bf16 *row)
{
    int lane = (int)threadIdx.x % 32;
    for (int m = 0; m < 4; m++) {
        uint16_t bits[2];
        for (int i = 0; i < 2; i++) {
            const bf16 *from = sz_emu_lane_row(row, 8 * m + 2 * (lane % 4) + i);
            memcpy(bits + i, from + lane / 4, 2);
        }
        to[m] = bits[0] | (uint32_t)bits[1] << 16;
    }
}

/* Copies are queued and carried out only when the thread waits, so a missing wait shows in tests.
 * */
struct sz_emu_copy {
    void *to;
    const void *from;
    bool valid;
};

static inline std::vector<sz_emu_copy> &sz_emu_copies()
{
    static std::vector<sz_emu_copy> queues[1024];
    return queues[threadIdx.x];
}

static inline void sz_copy_async16(void *to, const void *from, bool valid)
{
    sz_emu_copies().push_back(sz_emu_copy{ to, from, valid });
}

static inline void sz_copy_async_wait(void)
{
    for (const sz_emu_copy &c : sz_emu_copies()) {
        if (c.valid) memcpy(c.to, c.from, 16);
        else memset(c.to, 0, 16);
    }
    sz_emu_copies().clear();
}

#else

__device__ __forceinline__ void sz_mma(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void sz_mma_s8(int32_t c[4], const uint32_t a[4], uint32_t b0,
                                          uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void sz_ldmatrix(uint32_t to[4], const bf16 *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"((uint32_t)__cvta_generic_to_shared(row))
                 : "memory");
}

__device__ __forceinline__ void sz_ldmatrix_transposed(uint32_t to[4], const bf16 *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"((uint32_t)__cvta_generic_to_shared(row))
                 : "memory");
}

/* Writes zeros if not valid; `from` must be an address inside the tensor all the same. */
__device__ __forceinline__ void sz_copy_async16(void *to, const void *from, bool valid)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                     (uint32_t)__cvta_generic_to_shared(to)),
                 "l"(__cvta_generic_to_global(from)), "r"(valid ? 16 : 0)
                 : "memory");
}

__device__ __forceinline__ void sz_copy_async_wait(void)
{
    asm volatile("cp.async.wait_all;" ::: "memory");
}

#endif
#endif
