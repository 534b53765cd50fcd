// The stem's operators on CUDA: arguments for the kernels, and memory for their results. Image and transform are in the
// type that sums are taken in, also q and k, which are channels-last here.
#include "../../stem_relation.h"
#include "../common/tensors.h"
#include "../operators.h"
#include "projection_arguments.h"

namespace robust_lr::cuda {
namespace {

template <class A>
Stem<A> stem(const Tensor& image, const Tensor& transform) {
  return {data<const A>(image), data<const A>(transform), int(image.size(1))};
}

Tensor channels_last(const Tensor& like, ScalarType type, Index channels, Index height, Index width) {
  return torch::stable::empty({like.size(0), channels, height, width}, type, std::nullopt, like.device(), std::nullopt,
                              MemoryFormat::ChannelsLast);
}

// The channel transform between the values and `out`, queries or keys.
template <class T>
Projection<T> projection(const Problem& p, const Stem<WideOf<T>>& x, const Tensor& weights, Index stride,
                         const Tensor& out) {
  return {p,
          x,
          data<const T>(weights),
          image<WideOf<T>>(out, out.size(1)),
          {},
          int(weights.size(0)),
          int(stride),
          int(out.size(2)),
          int(out.size(3))};
}

template <class T>
std::tuple<Tensor, Tensor, Tensor, Tensor> forward(const Problem& p, Stream stream, const Tensor& input,
                                                   const Tensor& transform, const Tensor& query, const Tensor& key,
                                                   const std::optional<Tensor>& geo) {
  using A = WideOf<T>;
  const Index rows = query.size(0);
  Tensor q = channels_last(input, kWideType<T>, rows, p.out_height, p.out_width);
  Tensor k = channels_last(input, kWideType<T>, rows, p.height, p.width);
  Tensor y = channels_last(input, query.scalar_type(), p.channels, p.out_height, p.out_width);
  Tensor lse = empty(input, kWideType<T>, p.softmax ? windows(p) : 0);
  const Stem<A> x = stem<A>(input, transform);
  run_projection(projection<T>(p, x, query, p.stride, q), stream);
  run_projection(projection<T>(p, x, key, 1, k), stream);
  const ForwardArguments<T, Stem<A>> arguments{
      p, x, image<const A>(q), image<const A>(k), data<const A>(geo), image<T>(y, p.shared), data<A>(lse)};
  run_forward(arguments, stream);
  return {y, q, k, lse};
}

template <class T>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward(const Problem& p, Stream stream, const Tensor& dy,
                                                            const Tensor& input, const Tensor& transform,
                                                            const Tensor& query, const Tensor& key,
                                                            const std::optional<Tensor>& geo, const Tensor& y,
                                                            const Tensor& q, const Tensor& k, const Tensor& lse,
                                                            bool needs_image, bool needs_weights) {
  using A = WideOf<T>;
  constexpr ScalarType kWide = kWideType<T>;
  const Index rows = query.size(0), inputs = input.size(1), weights = rows * p.channels;
  const Index statistics = p.softmax ? windows(p) : 0, wanted = needs_weights ? 1 : 0;
  STD_TORCH_CHECK(lse.is_contiguous() && lse.numel() == statistics,
                  "stem_relation_backward: stats must be what stem_relation returned");
  auto made = [&](std::initializer_list<Index> sizes) {
    return torch::stable::empty(sizes, kWide, std::nullopt, input.device());
  };
  Tensor dimage = made({needs_image ? p.batch : 0, inputs, p.height, p.width});
  Tensor dtransform = made({wanted * p.channels, inputs + 1});
  Tensor dquery = made({wanted * rows, p.channels}), dkey = made({wanted * rows, p.channels});
  Tensor dgeo = made({geo ? wanted * p.groups : 0, p.kernel, p.kernel});
  const Tensor dq = channels_last(input, kWide, rows, p.out_height, p.out_width);
  const Tensor scratch = made({windows(p) * Index(sizeof(Query<A>) / sizeof(A))});

  const Stem<A> x = stem<A>(input, transform);
  BackwardArguments<T, Stem<A>> arguments{p,
                                          image<const T>(dy, p.shared),
                                          x,
                                          image<const A>(q),
                                          image<const A>(k),
                                          image<const T>(y, p.shared),
                                          data<const A>(geo),
                                          data<const A>(lse),
                                          {},
                                          image<A>(dq),
                                          {},
                                          data<A>(dgeo),
                                          data<Query<A>>(scratch),
                                          nullptr};
  arguments.dx.key_weights = needs_weights ? nullptr : key.data_ptr();
  const Parts parts = parts_of(arguments);
  const Tensor dk = channels_last(input, kWide, parts.keys ? 0 : rows, p.height, p.width);
  arguments.dk = image<A>(dk);
  Projection<T> from_query = projection<T>(p, x, query, p.stride, dq), from_key = projection<T>(p, x, key, 1, dk);
  // The gradient of the transform has parts from the local relation, from the queries and from the keys.
  const Index values = parts.groups == 0 ? p.batch : 0, relation = values > 0 ? 0 : wanted * parts.pixels;
  const Index queries = wanted * pixel_parts(from_query), keys = wanted * pixel_parts(from_key);
  const Index transforms = relation + (queries + keys) * row_parts(from_key), entries = p.channels * (inputs + 1);
  const Tensor dx = torch::stable::empty({values, p.channels, p.height, p.width}, kWide, std::nullopt, input.device(),
                                         std::nullopt, MemoryFormat::ChannelsLast);
  const Tensor dimages = made({needs_image && !parts.keys ? parts.groups : 0, p.batch, inputs, p.height, p.width});
  const Tensor dtransforms = made({transforms, entries}),
               dpriors = made({geo ? wanted * parts.pixels : 0, p.groups * p.taps()});
  const Tensor dqueries = made({queries, weights}), dkeys = made({keys, weights});

  if (values > 0) arguments.dx.values = from_key.dx = image<A>(dx);
  arguments.dx.image = data<A>(parts.keys ? dimage : dimages);
  arguments.dx.transform = relation > 0 ? data<A>(dtransforms) : nullptr;
  arguments.dgeo_partial = data<A>(dpriors);
  run_backward(arguments, stream);
  if (needs_image) {
    if (!parts.keys) run_image_gradient(from_key, data<A>(dimages), parts.groups, data<A>(dimage), stream);
    run_image_gradient(from_query, data<A>(dimage), 1, data<A>(dimage), stream);
  }
  if (needs_weights) {
    A* const of_queries = data<A>(dtransforms) + relation * entries;
    A* const of_keys = of_queries + queries * row_parts(from_query) * entries;
    run_weights_gradient(from_query, data<A>(dqueries), of_queries, stream);
    run_weights_gradient(from_key, data<A>(dkeys), of_keys, stream);
    run_sum(data<A>(dtransforms), transforms, entries, data<A>(dtransform), stream);
    run_sum(data<A>(dqueries), queries, weights, data<A>(dquery), stream);
    run_sum(data<A>(dkeys), keys, weights, data<A>(dkey), stream);
  }
  return {dimage, dtransform, dquery, dkey, dgeo};
}

void check_stem_types(const Tensor& image, const Tensor& query, std::initializer_list<const Tensor*> wide,
                      std::initializer_list<const Tensor*> others, const std::optional<Tensor>& geo) {
  check_types(query, others, geo);
  const ScalarType type = query.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  STD_TORCH_CHECK(image.scalar_type() == type, "stem_relation: image must be float32, or float64 where query is");
  check_types(image, wide, std::nullopt);
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> stem_relation(Stream stream, Tensor image, Tensor transform, Tensor query,
                                                         Tensor key, std::optional<Tensor> geo,
                                                         const RelationOptions& options) {
  const Problem p = describe_stem(image, transform, query, key, geo, options);
  check_stem_types(image, query, {&transform}, {&key}, geo);
  return with_type(query, [&](auto type) {
    return forward<std::remove_pointer_t<decltype(type)>>(p, stream, image, transform, query, key, geo);
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> stem_relation_backward(
    Stream stream, Tensor dy, Tensor image, Tensor transform, Tensor query, Tensor key, std::optional<Tensor> geo,
    Tensor y, Tensor q, Tensor k, Tensor stats, const RelationOptions& options, bool needs_image, bool needs_weights) {
  const Problem p = describe_stem(image, transform, query, key, geo, options);
  check_results(p, {&dy, &y});
  check_projections(p, query, q, k);
  check_stem_types(image, query, {&transform, &q, &k, &stats}, {&key, &y, &dy}, geo);
  return with_type(query, [&](auto type) {
    return backward<std::remove_pointer_t<decltype(type)>>(p, stream, dy, image, transform, query, key, geo, y, q, k,
                                                           stats, needs_image, needs_weights);
  });
}

}  // namespace robust_lr::cuda
