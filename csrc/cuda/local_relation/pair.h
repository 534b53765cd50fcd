// Terms of one query and one key of a group, for any type, Phi and number of components, from global memory.
#pragma once

#include "../stem/stem.h"
#include "weights.h"

namespace robust_lr::cuda {

template <class Arguments>
struct Pair {
  using A = typename Arguments::A;

  const Arguments& a;
  int n, group;
  int row, column;          // of the query
  int key_row, key_column;  // may be outside the image

  __device__ bool key_inside() const {
    return key_row >= 0 && key_row < a.p.height && key_column >= 0 && key_column < a.p.width;
  }
  __device__ A query(int component) const {
    return widen(*address(a.q, n, group * int(a.p.components) + component, row, column));
  }
  __device__ A key(int component) const {
    return key_inside() ? widen(*address(a.k, n, group * int(a.p.components) + component, key_row, key_column)) : A(0);
  }
  __device__ A value(int channel) const {
    return key_inside() ? value_at(a.x, a.p, n, channel, key_row, key_column) : A(0);
  }
  __device__ A gradient(int channel) const { return widen(*address(a.dy, n, channel, row, column)); }

  // The index of this query's statistics.
  __device__ Index statistic() const {
    return ((n * a.p.groups + group) * a.p.out_height + row) * a.p.out_width + column;
  }

  // This query's entry in the scratch memory of the backward operator.
  __device__ auto& window() const {
    return a.queries[((n * a.p.out_height + row) * a.p.out_width + column) * a.p.groups + group];
  }

  __device__ A logit() const {
    const int size = int(a.p.kernel), stride = int(a.p.stride);
    const int tap_row = key_row - row * stride + size / 2, tap_column = key_column - column * stride + size / 2;
    A sum = a.geo != nullptr ? a.geo[(group * size + tap_row) * size + tap_column] : A(0);
    for (int d = 0; d < a.p.components; ++d) with_phi(a.p, [&](auto phi) { sum = phi.add(sum, query(d), key(d)); });
    return sum;
  }
  __device__ A weight() const {
    return a.p.softmax ? exponential(logit() - a.lse[statistic()], window().excess) : logit();
  }
  __device__ A result(int channel) const { return widen(*address(a.y, n, channel, row, column)); }

  // The sum over the channels of the group of dy times what f gives.
  template <class F>
  __device__ A dot_gradient(F f) const {
    const int first = group * int(a.p.shared), end = first + present_channels(a.p, group);
    A sum = 0;
    for (int c = first; c < end; ++c) sum += gradient(c) * f(c);
    return sum;
  }
  __device__ A product() const {
    return dot_gradient([&](int c) { return value(c); });
  }
  __device__ A dlogit() const { return a.p.softmax ? weight() * (product() - window().mean) : product(); }

  // Calls f for each key in the query's window that takes part: in the image, or in the zeros around it.
  template <class F>
  __device__ void each_key(F f) {
    const int size = int(a.p.kernel), stride = int(a.p.stride), pad = int(a.p.padding);
    for (int i = 0; i < size; ++i) {
      key_row = row * stride + i - size / 2;
      if (key_row < -pad || key_row >= a.p.height + pad) continue;
      for (int j = 0; j < size; ++j) {
        key_column = column * stride + j - size / 2;
        if (key_column >= -pad && key_column < a.p.width + pad) f();
      }
    }
  }

  // Calls f for each query whose window holds the key, which is inside the image.
  template <class F>
  __device__ void each_query(F f) {
    const int radius = int(a.p.kernel) / 2, stride = int(a.p.stride);
    auto first = [&](int key) { return (max(0, key - radius) + stride - 1) / stride; };
    auto last = [&](int key, Index count) { return min(int(count) - 1, (key + radius) / stride); };
    for (row = first(key_row); row <= last(key_row, a.p.out_height); ++row)
      for (column = first(key_column); column <= last(key_column, a.p.out_width); ++column) f();
  }
};

}  // namespace robust_lr::cuda
