// Chooses and launches the kernels of the backward operator.
#pragma once

#include "backward_keys.h"
#include "backward_queries.h"
#include "general.h"
#include "launch.h"
#include "reduce.h"

namespace robust_lr::cuda {

// The division of the key pixels, with those around the image where zeros take part.
template <class T, class O>
struct KeyBlocking {
  Blocking b;
  size_t bytes;

  explicit KeyBlocking(const BackwardArguments<T>& a) {
    auto needed = [](const Blocking& b) {
      return QueryMemory<T>::bytes(QueryWindow<O, kKeyStrip>::tile(b), O::kSize * O::kSize);
    };
    const Index around = key_lead(a.p) + a.p.padding;
    b = divide(a.p, a.p.height + around, a.p.width + around, kKeyStrip, a.x.channel == 1, needed);
    bytes = needed(b);
  }
};

template <class T, class O>
void launch_backward_strips(const BackwardArguments<T>& a, O, Stream stream) {
  using Window = KeyWindow<O, kQueryStrip>;
  auto bytes = [](const Blocking& b) { return KeyMemory<T>::bytes(Window::tile(b), O::kSize * O::kSize); };
  const Blocking queries = divide(a.p, a.p.out_height, a.p.out_width, kQueryStrip, a.x.channel == 1, bytes);
  launch(backward_queries<T, O>, a.p.batch * queries.blocks(), threads(queries), bytes(queries), stream, a, queries);
  const KeyBlocking<T, O> keys(a);
  launch(backward_keys<T, O>, a.p.batch * keys.b.blocks(), threads(keys.b), keys.bytes, stream, a, keys.b);
}

template <class T>
void launch_backward_general(const BackwardArguments<T>& a, Stream stream) {
  const Problem& p = a.p;
  auto launch_items = [&](auto kernel, Index units, Index height, Index width) {
    const Index items = p.batch * p.groups * units * height * width;
    launch(kernel, ceil_div(items, kGeneralThreads), kGeneralThreads, 0, stream, a);
  };
  launch_items(dq_general<T>, parts(p.components), p.out_height, p.out_width);
  launch_items(dk_general<T>, parts(p.components), p.height, p.width);
  launch_items(dx_general<T>, parts(p.shared), p.height, p.width);
  if (a.dgeo != nullptr) {
    const size_t bytes = kGeneralThreads * sizeof(WideOf<T>);
    launch(dgeo_general<T>, p.batch * p.groups * p.taps(), kGeneralThreads, bytes, stream, a);
  }
}

template <class T>
Index dgeo_parts(const BackwardArguments<T>& a) {
  Index parts = a.p.batch;
  if constexpr (!std::is_same_v<T, double>) {
    with_options(a.p, [&](auto options) {
      const Blocking b = KeyBlocking<T, decltype(options)>(a).b;
      parts = a.p.batch * b.column_blocks * b.strip_blocks;
    });
  }
  return parts;
}

template <class T>
void run_backward(const BackwardArguments<T>& a, Stream stream) {
  bool done = false;
  if constexpr (!std::is_same_v<T, double>)
    done = with_options(a.p, [&](auto options) { launch_backward_strips(a, options, stream); });
  if (!done) launch_backward_general(a, stream);
  if (a.dgeo == nullptr) return;
  const Index entries = a.p.groups * a.p.taps();
  const size_t bytes = kSumRows * kSumColumns * sizeof(double);
  launch(sum_parts<WideOf<T>>, ceil_div(entries, kSumColumns), kSumRows * kSumColumns, bytes, stream, a.dgeo_partial,
         int(dgeo_parts(a)), entries, a.dgeo);
}

}  // namespace robust_lr::cuda
