/* emulate_cudnn.cc - cuDNN's graph interface for the emulator; what it does and leaves out: emulate_cudnn.h. */
#include "emulate_cudnn.h"
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <vector>

struct sz_emu_cudnn_handle { cudaStream_t stream; };

struct attribute {
    cudnnBackendAttributeType_t type;
    int64_t count;
    std::vector<char> bytes;
};

/* Objects that are used by others live as long as the process: plans outlast the descriptors that they were made of, as cuDNN's do. */
struct sz_emu_cudnn_descriptor {
    cudnnBackendDescriptorType_t type;
    bool finished;
    std::map<int, attribute> attributes;
    int engine;                                 /* of an engine and its configuration */
    sz_emu_cudnn_descriptor *graph;
};
typedef sz_emu_cudnn_descriptor *descriptor;

enum { ENGINES = 4, TAKEN = ENGINES - 1 };
enum : int64_t { ASKED = 1000, TOO_MUCH = (int64_t)1 << 40 };

/* ---- attributes ---- */
static size_t size_of(cudnnBackendAttributeType_t type)
{
    switch (type) {
    case CUDNN_TYPE_BOOLEAN: case CUDNN_TYPE_CHAR: return 1;
    case CUDNN_TYPE_DATA_TYPE: case CUDNN_TYPE_FLOAT: case CUDNN_TYPE_CONVOLUTION_MODE: case CUDNN_TYPE_HEUR_MODE: case CUDNN_TYPE_NUMERICAL_NOTE:
    case CUDNN_TYPE_BEHAVIOR_NOTE: case CUDNN_TYPE_POINTWISE_MODE: return 4;
    default: return 8;
    }
}

struct expected { int name; cudnnBackendAttributeType_t type; int64_t count; bool needed; };      /* count 0: any */
#define CONV_PARTS(x, w, y, conv, alpha, beta) \
    { x, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, true }, { w, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, true }, { y, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, true }, \
    { conv, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, true }, { alpha, CUDNN_TYPE_FLOAT, 1, true }, { beta, CUDNN_TYPE_FLOAT, 1, true }
static const expected known[] = {
    { CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, true }, { CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, true },
    { CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, true }, { CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, true },
    { CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, true }, { CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1, false },
    { CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, CUDNN_TYPE_INT64, 1, true }, { CUDNN_ATTR_CONVOLUTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, true },
    { CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_TYPE_CONVOLUTION_MODE, 1, true }, { CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, CUDNN_TYPE_INT64, 2, true },
    { CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, CUDNN_TYPE_INT64, 2, true }, { CUDNN_ATTR_CONVOLUTION_DILATIONS, CUDNN_TYPE_INT64, 2, true },
    { CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, CUDNN_TYPE_INT64, 2, true },
    { CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, true }, { CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, 1, true },
    CONV_PARTS(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y,
               CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA),
    CONV_PARTS(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DX, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_W, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DY,
               CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_ALPHA, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_BETA),
    CONV_PARTS(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_X, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DW, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DY,
               CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_CONV_DESC, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_ALPHA, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_BETA),
    { CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, true }, { CUDNN_ATTR_OPERATION_POINTWISE_XDESC, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, true },
    { CUDNN_ATTR_OPERATION_POINTWISE_BDESC, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, true }, { CUDNN_ATTR_OPERATION_POINTWISE_YDESC, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, true },
    { CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, 0, true }, { CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, true },
    { CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, true }, { CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, true },
    { CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, true }, { CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1, true },
    { CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, 0, true }, { CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, 0, true },
    { CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, true },
};

static int64_t count_of(descriptor d, int name)
{
    auto found = d->attributes.find(name);
    return found == d->attributes.end() ? 0 : found->second.count;
}

