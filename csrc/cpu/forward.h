// y from x, q, k and the prior: for each output pixel the weights of its window, then their sum over x.
#pragma once

#include "window.h"

namespace robust_lr {

template <class A>
struct ForwardTensors {
  Problem p;
  Image<A> x, q, k, y;
  Image<A> prior;  // no data where there is none; its batch stride is 0
  // Kept for backward, with softmax: weight = exp(logit - shift) / total; and y unrounded, where y is narrow.
  Image<A> shift, total, wide_y;
};

// Rows [begin, end) of y for the planes of one block.
template <class A>
class ForwardTask {
  using V = Vec<A>;

 public:
  ForwardTask(const ForwardTensors<A>& t, Index block_number, Index begin, Index end, Scratch& scratch = Scratch::fresh())
      : p(t.p),
        block(p, block_number),
        x_planes(t.x, block, p.shared, p.channels),
        y_planes(t.y, block, p.shared, p.channels),
        q_planes(t.q, block, p.components, p.groups * p.components),
        k_planes(t.k, block, p.components, p.groups * p.components),
        shift_planes(t.shift, block, 1, p.groups),
        total_planes(t.total, block, 1, p.groups),
        wide_y_planes(t.wide_y, block, p.shared, p.channels),
        keeps_wide_y(t.wide_y.data != nullptr),
        begin(begin),
        end(end),
        step(std::min(rows_at_once<A>(p.out_width), end - begin)),
        values(scratch, input_rows(), p.height, p.width, p.shared, p.padding),
        keys(scratch, input_rows(), p.height, p.width, p.components, p.padding),
        queries(scratch, step, p.out_height, p.out_width, p.components),
        results(scratch, step, p.out_height, p.out_width, p.shared),
        shifts(scratch, step, p.out_height, p.out_width, 1),
        totals(scratch, step, p.out_height, p.out_width, 1),
        prior(load_prior(scratch, t.prior, p, block)),
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
      with_kernel<V, 8>(p, [&](auto kernel) {
        for (Index h = first; h < last; ++h)
          for (Index w = 0; w < p.out_width; ++w) run_pixel<decltype(kernel)>(h, w);
      });
      results.store(y_planes, first, last);
      if (p.softmax) {
        shifts.store(shift_planes, first, last);
        totals.store(total_planes, first, last);
        if (keeps_wide_y) results.store(wide_y_planes, first, last);
      }
    }
  }

 private:
  // Rows of x in the windows of `step` rows of y.
  Index input_rows() const { return (step - 1) * p.stride + p.kernel; }

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

  template <class Kernel>
  void run_pixel(Index h, Index w) {
    const Window window(p, h, w);
    const V* const query = queries.at(h, w);
    V* const result = results.at(h, w);
    V scale = broadcast<A>(1);
    if (Kernel::softmax(p)) {
      // A bound saves a search for the largest logit. Lanes that underflow with it take the largest after all; above this
      // total, what is lost is less than 2^-24 of it.
      constexpr bool kBounded = Kernel::Phi::kBounded;
      const V least = broadcast(std::numeric_limits<A>::min() * A(1 << 30));
      V shift = kBounded ? bound : largest_logit<Kernel>(window, query);
      V total = aggregate<Kernel>(window, query, shift, result);
      if (kBounded && any_less<A>(total, least)) {
        shift = total < least ? largest_logit<Kernel>(window, query) : shift;
        total = aggregate<Kernel>(window, query, shift, result);
      }
      *shifts.at(h, w) = shift;
      *totals.at(h, w) = total;
      scale /= total;
    } else {
      aggregate<Kernel>(window, query, V{}, result);
    }
    each_run<8>(Kernel::M, p.shared, [&](Index c, auto run) { aggregate_more<run>(window, c, scale, result + c); });
  }

  template <class Kernel>
  V largest_logit(const Window& window, const V* query) const {
    V largest = broadcast(-std::numeric_limits<A>::infinity());
    for (Index i = 0; i < window.rows; ++i) {
      const V *key = keys.at(window.row + i, window.column), *term = prior + window.tap + i * p.kernel;
      for (Index j = 0; j < window.columns; ++j, key += Kernel::components(p)) {
        largest = larger<A>(Kernel::logit(p, term[j], query, key), largest);
      }
    }
    return largest;
  }

  // Averages the first M channels of x with weights exp(logit - shift), and returns the sum of these; without softmax,
  // sums with the logits as weights. Keeps the weights if there are more channels.
  template <class Kernel>
  V aggregate(const Window& window, const V* query, V shift, V* result) const {
    constexpr int M = Kernel::M;
    const bool more = p.shared > M;
    V sums[M] = {}, total = {};
    V* weight = weights;
    for (Index i = 0; i < window.rows; ++i) {
      const V *key = keys.at(window.row + i, window.column), *term = prior + window.tap + i * p.kernel;
      const V* value = values.at(window.row + i, window.column);
      V row_total = {};  // row by row, so that rounding errors stay small
      for (Index j = 0; j < window.columns; ++j, key += Kernel::components(p), value += p.shared) {
        V w = Kernel::logit(p, term[j], query, key);
        if (Kernel::softmax(p)) row_total += w = exponential<A>(w, shift);
        if (more) *weight++ = w;
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) sums[m] += w * value[m];
      }
      total += row_total;
    }
    const V scale = Kernel::softmax(p) ? A(1) / total : broadcast<A>(1);
    for (int m = 0; m < M; ++m) result[m] = sums[m] * scale;
    return total;
  }

  // The same for M more channels.
  template <int M>
  void aggregate_more(const Window& window, Index channel, V scale, V* result) const {
    V sums[M] = {};
    const V* weight = weights;
    for (Index i = 0; i < window.rows; ++i) {
      const V* value = values.at(window.row + i, window.column) + channel;
      for (Index j = 0; j < window.columns; ++j, value += p.shared) {
        const V w = *weight++;
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) sums[m] += w * value[m];
      }
    }
    for (int m = 0; m < M; ++m) result[m] = sums[m] * scale;
  }

  const Problem p;
  const Block<A> block;
  const Planes<A> x_planes, y_planes, q_planes, k_planes, shift_planes, total_planes, wide_y_planes;
  const bool keeps_wide_y;
  const Index begin, end, step;
  const Rows<A> values, keys;                      // by input pixel
  const Rows<A> queries, results, shifts, totals;  // by output pixel
  const V* const prior;                            // by tap
  V* const weights;
  V bound;  // of the logits, where Phi is never above zero
};

}  // namespace robust_lr
