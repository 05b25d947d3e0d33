/* emulate_cudnn.cc - cuDNN's graph interface for the emulator (emulate_cudnn.h).
 * Leaves out: what emulate_cudnn.h says. */
#include "emulate_cudnn.h"
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <vector>

struct sz_emu_cudnn_handle {
    cudaStream_t stream;
};

struct attribute {
    cudnnBackendAttributeType_t type;
    int64_t count;
    std::vector<char> bytes;
};

/* Descriptors live as long as the process, because others refer to them. A plan outlasts the
 * descriptors from which it was made, as cuDNN's do. */
struct sz_emu_cudnn_descriptor {
    cudnnBackendDescriptorType_t type;
    bool finished;
    std::map<int, attribute> attributes;
    /* Of an engine, its configuration and its plan. */
    int engine;
    sz_emu_cudnn_descriptor *graph;
};
typedef sz_emu_cudnn_descriptor *descriptor;

/* Engine GOOD is the one to take. */
enum { ENGINES = 4, GOOD = ENGINES - 1 };
/* Bytes of workspace. */
enum : int64_t { SOME = 1000, TOO_MUCH = (int64_t)1 << 40 };

/* ---- attributes ---- */
static size_t size_of(cudnnBackendAttributeType_t type)
{
    switch (type) {
    case CUDNN_TYPE_BOOLEAN:
    case CUDNN_TYPE_CHAR: return 1;
    case CUDNN_TYPE_DATA_TYPE:
    case CUDNN_TYPE_FLOAT:
    case CUDNN_TYPE_CONVOLUTION_MODE:
    case CUDNN_TYPE_HEUR_MODE:
    case CUDNN_TYPE_NUMERICAL_NOTE:
    case CUDNN_TYPE_BEHAVIOR_NOTE:
    case CUDNN_TYPE_POINTWISE_MODE: return 4;
    default: return 8;
    }
}

/* What an attribute must look like; count 0 allows any. */
struct expected {
    int name;
    cudnnBackendAttributeType_t type;
    int64_t count;
    bool needed;
};
#define NEEDED(name, type, count) \
    { \
        CUDNN_ATTR_##name, CUDNN_TYPE_##type, count, true \
    }
#define OPTIONAL(name, type, count) \
    { \
        CUDNN_ATTR_##name, CUDNN_TYPE_##type, count, false \
    }
