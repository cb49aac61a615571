// The part of the TensorFlow Lite C ABI that the tfmot_ternary ops need.
//
// Why declared here: the TensorFlow and LiteRT wheels carry no TF Lite C headers, and the ops must
// build with nothing but a C++17 compiler. The declarations state a binary interface, which is the
// same from TF Lite 2.14.1 to LiteRT 2.3; the assertions at the end hold it in place.
//
// To build against the real headers instead, define TFMOT_TERNARY_USE_SYSTEM_TFLITE_HEADERS and put
// on the include path a directory with tflite/c/common.h (LiteRT) or tensorflow/lite/c/common.h (in
// Bazel: --define=tfmot_ternary_tflite=system). The assertions then check the real declarations.
//
// What is left out on purpose: everything that the ops must not touch. In particular
// TfLiteQuantization::params stays an untyped pointer, because the structure behind it differs
// between releases.

#ifndef TFMOT_TERNARY_THIRD_PARTY_TFLITE_C_API_H_
#define TFMOT_TERNARY_THIRD_PARTY_TFLITE_C_API_H_

#include <cstddef>
#include <cstdint>

#ifdef TFMOT_TERNARY_USE_SYSTEM_TFLITE_HEADERS

#if __has_include("tflite/c/common.h")
#include "tflite/c/common.h"
#else
#include "tensorflow/lite/c/common.h"
#endif

#else  // our own declarations

