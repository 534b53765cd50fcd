// Kernels for the calls that no strip kernel covers: a thread computes up to 8 channels or components of one pixel.
#pragma once

#include "pair.h"

namespace robust_lr::cuda {

constexpr int kGeneralThreads = 128;
template <class T>
constexpr int kGeneralResident = sizeof(WideOf<T>) < 8 ? 4 : 3;  // resident blocks of a multiprocessor, at least

__host__ __device__ inline int parts(Index count) { return int((count + kChannels - 1) / kChannels); }

// The work of a thread: a part of a group at one pixel. Neighboring threads have neighbors in memory.
struct Item {
  int n, group, part, row, column;
  bool inside;

  template <class T>
  __device__ Item(const Problem& p, const Image<T>& image, int parts, Index height, Index width) {
    Index item = blockIdx.x * Index(kGeneralThreads) + threadIdx.x;
    const Index units = p.groups * parts;
    auto take = [&](Index count) {
      const int taken = int(item % count);
      item /= count;
      return taken;
    };
    int unit = 0;
    const bool channels_last = image.channel == 1;
    if (channels_last) unit = take(units);
    column = take(width), row = take(height);
    if (!channels_last) unit = take(units);
    group = unit / parts, part = unit % parts;
    inside = item < p.batch;
    n = int(item);
  }
};

template <class T, class X>
__global__ void __launch_bounds__(kGeneralThreads, kGeneralResident<T>) forward_general(ForwardArguments<T, X> a) {
  using A = WideOf<T>;
  const Problem& p = a.p;
  const Item item(p, a.y, parts(p.shared), p.out_height, p.out_width);
  if (!item.inside) return;
  Pair<ForwardArguments<T, X>> pair{a, item.n, item.group, item.row, item.column};
  const int first = item.part * kChannels, channel = item.group * int(p.shared) + first;
  const int count = min(kChannels, present_channels(p, item.group) - first);

  A top = p.softmax ? A(-INFINITY) : A(0), total = 0, sum[kChannels] = {};
  if (p.softmax) pair.each_key([&] { top = fmax(top, pair.logit()); });
  pair.each_key([&] {
    const A weight = p.softmax ? exponential(pair.logit() - top) : pair.logit();
    total += weight;
#pragma unroll
    for (int c = 0; c < kChannels; ++c)
      if (c < count) sum[c] += weight * pair.value(channel + c);
  });
#pragma unroll
  for (int c = 0; c < kChannels; ++c)
    if (c < count)
      narrow(p.softmax ? sum[c] / total : sum[c], address(a.y, item.n, channel + c, item.row, item.column));
  if (p.softmax && item.part == 0) a.lse[pair.statistic()] = top + log(total);
}

template <class T, class X>
__global__ void __launch_bounds__(kGeneralThreads, kGeneralResident<T>) dq_general(BackwardArguments<T, X> a) {
  using A = WideOf<T>;
  const Problem& p = a.p;
  const Item item(p, a.dq, parts(p.components), p.out_height, p.out_width);
  if (!item.inside) return;
  Pair<BackwardArguments<T, X>> pair{a, item.n, item.group, item.row, item.column};
  const int first = item.part * kChannels, count = min(kChannels, int(p.components) - first);

  // The same as in backward_queries.h.
  const A lse = p.softmax ? a.lse[pair.statistic()] : A(0);
  const A about = p.softmax ? pair.dot_gradient([&](int c) { return pair.result(c); }) : A(0);
  A products = 0, weights = 0, sloped_products[kChannels] = {}, slopes[kChannels] = {};
  pair.each_key([&] {
    const A weight = p.softmax ? exponential(pair.logit() - lse) : A(1), product = weight * (pair.product() - about);
    products += product, weights += weight;
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      if (c >= count) continue;
      const A slope =
          with_phi(p, [&](auto phi) { return phi.query_slope(pair.query(first + c), pair.key(first + c)); });
      sloped_products[c] += product * slope;
      slopes[c] += weight * slope;
    }
  });
  const A mean = p.softmax ? products / weights : A(0), scale = p.softmax ? 1 / weights : A(1);
  const int factor = with_phi(p, [](auto phi) { return phi.kQueryFactor; });
#pragma unroll
  for (int c = 0; c < kChannels; ++c) {
    if (c >= count) continue;
    const int channel = item.group * int(p.components) + first + c;
    narrow(factor * scale * (sloped_products[c] - mean * slopes[c]),
           address(a.dq, item.n, channel, item.row, item.column));
  }
  if (p.softmax && item.part == 0) {
    pair.window().mean = about + mean;
    pair.window().excess = log2(weights);
  }
}

