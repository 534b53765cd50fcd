// The gradient of q, a strip of query pixels per thread, and what the gradients of k and the prior need from here: each
// window's mean of dot(dy, x), and how much its weights exceed a sum of 1.
//
//     dlogit = weight * (dot(dy, x) - mean)    with softmax; dot over the channels of the group
//     dlogit = dot(dy, x)                      without, where the logit is the weight
//
// The mean is dot(dy, y), but y was rounded, so what is missing is summed here. To measure from dot(dy, y) lets nothing
// cancel: a window with one great weight has a gradient of zero, and not of rounding errors. The sum of the weights is
// 1 but where logits are large: there lse is rounded as coarsely as they are.
#pragma once

#include "strips.h"

namespace robust_lr::cuda {

constexpr int kQueryStrip = 4;

template <class T, class X, class O>
__global__ void __launch_bounds__(kThreads, kResident) backward_queries(BackwardArguments<T, X> a, Blocking b) {
  constexpr int S = kQueryStrip, K = O::kSize;
  using Window = KeyWindow<O, S>;
  const Problem& p = a.p;
  const int height = int(p.height), width = int(p.width), groups = int(p.groups), pad = int(p.padding);
  const Place place(b);
  const Tile tile = Window::tile(b, place);
  const KeyMemory<T> memory(tile.size());
  memory.load(tile, a);

  const int first = place.strip * S, column = place.column;
  const int rows = min(S, int(p.out_height) - first);  // of the strip, in the image
  if (!place.inside || place.group >= groups || column >= p.out_width || rows <= 0) return;

  const int present = present_channels(p, place.group);
  const Index pixel = ((place.n * p.groups + place.group) * p.out_height + first) * p.out_width + column;
  float dy[S][kChannels], q[S], lse[S];
  // With softmax products are measured from `about`. Sums over the window:
  float about[S], products[S], sloped_products[S], weights[S], slopes[S];
#pragma unroll
  for (int s = 0; s < S; ++s) {
    const bool inside = s < rows;
    q[s] = inside ? widen(*address(a.q, place.n, place.group, first + s, column)) : 0.f;
    lse[s] = O::kSoftmax && inside ? a.lse[pixel + s * p.out_width] : 0.f;
    const int channel = place.group * int(p.shared);
    read_channels(a.dy, address(a.dy, place.n, channel, first + s, column), inside ? present : 0, dy[s]);
    about[s] = 0;
    if (O::kSoftmax) {
      float y[kChannels];
      read_channels(a.y, address(a.y, place.n, channel, first + s, column), inside ? present : 0, y);
      about[s] = dot(dy[s], y);
    }
    products[s] = sloped_products[s] = weights[s] = slopes[s] = 0;
  }

  for (int j = 0; j < K; ++j) {
    const int key_column = column * O::kStride + j - O::kRadius;
    if (key_column < -pad || key_column >= width + pad) continue;
    float priors[K];
#pragma unroll
    for (int i = 0; i < K; ++i) priors[i] = memory.prior[(i * K + j) * tile.groups + place.g];
    int at = tile.at(place.s * S * O::kStride, place.c * O::kStride + j, place.g);
#pragma unroll
    for (int i = 0; i < Window::kRows; ++i, at += tile.columns * tile.groups) {
      const int key_row = first * O::kStride + i - O::kRadius;
      if (key_row < -pad || key_row >= height + pad) continue;
      const float key = memory.keys[at];
      float x[kChannels];
      read_channels(memory.x, tile.size(), at, x);
#pragma unroll
      for (int s = 0; s < S; ++s) {
        const int tap = i - s * O::kStride;
        if (tap < 0 || tap >= K) continue;
        float product = dot(dy[s], x) - about[s];
        const float slope = O::Phi::query_slope(q[s], key);
        if constexpr (O::kSoftmax) {
          const float weight = exponential(O::Phi::add(priors[tap] - lse[s], q[s], key));
          product *= weight;
          weights[s] += weight;
          slopes[s] += weight * slope;
          products[s] += product;
        }
        sloped_products[s] += product * slope;
      }
    }
  }

#pragma unroll
  for (int s = 0; s < S; ++s) {
    if (s >= rows) continue;
    float dq = sloped_products[s];
    if (O::kSoftmax) {
      const float mean = products[s] / weights[s];
      a.mean[pixel + s * p.out_width] = about[s] + mean;
      a.excess[pixel + s * p.out_width] = log2f(weights[s]);
      dq = (dq - mean * slopes[s]) / weights[s];
    }
    narrow(O::Phi::kQueryFactor * dq, address(a.dq, place.n, place.group, first + s, column));
  }
}

}  // namespace robust_lr::cuda
