// The values of a strip of key pixels on tensor cores, and what their gradient adds to that of the image. A strip is
// that of a thread of backward_keys.h, in a block of kProductGroups groups.
//
// Eight lanes of a warp have the groups of one pixel, but only four lanes share a line of a matrix. So each pixel has
// two lines: the first for the first half of the groups, the second for the other half. There is a product for each
// half, with zeros in the lines of the other, and the products are added. A lane thus gets the elements of its own
// group and pixel: column `line` of right matrix `m` is channel 2 m + line % 2 of the half's group line / 2. In the
// products back to the image, the inner dimension has four channels of each of the half's groups, by `pair`.
#pragma once

#include "stem_products.h"

namespace robust_lr::cuda {

// Right matrices that all warps of a block need, in entries of 16 bytes per lane:
//
//     kTransform + m  the transform, of both halves of the groups
//     kBack + q       the transform back to the inputs, its upper and lower parts, for channels 4 q to 4 q + 3 of each
//                     group; in columns 4 half + input
//     kKeys + half    the weights of the keys, for all m
struct StripMatrices {
  static constexpr int kTransform = 0, kBack = 4, kKeys = 6, kCount = 8;
  static constexpr size_t kBytes = kCount * 32 * sizeof(float4);

  float4* memory;

  // All warps of the block must call it, and a barrier must follow. Without `key_weights` the kKeys entries are unset.
  __device__ void make(const Stem<float>& x, const Problem& p, int first_group, const BFloat16* key_weights) const {
    const int line = lane_line(), pair = lane_pair(), groups = int(p.groups), channels = int(p.channels);
    const int warp = threadIdx.x / 32, warps = blockDim.x / 32;
    alignas(16) unsigned words[4];
    auto store = [&](int number) { memory[number * 32 + threadIdx.x % 32] = *reinterpret_cast<const float4*>(words); };
#pragma unroll 1
    for (int m = warp; m < 4; m += warps) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int group = first_group + 4 * h + line / 2;
        const TransformWords own(x, group * kChannels + 2 * m + line % 2, group < groups);
        words[2 * h] = own.upper, words[2 * h + 1] = own.lower;
      }
      store(kTransform + m);
    }
#pragma unroll 1
    for (int q = warp; q < 2; q += warps) {
      const int group = first_group + line / 4 * 4 + pair, input = line % 4;
      float upper[4], lower[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const bool present = group < groups && input < kProductInputs;
        const float v = present ? row_of(x, group * kChannels + 4 * q + i)[input] : 0.f;
        upper[i] = upper_part(v), lower[i] = v - upper[i];
      }
      words[0] = pack(upper[0], upper[1]), words[1] = pack(upper[2], upper[3]);
      words[2] = pack(lower[0], lower[1]), words[3] = pack(lower[2], lower[3]);
      store(kBack + q);
    }
#pragma unroll 1
    for (int h = warp; h < 2 && key_weights != nullptr; h += warps) {
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        const int channel = (first_group + 4 * h + line / 2) * kChannels + 2 * m + line % 2;
        auto weight = [&](int row) {
          return row < groups && channel < channels ? widen(key_weights[row * channels + channel]) : 0.f;
        };
        words[m] = pack(weight(2 * pair), weight(2 * pair + 1));
      }
      store(kKeys + h);
    }
  }
  __device__ void read(int number, unsigned (&words)[4]) const {
    *reinterpret_cast<float4*>(words) = memory[number * 32 + threadIdx.x % 32];
  }
};

// `whole` with zeros in the lines of the other half of the groups.
__device__ inline LeftMatrix of_half(int half, const LeftMatrix& whole) {
  const bool mine = (lane_line() & 1) == half;
  return {mine ? whole.words[0] : 0, mine ? whole.words[1] : 0, mine ? whole.words[2] : 0, mine ? whole.words[3] : 0};
}

