// The stem's transform as a matrix product, z [pixels, channels] = image [pixels, 16] * transform [16, channels], for
// images of three inputs.
//
// Both are float, and tensor cores take 16-bit elements: each float is a sum of two bfloat16 (products.h), and each
// pair of elements of the inner dimension belongs to one input: (upper, lower part) of the pixel with twice the upper
// part of the weight in the first half, and with twice its lower part in the second half. The last pair is the bias.
#pragma once

#include "../common/products.h"
#include "stem.h"

namespace robust_lr::cuda {

constexpr int kProductInputs = 3, kLines = 16;  // of an image, and pixels of a product
constexpr unsigned kTwoOnes = 0x3f803f80u;      // as bfloat16

// What a lane has of the transform of one channel: its words of the two halves of the inner dimension.
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

// What a lane has of one pixel, whose input of this lane is at `input`: zeros where it is outside the image.
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

constexpr int kProductGroups = 8;  // of a tile that is made by products

// As load_tile, for a tile of kProductGroups groups and keys that are dense: a lane has group `pair` of each half of
// them.
//
// Column `line` of a right matrix `m` is channel 2 m + line % 2 of group line / 2, so a lane's sums of four products
// are all channels of one group at a pixel.
template <class T, int Stride, class Keys>
__device__ void load_tile_by_products(const Tile<Stride>& tile, const Stem<float>& x, const Problem& p,
                                      const Image<const float>& k, const Keys& of_pixels, Piece<T>* to,
                                      float* keys_to) {
  constexpr int kHalf = kProductGroups / 2;
  const int line = lane_line(), pair = lane_pair(), width = int(p.width), height = int(p.height);
  RightMatrix transform[2][4];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int group = tile.group + kHalf * h + line / 2;
#pragma unroll
    for (int m = 0; m < 4; ++m)
      transform[h][m] = transform_matrix(x, group * kChannels + 2 * m + line % 2, group < p.groups);
  }
  const bool pads = of_pixels.pads(), present[2] = {tile.group + pair < p.groups, tile.group + kHalf + pair < p.groups};
  const float* const input = plane_of_lane(x, p, tile.n) + tile.row * width + tile.column;
  const float* const key = address(k, tile.n, tile.group + pair, tile.row, tile.column);
  const int key_bytes = int(k.column) * int(sizeof(float)), pixels = tile.rows * tile.columns,
            step = int(blockDim.x) / 32 * kLines;
  int row_step = step, column_step = tile.by_columns.divide(row_step);
  int row[2], column[2], start = int(threadIdx.x) / 32 * kLines;
#pragma unroll
  for (int i = 0; i < 2; ++i) row[i] = start + line + 8 * i, column[i] = tile.by_columns.divide(row[i]);
  keep(row_step), keep(column_step);
  for (; start < pixels; start += step) {
    LeftMatrix inputs;
    float keys[2][2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const bool inside = row[i] < tile.rows && is_inside(tile.row + row[i], tile.column + column[i], height, width);
      const int at = row[i] * width + column[i];
      inputs.words[i] = inputs.words[i + 2] = pixel_word(input + at, inside);
      const float other = pads ? of_pixels.padded(tile.row + row[i], tile.column + column[i]) : of_pixels.outside();
      const auto* const own =
          reinterpret_cast<const float*>(reinterpret_cast<const char*>(key) + Index(at) * key_bytes);
#pragma unroll
      for (int h = 0; h < 2; ++h) keys[i][h] = inside && present[h] ? of_pixels.factor * own[kHalf * h] : other;
    }
    int place[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) place[i] = tile.at(row[i], column[i], 0) + pair;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      alignas(16) unsigned values[2][4];
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        ProductSums z{};
        multiply(z, inputs, transform[h][m]);
        values[0][m] = pack_relu<T>(z.values[0], z.values[1]), values[1][m] = pack_relu<T>(z.values[2], z.values[3]);
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (row[i] >= tile.rows) continue;
        reinterpret_cast<float4*>(to)[place[i] + kHalf * h] = *reinterpret_cast<const float4*>(values[i]);
        keys_to[place[i] + kHalf * h] = keys[i][h];
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      row[i] += row_step, column[i] += column_step;
      if (column[i] >= tile.columns) column[i] -= tile.columns, ++row[i];
    }
  }
}

}  // namespace robust_lr::cuda
