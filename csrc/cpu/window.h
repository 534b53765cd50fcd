// What both directions need of a window: Phi, the prior, exponentials, channels in runs.
#pragma once

#include <type_traits>

#include "rows.h"

namespace robust_lr {

// The appearance terms of the paper's equations (3) to (5), for one component: `add` returns sum + Phi(q, k),
// `add_gradient` adds ds * dPhi/dq and ds * dPhi/dk. Where Phi is `kBounded`, it is never above zero.
template <class V>
struct SquaredDifference {
  static constexpr bool kBounded = true;
  static V add(V sum, V q, V k) {
    const V d = q - k;
    return sum - d * d;
  }
  static void add_gradient(V ds, V q, V k, V& dq, V& dk) {
    const V slope = (ds + ds) * (q - k);
    dq -= slope;
    dk += slope;
  }
};

template <class V>
struct AbsoluteDifference {
  static constexpr bool kBounded = true;
  static V add(V sum, V q, V k) {
    const V d = q - k;
    return sum - (d < 0 ? -d : d);
  }
  static void add_gradient(V ds, V q, V k, V& dq, V& dk) {
    const V d = q - k;
    const V slope = d > 0 ? ds : (d < 0 ? -ds : ds * 0);
    dq -= slope;
    dk += slope;
  }
};

template <class V>
struct Product {
  static constexpr bool kBounded = false;
  static V add(V sum, V q, V k) { return sum + q * k; }
  static void add_gradient(V ds, V q, V k, V& dq, V& dk) {
    dq += ds * k;
    dk += ds * q;
  }
};

// Calls f with Phi and with the number of components as a constant: 1, or 0 for any.
template <class V, class F>
void with_composability(const Problem& p, F f) {
  auto with_components = [&](auto phi) {
    if (p.components == 1) {
      f(phi, std::integral_constant<Index, 1>());
    } else {
      f(phi, std::integral_constant<Index, 0>());
    }
  };
  switch (p.composability) {
    case Composability::squared_difference: return with_components(SquaredDifference<V>());
    case Composability::absolute_difference: return with_components(AbsoluteDifference<V>());
    case Composability::product: return with_components(Product<V>());
  }
}

// prior + sum_j Phi(q[j], k[j]); D is the number of components, or 0 where it is not constant.
template <class Phi, Index D, class V>
V logit(V prior, const V* q, const V* k, Index components) {
  for (Index j = 0; j < (D ? D : components); ++j) prior = Phi::add(prior, q[j], k[j]);
  return prior;
}

// exp(logit - shift).
template <class A>
Vec<A> exponential(Vec<A> logit, Vec<A> shift) {
  return exp2<A>((logit - shift) * A(1.4426950408889634));
}

// The prior [groups, K, K] of a block's planes in lanes [K * K]; zeros where there is none.
template <class A>
Vec<A>* load_prior(Scratch& scratch, const A* geo, const Problem& p, const Block<A>& block) {
  Vec<A>* lanes = scratch.take<Vec<A>>(p.taps());
  if (geo == nullptr) {
    std::fill(lanes, lanes + p.taps(), Vec<A>{});
  } else {
    Planes<A>({const_cast<A*>(geo), 0, p.taps(), 1}, block, 1, p.groups).load(0, p.taps(), lanes);
  }
  return lanes;
}

// Splits `channels` into runs of `Most` (4 or 8), 4, 2 and 1, and calls f with each run's start and constant length.
template <int Most, class F>
void each_run(Index channels, F f) {
  Index c = 0;
  for (; c + Most <= channels; c += Most) f(c, std::integral_constant<int, Most>());
  if (Most > 4 && channels - c >= 4) f(c, std::integral_constant<int, 4>()), c += 4;
  if (channels - c >= 2) f(c, std::integral_constant<int, 2>()), c += 2;
  if (channels - c >= 1) f(c, std::integral_constant<int, 1>());
}

}  // namespace robust_lr