// Like read_strip in stem.h. `inside(s)` must be the same for all groups.
template <int S, class Inside>
__device__ void read_strip_by_products(const StripMatrices& matrices, const Stem<float>& x, const Problem& p, int n,
                                       int first, int column, Inside inside, float (&to)[S][kChannels]) {
  static_assert(S % 2 == 0);
  const int width = int(p.width);
  const float* const input = plane_of_lane(x, p, n) + first * width + column;
  LeftMatrix image[S / 2][2];
#pragma unroll
  for (int s = 0; s < S; s += 2) {
    const unsigned above = pixel_word(input + s * width, inside(s));
    const unsigned below = pixel_word(input + (s + 1) * width, inside(s + 1));
#pragma unroll
    for (int h = 0; h < 2; ++h) image[s / 2][h] = of_half(h, {above, below, above, below});
  }
#pragma unroll
  for (int m = 0; m < 4; ++m) {
    alignas(16) unsigned words[4];
    matrices.read(StripMatrices::kTransform + m, words);
#pragma unroll
    for (int s = 0; s < S; s += 2) {
      ProductSums z{};
#pragma unroll
      for (int h = 0; h < 2; ++h) multiply(z, image[s / 2][h], {words[2 * h], words[2 * h + 1]});
#pragma unroll
      for (int i = 0; i < 2; ++i)
        unpack(pack_relu<BFloat16>(z.values[2 * i], z.values[2 * i + 1]), to[s + i][2 * m], to[s + i][2 * m + 1]);
    }
  }
}

// Adds to the gradient of the strip's values the contribution of its keys' gradients, of all groups.
template <int S>
__device__ void add_keys(const StripMatrices& matrices, const float (&dk)[S], float (&dx)[S][kChannels]) {
  const int source = threadIdx.x % 32 / kProductGroups * kProductGroups + 2 * lane_pair();
  LeftMatrix dkeys[S / 2][2];
#pragma unroll
  for (int s = 0; s < S; s += 2) {
    LeftMatrix whole;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float a = from_lane(dk[s + i], source), b = from_lane(dk[s + i], source + 1);
      whole.words[i] = pack(upper_part(a), upper_part(b));
      whole.words[i + 2] = pack(a - upper_part(a), b - upper_part(b));
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) dkeys[s / 2][h] = of_half(h, whole);
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    alignas(16) unsigned words[4];
    matrices.read(StripMatrices::kKeys + h, words);
#pragma unroll
    for (int m = 0; m < 4; ++m) {
#pragma unroll
      for (int s = 0; s < S; s += 2) {
        ProductSums sums{{dx[s][2 * m], dx[s][2 * m + 1], dx[s + 1][2 * m], dx[s + 1][2 * m + 1]}};
        multiply(sums, dkeys[s / 2][h], {words[m], words[m]});
        dx[s][2 * m] = sums.values[0], dx[s][2 * m + 1] = sums.values[1];
        dx[s + 1][2 * m] = sums.values[2], dx[s + 1][2 * m + 1] = sums.values[3];
      }
    }
  }
}

// Like deliver_image in stem_gradient.h. `pixels` points to the strip's first pixel in the part's first plane;
// `inside(s)` must be the same for all groups.
template <int S, class Inside>
__device__ void deliver_image_by_products(const StripMatrices& matrices, float* pixels, const Problem& p, int g,
                                          Inside inside, const float (&dx)[S][kChannels]) {
  const int width = int(p.width), plane = int(p.height) * width;
  ProductSums found[S / 2] = {};
#pragma unroll
  for (int q = 0; q < 2; ++q) {
    alignas(16) unsigned words[4];
    matrices.read(StripMatrices::kBack + q, words);
#pragma unroll
    for (int s = 0; s < S; s += 2) {
      LeftMatrix left;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* const own = &dx[s + i % 2][4 * q + i / 2 * 2];
        left.words[i] = pack(own[0], own[1]);
      }
      multiply(found[s / 2], left, {words[0], words[1]});
      multiply(found[s / 2], left, {words[2], words[3]});
    }
  }
  // The first two lanes of a pixel have the sums over the first half of the groups, for three inputs. The sums over the
  // other half are in the lanes whose numbers differ from theirs by an XOR with 6.
#pragma unroll
  for (int s = 0; s < S; ++s) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float sum = found[s / 2].values[s % 2 * 2 + i];
      sum += __shfl_xor_sync(0xffffffff, sum, 6);
      const int input = 2 * g + i;
      if (input < kProductInputs && inside(s)) pixels[input * plane + s * width] = sum;
    }
  }
}

}  // namespace robust_lr::cuda
