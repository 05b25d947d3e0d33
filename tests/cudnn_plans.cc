/* cudnn_plans.cc - what cuDNN would run for our convolutions, asked without a GPU: cuDNN chooses plans for a device that is only described, so
 * that descriptors which it would refuse, and shapes that would have no plan, show where the code is written and not where it runs. Every
 * convolution of SAM2 and odd ones, in both dtypes and all directions, for three devices. Compiled and run where cuDNN is installed.
 *
 *   cudnn_plans       one line a plan; the last says how many checks there were and how many failed; exits 1 if one did, 77 without cuDNN
 *
 * Leaves out: running them. */
#include "../runtime/cuda/cudnn.cu"
#include <cstdarg>
#ifndef HAVE_CUDNN
int main() { puts("built without cuDNN"); return 77; }
#else

/* ---- what cudnn.cu has of device.cu ---- */
int sz_fail(const char *format, ...)
{
    va_list ap;
    va_start(ap, format);
    vfprintf(stderr, format, ap);
    va_end(ap);
    fputc('\n', stderr);
    return -1;
}
void sz_panic(const char *file, int line, const char *what)
{
    fprintf(stderr, "broken invariant at %s:%d: %s\n", file, line, what);
    abort();
}
cudaStream_t sz_cuda_stream(void) { return NULL; }
void *sz_cuda_scratch(size_t) { return NULL; }

/* The properties that cuDNN asks a device for, as CUDA's documentation gives them for these. */
static const struct { const char *name; int version, processors, optin, per_processor, ctas; int64_t memory, l2; int clock, memory_clock; } devices[] = {
    { "H100", 900, 132, 232448, 2048, 32, (int64_t)80 << 30, 50 << 20, 1980000, 2619000 },
    { "A100", 800, 108, 166912, 2048, 32, (int64_t)80 << 30, 40 << 20, 1410000, 1593000 },
    { "L40S", 890, 142, 101376, 1536, 24, (int64_t)48 << 30, 96 << 20, 2520000, 9001000 },
};

static const struct { const char *what; int64_t batch, side, c, o, kernel, stride, padding; } shapes[] = {
    { "patch embedding, large",  1, 1024,   3, 144, 7, 4, 3 },
    { "patch embedding, tiny",   1, 1024,   3,  96, 7, 4, 3 },
    { "mask prompt, first",      1,  256,   1,   4, 2, 2, 0 },
    { "mask prompt, second",     3,  128,   4,  16, 2, 2, 0 },
    { "upscaling, first",        1,  128,  64, 256, 2, 2, 0 },
    { "upscaling, second",       1,  256,  32,  64, 2, 2, 0 },
    { "odd",                     2,   37,   5,   7, 3, 2, 1 },
};

int main()
{
    static const char *const kinds[] = { "forward", "forward + bias", "input", "weight" };
    int checks = 0, failures = 0;
    if (!opened()) {
        puts("libcudnn.so.9 is not there");
        return 77;
    }
    fputs(sz_cudnn_describe(), stdout);
    for (auto &d : devices) {
        char text[1024];
        snprintf(text, sizeof text, "{\"cudaDeviceId\":0,\"deviceVer\":%d,\"driverVer\":13000,\"deviceName\":\"%s\",\"maxGridSize\":[2147483647,65535,65535],"
                 "\"maxBlockSize\":[1024,1024,64],\"regsPerBlock\":65536,\"multiProcessorCount\":%d,\"warpSize\":32,\"maxSharedMemoryPerBlock\":49152,"
                 "\"maxSharedMemoryPerBlockOptin\":%d,\"reservedSharedMemoryPerBlock\":1024,\"maxRegistersPerSM\":65536,\"maxCtasPerSM\":%d,"
                 "\"maxThreadsPerBlock\":1024,\"maxThreadsPerSM\":%d,\"pciDeviceId\":0,\"isTccDriver\":0,\"supportCoopLaunch\":1,\"totalGlobalMem\":%lld,"
                 "\"smClockRateKHz\":%d,\"memClockRateKHz\":%d,\"l2CacheSize\":%lld}",
                 d.version, d.name, d.processors, d.optin, d.ctas, d.per_processor, (long long)d.memory, d.clock, d.memory_clock, (long long)d.l2);
        if (sz_cudnn_pretend(text) != 0) return 1;
        for (auto &s : shapes)
            for (int dtype : { (int)SZ_F32, (int)SZ_BF16 })
                for (int kind = 0; kind < 4; kind++) {
                    /* As conv.cu asks: a bf16 weight's gradient it does not. */
                    if (kind == 3 && dtype == SZ_BF16) continue;
                    const int64_t out = (s.side + 2 * s.padding - s.kernel) / s.stride + 1;
                    const sz_conv g = { s.batch, s.side, s.side, s.c, out, out, s.o, s.kernel, s.kernel, s.stride, s.padding, s.kernel * s.kernel * s.c };
                    sz_cudnn_choice choice = {};
                    const int rc = sz_cudnn_choose(kind < 2 ? SZ_CONV_FORWARD : kind == 2 ? SZ_CONV_INPUT : SZ_CONV_WEIGHT, g, dtype, kind == 1, &choice);
                    checks++;
                    failures += rc != 0;
                    printf("%-4s  %-23s %-4s  %-14s  ", d.name, s.what, dtype == SZ_F32 ? "f32" : "bf16", kinds[kind]);
                    if (rc == 0) printf("engine %lld, workspace %.1f MiB, the %lld. offered\n", (long long)choice.engine, (double)choice.workspace / (1 << 20), (long long)choice.seen);
                    else printf("%s\n", rc == SZ_CUDNN_NONE ? "NONE" : "ERROR");
                }
    }
    printf("%d checks, %d failed\n", checks, failures);
    return failures > 0;
}
#endif
