// The division of the strip kernels' work into blocks, and the options that they are compiled for.
#pragma once

#include <algorithm>

#include "../common/launch.h"
#include "strips.h"

namespace robust_lr::cuda {

inline int threads(const Blocking& b) {
  return int(b.turns * ceil_div(b.groups * (b.columns / b.turns) * b.strips, 32) * 32);
}

// The least number of groups that a block should work on: several where a pixel's groups are neighbors in memory.
template <class T>
int least_groups(const Image<T>& x) {
  return x.channel == 1 ? 2 : 1;
}
template <class A>
int least_groups(const Stem<A>&) {
  return 8;  // all groups of the paper's stem, because the gradient of the image is a sum over groups
}

// Instructions of a warp, counted by benchmarks/cuda_count.py: for each run of the tile that its threads load, and for
// everything else.
struct Costs {
  int run, rest;
};

// Divides an image of `rows` x `columns` pixels into blocks of strips, so that they take the fewest instructions.
// `shape_of` gives the tile of a blocking, `bytes` the shared memory that it takes. Nothing here changes a result,
// only its speed.
template <class ShapeOf, class Bytes>
Blocking divide(const Problem& p, Index rows, Index columns, int strip, int turns, int least_groups, Costs costs,
                ShapeOf shape_of, Bytes bytes) {
  auto whole = [&](Index columns) { return int(ceil_div(columns, p.stride) * p.stride); };  // strips.h relies on it
  const int strips = int(ceil_div(rows, strip));                                            // of a column
  Blocking best{};
  Index least = INT64_MAX;
  auto consider = [&](int groups, int width, int height) {
    Blocking b{};
    b.groups = groups, b.columns = width, b.turns = turns;
    b.group_blocks = int(ceil_div(p.groups, groups)), b.column_blocks = int(ceil_div(columns, width));
    b.strip_blocks = int(ceil_div(strips, height)), b.strips = int(ceil_div(strips, b.strip_blocks));
    b.tile = shape_of(b);
    if (threads(b) > kThreads || bytes(b.tile) > kMaxSharedMemory) return;
    const Index passes = ceil_div(b.tile.runs(), threads(b) / groups);
    Index cost = Index(b.blocks()) * threads(b) * (costs.rest + passes * costs.run);
    if (threads(b) < kThreads) cost += cost / 4;  // fewer warps to hide latencies
    if (cost < least) least = cost, best = b;
  };
  constexpr int kMostGroups = 8;  // so that each group has at least four threads of a turn (common/reduce.h)
  for (int groups = kMostGroups; groups >= 1; groups /= 2) {
    if (groups >= 2 * p.groups || (groups < least_groups && 2 * groups <= p.groups && best.groups > 0)) continue;
    for (int wanted = 4; wanted <= kThreads; wanted += wanted < 16 ? 2 : 16) {
      const int width = whole(ceil_div(columns, ceil_div(columns, wanted)));
      for (int height = std::max(1, kThreads / (groups * width)); height >= 1; height /= 2)
        consider(groups, width, height);
    }
  }
  best.group_shift = std::countr_zero(unsigned(best.groups));
  best.by_group_blocks = Divisor(best.group_blocks), best.by_column_blocks = Divisor(best.column_blocks);
  best.by_strip_blocks = Divisor(best.strip_blocks), best.by_columns = Divisor(best.columns / best.turns);
  return best;
}

template <class T, class O>
size_t key_bytes(const TileShape& tile) {
  return KeyMemory<InTile<T, O>>::bytes(tile, O::kSize * O::kSize);
}

// The division of the query pixels.
template <class T, class O, int Strip>
Blocking divide_queries(const Problem& p, int least_groups, Costs costs) {
  return divide(p, p.out_height, p.out_width, Strip, 1, least_groups, costs, KeyWindow<O, Strip>::shape,
                key_bytes<T, O>);
}

// The division of the query pixels, whose key pixels are in the tile. `rest` is Costs::rest.
template <class T, class O, int Strip>
Blocking divide_queries(const Image<const T>& x, const Problem& p, int rest) {
  return divide_queries<T, O, Strip>(p, least_groups(x), Costs{150, rest});
}
template <class T, class O, int Strip, class A>
Blocking divide_queries(const Stem<A>& x, const Problem& p, int rest) {
  if (sizeof(InTile<T, O>) == 2 && has_whole_groups(x, p))
    return divide_queries<T, O, Strip>(p, kProductGroups, Costs{115, rest});
  return divide_queries<T, O, Strip>(p, 1, Costs{250, rest});
}

// Calls f with the Options of the call and returns true, or returns false if no strip kernel is compiled for it.
template <class Arguments, class F>
bool with_options(const Arguments& a, F f) {
  const Problem& p = a.p;
  if (!are_close(a) || p.components != 1 || p.shared > kChannels) return false;
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