extern "C" {

struct TfLiteContext;
struct TfLiteDelegate;
struct TfLiteNode;
struct TfLiteRegistration;
struct TfLiteTensor;

// ---- enumerations: only the values that the ops compare with or return ----

enum TfLiteStatus { kTfLiteOk = 0, kTfLiteError = 1, kTfLiteDelegateError = 2 };

enum TfLiteType {
  kTfLiteNoType = 0,
  kTfLiteFloat32 = 1,
  kTfLiteInt32 = 2,
  kTfLiteUInt8 = 3,
  kTfLiteInt64 = 4,
  kTfLiteBool = 6,
  kTfLiteInt8 = 9
};

enum TfLiteAllocationType {
  kTfLiteMemNone = 0,
  kTfLiteMmapRo = 1,
  kTfLiteArenaRw = 2,
  kTfLiteArenaRwPersistent = 3,
  kTfLiteDynamic = 4,
  kTfLitePersistentRo = 5,
  kTfLiteCustom = 6
};

enum TfLiteExternalContextType { kTfLiteCpuBackendContext = 3 };

enum TfLiteDelegateFlags {
  kTfLiteDelegateFlagsNone = 0,
  kTfLiteDelegateFlagsAllowDynamicTensors = 1
};

// Index that stands for an optional input left out.
constexpr int kTfLiteOptionalTensor = -1;

// ---- values ----

// `size` numbers follow the structure in memory. The runtime releases arrays handed to it with
// free(), so they come from malloc(); see custom_ops/tflite/int_array.h.
#if defined(__clang__)
#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Wc99-extensions"
#elif defined(__GNUC__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wpedantic"
#endif
struct TfLiteIntArray {
  int size;
  int data[];  // a C99 member that gcc and clang take in C++ too
};
#if defined(__clang__)
#pragma clang diagnostic pop
#elif defined(__GNUC__)
#pragma GCC diagnostic pop
#endif

union TfLitePtrUnion {
  int32_t* i32;
  float* f;
  uint8_t* uint8;
  int8_t* int8;
  char* raw;
  void* data;
};

struct TfLiteQuantizationParams {
  float scale;
  int32_t zero_point;
};

struct TfLiteQuantization {
  int type;
  void* params;  // never read
};

struct TfLiteExternalContext;  // only its address is used, as the identity of an interpreter

// ---- tensor, node, op ----

struct TfLiteTensor {
  TfLiteType type;
  TfLitePtrUnion data;
  TfLiteIntArray* dims;
  TfLiteQuantizationParams params;
  TfLiteAllocationType allocation_type;
  size_t bytes;
  const void* allocation;
  const char* name;
  TfLiteDelegate* delegate;
  int buffer_handle;
  bool data_is_stale;
  bool is_variable;
  TfLiteQuantization quantization;
  void* sparsity;
  const TfLiteIntArray* dims_signature;
};

struct TfLiteNode {
  TfLiteIntArray* inputs;
  TfLiteIntArray* outputs;
  TfLiteIntArray* intermediates;
  TfLiteIntArray* temporaries;
  void* user_data;
  void* builtin_data;
  const void* custom_initial_data;
  int custom_initial_data_size;
  TfLiteDelegate* delegate;
  bool might_have_side_effect;
};

struct TfLiteRegistration {
  void* (*init)(TfLiteContext* context, const char* buffer, size_t length);
  void (*free)(TfLiteContext* context, void* buffer);
  TfLiteStatus (*prepare)(TfLiteContext* context, TfLiteNode* node);
  TfLiteStatus (*invoke)(TfLiteContext* context, TfLiteNode* node);
  const char* (*profiling_string)(const TfLiteContext* context, const TfLiteNode* node);
  int32_t builtin_code;
  const char* custom_name;
  int version;
  void* registration_external;
  void* (*async_kernel)(TfLiteContext* context, TfLiteNode* node);
  uint64_t inplace_operator;
};

// ---- what the runtime offers to ops and delegates ----

struct TfLiteContext {
  size_t tensors_size;
  TfLiteStatus (*GetExecutionPlan)(TfLiteContext* context, TfLiteIntArray** execution_plan);
  TfLiteTensor* tensors;
  void* impl_;
  // Takes ownership of `new_size`.
  TfLiteStatus (*ResizeTensor)(TfLiteContext* context, TfLiteTensor* tensor,
                               TfLiteIntArray* new_size);
  void (*ReportError)(TfLiteContext* context, const char* format, ...);
  // May move the `tensors` array.
  TfLiteStatus (*AddTensors)(TfLiteContext* context, int tensors_to_add,
                             int* first_new_tensor_index);
  TfLiteStatus (*GetNodeAndRegistration)(TfLiteContext* context, int node_index, TfLiteNode** node,
                                         TfLiteRegistration** registration);
  TfLiteStatus (*ReplaceNodeSubsetsWithDelegateKernels)(TfLiteContext* context,
                                                        TfLiteRegistration registration,
                                                        const TfLiteIntArray* nodes_to_replace,
                                                        TfLiteDelegate* delegate);
  int recommended_num_threads;
  TfLiteExternalContext* (*GetExternalContext)(TfLiteContext* context,
                                               TfLiteExternalContextType type);
  void (*SetExternalContext)(TfLiteContext* context, TfLiteExternalContextType type,
                             TfLiteExternalContext* external_context);
  bool allow_fp32_relax_to_fp16;
  void* profiler;
  void* (*AllocatePersistentBuffer)(TfLiteContext* context, size_t bytes);
  TfLiteStatus (*AllocateBufferForEval)(TfLiteContext* context, size_t bytes, void** buffer);
  TfLiteStatus (*RequestScratchBufferInArena)(TfLiteContext* context, size_t bytes, int* index);
  void* (*GetScratchBuffer)(TfLiteContext* context, int index);
  // Null in the full runtime: use ResizeTensor.
  TfLiteStatus (*ResizeTensorExplicit)(TfLiteContext* context, TfLiteTensor* tensor, int rank,
                                       const int* shape);
  void* preview_delegate_partitioning;
  void* get_tensor;
  void* get_eval_tensor;
  void* get_model_metadata;
  void* acquire_subgraph_context;
  void* release_subgraph_context;
#if defined(_WIN32)
  void* int_array_create;
  void* int_array_free;
#endif
};

// ---- delegates ----

// What `init` of a delegate kernel receives in place of the custom options.
struct TfLiteDelegateParams {
  TfLiteDelegate* delegate;
  TfLiteIntArray* nodes_to_replace;
  TfLiteIntArray* input_tensors;
  TfLiteIntArray* output_tensors;
};

struct TfLiteDelegate {
  void* data_;
  TfLiteStatus (*Prepare)(TfLiteContext* context, TfLiteDelegate* delegate);
  void* copy_from_buffer_handle;  // null: the ops keep no buffers of their own
  void* copy_to_buffer_handle;
  void* free_buffer_handle;
  int64_t flags;
  void* opaque_delegate_builder;
};

}  // extern "C"

#endif  // TFMOT_TERNARY_USE_SYSTEM_TFLITE_HEADERS

// ---- the ABI, asserted: for our declarations and for the real headers alike ----