/* The attribute's i-th value, of type T; finished descriptors have what they need. */
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
cudnnStatus_t cudnnSetStream(cudnnHandle_t handle, cudaStream_t stream) { handle->stream = stream; return CUDNN_STATUS_SUCCESS; }
size_t cudnnGetVersion(void) { return 90000; }
const char *cudnnGetErrorString(cudnnStatus_t s)
{
    return s == CUDNN_STATUS_SUCCESS ? "CUDNN_STATUS_SUCCESS" : s == CUDNN_STATUS_NOT_INITIALIZED ? "CUDNN_STATUS_NOT_INITIALIZED" : s == CUDNN_STATUS_BAD_PARAM ? "CUDNN_STATUS_BAD_PARAM" : "CUDNN_STATUS_NOT_SUPPORTED";
}
void cudnnGetLastErrorString(char *message, size_t room) { snprintf(message, room, "emulated"); }

cudnnStatus_t cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t type, descriptor *to)
{
    *to = new sz_emu_cudnn_descriptor{ type, false, {}, -1, NULL };
    return CUDNN_STATUS_SUCCESS;
}

/* Kept, with its contents: a plan that is used after its descriptor was destroyed is the caller's mistake, and seen. */
cudnnStatus_t cudnnBackendDestroyDescriptor(descriptor d)
{
    if (!d) return CUDNN_STATUS_BAD_PARAM;
    if (d->type == CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR || d->type == CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR) d->finished = false;
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendSetAttribute(descriptor d, cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t count, const void *values)
{
    if (!d || d->finished || name / 100 != d->type || count < 1 || !values) return CUDNN_STATUS_BAD_PARAM;
    for (const expected &e : known)
        if (e.name == name) {
            if (e.type != type || (e.count && e.count != count)) return CUDNN_STATUS_BAD_PARAM;
            attribute a = { type, count, std::vector<char>((size_t)count * size_of(type)) };
            memcpy(a.bytes.data(), values, a.bytes.size());
            for (int64_t i = 0; type == CUDNN_TYPE_BACKEND_DESCRIPTOR && i < count; i++) {
                descriptor part = static_cast<const descriptor *>(values)[i];
                if (!part || !part->finished) return CUDNN_STATUS_BAD_PARAM;
            }
            d->attributes[name] = a;
            return CUDNN_STATUS_SUCCESS;
        }
    return CUDNN_STATUS_BAD_PARAM;
}

/* ---- tensors and graphs ---- */
struct view {
    cudnnDataType_t type;
    int64_t id, align, dim[4], stride[4];
    bool passing;
};

static view view_of(descriptor d)
{
    view v;
    v.type = (cudnnDataType_t)value<int>(d, CUDNN_ATTR_TENSOR_DATA_TYPE);
    v.id = value<int64_t>(d, CUDNN_ATTR_TENSOR_UNIQUE_ID);
    v.align = value<int64_t>(d, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT);
    v.passing = count_of(d, CUDNN_ATTR_TENSOR_IS_VIRTUAL) > 0 && value<bool>(d, CUDNN_ATTR_TENSOR_IS_VIRTUAL);
    for (int i = 0; i < 4; i++) {
        v.dim[i] = value<int64_t>(d, CUDNN_ATTR_TENSOR_DIMENSIONS, i);
        v.stride[i] = value<int64_t>(d, CUDNN_ATTR_TENSOR_STRIDES, i);
    }
    return v;
}

/* A graph's parts. kind: 0 forward, 1 the input's gradient, 2 the weight's. */
struct parts {
    int kind;
    view x, w, y, bias, sums;
    bool biased;
    int64_t padding[2], stride[2];
};

static cudnnStatus_t parts_of(descriptor graph, parts *p)
{
    const int64_t n = count_of(graph, CUDNN_ATTR_OPERATIONGRAPH_OPS);
    descriptor op = value<descriptor>(graph, CUDNN_ATTR_OPERATIONGRAPH_OPS);
    p->kind = op->type - CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR;
    if (n > 2 || p->kind < 0 || p->kind > 2) return CUDNN_STATUS_NOT_SUPPORTED;
    const int first = 100 * op->type;          /* x, w, y, conv, alpha, beta */
    p->x = view_of(value<descriptor>(op, first));
    p->w = view_of(value<descriptor>(op, first + 1));
    descriptor made = value<descriptor>(op, first + 2), conv = value<descriptor>(op, first + 3);
    p->sums = p->y = view_of(made);
    if (value<float>(op, first + 4) != 1 || value<float>(op, first + 5) != 0 || value<int>(conv, CUDNN_ATTR_CONVOLUTION_COMP_TYPE) != CUDNN_DATA_FLOAT
        || value<int>(conv, CUDNN_ATTR_CONVOLUTION_CONV_MODE) != CUDNN_CROSS_CORRELATION)
        return CUDNN_STATUS_NOT_SUPPORTED;
    for (int i = 0; i < 2; i++) {
        p->padding[i] = value<int64_t>(conv, CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, i);
        p->stride[i] = value<int64_t>(conv, CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, i);
        if (value<int64_t>(conv, CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, i) != p->padding[i] || value<int64_t>(conv, CUDNN_ATTR_CONVOLUTION_DILATIONS, i) != 1)
            return CUDNN_STATUS_NOT_SUPPORTED;
        if ((p->x.dim[2 + i] + 2 * p->padding[i] - p->w.dim[2 + i]) / p->stride[i] + 1 != p->y.dim[2 + i]) return CUDNN_STATUS_BAD_PARAM;
    }
    if (p->x.dim[0] != p->y.dim[0] || p->x.dim[1] != p->w.dim[1] || p->w.dim[0] != p->y.dim[1]) return CUDNN_STATUS_BAD_PARAM;
    p->biased = n == 2;
    if (p->biased) {
        op = value<descriptor>(graph, CUDNN_ATTR_OPERATIONGRAPH_OPS, 1);
        if (op->type != CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR || value<descriptor>(op, CUDNN_ATTR_OPERATION_POINTWISE_XDESC) != made || !p->sums.passing)
            return CUDNN_STATUS_BAD_PARAM;
        p->bias = view_of(value<descriptor>(op, CUDNN_ATTR_OPERATION_POINTWISE_BDESC));
        p->y = view_of(value<descriptor>(op, CUDNN_ATTR_OPERATION_POINTWISE_YDESC));
        for (int i = 0; i < 4; i++)
            if (p->y.dim[i] != p->sums.dim[i] || p->bias.dim[i] != (i == 1 ? p->y.dim[1] : 1)) return CUDNN_STATUS_BAD_PARAM;
        if (p->kind != 0 || p->bias.type != p->y.type) return CUDNN_STATUS_NOT_SUPPORTED;
    }
    return p->x.type == p->w.type && p->w.type == p->y.type ? CUDNN_STATUS_SUCCESS : CUDNN_STATUS_NOT_SUPPORTED;
}

cudnnStatus_t cudnnBackendFinalize(descriptor d)
{
    if (!d || d->finished) return CUDNN_STATUS_BAD_PARAM;
    for (const expected &e : known)
        if (e.needed && e.name / 100 == d->type && count_of(d, e.name) == 0) return CUDNN_STATUS_BAD_PARAM;
    if (d->type == CUDNN_BACKEND_TENSOR_DESCRIPTOR) {
        const view v = view_of(d);
        if (v.align < 1 || v.align % (v.type == CUDNN_DATA_FLOAT ? 4 : 2)) return CUDNN_STATUS_BAD_PARAM;
    }
    parts p;
    if (d->type == CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR && parts_of(d, &p) == CUDNN_STATUS_BAD_PARAM) return CUDNN_STATUS_BAD_PARAM;
    if (d->type == CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR && count_of(d, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS) != count_of(d, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS))
        return CUDNN_STATUS_BAD_PARAM;
    if (d->type == CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR) {
        descriptor configuration = value<descriptor>(d, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG);
        d->engine = configuration->engine;
        d->graph = configuration->graph;
    }
    d->finished = true;
    return CUDNN_STATUS_SUCCESS;
}

/* Writes up to `room` of the values. */
template <class T> static cudnnStatus_t give(std::initializer_list<T> list, int64_t room, int64_t *count, void *values)
{
    *count = (int64_t)list.size();
    int64_t i = 0;
    for (T v : list)
        if (i < room) static_cast<T *>(values)[i++] = v;
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendGetAttribute(descriptor d, cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t, int64_t room, int64_t *count, void *values)
{
    if (!d || !d->finished || name / 100 != d->type) return CUDNN_STATUS_BAD_PARAM;
    descriptor *list = static_cast<descriptor *>(values);
    parts p;
    switch (name) {
    case CUDNN_ATTR_ENGINEHEUR_RESULTS: {
        descriptor graph = value<descriptor>(d, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH);
        const bool there = parts_of(graph, &p) == CUDNN_STATUS_SUCCESS && value<int>(d, CUDNN_ATTR_ENGINEHEUR_MODE) == CUDNN_HEUR_MODE_A;
        *count = there ? (int64_t)ENGINES : 0;
        for (int64_t i = 0; i < *count && i < room; i++) {
            if (!list[i] || list[i]->type != CUDNN_BACKEND_ENGINECFG_DESCRIPTOR) return CUDNN_STATUS_BAD_PARAM;
            list[i]->engine = (int)i, list[i]->graph = graph, list[i]->finished = true;
        }
        return CUDNN_STATUS_SUCCESS;
    }
    case CUDNN_ATTR_ENGINECFG_ENGINE:
        if (room < 1 || !list[0] || list[0]->type != CUDNN_BACKEND_ENGINE_DESCRIPTOR) return CUDNN_STATUS_BAD_PARAM;
        list[0]->engine = d->engine, list[0]->graph = d->graph, list[0]->finished = true;
        *count = 1;
        return CUDNN_STATUS_SUCCESS;
    case CUDNN_ATTR_ENGINE_NUMERICAL_NOTE:
        if (parts_of(d->graph, &p) != CUDNN_STATUS_SUCCESS) return CUDNN_STATUS_BAD_PARAM;
        if (d->engine == 0 && p.x.type == CUDNN_DATA_FLOAT)
            return give({ CUDNN_NUMERICAL_NOTE_TENSOR_CORE, CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS }, room, count, values);
        if (d->engine == 0) return give({ CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC }, room, count, values);
        return d->engine == TAKEN && p.x.type == CUDNN_DATA_BFLOAT16 ? give({ CUDNN_NUMERICAL_NOTE_TENSOR_CORE }, room, count, values)
                                                                     : give({ CUDNN_NUMERICAL_NOTE_STRICT_NAN_PROP }, room, count, values);
    case CUDNN_ATTR_ENGINE_BEHAVIOR_NOTE:
        if (d->engine == 1) return give({ CUDNN_BEHAVIOR_NOTE_RUNTIME_COMPILATION }, room, count, values);
        *count = 0;
        return CUDNN_STATUS_SUCCESS;
    case CUDNN_ATTR_ENGINE_GLOBAL_INDEX: return give({ (int64_t)d->engine }, room, count, values);
    case CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE: return give({ d->engine == 2 ? (int64_t)TOO_MUCH : (int64_t)ASKED }, room, count, values);
    default: return CUDNN_STATUS_BAD_PARAM;
    }
}

/* ---- running ---- */
struct memory {
    view v;
    char *at;
    char *place(int64_t n, int64_t c, int64_t y, int64_t x) const
    {
        return at + (n * v.stride[0] + c * v.stride[1] + y * v.stride[2] + x * v.stride[3]) * (v.type == CUDNN_DATA_FLOAT ? 4 : 2);
    }
    float get(int64_t n, int64_t c, int64_t y, int64_t x) const
    {
        const char *p = place(n, c, y, x);
        return v.type == CUDNN_DATA_FLOAT ? *(const float *)p : (float)*(const __nv_bfloat16 *)p;
    }
    void put(int64_t n, int64_t c, int64_t y, int64_t x, float f) const
    {
        char *p = place(n, c, y, x);
        if (v.type == CUDNN_DATA_FLOAT) *(float *)p = f;
        else *(__nv_bfloat16 *)p = __nv_bfloat16(f);
    }
};

/* Calls pair(out's two places, in's two places, the kernel's two) for every cell of the kernel that lies on the picture. */
template <class F> static void cells(const parts &p, F pair)
{
    for (int64_t oy = 0; oy < p.y.dim[2]; oy++)
        for (int64_t ox = 0; ox < p.y.dim[3]; ox++)
            for (int64_t ky = 0; ky < p.w.dim[2]; ky++)
                for (int64_t kx = 0; kx < p.w.dim[3]; kx++) {
                    const int64_t iy = oy * p.stride[0] + ky - p.padding[0], ix = ox * p.stride[1] + kx - p.padding[1];
                    if (iy >= 0 && iy < p.x.dim[2] && ix >= 0 && ix < p.x.dim[3]) pair(oy, ox, iy, ix, ky, kx);
                }
}

static void run(const parts &p, const memory &x, const memory &w, const memory &y, const memory *bias)
{
    const memory &out = p.kind == 0 ? y : p.kind == 1 ? x : w;
    const int64_t *d = out.v.dim, channels = d[1], rows = d[2], cols = d[3];
    std::vector<float> sums((size_t)(d[0] * channels * rows * cols), 0.0f);
    auto sum = [&](int64_t n, int64_t c, int64_t a, int64_t b) -> float & { return sums[(size_t)(((n * rows + a) * cols + b) * channels + c)]; };
    for (int64_t n = 0; n < p.x.dim[0]; n++)
        cells(p, [&](int64_t oy, int64_t ox, int64_t iy, int64_t ix, int64_t ky, int64_t kx) {
            for (int64_t o = 0; o < p.w.dim[0]; o++)
                for (int64_t c = 0; c < p.w.dim[1]; c++) {
                    if (p.kind == 0) sum(n, o, oy, ox) += x.get(n, c, iy, ix) * w.get(o, c, ky, kx);
                    else if (p.kind == 1) sum(n, c, iy, ix) += y.get(n, o, oy, ox) * w.get(o, c, ky, kx);
                    else sum(o, c, ky, kx) += y.get(n, o, oy, ox) * x.get(n, c, iy, ix);
                }
        });
    for (int64_t n = 0; n < d[0]; n++)
        for (int64_t a = 0; a < rows; a++)
            for (int64_t b = 0; b < cols; b++)
                for (int64_t c = 0; c < channels; c++) out.put(n, c, a, b, sum(n, c, a, b) + (bias ? bias->get(0, c, 0, 0) : 0.0f));
}

cudnnStatus_t cudnnBackendExecute(cudnnHandle_t handle, descriptor plan, descriptor pack)
{
    parts p;
    if (!handle || !plan || !plan->finished || !pack || !pack->finished || parts_of(plan->graph, &p) != CUDNN_STATUS_SUCCESS) return CUDNN_STATUS_BAD_PARAM;
    const int64_t n = count_of(pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS);
    memory x = { p.x, NULL }, w = { p.w, NULL }, y = { p.y, NULL }, bias = { p.biased ? p.bias : p.y, NULL };
    memory *all[4] = { &x, &w, &y, &bias };
    for (int m = 0; m < (p.biased ? 4 : 3); m++) {
        for (int64_t i = 0; i < n; i++)
            if (value<int64_t>(pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, i) == all[m]->v.id) all[m]->at = value<char *>(pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, i);
        sz_emu_check_argument("cuDNN's", m + 1, all[m]->at);
        if (!all[m]->at || (uintptr_t)all[m]->at % (uintptr_t)all[m]->v.align) return CUDNN_STATUS_BAD_PARAM;
    }
    char *workspace = value<char *>(pack, CUDNN_ATTR_VARIANT_PACK_WORKSPACE);
    sz_emu_check_argument("cuDNN's", 0, workspace);
    if (!workspace) return CUDNN_STATUS_BAD_PARAM;
    const bool taken = plan->engine == TAKEN;
    sz_emu_do([=]() {
        sz_emu_access open;
        memset(workspace, 0xff, ASKED);
        run(p, x, w, y, p.biased ? &bias : NULL);
        if (!taken) (p.kind == 0 ? y : p.kind == 1 ? x : w).put(0, 0, 0, 0, NAN);
    });
    return CUDNN_STATUS_SUCCESS;
}