template <class T, class X>
__global__ void __launch_bounds__(kGeneralThreads, kGeneralResident<T>) dk_general(BackwardArguments<T, X> a) {
  using A = WideOf<T>;
  const Problem& p = a.p;
  const Item item(p, a.dk, parts(p.components), p.height, p.width);
  if (!item.inside) return;
  Pair<BackwardArguments<T, X>> pair{a, item.n, item.group, 0, 0, item.row, item.column};
  const int first = item.part * kChannels, count = min(kChannels, int(p.components) - first);

  A sum[kChannels] = {};
  pair.each_query([&] {
    const A dlogit = pair.dlogit();
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      if (c >= count) continue;
      sum[c] +=
          dlogit * with_phi(p, [&](auto phi) { return phi.key_slope(pair.query(first + c), pair.key(first + c)); });
    }
  });
  const int factor = with_phi(p, [](auto phi) { return phi.kKeyFactor; });
#pragma unroll
  for (int c = 0; c < kChannels; ++c) {
    const int channel = item.group * int(p.components) + first + c;
    if (c < count) narrow(factor * sum[c], address(a.dk, item.n, channel, item.row, item.column));
  }
}

template <class T, class X>
__global__ void __launch_bounds__(kGeneralThreads, kGeneralResident<T>) dx_general(BackwardArguments<T, X> a) {
  using A = WideOf<T>;
  const Problem& p = a.p;
  const auto& dx = in_memory(a.dx);
  const Item item(p, dx, parts(p.shared), p.height, p.width);
  if (!item.inside) return;
  Pair<BackwardArguments<T, X>> pair{a, item.n, item.group, 0, 0, item.row, item.column};
  const int first = item.part * kChannels, channel = item.group * int(p.shared) + first;
  const int count = min(kChannels, present_channels(p, item.group) - first);

  A sum[kChannels] = {};
  pair.each_query([&] {
    const A weight = pair.weight();
#pragma unroll
    for (int c = 0; c < kChannels; ++c)
      if (c < count) sum[c] += weight * pair.gradient(channel + c);
  });
#pragma unroll
  for (int c = 0; c < kChannels; ++c)
    if (c < count) narrow(sum[c], address(dx, item.n, channel + c, item.row, item.column));
}

// The contribution of one image to the gradient of one value of the prior, computed by one block.
template <class T, class X>
__global__ void __launch_bounds__(kGeneralThreads, kGeneralResident<T>) dgeo_general(BackwardArguments<T, X> a) {
  using A = WideOf<T>;
  const Problem& p = a.p;
  const int size = int(p.kernel), stride = int(p.stride), pad = int(p.padding), taps = size * size;
  const int entry = blockIdx.x % (p.groups * taps), n = int(blockIdx.x / (p.groups * taps));
  Pair<BackwardArguments<T, X>> pair{a, n, entry / taps};
  A sum = 0;
  for (int pixel = threadIdx.x; pixel < p.out_height * p.out_width; pixel += kGeneralThreads) {
    pair.row = pixel / int(p.out_width), pair.column = pixel % int(p.out_width);
    pair.key_row = pair.row * stride + entry % taps / size - size / 2;
    pair.key_column = pair.column * stride + entry % size - size / 2;
    if (pair.key_row >= -pad && pair.key_row < p.height + pad && pair.key_column >= -pad &&
        pair.key_column < p.width + pad)
      sum += pair.dlogit();
  }
  A* const sums = reinterpret_cast<A*>(shared_memory);  // one per thread
  sums[threadIdx.x] = sum;
  for (int half = kGeneralThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (int(threadIdx.x) < half) sums[threadIdx.x] += sums[threadIdx.x + half];
  }
  if (threadIdx.x == 0) a.dgeo_partial[blockIdx.x] = sums[0];
}

}  // namespace robust_lr::cuda
