/* cudnn_plans.cc - asks cuDNN, without a GPU, which plans it would run for our convolutions. cuDNN
 * chooses plans for a device that is only described, so that descriptors which it would reject,
 * and shapes without a plan, show where the code is written and not where it runs. The shapes are
 * every convolution of SAM2, for three devices, and for one of them hard ones: elements that are
 * only just aligned, kernels larger than the image, skipped pixels, one channel, many images,
 * large ones; in both dtypes and all directions. What a plan is run with (made-up addresses) is
 * described, too. There are more plans than their table holds, so some are evicted. Compiled and
 * run where cuDNN is installed.
 *
 *   cudnn_plans     prints one line for each plan, and last the number of checks and failures;
 *   exits
 *                   with 1 if a check failed, and with 77 without cuDNN
 *
 * Leaves out: running the plans. */
#include "cuda/cudnn.cu"
#include <cstdarg>
#ifndef HAVE_CUDNN
int main()
{
    puts("built without cuDNN");
    return 77;
}
#else

/* ---- what cudnn.cu uses of device.cu ---- */
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

/* ---- cases ---- */
/* The properties that cuDNN asks a device for, from CUDA's documentation. */
/* clang-format off */
static const struct {
    const char *name;
    int version, processors, optin, per_processor, ctas;
    int64_t memory, l2;
    int clock, memory_clock;
} devices[] = {
    { "H100", 900, 132, 232448, 2048, 32, (int64_t)80 << 30, 50 << 20, 1980000, 2619000 },
    { "A100", 800, 108, 166912, 2048, 32, (int64_t)80 << 30, 40 << 20, 1410000, 1593000 },
    { "L40S", 890, 142, 101376, 1536, 24, (int64_t)48 << 30, 96 << 20, 2520000, 9001000 },
};

struct shape {
    const char *what;
    int64_t batch, h, w, c, o, kh, kw, stride, padding;
};
static const shape sam2[] = {
    { "patch embedding, large",  1, 1024, 1024,   3, 144, 7, 7, 4, 3 },
    { "patch embedding, tiny",   1, 1024, 1024,   3,  96, 7, 7, 4, 3 },
    { "mask prompt, first",      1,  256,  256,   1,   4, 2, 2, 2, 0 },
    { "mask prompt, second",     3,  128,  128,   4,  16, 2, 2, 2, 0 },
    { "upscaling, first",        1,  128,  128,  64, 256, 2, 2, 2, 0 },
    { "upscaling, second",       1,  256,  256,  32,  64, 2, 2, 2, 0 },
    { "odd",                     2,   37,   37,   5,   7, 3, 3, 2, 1 },
};
static const shape hard[] = {
    { "pixels skipped",          2,   17,   17,   8,   6, 1, 1, 2, 0 },
    { "pixels skipped, 2 of 5",  1,   31,   31,   4,   4, 2, 2, 5, 0 },
    { "padding of one pixel",    1,    5,    5,   8,   6, 1, 1, 1, 1 },
    { "padding, larger",         1,    7,    7,   4,   4, 2, 2, 1, 4 },
    { "kernel over image",       1,    3,    3,   4,   4, 7, 7, 1, 3 },
    { "kernel over one pixel",   1,    1,    1,   4,   4, 7, 7, 1, 3 },
    { "kernel is image",         1,    7,    7,  64,  32, 7, 7, 7, 0 },
    { "kernel not square",       2,   11,   13,   5,   7, 2, 3, 2, 1 },
    { "large kernel",            1,   64,   64,   4,   4, 33, 33, 1, 16 },
    { "one channel to one",      1,    9,    9,   1,   1, 3, 3, 1, 1 },
    { "to one channel",          4,   33,   33,   8,   1, 3, 3, 1, 1 },
    { "many channels",           1,    8,    8, 5000, 500, 3, 3, 1, 1 },
    { "64 images",              64,  128,  128,  64,  64, 3, 3, 1, 1 },
    { "70000 images",        70000,    4,    4,   4,   4, 3, 3, 1, 1 },
    { "flat",                    1,    1, 100000, 4,   4, 1, 3, 1, 0 },
    { "large image",             1, 4096, 4096,   3, 144, 7, 7, 4, 3 },
    { "large image, rows",       1, 4096, 4096,  64,  64, 3, 3, 1, 1 },
};
static const struct {
    const char *name;
    sz_conv_kind kind;
    bool biased, other_dtype;       /* other_dtype: the bias has another dtype than the images */
} kinds[] = {
    { "forward",              SZ_CONV_FORWARD, false, false },
    { "forward + bias",       SZ_CONV_FORWARD, true,  false },
    { "forward + other bias", SZ_CONV_FORWARD, true,  true  },
    { "input",                SZ_CONV_INPUT,   false, false },
    { "weight",               SZ_CONV_WEIGHT,  false, false },
};
/* clang-format on */

static int checks, failures;

/* ---- checks ---- */
/* Makes plans for this device from now on; `device` is cuDNN's JSON of a device's properties. */
static void describe_device(const char *device)
{
    graph g = {};
    descriptor d = make(&g, CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR);
    set(&g, d, CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, CUDNN_TYPE_CHAR, (int64_t)strlen(device),
        device);
    finish(&g, d);
    if (!is_ok(&g)) {
        printf("a device's description: %s\n", status_text(g.status));
        exit(1);
    }
    for (int i = 0; table && i < TABLE; i++) {
        destroy_parts(&table[i].parts);
        table[i].used = false;
    }
    described_device = d;
}

