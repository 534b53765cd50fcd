// The gradients of x, k and the prior, a strip of key pixels per thread. A thread gathers from the query pixels whose
// windows hold its keys, so no two threads write to the same place.
//
// With zeros around the image, the keys there contribute to the prior's gradient, so threads cover these pixels too.
#pragma once

#include "../stem/stem_gradient.h"
#include "strips.h"

namespace robust_lr::cuda {

// Key pixels in a strip: seven where registers suffice.
template <class X, class O, bool Weights>
constexpr int kKeyStrip = O::kStride == 1 && !Weights ? 7 : 4;
template <class A, class O, bool Weights>
constexpr int kKeyStrip<Stem<A>, O, Weights> = 4;

// Strips that a thread works on, one after another. At stride 2 a single strip is too little work for a thread's setup.
template <class O, bool Weights>
constexpr int kKeyRounds = O::kStride == 2 && !Weights ? 2 : 1;

template <class X, class O, bool Weights>
constexpr int kKeyRows = kKeyStrip<X, O, Weights> * kKeyRounds<O, Weights>;

// Shared memory of a block: its query pixels, which are few enough to be stored as float, the matrices for tensor
// cores, the prior, and each thread's terms of the gradients that are sums over pixels.
template <class X, bool Weights, bool Products>
struct QueryMemory {
  static constexpr bool kProducts = Products;

  Piece<float>* dy;
  Query<float>* queries;
  StripMatrices matrices;
  float *prior, *slots;

  __device__ QueryMemory(const TileShape& tile, int taps) {
    dy = reinterpret_cast<Piece<float>*>(shared_memory);
    queries = reinterpret_cast<Query<float>*>(shared_memory) + Piece<float>::kCount * tile.pieces();
    matrices.memory = reinterpret_cast<float4*>(queries + tile.pieces());
    prior = reinterpret_cast<float*>(matrices.memory) + (Products ? StripMatrices::kBytes / sizeof(float) : 0);
    slots = prior + taps * tile.groups;
  }
  static size_t bytes(const TileShape& tile, int taps) {
    const int sums = Weights ? std::max(taps, kDelivered<X>) * kSlotPitch : 0;
    return tile.pieces() * (sizeof(float) * kChannels + sizeof(Query<float>)) + (Products ? StripMatrices::kBytes : 0) +
           (taps * tile.groups + sums) * sizeof(float);
  }
};

// Reads the queries of a thread's group, starting from the tile's first pixel. There are no queries outside the image.
template <class O, class Arguments>
struct Queries {
  const Query<float>* first;
  int row_step, column_step;

