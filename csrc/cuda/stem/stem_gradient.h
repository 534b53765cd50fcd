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

// `dx` is of the strip of a thread, whose values are `x`; both are zero where `inside(s)` is false.
template <class T, int S, class Inside>
__device__ void deliver(const Image<T>& to, const Image<const T>&, const Problem& p, const Blocking&,
                        const Place& place, int first, int column, Inside inside, const float (&)[S][kChannels],
                        const float (&dx)[S][kChannels], float*) {
  const int present = present_channels(p, place.group);
#pragma unroll
  for (int s = 0; s < S; ++s) {
    T* const pixel = address(to, place.n, place.group * int(p.shared), first + s, column);
    if (inside(s)) write_channels(to, pixel, present, dx[s]);
  }
}

template <int S, class Inside>
__device__ void deliver(const StemGradient<float>& to, const Stem<float>& stem, const Problem& p, const Blocking& b,
                        const Place& place, int first, int column, Inside inside, const float (&x)[S][kChannels],
                        float (&dx)[S][kChannels], float* sums) {
  const int terms = stem.inputs + 1, entries = b.groups * kChannels * terms, lane = threadIdx.x % 32;
  const int present = present_channels(p, place.group);
  float* const sums_of_warp = sums + threadIdx.x / 32 * entries;
#pragma unroll
  for (int s = 0; s < S; ++s) {
#pragma unroll
    for (int c = 0; c < kChannels; ++c)
      if (!inside(s) || x[s][c] <= 0) dx[s][c] = 0;
  }
  for (int j = 0; j < terms; ++j) {
    float pixels[S], dpixels[S];
#pragma unroll
    for (int s = 0; s < S; ++s) {
      pixels[s] = j == stem.inputs ? 1.f : inside(s) ? *pixel_of(stem, p, place.n, j, first + s, column) : 0.f;
      dpixels[s] = 0;
    }
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      const float weight = c < present ? row_of(stem, place.group * int(p.shared) + c)[j] : 0.f;
      float sum = 0;
#pragma unroll
      for (int s = 0; s < S; ++s) {
        dpixels[s] += weight * dx[s][c];
        sum += pixels[s] * dx[s][c];
      }
      if (to.transform == nullptr) continue;
      for (int lanes = 16; lanes >= b.groups; lanes /= 2) sum += __shfl_xor_sync(0xffffffff, sum, lanes);
      if (lane < b.groups) sums_of_warp[(place.g * kChannels + c) * terms + j] = sum;
    }
    if (to.image == nullptr || j == stem.inputs) continue;
    const Index plane = ((Index(place.first_group / b.groups) * p.batch + place.n) * stem.inputs + j) * p.height;
#pragma unroll
    for (int s = 0; s < S; ++s) {
      for (int lanes = 1; lanes < b.groups; lanes *= 2) dpixels[s] += __shfl_xor_sync(0xffffffff, dpixels[s], lanes);
      if (place.g == 0 && inside(s)) to.image[(plane + first + s) * p.width + column] = dpixels[s];
    }
  }
  if (to.transform == nullptr) return;
  float* const part = to.transform + blockIdx.x / b.group_blocks * p.channels * terms;
  sum_warps(sums, entries, [&](int i, float sum) {
    const int group = place.first_group + i / (kChannels * terms), c = i / terms % kChannels;
    if (c < present_channels(p, group)) part[(group * p.shared + c) * terms + i % terms] = sum;
  });
}

}  // namespace robust_lr::cuda
