/* emulate_cudnn.h - the part of cuDNN that cudnn.cu uses, on the host processor: convolutions
 * described as graphs, engines to choose from, one plan that runs. It is as strict as cuDNN: a
 * descriptor is set before it is finished and used afterwards; every required attribute is present
 * with its type and count; and a graph for which cuDNN has no engine (mixed types, a bias of
 * another type, a bias that does not follow the forward operation) is offered none.
 *
 * Of the engines that are offered only the last one may be taken. The others round their inputs,
 * differ from run to run, are compiled at run time or ask for too much memory. They say so, and
 * they write NaN. SEGZERO_EMULATE_CUDNN=no_handle in the environment emulates a cuDNN that is
 * present and unusable. Leaves out: the numeric values of the names, which are cuDNN's own. */
#ifndef SZ_EMULATE_CUDNN_H
#define SZ_EMULATE_CUDNN_H

#include "emulate.h"

typedef struct sz_emu_cudnn_handle *cudnnHandle_t;
typedef struct sz_emu_cudnn_descriptor *cudnnBackendDescriptor_t;
enum cudnnStatus_t {
    CUDNN_STATUS_SUCCESS,
    CUDNN_STATUS_NOT_INITIALIZED = 1001,
    CUDNN_STATUS_BAD_PARAM = 2000,
    CUDNN_STATUS_NOT_SUPPORTED = 3000,
};
enum cudnnDataType_t { CUDNN_DATA_FLOAT, CUDNN_DATA_BFLOAT16 };
enum cudnnConvolutionMode_t { CUDNN_CONVOLUTION, CUDNN_CROSS_CORRELATION };
enum cudnnPointwiseMode_t { CUDNN_POINTWISE_ADD };
enum cudnnBackendHeurMode_t { CUDNN_HEUR_MODE_A, CUDNN_HEUR_MODE_FALLBACK };
enum cudnnBackendNumericalNote_t {
    CUDNN_NUMERICAL_NOTE_TENSOR_CORE,
    CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS,
    CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC,
    CUDNN_NUMERICAL_NOTE_STRICT_NAN_PROP,
};
enum cudnnBackendBehaviorNote_t { CUDNN_BEHAVIOR_NOTE_RUNTIME_COMPILATION };
enum cudnnBackendAttributeType_t {
    CUDNN_TYPE_HANDLE,
    CUDNN_TYPE_DATA_TYPE,
    CUDNN_TYPE_BOOLEAN,
    CUDNN_TYPE_INT64,
    CUDNN_TYPE_FLOAT,
    CUDNN_TYPE_CHAR,
    CUDNN_TYPE_VOID_PTR,
    CUDNN_TYPE_CONVOLUTION_MODE,
    CUDNN_TYPE_HEUR_MODE,
    CUDNN_TYPE_NUMERICAL_NOTE,
    CUDNN_TYPE_BEHAVIOR_NOTE,
    CUDNN_TYPE_POINTWISE_MODE,
    CUDNN_TYPE_BACKEND_DESCRIPTOR,
};
enum cudnnBackendDescriptorType_t {
    CUDNN_BACKEND_TENSOR_DESCRIPTOR,
    CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR,
    CUDNN_BACKEND_POINTWISE_DESCRIPTOR,
    CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR,
    CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR,
    CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR,
    CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR,
    CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR,
    CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR,
    CUDNN_BACKEND_ENGINECFG_DESCRIPTOR,
    CUDNN_BACKEND_ENGINE_DESCRIPTOR,
    CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR,
    CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR,
    CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR,
};
/* An attribute's value is 100 times its descriptor's type, plus a number. */
#define SZ_EMU_ATTRIBUTES(type) 100 * (CUDNN_BACKEND_##type##_DESCRIPTOR)
enum cudnnBackendAttributeName_t {
    CUDNN_ATTR_TENSOR_DATA_TYPE = SZ_EMU_ATTRIBUTES(TENSOR),
    CUDNN_ATTR_TENSOR_DIMENSIONS,
    CUDNN_ATTR_TENSOR_STRIDES,
    CUDNN_ATTR_TENSOR_UNIQUE_ID,
    CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT,
    CUDNN_ATTR_TENSOR_IS_VIRTUAL,
    CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS = SZ_EMU_ATTRIBUTES(CONVOLUTION),
    CUDNN_ATTR_CONVOLUTION_COMP_TYPE,
    CUDNN_ATTR_CONVOLUTION_CONV_MODE,
    CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS,
    CUDNN_ATTR_CONVOLUTION_POST_PADDINGS,
    CUDNN_ATTR_CONVOLUTION_DILATIONS,
    CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES,
    CUDNN_ATTR_POINTWISE_MODE = SZ_EMU_ATTRIBUTES(POINTWISE),
    CUDNN_ATTR_POINTWISE_MATH_PREC,
    CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X = SZ_EMU_ATTRIBUTES(OPERATION_CONVOLUTION_FORWARD),
    CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W,
    CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y,
    CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC,
    CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA,
    CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA,
    CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DX =
        SZ_EMU_ATTRIBUTES(OPERATION_CONVOLUTION_BACKWARD_DATA),
    CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_W,
    CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DY,
    CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC,
    CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_ALPHA,
    CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_BETA,
    CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_X =
        SZ_EMU_ATTRIBUTES(OPERATION_CONVOLUTION_BACKWARD_FILTER),
    CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DW,
    CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DY,
    CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_CONV_DESC,
    CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_ALPHA,
    CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_BETA,
    CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR = SZ_EMU_ATTRIBUTES(OPERATION_POINTWISE),
    CUDNN_ATTR_OPERATION_POINTWISE_XDESC,
    CUDNN_ATTR_OPERATION_POINTWISE_BDESC,
    CUDNN_ATTR_OPERATION_POINTWISE_YDESC,
    CUDNN_ATTR_OPERATIONGRAPH_OPS = SZ_EMU_ATTRIBUTES(OPERATIONGRAPH),
    CUDNN_ATTR_OPERATIONGRAPH_HANDLE,
    CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH = SZ_EMU_ATTRIBUTES(ENGINEHEUR),
    CUDNN_ATTR_ENGINEHEUR_MODE,
    CUDNN_ATTR_ENGINEHEUR_RESULTS,
    CUDNN_ATTR_ENGINEHEUR_DEVICEPROP,
    CUDNN_ATTR_ENGINECFG_ENGINE = SZ_EMU_ATTRIBUTES(ENGINECFG),
    CUDNN_ATTR_ENGINE_NUMERICAL_NOTE = SZ_EMU_ATTRIBUTES(ENGINE),
    CUDNN_ATTR_ENGINE_BEHAVIOR_NOTE,
    CUDNN_ATTR_ENGINE_GLOBAL_INDEX,
    CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG = SZ_EMU_ATTRIBUTES(EXECUTION_PLAN),
    CUDNN_ATTR_EXECUTION_PLAN_HANDLE,
    CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE,
    CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP,
    CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS = SZ_EMU_ATTRIBUTES(VARIANT_PACK),
    CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS,
    CUDNN_ATTR_VARIANT_PACK_WORKSPACE,
    CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION = SZ_EMU_ATTRIBUTES(DEVICEPROP),
};

cudnnStatus_t cudnnCreate(cudnnHandle_t *handle);
cudnnStatus_t cudnnSetStream(cudnnHandle_t handle, cudaStream_t stream);
size_t cudnnGetVersion(void);
const char *cudnnGetErrorString(cudnnStatus_t status);
void cudnnGetLastErrorString(char *message, size_t room);
cudnnStatus_t cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t type,
                                           cudnnBackendDescriptor_t *to);
cudnnStatus_t cudnnBackendDestroyDescriptor(cudnnBackendDescriptor_t d);
cudnnStatus_t cudnnBackendSetAttribute(cudnnBackendDescriptor_t d, cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, int64_t count,
                                       const void *values);
cudnnStatus_t cudnnBackendGetAttribute(cudnnBackendDescriptor_t d, cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, int64_t room,
                                       int64_t *count, void *values);
cudnnStatus_t cudnnBackendFinalize(cudnnBackendDescriptor_t d);
cudnnStatus_t cudnnBackendExecute(cudnnHandle_t handle, cudnnBackendDescriptor_t plan,
                                  cudnnBackendDescriptor_t pack);

#endif
