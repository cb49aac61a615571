// Attention in plain C++: the specification of the other kernels.

#include <algorithm>
#include <cmath>
#include <limits>

#include "custom_ops/kernels/attention.h"
#include "custom_ops/kernels/half.h"

namespace tfmot_ternary {
namespace {

constexpr int64_t kLanes = AttentionCache::kLanes;
constexpr float kNothing = -std::numeric_limits<float>::infinity();

// Positions whose scores are held at a time.
constexpr int64_t kBlock = 256;
static_assert(kBlock <= kAttentionScratch, "the scores of a row fit into the scratch");

float AsFloat(float value) { return value; }
float AsFloat(uint16_t value) { return FloatFromHalf(value); }
float AsFloat(int8_t value) { return static_cast<float>(value); }

template <typename T>
float FloatScore(const AttentionPiece& piece, int64_t r, int64_t position) {
  const AttentionCache& cache = *piece.cache;
  const T* key = cache.Keys<T>(piece.head) + position / kLanes * cache.key_block();
  float sum = 0.0f;
  for (int64_t d = 0; d < cache.shape().head_dim; ++d) {
    const int64_t chunk = d / PreparedRows::kChunk * kAttentionRows + r;
    const float x = piece.rows.scaled[chunk * PreparedRows::kStride + d % PreparedRows::kChunk];
    sum += x * AsFloat(key[d * kLanes + position % kLanes]);
  }
  return sum;
}

// float(sum of codes * codes) * (query scale * score scale) * key scale.
float Int8Score(const AttentionPiece& piece, int64_t r, int64_t position) {
  const AttentionCache& cache = *piece.cache;
  const uint8_t* key = cache.Keys<uint8_t>(piece.head) + position / kLanes * cache.key_block();
  const int8_t* codes = piece.rows.codes + r * piece.rows.code_stride;
  int32_t sum = piece.rows.corrections[r];
  for (int64_t d = 0; d < piece.rows.code_stride; ++d) {
    sum += codes[d] * key[d / 4 * 4 * kLanes + position % kLanes * 4 + d % 4];
  }
  return static_cast<float>(sum) * piece.rows.scales[r] * cache.KeyScales(piece.head)[position];
}

float Score(const AttentionPiece& piece, int64_t r, int64_t position) {
  const CacheType type = piece.cache->shape().type;
  const float score = type == CacheType::kInt8      ? Int8Score(piece, r, position)
                      : type == CacheType::kFloat16 ? FloatScore<uint16_t>(piece, r, position)
                                                    : FloatScore<float>(piece, r, position);
  const float cap = piece.query->soft_cap;
  return cap > 0.0f ? cap * std::tanh(score / cap) : score;
}

template <typename T>
void AddValue(const AttentionPiece& piece, int64_t position, float weight, float* out) {
  const int64_t padded = piece.cache->padded_dim();
  const T* value = piece.cache->Values<T>(piece.head) + position * padded;
  for (int64_t d = 0; d < padded; ++d) out[d] += weight * AsFloat(value[d]);
}

void AddValue(const AttentionPiece& piece, int64_t position, float weight, float* out) {
  switch (piece.cache->shape().type) {
    case CacheType::kFloat32:
      return AddValue<float>(piece, position, weight, out);
    case CacheType::kFloat16:
      return AddValue<uint16_t>(piece, position, weight, out);
    case CacheType::kInt8:
      return AddValue<int8_t>(piece, position,
                              weight * piece.cache->ValueScales(piece.head)[position], out);
  }
}

void AttendRow(const AttentionPiece& piece, int64_t r, float* largest, float* sum, float* out) {
  const int64_t step = (piece.row_begin + r) / GroupOf(*piece.cache, *piece.query);
  const uint8_t* mask = piece.query->mask;
  if (mask != nullptr) mask += step * piece.cache->shape().length;
  const int64_t end = std::min(piece.key_end, VisibleEnd(*piece.cache, *piece.query, step));
  const int64_t padded = piece.cache->padded_dim();
  float* scores = piece.scratch;
  for (int64_t begin = piece.key_begin; begin < end; begin += kBlock) {
    const int64_t count = std::min(kBlock, end - begin);
    float new_largest = *largest;
    for (int64_t i = 0; i < count; ++i) {
      const bool visible = mask == nullptr || mask[begin + i] != 0;
      scores[i] = visible ? Score(piece, r, begin + i) : kNothing;
      if (!(scores[i] <= new_largest)) new_largest = scores[i];
    }
    if (new_largest == kNothing) continue;
    const float kept = *largest == kNothing ? 0.0f : std::exp(*largest - new_largest);
    *sum *= kept;
    for (int64_t d = 0; d < padded; ++d) out[d] *= kept;
    *largest = new_largest;
    for (int64_t i = 0; i < count; ++i) {
      if (scores[i] == kNothing) continue;
      const float weight = std::exp(scores[i] - new_largest);
      *sum += weight;
      AddValue(piece, begin + i, weight, out);
    }
  }
}

void PortableAttend(const AttentionPiece& piece) {
  const int64_t padded = piece.cache->padded_dim();
  for (int64_t r = 0; r < piece.row_end - piece.row_begin; ++r) {
    float* out = piece.out + r * padded;
    piece.largest[r] = kNothing;
    piece.sums[r] = 0.0f;
    std::fill_n(out, padded, 0.0f);
    AttendRow(piece, r, &piece.largest[r], &piece.sums[r], out);
  }
}

void PortableToHalf(const float* x, int64_t count, uint16_t* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = HalfFromFloat(x[i]);
}

}  // namespace

extern const AttentionFunctions PortableAttention;
const AttentionFunctions PortableAttention = {PortableAttend, PortableToHalf};

}  // namespace tfmot_ternary
