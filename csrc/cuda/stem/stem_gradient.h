// Where a block leaves the gradient of the values that it found: in memory, or for the stem in the gradients of the
// image and of the transform, which are sums over the groups of a pixel and over the pixels of a group.
#pragma once

#include "../common/reduce.h"
#include "../local_relation/strips.h"

namespace robust_lr::cuda {

// Sums of a group that each warp has in shared memory for that.
template <class X>
constexpr int kDelivered = 0;
template <class A>
constexpr int kDelivered<Stem<A>> = kChannels * (kMaxInputs + 1);

// `dx` is of the strip of a thread, whose values are `x`; both are zero where `inside(s)` is false. Without `Weights`
// there is no gradient of the transform.
template <bool Weights, class T, int S, class Inside>
__device__ void deliver(const Image<T>& to, const Image<const T>&, const Problem& p, const Blocking&,
                        const Place& place, int first, int column, Inside inside, const float (&)[S][kChannels],
                        const float (&dx)[S][kChannels], float*) {
  const int present = present_channels(p, place.group);
  T* const pixels = address(to, place.n, place.group * int(p.shared), first, column);
#pragma unroll
  for (int s = 0; s < S; ++s) {
    if (inside(s)) write_channels(to, pixel_at(to, pixels, s, 0), present, dx[s]);
  }
}

// Sums over the groups of a pixel, for the gradient of the image.
template <int Inputs, bool Full, int S, class Inside>
__device__ void deliver_image(Kind<Inputs, Full>, float* image, const Stem<float>& stem, const Problem& p,
                              const Blocking& b, const Place& place, int first, int column, Inside inside,
                              const float (&dx)[S][kChannels]) {
  const GroupTransform<Inputs, Full> transform(stem, p, place.group);
  float dpixels[Inputs][S] = {};
#pragma unroll
  for (int c = 0; c < kChannels; ++c) {
#pragma unroll
    for (int j = 0; j < Inputs; ++j) {
#pragma unroll
      for (int s = 0; s < S; ++s) dpixels[j][s] += transform.weights[j][c] * dx[s][c];
    }
  }
  for (int lanes = 1; lanes < b.groups; lanes *= 2) {
#pragma unroll
    for (int j = 0; j < Inputs; ++j) {
#pragma unroll
      for (int s = 0; s < S; ++s) dpixels[j][s] += __shfl_xor_sync(0xffffffff, dpixels[j][s], lanes);
    }
  }
  if (place.g != 0) return;
  const int part = place.first_group >> b.group_shift, width = int(p.width), plane = int(p.height) * width;
  const int inputs = Full ? Inputs : stem.inputs;
  float* const pixels = image + (Index(part) * p.batch + place.n) * inputs * plane + first * width + column;
#pragma unroll
  for (int s = 0; s < S; ++s) {
    if (!inside(s)) continue;
#pragma unroll
    for (int j = 0; j < Inputs; ++j)
      if (Full || j < inputs) pixels[j * plane + s * width] = dpixels[j][s];
  }
}

// Sums over the pixels of a group, for the gradient of the transform.
template <int Inputs, bool Full, int S, class Inside>
__device__ void deliver_transform(Kind<Inputs, Full>, float* transform, const Stem<float>& stem, const Problem& p,
                                  const Blocking& b, const Place& place, int first, int column, Inside inside,
                                  const float (&dx)[S][kChannels], float* sums) {
  const int inputs = Full ? Inputs : stem.inputs, terms = inputs + 1, entries = b.groups * kChannels * terms;
  const Pixels<Inputs, Full> image(stem, p, place.n, first, column);
  float found[Inputs + 1][kChannels] = {};
#pragma unroll
  for (int s = 0; s < S; ++s) {
    float pixel[Inputs] = {};
    if (inside(s)) image.read(s, 0, pixel);
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
#pragma unroll
      for (int j = 0; j < Inputs; ++j) found[j][c] += pixel[j] * dx[s][c];
      found[Inputs][c] += dx[s][c];
    }
  }
  for (int lanes = 16; lanes >= b.groups; lanes /= 2) {
#pragma unroll
    for (int j = 0; j <= Inputs; ++j) {
#pragma unroll
      for (int c = 0; c < kChannels; ++c) found[j][c] += __shfl_xor_sync(0xffffffff, found[j][c], lanes);
    }
  }
  if (int(threadIdx.x % 32) < b.groups) {
    float* const own = sums + threadIdx.x / 32 * entries + place.g * kChannels * terms;
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
#pragma unroll
      for (int j = 0; j < Inputs; ++j)
        if (Full || j < inputs) own[c * terms + j] = found[j][c];
      own[c * terms + inputs] = found[Inputs][c];
    }
  }
  float* const part = transform + b.by_group_blocks.quotient(blockIdx.x) * p.channels * terms;
  sum_warps(sums, entries, [&](int i, float sum) {
    const int group = place.first_group + i / (kChannels * terms), c = i / terms % kChannels;
    if (c < present_channels(p, group)) part[(group * p.shared + c) * terms + i % terms] = sum;
  });
}

template <bool Weights, int S, class Inside>
__device__ void deliver(const StemGradient<float>& to, const Stem<float>& stem, const Problem& p, const Blocking& b,
                        const Place& place, int first, int column, Inside inside, const float (&x)[S][kChannels],
                        float (&dx)[S][kChannels], float* sums) {
#pragma unroll
  for (int s = 0; s < S; ++s) {
#pragma unroll
    for (int c = 0; c < kChannels; ++c)
      if (x[s][c] <= 0) dx[s][c] = 0;
  }
  with_kind(stem, p, [&](auto kind) {
    if (to.image != nullptr) deliver_image(kind, to.image, stem, p, b, place, first, column, inside, dx);
    if (Weights && to.transform != nullptr)
      deliver_transform(kind, to.transform, stem, p, b, place, first, column, inside, dx, sums);
  });
}

}  // namespace robust_lr::cuda
