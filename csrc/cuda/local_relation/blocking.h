// The division of the strip kernels' work into blocks, and the options that they are compiled for.
#pragma once

#include <algorithm>

#include "../common/launch.h"
#include "strips.h"

namespace robust_lr::cuda {

// Number of groups of a pixel that neighboring threads work on, at first: they should be neighbors in memory.
template <class T>
int neighbors(const Image<T>& x) {
  return x.channel == 1 ? 4 : 1;
}
template <class A>
int neighbors(const Stem<A>&) {
  return 8;  // all of the paper's stem, as the gradient of the image is a sum over groups
}

// Divides an image of `rows` x `columns` pixels into blocks of strips. `bytes` tells the shared memory that a blocking
// takes. Nothing here changes a result, only its speed.
template <class Bytes>
Blocking divide(const Problem& p, Index rows, Index columns, int strip, int groups, Bytes bytes) {
  Blocking b{};
  b.groups = groups;
  auto whole = [&](Index columns) { return int(ceil_div(columns, p.stride) * p.stride); };  // strips.h counts on it
  b.columns = whole(ceil_div(columns, ceil_div(columns, groups > 1 ? 16 : 64)));
  const int strips = int(ceil_div(rows, strip));  // of a column
  b.strips = std::max(1, std::min(strips, kThreads / (b.groups * b.columns)));
  const int most_groups = 32 / int(p.stride);  // lanes that have the same group and tap must be in one warp
  auto threads = [&] { return b.groups * b.columns * b.strips; };
  while (2 * threads() <= kThreads && 2 * b.groups <= most_groups && b.groups < p.groups) b.groups *= 2;
  while (threads() > kThreads || bytes(b) > kMaxSharedMemory) {
    if (b.groups > 2) {
      b.groups /= 2;
    } else if (b.strips > 1) {
      b.strips = (b.strips + 1) / 2;
    } else if (b.columns > 8) {
      b.columns = whole(b.columns / 2);
    } else {
      b.groups = 1;
      break;
    }
  }
  b.group_blocks = int(ceil_div(p.groups, b.groups));
  b.column_blocks = int(ceil_div(columns, b.columns));
  b.strip_blocks = int(ceil_div(strips, b.strips));
  return b;
}

inline int threads(const Blocking& b) { return int(ceil_div(b.groups * b.columns * b.strips, 32) * 32); }

// Calls f with the Options that strip kernels are compiled for and returns true; false where they do not cover `p`.
template <class F>
bool with_options(const Problem& p, F f) {
  if (p.components != 1 || p.shared > kChannels) return false;
  auto with_stride = [&](auto phi, auto softmax, auto size) {
    using Phi = decltype(phi);
    if (p.stride == 1) return f(Options<Phi, softmax, size, 1>()), true;
    if (p.stride == 2) return f(Options<Phi, softmax, size, 2>()), true;
    return false;
  };
  using std::integral_constant;
  if (p.kernel == 7) {  // every kind of weights, in the size of the networks
    return with_phi(p, [&](auto phi) {
      return p.softmax ? with_stride(phi, std::true_type(), integral_constant<int, 7>())
                       : with_stride(phi, std::false_type(), integral_constant<int, 7>());
    });
  }
  if (p.composability != Composability::squared_difference || !p.softmax) return false;
  switch (p.kernel) {  // every size, with the default weights
    case 3: return with_stride(SquaredDifference(), std::true_type(), integral_constant<int, 3>());
    case 5: return with_stride(SquaredDifference(), std::true_type(), integral_constant<int, 5>());
    case 9: return with_stride(SquaredDifference(), std::true_type(), integral_constant<int, 9>());
    default: return false;
  }
}

}  // namespace robust_lr::cuda
