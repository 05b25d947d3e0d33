/* cudnn.cu - convolutions by cuDNN: finding it, a plan for each shape, running it. Shapes: cudnn.cuh.
 *
 * libcudnn.so.9 is opened at the first convolution. Where it is not there, or the build had no cudnn.h, and for what it has no plan for,
 * conv.cu does the work. SEGZERO_CUDNN=0 in the environment leaves it out. Where it is there and does not work (no handle, a library of its own missing,
 * a description that it does not take), a line on stderr says so once, and conv.cu does the work, too. A failure while running is an error.
 *
 * A convolution is described once to cuDNN's graph interface (pictures and weights with their channels innermost, the bias as a second operation
 * on sums that stay f32). Its heuristics then offer engines, the fastest first by their estimate; the first that is exact and repeatable and
 * is content with WORKSPACE becomes the shape's plan. Not taken: what rounds its inputs (tensor cores for f32, unless SEGZERO_TF32=1), transforms
 * (Winograd, FFT), adds up in an order that is not fixed or in less than f32, or is compiled at run time (0.5 s and more for each shape).
 *
 * What cuDNN 9.19 offers, asked for an H100, an A100 and an L40S by tests/cuda_emulator/cudnn_plans.cc, which needs no device: everything in f32 but a bias behind
 * INPUT; in bf16 FORWARD and INPUT without bias, FORWARD with one of bf16; nothing that reads bf16 and writes f32, so a bf16 weight's gradient is not
 * cuDNN's, nor is a bias of another dtype than bf16 pictures.
 *
 * Leaves out: attention (attention.cu says why); plans that are measured instead of estimated. One thread at a time, as gemm.cu. */
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
#if CUDNN_VERSION >= 90800 && CUDNN_MAJOR == 9      /* from 9.8 on a device can be described that is not there */
#define HAVE_CUDNN 1
#endif
#endif
#endif

#ifndef HAVE_CUDNN
int sz_cudnn_conv(sz_conv_kind, const sz_conv &, int, const void *, const void *, const void *, const sz_tensor *) { return SZ_CUDNN_NONE; }
const char *sz_cudnn_describe(void) { return "cudnn: not built in (there was no cudnn.h of 9.8 or later); convolutions run as matrix products\n"; }
#else

typedef cudnnBackendDescriptor_t descriptor;

/* ---- the library ---- */
#define FUNCTIONS(F) F(cudnnCreate) F(cudnnSetStream) F(cudnnGetVersion) F(cudnnGetErrorString) F(cudnnGetLastErrorString) \
    F(cudnnBackendCreateDescriptor) F(cudnnBackendDestroyDescriptor) F(cudnnBackendSetAttribute) F(cudnnBackendGetAttribute) F(cudnnBackendFinalize) \
    F(cudnnBackendExecute)
static struct {
#define F(name) decltype(&::name) name;
    FUNCTIONS(F)
#undef F
} lib;
static enum { UNKNOWN, ABSENT, OPEN } state;
static cudnnHandle_t handle;            /* made when something is to be run */
static descriptor pretended;            /* a device that is not there, for which plans are made that cannot be run (tests/cuda_emulator/cudnn_plans.cc); or NULL */
static bool tf32;
static char problem[640];               /* why it is not used, or not for some convolutions: the first reason */

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
    /* It opens libcudnn_graph.so.9 at the first call, and aborts the process where that is missing. */
    void *library = dlopen("libcudnn.so.9", RTLD_NOW | RTLD_LOCAL), *graph_library = library ? dlopen("libcudnn_graph.so.9", RTLD_NOW | RTLD_LOCAL) : NULL;
    if (!graph_library) {
        snprintf(problem, sizeof problem, "%s", dlerror());
        return false;
    }
#define F(name) if (!(lib.name = (decltype(lib.name))dlsym(library, #name))) { snprintf(problem, sizeof problem, "libcudnn.so.9 has no " #name); return false; }
    FUNCTIONS(F)
#undef F
#endif
    state = OPEN;
    return true;
}

/* A status in words, the library's own beside its name; borrowed until the next call. */
static const char *words(cudnnStatus_t s)
{
    static char text[480];
    char more[360] = "";
    lib.cudnnGetLastErrorString(more, sizeof more);
    more[strcspn(more, "\n")] = 0;
    snprintf(text, sizeof text, "%s%s%s", lib.cudnnGetErrorString(s), more[0] ? ": " : "", more);
    return text;
}