#if defined(__LP64__) || defined(_LP64)
#define TFMOT_TERNARY_OFFSET(type, field, offset) \
  static_assert(offsetof(type, field) == (offset), #type "::" #field " moved")

static_assert(sizeof(TfLiteStatus) == 4, "TfLiteStatus");
static_assert(sizeof(TfLiteType) == 4, "TfLiteType");
static_assert(sizeof(TfLiteAllocationType) == 4, "TfLiteAllocationType");
static_assert(kTfLiteFloat32 == 1 && kTfLiteInt32 == 2 && kTfLiteUInt8 == 3 && kTfLiteInt64 == 4 &&
                  kTfLiteBool == 6 && kTfLiteInt8 == 9,
              "TfLiteType values");
static_assert(kTfLiteMmapRo == 1 && kTfLiteArenaRw == 2 && kTfLiteDynamic == 4 &&
                  kTfLitePersistentRo == 5,
              "TfLiteAllocationType values");
static_assert(kTfLiteCpuBackendContext == 3, "TfLiteExternalContextType values");
static_assert(kTfLiteDelegateFlagsAllowDynamicTensors == 1, "TfLiteDelegateFlags values");

static_assert(sizeof(TfLiteIntArray) == 4, "TfLiteIntArray");
TFMOT_TERNARY_OFFSET(TfLiteIntArray, data, 4);
static_assert(sizeof(TfLiteQuantization) == 16, "TfLiteQuantization");

static_assert(sizeof(TfLiteTensor) == 112, "TfLiteTensor");
TFMOT_TERNARY_OFFSET(TfLiteTensor, type, 0);
TFMOT_TERNARY_OFFSET(TfLiteTensor, data, 8);
TFMOT_TERNARY_OFFSET(TfLiteTensor, dims, 16);
TFMOT_TERNARY_OFFSET(TfLiteTensor, allocation_type, 32);
TFMOT_TERNARY_OFFSET(TfLiteTensor, bytes, 40);
TFMOT_TERNARY_OFFSET(TfLiteTensor, name, 56);
TFMOT_TERNARY_OFFSET(TfLiteTensor, delegate, 64);
TFMOT_TERNARY_OFFSET(TfLiteTensor, is_variable, 77);
TFMOT_TERNARY_OFFSET(TfLiteTensor, quantization, 80);
TFMOT_TERNARY_OFFSET(TfLiteTensor, dims_signature, 104);

static_assert(sizeof(TfLiteNode) == 80, "TfLiteNode");
TFMOT_TERNARY_OFFSET(TfLiteNode, inputs, 0);
TFMOT_TERNARY_OFFSET(TfLiteNode, outputs, 8);
TFMOT_TERNARY_OFFSET(TfLiteNode, temporaries, 24);
TFMOT_TERNARY_OFFSET(TfLiteNode, user_data, 32);
TFMOT_TERNARY_OFFSET(TfLiteNode, custom_initial_data, 48);
TFMOT_TERNARY_OFFSET(TfLiteNode, custom_initial_data_size, 56);
TFMOT_TERNARY_OFFSET(TfLiteNode, delegate, 64);

static_assert(sizeof(TfLiteRegistration) == 88, "TfLiteRegistration");
TFMOT_TERNARY_OFFSET(TfLiteRegistration, init, 0);
TFMOT_TERNARY_OFFSET(TfLiteRegistration, prepare, 16);
TFMOT_TERNARY_OFFSET(TfLiteRegistration, invoke, 24);
TFMOT_TERNARY_OFFSET(TfLiteRegistration, builtin_code, 40);
TFMOT_TERNARY_OFFSET(TfLiteRegistration, custom_name, 48);
TFMOT_TERNARY_OFFSET(TfLiteRegistration, version, 56);
TFMOT_TERNARY_OFFSET(TfLiteRegistration, inplace_operator, 80);

static_assert(sizeof(TfLiteContext) == 200, "TfLiteContext");
TFMOT_TERNARY_OFFSET(TfLiteContext, tensors_size, 0);
TFMOT_TERNARY_OFFSET(TfLiteContext, GetExecutionPlan, 8);
TFMOT_TERNARY_OFFSET(TfLiteContext, tensors, 16);
TFMOT_TERNARY_OFFSET(TfLiteContext, ResizeTensor, 32);
TFMOT_TERNARY_OFFSET(TfLiteContext, ReportError, 40);
TFMOT_TERNARY_OFFSET(TfLiteContext, AddTensors, 48);
TFMOT_TERNARY_OFFSET(TfLiteContext, GetNodeAndRegistration, 56);
TFMOT_TERNARY_OFFSET(TfLiteContext, ReplaceNodeSubsetsWithDelegateKernels, 64);
TFMOT_TERNARY_OFFSET(TfLiteContext, recommended_num_threads, 72);
TFMOT_TERNARY_OFFSET(TfLiteContext, GetExternalContext, 80);

static_assert(sizeof(TfLiteDelegateParams) == 32, "TfLiteDelegateParams");
TFMOT_TERNARY_OFFSET(TfLiteDelegateParams, nodes_to_replace, 8);
static_assert(sizeof(TfLiteDelegate) == 56, "TfLiteDelegate");
TFMOT_TERNARY_OFFSET(TfLiteDelegate, data_, 0);
TFMOT_TERNARY_OFFSET(TfLiteDelegate, Prepare, 8);
TFMOT_TERNARY_OFFSET(TfLiteDelegate, flags, 40);
TFMOT_TERNARY_OFFSET(TfLiteDelegate, opaque_delegate_builder, 48);

#undef TFMOT_TERNARY_OFFSET
#endif  // LP64

#endif  // TFMOT_TERNARY_THIRD_PARTY_TFLITE_C_API_H_
