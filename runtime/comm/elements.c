/* elements.c - sums of elements in host memory, in the order of their parts (group.h).
 * Leaves out: moving the parts between ranks (comm.c).
 */
#include "comm/group.h"
#include "core/core.h"

bool sz_comm_can_sum(int dtype) { return dtype == SZ_F32 || dtype == SZ_BF16 || dtype == SZ_I32; }

static void sum_f32(float *out, const float *const *parts, int count, int64_t n)
{
#pragma omp parallel for simd if (n > 65536)
    for (int64_t i = 0; i < n; i++) {
        float v = parts[0][i];
        for (int r = 1; r < count; r++) v += parts[r][i];
        out[i] = v;
    }
}

static void sum_bf16(uint16_t *out, const uint16_t *const *parts, int count, int64_t n)
{
#pragma omp parallel for if (n > 65536)
    for (int64_t i = 0; i < n; i++) {
        float v = sz_from_bf16(parts[0][i]);
        for (int r = 1; r < count; r++) v += sz_from_bf16(parts[r][i]);
        out[i] = sz_to_bf16(v);
    }
}

static void sum_i32(int32_t *out, const int32_t *const *parts, int count, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        uint32_t v = (uint32_t)parts[0][i];
        for (int r = 1; r < count; r++) v += (uint32_t)parts[r][i];
        out[i] = (int32_t)v;
    }
}

void sz_comm_sum_elements(int dtype, void *out, const void *const *parts, int count, int64_t n)
{
    if (dtype == SZ_F32) sum_f32(out, (const float *const *)parts, count, n);
    else if (dtype == SZ_BF16) sum_bf16(out, (const uint16_t *const *)parts, count, n);
    else sum_i32(out, (const int32_t *const *)parts, count, n);
}
