// Where a block leaves the gradient of the values: in memory or, for the stem, as contributions to the gradients of the
// image and of the transform, which are sums over the groups of a pixel and over the pixels of a group.
#pragma once

#include "../common/reduce.h"
#include "../local_relation/strips.h"
#include "strip_products.h"

namespace robust_lr::cuda {

// Number of sums over pixels that each thread has terms of.
template <class X>
constexpr int kDelivered = 0;
template <class A>
constexpr int kDelivered<Stem<A>> = kChannels * (kMaxInputs + 1);

// `dx` is the gradient of the values `x` of a thread's strip; only pixels where `inside(s)` is true count. Without
// `Weights` there is no gradient of the transform. `memory` is the QueryMemory of backward_keys.h.
template <bool Weights, int Stride, class T, int S, class Memory, class Inside>
__device__ void deliver(const Image<T>& to, const Image<const T>&, const Problem& p, const Blocking&,
                        const Place& place, int first, int column, Inside inside, const float (&)[S][kChannels],
                        const float (&dx)[S][kChannels], const Memory&) {
  const int present = present_channels(p, place.group);
  T* const pixels = address(to, place.n, place.group * int(p.shared), first, column);
#pragma unroll
  for (int s = 0; s < S; ++s) {
    if (inside(s)) write_channels(to, pixel_at(to, pixels, s, 0), present, dx[s]);
  }
}

// Sums over the groups of a pixel, for the gradient of the image.
template <int Inputs, bool Full, int S, class Inside>
__device__ void deliver_image(Kind<Inputs, Full>, float* pixels, const Stem<float>& stem, const Problem& p,
                              const Blocking& b, const Place& place, Inside inside, const float (&dx)[S][kChannels]) {
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
  const int width = int(p.width), plane = int(p.height) * width, inputs = Full ? Inputs : stem.inputs;
#pragma unroll
  for (int s = 0; s < S; ++s) {
    if (!inside(s)) continue;
#pragma unroll
    for (int j = 0; j < Inputs; ++j)
      if (Full || j < inputs) pixels[j * plane + s * width] = dpixels[j][s];
  }
}

// Sums over the pixels of a group, for the gradient of the transform.
template <int Stride, int Inputs, bool Full, int S, class Inside>
__device__ void deliver_transform(Kind<Inputs, Full>, float* transform, const Stem<float>& stem, const Problem& p,
                                  const Blocking& b, const Place& place, int first, int column, Inside inside,
                                  const float (&dx)[S][kChannels], float* slots) {
  const int inputs = Full ? Inputs : stem.inputs, terms = inputs + 1;
  const Pixels<Inputs, Full> image(stem, p, place.n, first, column);
  float found[Inputs + 1][kChannels] = {};
#pragma unroll
  for (int s = 0; s < S; ++s) {
    float pixel[Inputs] = {};
    if (inside(s)) image.read(image.at(s, 0), pixel);
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
#pragma unroll
      for (int j = 0; j < Inputs; ++j) found[j][c] += pixel[j] * dx[s][c];
      found[Inputs][c] += dx[s][c];
    }
  }
  float* const own = slots + threadIdx.x;
  __syncthreads();  // the prior's sums, which use the same slots, are done
#pragma unroll
  for (int c = 0; c < kChannels; ++c) {
#pragma unroll
    for (int j = 0; j < Inputs; ++j)
      if (Full || j < inputs) own[(c * terms + j) * kSlotPitch] = found[j][c];
    own[(c * terms + inputs) * kSlotPitch] = found[Inputs][c];
  }
  float* const part = transform + b.by_group_blocks.quotient(blockIdx.x) * p.channels * terms;
  sum_threads<4 * Stride>(
      slots, kChannels * terms, b.tile, blockDim.x, [](int) { return 0; },
      [&](int entry, int g, float sum) {
        const int group = place.first_group + g, c = entry / terms;
        if (c < present_channels(p, group)) part[group * int(p.shared) * terms + entry] = sum;
      });
}

template <bool Weights, int Stride, int S, class Memory, class Inside>
__device__ void deliver(const StemGradient<float>& to, const Stem<float>& stem, const Problem& p, const Blocking& b,
                        const Place& place, int first, int column, Inside inside, const float (&x)[S][kChannels],
                        float (&dx)[S][kChannels], const Memory& memory) {
#pragma unroll
  for (int s = 0; s < S; ++s) {
#pragma unroll
    for (int c = 0; c < kChannels; ++c)
      if (x[s][c] <= 0) dx[s][c] = 0;
  }
  if (to.image != nullptr) {
    const Index part = place.first_group >> b.group_shift;
    float* const pixels =
        to.image + (part * p.batch + place.n) * stem.inputs * p.height * p.width + first * int(p.width) + column;
    if constexpr (Memory::kProducts) {
      deliver_image_by_products(memory.matrices, pixels, p, place.g, inside, dx);
    } else {
      with_kind(stem, p, [&](auto kind) { deliver_image(kind, pixels, stem, p, b, place, inside, dx); });
    }
  }
  if (Weights && to.transform != nullptr) {
    auto deliver_it = [&](auto kind) {
      deliver_transform<Stride>(kind, to.transform, stem, p, b, place, first, column, inside, dx, memory.slots);
    };
    if constexpr (Memory::kProducts) {
      deliver_it(Kind<kProductInputs, true>());
    } else {
      with_kind(stem, p, deliver_it);
    }
  }
}

}  // namespace robust_lr::cuda
