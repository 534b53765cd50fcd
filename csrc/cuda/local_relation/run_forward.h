// Chooses and launches the kernel of the forward operator.
#pragma once

#include "blocking.h"
#include "forward.h"
#include "general.h"

namespace robust_lr::cuda {

template <class T, class X, class O>
void launch_forward_strips(const ForwardArguments<T, X>& a, O, Stream stream) {
  constexpr int strip = kForwardStrip<O>;
  const Blocking b = divide_queries<T, O, strip>(a.x, a.p, O::kStride == 1 ? 5400 : 4400);
  launch(forward_strips<T, X, O>, a.p.batch * b.blocks(), threads(b), key_bytes<T, O>(b.tile), stream, a, b);
}

template <class T, class X>
void run_forward(const ForwardArguments<T, X>& a, Stream stream) {
  const Problem& p = a.p;
  if constexpr (!std::is_same_v<T, double>) {
    if (with_options(a, [&](auto options) { launch_forward_strips(a, options, stream); })) return;
  }
  const Index items = p.batch * p.groups * parts(p.shared) * p.out_height * p.out_width;
  launch(forward_general<T, X>, ceil_div(items, kGeneralThreads), kGeneralThreads, 0, stream, a);
}

}  // namespace robust_lr::cuda
