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

// Splits channels [first, last) into runs of `Most` (4 or 8), 4 and 1; calls f(start, constant length) for each.
template <int Most, class F>
void each_run(Index first, Index last, F f) {
  for (; first + Most <= last; first += Most) f(first, std::integral_constant<int, Most>());
  if (Most > 4 && first + 4 <= last) f(first, std::integral_constant<int, 4>()), first += 4;
  for (; first < last; ++first) f(first, std::integral_constant<int, 1>());
}

// One instance of the kernels. A plain one knows that there is one component and a softmax, as in the paper's layer; any
// other asks. The first M channels of a group are summed together with making the weights.
template <class PhiOfV, bool kPlain, int kFirst>
struct Kernel {
  using Phi = PhiOfV;
  static constexpr int M = kFirst;
  static bool softmax(const Problem& p) { return kPlain || p.softmax; }
  static Index components(const Problem& p) { return kPlain ? 1 : p.components; }

  template <class V>
  static V logit(const Problem& p, V prior, const V* q, const V* k) {
    for (Index j = 0; j < components(p); ++j) prior = Phi::add(prior, q[j], k[j]);
    return prior;
  }
};

// Calls f with the `Kernel` for a problem; `Most` is the longest run of channels.
template <class V, int Most, class F>
void with_kernel(const Problem& p, F f) {
  auto with_run = [&](auto phi, auto plain) {
    using Phi = decltype(phi);
    if (p.shared >= Most) return f(Kernel<Phi, plain, Most>());
    if (p.shared >= 4) return f(Kernel<Phi, plain, 4>());
    return f(Kernel<Phi, plain, 1>());
  };
  auto with_phi = [&](auto phi) {
    p.softmax && p.components == 1 ? with_run(phi, std::true_type()) : with_run(phi, std::false_type());
  };
  switch (p.composability) {
    case Composability::squared_difference: return with_phi(SquaredDifference<V>());
    case Composability::absolute_difference: return with_phi(AbsoluteDifference<V>());
    case Composability::product: return with_phi(Product<V>());
  }
}

// exp(logit - shift).
template <class A>
Vec<A> exponential(Vec<A> logit, Vec<A> shift) {
  return exp2<A>((logit - shift) * A(1.4426950408889634));
}

// The prior [groups, K * K] of a block's planes in lanes [K * K]; zeros where there is none.
template <class A>
Vec<A>* load_prior(Scratch& scratch, const Image<A>& prior, const Problem& p, const Block<A>& block) {
  Vec<A>* lanes = scratch.take<Vec<A>>(p.taps());
  if (prior.data == nullptr) {
    std::fill(lanes, lanes + p.taps(), Vec<A>{});
  } else {
    Planes<A>(prior, block, 1, p.groups).load(0, p.taps(), lanes);
  }
  return lanes;
}

}  // namespace robust_lr
