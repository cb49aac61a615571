// Two-dimensional convolution, NHWC, as a fully_connected on patches.
#ifndef TFMOT_TERNARY_KERNELS_CONV2D_H_
#define TFMOT_TERNARY_KERNELS_CONV2D_H_

#include <cstddef>
#include <cstdint>

#include "custom_ops/kernels/fully_connected.h"

namespace tfmot_ternary {

enum class Padding : uint8_t { kSame, kValid };

// "SAME", "VALID". Returns false, and leaves *out alone, for any other token (or null).
bool ParsePadding(const char* token, Padding* out);

struct Conv2DGeometry {
  int64_t batch, in_h, in_w, in_c;
  int64_t kernel_h, kernel_w;
  int64_t stride_h, stride_w;
  int64_t dilation_h, dilation_w;
  int64_t pad_top, pad_left;  // filled by SetOutput
  int64_t out_h, out_w;       // filled by SetOutput

  // Inputs per output: the k of the weights.
  int64_t PatchSize() const { return kernel_h * kernel_w * in_c; }
};

// Fills pad_top, pad_left, out_h and out_w from the other members, by TensorFlow's rules. Returns
// false when a member is not positive or the output would be empty.
bool SetOutput(Padding padding, Conv2DGeometry* geometry);

// Bytes that Conv2D needs at `workspace`: one quantized image, and for each thread a slab of
// patches of bounded size.
size_t Conv2DWorkspaceBytes(const PackedWeights& weights, const Conv2DGeometry& geometry,
                            Activations activations, int num_threads);

// x: [batch, in_h, in_w, in_c], y: [batch, out_h, out_w, n], weights.k == geometry.PatchSize() in
// the order (kernel_h, kernel_w, in_c). kInt8 quantizes each image as one row (one scale per batch
// element); padding is 0. Otherwise as FullyConnected.
void Conv2D(const PackedWeights& weights, const Conv2DGeometry& geometry, const float* x,
            const Epilogue& epilogue, Activations activations, const Kernels& kernels,
            void* workspace, ThreadPool* pool, float* y);

}  // namespace tfmot_ternary

#endif  // TFMOT_TERNARY_KERNELS_CONV2D_H_
