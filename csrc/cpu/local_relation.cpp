// The operators on the CPU: allocation, threads.
#include <torch/csrc/stable/library.h>

#include <tuple>
#include <vector>

#include "../operators.h"
#include "kernels.h"

namespace robust_lr {

void parallel_for(Index count, const std::function<void(Index, Index)>& f) {
  torch::stable::parallel_for(0, count, 1, f);
}

Index thread_count() { return torch::stable::get_num_threads(); }

namespace {

// A tensor whose pixels have one stride: the same one, or a copy where its rows have gaps between them.
Tensor with_joined_rows(const Tensor& t) {
  const bool joined = t.size(2) <= 1 || t.size(3) <= 1 || t.stride(2) == t.size(3) * t.stride(3);
  return joined ? t : torch::stable::contiguous(t);
}

template <class T>
Image<T> image(const Tensor& t) {
  return {static_cast<T*>(t.data_ptr()), t.stride(0), t.stride(1), t.size(3) > 1 ? t.stride(3) : t.stride(2)};
}

// What backward needs of forward, besides y, in one tensor: the softmax's shifts and totals [N, groups, Ho, Wo] and,
// where y itself is rounded to a narrower type, y in the wide one [N, C, Ho, Wo]; nothing without softmax.
template <class T>
struct Stats {
  using A = WideOf<T>;
  Image<A> shift{}, total{}, wide_y{};

  static Index size(const Problem& p) {
    const Index pixels = p.batch * p.out_height * p.out_width;
    return p.softmax ? pixels * (2 * p.groups + (std::is_same_v<T, A> ? 0 : p.channels)) : 0;
  }

  Stats(const Tensor& stats, const Problem& p) {
    if (!p.softmax) return;
    const Index pixels = p.out_height * p.out_width;
    A* data = static_cast<A*>(stats.data_ptr());
    auto take = [&](Index channels) {
      const Image<A> image{data, channels * pixels, pixels, 1};
      data += p.batch * channels * pixels;
      return image;
    };
    shift = take(p.groups);
    total = take(p.groups);
    if (!std::is_same_v<T, A>) wide_y = take(p.channels);
  }
};

template <class T>
std::tuple<Tensor, Tensor> forward(const Problem& p, const Tensor& x, const Tensor& q, const Tensor& k,
                                   const std::optional<Tensor>& geo) {
  using A = WideOf<T>;
  Tensor y = empty_like(x, p.channels, p.out_height, p.out_width);
  Tensor stats = torch::stable::empty({Stats<T>::size(p)}, kWideType<T>, std::nullopt, x.device());
  const Stats<T> s(stats, p);
  run_forward<T>({p, image<T>(x), image<T>(q), image<T>(k), image<T>(y), data_or_null<A>(geo), s.shift, s.total,
                  s.wide_y});
  return {y, stats};
}

template <class T>
std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Problem& p, const Tensor& dy, const Tensor& x,
                                                    const Tensor& q, const Tensor& k, const std::optional<Tensor>& geo,
                                                    const Tensor& y, const Tensor& stats, bool needs_geo) {
  using A = WideOf<T>;
  STD_TORCH_CHECK(stats.is_contiguous() && stats.numel() == Stats<T>::size(p) && stats.scalar_type() == kWideType<T>,
                  "local_relation_backward: stats must be what local_relation returned");
  const Stats<T> s(stats, p);
  Tensor dx = empty_like(x, p.channels, p.height, p.width);
  Tensor dq = empty_like(q, p.groups * p.components, p.out_height, p.out_width);
  Tensor dk = empty_like(k, p.groups * p.components, p.height, p.width);
  Tensor dgeo = torch::stable::empty({needs_geo ? p.groups : 0, p.kernel, p.kernel}, kWideType<T>, std::nullopt,
                                     x.device());
  const Index entries = p.groups * p.taps();
  std::vector<A> dgeo_by_image(needs_geo ? p.batch * entries : 0);
  BackwardTensors<T> tensors{p, image<T>(dy), image<T>(x), image<T>(q), image<T>(k), {}, image<T>(dx), image<T>(dq),
                             image<T>(dk), data_or_null<A>(geo), s.shift, s.total,
                             needs_geo ? dgeo_by_image.data() : nullptr};
  if constexpr (std::is_same_v<T, A>) {
    tensors.y = image<A>(y);
  } else {
    tensors.y = s.wide_y;
  }
  run_backward(tensors);
  if (needs_geo) {
    std::vector<double> sums(entries, 0.0);
    for (Index n = 0; n < p.batch; ++n)
      for (Index i = 0; i < entries; ++i) sums[i] += dgeo_by_image[n * entries + i];
    std::copy(sums.begin(), sums.end(), static_cast<A*>(dgeo.data_ptr()));
  }
  return {dx, dq, dk, dgeo};
}

// Calls f with an element of x's type, after a check that the tensors computed with it have the same.
template <class F>
auto with_type(const Tensor& x, std::initializer_list<const Tensor*> others, const std::optional<Tensor>& geo, F f) {
  check_types(x, others, geo);
  switch (x.scalar_type()) {
    case ScalarType::Float: return f(float());
    case ScalarType::Double: return f(double());
    case ScalarType::BFloat16: return f(BFloat16());
    default: STD_TORCH_CHECK(false, "local_relation: x must be float32, float64 or bfloat16 on the CPU");
  }
}

std::tuple<Tensor, Tensor> local_relation(Tensor x, Tensor q, Tensor k, std::optional<Tensor> geo, Index kernel,
                                          Index stride, Index shared, Index composability, bool softmax, bool mask) {
  const Problem p = describe(x, q, k, geo, kernel, stride, shared, composability, softmax, mask);
  return with_type(x, {&q, &k}, geo, [&](auto element) {
    return forward<decltype(element)>(p, with_joined_rows(x), with_joined_rows(q), with_joined_rows(k), geo);
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> local_relation_backward(Tensor dy, Tensor x, Tensor q, Tensor k,
                                                                   std::optional<Tensor> geo, Tensor y, Tensor stats,
                                                                   Index kernel, Index stride, Index shared,
                                                                   Index composability, bool softmax, bool mask,
                                                                   bool needs_geo) {
  const Problem p = describe(x, q, k, geo, kernel, stride, shared, composability, softmax, mask);
  check_results(p, {&dy, &y});
  return with_type(x, {&q, &k, &y, &dy}, geo, [&](auto element) {
    return backward<decltype(element)>(p, with_joined_rows(dy), with_joined_rows(x), with_joined_rows(q),
                                       with_joined_rows(k), geo, with_joined_rows(y), stats, needs_geo);
  });
}

}  // namespace
}  // namespace robust_lr

STABLE_TORCH_LIBRARY_IMPL(robust_lr, CPU, m) {
  m.impl("local_relation", TORCH_BOX(&robust_lr::local_relation));
  m.impl("local_relation_backward", TORCH_BOX(&robust_lr::local_relation_backward));
}
