// y from x, q, k and the prior: for each output pixel the weights of its window, then their sum over x.
#pragma once

#include "window.h"

namespace robust_lr {

template <class T>
struct ForwardTensors {
  Problem p;
  Image<T> x, q, k, y;
  const WideOf<T>* geo;           // [groups, K, K], or null
  // Kept for backward, with softmax: weight = exp(logit - shift) / total, and, where T is narrow, y before rounding.
  Image<WideOf<T>> shift, total, wide_y;
};

// Rows [begin, end) of y for the planes of one block.
template <class T>
class ForwardTask {
  using A = WideOf<T>;
  using V = Vec<A>;

 public:
  ForwardTask(const ForwardTensors<T>& t, Index block_number, Index begin, Index end, Scratch& scratch = Scratch::fresh())
      : p(t.p),
        block(p, block_number),
        x_planes(t.x, block, p.shared, p.channels),
        y_planes(t.y, block, p.shared, p.channels),
        q_planes(t.q, block, p.components, p.groups * p.components),
        k_planes(t.k, block, p.components, p.groups * p.components),
        shift_planes(t.shift, block, 1, p.groups),
        total_planes(t.total, block, 1, p.groups),
        wide_y_planes(t.wide_y, block, p.shared, p.channels),
        begin(begin),
        end(end),
        step(std::min(rows_at_once<A>(p.out_width), end - begin)),
        values(scratch, input_rows(), p.height, p.width, p.shared, p.padding),
        keys(scratch, input_rows(), p.height, p.width, p.components, p.padding),
        queries(scratch, step, p.out_height, p.out_width, p.components),
        results(scratch, step, p.out_height, p.out_width, p.shared),
        shifts(scratch, step, p.out_height, p.out_width, 1),
        totals(scratch, step, p.out_height, p.out_width, 1),
        prior(load_prior(scratch, t.geo, p, block)),
        weights(scratch.take<V>(p.taps())) {}

  void run() {
    bound = prior[0];
    for (Index t = 1; t < p.taps(); ++t) bound = larger<A>(prior[t], bound);
    Index loaded = std::max<Index>(0, p.window_start(begin));
    for (Index first = begin; first < end; first += step) {
      const Index last = std::min(first + step, end);
      const Index needed = std::min(p.height + 2 * p.padding, p.window_start(last - 1) + p.kernel);
      values.load(x_planes, loaded, needed);
      keys.load(k_planes, loaded, needed);
      queries.load(q_planes, first, last);
      loaded = std::max(loaded, needed);
      with_composability<V>(p, [&](auto phi, auto d) {
        for (Index h = first; h < last; ++h)
          for (Index w = 0; w < p.out_width; ++w) run_pixel<decltype(phi), d>(h, w);
      });
      results.store(y_planes, first, last);
      if (p.softmax) {
        shifts.store(shift_planes, first, last);
        totals.store(total_planes, first, last);
        if (!std::is_same_v<T, A>) results.store(wide_y_planes, first, last);
      }
    }
  }

 private:
  // Rows of x in the windows of `step` rows of y.
  Index input_rows() const { return (step - 1) * p.stride + p.kernel; }

  template <class Phi, Index D>
  void run_pixel(Index h, Index w) {
    const Window window(p, h, w);
    auto each_logit = [&](auto f) {
      for (Index i = 0; i < window.rows; ++i) {
        const V *key = keys.at(window.row + i, window.column), *term = prior + window.tap + i * p.kernel;
        for (Index j = 0; j < window.columns; ++j, key += D ? D : p.components) {
          f(logit<Phi, D>(term[j], queries.at(h, w), key, p.components));
        }
      }
    };
    V scale = broadcast<A>(1);
    if (p.softmax) {
      softmax<Phi::kBounded>(each_logit, *shifts.at(h, w), *totals.at(h, w));
      scale /= *totals.at(h, w);
    } else {
      V* weight = weights;
      each_logit([&](V logit) { *weight++ = logit; });
    }
    aggregate(window, scale, results.at(h, w));
  }

  // The part of the window of output pixel (h, w) that lies in the padded image.
  struct Window {
    Index row, rows, column, columns;
    Index tap;  // the first of its taps

    Window(const Problem& p, Index h, Index w) {
      const Index top = p.window_start(h), left = p.window_start(w);
      row = std::max<Index>(0, top);
      column = std::max<Index>(0, left);
      rows = std::min(p.height + 2 * p.padding, top + p.kernel) - row;
      columns = std::min(p.width + 2 * p.padding, left + p.kernel) - column;
      tap = (row - top) * p.kernel + column - left;
    }
  };

  // Writes exp(logit - shift) to `weights` and their sum to `total`. The shift is the bound of the logits where there is
  // one, which saves a search for the largest; only lanes that underflow with it take the largest.
  template <bool kBounded, class EachLogit>
  void softmax(EachLogit each_logit, V& shift, V& total) {
    auto largest = [&] {
      V result = broadcast(-std::numeric_limits<A>::infinity());
      each_logit([&](V logit) { result = larger<A>(logit, result); });
      return result;
    };
    auto exponentials = [&](V shift) {
      V sum = {};
      V* weight = weights;
      each_logit([&](V logit) { sum += *weight++ = exponential<A>(logit, shift); });
      return sum;
    };
    shift = kBounded ? bound : largest();
    total = exponentials(shift);
    if (kBounded) {
      // What underflows is less than 2^-24 of any sum above this.
      const auto lost = total < std::numeric_limits<A>::min() * A(1 << 30);
      if (any(lost)) {
        shift = lost ? largest() : shift;
        total = exponentials(shift);
      }
    }
  }

  void aggregate(const Window& window, V scale, V* result) const {
    each_run<8>(p.shared, [&](Index first, auto length) {
      constexpr int M = length;
      V sums[M] = {};
      const V* weight = weights;
      for (Index i = 0; i < window.rows; ++i) {
        const V* value = values.at(window.row + i, window.column) + first;
        for (Index j = 0; j < window.columns; ++j, value += p.shared) {
          const V w = *weight++;
#pragma GCC unroll 8
          for (int m = 0; m < M; ++m) sums[m] += w * value[m];
        }
      }
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) result[first + m] = sums[m] * scale;
    });
  }

  const Problem p;
  const Block<A> block;
  const Planes<T> x_planes, y_planes, q_planes, k_planes;
  const Planes<A> shift_planes, total_planes, wide_y_planes;
  const Index begin, end, step;
  const Rows<A> values, keys;                      // by input pixel
  const Rows<A> queries, results, shifts, totals;  // by output pixel
  const V* const prior;                            // by tap
  V* const weights;
  V bound;  // of the logits, where Phi is never above zero
};

}  // namespace robust_lr