#define CONV_PARTS(op, x, w, y) \
    NEEDED(OPERATION_CONVOLUTION_##op##_##x, BACKEND_DESCRIPTOR, 1), \
        NEEDED(OPERATION_CONVOLUTION_##op##_##w, BACKEND_DESCRIPTOR, 1), \
        NEEDED(OPERATION_CONVOLUTION_##op##_##y, BACKEND_DESCRIPTOR, 1), \
        NEEDED(OPERATION_CONVOLUTION_##op##_CONV_DESC, BACKEND_DESCRIPTOR, 1), \
        NEEDED(OPERATION_CONVOLUTION_##op##_ALPHA, FLOAT, 1), \
        NEEDED(OPERATION_CONVOLUTION_##op##_BETA, FLOAT, 1)
static const expected known[] = {
    NEEDED(TENSOR_DATA_TYPE, DATA_TYPE, 1),
    NEEDED(TENSOR_DIMENSIONS, INT64, 4),
    NEEDED(TENSOR_STRIDES, INT64, 4),
    NEEDED(TENSOR_UNIQUE_ID, INT64, 1),
    NEEDED(TENSOR_BYTE_ALIGNMENT, INT64, 1),
    OPTIONAL(TENSOR_IS_VIRTUAL, BOOLEAN, 1),
    NEEDED(CONVOLUTION_SPATIAL_DIMS, INT64, 1),
    NEEDED(CONVOLUTION_COMP_TYPE, DATA_TYPE, 1),
    NEEDED(CONVOLUTION_CONV_MODE, CONVOLUTION_MODE, 1),
    NEEDED(CONVOLUTION_PRE_PADDINGS, INT64, 2),
    NEEDED(CONVOLUTION_POST_PADDINGS, INT64, 2),
    NEEDED(CONVOLUTION_DILATIONS, INT64, 2),
    NEEDED(CONVOLUTION_FILTER_STRIDES, INT64, 2),
    NEEDED(POINTWISE_MODE, POINTWISE_MODE, 1),
    NEEDED(POINTWISE_MATH_PREC, DATA_TYPE, 1),
    CONV_PARTS(FORWARD, X, W, Y),
    CONV_PARTS(BWD_DATA, DX, W, DY),
    CONV_PARTS(BWD_FILTER, X, DW, DY),
    NEEDED(OPERATION_POINTWISE_PW_DESCRIPTOR, BACKEND_DESCRIPTOR, 1),
    NEEDED(OPERATION_POINTWISE_XDESC, BACKEND_DESCRIPTOR, 1),
    NEEDED(OPERATION_POINTWISE_BDESC, BACKEND_DESCRIPTOR, 1),
    NEEDED(OPERATION_POINTWISE_YDESC, BACKEND_DESCRIPTOR, 1),
    NEEDED(OPERATIONGRAPH_OPS, BACKEND_DESCRIPTOR, 0),
    NEEDED(OPERATIONGRAPH_HANDLE, HANDLE, 1),
    NEEDED(ENGINEHEUR_OPERATION_GRAPH, BACKEND_DESCRIPTOR, 1),
    NEEDED(ENGINEHEUR_MODE, HEUR_MODE, 1),
    NEEDED(EXECUTION_PLAN_ENGINE_CONFIG, BACKEND_DESCRIPTOR, 1),
    NEEDED(EXECUTION_PLAN_HANDLE, HANDLE, 1),
    NEEDED(VARIANT_PACK_UNIQUE_IDS, INT64, 0),
    NEEDED(VARIANT_PACK_DATA_POINTERS, VOID_PTR, 0),
    NEEDED(VARIANT_PACK_WORKSPACE, VOID_PTR, 1),
};

static int64_t count_of(descriptor d, int name)
{
    auto found = d->attributes.find(name);
    return found == d->attributes.end() ? 0 : found->second.count;
}

/* Returns the attribute's i-th value, of type T. A finished descriptor has every required one. */
template <class T> static T value(descriptor d, int name, int64_t i = 0)
{
    T v;
    memcpy(&v, d->attributes.at(name).bytes.data() + (size_t)i * sizeof v, sizeof v);
    return v;
}

cudnnStatus_t cudnnCreate(cudnnHandle_t *handle)
{
    const char *set = getenv("SEGZERO_EMULATE_CUDNN");
    if (set && strcmp(set, "no_handle") == 0) return CUDNN_STATUS_NOT_INITIALIZED;
    *handle = new sz_emu_cudnn_handle{};
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnSetStream(cudnnHandle_t handle, cudaStream_t stream)
{
    handle->stream = stream;
    return CUDNN_STATUS_SUCCESS;
}

size_t cudnnGetVersion(void) { return 90000; }

const char *cudnnGetErrorString(cudnnStatus_t s)
{
    switch (s) {
    case CUDNN_STATUS_SUCCESS: return "CUDNN_STATUS_SUCCESS";
    case CUDNN_STATUS_NOT_INITIALIZED: return "CUDNN_STATUS_NOT_INITIALIZED";
    case CUDNN_STATUS_BAD_PARAM: return "CUDNN_STATUS_BAD_PARAM";
    default: return "CUDNN_STATUS_NOT_SUPPORTED";
    }
}

void cudnnGetLastErrorString(char *message, size_t room) { snprintf(message, room, "emulated"); }

cudnnStatus_t cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t type, descriptor *to)
{
    *to = new sz_emu_cudnn_descriptor{ type, false, {}, -1, NULL };
    return CUDNN_STATUS_SUCCESS;
}

/* Keeps the contents, but a plan or pack that is used after this is an error. */
cudnnStatus_t cudnnBackendDestroyDescriptor(descriptor d)
{
    if (!d) return CUDNN_STATUS_BAD_PARAM;
    if (d->type == CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR ||
        d->type == CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR)
        d->finished = false;
    return CUDNN_STATUS_SUCCESS;
}

static const expected *find_expected(int name)
{
    for (const expected &e : known)
        if (e.name == name) return &e;
    return NULL;
}

cudnnStatus_t cudnnBackendSetAttribute(descriptor d, cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, int64_t count,
                                       const void *values)
{
    if (!d || d->finished || name / 100 != d->type || count < 1 || !values)
        return CUDNN_STATUS_BAD_PARAM;
    const expected *e = find_expected(name);
    if (!e || e->type != type || (e->count && e->count != count)) return CUDNN_STATUS_BAD_PARAM;
    attribute a = { type, count, std::vector<char>((size_t)count * size_of(type)) };
    memcpy(a.bytes.data(), values, a.bytes.size());
    /* Parts must be finished. */
    for (int64_t i = 0; type == CUDNN_TYPE_BACKEND_DESCRIPTOR && i < count; i++) {
        descriptor part = static_cast<const descriptor *>(values)[i];
        if (!part || !part->finished) return CUDNN_STATUS_BAD_PARAM;
    }
    d->attributes[name] = a;
    return CUDNN_STATUS_SUCCESS;
}

/* ---- tensors and graphs ---- */
struct view {
    cudnnDataType_t type;
    int64_t id, align;
    int64_t dim[4], stride[4];
    bool is_virtual;
};

static view view_of(descriptor d)
{
    view v;
    v.type = (cudnnDataType_t)value<int>(d, CUDNN_ATTR_TENSOR_DATA_TYPE);
    v.id = value<int64_t>(d, CUDNN_ATTR_TENSOR_UNIQUE_ID);
    v.align = value<int64_t>(d, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT);
    v.is_virtual = count_of(d, CUDNN_ATTR_TENSOR_IS_VIRTUAL) > 0 &&
                   value<bool>(d, CUDNN_ATTR_TENSOR_IS_VIRTUAL);
    for (int i = 0; i < 4; i++) {
        v.dim[i] = value<int64_t>(d, CUDNN_ATTR_TENSOR_DIMENSIONS, i);
        v.stride[i] = value<int64_t>(d, CUDNN_ATTR_TENSOR_STRIDES, i);
    }
    return v;
}

/* The parts of a graph. kind: 0 forward, 1 the input's gradient, 2 the weight's gradient. */
struct parts {
    int kind;
    view x, w, y, bias, sums;
    bool biased;
    int64_t padding[2], stride[2];
};

/* Reads strides and padding, and checks the shapes. */
static cudnnStatus_t geometry_of(descriptor conv, parts *p)
{
    if (value<int>(conv, CUDNN_ATTR_CONVOLUTION_COMP_TYPE) != CUDNN_DATA_FLOAT ||
        value<int>(conv, CUDNN_ATTR_CONVOLUTION_CONV_MODE) != CUDNN_CROSS_CORRELATION)
        return CUDNN_STATUS_NOT_SUPPORTED;
    for (int i = 0; i < 2; i++) {
        p->padding[i] = value<int64_t>(conv, CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, i);
        p->stride[i] = value<int64_t>(conv, CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, i);
        if (value<int64_t>(conv, CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, i) != p->padding[i] ||
            value<int64_t>(conv, CUDNN_ATTR_CONVOLUTION_DILATIONS, i) != 1)
            return CUDNN_STATUS_NOT_SUPPORTED;
        const int64_t free_places = p->x.dim[2 + i] + 2 * p->padding[i] - p->w.dim[2 + i];
        if (free_places / p->stride[i] + 1 != p->y.dim[2 + i]) return CUDNN_STATUS_BAD_PARAM;
    }
    if (p->x.dim[0] != p->y.dim[0] || p->x.dim[1] != p->w.dim[1] || p->w.dim[0] != p->y.dim[1])
        return CUDNN_STATUS_BAD_PARAM;
    return CUDNN_STATUS_SUCCESS;
}

/* Reads the second operation, which adds a bias to the first one's result `made`. */
static cudnnStatus_t bias_of(descriptor op, descriptor made, parts *p)
{
    if (op->type != CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR ||
        value<descriptor>(op, CUDNN_ATTR_OPERATION_POINTWISE_XDESC) != made || !p->sums.is_virtual)
        return CUDNN_STATUS_BAD_PARAM;
    p->bias = view_of(value<descriptor>(op, CUDNN_ATTR_OPERATION_POINTWISE_BDESC));
    p->y = view_of(value<descriptor>(op, CUDNN_ATTR_OPERATION_POINTWISE_YDESC));
    for (int i = 0; i < 4; i++) {
        const int64_t bias_dim = i == 1 ? p->y.dim[1] : 1;
        if (p->y.dim[i] != p->sums.dim[i] || p->bias.dim[i] != bias_dim)
            return CUDNN_STATUS_BAD_PARAM;
    }
    if (p->kind != 0 || p->bias.type != p->y.type) return CUDNN_STATUS_NOT_SUPPORTED;
    return CUDNN_STATUS_SUCCESS;
}

/* Reads and checks a graph. */
static cudnnStatus_t parts_of(descriptor graph, parts *p)
{
    const int64_t n = count_of(graph, CUDNN_ATTR_OPERATIONGRAPH_OPS);
    descriptor op = value<descriptor>(graph, CUDNN_ATTR_OPERATIONGRAPH_OPS);
    p->kind = op->type - CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR;
    if (n > 2 || p->kind < 0 || p->kind > 2) return CUDNN_STATUS_NOT_SUPPORTED;
    /* The convolution: x, w, y, conv, alpha, beta, in this order. */
    const int first = 100 * op->type;
    descriptor made = value<descriptor>(op, first + 2);
    p->x = view_of(value<descriptor>(op, first));
    p->w = view_of(value<descriptor>(op, first + 1));
    p->y = view_of(made);
    p->sums = p->y;
    if (value<float>(op, first + 4) != 1 || value<float>(op, first + 5) != 0)
        return CUDNN_STATUS_NOT_SUPPORTED;
    cudnnStatus_t s = geometry_of(value<descriptor>(op, first + 3), p);
    if (s != CUDNN_STATUS_SUCCESS) return s;
    /* The bias. */
    p->biased = n == 2;
    if (p->biased) s = bias_of(value<descriptor>(graph, CUDNN_ATTR_OPERATIONGRAPH_OPS, 1), made, p);
    if (s != CUDNN_STATUS_SUCCESS) return s;
    const bool same_type = p->x.type == p->w.type && p->w.type == p->y.type;
    return same_type ? CUDNN_STATUS_SUCCESS : CUDNN_STATUS_NOT_SUPPORTED;
}

/* Whether an attribute that this type of descriptor needs is missing. */
static bool lacks_attribute(descriptor d)
{
    for (const expected &e : known)
        if (e.needed && e.name / 100 == d->type && count_of(d, e.name) == 0) return true;
    return false;
}

static bool is_contradictory(descriptor d)
{
    parts p;
    switch (d->type) {
    case CUDNN_BACKEND_TENSOR_DESCRIPTOR: {
        const view v = view_of(d);
        return v.align < 1 || v.align % (v.type == CUDNN_DATA_FLOAT ? 4 : 2);
    }
    case CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR: return parts_of(d, &p) == CUDNN_STATUS_BAD_PARAM;
    case CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR:
        return count_of(d, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS) !=
               count_of(d, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS);
    default: return false;
    }
}

cudnnStatus_t cudnnBackendFinalize(descriptor d)
{
    if (!d || d->finished || lacks_attribute(d) || is_contradictory(d))
        return CUDNN_STATUS_BAD_PARAM;
    if (d->type == CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR) {
        descriptor configuration = value<descriptor>(d, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG);
        d->engine = configuration->engine;
        d->graph = configuration->graph;
    }
    d->finished = true;
    return CUDNN_STATUS_SUCCESS;
}

/* ---- reading attributes ---- */
/* Writes up to `room` of the values. */
template <class T>
static cudnnStatus_t give(std::initializer_list<T> list, int64_t room, int64_t *count, void *values)
{
    *count = (int64_t)list.size();
    int64_t i = 0;
    for (T v : list)
        if (i < room) static_cast<T *>(values)[i++] = v;
    return CUDNN_STATUS_SUCCESS;
}

/* Makes d an engine or configuration of this number, for this graph. */
static void become(descriptor d, int engine, descriptor graph)
{
    d->engine = engine;
    d->graph = graph;
    d->finished = true;
}

/* Offers all engines in mode A, if the graph is supported; none in other modes. */
static cudnnStatus_t offer_engines(descriptor heuristics, int64_t room, int64_t *count,
                                   descriptor *list)
{
    parts p;
    descriptor graph = value<descriptor>(heuristics, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH);
    const int mode = value<int>(heuristics, CUDNN_ATTR_ENGINEHEUR_MODE);
    *count = 0;
    if (parts_of(graph, &p) == CUDNN_STATUS_SUCCESS && mode == CUDNN_HEUR_MODE_A) *count = ENGINES;
    for (int64_t i = 0; i < *count && i < room; i++) {
        if (!list[i] || list[i]->type != CUDNN_BACKEND_ENGINECFG_DESCRIPTOR)
            return CUDNN_STATUS_BAD_PARAM;
        become(list[i], (int)i, graph);
    }
    return CUDNN_STATUS_SUCCESS;
}

static cudnnStatus_t numerical_notes(descriptor d, int64_t room, int64_t *count, void *values)
{
    parts p;
    if (parts_of(d->graph, &p) != CUDNN_STATUS_SUCCESS) return CUDNN_STATUS_BAD_PARAM;
    const bool is_f32 = p.x.type == CUDNN_DATA_FLOAT;
    if (d->engine == 0 && is_f32)
        return give({ CUDNN_NUMERICAL_NOTE_TENSOR_CORE, CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS },
                    room, count, values);
    if (d->engine == 0) return give({ CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC }, room, count, values);
    if (d->engine == GOOD && !is_f32)
        return give({ CUDNN_NUMERICAL_NOTE_TENSOR_CORE }, room, count, values);
    return give({ CUDNN_NUMERICAL_NOTE_STRICT_NAN_PROP }, room, count, values);
}

cudnnStatus_t cudnnBackendGetAttribute(descriptor d, cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t, int64_t room, int64_t *count,
                                       void *values)
{
    if (!d || !d->finished || name / 100 != d->type) return CUDNN_STATUS_BAD_PARAM;
    descriptor *list = static_cast<descriptor *>(values);
    const int64_t workspace = d->engine == 2 ? (int64_t)TOO_MUCH : (int64_t)SOME;
    switch (name) {
    case CUDNN_ATTR_ENGINEHEUR_RESULTS: return offer_engines(d, room, count, list);
    case CUDNN_ATTR_ENGINECFG_ENGINE:
        if (room < 1 || !list[0] || list[0]->type != CUDNN_BACKEND_ENGINE_DESCRIPTOR)
            return CUDNN_STATUS_BAD_PARAM;
        become(list[0], d->engine, d->graph);
        *count = 1;
        return CUDNN_STATUS_SUCCESS;
    case CUDNN_ATTR_ENGINE_NUMERICAL_NOTE: return numerical_notes(d, room, count, values);
    case CUDNN_ATTR_ENGINE_BEHAVIOR_NOTE:
        *count = 0;
        if (d->engine != 1) return CUDNN_STATUS_SUCCESS;
        return give({ CUDNN_BEHAVIOR_NOTE_RUNTIME_COMPILATION }, room, count, values);
    case CUDNN_ATTR_ENGINE_GLOBAL_INDEX: return give({ (int64_t)d->engine }, room, count, values);
    case CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE: return give({ workspace }, room, count, values);
    default: return CUDNN_STATUS_BAD_PARAM;
    }
}

/* ---- running ---- */
struct memory {
    view v;
    char *at;

    bool is_f32() const { return v.type == CUDNN_DATA_FLOAT; }
    char *place(int64_t n, int64_t c, int64_t y, int64_t x) const
    {
        const int64_t *s = v.stride;
        const int64_t element = n * s[0] + c * s[1] + y * s[2] + x * s[3];
        return at + element * (is_f32() ? 4 : 2);
    }
    float get(int64_t n, int64_t c, int64_t y, int64_t x) const
    {
        const char *p = place(n, c, y, x);
        return is_f32() ? *(const float *)p : (float)*(const __nv_bfloat16 *)p;
    }
    void put(int64_t n, int64_t c, int64_t y, int64_t x, float f) const
    {
        char *p = place(n, c, y, x);
        if (is_f32()) *(float *)p = f;
        else *(__nv_bfloat16 *)p = __nv_bfloat16(f);
    }
};

/* Calls pair(oy, ox, iy, ix, ky, kx) for every position (oy, ox) of y and every cell (ky, kx) of
 * the kernel that covers a place (iy, ix) of x. */
template <class F> static void for_each_cell(const parts &p, F pair)
{
    for (int64_t oy = 0; oy < p.y.dim[2]; oy++)
        for (int64_t ox = 0; ox < p.y.dim[3]; ox++)
            for (int64_t ky = 0; ky < p.w.dim[2]; ky++)
                for (int64_t kx = 0; kx < p.w.dim[3]; kx++) {
                    const int64_t iy = oy * p.stride[0] + ky - p.padding[0];
                    const int64_t ix = ox * p.stride[1] + kx - p.padding[1];
                    if (iy >= 0 && iy < p.x.dim[2] && ix >= 0 && ix < p.x.dim[3])
                        pair(oy, ox, iy, ix, ky, kx);
                }
}

/* Returns the tensor that this kind of operation writes. */
static const memory &result_of(int kind, const memory &x, const memory &w, const memory &y)
{
    if (kind == 0) return y;
    return kind == 1 ? x : w;
}

/* Computes the result in f32 sums, adds the bias and rounds. */
static void run(const parts &p, const memory &x, const memory &w, const memory &y,
                const memory *bias)
{
    const memory &out = result_of(p.kind, x, w, y);
    const int64_t *d = out.v.dim;
    const int64_t channels = d[1];
    const int64_t rows = d[2];
    const int64_t cols = d[3];
    std::vector<float> sums((size_t)(d[0] * channels * rows * cols), 0.0f);
    auto sum = [&](int64_t n, int64_t c, int64_t a, int64_t b) -> float & {
        return sums[(size_t)(((n * rows + a) * cols + b) * channels + c)];
    };
    for (int64_t n = 0; n < p.x.dim[0]; n++)
        for_each_cell(
            p, [&](int64_t oy, int64_t ox, int64_t iy, int64_t ix, int64_t ky, int64_t kx) {
                for (int64_t o = 0; o < p.w.dim[0]; o++)
                    for (int64_t c = 0; c < p.w.dim[1]; c++) {
                        if (p.kind == 0)
                            sum(n, o, oy, ox) += x.get(n, c, iy, ix) * w.get(o, c, ky, kx);
                        else if (p.kind == 1)
                            sum(n, c, iy, ix) += y.get(n, o, oy, ox) * w.get(o, c, ky, kx);
                        else sum(o, c, ky, kx) += y.get(n, o, oy, ox) * x.get(n, c, iy, ix);
                    }
            });
    for (int64_t n = 0; n < d[0]; n++)
        for (int64_t a = 0; a < rows; a++)
            for (int64_t b = 0; b < cols; b++)
                for (int64_t c = 0; c < channels; c++) {
                    const float added = bias ? bias->get(0, c, 0, 0) : 0.0f;
                    out.put(n, c, a, b, sum(n, c, a, b) + added);
                }
}

/* Sets m's address to the one that the pack has for its id. Returns false if there is none, or if
 * it is not aligned as promised. */
static bool find_address(descriptor pack, int number, memory *m)
{
    const int64_t n = count_of(pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS);
    for (int64_t i = 0; i < n; i++)
        if (value<int64_t>(pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, i) == m->v.id)
            m->at = value<char *>(pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, i);
    sz_emu_check_argument("cuDNN's", number, m->at);
    return m->at && (uintptr_t)m->at % (uintptr_t)m->v.align == 0;
}

cudnnStatus_t cudnnBackendExecute(cudnnHandle_t handle, descriptor plan, descriptor pack)
{
    parts p;
    if (!handle || !plan || !plan->finished || !pack || !pack->finished ||
        parts_of(plan->graph, &p) != CUDNN_STATUS_SUCCESS)
        return CUDNN_STATUS_BAD_PARAM;
    /* The addresses. */
    memory x = { p.x, NULL };
    memory w = { p.w, NULL };
    memory y = { p.y, NULL };
    memory bias = { p.biased ? p.bias : p.y, NULL };
    memory *all[4] = { &x, &w, &y, &bias };
    for (int m = 0; m < (p.biased ? 4 : 3); m++)
        if (!find_address(pack, m + 1, all[m])) return CUDNN_STATUS_BAD_PARAM;
    char *workspace = value<char *>(pack, CUDNN_ATTR_VARIANT_PACK_WORKSPACE);
    sz_emu_check_argument("cuDNN's", 0, workspace);
    if (!workspace) return CUDNN_STATUS_BAD_PARAM;

    const bool is_good = plan->engine == GOOD;
    sz_emu_do(handle->stream, [=]() {
        sz_emu_access open;
        memset(workspace, 0xff, SOME);
        run(p, x, w, y, p.biased ? &bias : NULL);
        if (!is_good) result_of(p.kind, x, w, y).put(0, 0, 0, 0, NAN);
    });
    return CUDNN_STATUS_SUCCESS;
}
