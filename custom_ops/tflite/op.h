// A custom op: what the ops have in common between the runtime and the kernels.
#ifndef TFMOT_TERNARY_TFLITE_OP_H_
#define TFMOT_TERNARY_TFLITE_OP_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "custom_ops/kernels/fused.h"
#include "custom_ops/kernels/kernels.h"
#include "custom_ops/kernels/thread_pool.h"
#include "custom_ops/kernels/weights.h"
#include "custom_ops/tflite/error_text.h"
#include "custom_ops/tflite/op_options.h"
#include "third_party/tflite/c_api.h"

namespace tfmot_ternary {

struct AttentionKernel;  // attention.h

// What a node keeps from init to free.
struct OpState {
  OpOptions options;
  ErrorText options_error;  // of init, which cannot fail; Prepare reports it

  // Of Prepare.
  Kernels kernels = {};
  bool kernels_selected = false;
  const FusedFunctions* fused = nullptr;  // selected with the kernels
  std::shared_ptr<ThreadPool> pool;       // null: the calling thread alone
  const void* checked_packed = nullptr;   // constants whose values were found valid
  const void* checked_scales = nullptr;

  const AttentionKernel* attention = nullptr;
  std::shared_ptr<void> memory;  // what the op shares with others of its interpreter (layer_caches)

  std::vector<int> prepared_shapes;  // ranks and dims of all inputs and the output

  int num_threads = 0;        // 0: as many as the interpreter recommends
  int workspace_tensor = -1;  // index of a temporary tensor, allocated by the runtime's planner

  int NumThreads() const { return pool == nullptr ? 1 : pool->num_threads(); }
};

// One call of Prepare or Eval on a node.
class OpCall {
 public:
  OpCall(TfLiteContext* context, TfLiteNode* node, OpState* state)
      : context_(context), node_(node), state_(state) {}

  TfLiteContext* context() const { return context_; }
  OpState* state() const { return state_; }
  const OpOptions& options() const { return state_->options; }
  ErrorText* error() { return &error_; }

  // Input i, or null when it is left out.
  const TfLiteTensor* Input(int i) const;
  TfLiteTensor* Output() const;

  // ---- for Prepare: false with error() set ----

  bool CheckCounts(int min_inputs, int max_inputs);
  // The tensor is there, of that type and, unless rank < 0, of that rank.
  bool CheckTensor(const TfLiteTensor* tensor, const char* name, TfLiteType type, int rank);
  // Inputs `first` (packed) and `first + 1` (scales) as weights of k columns. Also checks the codes
  // and scales themselves where they are constant, once.
  bool PrepareWeights(int first, int64_t k, PackedWeights* weights);
  // Input i is left out, or float32 [n].
  bool CheckBias(int i, int64_t n);
  bool ResizeOutput(const int64_t* dims, int rank);
  bool RequestWorkspace(size_t bytes);
  void RecordShapes();

  // ---- for Eval ----

  // Every tensor has the shape of Prepare, and data; false with error() set otherwise. A damaged
  // model may let two ops resize one tensor, so that what was checked holds no longer.
  bool CheckShapes();
  // The weights that PrepareWeights checked.
  PackedWeights EvalWeights(int first, int64_t k) const;
  void* Workspace() const;

 private:
  // Input i, or for the index after the last input the output; null for a left-out input.
  const TfLiteTensor* InputOrOutput(int i) const;
  int InputCount() const { return node_->inputs->size; }

  TfLiteContext* context_;
  TfLiteNode* node_;
  OpState* state_;
  ErrorText error_;
};

// The op itself: a line of the table in ops.cc.
struct Op {
  const char* name;
  uint32_t allowed_options;  // sets of OptionBit
  uint32_t required_options;
  // Both return false with call->error() set.
  bool (*prepare)(OpCall* call);
  bool (*eval)(OpCall* call);
};

extern const Op kFullyConnectedOp;
extern const Op kConv2DOp;
extern const Op kEmbeddingLookupOp;
extern const Op kUnpackOp;
extern const Op kRmsNormOp;
extern const Op kLayerNormOp;
extern const Op kActivationOp;
extern const Op kRotaryOp;
extern const Op kCachedAttentionOp;
extern const Op kCachedRowsOp;

// The life of a node, with errors reported through context->ReportError under the name of the op.
OpState* InitOp(const Op& op, TfLiteContext* context, const void* options, size_t size);
void FreeOp(OpState* state);
TfLiteStatus PrepareOp(const Op& op, TfLiteContext* context, TfLiteNode* node, OpState* state);
TfLiteStatus EvalOp(const Op& op, TfLiteContext* context, TfLiteNode* node, OpState* state);

}  // namespace tfmot_ternary

#endif  // TFMOT_TERNARY_TFLITE_OP_H_
