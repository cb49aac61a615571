// AMX kernels for several rows of x. A piece of up to 512 weights of each row of a tile of W is
// unpacked into the first-level cache, meets all rows of x there, and makes room for the next one.
//
// A tile instruction multiplies 16 rows of x, as they are, by 16 rows of W in the order
// [k / 4][16][4], which is what turning the packed bytes and then decoding them gives. Weights are
// signed, so that no sum of q has to be taken out.
#if defined(__x86_64__)

#include <algorithm>

#include "custom_ops/kernels/amx_tiles.h"
#include "custom_ops/kernels/amx_unpack.h"
#include "custom_ops/kernels/avx512.h"

namespace tfmot_ternary {
namespace amx {
namespace {

constexpr int64_t kStep = 64;                  // weights that a tile register holds of each row
constexpr int64_t kBlockM = 2 * kMaxTileRows;  // rows of x that meet a piece at once

// A longer piece would be pushed out of the first-level cache by the rows of x (measured: 1024
// weights, 32 KiB, take a third longer).
constexpr int64_t kMaxPiece = kMaxBlockWeights;
constexpr int64_t kHalfBytes = (kMaxPiece + kStep) * kHalfRows;

// Rows of x that a call takes: sums that wait for the next piece lie in scratch memory.
constexpr int64_t kMaxM = 256;

// Groups whose scales are applied together, and their sums: one such batch is written by the tiles
// while another is read.
constexpr int kBatch = 2;
constexpr int64_t kBatchSums = kBatch * kBlockM * kTileRows;

struct Scratch {
  int8_t* weights;   // [2][kHalfBytes]
  int32_t* batches;  // [2][kBatchSums]
  int32_t* partial;  // [kMaxM][kTileRows]: sums of a group that goes on in the next piece
};

Scratch TakeScratch(uint8_t* base) {
  Scratch scratch;
  scratch.weights = reinterpret_cast<int8_t*>(base);
  scratch.batches = reinterpret_cast<int32_t*>(base + 2 * kHalfBytes);
  scratch.partial = scratch.batches + 2 * kBatchSums;
  return scratch;
}

size_t ScratchBytes(int64_t /*k*/) {
  return 2 * kHalfBytes + (2 * kBatchSums + kMaxM * kTileRows) * sizeof(int32_t);
}

// A group's part of a piece: up to 32 rows of x times the tile of W.
struct Part {
  const int8_t* q;
  int64_t q_stride;
  int64_t x_rows;         // in the first tile register
  const int8_t* weights;  // of the first half
  int64_t weight_count;   // rounded up to steps: q is zero there
  int64_t step;
  bool clear;             // the group begins here
  const int32_t* before;  // the sums so far; null where the tiles have them
  int64_t before_stride;  // bytes
  int32_t* after;         // where the sums go; null where they stay
  int64_t after_stride;
};

// Tiles 0 to 3: sums of rows 0 to 15 and 16 to 31 of W, for the first and the second rows of x.
// 4 and 5: rows of x. 6 and 7: rows of W. kX, kW: how many of each there are.
template <int kX, int kW>
TFMOT_TERNARY_AMX void MultiplyPart(const Part& part, Tiles* tiles) {
  if (part.clear) {
    tiles->Clear<0>();
    if (kW > 1) tiles->Clear<1>();
    if (kX > 1) tiles->Clear<2>();
    if (kX > 1 && kW > 1) tiles->Clear<3>();
  } else if (part.before != nullptr) {
    const int32_t* second = part.before + part.x_rows * part.before_stride / 4;
    tiles->Load<0>(part.before, part.before_stride);
    if (kW > 1) tiles->Load<1>(part.before + kHalfRows, part.before_stride);
    if (kX > 1) tiles->Load<2>(second, part.before_stride);
    if (kX > 1 && kW > 1) tiles->Load<3>(second + kHalfRows, part.before_stride);
  }
  const int8_t* q = part.q;
  const int8_t* second_q = q + part.x_rows * part.q_stride;
  const int8_t* w = part.weights;
  for (int64_t i = 0; i < part.weight_count; i += part.step) {
    tiles->Load<6>(w, 64);
    tiles->Load<4>(q, part.q_stride);
    tiles->Dot<0, 4, 6>();
    if (kX > 1) {
      tiles->Load<5>(second_q, part.q_stride);
      tiles->Dot<2, 5, 6>();
    }
    if (kW > 1) {
      tiles->Load<7>(w + kHalfBytes, 64);
      tiles->Dot<1, 4, 7>();
      if (kX > 1) tiles->Dot<3, 5, 7>();
    }
    q += part.step;
    second_q += part.step;
    w += part.step * kHalfRows;
  }
  if (part.after == nullptr) return;
  int32_t* second = part.after + part.x_rows * part.after_stride / 4;
  tiles->Store<0>(part.after, part.after_stride);
  if (kW > 1) tiles->Store<1>(part.after + kHalfRows, part.after_stride);
  if (kX > 1) tiles->Store<2>(second, part.after_stride);
  if (kX > 1 && kW > 1) tiles->Store<3>(second + kHalfRows, part.after_stride);
}

constexpr void (*kMultiplyPart[2][2])(const Part& part, Tiles* tiles) = {
    {MultiplyPart<1, 1>, MultiplyPart<1, 2>}, {MultiplyPart<2, 1>, MultiplyPart<2, 2>}};

TileShapes Shapes(int64_t x_rows, int64_t second_x_rows, int64_t step) {
  TileShapes shapes;
  for (int t = 0; t < 4; ++t) shapes.Set(t, t < 2 ? x_rows : second_x_rows, kTileRowBytes);
  shapes.Set(4, x_rows, step);
  shapes.Set(5, second_x_rows, step);
  for (int t = 6; t < 8; ++t) shapes.Set(t, step / 4, kTileRowBytes);
  return shapes;
}

// Where sums go as integers: acc[m, groups, kTileRows].
struct IntegerSums {
  int32_t* acc;
  int64_t groups;

