// The gradients of x, k and the prior, a strip of key pixels per thread. It gathers from the query pixels whose windows
// hold a key, so nothing is written by two threads.
//
// With zeros around the image the prior's gradient has parts from there, so threads stand for these pixels too.
#pragma once

#include "../stem/stem_gradient.h"
#include "strips.h"

namespace robust_lr::cuda {

constexpr int kKeyStrip = 4;

// Shared memory of a block: its query pixels, and each warp's part of the gradients that are sums.
template <class T, class X>
struct QueryMemory {
  Piece<T>* dy;
  float *queries, *lse, *excess, *mean, *prior, *dprior, *dvalues;

  __device__ QueryMemory(int size, int entries) {
    dy = reinterpret_cast<Piece<T>*>(shared_memory);
    queries = reinterpret_cast<float*>(dy + Piece<T>::kCount * size);
    lse = queries + size, excess = lse + size, mean = excess + size;
    prior = mean + size, dprior = prior + entries, dvalues = dprior + kWarps * entries;
  }
  static size_t bytes(const Tile& tile, int taps) {
    const int sums = taps + kWarps * (taps + kDelivered<X>);  // of a group
    return tile.size() * (sizeof(T) * kChannels + 4 * sizeof(float)) + sums * tile.groups * sizeof(float);
  }
};

// Rows and columns before the image that threads stand for: a whole strip, so that strips start where QueryWindow asks.
__host__ __device__ inline int key_lead(const Problem& p) {
  return (int(p.padding) + kKeyStrip - 1) / kKeyStrip * kKeyStrip;
}

template <class T, class X, class O>
__global__ void __launch_bounds__(kThreads, kResident) backward_keys(BackwardArguments<T, X> a, Blocking b) {
  constexpr int S = kKeyStrip, K = O::kSize;
  using Window = QueryWindow<O, S>;
  const Problem& p = a.p;
  const int height = int(p.height), width = int(p.width), groups = int(p.groups), pad = int(p.padding);
  const int out_height = int(p.out_height), out_width = int(p.out_width), lead = key_lead(p);
  const Place place(b);
  const Tile tile = Window::tile(b, place, lead);
  const int entries = K * K * b.groups;
  const QueryMemory<T, X> memory(tile.size(), entries);
  load_vectors(tile, a.dy, p, out_height, out_width, memory.dy);
  load_scalars(tile, a.q, groups, out_height, out_width, memory.queries);
  if (O::kSoftmax) {
    auto load = [&](const float* statistics, float* to) {
      const Index plane = p.out_height * p.out_width;
      const Image<const float> image{statistics, groups * plane, plane, out_width, 1};
      load_scalars(tile, image, groups, out_height, out_width, to);
    };
    load(a.lse, memory.lse), load(a.excess, memory.excess), load(a.mean, memory.mean);
  }
  load_prior(tile, a.geo, p, memory.prior);
  float* const dprior = memory.dprior + threadIdx.x / 32 * entries;
  if (a.dgeo != nullptr) {
    for (int i = threadIdx.x % 32; i < entries; i += 32) dprior[i] = 0;
  }
  finish_loading();

  const int first = place.strip * S - lead, column = place.column - lead;
  const bool active = place.inside && place.group < groups && column >= -pad && column < width + pad;
  auto inside = [&](int s) { return active && column >= 0 && column < width && first + s >= 0 && first + s < height; };
  auto takes_part = [&](int s) { return first + s >= -pad && first + s < height + pad; };
  float x[S][kChannels], dx[S][kChannels], k[S], dk[S];
  read_strip<T>(a.x, p, place.n, place.group, first, column, inside, x);
#pragma unroll
  for (int s = 0; s < S; ++s) {
    k[s] = inside(s) ? widen(*address(a.k, place.n, place.group, first + s, column)) : 0.f;
    dk[s] = 0;
#pragma unroll
    for (int c = 0; c < kChannels; ++c) dx[s][c] = 0;
  }

  // The columns of the queries that hold this key meet it at every `stride`th tap, from the last on.
  const int last_tap = K - 1 - (place.c + O::kRadius) % O::kStride;
  int query_column = Window::kBefore + (place.c + O::kRadius - last_tap) / O::kStride;  // in the tile
  for (int j = last_tap; j > last_tap - K; j -= O::kStride, ++query_column) {
    float dpriors[K];
#pragma unroll
    for (int i = 0; i < K; ++i) dpriors[i] = 0;
    if (active && j >= 0 && tile.column + query_column >= 0 && tile.column + query_column < out_width) {
      float priors[K];
#pragma unroll
      for (int i = 0; i < K; ++i) priors[i] = memory.prior[(i * K + j) * b.groups + place.g];
      const int first_row = place.s * S / O::kStride;  // in the tile
      int at = tile.at(first_row, query_column, place.g);
#pragma unroll
      for (int i = 0; i < Window::kRows; ++i, at += tile.columns * tile.groups) {
        const int row = tile.row + first_row + i;
        if (row < 0 || row >= out_height) continue;
        const float q = memory.queries[at];
        float lse = 0, excess = 0, mean = 0;
        if (O::kSoftmax) lse = memory.lse[at], excess = memory.excess[at], mean = memory.mean[at];
        float dy[kChannels];
        read_channels(memory.dy, tile.size(), at, dy);
#pragma unroll
        for (int s = 0; s < S; ++s) {
          const int tap = Window::tap(s, i);
          if (tap < 0 || tap >= K) continue;
          float dlogit = dot(dy, x[s]);
          float weight = O::Phi::add(priors[tap] - lse, q, k[s]);
          if (O::kSoftmax) weight = exponential(weight, excess), dlogit = weight * (dlogit - mean);
#pragma unroll
          for (int c = 0; c < kChannels; ++c) dx[s][c] += weight * dy[c];
          dk[s] += dlogit * O::Phi::key_slope(q, k[s]);
          if (takes_part(s)) dpriors[tap] += dlogit;
        }
      }
    }
    if (a.dgeo != nullptr) {
      // Lanes that are a multiple of groups * stride apart have the same group and tap. The first of them adds up.
#pragma unroll
      for (int i = 0; i < K; ++i) {
        for (int lanes = 16; lanes >= b.groups * O::kStride; lanes /= 2)
          dpriors[i] += __shfl_xor_sync(0xffffffff, dpriors[i], lanes);
      }
      if (int(threadIdx.x % 32) < b.groups * O::kStride && j >= 0) {
#pragma unroll
        for (int i = 0; i < K; ++i) dprior[(i * K + j) * b.groups + place.g] += dpriors[i];
      }
    }
  }

#pragma unroll
  for (int s = 0; s < S; ++s) {
    if (inside(s)) narrow(O::Phi::kKeyFactor * dk[s], address(a.dk, place.n, place.group, first + s, column));
  }
  deliver(a.dx, a.x, p, b, place, first, column, inside, x, dx, memory.dvalues);
  if (a.dgeo != nullptr) {
    float* const part = a.dgeo_partial + blockIdx.x / b.group_blocks * p.groups * K * K;
    sum_warps(memory.dprior, entries, [&](int i, float sum) {
      const int group = place.first_group + i % b.groups;
      if (group < groups) part[group * K * K + i / b.groups] = sum;
    });
  }
}

}  // namespace robust_lr::cuda
