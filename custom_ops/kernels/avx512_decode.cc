// AVX-512 VNNI kernels for few rows of x: weights are read once, in place.
#if defined(__x86_64__)

#include <cstring>
#include <utility>

#include "custom_ops/kernels/avx512.h"
#include "custom_ops/kernels/avx512_groups.h"

namespace tfmot_ternary {
namespace avx512 {
namespace {

// Rows of x that callers pass at once.
constexpr int64_t kBlockM = 4;

// How far ahead of the rows that are read the tiles, which follow each other in memory, are asked
// for: whole rows, of `bytes` each. Into the second-level cache, because the first has too few
// lines under way for memory.
int64_t PrefetchDistance(int64_t bytes) {
  constexpr int64_t kDistance = 16384;
  return (kDistance + bytes - 1) / bytes * bytes;
}

// R rows of W times M rows of x, one group. Each packed block meets kFields runs of q.
template <class Codec, int R, int M>
struct Rows {
  template <int f>
  static TFMOT_TERNARY_AVX512_INLINE void AddFields(const typename Codec::Block* blocks,
                                                    const int8_t* q, int64_t stride, int64_t size,
                                                    __m512i (*acc)[Codec::kAccumulators]) {
    if constexpr (f < Codec::kFields) {
      __m512i activations[M];
      for (int i = 0; i < M; ++i) activations[i] = Load(q + i * stride + f * size);
      for (int r = 0; r < R; ++r) {
        const __m512i codes = Codec::template Field<f>(blocks[r]);
        for (int i = 0; i < M; ++i) {
          DotBytes(codes, activations[i], &acc[i * R + r][Codec::Accumulator(f)]);
        }
      }
      AddFields<f + 1>(blocks, q, stride, size, acc);
    }
  }

