// Tensors in the form that the CPU kernels take.
#pragma once

#include <vector>

#include "../../local_relation.h"
#include "planes.h"

namespace robust_lr::cpu {

template <class A>
A* data(const Tensor& t) {
  return static_cast<A*>(t.data_ptr());
}

// Returns a tensor in the type in which sums are computed, on the device of another tensor.
template <class A>
Tensor empty(const Tensor& like, std::initializer_list<Index> sizes, MemoryFormat format = MemoryFormat::Contiguous) {
  return torch::stable::empty(sizes, kWideType<A>, std::nullopt, like.device(), std::nullopt, format);
}

// Returns a tensor whose pixels have a single stride: the tensor itself, or a copy if there are gaps between its rows.
inline Tensor with_joined_rows(const Tensor& t) {
  const bool joined = t.size(2) <= 1 || t.size(3) <= 1 || t.stride(2) == t.size(3) * t.stride(3);
  return joined ? t : torch::stable::contiguous(t);
}

template <class A>
Image<A> image(const Tensor& t) {
  const Index pixel_stride = t.size(3) > 1 ? t.stride(3) : t.stride(2);
  return {t.data_ptr(), t.stride(0), t.stride(1), pixel_stride, t.scalar_type() == ScalarType::BFloat16};
}

// A contiguous image [N, channels, pixels] of ours.
template <class A>
Image<A> image(A* data, Index channels, Index pixels) {
  return {data, channels * pixels, pixels, 1, false};
}

template <class A>
Image<A> prior(const std::optional<Tensor>& geo, const Problem& p) {
  if (!geo) return {};
  return {geo->data_ptr(), 0, p.taps(), 1, false};
}

// The statistics that backward needs in addition to y, in one tensor: with softmax, the shifts and totals
// [N, Ho, Wo, groups] and, if y is rounded to bfloat16, y in float32 [N, C, Ho, Wo]; without softmax, nothing.
template <class A>
struct Stats {
  Image<A> shift{}, total{}, wide_y{};

  static Index size(const Problem& p, bool narrow) {
    return p.softmax ? p.batch * p.out_height * p.out_width * (2 * p.groups + (narrow ? p.channels : 0)) : 0;
  }

  Stats(A* begin, const Problem& p, bool narrow) {
    if (!p.softmax) return;
    const Index pixels = p.out_height * p.out_width, entries = p.batch * p.groups * pixels;
    shift = {begin, p.groups * pixels, 1, p.groups, false};
    total = {begin + entries, p.groups * pixels, 1, p.groups, false};
    if (narrow) wide_y = image(begin + 2 * entries, p.channels, pixels);
  }
};

// The sums over `parts` of [parts, size].
template <class A>
void sum_parts(const A* values, Index parts, Index size, A* to) {
  std::vector<double> sums(size, 0.0);
  for (Index part = 0; part < parts; ++part)
    for (Index i = 0; i < size; ++i) sums[i] += values[part * size + i];
  std::copy(sums.begin(), sums.end(), to);
}

}  // namespace robust_lr::cpu
