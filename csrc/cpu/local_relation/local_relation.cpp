// The operators on the CPU: allocation, threads.
#include <tuple>
#include <vector>

#include "../common/tensors.h"
#include "kernels.h"

namespace robust_lr::cpu {

namespace {

template <class A>
std::tuple<Tensor, Tensor> forward(const Problem& p, const Tensor& x, const Tensor& q, const Tensor& k,
                                   const std::optional<Tensor>& geo) {
  const bool narrow = x.scalar_type() == ScalarType::BFloat16;
  Tensor y = empty_like(x, p.channels, p.out_height, p.out_width);
  Tensor stats = empty<A>(x, {Stats<A>::size(p, narrow)});
  const Stats<A> s(stats, p, narrow);
  run_forward<A>({p, image<A>(x), image<A>(q), image<A>(k), image<A>(y), prior<A>(geo, p), s.shift, s.total, s.wide_y});
  return {y, stats};
}

template <class A>
std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Problem& p, const Tensor& dy, const Tensor& x,
                                                    const Tensor& q, const Tensor& k, const std::optional<Tensor>& geo,
                                                    const Tensor& y, const Tensor& stats, bool needs_geo) {
  const bool narrow = x.scalar_type() == ScalarType::BFloat16;
  STD_TORCH_CHECK(
      stats.is_contiguous() && stats.numel() == Stats<A>::size(p, narrow) && stats.scalar_type() == kWideType<A>,
      "local_relation_backward: stats must be what local_relation returned");
  const Stats<A> s(stats, p, narrow);
  Tensor dx = empty_like(x, p.channels, p.height, p.width);
  Tensor dq = empty_like(q, p.groups * p.components, p.out_height, p.out_width);
  Tensor dk = empty_like(k, p.groups * p.components, p.height, p.width);
  Tensor dgeo = empty<A>(x, {needs_geo ? p.groups : 0, p.kernel, p.kernel});
  const Index entries = p.groups * p.taps();
  std::vector<A> dprior(needs_geo ? p.batch * entries : 0);  // of each image
  run_backward<A>({p, image<A>(x), image<A>(dx), image<A>(dy), image<A>(q), image<A>(k),
                   narrow && p.softmax ? s.wide_y : image<A>(y), image<A>(dq), image<A>(dk), prior<A>(geo, p), s.shift,
                   s.total, needs_geo ? image(dprior.data(), p.groups, p.taps()) : Image<A>{}});
  if (needs_geo) sum_parts(dprior.data(), p.batch, entries, data<A>(dgeo));
  return {dx, dq, dk, dgeo};
}

// Calls f with a zero of the type that x is computed in.
template <class F>
auto with_type(const Tensor& x, F f) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
    case ScalarType::BFloat16: return f(0.0f);
    case ScalarType::Double: return f(0.0);
    default: STD_TORCH_CHECK(false, "local_relation: x must be float32, float64 or bfloat16 on the CPU");
  }
}

}  // namespace

std::tuple<Tensor, Tensor> local_relation(Tensor x, Tensor q, Tensor k, std::optional<Tensor> geo, Index kernel,
                                          Index stride, Index shared, Index composability, bool softmax, bool mask) {
  const Problem p = describe(x, q, k, geo, kernel, stride, shared, composability, softmax, mask);
  check_types(x, {&q, &k}, geo);
  return with_type(x, [&](auto zero) {
    return forward<decltype(zero)>(p, with_joined_rows(x), with_joined_rows(q), with_joined_rows(k), geo);
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> local_relation_backward(Tensor dy, Tensor x, Tensor q, Tensor k,
                                                                   std::optional<Tensor> geo, Tensor y, Tensor stats,
                                                                   Index kernel, Index stride, Index shared,
                                                                   Index composability, bool softmax, bool mask,
                                                                   bool needs_geo) {
  const Problem p = describe(x, q, k, geo, kernel, stride, shared, composability, softmax, mask);
  check_results(p, {&dy, &y});
  check_types(x, {&q, &k, &y, &dy}, geo);
  return with_type(x, [&](auto zero) {
    return backward<decltype(zero)>(p, with_joined_rows(dy), with_joined_rows(x), with_joined_rows(q),
                                    with_joined_rows(k), geo, with_joined_rows(y), stats, needs_geo);
  });
}

}  // namespace robust_lr::cpu