  // totals[i * R + r]: the lanes of the sum of code * q, of rows `step` apart.
  static TFMOT_TERNARY_AVX512_INLINE void Run(const GemmTile& tile, int first_row, int step,
                                              const int8_t* q, int64_t stride, __m512i* totals) {
    constexpr int64_t kBlockWeights = kBlockBytes * Codec::kFields;
    const uint8_t* rows = tile.rows + first_row * tile.row_bytes;
    const int64_t row_step = step * tile.row_bytes;
    const int64_t ahead = PrefetchDistance(tile.row_bytes);
    __m512i acc[R * M][Codec::kAccumulators];
    for (auto& row : acc) {
      for (__m512i& lanes : row) lanes = _mm512_setzero_si512();
    }
    int64_t rest = tile.k;
    for (; rest >= kBlockWeights; rest -= kBlockWeights) {
      typename Codec::Block blocks[R];
      for (int r = 0; r < R; ++r) {
        // With two rows of x it would cost more than it brings where weights are in a cache.
        if constexpr (M == 1) Prefetch(rows + r * row_step + ahead);
        __m512i bytes = Load(rows + r * row_step);
        HoldInRegister(&bytes);
        blocks[r] = Codec::MakeBlock(bytes);
      }
      AddFields<0>(blocks, q, stride, kBlockBytes, acc);
      rows += kBlockBytes;
      q += kBlockWeights;
    }
    if (rest > 0) {
      const int64_t size = ShortBlockBytes(Codec::kFormat, rest);
      typename Codec::Block blocks[R];
      for (int r = 0; r < R; ++r) {
        __m512i bytes = LoadPart(rows + r * row_step, size);
        HoldInRegister(&bytes);
        blocks[r] = Codec::MakeBlock(bytes);
      }
      AddFields<0>(blocks, q, stride, size, acc);
    }
    for (int i = 0; i < R * M; ++i) totals[i] = Codec::Total(acc[i]);
  }
};

// Sums of weight * q from the lanes of four sums of code * q.
template <class Codec>
TFMOT_TERNARY_AVX512_INLINE __m128i Finish4(const __m512i* totals, __m128i sums) {
  __m128i total = SumLanes4(totals[0], totals[1], totals[2], totals[3]);
  if (Codec::kSumFactor == 2) total = _mm_add_epi32(total, total);
  return _mm_sub_epi32(total, sums);
}

// Five accumulators for each of four rows would leave t5 without registers for its constants.
template <class Codec>
constexpr int kRowsAtOnce = Codec::kAccumulators > 4 ? 2 : 4;

// Sums of four rows of W, `step` apart, times one row of x.
template <class Codec>
TFMOT_TERNARY_AVX512_INLINE __m128i MultiplyFour(const GemmTile& tile, int first_row, int step,
                                                 const int8_t* q, int64_t stride, __m128i sums) {
  using Block = Rows<Codec, kRowsAtOnce<Codec>, 1>;
  __m512i totals[4];
  Block::Run(tile, first_row, step, q, stride, totals);
  if (kRowsAtOnce<Codec> == 2) {
    Block::Run(tile, first_row + 2 * step, step, q, stride, totals + 2);
  }
  return Finish4<Codec>(totals, sums);
}

// All rows of the tile times one row of x.
template <class Codec>
TFMOT_TERNARY_AVX512_INLINE void MultiplyOneRow(const GemmTile& tile, const GemmInput& input,
                                                int64_t i, int32_t* out) {
  const int8_t* q = input.q + i * input.stride;
  const __m128i sums = _mm_set1_epi32(input.sums[i]);
  if (tile.row_count == kTileRows) {
    // Rows a quarter of the tile apart: hardware that prefetches lines in order then sees four long
    // runs. Of neighbours it sees one run whose lines come out of order.
    constexpr int kStep = kTileRows / 4;
    for (int r = 0; r < kStep; ++r) {
      const __m128i four = MultiplyFour<Codec>(tile, r, kStep, q, input.stride, sums);
      out[r] = _mm_cvtsi128_si32(four);
      out[r + kStep] = _mm_extract_epi32(four, 1);
      out[r + 2 * kStep] = _mm_extract_epi32(four, 2);
      out[r + 3 * kStep] = _mm_extract_epi32(four, 3);
    }
    return;
  }
  int r = 0;
  for (; r + 4 <= tile.row_count; r += 4) {
    _mm_store_si128(reinterpret_cast<__m128i*>(out + r),
                    MultiplyFour<Codec>(tile, r, 1, q, input.stride, sums));
  }
  __m512i totals[4] = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512(),
                       _mm512_setzero_si512()};
  for (; r < tile.row_count; ++r) {
    Rows<Codec, 1, 1>::Run(tile, r, 1, q, input.stride, totals);
    out[r] = _mm_cvtsi128_si32(Finish4<Codec>(totals, sums));
  }
}

// All rows of the tile times two rows of x: each mask serves two products.
template <class Codec>
TFMOT_TERNARY_AVX512_INLINE void MultiplyTwoRows(const GemmTile& tile, const GemmInput& input,
                                                 int64_t i, int32_t* out) {
  const int8_t* q = input.q + i * input.stride;
  const int32_t first = input.sums[i];
  const int32_t second = input.sums[i + 1];
  __m512i totals[4];
  int r = 0;
  for (; r + 2 <= tile.row_count; r += 2) {
    Rows<Codec, 2, 2>::Run(tile, r, 1, q, input.stride, totals);
    const __m128i all = Finish4<Codec>(totals, _mm_setr_epi32(first, first, second, second));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(out + r), all);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(out + kTileRows + r), _mm_srli_si128(all, 8));
  }
  if (r < tile.row_count) {
    totals[2] = totals[3] = _mm512_setzero_si512();
    Rows<Codec, 1, 2>::Run(tile, r, 1, q, input.stride, totals);
    const __m128i all = Finish4<Codec>(totals, _mm_setr_epi32(first, second, 0, 0));
    out[r] = _mm_cvtsi128_si32(all);
    out[kTileRows + r] = _mm_extract_epi32(all, 1);
  }
}

