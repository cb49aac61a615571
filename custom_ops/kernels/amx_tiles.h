// The AMX tile instructions that the kernels use, and a model of them in C++.
//
// There are eight tiles of up to 16 rows of 64 bytes. With TFMOT_TERNARY_MODEL_AMX defined, Tiles
// does in software what Intel's manual says of the instructions: so the kernels above it are tested
// on CPUs without AMX, and by sanitizers, which do not see what a tile instruction touches.
#ifndef TFMOT_TERNARY_KERNELS_AMX_TILES_H_
#define TFMOT_TERNARY_KERNELS_AMX_TILES_H_

#include <cstdint>
#include <cstring>

#include "custom_ops/kernels/avx512.h"

// GFNI comes with kCpuAmxInt8 (cpu.cc).
#if !defined(TFMOT_TERNARY_MODEL_AMX)
#define TFMOT_TERNARY_AMX_FEATURES \
  TFMOT_TERNARY_AVX512_FEATURES ",avx512vnni,gfni,amx-tile,amx-int8"
#else
#define TFMOT_TERNARY_AMX_FEATURES TFMOT_TERNARY_AVX512_FEATURES ",avx512vnni,gfni"
#endif
#define TFMOT_TERNARY_AMX __attribute__((target(TFMOT_TERNARY_AMX_FEATURES)))
#define TFMOT_TERNARY_AMX_INLINE \
  inline __attribute__((always_inline, target(TFMOT_TERNARY_AMX_FEATURES)))

namespace tfmot_ternary {
namespace amx {

constexpr int kTiles = 8;
constexpr int kMaxTileRows = 16;
constexpr int kTileRowBytes = 64;

// The operand of ldtilecfg: the rows of each tile and their bytes. A tile of no rows is not to be
// used.
struct alignas(64) TileShapes {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  void Set(int tile, int64_t row_count, int64_t bytes) {
    rows[tile] = static_cast<uint8_t>(row_count);
    row_bytes[tile] = static_cast<uint16_t>(row_count == 0 ? 0 : bytes);
  }
};
static_assert(sizeof(TileShapes) == 64, "as ldtilecfg reads it");

#if !defined(TFMOT_TERNARY_MODEL_AMX)

// Inline assembly: the intrinsics of gcc 12 say neither that a tile load reads memory nor that
// ldtilecfg reads more than eight bytes of it.
struct Tiles {
  // Sets the shapes and clears all tiles.
  TFMOT_TERNARY_AMX_INLINE void Configure(const TileShapes& shapes) {
    __asm__ volatile("ldtilecfg %0" : : "m"(shapes));
  }
  // Ends the use of tiles: until then the system saves 8 KiB of them whenever the thread stops.
  TFMOT_TERNARY_AMX_INLINE void Release() { __asm__ volatile("tilerelease"); }

  template <int t>
  TFMOT_TERNARY_AMX_INLINE void Clear() {
    __asm__ volatile("tilezero %%tmm%c0" : : "i"(t));
  }
  // Row i at p + i * stride.
  template <int t>
  TFMOT_TERNARY_AMX_INLINE void Load(const void* p, int64_t stride) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(p), "r"(stride), "i"(t) : "memory");
  }
  template <int t>
  TFMOT_TERNARY_AMX_INLINE void Store(void* p, int64_t stride) {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(p), "r"(stride), "i"(t) : "memory");
  }
  // c[i][j] += sum over d, e < 4 of a[i][4 d + e] * b[d][4 j + e]: int32 and int8.
  template <int c, int a, int b>
  TFMOT_TERNARY_AMX_INLINE void Dot() {
    __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(c), "i"(a), "i"(b));
  }
};

#else

struct Tiles {
  TileShapes shapes = {};
  alignas(64) int8_t bytes[kTiles][kMaxTileRows][kTileRowBytes];

  void Configure(const TileShapes& new_shapes) {
    shapes = new_shapes;
    std::memset(bytes, 0, sizeof(bytes));
  }
  void Release() { shapes = {}; }

  template <int t>
  void Clear() {
    std::memset(bytes[t], 0, sizeof(bytes[t]));
  }
  template <int t>
  void Load(const void* p, int64_t stride) {
    Clear<t>();
    for (int i = 0; i < shapes.rows[t]; ++i) {
      std::memcpy(bytes[t][i], static_cast<const int8_t*>(p) + i * stride, shapes.row_bytes[t]);
    }
  }
  template <int t>
  void Store(void* p, int64_t stride) {
    for (int i = 0; i < shapes.rows[t]; ++i) {
      std::memcpy(static_cast<int8_t*>(p) + i * stride, bytes[t][i], shapes.row_bytes[t]);
    }
  }
  // Shapes that do not fit each other fault on the CPU; here they trap.
  template <int c, int a, int b>
  void Dot() {
    const bool fit = shapes.rows[a] == shapes.rows[c] && shapes.rows[a] > 0 &&
                     shapes.row_bytes[a] == 4 * shapes.rows[b] &&
                     shapes.row_bytes[b] == shapes.row_bytes[c] && shapes.row_bytes[b] > 0;
    if (!fit) __builtin_trap();
    for (int i = 0; i < shapes.rows[c]; ++i) {
      int32_t sums[kTileRowBytes / 4];
      std::memcpy(sums, bytes[c][i], sizeof(sums));
      for (int d = 0; d < shapes.rows[b]; ++d) {
        for (int j = 0; j < shapes.row_bytes[c]; ++j) {
          sums[j / 4] += bytes[a][i][4 * d + j % 4] * bytes[b][d][j];
        }
      }
      std::memcpy(bytes[c][i], sums, sizeof(sums));
    }
  }
};

#endif

}  // namespace amx
}  // namespace tfmot_ternary

#endif  // TFMOT_TERNARY_KERNELS_AMX_TILES_H_
