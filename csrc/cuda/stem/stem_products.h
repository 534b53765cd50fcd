// The stem's transform as a matrix product, z [pixels, channels] = image [pixels, 16] * transform [16, channels], for
// images of three inputs.
//
// Both are float, but tensor cores take 16-bit elements, so each float is split into two bfloat16 (products.h). Each
// pair of elements of the inner dimension belongs to one input. The pixel's elements are (upper part, lower part) in
// both halves of the dimension; the weight's are its upper part twice in the first half and its lower part twice in the
// second. The last pair of each half is the bias.
#pragma once

#include "../common/products.h"
#include "stem.h"

namespace robust_lr::cuda {

constexpr int kProductInputs = 3, kLines = 16;  // inputs of an image, and pixels of a product
constexpr unsigned kTwoOnes = 0x3f803f80u;      // as bfloat16

// A lane's elements of the transform of one channel: a word for each half of the inner dimension.
struct TransformWords {
  unsigned upper, lower;

  __device__ TransformWords(const Stem<float>& x, int channel, bool present) {
    const bool is_bias = lane_pair() == kProductInputs;
    const float v = present ? row_of(x, channel)[lane_pair()] : 0.f;
    const float first = upper_part(v), rest = v - first, second = upper_part(rest);
    upper = pack(first, is_bias ? second : first);
    lower = pack(is_bias ? rest - second : rest, is_bias ? 0.f : rest);
  }
};

__device__ inline RightMatrix transform_matrix(const Stem<float>& x, int channel, bool present) {
  const TransformWords words(x, channel, present);
  return {words.upper, words.lower};
}

// A lane's elements of one pixel, of which the lane reads one input, at `input`. Zeros outside the image.
__device__ inline unsigned pixel_word(const float* input, bool inside) {
  const bool is_bias = lane_pair() == kProductInputs;
  const float v = inside && !is_bias ? *input : 0.f;
  return is_bias ? (inside ? kTwoOnes : 0u) : pack_parts(v);
}

// The plane of the image that a lane reads.
__device__ inline const float* plane_of_lane(const Stem<float>& x, const Problem& p, int n) {
  return pixel_of(x, p, n, min(lane_pair(), kProductInputs - 1), 0, 0);
}

// Returns true if the values of whole groups can be made by products.
__host__ __device__ inline bool has_whole_groups(const Stem<float>& x, const Problem& p) {
  return x.inputs == kProductInputs && p.shared == kChannels && p.channels % kChannels == 0;
}

constexpr int kProductGroups = 8;  // groups of a tile that is computed by products

// Like load_tile, for a tile of kProductGroups groups and dense keys. Four lanes share a run of pixels; each of them
// has groups 2 pair and 2 pair + 1.
//
// Column `line` of right matrix `m` is channel 2 m + line % 2 of a group, so a lane's sums of the four products are all
// channels of one group at a pixel.
template <class T, int Stride>
__device__ void load_tile_by_products(const Tile<Stride>& tile, const Stem<float>& x, const Problem& p,
                                      const Image<const float>& k, float factor, float outside, Piece<T>* to,
                                      float* keys_to) {
  constexpr int kRunsOfWarp = 8;
  const int line = lane_line(), g = 2 * lane_pair(), width = int(p.width), height = int(p.height);
  RightMatrix transform[2][4];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int group = tile.group + line / 2 * 2 + h;
#pragma unroll
    for (int m = 0; m < 4; ++m)
      transform[h][m] = transform_matrix(x, group * kChannels + 2 * m + line % 2, group < p.groups);
  }
  const bool present[2] = {tile.group + g < p.groups, tile.group + g + 1 < p.groups};
  const float* const input = plane_of_lane(x, p, tile.n) + tile.row * width + tile.column;
  const float* const key = address(k, tile.n, tile.group + g, tile.row, tile.column);
  const int all = tile.runs();
  int start = int(threadIdx.x) / 32 * kRunsOfWarp;
  Runs runs(tile, start + line, int(blockDim.x) / 32 * kRunsOfWarp);
#pragma unroll 1
  for (; start < all; start += int(blockDim.x) / 32 * kRunsOfWarp, runs.go_on()) {
    const int rows_inside = unsigned(tile.column + runs.column) < unsigned(width) ? height : 0;
    const int pixel = runs.row * width + runs.column;
    const float* const own = pixel_at(k, key, runs.row, runs.column);
    unsigned inputs[kRun];
    float keys[kRun][2];
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      const bool inside = unsigned(tile.row + runs.row + i) < unsigned(rows_inside);
      inputs[i] = pixel_word(input + pixel + i * width, inside);
#pragma unroll
      for (int h = 0; h < 2; ++h) keys[i][h] = inside && present[h] ? factor * pixel_at(k, own, i, 0)[h] : outside;
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      alignas(16) unsigned values[kRun][4];
#pragma unroll
      for (int i = 0; i < kRun; i += 2) {
#pragma unroll
        for (int m = 0; m < 4; ++m) {
          ProductSums z{};
          multiply(z, {inputs[i], inputs[i + 1], inputs[i], inputs[i + 1]}, transform[h][m]);
          values[i][m] = pack_relu<T>(z.values[0], z.values[1]);
          values[i + 1][m] = pack_relu<T>(z.values[2], z.values[3]);
        }
      }
      const int place = tile.at(runs.row, runs.column, g + h), key_place = tile.scalar_at(runs.row, runs.column, g + h);
#pragma unroll
      for (int i = 0; i < kRun; ++i) {
        if (runs.row + i >= tile.rows) continue;
        reinterpret_cast<float4*>(to)[place + i] = *reinterpret_cast<const float4*>(values[i]);
        keys_to[key_place + i] = keys[i][h];
      }
    }
  }
}

}  // namespace robust_lr::cuda