static sz_conv geometry_of(const shape &s)
{
    const int64_t oh = (s.h + 2 * s.padding - s.kh) / s.stride + 1;
    const int64_t ow = (s.w + 2 * s.padding - s.kw) / s.stride + 1;
    return sz_conv{ s.batch, s.h,  s.w,  s.c,      oh,        ow,
                    s.o,     s.kh, s.kw, s.stride, s.padding, s.kh * s.kw * s.c };
}

/* Describes what the plan would run with, and prints it. Returns whether cuDNN accepts that. */
static bool check_pack(const plan_entry *e, bool biased, int align)
{
    const char *base = (const char *)0x7f0000000000 + align;
    const int64_t apart = (int64_t)1 << 34;
    const char *bias = biased ? base + 3 * apart : NULL;
    char *workspace = e->choice.workspace > 0 ? (char *)0x7f8000000000 : NULL;
    graph own = {};
    pack_addresses(&own, base, base + apart, base + 2 * apart, bias, workspace);
    printf("engine %lld, workspace %.1f MiB, number %lld of those offered",
           (long long)e->choice.engine, (double)e->choice.workspace / (1 << 20),
           (long long)e->choice.offered);
    const bool ok = is_ok(&own);
    if (!ok) printf(", CANNOT BE RUN: %s", status_text(own.status));
    printf("\n");
    destroy_parts(&own);
    return ok;
}

/* Checks that there is a plan, and what it would run with. No plan is an acceptable answer only
 * for a bias of another dtype. */
static void check_one(const char *device, const shape &s, int dtype, int kind, int align)
{
    const sz_conv g = geometry_of(s);
    const auto &k = kinds[kind];
    const int bias_dtype = (dtype == SZ_F32) != k.other_dtype ? SZ_F32 : SZ_BF16;
    plan_entry *e = NULL;
    const int rc = plan_for(key_of(k.kind, g, dtype, k.biased, bias_dtype, align), &e);
    printf("%-4s  %-23s %-4s  %-20s  %2d  ", device, s.what, dtype == SZ_F32 ? "f32" : "bf16",
           k.name, align);
    const bool no_trouble = e->trouble == CUDNN_STATUS_SUCCESS;
    bool ok = false;
    if (rc == 0) {
        ok = check_pack(e, k.biased, align);
    } else {
        const bool is_none = rc == SZ_CUDNN_NONE && no_trouble;
        printf("%s\n", is_none ? "NONE" : status_text(e->trouble));
        ok = is_none && k.other_dtype;
    }
    checks++;
    failures += !fits(g) || !ok;
}

static void check_shape(const char *device, const shape &s, int align)
{
    for (int dtype : { (int)SZ_F32, (int)SZ_BF16 })
        for (int kind = 0; kind < 5; kind++) {
            /* conv.cu does not ask for a bf16 weight's gradient. */
            if (kinds[kind].kind == SZ_CONV_WEIGHT && dtype == SZ_BF16) continue;
            const int element = (int)sz_dtype_size(dtype);
            check_one(device, s, dtype, kind, align < element ? element : align);
        }
}

template <class Device> static void check_device(const Device &d, bool with_hard_shapes)
{
    char text[1024];
    snprintf(text, sizeof text,
             "{\"cudaDeviceId\":0,\"deviceVer\":%d,\"driverVer\":13000,\"deviceName\":\"%s\","
             "\"maxGridSize\":[2147483647,65535,65535],\"maxBlockSize\":[1024,1024,64],"
             "\"regsPerBlock\":65536,\"multiProcessorCount\":%d,\"warpSize\":32,"
             "\"maxSharedMemoryPerBlock\":49152,\"maxSharedMemoryPerBlockOptin\":%d,"
             "\"reservedSharedMemoryPerBlock\":1024,\"maxRegistersPerSM\":65536,"
             "\"maxCtasPerSM\":%d,\"maxThreadsPerBlock\":1024,\"maxThreadsPerSM\":%d,"
             "\"pciDeviceId\":0,\"isTccDriver\":0,\"supportCoopLaunch\":1,"
             "\"totalGlobalMem\":%lld,\"smClockRateKHz\":%d,\"memClockRateKHz\":%d,"
             "\"l2CacheSize\":%lld}",
             d.version, d.name, d.processors, d.optin, d.ctas, d.per_processor, (long long)d.memory,
             d.clock, d.memory_clock, (long long)d.l2);
    describe_device(text);
    for (auto &s : sam2) check_shape(d.name, s, 16);
    for (auto &s : hard)
        for (int align : { 16, 2 })
            if (with_hard_shapes) check_shape(d.name, s, align);
}

int main()
{
    if (!opened()) {
        printf("cuDNN cannot be opened: %s\n", problem);
        return 77;
    }
    const size_t v = lib.cudnnGetVersion();
    printf("cudnn: %zu.%zu.%zu, asked\n", v / 10000, v / 100 % 100, v % 100);
    for (auto &d : devices) check_device(d, &d == devices);

    /* Without a device cuDNN has no handle: conv.cu does the work, and the description says why. */
    int n = 0;
    if (cudaGetDeviceCount(&n) != cudaSuccess || n == 0) {
        const sz_conv g = { 1, 8, 8, 4, 8, 8, 4, 3, 3, 1, 1, 36 };
        const int rc = sz_cudnn_conv(SZ_CONV_FORWARD, g, SZ_F32, &g, &g, &g, NULL);
        checks++;
        failures += rc != SZ_CUDNN_NONE || opened() || !problem[0];
        fputs(sz_cudnn_describe(), stdout);
    }
    printf("%d checks, %d failed\n", checks, failures);
    return failures > 0;
}
#endif
