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
  const Stats<A> s(data<A>(stats), p, narrow);
  run_forward<A>({p, image<A>(x), image<A>(q), image<A>(k), image<A>(y), prior<A>(geo, p), s.shift, s.total, s.wide_y});
  return {y, stats};
}

// Fills dq, dk and, if it is not null, dgeo; returns dx.
template <class A>
Tensor backward(const Problem& p, const Tensor& dy, const Tensor& x, const Tensor& q, const Tensor& k,
                const std::optional<Tensor>& geo, const Tensor& y, const Tensor& stats, const Tensor& dq,
                const Tensor& dk, const std::optional<Tensor>& dgeo) {
  const bool narrow = x.scalar_type() == ScalarType::BFloat16;
  STD_TORCH_CHECK(
      stats.is_contiguous() && stats.numel() == Stats<A>::size(p, narrow) && stats.scalar_type() == kWideType<A>,
      "local_relation_backward: stats must be what local_relation returned");
  const Stats<A> s(data<A>(stats), p, narrow);
  Tensor dx = empty_like(x, p.channels, p.height, p.width);
  const Index entries = p.groups * p.taps();
  std::vector<A> dprior(dgeo ? p.batch * entries : 0);  // of each image
  run_backward<A>({p, image<A>(x), image<A>(dx), image<A>(dy), image<A>(q), image<A>(k),
                   narrow && p.softmax ? s.wide_y : image<A>(y), image<A>(dq), image<A>(dk), prior<A>(geo, p), s.shift,
                   s.total, dgeo ? image(dprior.data(), p.groups, p.taps()) : Image<A>{}});
  if (dgeo) sum_parts(dprior.data(), p.batch, entries, data<A>(*dgeo));
  return dx;
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

std::tuple<Tensor, Tensor> local_relation(Tensor x, Tensor q, Tensor k, std::optional<Tensor> geo,
                                          const RelationOptions& options) {
  const Problem p = describe(x, q, k, geo, options);
  check_types(x, {&q, &k}, geo);
  return with_type(x, [&](auto zero) {
    return forward<decltype(zero)>(p, with_joined_rows(x), with_joined_rows(q), with_joined_rows(k), geo);
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> local_relation_backward(Tensor dy, Tensor x, Tensor q, Tensor k,
                                                                   std::optional<Tensor> geo, Tensor y, Tensor stats,
                                                                   const RelationOptions& options, bool needs_geo) {
  const Problem p = describe(x, q, k, geo, options);
  check_results(p, {&dy, &y});
  check_types(x, {&q, &k, &y, &dy}, geo);
  Tensor dq = empty_like(q, q.size(1), p.out_height, p.out_width), dk = empty_like(k, k.size(1), p.height, p.width);
  return with_type(x, [&](auto zero) {
    using A = decltype(zero);
    Tensor dgeo = empty<A>(x, {needs_geo ? p.groups : 0, p.kernel, p.kernel});
    Tensor dx = backward<A>(p, with_joined_rows(dy), with_joined_rows(x), with_joined_rows(q), with_joined_rows(k), geo,
                            with_joined_rows(y), stats, dq, dk, needs_geo ? std::optional(dgeo) : std::nullopt);
    return std::tuple(dx, dq, dk, dgeo);
  });
}

std::tuple<Tensor, Tensor> joined_relation_backward(Tensor dy, Tensor x, Tensor qk, std::optional<Tensor> geo, Tensor y,
                                                    Tensor stats, const RelationOptions& options) {
  STD_TORCH_CHECK(qk.dim() == 4 && qk.size(1) % 2 == 0 && options.stride == 1,
                  "joined_relation_backward: qk must have queries and keys in equal numbers, at stride 1");
  const Index half = qk.size(1) / 2;
  Tensor dqk = empty_like(qk, qk.size(1), qk.size(2), qk.size(3));
  const auto part = [&](Tensor& t, Index start) { return torch::stable::narrow(t, 1, start, half); };
  const Tensor q = part(qk, 0), k = part(qk, half);
  const Problem p = describe(x, q, k, geo, options);
  check_results(p, {&dy, &y});
  check_types(x, {&q, &k, &y, &dy}, geo);
  Tensor dx = with_type(x, [&](auto zero) {
    return backward<decltype(zero)>(p, with_joined_rows(dy), with_joined_rows(x), with_joined_rows(q),
                                    with_joined_rows(k), geo, with_joined_rows(y), stats, part(dqk, 0), part(dqk, half),
                                    std::nullopt);
  });
  return {dx, dqk};
}

}  // namespace robust_lr::cpu
