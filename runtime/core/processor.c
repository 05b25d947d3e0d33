/* processor.c - picks the CPU kernels for the processor that the program runs on.
 *
 * An x86-64 build has kernels for several kinds of processors; other builds, and those for one
 * processor alone (make ARCH=..., and the sanitizers'), have one kind. oneDNN, which computes the
 * large products, picks its own kernels in the same way; it is told not to go beyond a kind that
 * the user chose, unless DNNL_MAX_CPU_ISA has told it already.
 * Leaves out: AMX's products of complex numbers and fp16.
 */
#include "processor.h"
#include <dnnl.h>
#include <dnnl_version.h>
#include <stdio.h>
#include <stdlib.h>
#ifdef __x86_64__
#include <sys/syscall.h>
#include <unistd.h>
#endif

/* All that oneDNN has. */
#if DNNL_VERSION_MAJOR >= 3
enum { ISA_ALL = dnnl_cpu_isa_default };
#else
enum { ISA_ALL = dnnl_cpu_isa_all };
#endif

/* ---- the kinds, from the plainest to the best ---- */
#define TABLE(kind) extern const sz_cpu_kernels sz_cpu_kernels_##kind
#ifdef SZ_ONE_KIND
TABLE(native);
#else
TABLE(baseline);
TABLE(avx2);
TABLE(avx2_vnni);
TABLE(avx512);
TABLE(avx512_vnni);
TABLE(amx);
#endif

typedef struct {
    const char *name;
    const sz_cpu_kernels *all;  /* every op */
    const sz_cpu_kernels *int8; /* where products of few bits differ, else NULL */
    int isa;                    /* the most that oneDNN may use */
} kind;

#ifdef SZ_ONE_KIND

static const kind kinds[] = { { SZ_ONE_KIND, &sz_cpu_kernels_native, NULL, ISA_ALL } };
static bool runs(int i) { return i == 0; }

#else

enum { BASELINE, AVX2, AVX2_VNNI, AVX512, AVX512_VNNI, AMX };

static const kind kinds[] = {
    [BASELINE] = { "baseline", &sz_cpu_kernels_baseline, NULL, dnnl_cpu_isa_sse41 },
    [AVX2] = { "avx2", &sz_cpu_kernels_avx2, NULL, dnnl_cpu_isa_avx2 },
    [AVX2_VNNI] = { "avx2_vnni", &sz_cpu_kernels_avx2, &sz_cpu_kernels_avx2_vnni,
                    dnnl_cpu_isa_avx2_vnni },
    [AVX512] = { "avx512", &sz_cpu_kernels_avx512, NULL, dnnl_cpu_isa_avx512_core },
    [AVX512_VNNI] = { "avx512_vnni", &sz_cpu_kernels_avx512, &sz_cpu_kernels_avx512_vnni,
                      dnnl_cpu_isa_avx512_core_bf16 },
    [AMX] = { "amx", &sz_cpu_kernels_amx, NULL, ISA_ALL },
};

/* Leaf 7, subleaf 1: this compiler's __builtin_cpu_supports does not know AVX-VNNI. */
static bool has_avx_vnni(void)
{
    unsigned a = 7;
    unsigned b;
    unsigned c = 1;
    unsigned d;
    __asm__("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    return a & 1u << 4;
}

/* Whether the processor has AMX for bf16 and 8 bits (leaf 7), and Linux, which is asked here, lets
 * this process use its tiles. */
static bool has_amx(void)
{
    enum { ASK = 0x1023, TILES = 18 }; /* ARCH_REQ_XCOMP_PERM and XTILEDATA of arch_prctl */
    unsigned a = 7;
    unsigned b;
    unsigned c = 0;
    unsigned d;
    __asm__("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    const unsigned amx = 1u << 22 | 1u << 24 | 1u << 25;
    return (d & amx) == amx && syscall(SYS_arch_prctl, ASK, TILES) == 0;
}

/* Whether this processor and its system run kernels of kind i. */
static bool runs(int i)
{
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                      __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("f16c");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    switch (i) {
    case BASELINE: return true;
    case AVX2: return avx2;
    case AVX2_VNNI: return avx2 && has_avx_vnni();
    case AVX512: return avx512;
    case AVX512_VNNI: return avx512 && __builtin_cpu_supports("avx512vnni");
    default: return avx512 && __builtin_cpu_supports("avx512vnni") && has_amx();
    }
}

#endif

enum { KINDS = sizeof kinds / sizeof *kinds };

/* ---- the choice ---- */
static sz_cpu_kernels kernels;
static int chosen = -1;

static void choose(int i)
{
    kernels = *kinds[i].all;
    for (int op = 0; kinds[i].int8 && op < SZ_OP_COUNT; op++)
        if (kinds[i].int8->ops[op]) kernels.ops[op] = kinds[i].int8->ops[op];
    chosen = i;
}

static bool is_set(const char *variable)
{
    const char *value = getenv(variable);
    return value && *value;
}

/* Keeps oneDNN to what kind i has. */
static int limit_onednn(int i)
{
    const bool is_limited = is_set("DNNL_MAX_CPU_ISA") || is_set("ONEDNN_MAX_CPU_ISA");
    if (is_limited || kinds[i].isa == ISA_ALL) return 0;
    if (dnnl_set_max_cpu_isa((dnnl_cpu_isa_t)kinds[i].isa) == dnnl_success) return 0;
    return sz_fail("oneDNN cannot be kept to the kernels of '%s'", kinds[i].name);
}

static int best(void)
{
    int i = KINDS - 1;
    while (!runs(i)) i--;
    return i;
}

const sz_cpu_kernels *sz_processor(void)
{
    if (chosen < 0) choose(best());
    return &kernels;
}

/* ---- for scripts ---- */
int sz_processor_count(void) { return KINDS; }

const char *sz_processor_name(int i)
{
    if (i < 0 || i >= KINDS) return sz_null("there is no kind %d of processor", i);
    return kinds[i].name;
}

int sz_processor_runs(int i) { return i >= 0 && i < KINDS && runs(i); }

int sz_processor_chosen(void)
{
    sz_processor();
    return chosen;
}

int sz_processor_choose(int i)
{
    const char *name = sz_processor_name(i);
    if (!name) return -1;
    if (!runs(i)) return sz_fail("this processor cannot run the kernels of '%s'", name);
    if (i == chosen) return 0;
    if (chosen >= 0)
        return sz_fail("the kernels of '%s' are in use already, so those of '%s' cannot be chosen",
                       sz_processor_name(chosen), name);
    if (limit_onednn(i) != 0) return -1;
    choose(i);
    return 0;
}

int sz_processor_multiplies_bf16(void) { return sz_processor()->multiplies_bf16(); }

const char *sz_processor_describe(void)
{
    static char text[64];
    const char *name = kinds[sz_processor_chosen()].name;
    const char *products = sz_processor_multiplies_bf16() ? ", products in bf16" : "";
    snprintf(text, sizeof text, "%s (oneDNN 0x%x%s)", name, (unsigned)dnnl_get_effective_cpu_isa(),
             products);
    return text;
}
