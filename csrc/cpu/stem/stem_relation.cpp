// The stem's operators on the CPU.
#include <tuple>

#include "../../stem_relation.h"
#include "../common/tensors.h"
#include "kernels.h"

namespace robust_lr::cpu {
namespace {

// Returns the weights [rows, channels] of a projection in its layout.
template <class A>
std::vector<A> transposed(const Tensor& weights) {
  const Index rows = weights.size(0), channels = weights.size(1), padded = Projection<A>{rows}.padded();
  std::vector<A> made(channels * padded);
  for (Index r = 0; r < rows; ++r)
    for (Index c = 0; c < channels; ++c) made[c * padded + r] = data<A>(weights)[r * channels + c];
  return made;
}

template <class A>
std::tuple<Tensor, Tensor, Tensor, Tensor> forward(const Problem& p, const Tensor& input, const Tensor& transform,
                                                   const Tensor& query, const Tensor& key,
                                                   const std::optional<Tensor>& geo) {
  const Index rows = query.size(0);
  Tensor q = empty<A>(input, {p.batch, rows, p.out_height, p.out_width});
  Tensor k = empty<A>(input, {p.batch, rows, p.height, p.width});
  Tensor y = empty<A>(input, {p.batch, p.channels, p.out_height, p.out_width}, MemoryFormat::ChannelsLast);
  Tensor stats = empty<A>(input, {Stats<A>::size(p, false)});
  const Stats<A> s(data<A>(stats), p, false);
  const std::vector<A> query_weights = transposed<A>(query), key_weights = transposed<A>(key);
  const Stem<A> stem{image<A>(input), input.size(1), data<A>(transform), {}, nullptr};
  run_stem_forward<A>({p, stem, image<A>(q), image<A>(k), image<A>(y), prior<A>(geo, p), s.shift, s.total, s.wide_y},
                      {rows, p.stride, query_weights.data(), image<A>(q)}, {rows, 1, key_weights.data(), image<A>(k)});
  return {y, q, k, stats};
}

template <class A>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward(const Problem& p, const Tensor& dy, const Tensor& input,
                                                            const Tensor& transform, const Tensor& query,
                                                            const Tensor& key, const std::optional<Tensor>& geo,
                                                            const Tensor& y, const Tensor& q, const Tensor& k,
                                                            const Tensor& stats, bool needs_image, bool needs_weights) {
  const Index rows = query.size(0), inputs = input.size(1), taps = p.groups * p.taps();
  STD_TORCH_CHECK(stats.is_contiguous() && stats.numel() == Stats<A>::size(p, false),
                  "stem_relation_backward: stats must be what stem_relation returned");
  const Stats<A> s(data<A>(stats), p, false);
  const Index wanted = needs_weights ? 1 : 0;
  Tensor dimage = empty<A>(input, {needs_image ? p.batch : 0, inputs, p.height, p.width});
  Tensor dtransform = empty<A>(input, {wanted * p.channels, inputs + 1});
  Tensor dquery = empty<A>(input, {wanted * rows, p.channels}), dkey = empty<A>(input, {wanted * rows, p.channels});
  Tensor dgeo = empty<A>(input, {geo ? wanted * p.groups : 0, p.kernel, p.kernel});
  const Tensor dq = empty<A>(input, {p.batch, rows, p.out_height, p.out_width});
  const Tensor dk = empty<A>(input, {p.batch, rows, p.height, p.width});

  const std::vector<A> query_weights = transposed<A>(query), key_weights = transposed<A>(key);
  const Projection<A> from_query{rows, p.stride, query_weights.data(), image<A>(dq)};
  const Projection<A> from_key{rows, 1, key_weights.data(), image<A>(dk)};
  const Index transform_size = p.channels * (inputs + 1);
  std::vector<A> dtransforms(wanted * p.batch * transform_size), dpriors(geo ? wanted * p.batch * taps : 0);
  const Stem<A> stem{image<A>(input), inputs, data<A>(transform), needs_image ? image<A>(dimage) : Image<A>{},
                     needs_weights ? dtransforms.data() : nullptr};
  const StemParts<A> parts(p, stem, from_query, from_key);
  std::vector<A> gradients(wanted * p.batch * parts.bands * parts.size());
  run_stem_backward<A>(
      {p, stem, stem, image<A>(dy), image<A>(q), image<A>(k), image<A>(y), image<A>(dq), image<A>(dk), prior<A>(geo, p),
       s.shift, s.total, dpriors.empty() ? Image<A>{} : image(dpriors.data(), p.groups, p.taps())},
      from_query, from_key, needs_weights ? gradients.data() : nullptr);
  if (!needs_weights) return {dimage, dtransform, dquery, dkey, dgeo};

  if (geo) sum_parts(dpriors.data(), p.batch, taps, data<A>(dgeo));
  std::vector<A> sums(parts.size());
  sum_parts(gradients.data(), p.batch * parts.bands, parts.size(), sums.data());
  sum_parts(dtransforms.data(), p.batch, transform_size, data<A>(dtransform));
  for (Index i = 0; i < parts.transform; ++i) data<A>(dtransform)[i] += sums[i];
  for (Index r = 0; r < rows; ++r)
    for (Index c = 0; c < p.channels; ++c) {
      data<A>(dquery)[r * p.channels + c] = sums[parts.transform + c * from_query.padded() + r];
      data<A>(dkey)[r * p.channels + c] = sums[parts.transform + parts.query + c * from_key.padded() + r];
    }
  return {dimage, dtransform, dquery, dkey, dgeo};
}

template <class F>
auto with_type(const Tensor& image, F f) {
  STD_TORCH_CHECK(image.scalar_type() == ScalarType::Float || image.scalar_type() == ScalarType::Double,
                  "stem_relation: image must be float32 or float64");
  return image.scalar_type() == ScalarType::Float ? f(0.0f) : f(0.0);
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> stem_relation(Tensor image, Tensor transform, Tensor query, Tensor key,
                                                         std::optional<Tensor> geo, const RelationOptions& options) {
  const Problem p = describe_stem(image, transform, query, key, geo, options);
  check_types(image, {&transform, &query, &key}, geo);
  return with_type(image, [&](auto zero) { return forward<decltype(zero)>(p, image, transform, query, key, geo); });
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> stem_relation_backward(
    Tensor dy, Tensor image, Tensor transform, Tensor query, Tensor key, std::optional<Tensor> geo, Tensor y, Tensor q,
    Tensor k, Tensor stats, const RelationOptions& options, bool needs_image, bool needs_weights) {
  const Problem p = describe_stem(image, transform, query, key, geo, options);
  check_results(p, {&dy, &y});
  check_types(image, {&transform, &query, &key, &y, &dy, &q, &k, &stats}, geo);
  check_projections(p, query, q, k);
  STD_TORCH_CHECK(q.is_contiguous() && k.is_contiguous(),
                  "stem_relation_backward: q and k must be what stem_relation returned");
  return with_type(image, [&](auto zero) {
    return backward<decltype(zero)>(p, with_joined_rows(dy), image, transform, query, key, geo, with_joined_rows(y), q,
                                    k, stats, needs_image, needs_weights);
  });
}

}  // namespace robust_lr::cpu
