// The gradients of x, k and the prior, a strip of key pixels per thread. It gathers from the query pixels whose windows
// hold a key, so nothing is written by two threads.
//
// With zeros around the image the prior's gradient has parts from there, so threads stand for these pixels too.
#pragma once

#include "../stem/stem_gradient.h"
#include "strips.h"

namespace robust_lr::cuda {

constexpr int kKeyStrip = 4;

// Where values are 16 bits, a sum of lse and excess is exact enough: its rounding changes weights by less than they are
// rounded to, unless logits are above a hundred thousand.
template <class Pointer>
constexpr bool kOneLess = sizeof(std::remove_pointer_t<Pointer>) == 2;

// What every key in a query's window needs of it, beside dy; lse to base 2.
struct alignas(16) Query {
  float q, lse, excess, mean;
};

// Shared memory of a block: its query pixels, which are few enough to widen them, and each warp's part of the gradients
// that are sums.
template <class X>
struct QueryMemory {
  Piece<float>* dy;
  Query* queries;
  float *prior, *dprior, *dvalues;

  __device__ QueryMemory(int size, int entries) {
    dy = reinterpret_cast<Piece<float>*>(shared_memory);
    queries = reinterpret_cast<Query*>(dy + Piece<float>::kCount * size);
    prior = reinterpret_cast<float*>(queries + size), dprior = prior + entries, dvalues = dprior + kWarps * entries;
  }
  static size_t bytes(const Tile<1>& tile, int taps) {
    const int sums = taps + kWarps * (taps + kDelivered<X>);  // of a group
    return tile.size() * (sizeof(float) * kChannels + sizeof(Query)) + sums * tile.groups * sizeof(float);
  }
};

// The queries of a thread's group, near the tile's first pixel. None of those outside the image has a key.
template <class O, class Arguments>
struct Queries {
  const Arguments& a;
  decltype(a.q.data) first;
  Index statistics;
  int width;

