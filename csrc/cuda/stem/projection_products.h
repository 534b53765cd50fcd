// The channel transforms of the stem's values on tensor cores, for weights in bfloat16, images of three inputs and at
// most kProductChannels channels. A warp takes 16 pixels at a time; their values never leave its registers.
//
// Values and gradients are rounded to bfloat16 before they are multiplied. There is no such kernel for float16, because
// values that are finite in float could overflow.
#pragma once

#include "../common/reduce.h"
#include "projection_weights.h"
#include "stem_products.h"

namespace robust_lr::cuda {

constexpr int kProductChannels = 64, kChunks = kProductChannels / 16;
constexpr int kRound = kProjectionThreads / 32 * kLines;                    // pixels of a block at a time
constexpr int kProductRounds = 16, kProductSpan = kRound * kProductRounds;  // rounds and pixels of a block

// A lane's two pixels of the 16 that its warp works on; go_on() moves them on by kRound pixels.
template <class T>
struct ProductPixels {
  const Projection<T>& f;
  const float* plane;
  int n, first;  // the image, and the first pixel of the warp's 16
  int row[2], column[2], row_step, column_step;

  __device__ ProductPixels(const Projection<T>& f, int n, int begin)
      : f(f), plane(plane_of_lane(f.x, f.p, n)), n(n), first(begin + int(threadIdx.x) / 32 * kLines) {
#pragma unroll
    for (int i = 0; i < 2; ++i) row[i] = number(i) / f.width, column[i] = number(i) % f.width;
    row_step = kRound / f.width, column_step = kRound % f.width;
  }
  __device__ int number(int i) const { return first + lane_line() + 8 * i; }
  __device__ bool inside(int i) const { return row[i] < f.height; }
  __device__ int offset(int i) const { return (row[i] * int(f.p.width) + column[i]) * f.stride; }
  __device__ unsigned word(int i) const { return pixel_word(plane + offset(i), inside(i)); }
  __device__ LeftMatrix inputs() const {
    const unsigned words[2] = {word(0), word(1)};
    return {words[0], words[1], words[0], words[1]};
  }
  // The address of this lane's two rows in the result of a pixel.
  __device__ WideOf<T>* result(int i, int row_of_weights) const {
    return f.out.data + n * f.out.batch + number(i) * f.out.column + row_of_weights;
  }
  __device__ void go_on() {
    first += kRound;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      row[i] += row_step, column[i] += column_step;
      if (column[i] >= f.width) column[i] -= f.width, ++row[i];
    }
  }
};

// A weight of the projection; zero where there is none.
template <class T>
__device__ float weight_at(const Projection<T>& f, int row, int channel) {
  return row < f.rows && channel < f.p.channels ? widen(f.weights[row * int(f.p.channels) + channel]) : 0.f;
}

template <class T>
__global__ void __launch_bounds__(kProjectionThreads, kProjectionResident)
    project_products(Projection<T> f, int spans, int row_blocks) {
  const int first_row = blockIdx.x % row_blocks * kChannels, block = blockIdx.x / row_blocks, n = block / spans;
  const int line = lane_line(), pair = lane_pair();
  RightMatrix transform[kChunks][2], weights[kChunks];
#pragma unroll
  for (int k = 0; k < kChunks; ++k) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int channel = 16 * k + 8 * h, mine = channel + 2 * pair, row = first_row + line;
      transform[k][h] = transform_matrix(f.x, channel + line, channel + line < f.p.channels);
      weights[k].words[h] = pack(weight_at(f, row, mine), weight_at(f, row, mine + 1));
    }
  }
  ProductPixels<T> pixels(f, n, block % spans * kProductSpan);
  const int end = min((block % spans + 1) * kProductSpan, f.height * f.width);
  for (; pixels.first < end; pixels.go_on()) {
    const LeftMatrix inputs = pixels.inputs();
    ProductSums out{};
#pragma unroll
    for (int k = 0; k < kChunks; ++k) {
      LeftMatrix x;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        ProductSums z{};
        multiply(z, inputs, transform[k][h]);
        x.words[2 * h] = pack_relu<T>(z.values[0], z.values[1]);
        x.words[2 * h + 1] = pack_relu<T>(z.values[2], z.values[3]);
      }
      multiply(out, x, weights[k]);
    }
    const int row = first_row + 2 * pair;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (!pixels.inside(i)) continue;
      float* const to = pixels.result(i, row);
      if (f.rows % 2 == 0 && row < f.rows) {
        *reinterpret_cast<float2*>(to) = {out.values[2 * i], out.values[2 * i + 1]};
      } else if (row < f.rows) {
        *to = out.values[2 * i];
        if (row + 1 < f.rows) to[1] = out.values[2 * i + 1];
      }
    }
  }
}

