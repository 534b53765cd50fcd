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

// As load_tile, for a tile of kProductGroups groups: a lane has group `pair` of each half of them, and `scalars` is of
// the first half's.
//
// Column `line` of a right matrix `m` is channel 2 m + line % 2 of group line / 2, so a lane's sums of four products
// are all channels of one group at a pixel.
template <class T, int Stride, class Scalars>
__device__ void load_tile_by_products(const Tile<Stride>& tile, const Stem<float>& x, const Problem& p,
                                      const Scalars& scalars, Piece<T>* to, float* scalars_to) {
  const int line = lane_line(), pair = lane_pair(), width = int(p.width);
  RightMatrix transform[2][4];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int group = tile.group + 4 * h + line / 2;
#pragma unroll
    for (int m = 0; m < 4; ++m)
      transform[h][m] = transform_matrix(x, group * kChannels + 2 * m + line % 2, group < p.groups);
  }
  const float* const first = plane_of_lane(x, p, tile.n) + tile.row * width + tile.column;
  const int pixels = tile.rows * tile.columns, step = int(blockDim.x) / 2;
  int row_step = step / tile.columns, column_step = step % tile.columns, row[2], column[2];
  const int start = int(threadIdx.x) / 32 * kLines, height = int(p.height);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int pixel = start + line + 8 * i;
    row[i] = pixel / tile.columns, column[i] = pixel % tile.columns;
  }
  keep(row_step), keep(column_step);
  const bool pads = scalars.pads(), present[2] = {tile.group + pair < p.groups, tile.group + 4 + pair < p.groups};
  for (int pixel = start; pixel < pixels; pixel += step) {
    LeftMatrix inputs;
    float found[2][2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const bool inside = row[i] < tile.rows && is_inside(tile.row + row[i], tile.column + column[i], height, width);
      inputs.words[i] = inputs.words[i + 2] = pixel_word(first + (row[i] * width + column[i]), inside);
      float other = scalars.outside();
      if (pads) other = scalars.padded(tile.row + row[i], tile.column + column[i]);
      found[i][0] = found[i][1] = other;
      if (inside) {
        if (present[0]) found[i][0] = scalars.inside(row[i], column[i]);
        if (present[1]) found[i][1] = scalars.inside(row[i], column[i], 4);
      }
    }
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
        const int place = tile.at(row[i], column[i], pair) + 4 * h;
        reinterpret_cast<float4*>(to)[place] = *reinterpret_cast<const float4*>(values[i]);
        scalars_to[place] = found[i][h];
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
