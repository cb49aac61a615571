// The caches of an interpreter's attention layers: memory that its ops share between calls.
#ifndef TFMOT_TERNARY_TFLITE_LAYER_CACHES_H_
#define TFMOT_TERNARY_TFLITE_LAYER_CACHES_H_

#include <cstdint>
#include <cstdlib>
#include <memory>

#include "custom_ops/kernels/attention_cache.h"
#include "custom_ops/tflite/error_text.h"
#include "custom_ops/tflite/op_options.h"
#include "third_party/tflite/c_api.h"

namespace tfmot_ternary {

// Rows as they came: float32 [length, heads, head_dim], zeros at first.
struct RowCache {
  CacheShape shape;
  float* rows;  // of calloc: pages come when they are first written

  ~RowCache() { std::free(rows); }
};

// The cache of `layer` in the interpreter that `context` belongs to. All ops of an interpreter, in
// all of its subgraphs, get the same one, which ends with the last of them; no other interpreter
// gets it. Null with *error set: an op of the interpreter uses that layer with another shape, or
// there is no memory. Any thread may call this.
std::shared_ptr<AttentionCache> AcquireAttentionCache(TfLiteContext* context, int64_t layer,
                                                      const CacheShape& shape, ErrorText* error);
std::shared_ptr<RowCache> AcquireRowCache(TfLiteContext* context, int64_t layer, CachePart part,
                                          const CacheShape& shape, ErrorText* error);

}  // namespace tfmot_ternary

#endif  // TFMOT_TERNARY_TFLITE_LAYER_CACHES_H_
