/* cudnn.cu - convolutions by cuDNN: opening the library, choosing an execution plan for each shape,
 * running it. Shapes: cudnn.cuh.
 *
 * libcudnn.so.9 is opened at the first convolution. conv.cu does the work itself if the library is
 * missing, if the build had no cudnn.h, or for shapes without a plan. SEGZERO_CUDNN=0 in the
 * environment disables cuDNN. If the library is present but does not work (no handle, one of its
 * own libraries missing, a description that it rejects), one line on stderr says so and conv.cu
 * does the work. A failure while running is an error.
 *
 * A convolution is described to cuDNN's graph interface once: images and weights with their
 * channels innermost, the bias as a second operation on sums that stay f32. cuDNN's heuristics
 * then offer engines, the fastest first by their estimate. The first engine that is exact,
 * repeatable and content with WORKSPACE becomes the shape's plan. Refused are engines that round
 * their inputs (tensor cores for f32, unless SEGZERO_TF32=1), that transform (Winograd, FFT), that
 * sum in an order that is not fixed or in less than f32, or that are compiled at run time (0.5 s
 * and more for each shape).
 *
 * What cuDNN 9.19 offers for an H100, an A100 and an L40S, according to
 * tests/cuda_emulator/cudnn_plans.cc, which needs no device: in f32 everything but INPUT followed
 * by a bias; in bf16 FORWARD and INPUT without bias, and FORWARD with a bf16 bias. Nothing reads
 * bf16 and writes f32, so conv.cu computes a bf16 weight's gradient, and bf16 images with a bias
 * of another dtype.
 *
 * Leaves out: attention (attention.cu says why); plans chosen by measurement. For one thread at a
 * time, as gemm.cu. */
#include "cudnn.cuh"
#include <cstdio>
#include <cstdlib>
#if defined(SZ_EMULATE)
#include "emulate_cudnn.h"
#define HAVE_CUDNN 1
#elif defined(__has_include)
#if __has_include(<cudnn.h>)
#include <cudnn.h>
#include <dlfcn.h>
/* Since 9.8 a device that is not present can be described. */
#if CUDNN_VERSION >= 90800 && CUDNN_MAJOR == 9
#define HAVE_CUDNN 1
#endif
#endif
#endif

#ifndef HAVE_CUDNN
int sz_cudnn_conv(sz_conv_kind, const sz_conv &, int, const void *, const void *, const void *,
                  const sz_tensor *)
{
    return SZ_CUDNN_NONE;
}

const char *sz_cudnn_describe(void)
{
    return "cudnn: not built in (there was no cudnn.h of 9.8 or later); "
           "convolutions run as matrix products\n";
}
#else

typedef cudnnBackendDescriptor_t descriptor;

/* ---- the library ---- */
#define FUNCTIONS(F) \
    F(cudnnCreate) \
    F(cudnnSetStream) \
    F(cudnnGetVersion) \
    F(cudnnGetErrorString) \
    F(cudnnGetLastErrorString) \
    F(cudnnBackendCreateDescriptor) \
    F(cudnnBackendDestroyDescriptor) \
    F(cudnnBackendSetAttribute) \
    F(cudnnBackendGetAttribute) \
    F(cudnnBackendFinalize) \
    F(cudnnBackendExecute)
static struct {
#define F(name) decltype(&::name) name;
    FUNCTIONS(F)
#undef F
} lib;
static enum { UNKNOWN, ABSENT, OPEN } state;
static cudnnHandle_t handle; /* created when something is to be run */
/* A described device for which plans are made that cannot be run (cudnn_plans.cc), or NULL. */
static descriptor described_device;
static bool tf32;
/* The first reason why cuDNN is not used, or not for some convolutions. */
static char problem[640];

