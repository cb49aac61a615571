// The patches of an image that the outputs of a convolution see, as rows for a product.
#ifndef TFMOT_TERNARY_KERNELS_PATCHES_H_
#define TFMOT_TERNARY_KERNELS_PATCHES_H_

#include <cstdint>

#include "custom_ops/kernels/conv2d.h"
#include "custom_ops/kernels/product.h"

namespace tfmot_ternary {

// Where the sums of the groups of a patch come from, fastest first.
enum class PatchSums : uint8_t {
  kNone,    // the kernels read none
  kWindow,  // one group: sums of pixels, added up over the window, for a whole image at a time
  kPixel,   // groups that lie within a pixel: copied from the image of their sums, like the patch
  kPatch,   // groups across pixels: from the patch itself
};

// One image in int8.
struct QuantizedImage {
  int8_t* q;            // [in_h, in_w, in_c]
  int32_t* sums;        // [in_h, in_w, groups of a pixel], with kWindow and kPixel
  int32_t* patch_sums;  // [out_h, out_w], with kWindow
  uint32_t* largest;    // [in_h]
  PatchSums source;
};

// A kernel of 1 x 1 meets a pixel once or never: its patches are quantized from x straight away.
inline bool IsPointwise(const Conv2DGeometry& geometry) {
  return geometry.kernel_h == 1 && geometry.kernel_w == 1;
}

// Takes what ReadImage fills: of a pointwise convolution only `largest`. The kernels that will meet
// the patches are taken to read their sums; where they do not, set `source` to kNone.
QuantizedImage TakeQuantizedImage(const PackedWeights& weights, const Conv2DGeometry& geometry,
                                  Workspace* workspace);

// The scale of the image, and the factor that quantizes it; fills `image`. Returns false when a
// value is not finite: `image` is then unspecified.
bool ReadImage(const PackedWeights& weights, const Conv2DGeometry& geometry, const float* x,
               const RowKernel& row, ThreadPool* pool, const QuantizedImage& image, float* scale_x,
               float* inverse);

// Writes the patches of the outputs [begin, begin + count) (row-major over out_h, out_w) into q and
// sums of `rows`; the zeros behind each row stay as they are.
void WriteInt8Patches(const PackedWeights& weights, const Conv2DGeometry& geometry, const float* x,
                      float inverse, const QuantizedImage& image, const RowKernel& row,
                      int64_t begin, int64_t count, const QuantizedRows& rows);

// The same in float32, k values a patch.
void WriteFloat32Patches(const Conv2DGeometry& geometry, const float* x, const RowKernel& row,
                         int64_t begin, int64_t count, float* patches);

}  // namespace tfmot_ternary

#endif  // TFMOT_TERNARY_KERNELS_PATCHES_H_