/* What is done without cuDNN though it is there: said once. */
static void give_up(const char *what, const char *why)
{
    if (problem[0]) return;
    snprintf(problem, sizeof problem, "%s: %s", what, why);
    fprintf(stderr, "segzero: cudnn: %s; what it does not do runs as matrix products\n", problem);
}

/* Has a handle, made at the first call. Without one all convolutions are done without cuDNN. */
static bool ready(void)
{
    if (handle) return true;
    cudnnStatus_t s = lib.cudnnCreate(&handle);
    if (s == CUDNN_STATUS_SUCCESS) s = lib.cudnnSetStream(handle, sz_cuda_stream());
    if (s == CUDNN_STATUS_SUCCESS) return true;
    give_up("no handle", words(s));
    handle = NULL;
    state = ABSENT;
    return false;
}

const char *sz_cudnn_describe(void)
{
    static char text[720];
    if (opened() && ready()) {
        const size_t v = lib.cudnnGetVersion();
        snprintf(text, sizeof text, "cudnn: %zu.%zu.%zu, for convolutions\n", v / 10000, v / 100 % 100, v % 100);
        return text;
    }
    snprintf(text, sizeof text, "cudnn: %s; convolutions run as matrix products\n", sz_cuda_env_is("SEGZERO_CUDNN", '0') ? "left out (SEGZERO_CUDNN=0)" : problem);
    return text;
}

/* ---- describing ---- */
/* The descriptors of one graph, which live as long as its plan. The first failure stays, and what follows it does nothing. */
enum { MADE = 16, ENGINES = 64, NOTES = 16 };
struct graph {
    descriptor made[MADE], operation[2];
    int count, operations;
    cudnnStatus_t status;
};

static descriptor make(graph *g, cudnnBackendDescriptorType_t type)
{
    descriptor d = NULL;
    if (g->status != CUDNN_STATUS_SUCCESS) return NULL;
    SZ_ASSERT(g->count < MADE, "a graph of cuDNN has too many parts");
    g->status = lib.cudnnBackendCreateDescriptor(type, &d);
    if (g->status == CUDNN_STATUS_SUCCESS) g->made[g->count++] = d;
    return d;
}

static void set(graph *g, descriptor d, cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t count, const void *values)
{
    if (g->status == CUDNN_STATUS_SUCCESS) g->status = lib.cudnnBackendSetAttribute(d, name, type, count, values);
}

static void set_part(graph *g, descriptor d, cudnnBackendAttributeName_t name, descriptor part) { set(g, d, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &part); }

static descriptor finish(graph *g, descriptor d)
{
    if (g->status == CUDNN_STATUS_SUCCESS) g->status = lib.cudnnBackendFinalize(d);
    return d;
}

static void drop(graph *g)
{
    while (g->count > 0) lib.cudnnBackendDestroyDescriptor(g->made[--g->count]);
}

static cudnnDataType_t type_of(int dtype) { return dtype == SZ_BF16 ? CUDNN_DATA_BFLOAT16 : CUDNN_DATA_FLOAT; }

/* A tensor of shape [n, h, w, c], which cuDNN calls n, c, h, w whatever the order in memory. align: of its address, if not that of its elements.
 * passing: it is never in memory. */
static descriptor tensor(graph *g, int64_t id, int dtype, int64_t align, int64_t n, int64_t h, int64_t w, int64_t c, bool passing = false)
{
    const int64_t shape[4] = { n, c, h, w }, stride[4] = { h * w * c, 1, w * c, c };
    const cudnnDataType_t type = type_of(dtype);
    const int64_t element = (int64_t)sz_dtype_size(dtype), least = align < element ? element : align;
    descriptor d = make(g, CUDNN_BACKEND_TENSOR_DESCRIPTOR);
    set(g, d, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type);
    set(g, d, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, shape);
    set(g, d, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, stride);
    set(g, d, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &id);
    set(g, d, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &least);
    if (passing) set(g, d, CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1, &passing);
    return finish(g, d);
}

/* What a plan depends on. */
struct conv_key {
    sz_conv g;
    int32_t kind, dtype, biased, bias_dtype, align, unused;
};
enum { X = 1, W, Y, BIAS, SUMS };        /* the tensors' ids */

