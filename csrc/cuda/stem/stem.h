// Gives kernels the stem's values, computed from the image, in place of values in memory.
#pragma once

#include "../common/tile.h"

namespace robust_lr::cuda {

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

template <int Inputs, bool Full>
struct Kind {};

// The transform of a group, in registers. `Full` means that the image has exactly `Inputs` inputs and every group 8
// channels; otherwise there may be fewer.
template <int Inputs, bool Full>
struct GroupTransform {
  float weights[Inputs][kChannels], bias[kChannels];
  int present;

  __device__ GroupTransform(const Stem<float>& x, const Problem& p, int group) : present(present_channels(p, group)) {
    const float* row = row_of(x, group * int(p.shared));
#pragma unroll
    for (int c = 0; c < kChannels; ++c, row += Full ? Inputs + 1 : x.inputs + 1) {
      if constexpr (Full && Inputs == 3) {
        const float4 whole = present > 0 ? *reinterpret_cast<const float4*>(row) : float4{0, 0, 0, 0};
        weights[0][c] = whole.x, weights[1][c] = whole.y, weights[2][c] = whole.z, bias[c] = whole.w;
        continue;
      }
      bias[c] = c < present ? row[x.inputs] : 0.f;
#pragma unroll
      for (int j = 0; j < Inputs; ++j) weights[j][c] = c < present && (Full || j < x.inputs) ? row[j] : 0.f;
    }
  }

  // The values of a pixel as T, the type that values in memory have.
  template <class T>
  __device__ void apply(const float (&pixel)[Inputs], T (&to)[kChannels]) const {
    float z[kChannels];
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      z[c] = bias[c];
#pragma unroll
      for (int j = 0; j < Inputs; ++j) z[c] += weights[j][c] * pixel[j];
    }
    narrow_relu(z, to);
    if constexpr (!Full) {
#pragma unroll
      for (int c = 0; c < kChannels; ++c)
        if (c >= present) narrow(0.f, &to[c]);
    }
  }
};

// The image that the stem's values are made from, near one pixel.
template <int Inputs, bool Full>
struct Pixels {
  const char* planes[Inputs];
  int inputs, row_bytes;

  __device__ Pixels(const Stem<float>& x, const Problem& p, int n, int row, int column)
      : inputs(x.inputs), row_bytes(int(p.width) * int(sizeof(float))) {
#pragma unroll
    for (int j = 0; j < Inputs; ++j)
      planes[j] = reinterpret_cast<const char*>(pixel_of(x, p, n, min(j, inputs - 1), row, column));
  }
  // Bytes from the first pixel to another.
  __device__ int at(int row, int column) const { return row * row_bytes + column * int(sizeof(float)); }
  __device__ void read(int at, float (&to)[Inputs]) const {
#pragma unroll
    for (int j = 0; j < Inputs; ++j) to[j] = Full || j < inputs ? *reinterpret_cast<const float*>(planes[j] + at) : 0.f;
  }
};

// Calls f with the kind of the stem. Networks have three inputs, groups of 8 channels and a transform whose rows can be
// read in one access.
template <class F>
__device__ void with_kind(const Stem<float>& x, const Problem& p, F f) {
  const bool aligned = reinterpret_cast<std::uintptr_t>(x.transform) % sizeof(float4) == 0;
  if (x.inputs == 3 && p.shared == kChannels && p.channels % kChannels == 0 && aligned) return f(Kind<3, true>());
  f(Kind<kMaxInputs, false>());
}

// Computes the channels of this thread's group from the image.
template <class T, int Inputs, bool Full>
struct ChannelsOfStem {
  struct Raw {
    float inputs[Inputs];
  };
  Pixels<Inputs, Full> pixels;
  GroupTransform<Inputs, Full> transform;

  __device__ int at(int row, int column) const { return pixels.at(row, column); }
  __device__ void read(int pixel, int row, Raw& to) const { pixels.read(pixel + pixels.at(row, 0), to.inputs); }
  __device__ Channels<T> finish(const Raw& raw, bool inside) const {
    Channels<T> channels{};
    if (inside) transform.apply(raw.inputs, channels.elements);
    return channels;
  }
};

template <class T, int Stride, class F>
__device__ void with_channels(const Tile<Stride>& tile, const Stem<float>& x, const Problem& p, F f) {
  with_kind(x, p, [&]<int Inputs, bool Full>(Kind<Inputs, Full>) {
    f(ChannelsOfStem<T, Inputs, Full>{{x, p, tile.n, tile.row, tile.column}, {x, p, group_to_load(tile)}});
  });
}

// The values of a thread's strip, rounded to T; zeros where `inside(s)` is false.
template <class T, int S, class Inside>
__device__ void read_strip(const Stem<float>& x, const Problem& p, int n, int group, int first, int column,
                           Inside inside, float (&to)[S][kChannels]) {
  with_kind(x, p, [&]<int Inputs, bool Full>(Kind<Inputs, Full>) {
    const GroupTransform<Inputs, Full> transform(x, p, group);
    const Pixels<Inputs, Full> pixels(x, p, n, first, column);
#pragma unroll
    for (int s = 0; s < S; ++s) {
      float pixel[Inputs] = {};
      T elements[kChannels] = {};
      if (inside(s)) {
        pixels.read(pixels.at(s, 0), pixel);
        transform.apply(pixel, elements);
      }
      widen_channels(elements, to[s]);
    }
  });
}

}  // namespace robust_lr::cuda
