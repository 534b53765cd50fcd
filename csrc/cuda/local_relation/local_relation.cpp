// The operators on CUDA: arguments for the kernels, and memory for their results.
#include "../operators.h"

#include "../common/tensors.h"

namespace robust_lr::cuda {
namespace {

template <class T>
std::tuple<Tensor, Tensor> forward(const Problem& p, Stream stream, const Tensor& x, const Tensor& q, const Tensor& k,
                                   const std::optional<Tensor>& geo) {
  using A = WideOf<T>;
  Tensor y = empty_like(x, p.channels, p.out_height, p.out_width);
  Tensor lse = empty(x, kWideType<T>, p.softmax ? windows(p) : 0);
  const ForwardArguments<T> arguments{p,
                                      image<const T>(x, p.shared),
                                      image<const T>(q),
                                      image<const T>(k),
                                      data<const A>(geo),
                                      image<T>(y, p.shared),
                                      data<A>(lse)};
  run_forward(arguments, stream);
  return {y, lse};
}

template <class T>
std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Problem& p, Stream stream, const Tensor& dy, const Tensor& x,
                                                    const Tensor& q, const Tensor& k, const std::optional<Tensor>& geo,
                                                    const Tensor& y, const Tensor& lse, bool needs_geo) {
  using A = WideOf<T>;
  const Index statistics = p.softmax ? windows(p) : 0;
  STD_TORCH_CHECK(lse.is_contiguous() && lse.numel() == statistics && lse.scalar_type() == kWideType<T>,
                  "local_relation_backward: stats must be what local_relation returned");
  Tensor dx = empty_like(x, p.channels, p.height, p.width);
  Tensor dq = empty_like(q, p.groups * p.components, p.out_height, p.out_width);
  Tensor dk = empty_like(k, p.groups * p.components, p.height, p.width);
  Tensor dgeo =
      torch::stable::empty({needs_geo ? p.groups : 0, p.kernel, p.kernel}, kWideType<T>, std::nullopt, x.device());
  const Tensor queries = empty(x, kWideType<T>, windows(p) * Index(sizeof(Query<A>) / sizeof(A)));
  BackwardArguments<T> arguments{p,
                                 image<const T>(dy, p.shared),
                                 image<const T>(x, p.shared),
                                 image<const T>(q),
                                 image<const T>(k),
                                 image<const T>(y, p.shared),
                                 data<const A>(geo),
                                 data<const A>(lse),
                                 image<T>(dx, p.shared),
                                 image<T>(dq),
                                 image<T>(dk),
                                 data<A>(dgeo),
                                 data<Query<A>>(queries),
                                 nullptr};
  const Index parts = needs_geo ? parts_of(arguments).pixels : 0;
  const Tensor partial = empty(x, kWideType<T>, parts * p.groups * p.taps());
  arguments.dgeo_partial = data<A>(partial);
  run_backward(arguments, stream);
  return {dx, dq, dk, dgeo};
}

}  // namespace

std::tuple<Tensor, Tensor> local_relation(Stream stream, Tensor x, Tensor q, Tensor k, std::optional<Tensor> geo,
                                          const RelationOptions& options) {
  const Problem p = describe(x, q, k, geo, options);
  check_types(x, {&q, &k}, geo);
  return with_type(x,
                   [&](auto type) { return forward<std::remove_pointer_t<decltype(type)>>(p, stream, x, q, k, geo); });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> local_relation_backward(Stream stream, Tensor dy, Tensor x, Tensor q,
                                                                   Tensor k, std::optional<Tensor> geo, Tensor y,
                                                                   Tensor stats, const RelationOptions& options,
                                                                   bool needs_geo) {
  const Problem p = describe(x, q, k, geo, options);
  check_results(p, {&dy, &y});
  check_types(x, {&q, &k, &y, &dy}, geo);
  return with_type(x, [&](auto type) {
    return backward<std::remove_pointer_t<decltype(type)>>(p, stream, dy, x, q, k, geo, y, stats, needs_geo);
  });
}

}  // namespace robust_lr::cuda