/* The names of the three operations' parts, in the order of sz_conv_kind. */
static const struct {
    cudnnBackendDescriptorType_t type;
    cudnnBackendAttributeName_t x, w, y, conv, alpha, beta;
} names[3] = {
    { CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W,
      CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC,
      CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA },
    { CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DX, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_W,
      CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DY, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC,
      CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_ALPHA, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_BETA },
    { CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_X, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DW,
      CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DY, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_CONV_DESC,
      CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_ALPHA, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_BETA } };

/* The operation graph of a convolution. */
static descriptor describe(graph *g, const conv_key &key)
{
    const sz_conv &c = key.g;
    const cudnnDataType_t f32 = CUDNN_DATA_FLOAT;
    const cudnnConvolutionMode_t mode = CUDNN_CROSS_CORRELATION;
    const int64_t dims = 2, padding[2] = { c.padding, c.padding }, stride[2] = { c.stride, c.stride }, one[2] = { 1, 1 };
    const float alpha = 1, beta = 0;
    const bool biased = key.biased != 0;

    descriptor conv = make(g, CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR);
    set(g, conv, CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, CUDNN_TYPE_INT64, 1, &dims);
    set(g, conv, CUDNN_ATTR_CONVOLUTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &f32);
    set(g, conv, CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_TYPE_CONVOLUTION_MODE, 1, &mode);
    set(g, conv, CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, CUDNN_TYPE_INT64, 2, padding);
    set(g, conv, CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, CUDNN_TYPE_INT64, 2, padding);
    set(g, conv, CUDNN_ATTR_CONVOLUTION_DILATIONS, CUDNN_TYPE_INT64, 2, one);
    set(g, conv, CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, CUDNN_TYPE_INT64, 2, stride);
    finish(g, conv);

    descriptor x = tensor(g, X, key.dtype, key.align, c.batch, c.h, c.w, c.c), w = tensor(g, W, key.dtype, key.align, c.o, c.kh, c.kw, c.c);
    descriptor y = tensor(g, Y, key.dtype, key.align, c.batch, c.oh, c.ow, c.o);
    descriptor sums = biased ? tensor(g, SUMS, SZ_F32, 16, c.batch, c.oh, c.ow, c.o, true) : y;
    descriptor op = make(g, names[key.kind].type);
    set_part(g, op, names[key.kind].x, x);
    set_part(g, op, names[key.kind].w, w);
    set_part(g, op, names[key.kind].y, sums);
    set_part(g, op, names[key.kind].conv, conv);
    set(g, op, names[key.kind].alpha, CUDNN_TYPE_FLOAT, 1, &alpha);
    set(g, op, names[key.kind].beta, CUDNN_TYPE_FLOAT, 1, &beta);
    g->operation[g->operations++] = finish(g, op);

    if (biased) {
        const cudnnPointwiseMode_t sum = CUDNN_POINTWISE_ADD;
        descriptor add = make(g, CUDNN_BACKEND_POINTWISE_DESCRIPTOR), bias = tensor(g, BIAS, key.bias_dtype, key.align, 1, 1, 1, c.o);
        set(g, add, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &sum);
        set(g, add, CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, 1, &f32);
        finish(g, add);
        op = make(g, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
        set_part(g, op, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, add);
        set_part(g, op, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, sums);
        set_part(g, op, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, bias);
        set_part(g, op, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, y);
        g->operation[g->operations++] = finish(g, op);
    }
    descriptor all = make(g, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
    set(g, all, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, g->operations, g->operation);
    if (!pretended) set(g, all, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, &handle);
    return finish(g, all);
}

/* ---- choosing ---- */
static const int64_t WORKSPACE = (int64_t)256 << 20;
enum { TABLE = 256 };

struct plan_entry {
    conv_key key;
    bool used;
    graph parts;
    descriptor plan;                /* NULL: cuDNN has none */
    cudnnStatus_t trouble;          /* what kept it from having one, other than that it has none */
    struct { int64_t engine, workspace, seen; } choice;     /* seen: how many were offered up to this one */
};
static plan_entry *table;

/* 3000 and more: that it cannot do this is an answer. */
static void keep_trouble(plan_entry *e, cudnnStatus_t s)
{
    if (s != CUDNN_STATUS_SUCCESS && s / 1000 != CUDNN_STATUS_NOT_SUPPORTED / 1000) e->trouble = s;
}

/* What an engine says of itself that we cannot have. */
static bool refused(descriptor engine, int dtype)
{
    cudnnBackendNumericalNote_t number[NOTES];
    cudnnBackendBehaviorNote_t behaviour[NOTES];
    int64_t n = 0;
    if (lib.cudnnBackendGetAttribute(engine, CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE, NOTES, &n, number) != CUDNN_STATUS_SUCCESS || n > NOTES)
        return true;
    for (int64_t i = 0; i < n; i++)
        switch (number[i]) {
        case CUDNN_NUMERICAL_NOTE_STRICT_NAN_PROP: break;
        case CUDNN_NUMERICAL_NOTE_TENSOR_CORE:
            if (dtype == SZ_F32 && !tf32) return true;
            break;
        case CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS:
            if (dtype != SZ_F32 || !tf32) return true;
            break;
        default: return true;
        }
    if (lib.cudnnBackendGetAttribute(engine, CUDNN_ATTR_ENGINE_BEHAVIOR_NOTE, CUDNN_TYPE_BEHAVIOR_NOTE, NOTES, &n, behaviour) != CUDNN_STATUS_SUCCESS || n > NOTES)
        return true;
    for (int64_t i = 0; i < n; i++)
        if (behaviour[i] == CUDNN_BEHAVIOR_NOTE_RUNTIME_COMPILATION) return true;
    return false;
}

/* An execution plan of this configuration, or NULL. What was made for it is dropped then. */
static descriptor plan_of(descriptor configuration, plan_entry *e, graph *own)
{
    int64_t n = 0;
    descriptor engine = make(own, CUDNN_BACKEND_ENGINE_DESCRIPTOR), plan = NULL;
    if (own->status == CUDNN_STATUS_SUCCESS)
        own->status = lib.cudnnBackendGetAttribute(configuration, CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &n, &engine);
    if (own->status == CUDNN_STATUS_SUCCESS && !refused(engine, e->key.dtype)) {
        lib.cudnnBackendGetAttribute(engine, CUDNN_ATTR_ENGINE_GLOBAL_INDEX, CUDNN_TYPE_INT64, 1, &n, &e->choice.engine);
        plan = make(own, CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
        set_part(own, plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, configuration);
        if (pretended) set_part(own, plan, CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, pretended);
        else set(own, plan, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1, &handle);
        finish(own, plan);
        if (own->status == CUDNN_STATUS_SUCCESS)
            own->status = lib.cudnnBackendGetAttribute(plan, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1, &n, &e->choice.workspace);
        if (own->status == CUDNN_STATUS_SUCCESS && e->choice.workspace <= WORKSPACE) return plan;
    }
    keep_trouble(e, own->status);
    drop(own);
    return NULL;
}

/* The first that will do of what the heuristics offer in this mode: into e. */
static void offered(plan_entry *e, descriptor operations, cudnnBackendHeurMode_t mode)
{
    graph asked = {}, list = {};
    int64_t n = 0;
    descriptor heuristics = make(&asked, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR), configuration[ENGINES];
    set_part(&asked, heuristics, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, operations);
    set(&asked, heuristics, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode);
    if (pretended) set_part(&asked, heuristics, CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, pretended);
    finish(&asked, heuristics);
    int made = 0;
    for (; asked.status == CUDNN_STATUS_SUCCESS && made < ENGINES; made++)
        if ((asked.status = lib.cudnnBackendCreateDescriptor(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR, &configuration[made])) != CUDNN_STATUS_SUCCESS) break;
    if (asked.status == CUDNN_STATUS_SUCCESS)
        asked.status = lib.cudnnBackendGetAttribute(heuristics, CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR, ENGINES, &n, configuration);
    int64_t chosen = -1;
    for (int64_t i = 0; asked.status == CUDNN_STATUS_SUCCESS && i < n && i < ENGINES && chosen < 0; i++) {
        list = {};
        e->choice.seen++;
        e->plan = plan_of(configuration[i], e, &list);
        if (e->plan) chosen = i;
    }
    /* The plan's own parts and its configuration stay with it. */
    for (int i = 0; i < made; i++)
        if (i != chosen) lib.cudnnBackendDestroyDescriptor(configuration[i]);
    if (chosen >= 0) {
        SZ_ASSERT(e->parts.count + list.count + 1 <= MADE, "a plan of cuDNN has too many parts");
        for (int i = 0; i < list.count; i++) e->parts.made[e->parts.count++] = list.made[i];
        e->parts.made[e->parts.count++] = configuration[chosen];
    }
    keep_trouble(e, asked.status);
    drop(&asked);
}

/* The plan of a key: 0 with *found, -1 with a message, SZ_CUDNN_NONE. */
static int plan_for(const conv_key &key, plan_entry **found)
{
    if (!table && !(table = (plan_entry *)calloc(TABLE, sizeof *table))) return sz_fail("no memory for the convolutions' table");
    plan_entry *e = sz_cuda_hash_slot(table, (int)TABLE, key);
    *found = e;
    if (e->used && memcmp(&e->key, &key, sizeof key) == 0) return e->plan ? 0 : SZ_CUDNN_NONE;
    drop(&e->parts);
    memset(e, 0, sizeof *e);
    e->key = key;
    e->used = true;
    descriptor operations = describe(&e->parts, key);
    keep_trouble(e, e->parts.status);
    if (e->parts.status == CUDNN_STATUS_SUCCESS) offered(e, operations, CUDNN_HEUR_MODE_A);
    if (e->parts.status == CUDNN_STATUS_SUCCESS && !e->plan) offered(e, operations, CUDNN_HEUR_MODE_FALLBACK);
    if (e->plan) return 0;
    if (e->trouble != CUDNN_STATUS_SUCCESS) give_up("no plan for a convolution", words(e->trouble));
    /* What it says of its heuristics or its engines where their libraries are missing: nothing. */
    else if (!e->choice.seen && !key.biased)
        give_up("no plan for a convolution", "no engine is offered (are libcudnn_heuristic and libcudnn_engines_precompiled there?)");
    drop(&e->parts);
    return SZ_CUDNN_NONE;
}

static conv_key key_of(sz_conv_kind kind, const sz_conv &g, int dtype, bool biased, int bias_dtype, int align)
{
    conv_key key;
    memset(&key, 0, sizeof key);
    key.g = g;
    key.kind = kind, key.dtype = dtype, key.biased = biased, key.bias_dtype = bias_dtype, key.align = align;
    return key;
}

/* ---- running ---- */
/* What a plan runs on; a workspace of none is NULL. */
static descriptor packed(graph *own, const void *x, const void *w, const void *y, const void *bias, void *workspace)
{
    const int64_t id[4] = { X, W, Y, BIAS }, count = bias ? 4 : 3;
    const void *address[4] = { x, w, y, bias };
    descriptor pack = make(own, CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
    set(own, pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, count, id);
    set(own, pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, count, address);
    set(own, pack, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &workspace);
    return finish(own, pack);
}

/* Before 9.3 cuDNN could not reach elements past 2^31; such tensors are left to conv.cu with all versions. An empty one is not a tensor to cuDNN. */
static bool fits(const sz_conv &g)
{
    const int64_t x = g.batch * g.h * g.w * g.c, w = g.o * g.k, y = g.batch * g.oh * g.ow * g.o;
    return x > 0 && w > 0 && y > 0 && x <= INT32_MAX && w <= INT32_MAX && y <= INT32_MAX;
}

int sz_cudnn_conv(sz_conv_kind kind, const sz_conv &g, int dtype, const void *x, const void *w, const void *y, const sz_tensor *bias)
{
    if (!fits(g) || !opened() || !ready()) return SZ_CUDNN_NONE;
    const uintptr_t low = (uintptr_t)x | (uintptr_t)w | (uintptr_t)y | (bias ? (uintptr_t)bias->data : 0);
    const int align = low % 16 == 0 ? 16 : low % 4 == 0 ? 4 : 2;
    plan_entry *e = NULL;
    const int rc = plan_for(key_of(kind, g, dtype, bias != NULL, bias ? (int)bias->dtype : (int)SZ_F32, align), &e);
    if (rc != 0) return rc;
    void *workspace = e->choice.workspace > 0 ? sz_cuda_scratch((size_t)e->choice.workspace) : NULL;
    if (e->choice.workspace > 0 && !workspace) return -1;
    graph own = {};
    descriptor pack = packed(&own, x, w, y, bias ? bias->data : NULL, workspace);
    if (own.status == CUDNN_STATUS_SUCCESS) own.status = lib.cudnnBackendExecute(handle, e->plan, pack);
    const int failed = own.status == CUDNN_STATUS_SUCCESS ? 0 : sz_fail("cudnn: a convolution: %s", words(own.status));
    drop(&own);
    return failed;
}
#endif
