// Chooses and launches the kernels of the backward operator.
#pragma once

#include "backward_keys.h"
#include "backward_queries.h"
#include "blocking.h"
#include "general.h"

namespace robust_lr::cuda {

// The division of the key pixels, with those around the image where zeros take part.
template <class T, class X, class O>
struct KeyBlocking {
  Blocking b;
  size_t bytes;

  explicit KeyBlocking(const BackwardArguments<T, X>& a) {
    auto needed = [](const Blocking& b) {
      return QueryMemory<X>::bytes(QueryWindow<O, kKeyStrip>::tile(b), O::kSize * O::kSize);
    };
    auto tile_of = [](const Blocking& b) { return QueryWindow<O, kKeyStrip>::tile(b); };
    const Index around = key_lead(a.p) + a.p.padding;
    b = divide(a.p, a.p.height + around, a.p.width + around, kKeyStrip, O::kStride, least_groups(a.x),
               {70, O::kStride == 1 ? 6500 : 2600}, needed, tile_of);
    bytes = needed(b);
  }
};

template <class T, class X, class O>
void launch_backward_strips(const BackwardArguments<T, X>& a, O, Stream stream) {
  constexpr int strip = kQueryStrip<O>;
  const Blocking queries = divide_queries<T, O, strip>(a.x, a.p, O::kStride == 1 ? 8500 : 6500);
  launch(backward_queries<T, X, O>, a.p.batch * queries.blocks(), threads(queries), key_bytes<T, O, strip>(queries),
         stream, a, queries);
  const KeyBlocking<T, X, O> keys(a);
  auto launch_keys = [&](auto kernel) {
    launch(kernel, a.p.batch * keys.b.blocks(), threads(keys.b), keys.bytes, stream, a, keys.b);
  };
  if constexpr (kSparesWeights<T, O>) {
    if (a.dgeo == nullptr && !wants_transform(a.dx)) return launch_keys(backward_keys<T, X, O, false>);
  }
  launch_keys(backward_keys<T, X, O, true>);
}

template <class T, class X>
void launch_backward_general(const BackwardArguments<T, X>& a, Stream stream) {
  const Problem& p = a.p;
  auto launch_items = [&](auto kernel, Index units, Index height, Index width) {
    const Index items = p.batch * p.groups * units * height * width;
    launch(kernel, ceil_div(items, kGeneralThreads), kGeneralThreads, 0, stream, a);
  };
  launch_items(dq_general<T, X>, parts(p.components), p.out_height, p.out_width);
  launch_items(dk_general<T, X>, parts(p.components), p.height, p.width);
  launch_items(dx_general<T, X>, parts(p.shared), p.height, p.width);
  if (a.dgeo != nullptr) {
    const size_t bytes = kGeneralThreads * sizeof(WideOf<T>);
    launch(dgeo_general<T, X>, p.batch * p.groups * p.taps(), kGeneralThreads, bytes, stream, a);
  }
}

template <class T, class X>
Parts parts_of(const BackwardArguments<T, X>& a) {
  Parts parts{a.p.batch, 0};
  if constexpr (!std::is_same_v<T, double>) {
    with_options(a, [&](auto options) {
      const Blocking b = KeyBlocking<T, X, decltype(options)>(a).b;
      parts = {a.p.batch * b.column_blocks * b.strip_blocks, b.group_blocks};
    });
  }
  return parts;
}

template <class T, class X>
void run_backward(const BackwardArguments<T, X>& a, Stream stream) {
  bool done = false;
  if constexpr (!std::is_same_v<T, double>)
    done = with_options(a, [&](auto options) { launch_backward_strips(a, options, stream); });
  if (!done) launch_backward_general(a, stream);
  if (a.dgeo != nullptr) run_sum(a.dgeo_partial, parts_of(a).pixels, a.p.groups * a.p.taps(), a.dgeo, stream);
}

}  // namespace robust_lr::cuda