template <class Codec>
TFMOT_TERNARY_AVX512 void MultiplyOneGroup(const GemmTile& tile, const GemmInput& input,
                                           int32_t* acc) {
  int64_t i = 0;
  for (; i + 2 <= input.m; i += 2) MultiplyTwoRows<Codec>(tile, input, i, acc + i * kTileRows);
  if (i < input.m) MultiplyOneRow<Codec>(tile, input, i, acc + i * kTileRows);
}

TFMOT_TERNARY_AVX512_INLINE __m512i Broadcast4(const int8_t* q) {
  int32_t four;
  std::memcpy(&four, q, sizeof(four));
  return _mm512_set1_epi32(four);
}

// The last block of 16 rows, where it is short: decoded, then four weights of every row at a time.
template <class Codec>
TFMOT_TERNARY_AVX512_INLINE void MultiplyShortBlock(const uint8_t* const* rows, int64_t offset,
                                                    int64_t count, const int8_t* q,
                                                    uint8_t* scratch, GroupWriter* writer) {
  const int64_t size = ShortBlockBytes(Codec::kFormat, count);
  __m512i columns[16];
  LoadColumns(rows, offset, size, columns);
  for (int64_t d = 0; d < size / 4; ++d) {
    StoreFields<Codec, 0>(Codec::MakeBlock(columns[d]), size * 16, scratch + d * 64);
  }
  for (int64_t i = 0; i < count; i += 4) {
    __m512i sum = _mm512_setzero_si512();
    DotBytes(_mm512_load_si512(scratch + i * 16), Broadcast4(q + i), &sum);
    writer->Add(sum, 4);
  }
}

// What a writer for 16 rows asks for: its share of the next scales, or where there are none, scales
// that are in the cache.
const uint8_t* ScalesAhead(const GemmTile& tile, const float* scales, int first) {
  if (tile.next_scales == nullptr) return reinterpret_cast<const uint8_t*>(scales);
  return reinterpret_cast<const uint8_t*>(tile.next_scales + first * tile.groups);
}

// All rows of the tile times row i of x, in groups of kGroup.
template <class Codec, int kGroup>
TFMOT_TERNARY_AVX512 void MultiplyGroupsOneRow(const GemmTile& tile, const GemmInput& input,
                                               int64_t i, int32_t* acc, const float* scales,
                                               float* scaled) {
  constexpr int64_t kBlockWeights = kBlockBytes * Codec::kFields;
  const int8_t* q = input.q + i * input.stride;
  const int64_t blocks = tile.k / kBlockWeights;
  const int64_t rest = tile.k - blocks * kBlockWeights;
  const uint8_t* ahead = tile.rows + PrefetchDistance(16 * tile.row_bytes);
  const uint8_t* rows[kTileRows];
  for (int first = 0; first < tile.row_count; first += 16) PointToRows(tile, first, rows + first);
  uint8_t* now = tile.scratch;
  uint8_t* later = tile.scratch + kTurnedBytes;
  uint8_t* decoded = tile.scratch + 2 * kTurnedBytes;
  if (blocks > 0) TurnBlock({rows, 0, now, ahead});
  for (int first = 0; first < tile.row_count; first += 16) {
    GroupWriter writer;
    writer.sums = input.sums + i * tile.groups;
    writer.out = acc == nullptr ? nullptr : acc + first;
    writer.scales = acc == nullptr ? scales + first : nullptr;
    writer.ahead = ScalesAhead(tile, scales, first);
    writer.scaled = acc == nullptr ? _mm512_load_ps(scaled + first) : _mm512_setzero_ps();
    writer.group_size = kGroup;
    writer.pending = _mm512_setzero_si512();
    for (int64_t b = 0; b < blocks; ++b) {
      // The next block; where there is none, the same one again.
      BlockOf16Rows next = {rows + first, b * kBlockBytes, later, ahead};
      if (b + 1 < blocks) {
        next.offset += kBlockBytes;
      } else if (first + 16 < tile.row_count) {
        next.rows += 16;
        next.offset = 0;
      }
      ahead += kTurnedBytes;
      GroupBlock<Codec, kGroup>::Run(now, q + b * kBlockWeights, next, decoded, &writer);
      std::swap(now, later);
    }
    if (rest > 0) {
      MultiplyShortBlock<Codec>(rows + first, blocks * kBlockBytes, rest,
                                q + blocks * kBlockWeights, decoded, &writer);
    }
    writer.Flush();
    if (acc == nullptr) _mm512_store_ps(scaled + first, writer.scaled);
  }
}