// A lane's elements of a projection's gradient at one pixel: two of 8 rows, split into upper and lower parts.
template <class T>
__device__ void gradient_words(const ProductPixels<T>& pixels, int i, int first_row, unsigned& upper, unsigned& lower) {
  const int row = first_row + 2 * lane_pair(), rows = pixels.f.rows;
  const float* const from = pixels.result(i, row);
  float2 found{0, 0};
  if (rows % 2 == 0 && row < rows && pixels.inside(i)) {
    found = *reinterpret_cast<const float2*>(from);
  } else if (row < rows && pixels.inside(i)) {
    found.x = *from;
    if (row + 1 < rows) found.y = from[1];
  }
  const float first = upper_part(found.x), second = upper_part(found.y);
  upper = pack(first, second), lower = pack(found.x - first, found.y - second);
}

// Turns gradients of values into those before the ReLU: zero where the value is zero.
__device__ inline void mask(const ProductSums& z, ProductSums& dz) {
#pragma unroll
  for (int i = 0; i < 4; ++i)
    if (z.values[i] <= 0) dz.values[i] = 0;
}

// The gradient of the image, for projections of up to 8 rows.
template <class T>
__global__ void __launch_bounds__(kProjectionThreads, kProjectionResident)
    image_gradient_products(Projection<T> f, int spans, const float* parts, int count, float* dimage) {
  const int n = blockIdx.x / spans, line = lane_line(), pair = lane_pair();
  RightMatrix transform[kChunks][2], back[kChunks];  // back to the inputs: first the upper parts, then the lower ones
  unsigned weights[kChunks][2];
#pragma unroll
  for (int k = 0; k < kChunks; ++k) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int channel = 16 * k + 8 * h, mine = channel + 2 * pair, input = line % 4;
      transform[k][h] = transform_matrix(f.x, channel + line, channel + line < f.p.channels);
      weights[k][h] = pack(weight_at(f, 2 * pair, channel + line), weight_at(f, 2 * pair + 1, channel + line));
      float own[2];
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const bool present = mine + c < f.p.channels && input < kProductInputs;
        const float v = present ? row_of(f.x, mine + c)[input] : 0.f;
        own[c] = line < 4 ? upper_part(v) : v - upper_part(v);
      }
      back[k].words[h] = pack(own[0], own[1]);
    }
  }
  ProductPixels<T> pixels(f, n, blockIdx.x % spans * kProductSpan);
  const int end = min((int(blockIdx.x) % spans + 1) * kProductSpan, f.height * f.width);
  const int plane = int(f.p.height * f.p.width);
  const Index size = f.p.batch * kProductInputs * plane;
  for (; pixels.first < end; pixels.go_on()) {
    const LeftMatrix inputs = pixels.inputs();
    LeftMatrix dout;
#pragma unroll
    for (int i = 0; i < 2; ++i) gradient_words(pixels, i, 0, dout.words[i], dout.words[i + 2]);
    ProductSums found{};
#pragma unroll
    for (int k = 0; k < kChunks; ++k) {
      LeftMatrix left;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        ProductSums z{}, dz{};
        multiply(z, inputs, transform[k][h]);
        multiply(dz, dout, {weights[k][h], weights[k][h]});
        mask(z, dz);
        left.words[2 * h] = pack(dz.values[0], dz.values[1]);
        left.words[2 * h + 1] = pack(dz.values[2], dz.values[3]);
      }
      multiply(found, left, back[k]);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) found.values[i] += __shfl_xor_sync(0xffffffff, found.values[i], 2);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (!pixels.inside(i) || pair >= 2) continue;
      Index at = (Index(n) * kProductInputs + 2 * pair) * plane + pixels.offset(i);
#pragma unroll
      for (int j = 0; j < 2; ++j, at += plane) {
        if (2 * pair + j >= kProductInputs) continue;
        float sum = found.values[2 * i + j];
#pragma unroll 1
        for (int k = 0; k < count; ++k) sum += parts[k * size + at];
        dimage[at] = sum;
      }
    }
  }
}

// Terms of a channel: a weight for each of 8 rows, one for each input, and the bias.
constexpr int kProductTerms = kChannels + kProductInputs + 1;
constexpr size_t kProductBytes = kProjectionThreads / 32 * kProductTerms * kProductChannels * sizeof(float);

