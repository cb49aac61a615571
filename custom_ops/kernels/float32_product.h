// The product of float32 rows with a packed matrix.
#ifndef TFMOT_TERNARY_KERNELS_FLOAT32_PRODUCT_H_
#define TFMOT_TERNARY_KERNELS_FLOAT32_PRODUCT_H_

#include <cstdint>

#include "custom_ops/kernels/product.h"

namespace tfmot_ternary {

ProductScratch TakeFloat32Scratch(const PackedWeights& weights, int num_threads,
                                  Workspace* workspace);

// y[m, n] from x[m, k] in float32.
void MultiplyFloat32(const PackedWeights& weights, const float* x, int64_t m,
                     const Epilogue& epilogue, const Kernels& kernels,
                     const ProductScratch& scratch, ThreadPool* pool, float* y);

}  // namespace tfmot_ternary

#endif  // TFMOT_TERNARY_KERNELS_FLOAT32_PRODUCT_H_
