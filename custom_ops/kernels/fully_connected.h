// y[m, n] = activation(x[m, k] * W[n, k]^T + bias).
#ifndef TFMOT_TERNARY_KERNELS_FULLY_CONNECTED_H_
#define TFMOT_TERNARY_KERNELS_FULLY_CONNECTED_H_

#include <cstddef>
#include <cstdint>

#include "custom_ops/kernels/epilogue.h"
#include "custom_ops/kernels/kernels.h"
#include "custom_ops/kernels/thread_pool.h"
#include "custom_ops/kernels/weights.h"

namespace tfmot_ternary {

// kInt8: each row of x is quantized to int8 (see g3doc/kernels.md for the arithmetic; a row with a
// value that is not finite gives a row of NaN). kFloat32: x is used as it is.
enum class Activations : uint8_t { kInt8, kFloat32 };

// "int8", "float32". Returns false, and leaves *out alone, for any other token (or null).
bool ParseActivations(const char* token, Activations* out);

// Bytes that FullyConnected needs at `workspace`; grows with m up to a bound, and with num_threads.
size_t FullyConnectedWorkspaceBytes(const PackedWeights& weights, int64_t m,
                                    Activations activations, int num_threads);

// x: [m, k], y: [m, n], not overlapping, m >= 0. `kernels` must be selected for weights.format.
// workspace: 64-byte aligned, of at least FullyConnectedWorkspaceBytes(weights, m, activations,
// pool == nullptr ? 1 : pool->num_threads()) bytes; it carries nothing from call to call.
// The result does not depend on the kernels (int8) nor on the number of threads.
void FullyConnected(const PackedWeights& weights, const float* x, int64_t m,
                    const Epilogue& epilogue, Activations activations, const Kernels& kernels,
                    void* workspace, ThreadPool* pool, float* y);

}  // namespace tfmot_ternary

#endif  // TFMOT_TERNARY_KERNELS_FULLY_CONNECTED_H_
