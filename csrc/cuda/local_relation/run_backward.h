// Chooses and launches the kernels of the backward operator.
#pragma once

#include "backward_keys.h"
#include "backward_queries.h"
#include "blocking.h"
#include "general.h"

namespace robust_lr::cuda {

template <class X, class O, bool Weights, bool Products>
size_t key_memory(const TileShape& tile) {
  return QueryMemory<X, Weights, Products>::bytes(tile, O::kSize * O::kSize);
}

// The division of the key pixels, including the zeros around the image if they take part.
template <class X, class O, bool Weights, bool Products>
Blocking divide_keys(const X& x, const Problem& p) {
  constexpr int rows = kKeyRows<X, O, Weights>;
  constexpr int rest = O::kStride == 1 ? (Weights ? 5600 : 8200) : (Weights ? 2500 : 3600);
  const Index around = key_lead(p, rows) + p.padding;
  return divide(p, p.height + around, p.width + around, rows, O::kStride, least_groups(x), {130, rest},
                QueryWindow<O, rows>::shape,
                [](const TileShape& tile) { return key_memory<X, O, Weights, Products>(tile); });
}

// Calls f(kernel, blocking, bytes of shared memory, whether it adds the keys' contribution) with the kernel to launch.
template <class T, class X, class O, class F>
void with_key_kernel(const BackwardArguments<T, X>& a, O, F f) {
  using std::bool_constant;
  auto take = [&]<bool Weights, bool Products>(bool_constant<Weights>, bool_constant<Products>) {
    const Blocking b = divide_keys<X, O, Weights, Products>(a.x, a.p);
    if (Products && b.groups != kProductGroups) return false;
    f(backward_keys<T, X, O, Weights, Products>, b, key_memory<X, O, Weights, Products>(b.tile), Products && !Weights);
    return true;
  };
  if constexpr (std::is_same_v<X, Stem<float>> && std::is_same_v<T, BFloat16> && kUsual<T, O>) {
    if (has_whole_groups(a.x, a.p) && a.p.padding == 0) {
      const bool adds_keys = a.dx.key_weights != nullptr && a.p.groups <= kProductGroups;
      if (adds_keys ? take(bool_constant<false>(), bool_constant<true>())
                    : take(bool_constant<true>(), bool_constant<true>()))
        return;
    }
  } else if constexpr (std::is_same_v<X, Image<const T>> && kUsual<T, O>) {
    if (a.dgeo == nullptr) return void(take(bool_constant<false>(), bool_constant<false>()));
  }
  take(bool_constant<true>(), bool_constant<false>());
}

template <class T, class X, class O>
void launch_backward_strips(const BackwardArguments<T, X>& a, O options, Stream stream) {
  constexpr int strip = kQueryStrip<O>;
  const Blocking queries = divide_queries<T, O, strip>(a.x, a.p, O::kStride == 1 ? 7100 : 5400);
  launch(backward_queries<T, X, O>, a.p.batch * queries.blocks(), threads(queries), key_bytes<T, O>(queries.tile),
         stream, a, queries);
  with_key_kernel(a, options, [&](auto kernel, const Blocking& b, size_t bytes, bool) {
    launch(kernel, a.p.batch * b.blocks(), threads(b), bytes, stream, a, b);
  });
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
  Parts parts{a.p.batch, 0, false};
  if constexpr (!std::is_same_v<T, double>) {
    with_options(a, [&](auto options) {
      with_key_kernel(a, options, [&](auto, const Blocking& b, size_t, bool keys) {
        parts = {a.p.batch * b.column_blocks * b.strip_blocks, b.group_blocks, keys};
      });
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