/* Opens the library at the first call. Returns false if it is not to be used. */
static bool opened(void)
{
    if (state != UNKNOWN) return state == OPEN;
    state = ABSENT;
    if (sz_cuda_env_is("SEGZERO_CUDNN", '0')) return false;
    tf32 = sz_cuda_env_is("SEGZERO_TF32", '1');
#ifdef SZ_EMULATE
#define F(name) lib.name = name;
    FUNCTIONS(F)
#undef F
#else
    /* cuDNN opens libcudnn_graph.so.9 at its first call, and aborts the process if that is
     * missing. */
    void *library = dlopen("libcudnn.so.9", RTLD_NOW | RTLD_LOCAL);
    void *graph_library = NULL;
    if (library) graph_library = dlopen("libcudnn_graph.so.9", RTLD_NOW | RTLD_LOCAL);
    if (!graph_library) {
        snprintf(problem, sizeof problem, "%s", dlerror());
        return false;
    }
#define F(name) \
    if (!(lib.name = (decltype(lib.name))dlsym(library, #name))) { \
        snprintf(problem, sizeof problem, "libcudnn.so.9 has no " #name); \
        return false; \
    }
    FUNCTIONS(F)
#undef F
#endif
    state = OPEN;
    return true;
}

/* Returns a status as text, followed by the library's own last message; borrowed until the next
 * call. */
static const char *status_text(cudnnStatus_t s)
{
    static char text[480];
    char more[360] = "";
    lib.cudnnGetLastErrorString(more, sizeof more);
    more[strcspn(more, "\n")] = 0;
    snprintf(text, sizeof text, "%s%s%s", lib.cudnnGetErrorString(s), more[0] ? ": " : "", more);
    return text;
}

/* Warns, once, that cuDNN is present but does not do everything. */
static void warn_unused(const char *what, const char *why)
{
    if (problem[0]) return;
    snprintf(problem, sizeof problem, "%s: %s", what, why);
    fprintf(stderr, "segzero: cudnn: %s; what it does not do runs as matrix products\n", problem);
}

/* Creates the handle at the first call. Without one, cuDNN is not used at all. */
static bool ready(void)
{
    if (handle) return true;
    cudnnStatus_t s = lib.cudnnCreate(&handle);
    if (s == CUDNN_STATUS_SUCCESS) s = lib.cudnnSetStream(handle, sz_cuda_stream());
    if (s == CUDNN_STATUS_SUCCESS) return true;
    warn_unused("no handle", status_text(s));
    handle = NULL;
    state = ABSENT;
    return false;
}

const char *sz_cudnn_describe(void)
{
    static char text[720];
    if (opened() && ready()) {
        const size_t v = lib.cudnnGetVersion();
        snprintf(text, sizeof text, "cudnn: %zu.%zu.%zu, for convolutions\n", v / 10000,
                 v / 100 % 100, v % 100);
        return text;
    }
    const char *why = problem;
    if (sz_cuda_env_is("SEGZERO_CUDNN", '0')) why = "left out (SEGZERO_CUDNN=0)";
    snprintf(text, sizeof text, "cudnn: %s; convolutions run as matrix products\n", why);
    return text;
}

/* ---- descriptors ---- */
/* The descriptors of one graph, which live as long as its plan. The first failure is kept in
 * status, and everything after it does nothing. */
enum { MAX_PARTS = 16, ENGINES = 64, NOTES = 16 };
struct graph {
    descriptor part[MAX_PARTS];
    descriptor operation[2];
    int count, operations;
    cudnnStatus_t status;
};

static bool is_ok(const graph *g) { return g->status == CUDNN_STATUS_SUCCESS; }

static descriptor make(graph *g, cudnnBackendDescriptorType_t type)
{
    descriptor d = NULL;
    if (!is_ok(g)) return NULL;
    SZ_ASSERT(g->count < MAX_PARTS, "a graph of cuDNN has too many parts");
    g->status = lib.cudnnBackendCreateDescriptor(type, &d);
    if (is_ok(g)) g->part[g->count++] = d;
    return d;
}

static void set(graph *g, descriptor d, cudnnBackendAttributeName_t name,
                cudnnBackendAttributeType_t type, int64_t count, const void *values)
{
    if (is_ok(g)) g->status = lib.cudnnBackendSetAttribute(d, name, type, count, values);
}

static void set_part(graph *g, descriptor d, cudnnBackendAttributeName_t name, descriptor part)
{
    set(g, d, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &part);
}

static descriptor finish(graph *g, descriptor d)
{
    if (is_ok(g)) g->status = lib.cudnnBackendFinalize(d);
    return d;
}

static void destroy_parts(graph *g)
{
    while (g->count > 0) lib.cudnnBackendDestroyDescriptor(g->part[--g->count]);
}

static cudnnDataType_t type_of(int dtype)
{
    return dtype == SZ_BF16 ? CUDNN_DATA_BFLOAT16 : CUDNN_DATA_FLOAT;
}

/* Describes a tensor of shape [n, h, w, c]; cuDNN names shapes n, c, h, w whatever the order in
 * memory. `align` is the address's alignment, if that is less than an element's. A virtual tensor
 * never exists in memory. */
static descriptor tensor(graph *g, int64_t id, int dtype, int64_t align, int64_t n, int64_t h,
                         int64_t w, int64_t c, bool is_virtual = false)
{
    const int64_t shape[4] = { n, c, h, w };
    const int64_t stride[4] = { h * w * c, 1, w * c, c };
    const cudnnDataType_t type = type_of(dtype);
    const int64_t element = (int64_t)sz_dtype_size(dtype);
    const int64_t alignment = align < element ? element : align;
    descriptor d = make(g, CUDNN_BACKEND_TENSOR_DESCRIPTOR);
    set(g, d, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type);
    set(g, d, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, shape);
    set(g, d, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, stride);
    set(g, d, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &id);
    set(g, d, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &alignment);
    if (is_virtual) set(g, d, CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1, &is_virtual);
    return finish(g, d);
}

/* ---- the operation graph of a convolution ---- */
/* What a plan depends on. */
struct conv_key {
    sz_conv g;
    int32_t kind, dtype, biased, bias_dtype, align, unused;
};
enum { X = 1, W, Y, BIAS, SUMS }; /* the tensors' ids */

/* cuDNN's names for the parts of the three operations, in the order of sz_conv_kind. */
#define PARTS(op, prefix, x, w, y) \
    { \
        CUDNN_BACKEND_OPERATION_CONVOLUTION_##op##_DESCRIPTOR, \
            CUDNN_ATTR_OPERATION_CONVOLUTION_##prefix##_##x, \
            CUDNN_ATTR_OPERATION_CONVOLUTION_##prefix##_##w, \
            CUDNN_ATTR_OPERATION_CONVOLUTION_##prefix##_##y, \
            CUDNN_ATTR_OPERATION_CONVOLUTION_##prefix##_CONV_DESC, \
            CUDNN_ATTR_OPERATION_CONVOLUTION_##prefix##_ALPHA, \
            CUDNN_ATTR_OPERATION_CONVOLUTION_##prefix##_BETA \
    }
static const struct {
    cudnnBackendDescriptorType_t type;
    cudnnBackendAttributeName_t x, w, y, conv, alpha, beta;
} names[3] = {
    PARTS(FORWARD, FORWARD, X, W, Y),
    PARTS(BACKWARD_DATA, BWD_DATA, DX, W, DY),
    PARTS(BACKWARD_FILTER, BWD_FILTER, X, DW, DY),
};
#undef PARTS

static const cudnnDataType_t f32 = CUDNN_DATA_FLOAT;

/* Strides, padding, and sums in f32. */
static descriptor describe_geometry(graph *g, const sz_conv &c)
{
    const cudnnConvolutionMode_t mode = CUDNN_CROSS_CORRELATION;
    const int64_t dims = 2;
    const int64_t padding[2] = { c.padding, c.padding };
    const int64_t stride[2] = { c.stride, c.stride };
    const int64_t one[2] = { 1, 1 };
    descriptor conv = make(g, CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR);
    set(g, conv, CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, CUDNN_TYPE_INT64, 1, &dims);
    set(g, conv, CUDNN_ATTR_CONVOLUTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &f32);
    set(g, conv, CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_TYPE_CONVOLUTION_MODE, 1, &mode);
    set(g, conv, CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, CUDNN_TYPE_INT64, 2, padding);
    set(g, conv, CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, CUDNN_TYPE_INT64, 2, padding);
    set(g, conv, CUDNN_ATTR_CONVOLUTION_DILATIONS, CUDNN_TYPE_INT64, 2, one);
    set(g, conv, CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, CUDNN_TYPE_INT64, 2, stride);
    return finish(g, conv);
}

/* Appends the operation y = sums + bias. */
static void describe_bias(graph *g, const conv_key &key, descriptor sums, descriptor y)
{
    const cudnnPointwiseMode_t mode = CUDNN_POINTWISE_ADD;
    descriptor add = make(g, CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
    descriptor bias = tensor(g, BIAS, key.bias_dtype, key.align, 1, 1, 1, key.g.o);
    set(g, add, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &mode);
    set(g, add, CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, 1, &f32);
    finish(g, add);
    descriptor op = make(g, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
    set_part(g, op, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, add);
    set_part(g, op, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, sums);
    set_part(g, op, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, bias);
    set_part(g, op, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, y);
    g->operation[g->operations++] = finish(g, op);
}

/* Returns the operation graph of a convolution. */
static descriptor describe(graph *g, const conv_key &key)
{
    const sz_conv &c = key.g;
    const float alpha = 1;
    const float beta = 0;
    const auto &name = names[key.kind];
    descriptor conv = describe_geometry(g, c);
    descriptor x = tensor(g, X, key.dtype, key.align, c.batch, c.h, c.w, c.c);
    descriptor w = tensor(g, W, key.dtype, key.align, c.o, c.kh, c.kw, c.c);
    descriptor y = tensor(g, Y, key.dtype, key.align, c.batch, c.oh, c.ow, c.o);
    /* With a bias, the sums go to a virtual f32 tensor. */
    descriptor sums = y;
    if (key.biased) sums = tensor(g, SUMS, SZ_F32, 16, c.batch, c.oh, c.ow, c.o, true);
    descriptor op = make(g, name.type);
    set_part(g, op, name.x, x);
    set_part(g, op, name.w, w);
    set_part(g, op, name.y, sums);
    set_part(g, op, name.conv, conv);
    set(g, op, name.alpha, CUDNN_TYPE_FLOAT, 1, &alpha);
    set(g, op, name.beta, CUDNN_TYPE_FLOAT, 1, &beta);
    g->operation[g->operations++] = finish(g, op);
    if (key.biased) describe_bias(g, key, sums, y);

    descriptor all = make(g, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
    set(g, all, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, g->operations,
        g->operation);
    if (!described_device)
        set(g, all, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, &handle);
    return finish(g, all);
}

/* ---- choosing an execution plan ---- */
static const int64_t WORKSPACE = (int64_t)256 << 20;
enum { TABLE = 256 };

struct plan_entry {
    conv_key key;
    bool used;
    graph parts;
    descriptor plan;       /* NULL: cuDNN has none */
    cudnnStatus_t trouble; /* an error on the way, if that is why there is no plan */
    struct {
        int64_t engine, workspace;
        int64_t offered; /* engines that were offered up to this one */
    } choice;
};
static plan_entry *table;

/* Keeps a status unless it is 3000 or more: that cuDNN does not support something is an answer,
 * not an error. */
static void keep_trouble(plan_entry *e, cudnnStatus_t s)
{
    if (s != CUDNN_STATUS_SUCCESS && s / 1000 != CUDNN_STATUS_NOT_SUPPORTED / 1000) e->trouble = s;
}

static bool is_note_refused(cudnnBackendNumericalNote_t note, int dtype)
{
    switch (note) {
    case CUDNN_NUMERICAL_NOTE_STRICT_NAN_PROP: return false;
    case CUDNN_NUMERICAL_NOTE_TENSOR_CORE: return dtype == SZ_F32 && !tf32;
    case CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS: return dtype != SZ_F32 || !tf32;
    default: return true;
    }
}

/* Whether an engine's notes name something that we refuse; true also if it gives no notes. */
static bool is_refused(descriptor engine, int dtype)
{
    int64_t n = 0;
    cudnnBackendNumericalNote_t numerical[NOTES];
    cudnnStatus_t s = lib.cudnnBackendGetAttribute(engine, CUDNN_ATTR_ENGINE_NUMERICAL_NOTE,
                                                   CUDNN_TYPE_NUMERICAL_NOTE, NOTES, &n, numerical);
    if (s != CUDNN_STATUS_SUCCESS || n > NOTES) return true;
    for (int64_t i = 0; i < n; i++)
        if (is_note_refused(numerical[i], dtype)) return true;

    cudnnBackendBehaviorNote_t behaviour[NOTES];
    s = lib.cudnnBackendGetAttribute(engine, CUDNN_ATTR_ENGINE_BEHAVIOR_NOTE,
                                     CUDNN_TYPE_BEHAVIOR_NOTE, NOTES, &n, behaviour);
    if (s != CUDNN_STATUS_SUCCESS || n > NOTES) return true;
    for (int64_t i = 0; i < n; i++)
        if (behaviour[i] == CUDNN_BEHAVIOR_NOTE_RUNTIME_COMPILATION) return true;
    return false;
}

/* Makes the execution plan of an accepted engine, and sets e->choice. */
static descriptor make_plan(graph *own, descriptor configuration, descriptor engine, plan_entry *e)
{
    int64_t n = 0;
    lib.cudnnBackendGetAttribute(engine, CUDNN_ATTR_ENGINE_GLOBAL_INDEX, CUDNN_TYPE_INT64, 1, &n,
                                 &e->choice.engine);
    descriptor plan = make(own, CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
    set_part(own, plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, configuration);
    if (described_device)
        set_part(own, plan, CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, described_device);
    else set(own, plan, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1, &handle);
    finish(own, plan);
    if (is_ok(own))
        own->status = lib.cudnnBackendGetAttribute(plan, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE,
                                                   CUDNN_TYPE_INT64, 1, &n, &e->choice.workspace);
    return plan;
}

/* Returns the execution plan of this configuration, with its parts in *own. NULL, and *own
 * emptied, if we refuse the engine or cuDNN cannot make the plan. */
static descriptor plan_of(descriptor configuration, plan_entry *e, graph *own)
{
    int64_t n = 0;
    descriptor engine = make(own, CUDNN_BACKEND_ENGINE_DESCRIPTOR);
    if (is_ok(own))
        own->status = lib.cudnnBackendGetAttribute(configuration, CUDNN_ATTR_ENGINECFG_ENGINE,
                                                   CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &n, &engine);
    if (is_ok(own) && !is_refused(engine, e->key.dtype)) {
        descriptor plan = make_plan(own, configuration, engine, e);
        if (is_ok(own) && e->choice.workspace <= WORKSPACE) return plan;
    }
    keep_trouble(e, own->status);
    destroy_parts(own);
    return NULL;
}

/* Creates up to ENGINES configuration descriptors; returns how many. */
static int make_configurations(graph *asked, descriptor *configuration)
{
    int made = 0;
    while (is_ok(asked) && made < ENGINES) {
        asked->status = lib.cudnnBackendCreateDescriptor(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR,
                                                         &configuration[made]);
        if (!is_ok(asked)) break;
        made++;
    }
    return made;
}

/* Puts into *e the first acceptable plan of those that the heuristics offer in this mode. */
static void choose(plan_entry *e, descriptor operations, cudnnBackendHeurMode_t mode)
{
    /* Ask the heuristics. */
    graph asked = {};
    descriptor heuristics = make(&asked, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
    set_part(&asked, heuristics, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, operations);
    set(&asked, heuristics, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode);
    if (described_device)
        set_part(&asked, heuristics, CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, described_device);
    finish(&asked, heuristics);
    descriptor configuration[ENGINES];
    const int made = make_configurations(&asked, configuration);
    int64_t n = 0;
    if (is_ok(&asked))
        asked.status = lib.cudnnBackendGetAttribute(heuristics, CUDNN_ATTR_ENGINEHEUR_RESULTS,
                                                    CUDNN_TYPE_BACKEND_DESCRIPTOR, ENGINES, &n,
                                                    configuration);
    if (n > ENGINES) n = ENGINES;

    /* Take the first that will do. */
    graph parts = {};
    int64_t chosen = -1;
    for (int64_t i = 0; is_ok(&asked) && i < n && chosen < 0; i++) {
        parts = {};
        e->choice.offered++;
        e->plan = plan_of(configuration[i], e, &parts);
        if (e->plan) chosen = i;
    }

    /* The plan keeps its own parts and its configuration; everything else goes. */
    for (int i = 0; i < made; i++)
        if (i != chosen) lib.cudnnBackendDestroyDescriptor(configuration[i]);
    if (chosen >= 0) {
        SZ_ASSERT(e->parts.count + parts.count + 1 <= MAX_PARTS,
                  "a plan of cuDNN has too many parts");
        for (int i = 0; i < parts.count; i++) e->parts.part[e->parts.count++] = parts.part[i];
        e->parts.part[e->parts.count++] = configuration[chosen];
    }
    keep_trouble(e, asked.status);
    destroy_parts(&asked);
}

/* Finds or makes the plan of a key. Returns 0 with *found, -1 with a message, or SZ_CUDNN_NONE. */
static int plan_for(const conv_key &key, plan_entry **found)
{
    if (!table && !(table = (plan_entry *)calloc(TABLE, sizeof *table)))
        return sz_fail("no memory for the convolutions' table");
    plan_entry *e = sz_cuda_hash_slot(table, (int)TABLE, key);
    *found = e;
    if (e->used && memcmp(&e->key, &key, sizeof key) == 0) return e->plan ? 0 : SZ_CUDNN_NONE;

    /* A new key evicts what the slot had. */
    destroy_parts(&e->parts);
    memset(e, 0, sizeof *e);
    e->key = key;
    e->used = true;
    descriptor operations = describe(&e->parts, key);
    keep_trouble(e, e->parts.status);
    if (is_ok(&e->parts)) choose(e, operations, CUDNN_HEUR_MODE_A);
    if (is_ok(&e->parts) && !e->plan) choose(e, operations, CUDNN_HEUR_MODE_FALLBACK);
    if (e->plan) return 0;

    /* cuDNN offers nothing, without an error, if its heuristics or engine libraries are missing. */
    if (e->trouble != CUDNN_STATUS_SUCCESS)
        warn_unused("no plan for a convolution", status_text(e->trouble));
    else if (!e->choice.offered && !key.biased)
        warn_unused("no plan for a convolution",
                    "no engine is offered "
                    "(are libcudnn_heuristic and libcudnn_engines_precompiled there?)");
    destroy_parts(&e->parts);
    return SZ_CUDNN_NONE;
}

static conv_key key_of(sz_conv_kind kind, const sz_conv &g, int dtype, bool biased, int bias_dtype,
                       int align)
{
    conv_key key;
    memset(&key, 0, sizeof key);
    key.g = g;
    key.kind = kind;
    key.dtype = dtype;
    key.biased = biased;
    key.bias_dtype = bias_dtype;
    key.align = align;
    return key;
}

/* ---- running ---- */
/* Describes the addresses that a plan runs on; workspace is NULL if the plan takes none. */
static descriptor pack_addresses(graph *own, const void *x, const void *w, const void *y,
                                 const void *bias, void *workspace)
{
    const int64_t id[4] = { X, W, Y, BIAS };
    const void *address[4] = { x, w, y, bias };
    const int64_t count = bias ? 4 : 3;
    descriptor pack = make(own, CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
    set(own, pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, count, id);
    set(own, pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, count, address);
    set(own, pack, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &workspace);
    return finish(own, pack);
}

/* cuDNN before 9.3 could not reach elements past 2^31, so conv.cu takes such tensors with every
 * version. cuDNN knows no empty tensors. */
static bool fits(const sz_conv &g)
{
    const int64_t x = g.batch * g.h * g.w * g.c;
    const int64_t w = g.o * g.k;
    const int64_t y = g.batch * g.oh * g.ow * g.o;
    return x > 0 && w > 0 && y > 0 && x <= INT32_MAX && w <= INT32_MAX && y <= INT32_MAX;
}

int sz_cudnn_conv(sz_conv_kind kind, const sz_conv &g, int dtype, const void *x, const void *w,
                  const void *y, const sz_tensor *bias)
{
    if (!fits(g) || !opened() || !ready()) return SZ_CUDNN_NONE;

    /* The alignment that all addresses share. */
    const void *bias_data = bias ? bias->data : NULL;
    const int bias_dtype = bias ? (int)bias->dtype : (int)SZ_F32;
    const uintptr_t low = (uintptr_t)x | (uintptr_t)w | (uintptr_t)y | (uintptr_t)bias_data;
    int align = low % 4 == 0 ? 4 : 2;
    if (low % 16 == 0) align = 16;

    plan_entry *e = NULL;
    const int rc = plan_for(key_of(kind, g, dtype, bias != NULL, bias_dtype, align), &e);
    if (rc != 0) return rc;
    void *workspace = NULL;
    if (e->choice.workspace > 0) {
        workspace = sz_cuda_scratch((size_t)e->choice.workspace);
        if (!workspace) return -1;
    }
    graph own = {};
    descriptor pack = pack_addresses(&own, x, w, y, bias_data, workspace);
    if (is_ok(&own)) own.status = lib.cudnnBackendExecute(handle, e->plan, pack);
    int failed = 0;
    if (!is_ok(&own)) failed = sz_fail("cudnn: a convolution: %s", status_text(own.status));
    destroy_parts(&own);
    return failed;
}
#endif