  __device__ Queries(const Tile<1>& tile, const Arguments& a) : a(a), width(int(a.p.out_width)) {
    const int group = group_to_load(tile);
    first = address(a.q, tile.n, group, tile.row, tile.column);
    statistics = ((tile.n * a.p.groups + group) * a.p.out_height + tile.row) * width + tile.column;
  }
  __device__ Query inside(int row, int column) const {
    Query query{widen(*pixel_at(a.q, first, row, column)), 0, 0, 0};
    if (O::kSoftmax) {
      const int at = row * width + column;
      query.lse = (a.lse + statistics)[at] * float(kLog2e), query.excess = (a.excess + statistics)[at];
      if (kOneLess<decltype(a.y.data)>) query.lse += query.excess, query.excess = 0;
      query.mean = (a.mean + statistics)[at];
    }
    return query;
  }
  __device__ Query outside() const { return {O::kBeyond, 0, 0, 0}; }
  __device__ bool pads() const { return false; }
  __device__ Query padded(int, int) const { return outside(); }
};

// Rows and columns before the image that threads stand for: a whole strip, so that strips start where QueryWindow asks.
__host__ __device__ inline int key_lead(const Problem& p) {
  return (int(p.padding) + kKeyStrip - 1) / kKeyStrip * kKeyStrip;
}

// True if there is a kernel of its own for calls that want no gradients of weights, as attacks do: in the types and
// windows of networks.
template <class T, class O>
constexpr bool kSparesWeights = sizeof(T) == 2 && O::kSoftmax && O::Phi::kBounded && O::kSize == 7 &&
                                std::is_same_v<typename O::Phi, SquaredDifference>;

// Without `Weights` there are no gradients of the prior and of the stem's transform.
template <class T, class X, class O, bool Weights>
__global__ void __launch_bounds__(kThreads, kResident) backward_keys(BackwardArguments<T, X> a, Blocking b) {
  constexpr int S = kKeyStrip, K = O::kSize;
  using Window = QueryWindow<O, S>;
  const Problem& p = a.p;
  const int height = int(p.height), width = int(p.width), groups = int(p.groups), pad = int(p.padding);
  const int out_height = int(p.out_height), out_width = int(p.out_width), lead = key_lead(p);
  const Place place(b);
  const Tile<1> tile = Window::tile(b, place, lead);
  const int entries = K * K * b.groups;
  const QueryMemory<X> memory(tile.size(), entries);
  load_tile<T>(tile, a.dy, p, out_height, out_width, Queries<O, BackwardArguments<T, X>>(tile, a), memory.dy,
               memory.queries);
  load_prior(tile, a.geo, p, memory.prior);
  float* const dprior = memory.dprior + threadIdx.x / 32 * entries;
  if (Weights && a.dgeo != nullptr) {
    for (int i = threadIdx.x % 32; i < entries; i += 32) dprior[i] = 0;
  }
  __syncthreads();

  const int first = place.strip * S - lead, column = place.column - lead;
  const bool active = place.inside && place.group < groups && column >= -pad && column < width + pad;
  auto inside = [&](int s) { return active && column >= 0 && column < width && first + s >= 0 && first + s < height; };
  auto takes_part = [&](int s) { return first + s >= -pad && first + s < height + pad; };
  float x[S][kChannels], dx[S][kChannels], k[S], dk[S];
  read_strip<T>(a.x, p, place.n, place.group, first, column, inside, x);
#pragma unroll
  for (int s = 0; s < S; ++s) {
#pragma unroll
    for (int c = 0; c < kChannels; ++c) keep(x[s][c]);
  }
  const auto* const keys = address(a.k, place.n, place.group, first, column);
#pragma unroll
  for (int s = 0; s < S; ++s) {
    k[s] = inside(s) ? widen(*pixel_at(a.k, keys, s, 0)) : takes_part(s) ? 0.f : -O::kBeyond;
    dk[s] = 0;
#pragma unroll
    for (int c = 0; c < kChannels; ++c) dx[s][c] = 0;
  }

  // The columns of the queries that hold this key meet it at every `stride`th tap, from the last on: at the same ones
  // in all of a warp.
  const int last_tap = K - 1 - (place.c + O::kRadius) % O::kStride;
  int query_column = Window::kBefore + (place.c + O::kRadius - last_tap) / O::kStride;  // in the tile
  const int first_row = place.s * S / O::kStride;                                       // in the tile
  const int row_step = tile.columns * tile.groups;
  for (int j = last_tap; j >= 0; j -= O::kStride, ++query_column) {
    float dpriors[K];
#pragma unroll
    for (int i = 0; i < K; ++i) dpriors[i] = 0;
    const int image_column = tile.column + query_column;
    if (active && (!O::kLeavesOut || (image_column >= 0 && image_column < out_width))) {
      float priors[K];
#pragma unroll
      for (int i = 0; i < K; ++i) priors[i] = memory.prior[(i * K + j) * b.groups + place.g];
      const int start = tile.at(first_row, query_column, place.g);
      each_query_row<O, S>(tile.row + first_row, out_height, [&](int i) {
        const int at = start + i * row_step;
        const Query query = memory.queries[at];
        float dy[kChannels];
        read_channels(memory.dy, tile.size(), at, dy);
#pragma unroll
        for (int s = 0; s < S; ++s) {
          const int tap = Window::tap(s, i);
          if (tap < 0 || tap >= K) continue;
          float dlogit = dot_from<T>(O::kSoftmax ? -query.mean : 0.f, dy, x[s]);
          float weight = O::Phi::add(priors[tap], query.q, k[s]);
          if (O::kSoftmax) {
            weight =
                kOneLess<T*> ? exponential_less(weight, query.lse) : exponential_less(weight, query.lse, query.excess);
            dlogit *= weight;
          }
#pragma unroll
          for (int c = 0; c < kChannels; ++c) dx[s][c] += weight * dy[c];
          dk[s] += dlogit * O::Phi::key_slope(query.q, k[s]);
          if (Weights && (!O::kLeavesOut || takes_part(s))) dpriors[tap] += dlogit;
        }
      });
    }
    if (Weights && a.dgeo != nullptr) {
      // Lanes that are a multiple of groups apart have the same group and tap. The first of them adds up.
      for (int lanes = 16; lanes >= b.groups; lanes /= 2) {
#pragma unroll
        for (int i = 0; i < K; ++i) dpriors[i] += __shfl_xor_sync(0xffffffff, dpriors[i], lanes);
      }
      if (int(threadIdx.x % 32) < b.groups) {
#pragma unroll
        for (int i = 0; i < K; ++i) dprior[(i * K + j) * b.groups + place.g] += dpriors[i];
      }
    }
  }

  auto* const dkeys = address(a.dk, place.n, place.group, first, column);
#pragma unroll
  for (int s = 0; s < S; ++s) {
    if (inside(s)) narrow(O::Phi::kKeyFactor * dk[s], pixel_at(a.dk, dkeys, s, 0));
  }
  deliver<Weights>(a.dx, a.x, p, b, place, first, column, inside, x, dx, memory.dvalues);
  if (Weights && a.dgeo != nullptr) {
    float* const part = a.dgeo_partial + b.by_group_blocks.quotient(blockIdx.x) * p.groups * K * K;
    sum_warps(memory.dprior, entries, [&](int i, float sum) {
      const int group = place.first_group + (i & (b.groups - 1));
      if (group < groups) part[group * K * K + (i >> b.group_shift)] = sum;
    });
  }
}

}  // namespace robust_lr::cuda
