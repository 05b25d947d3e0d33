/* table.cu - fills the backend's table: a kernel for each row of ops.def, the entries of
 * device.cu, the sampler and the decode step. A missing kernel is a link error that names it.
 * Leaves out: any computing. */
#include "cudnn.cuh"
#include "device.cuh"
#include "gemm.cuh"
#include "links.cuh"
#include <cstdio>

extern "C" {
#define SZ_OP(name, ...) int sz_cuda_##name(const sz_call *c);
#include "ops/ops.def"
#undef SZ_OP
}

static const sz_kernel kernels[SZ_OP_COUNT] = {
#define SZ_OP(name, ...) sz_cuda_##name,
#include "ops/ops.def"
#undef SZ_OP
};

#ifdef SZ_EMULATE
#define NAME "cuda, emulated"
#else
#define NAME "cuda"
#endif

static const char *describe(void)
{
    static char text[2048];
    snprintf(text, sizeof text, "%s%s%s%s", sz_cuda_describe(), sz_cuda_gemm_describe(),
             sz_cudnn_describe(), sz_cuda_links_describe());
    return text;
}

extern "C" const sz_backend *sz_cuda_backend(void)
{
    /* In the order of sz_backend (core/backend.h). */
    static sz_backend backend = {
        SZ_BACKEND_VERSION,
        NAME,
        kernels,
        SZ_OP_COUNT,
        sz_cuda_open,
        sz_cuda_count,
        describe,
        sz_cuda_allocate,
        sz_cuda_release,
        sz_cuda_to_device,
        sz_cuda_to_host,
        sz_cuda_move,
        sz_cuda_fill,
        sz_cuda_synchronise,
        sz_cuda_memory,
        sz_cuda_sample,
        sz_cuda_decode,
        sz_cuda_allocate_host,
        sz_cuda_release_host,
        sz_cuda_copy_async,
        sz_cuda_mark,
        sz_cuda_await,
        sz_cuda_finish,
        NULL,
    };
    backend.links = sz_cuda_links();
    return &backend;
}