  __device__ Queries(const Tile<1>& tile, const Arguments& a)
      : row_step(int(a.p.out_width * a.p.groups)), column_step(int(a.p.groups)) {
    first = a.queries + ((tile.n * a.p.out_height + tile.row) * a.p.out_width + tile.column) * a.p.groups +
            group_to_load(tile);
  }
  __device__ const Query<float>* at(int row, int column) const { return first + row * row_step + column * column_step; }
  __device__ Query<float> inside(const Query<float>* query, int row) const { return query[row * row_step]; }
  __device__ Query<float> outside() const { return {O::kBeyond, 0, 0, 0}; }
};

// Rows and columns before the image that threads cover: the padding, rounded up to whole threads so that strips start
// where QueryWindow requires.
__host__ __device__ inline int key_lead(const Problem& p, int rows) {
  return (int(p.padding) + rows - 1) / rows * rows;
}

// True for the types and options that networks usually have; there are specialized kernels for these.
template <class T, class O>
constexpr bool kUsual = sizeof(T) == 2 && O::kSoftmax && O::Phi::kBounded && O::kSize == 7 &&
                        std::is_same_v<typename O::Phi, SquaredDifference>;

// Without `Weights` the gradients of the prior and of the stem's transform are left out, as attacks do not need them.
// With `Products` the stem's values are computed on tensor cores. With `Products` but without `Weights`, the image's
// gradient includes the keys' contribution.
template <class T, class X, class O, bool Weights, bool Products>
__global__ void __launch_bounds__(kThreads, kResident) backward_keys(BackwardArguments<T, X> a, Blocking b) {
  constexpr int S = kKeyStrip<X, O, Weights>, kRows = kKeyRows<X, O, Weights>, K = O::kSize;
  constexpr bool kAddsKeys = Products && !Weights;
  using Window = QueryWindow<O, S>;
  const Problem& p = a.p;
  const int height = int(p.height), width = int(p.width), groups = int(p.groups), pad = int(p.padding);
  const int out_height = int(p.out_height), out_width = int(p.out_width), lead = key_lead(p, kRows);
  const Place place(b);
  const Tile<1> tile = QueryWindow<O, kRows>::tile(b, place, lead);
  const QueryMemory<X, Weights, Products> memory(tile, K * K);
  load_tile<T>(tile, a.dy, p, out_height, out_width, Queries<O, BackwardArguments<T, X>>(tile, a), memory.dy,
               memory.queries);
  load_prior(tile, tile.group, a.geo, p, memory.prior);
  if constexpr (Products)
    memory.matrices.make(a.x, p, tile.group, kAddsKeys ? static_cast<const T*>(a.dx.key_weights) : nullptr);
  __syncthreads();

  const int column = place.column - lead;
  const bool present = place.group < groups, active = place.inside && present && column >= -pad && column < width + pad;
#pragma unroll 1
  for (int round = 0; round < kKeyRounds<O, Weights>; ++round) {
    const int first = place.strip * kRows + round * S - lead;
    auto inside = [&](int s) { return place.inside && is_inside(first + s, column, height, width); };
    auto takes_part = [&](int s) { return first + s >= -pad && first + s < height + pad; };
    float x[S][kChannels], dx[S][kChannels], k[S], dk[S];
    if constexpr (Products) {
      read_strip_by_products(memory.matrices, a.x, p, place.n, first, column, inside, x);
    } else {
      read_strip<T>(a.x, p, place.n, place.group, first, column, [&](int s) { return present && inside(s); }, x);
    }
#pragma unroll
    for (int s = 0; s < S; ++s) {
#pragma unroll
      for (int c = 0; c < kChannels; ++c) keep(x[s][c]);
    }
    const auto* const keys = address(a.k, place.n, place.group, first, column);
#pragma unroll
    for (int s = 0; s < S; ++s) {
      k[s] = present && inside(s) ? widen(*pixel_at(a.k, keys, s, 0)) : takes_part(s) ? 0.f : -O::kBeyond;
      dk[s] = 0;
#pragma unroll
      for (int c = 0; c < kChannels; ++c) dx[s][c] = 0;
    }

    // The query columns whose windows hold this key meet it at every `stride`th tap, counting down from the last one.
    // These taps are the same for all threads of a warp.
    const int last_tap = K - 1 - (place.c + O::kRadius) % O::kStride;
    int query_column = Window::kBefore + (place.c + O::kRadius - last_tap) / O::kStride;  // in the tile
    const int first_row = (place.s * kRows + round * S) / O::kStride;                     // in the tile
    const float* const prior = memory.prior + place.g * K * K;
    float* const slots = memory.slots + threadIdx.x;
    for (int j = last_tap; j >= 0; j -= O::kStride, ++query_column) {
      float dpriors[K];
#pragma unroll
      for (int i = 0; i < K; ++i) dpriors[i] = 0;
      const int image_column = tile.column + query_column;
      if (active && (!O::kLeavesOut || (image_column >= 0 && image_column < out_width))) {
        float priors[K];
#pragma unroll
        for (int i = 0; i < K; ++i) priors[i] = prior[i * K + j];
        const int start = tile.at(first_row, query_column, place.g);
        each_query_row<O, S>(tile.row + first_row, out_height, [&](int i) {
          const int at = start + i;
          const Query<float> query = memory.queries[at];
          float dy[kChannels];
          read_channels(memory.dy, tile.pieces(), at, dy);
#pragma unroll
          for (int s = 0; s < S; ++s) {
            const int tap = Window::tap(s, i);
            if (tap < 0 || tap >= K) continue;
            float dlogit = dot_from<T>(O::kSoftmax ? -query.mean : 0.f, dy, x[s]);
            float weight = O::Phi::add(priors[tap], query.q, k[s]);
            if (O::kSoftmax) {
              weight =
                  kOneLess<T> ? exponential_less(weight, query.lse) : exponential_less(weight, query.lse, query.excess);
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
#pragma unroll
        for (int i = 0; i < K; ++i) slots[(i * K + j) * kSlotPitch] = dpriors[i];
      }
    }

#pragma unroll
    for (int s = 0; s < S; ++s) dk[s] *= O::Phi::kKeyFactor;
    if constexpr (kAddsKeys) {
      add_keys(memory.matrices, dk, dx);
    } else {
      auto* const dkeys = address(a.dk, place.n, place.group, first, column);
#pragma unroll
      for (int s = 0; s < S; ++s) {
        if (present && inside(s)) narrow(dk[s], pixel_at(a.dk, dkeys, s, 0));
      }
    }
    if (Weights && a.dgeo != nullptr) {
      float* const part = a.dgeo_partial + b.by_group_blocks.quotient(blockIdx.x) * groups * K * K;
      const int each = int(blockDim.x) / b.turns;  // threads of a turn; the taps of a column belong to one turn
      sum_threads<4>(
          memory.slots, K * K, tile, each, [&](int tap) { return (K - 1 - tap % K + O::kRadius) % O::kStride * each; },
          [&](int tap, int g, float sum) {
            if (place.first_group + g < groups) part[(place.first_group + g) * K * K + tap] = sum;
          });
    }
    deliver<Weights, O::kStride>(a.dx, a.x, p, b, place, first, column, inside, x, dx, memory);
  }
}

}  // namespace robust_lr::cuda