// Values and their gradients are computed with channels as lines, so that they are left matrices of the products that
// sum over pixels.
template <class T>
__global__ void __launch_bounds__(kProjectionThreads, kProjectionResident)
    weights_gradient_products(Projection<T> f, int spans, int row_blocks, float* dweights, float* dtransform) {
  const int row_block = blockIdx.x % row_blocks, first_row = row_block * kChannels, part = blockIdx.x / row_blocks;
  const int n = part / spans, begin = part % spans * kSpan, end = min(begin + kSpan, f.height * f.width);
  const int line = lane_line(), pair = lane_pair(), channels = int(f.p.channels);
  LeftMatrix transform[kChunks];
  unsigned weights[kChunks][2];
  ProductSums dweight[kChunks] = {}, dinput[kChunks] = {};
#pragma unroll
  for (int k = 0; k < kChunks; ++k) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int channel = 16 * k + 8 * h + line, row = first_row + 2 * pair;
      const TransformWords words(f.x, channel, channel < channels);
      transform[k].words[h] = words.upper, transform[k].words[h + 2] = words.lower;
      weights[k][h] = pack(weight_at(f, row, channel), weight_at(f, row + 1, channel));
    }
  }
  ProductPixels<T> pixels(f, n, begin);
  for (; pixels.first < end; pixels.go_on()) {
    RightMatrix image[2], dout[2];       // 8 pixels each, as columns
    RightMatrix by_pixel, upper, lower;  // pixels as rows: the inputs, and both parts of the gradient of 8 rows
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      image[i].words[0] = image[i].words[1] = pixels.word(i);
      gradient_words(pixels, i, first_row, dout[i].words[0], dout[i].words[1]);
      // Transposes words: takes them from the lanes that have pixels 2 pair and 2 pair + 1. This lane needs one of the
      // two elements of each word: the upper or the lower part of an input, or one of two rows.
      const int source = 8 * pair;
      auto turned = [&](unsigned word, int column, bool second) {
        const unsigned a = __shfl_sync(0xffffffff, word, source + column);
        const unsigned b = __shfl_sync(0xffffffff, word, source + 4 + column);
        return second ? a >> 16 | (b & 0xffff0000u) : (a & 0xffffu) | b << 16;
      };
      by_pixel.words[i] = turned(image[i].words[0], line % 4, line >= 4);
      upper.words[i] = turned(dout[i].words[0], line / 2, line % 2);
      lower.words[i] = turned(dout[i].words[1], line / 2, line % 2);
    }
#pragma unroll
    for (int k = 0; k < kChunks; ++k) {
      LeftMatrix x, left;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        ProductSums z{}, dz{};
        multiply(z, transform[k], image[i]);
        multiply(dz, {weights[k][0], weights[k][1], weights[k][0], weights[k][1]}, dout[i]);
        mask(z, dz);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          x.words[2 * i + h] = pack_relu<BFloat16>(z.values[2 * h], z.values[2 * h + 1]);
          left.words[2 * i + h] = pack(dz.values[2 * h], dz.values[2 * h + 1]);
        }
      }
      multiply(dweight[k], x, upper);
      multiply(dweight[k], x, lower);
      multiply(dinput[k], left, by_pixel);
    }
  }

  float* const sums = reinterpret_cast<float*>(shared_memory);  // [warp, term, channel]
  constexpr int kEntries = kProductTerms * kProductChannels;
  float* const own = sums + threadIdx.x / 32 * kEntries;
#pragma unroll
  for (int k = 0; k < kChunks; ++k) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int channel = 16 * k + line + 8 * (i / 2), term = 2 * pair + i % 2;
      const float other = __shfl_xor_sync(0xffffffff, dinput[k].values[i], 2);  // lower parts
      own[term * kProductChannels + channel] = dweight[k].values[i];
      const bool is_bias = term == kProductInputs;
      if (pair < 2)
        own[(kChannels + term) * kProductChannels + channel] = dinput[k].values[i] + (is_bias ? 0.f : other);
    }
  }
  sum_warps(sums, kEntries, [&](int i, float sum) {
    const int term = i / kProductChannels, channel = i % kProductChannels, input = term - kChannels;
    if (channel >= channels) return;
    if (input >= 0) {
      dtransform[(Index(part * row_blocks + row_block) * channels + channel) * (kProductInputs + 1) + input] = sum;
    } else if (first_row + term < f.rows) {
      dweights[(Index(part) * f.rows + first_row + term) * channels + channel] = sum;
    }
  });
}

}  // namespace robust_lr::cuda
