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
  T* const pixels = address(to, place.n, place.group * int(p.shared), first, column);
#pragma unroll
  for (int s = 0; s < S; ++s) {
    if (inside(s)) write_channels(to, pixel_at(to, pixels, s, 0), present, dx[s]);
  }
}

// Sums over the groups of a pixel, for the gradient of the image.
template <int S, class Inside>
__device__ void deliver_image(float* image, const Stem<float>& stem, const Problem& p, const Blocking& b,
                              const Place& place, int first, int column, Inside inside,
                              const float (&dx)[S][kChannels]) {
  const int present = present_channels(p, place.group), part = place.first_group / b.groups;
  for (int j = 0; j < stem.inputs; ++j) {
    float dpixels[S] = {};
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      const float weight = c < present ? row_of(stem, place.group * int(p.shared) + c)[j] : 0.f;
#pragma unroll
      for (int s = 0; s < S; ++s) dpixels[s] += weight * dx[s][c];
    }
    for (int lanes = 1; lanes < b.groups; lanes *= 2) {
#pragma unroll
      for (int s = 0; s < S; ++s) dpixels[s] += __shfl_xor_sync(0xffffffff, dpixels[s], lanes);
    }
    const Index plane = ((Index(part) * p.batch + place.n) * stem.inputs + j) * p.height;
    float* const pixels = image + (plane + first) * p.width + column;
#pragma unroll
    for (int s = 0; s < S; ++s)
      if (place.g == 0 && inside(s)) pixels[s * int(p.width)] = dpixels[s];
  }
}

// Sums over the pixels of a group, for the gradient of the transform.
template <int S, class Inside>
__device__ void deliver_transform(float* transform, const Stem<float>& stem, const Problem& p, const Blocking& b,
                                  const Place& place, int first, int column, Inside inside,
                                  const float (&dx)[S][kChannels], float* sums) {
  const int terms = stem.inputs + 1, entries = b.groups * kChannels * terms, lane = threadIdx.x % 32;
  float* const sums_of_warp = sums + threadIdx.x / 32 * entries;
  for (int j = 0; j < terms; ++j) {
    float pixels[S], found[kChannels] = {};
#pragma unroll
    for (int s = 0; s < S; ++s)
      pixels[s] = j == stem.inputs ? 1.f : inside(s) ? *pixel_of(stem, p, place.n, j, first + s, column) : 0.f;
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
#pragma unroll
      for (int s = 0; s < S; ++s) found[c] += pixels[s] * dx[s][c];
    }
    for (int lanes = 16; lanes >= b.groups; lanes /= 2) {
#pragma unroll
      for (int c = 0; c < kChannels; ++c) found[c] += __shfl_xor_sync(0xffffffff, found[c], lanes);
    }
    if (lane < b.groups) {
#pragma unroll
      for (int c = 0; c < kChannels; ++c) sums_of_warp[(place.g * kChannels + c) * terms + j] = found[c];
    }
  }
  float* const part = transform + blockIdx.x / b.group_blocks * p.channels * terms;
  sum_warps(sums, entries, [&](int i, float sum) {
    const int group = place.first_group + i / (kChannels * terms), c = i / terms % kChannels;
    if (c < present_channels(p, group)) part[(group * p.shared + c) * terms + i % terms] = sum;
  });
}

template <int S, class Inside>
__device__ void deliver(const StemGradient<float>& to, const Stem<float>& stem, const Problem& p, const Blocking& b,
                        const Place& place, int first, int column, Inside inside, const float (&x)[S][kChannels],
                        float (&dx)[S][kChannels], float* sums) {
#pragma unroll
  for (int s = 0; s < S; ++s) {
#pragma unroll
    for (int c = 0; c < kChannels; ++c)
      if (x[s][c] <= 0) dx[s][c] = 0;
  }
  if (to.image != nullptr) deliver_image(to.image, stem, p, b, place, first, column, inside, dx);
  if (to.transform != nullptr) deliver_transform(to.transform, stem, p, b, place, first, column, inside, dx, sums);
}

}  // namespace robust_lr::cuda
