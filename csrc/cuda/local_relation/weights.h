// Phi of the paper's equations (3) to (5), for one component.
#pragma once

#include "../common/elements.h"

namespace robust_lr::cuda {

// `add` returns sum + Phi(q, k). A Phi that is `kBounded` is never above zero. The derivatives are
// kQueryFactor * query_slope and kKeyFactor * key_slope, so that sums are multiplied by constant factors only once.
struct SquaredDifference {
  static constexpr bool kBounded = true;
  static constexpr int kQueryFactor = -2, kKeyFactor = 2;
  template <class A>
  __device__ static A add(A sum, A q, A k) {
    const A d = q - k;
    return sum - d * d;
  }
  template <class A>
  __device__ static A query_slope(A q, A k) {
    return q - k;
  }
  template <class A>
  __device__ static A key_slope(A q, A k) {
    return q - k;
  }
};

struct AbsoluteDifference {
  static constexpr bool kBounded = true;
  static constexpr int kQueryFactor = -1, kKeyFactor = 1;
  template <class A>
  __device__ static A add(A sum, A q, A k) {
    return sum - fabs(q - k);
  }
  template <class A>
  __device__ static A query_slope(A q, A k) {
    const A d = q - k;
    return d > 0 ? A(1) : (d < 0 ? A(-1) : d);  // the last d is 0 or NaN
  }
  template <class A>
  __device__ static A key_slope(A q, A k) {
    return query_slope(q, k);
  }
};

struct Product {
  static constexpr bool kBounded = false;
  static constexpr int kQueryFactor = 1, kKeyFactor = 1;
  template <class A>
  __device__ static A add(A sum, A q, A k) {
    return sum + q * k;
  }
  template <class A>
  __device__ static A query_slope(A, A k) {
    return k;
  }
  template <class A>
  __device__ static A key_slope(A q, A) {
    return q;
  }
};

// Calls f with the call's Phi, on the host or the device.
#pragma nv_exec_check_disable
template <class F>
__host__ __device__ auto with_phi(const Problem& p, F f) {
  switch (p.composability) {
    case Composability::squared_difference: return f(SquaredDifference());
    case Composability::absolute_difference: return f(AbsoluteDifference());
    default: return f(Product());
  }
}

}  // namespace robust_lr::cuda
