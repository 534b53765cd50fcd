// y from x, q, k and the prior, a strip of pixels per thread. Weights live in registers only.
#pragma once

#include "strips.h"

namespace robust_lr::cuda {

constexpr float kUnderflow = 1e-30f;  // totals below this have lost weights to underflow

// Outputs of a thread: as many as fit into registers. 7 divides the sizes of the usual feature maps.
template <class O>
constexpr int kForwardStrip = O::kStride == 1 ? 7 : 4;

// Computes one output again with the exact maximum of its logits, where the weights underflowed with the bound instead.
template <class T, class X, class O>
__device__ void redo_output(const ForwardArguments<T, X>& a, const Tile<O::kStride>& tile,
                            const KeyMemory<InTile<T, O>>& memory, int g, float q, int row, int column,
                            float (&sum)[kChannels], float* lse) {
  const int pad = int(a.p.padding), height = int(a.p.height), width = int(a.p.width);
  auto each_logit = [&](auto f) {
    for (int i = 0; i < O::kSize; ++i) {
      const int key_row = row * O::kStride + i - O::kRadius;
      if (key_row < -pad || key_row >= height + pad) continue;
      for (int j = 0; j < O::kSize; ++j) {
        const int key_column = column * O::kStride + j - O::kRadius;
        if (key_column < -pad || key_column >= width + pad) continue;
        const int tile_row = key_row - tile.row, tile_column = key_column - tile.column;
        const float key = memory.keys[tile.scalar_at(tile_row, tile_column, g)];
        const float prior = memory.prior[(g * O::kSize + i) * O::kSize + j];
        constexpr float kUnfold = 1 / (kFold<T, O> * kFold<T, O>);
        f(tile.at(tile_row, tile_column, g),
          kFold<T, O> == 1 ? O::Phi::add(prior, q, key) : prior + kUnfold * O::Phi::add(0.f, q * kFold<T, O>, key));
      }
    }
  };
  float top = -INFINITY, total = 0;
  each_logit([&](int, float logit) { top = fmaxf(top, logit); });
#pragma unroll
  for (int c = 0; c < kChannels; ++c) sum[c] = 0;
  each_logit([&](int place, float logit) {
    const float weight = exponential(logit - top);
    float x[kChannels];
    read_channels(memory.x, tile.pieces(), place, x);
    total += weight;
#pragma unroll
    for (int c = 0; c < kChannels; ++c) sum[c] += weight * x[c];
  });
#pragma unroll
  for (int c = 0; c < kChannels; ++c) sum[c] /= total;
  *lse = top + logf(total);
}

template <class T, class X, class O>
__global__ void __launch_bounds__(kThreads, kResident) forward_strips(ForwardArguments<T, X> a, Blocking b) {
  constexpr int S = kForwardStrip<O>, K = O::kSize;
  using Window = KeyWindow<O, S>;
  const Problem& p = a.p;
  const int height = int(p.height), width = int(p.width), groups = int(p.groups), pad = int(p.padding);
  const Place place(b);
  const auto tile = Window::tile(b, place);
  const KeyMemory<InTile<T, O>> memory(tile);
  memory.load(O(), tile, a, kFold<T, O>);

  const int first = place.strip * S, column = place.column;
  const int rows = min(S, int(p.out_height) - first);  // of the strip, in the image
  if (!place.inside || place.group >= groups || column >= p.out_width || rows <= 0) return;

  float q[S], shift[S], total[S], sum[S][kChannels];
  const float* const prior = memory.prior + place.g * K * K;
  const auto* const queries = address(a.q, place.n, place.group, first, column);
#pragma unroll
  for (int s = 0; s < S; ++s) {
    q[s] = s < rows ? kFold<T, O> * widen(*pixel_at(a.q, queries, s, 0)) : 0.f;
    shift[s] = 0, total[s] = 0;
#pragma unroll
    for (int c = 0; c < kChannels; ++c) sum[s][c] = 0;
  }

  // Calls f(place of a key pixel in the tile, place of its key, row of the tap for the strip's first pixel) for the
  // strip's key pixels in one column.
  auto each_row = [&](int j, auto f) {
    const int key_column = column * O::kStride + j - O::kRadius;
    if (O::kLeavesOut && (key_column < -pad || key_column >= width + pad)) return;
    const int tile_row = place.s * S * O::kStride, tile_column = place.c * O::kStride + j;
    const int at = tile.at(tile_row, tile_column, place.g), key_at = tile.scalar_at(tile_row, tile_column, place.g);
    each_key_row<O, S>(first * O::kStride, pad, height, [&](int i) { f(at + i, key_at + i, i); });
  };

  if constexpr (O::kSoftmax) {
    if constexpr (O::Phi::kBounded) {  // no logit is greater than the greatest prior
      float bound = prior[0];
      for (int t = 1; t < K * K; ++t) bound = fmaxf(bound, prior[t]);
#pragma unroll
      for (int s = 0; s < S; ++s) shift[s] = bound;
    } else {
#pragma unroll
      for (int s = 0; s < S; ++s) shift[s] = -INFINITY;
      for (int j = 0; j < K; ++j) {
        each_row(j, [&](int, int key_at, int i) {
          const float key = memory.keys[key_at];
#pragma unroll
          for (int s = 0; s < S; ++s) {
            const int tap = i - s * O::kStride;
            if (tap < 0 || tap >= K) continue;
            shift[s] = fmaxf(shift[s], O::Phi::add(prior[tap * K + j], q[s], key));
          }
        });
      }
    }
  }

  for (int j = 0; j < K; ++j) {
    float priors[K];
#pragma unroll
    for (int i = 0; i < K; ++i) {
      priors[i] = prior[i * K + j];
      if (O::kSoftmax && O::Phi::kBounded) priors[i] -= shift[0];  // the shift is the same for all pixels
      if (kFold<T, O> != 1) priors[i] *= float(kLog2e);
    }
    each_row(j, [&](int at, int key_at, int i) {
      const float key = memory.keys[key_at];
      float x[kChannels];
      read_channels(memory.x, tile.pieces(), at, x);
#pragma unroll
      for (int s = 0; s < S; ++s) {
        const int tap = i - s * O::kStride;
        if (tap < 0 || tap >= K) continue;
        float weight = O::Phi::add(O::kSoftmax && O::kLeavesOut ? priors[tap] - shift[s] : priors[tap], q[s], key);
        if (O::kSoftmax) {
          weight = kFold<T, O> == 1 ? exponential(weight) : power_of_two(weight);
          total[s] += weight;
        }
#pragma unroll
        for (int c = 0; c < kChannels; ++c) sum[s][c] += weight * x[c];
      }
    });
  }

  const int present = present_channels(p, place.group);
  float* const lse = a.lse + ((place.n * p.groups + place.group) * p.out_height + first) * p.out_width + column;
  T* const results = address(a.y, place.n, place.group * int(p.shared), first, column);
  unsigned again = 0;
#pragma unroll
  for (int s = 0; s < S; ++s) {
    if (s >= rows) continue;
    if (O::kSoftmax) {
      if (O::Phi::kBounded && total[s] < kUnderflow) again |= 1u << s;
      const float scale = reciprocal<T>(total[s]);
#pragma unroll
      for (int c = 0; c < kChannels; ++c) sum[s][c] *= scale;
      lse[s * int(p.out_width)] = shift[s] + logarithm_of_two<T>(total[s]) * float(1 / kLog2e);
    }
    write_channels(a.y, pixel_at(a.y, results, s, 0), present, sum[s]);
  }
  if (O::kSoftmax && O::Phi::kBounded) {
    for (int s = 0; again != 0; ++s, again >>= 1) {
      if (!(again & 1)) continue;
      const float query = widen(*pixel_at(a.q, queries, s, 0));
      redo_output<T, X, O>(a, tile, memory, place.g, query, first + s, column, sum[0], &lse[s * int(p.out_width)]);
      write_channels(a.y, pixel_at(a.y, results, s, 0), present, sum[0]);
    }
  }
}

}  // namespace robust_lr::cuda
