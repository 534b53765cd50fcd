// The gradient of q, a strip of query pixels per thread, and what backward_keys.h needs of each window: the weighted
// mean of dot(dy, x), and by how much the sum of the weights exceeds 1.
//
//     dlogit = weight * (dot(dy, x) - mean)    with softmax; dot over the channels of the group
//     dlogit = dot(dy, x)                      without, where the logit is the weight
//
// The mean is dot(dy, y), except that y was rounded, so the difference is summed here. Taking products relative to
// dot(dy, y) avoids cancellation: a window dominated by one weight gets a gradient of zero instead of rounding errors.
// The weights sum to 1 except where logits are large: there lse is rounded as coarsely as they are.
#pragma once

#include "strips.h"

namespace robust_lr::cuda {

// Query pixels in a strip: seven where registers suffice.
template <class O>
constexpr int kQueryStrip = O::kStride == 1 && !std::is_same_v<typename O::Phi, AbsoluteDifference> ? 7 : 4;

template <class T, class X, class O>
__global__ void __launch_bounds__(kThreads, kResident) backward_queries(BackwardArguments<T, X> a, Blocking b) {
  constexpr int S = kQueryStrip<O>, K = O::kSize;
  using Window = KeyWindow<O, S>;
  const Problem& p = a.p;
  const int height = int(p.height), width = int(p.width), groups = int(p.groups), pad = int(p.padding);
  const Place place(b);
  const auto tile = Window::tile(b, place);
  const KeyMemory<InTile<T, O>> memory(tile);
  memory.load(O(), tile, a);

  const int first = place.strip * S, column = place.column;
  const int rows = min(S, int(p.out_height) - first);  // of the strip, in the image
  if (!place.inside || place.group >= groups || column >= p.out_width || rows <= 0) return;

  const int present = present_channels(p, place.group);
  const Index pixel = ((place.n * p.groups + place.group) * p.out_height + first) * p.out_width + column;
  const int channel = place.group * int(p.shared), out_width = int(p.out_width);
  const auto* const queries = address(a.q, place.n, place.group, first, column);
  const T* const gradients = address(a.dy, place.n, channel, first, column);
  const T* const results = address(a.y, place.n, channel, first, column);
  float dy[S][kChannels], q[S], lse[S];  // lse to base 2
  // With softmax, products are relative to `about`. The other arrays are sums over the window.
  float about[S], products[S], sloped_products[S], weights[S], slopes[S];
#pragma unroll
  for (int s = 0; s < S; ++s) {
    const bool inside = s < rows;
    q[s] = inside ? widen(*pixel_at(a.q, queries, s, 0)) : 0.f;
    lse[s] = O::kSoftmax && inside ? a.lse[pixel + s * out_width] * float(kLog2e) : 0.f;
    read_channels(a.dy, pixel_at(a.dy, gradients, s, 0), inside ? present : 0, dy[s]);
    about[s] = 0;
    if (O::kSoftmax) {
      float y[kChannels];
      read_channels(a.y, pixel_at(a.y, results, s, 0), inside ? present : 0, y);
      about[s] = dot(dy[s], y);
    }
    products[s] = sloped_products[s] = weights[s] = slopes[s] = 0;
  }

  const float* const prior = memory.prior + place.g * K * K;
  for (int j = 0; j < K; ++j) {
    const int key_column = column * O::kStride + j - O::kRadius;
    if (O::kLeavesOut && (key_column < -pad || key_column >= width + pad)) continue;
    float priors[K];
#pragma unroll
    for (int i = 0; i < K; ++i) priors[i] = prior[i * K + j];
    const int tile_row = place.s * S * O::kStride, tile_column = place.c * O::kStride + j;
    const int at = tile.at(tile_row, tile_column, place.g), key_at = tile.scalar_at(tile_row, tile_column, place.g);
    each_key_row<O, S>(first * O::kStride, pad, height, [&](int i) {
      const float key = memory.keys[key_at + i];
      float x[kChannels];
      read_channels(memory.x, tile.pieces(), at + i, x);
#pragma unroll
      for (int s = 0; s < S; ++s) {
        const int tap = i - s * O::kStride;
        if (tap < 0 || tap >= K) continue;
        float product = dot_from<T>(-about[s], dy[s], x);
        const float slope = O::Phi::query_slope(q[s], key);
        if constexpr (O::kSoftmax) {
          const float weight = exponential_less(O::Phi::add(priors[tap], q[s], key), lse[s]);
          product *= weight;
          weights[s] += weight;
          slopes[s] += weight * slope;
          products[s] += product;
        }
        sloped_products[s] += product * slope;
      }
    });
  }

  Query<float>* const windows =
      a.queries + ((place.n * p.out_height + first) * out_width + column) * groups + place.group;
  auto* const dqueries = address(a.dq, place.n, place.group, first, column);
#pragma unroll
  for (int s = 0; s < S; ++s) {
    if (s >= rows) continue;
    float dq = sloped_products[s];
    Query<float> own{q[s], 0, 0, 0};
    if (O::kSoftmax) {
      const float scale = reciprocal<T>(weights[s]), mean = products[s] * scale;
      const float excess = logarithm_of_two<T>(weights[s]);
      own = kOneLess<T> ? Query<float>{q[s], lse[s] + excess, 0, about[s] + mean}
                        : Query<float>{q[s], lse[s], excess, about[s] + mean};
      dq = (dq - mean * slopes[s]) * scale;
    }
    windows[s * out_width * groups] = own;
    narrow(O::Phi::kQueryFactor * dq, pixel_at(a.dq, dqueries, s, 0));
  }
}

}  // namespace robust_lr::cuda