  struct Place {
    int32_t* sums;
    int64_t stride;
  };
  Place PlaceOf(int64_t i, int64_t g, bool /*complete*/) const {
    return {acc + (i * groups + g) * kTileRows, groups * kTileRows * 4};
  }
  void Complete(int64_t /*i*/, int64_t /*m*/, int64_t /*g*/) {}
  void Flush(int64_t /*i*/, int64_t /*m*/) {}
};

// Where they are scaled and added up, group by group: sums[m, kTileRows]. The tiles write one batch
// while the vector units read the one before.
struct ScaledSums {
  const float* scales;  // [groups, kTileRows]
  float* sums;
  int32_t* batch;
  int32_t* full_batch;
  int32_t* partial;
  int64_t first = 0;  // group of `batch`
  int filled = 0;
  int full = 0;  // groups in full_batch, which lie before those in `batch`

  IntegerSums::Place PlaceOf(int64_t i, int64_t /*g*/, bool complete) const {
    int32_t* sums_out = complete ? batch + filled * kBlockM * kTileRows : partial + i * kTileRows;
    return {sums_out, kTileRows * 4};
  }

  template <int count>
  TFMOT_TERNARY_AMX_INLINE void AddAs(int64_t m, const float* batch_scales, float* out) {
    __m512 scale[count][2];
    for (int g = 0; g < count; ++g) {
      for (int h = 0; h < 2; ++h) {
        scale[g][h] = _mm512_loadu_ps(batch_scales + g * kTileRows + h * kHalfRows);
      }
    }
    const int32_t* acc = full_batch;
    for (int64_t i = 0; i < m; ++i, acc += kTileRows, out += kTileRows) {
      for (int h = 0; h < 2; ++h) {
        __m512 sum = _mm512_loadu_ps(out + h * kHalfRows);
        for (int g = 0; g < count; ++g) {
          const void* from = acc + g * kBlockM * kTileRows + h * kHalfRows;
          const __m512 value = _mm512_cvtepi32_ps(_mm512_load_si512(from));
          sum = _mm512_add_ps(sum, _mm512_mul_ps(value, scale[g][h]));
        }
        _mm512_storeu_ps(out + h * kHalfRows, sum);
      }
    }
  }
  TFMOT_TERNARY_AMX void Add(int64_t i, int64_t m) {
    const float* batch_scales = scales + (first - full) * kTileRows;
    if (full == kBatch) AddAs<kBatch>(m, batch_scales, sums + i * kTileRows);
    if (full == 1) AddAs<1>(m, batch_scales, sums + i * kTileRows);
    full = 0;
  }
  void Complete(int64_t i, int64_t m, int64_t g) {
    if (filled == 0) first = g;
    if (++filled == kBatch) Turn(i, m);
  }
  void Turn(int64_t i, int64_t m) {
    Add(i, m);
    std::swap(batch, full_batch);
    full = filled;
    first += filled;
    filled = 0;
  }
  void Flush(int64_t i, int64_t m) {
    Turn(i, m);
    Add(i, m);
  }
};

template <class Codec, class Sums>
TFMOT_TERNARY_AMX void MultiplyPieces(const GemmTile& tile, const GemmInput& input, Sums sums) {
  constexpr int64_t kBlockWeights = kBlockBytes * Codec::kFields;
  constexpr int64_t kPiece = kMaxPiece / kBlockWeights * kBlockWeights;
  const int halves = tile.row_count > kHalfRows ? 2 : 1;
  const uint8_t* rows[2][16];
  for (int h = 0; h < halves; ++h) avx512::PointToRows(tile, h * kHalfRows, rows[h]);
  const Scratch scratch = TakeScratch(tile.scratch);
  const int64_t blocks = (input.m + kBlockM - 1) / kBlockM;
  Part part;
  part.q_stride = input.stride;
  part.step = tile.groups > 1 ? std::min(tile.group_size, kStep) : kStep;
  Tiles tiles;
  int64_t configured_m = 0;
  for (int64_t begin = 0; begin < tile.k; begin += kPiece) {
    const int64_t end = std::min(tile.k, begin + kPiece);
    for (int h = 0; h < halves; ++h) {
      Unpack<Codec>(tile, rows[h], begin, end, scratch.weights + h * kHalfBytes);
    }
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t i = block * input.m / blocks;
      const int64_t m = (block + 1) * input.m / blocks - i;
      part.x_rows = m > kMaxTileRows ? (m + 1) / 2 : m;
      if (m != configured_m) {
        tiles.Configure(Shapes(part.x_rows, m - part.x_rows, part.step));
        configured_m = m;
      }
      // Each piece a share of the rows.
      PrefetchOutputs(input, i + begin * m / tile.k, i + end * m / tile.k);
      for (int64_t from = begin; from < end;) {
        const int64_t g = from / tile.group_size;
        const int64_t group_begin = g * tile.group_size;
        const int64_t group_end = std::min(tile.k, group_begin + tile.group_size);
        const int64_t to = std::min(end, group_end);
        part.q = input.q + i * input.stride + from;
        part.weights = scratch.weights + (from - begin) * kHalfRows;
        part.weight_count = to - from;
        part.clear = from == group_begin;
        const bool complete = to == group_end;
        const auto before = sums.PlaceOf(i, g, false);
        part.before = blocks > 1 ? before.sums : nullptr;
        part.before_stride = before.stride;
        const auto after = sums.PlaceOf(i, g, complete);
        part.after = blocks > 1 || complete ? after.sums : nullptr;
        part.after_stride = after.stride;
        kMultiplyPart[m > kMaxTileRows ? 1 : 0][halves - 1](part, &tiles);
        if (complete) sums.Complete(i, m, g);
        from = to;
      }
      sums.Flush(i, m);
    }
  }
  tiles.Release();
}

template <class Codec>
void Multiply(const GemmTile& tile, const GemmInput& input, int64_t /*group_begin*/,
              int64_t /*group_end*/, int32_t* acc) {
  MultiplyPieces<Codec>(tile, input, IntegerSums{acc, tile.groups});
}

template <class Codec>
void MultiplyScaled(const GemmTile& tile, const GemmInput& input, const float* scales,
                    float* sums) {
  const Scratch scratch = TakeScratch(tile.scratch);
  MultiplyPieces<Codec>(
      tile, input,
      ScaledSums{scales, sums, scratch.batches, scratch.batches + kBatchSums, scratch.partial});
}

}  // namespace
}  // namespace amx

#define TFMOT_TERNARY_DEFINE(name, codec)                         \
  extern const GemmFunctions name;                                \
  const GemmFunctions name = {/*block_m=*/amx::kMaxM,             \
                              /*group_ranges=*/false,             \
                              amx::ScratchBytes,                  \
                              /*load=*/nullptr,                   \
                              amx::Multiply<avx512::codec>,       \
                              amx::MultiplyScaled<avx512::codec>, \
                              /*reads_sums=*/false};
TFMOT_TERNARY_DEFINE(T2PrefillAmx, T2Codec)
TFMOT_TERNARY_DEFINE(T5PrefillAmx, T5Codec)
TFMOT_TERNARY_DEFINE(B1PrefillAmx, B1Codec)
TFMOT_TERNARY_DEFINE(I8PrefillAmx, I8Codec)
TFMOT_TERNARY_DEFINE(I4PrefillAmx, I4Codec)
#undef TFMOT_TERNARY_DEFINE

}  // namespace tfmot_ternary

#endif  // defined(__x86_64__)
