// The stem's values for the kernels, instead of values in memory.
#pragma once

#include "../common/tile.h"

namespace robust_lr::cuda {

// Keeps NaN, as PyTorch's does; and so do gradients, which are zero where a value is zero.
template <class A>
__device__ A relu(A z) {
  return z < 0 ? A(0) : z;
}

template <class A>
__device__ const A* pixel_of(const Stem<A>& x, const Problem& p, int n, int input, int row, int column) {
  return x.image + ((Index(n) * x.inputs + input) * p.height + row) * p.width + column;
}

// The transform's row of one channel.
template <class A>
__device__ const A* row_of(const Stem<A>& x, int channel) {
  return x.transform + channel * (x.inputs + 1);
}

template <class A>
__device__ const Image<A>& in_memory(const StemGradient<A>& gradient) {
  return gradient.values;
}

template <class A>
__device__ A value_at(const Stem<A>& x, const Problem& p, int n, int channel, int row, int column) {
  const A* const weights = row_of(x, channel);
  A z = weights[x.inputs];
  for (int j = 0; j < x.inputs; ++j) z += weights[j] * *pixel_of(x, p, n, j, row, column);
  return relu(z);
}

// The transform of a group, in registers.
struct GroupTransform {
  float weights[kMaxInputs][kChannels], bias[kChannels];
  int inputs, present;

  __device__ GroupTransform(const Stem<float>& x, const Problem& p, int group)
      : inputs(x.inputs), present(present_channels(p, group)) {
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      const float* const row = row_of(x, group * int(p.shared) + c);
      bias[c] = c < present ? row[inputs] : 0.f;
#pragma unroll
      for (int j = 0; j < kMaxInputs; ++j) weights[j][c] = c < present && j < inputs ? row[j] : 0.f;
    }
  }

  // The values of a pixel as they are in memory elsewhere.
  template <class T>
  __device__ void apply(const float (&pixel)[kMaxInputs], T (&to)[kChannels]) const {
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      float z = bias[c];
#pragma unroll
      for (int j = 0; j < kMaxInputs; ++j)
        if (j < inputs) z += weights[j][c] * pixel[j];
      narrow(c < present ? relu(z) : 0.f, &to[c]);
    }
  }
};

template <class T>
__device__ void load_vectors(const Tile& tile, const Stem<float>& x, const Problem& p, int height, int width,
                             Piece<T>* to) {
  struct Pixel {
    float inputs[kMaxInputs];
    bool inside;
  };
  const GroupTransform transform(x, p, tile.group + threadIdx.x % tile.groups);
  each_place<4>(
      tile,
      [&](int row, int column, int) {
        Pixel pixel{};
        pixel.inside = row >= 0 && row < height && column >= 0 && column < width;
#pragma unroll
        for (int j = 0; j < kMaxInputs; ++j)
          if (pixel.inside && j < x.inputs) pixel.inputs[j] = *pixel_of(x, p, tile.n, j, row, column);
        return pixel;
      },
      [&](int place, const Pixel& pixel) {
        alignas(16) T elements[kChannels] = {};
        if (pixel.inside) transform.apply(pixel.inputs, elements);
#pragma unroll
        for (int i = 0; i < Piece<T>::kCount; ++i)
          reinterpret_cast<float4*>(to)[i * tile.size() + place] = reinterpret_cast<const float4*>(elements)[i];
      });
}

// The values of the strip of a thread in `T`, zeros where `inside(s)` is false.
template <class T, int S, class Inside>
__device__ void read_strip(const Stem<float>& x, const Problem& p, int n, int group, int first, int column,
                           Inside inside, float (&to)[S][kChannels]) {
  const GroupTransform transform(x, p, group);
#pragma unroll
  for (int s = 0; s < S; ++s) {
    float pixel[kMaxInputs] = {};
    T elements[kChannels];
#pragma unroll
    for (int j = 0; j < kMaxInputs; ++j)
      if (inside(s) && j < x.inputs) pixel[j] = *pixel_of(x, p, n, j, first + s, column);
    transform.apply(pixel, elements);
#pragma unroll
    for (int c = 0; c < kChannels; ++c) to[s][c] = inside(s) ? widen(elements[c]) : 0.f;
  }
}

}  // namespace robust_lr::cuda