// i8 and i4: a block of 16 rows, turned in registers, so that a sum needs no other lane (sums of
// parts would not fit the 16 bits of SumParts). Field f and those after it; the first one asks for
// a KiB at `ahead`, line by line.
template <class Codec, int f>
TFMOT_TERNARY_AVX512_INLINE void MultiplyTurned(const __m512i* columns, const int8_t* q,
                                                const uint8_t* ahead, GroupWriter* writer) {
  if constexpr (f < Codec::kFields) {
    constexpr int kHalf = kBlockBytes / 2;  // the smallest group
    for (int half = 0; half < 2; ++half, columns += 8, q += kHalf) {
      if (f == 0 && half == 1) ahead += 8 * kBlockBytes;
      __m512i even = _mm512_setzero_si512();
      __m512i odd = _mm512_setzero_si512();
      for (int d = 0; d < 8; d += 2) {
        if (f == 0) {
          Prefetch(ahead + d * kBlockBytes);
          Prefetch(ahead + (d + 1) * kBlockBytes);
        }
        DotBytes(Codec::template Field<f>(columns[d]), Broadcast4(q + 4 * d), &even);
        DotBytes(Codec::template Field<f>(columns[d + 1]), Broadcast4(q + 4 * d + 4), &odd);
      }
      writer->Add(_mm512_srai_epi32(_mm512_add_epi32(even, odd), 8 / Codec::kFields * f % 8),
                  kHalf);
    }
    MultiplyTurned<Codec, f + 1>(columns - 16, q, ahead, writer);
  }
}

// The same for all rows of the tile and row i of x.
template <class Codec>
TFMOT_TERNARY_AVX512 void MultiplyIntegersOneRow(const GemmTile& tile, const GemmInput& input,
                                                 int64_t i, int32_t* acc, const float* scales,
                                                 float* scaled) {
  constexpr int64_t kBlockWeights = kBlockBytes * Codec::kFields;
  const uint8_t* ahead = tile.rows + PrefetchDistance(16 * tile.row_bytes);
  for (int first = 0; first < tile.row_count; first += 16) {
    const uint8_t* rows[16];
    PointToRows(tile, first, rows);
    GroupWriter writer;
    writer.sums = input.sums + i * tile.groups;
    writer.out = acc == nullptr ? nullptr : acc + first;
    writer.scales = acc == nullptr ? scales + first : nullptr;
    writer.ahead = ScalesAhead(tile, scales, first);
    writer.scaled = acc == nullptr ? _mm512_load_ps(scaled + first) : _mm512_setzero_ps();
    writer.group_size = tile.group_size;
    writer.pending = _mm512_setzero_si512();
    const int8_t* q = input.q + i * input.stride;
    int64_t rest = tile.k;
    for (int64_t offset = 0; rest >= kBlockWeights; offset += kBlockBytes) {
      __m512i columns[16];
      LoadColumns(rows, offset, kBlockBytes, columns);
      MultiplyTurned<Codec, 0>(columns, q, ahead, &writer);
      ahead += kTurnedBytes;
      q += kBlockWeights;
      rest -= kBlockWeights;
    }
    if (rest > 0) {
      MultiplyShortBlock<Codec>(rows, (tile.k - rest) / Codec::kFields, rest, q, tile.scratch,
                                &writer);
    }
    writer.Flush();
    if (acc == nullptr) _mm512_store_ps(scaled + first, writer.scaled);
  }
}

