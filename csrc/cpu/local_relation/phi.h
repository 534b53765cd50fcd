// The kernels' arithmetic: the three appearance terms, and the compile-time constants of the kernels.
#pragma once

#include <type_traits>

#include "../../problem.h"
#include "../common/vec.h"

namespace robust_lr::cpu {

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

// Number of channels of a group in lanes: 1, 4, or a multiple of 8, so that there are few kernels. Channels beyond
// those of the group are zero and not stored.
inline Index lane_channels(const Problem& p) {
  return p.shared == 1 ? 1 : p.shared <= 4 ? 4 : (p.shared + kChannels - 1) / kChannels * kChannels;
}

// Compile-time constants of the kernels. A plain kernel assumes one component and a softmax, as in the paper's layer,
// and at most M channels; others check at run time. Kernels process M channels at a time, the first M together with the
// computation of the weights.
template <class PhiOfV, bool kPlain, int kCount>
struct Kernel {
  using Phi = PhiOfV;
  static constexpr int M = kCount;
  static bool softmax(const Problem& p) { return kPlain || p.softmax; }
  static Index components(const Problem& p) { return kPlain ? 1 : p.components; }
  static Index channels(const Problem& p) { return kPlain ? M : lane_channels(p); }

  template <class V>
  static V logit(const Problem& p, V prior, const V* q, const V* k) {
    for (Index j = 0; j < components(p); ++j) prior = Phi::add(prior, q[j], k[j]);
    return prior;
  }
};

// Calls f with the `Kernel` for a problem.
template <class V, class F>
void with_kernel(const Problem& p, F f) {
  auto with_run = [&](auto phi, auto plain) {
    using Phi = decltype(phi);
    const Index channels = lane_channels(p);
    if (channels >= kChannels) return f(Kernel<Phi, plain, kChannels>());
    return channels == 1 ? f(Kernel<Phi, plain, 1>()) : f(Kernel<Phi, plain, 4>());
  };
  auto with_phi = [&](auto phi) {
    const bool plain = p.softmax && p.components == 1 && lane_channels(p) <= kChannels;
    plain ? with_run(phi, std::true_type()) : with_run(phi, std::false_type());
  };
  switch (p.composability) {
    case Composability::squared_difference: return with_phi(SquaredDifference<V>());
    case Composability::absolute_difference: return with_phi(AbsoluteDifference<V>());
    case Composability::product: return with_phi(Product<V>());
  }
}

// exp(logit); `kFinite` as for `exp2`.
template <class A, bool kFinite = false>
Vec<A> exponential(Vec<A> logit) {
  return exp2<A, kFinite>(logit * A(kLog2e));
}

}  // namespace robust_lr::cpu