// Integers to `acc`, or where that is null, products with scales added to `scaled`.
template <class Codec, int kGroup>
void MultiplyGroups(const GemmTile& tile, const GemmInput& input, int32_t* acc, const float* scales,
                    float* scaled) {
  for (int64_t i = 0; i < input.m; ++i) {
    int32_t* to = acc == nullptr ? nullptr : acc + i * tile.groups * kTileRows;
    float* scaled_to = scaled == nullptr ? nullptr : scaled + i * kTileRows;
    if constexpr (Codec::kFields <= 2) {
      MultiplyIntegersOneRow<Codec>(tile, input, i, to, scales, scaled_to);
    } else {
      MultiplyGroupsOneRow<Codec, kGroup>(tile, input, i, to, scales, scaled_to);
    }
  }
}

template <class Codec>
void MultiplyAnyGroups(const GemmTile& tile, const GemmInput& input, int32_t* acc,
                       const float* scales, float* scaled) {
  if constexpr (Codec::kFields <= 2) {
    return MultiplyGroups<Codec, 0>(tile, input, acc, scales, scaled);
  }
  switch (tile.group_size) {
    case 32:
      return MultiplyGroups<Codec, 32>(tile, input, acc, scales, scaled);
    case 64:
      return MultiplyGroups<Codec, 64>(tile, input, acc, scales, scaled);
    case 128:
      return MultiplyGroups<Codec, 128>(tile, input, acc, scales, scaled);
    default:
      return MultiplyGroups<Codec, 256>(tile, input, acc, scales, scaled);
  }
}

template <class Codec>
void Multiply(const GemmTile& tile, const GemmInput& input, int64_t /*group_begin*/,
              int64_t /*group_end*/, int32_t* acc) {
  if (tile.groups == 1) {
    MultiplyOneGroup<Codec>(tile, input, acc);
  } else {
    MultiplyAnyGroups<Codec>(tile, input, acc, nullptr, nullptr);
  }
}

template <class Codec>
TFMOT_TERNARY_AVX512 void MultiplyOneGroupScaled(const GemmTile& tile, const GemmInput& input,
                                                 const float* scales, float* sums) {
  alignas(64) int32_t acc[kBlockM * kTileRows] = {};
  MultiplyOneGroup<Codec>(tile, input, acc);
  for (int64_t i = 0; i < input.m * kTileRows; i += 16) {
    const __m512 scale = _mm512_load_ps(scales + i % kTileRows);
    const __m512 product = _mm512_mul_ps(_mm512_cvtepi32_ps(Load(acc + i)), scale);
    _mm512_store_ps(sums + i, _mm512_add_ps(_mm512_load_ps(sums + i), product));
  }
}

template <class Codec>
void MultiplyScaled(const GemmTile& tile, const GemmInput& input, const float* scales,
                    float* sums) {
  if (tile.groups == 1) {
    MultiplyOneGroupScaled<Codec>(tile, input, scales, sums);
  } else {
    MultiplyAnyGroups<Codec>(tile, input, nullptr, scales, sums);
  }
}

// Two turned blocks, and a short block of 16 rows, decoded: at most 8 * 60 weights of each.
size_t ScratchBytes(int64_t /*k*/) { return 2 * kTurnedBytes + 8 * kBlockBytes * 16; }

}  // namespace
}  // namespace avx512

#define TFMOT_TERNARY_DEFINE(name, codec)                                                          \
  extern const GemmFunctions name;                                                                 \
  const GemmFunctions name = {                                                                     \
      avx512::kBlockM,     /*group_ranges=*/false,          avx512::ScratchBytes,                  \
      /*load=*/nullptr,    avx512::Multiply<avx512::codec>, avx512::MultiplyScaled<avx512::codec>, \
      /*reads_sums=*/true, /*prefetches_scales=*/true};
TFMOT_TERNARY_DEFINE(T2DecodeAvx512Vnni, T2Codec)
TFMOT_TERNARY_DEFINE(T5DecodeAvx512Vnni, T5Codec)
TFMOT_TERNARY_DEFINE(B1DecodeAvx512Vnni, B1Codec)
TFMOT_TERNARY_DEFINE(I8DecodeAvx512Vnni, I8Codec)
TFMOT_TERNARY_DEFINE(I4DecodeAvx512Vnni, I4Codec)
#undef TFMOT_TERNARY_DEFINE

}  // namespace tfmot_ternary

#endif  // defined(__x86_64__)
