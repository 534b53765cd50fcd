// Computes y from x, q, k and the prior: for each output pixel the weights of its window, then the weighted sum of x.
#pragma once

#include "phi.h"
#include "window.h"

namespace robust_lr::cpu {

// X is the type of the source of x: an `Image` or a `Stem`.
template <class A, class X = Image<A>>
struct ForwardTensors {
  Problem p;
  X x;
  Image<A> q, k, y;
  Image<A> prior;  // no data if there is none; its batch stride is 0
  // Kept for backward, with softmax: weight = exp(logit - shift) / total, where logits are those of `load_prior`; and y
  // unrounded, if y is narrow.
  Image<A> shift, total, wide_y;
};

// Computes rows of y, block by block, in the same scratch memory.
template <class A, class X = Image<A>>
class ForwardTask {
  using V = Vec<A>;

 public:
  // `rows`: most rows of y to compute at a time.
  ForwardTask(const ForwardTensors<A, X>& tensors, Index rows, Scratch& scratch = Scratch::fresh())
      : t(tensors),
        p(t.p),
        channels(lane_channels(p)),
        step(std::min(rows_at_once<A>(p.out_width), rows)),
        values(scratch, input_rows(), p.height, p.width, channels, p.padding),
        keys(scratch, input_rows(), p.height, p.width, p.components, p.padding),
        queries(scratch, step, p.out_height, p.out_width, p.components),
        results(scratch, step, p.out_height, p.out_width, channels),
        shifts(scratch, step, p.out_height, p.out_width, 1),
        totals(scratch, step, p.out_height, p.out_width, 1),
        prior(scratch.take<V>(p.taps())),
        weights(scratch.take<V>(p.taps())),
        columns(scratch.take<Span>(p.out_width)) {
    for (Index w = 0; w < p.out_width; ++w) columns[w] = window_of(p, w, p.width);
  }

  // Computes rows [begin, end) of y for the planes of a block.
  void run(const Block<A>& block, Index begin, Index end) {
    const typename X::Planes x_planes(t.x, block, channels, p.shared, p.channels);
    const Planes<A> y_planes(t.y, block, channels, p.shared, p.channels);
    const Planes<A> q_planes(t.q, block, p.components, p.components, p.groups * p.components);
    const Planes<A> k_planes(t.k, block, p.components, p.components, p.groups * p.components);
    load_prior(t.prior, p, block, prior);
    Index loaded = std::max<Index>(0, p.window_start(begin));
    for (Index first = begin; first < end; first += step) {
      const Index last = std::min(first + step, end);
      const Index needed = std::min(p.height + 2 * p.padding, p.window_start(last - 1) + p.kernel);
      values.load(x_planes, loaded, needed);
      keys.load(k_planes, loaded, needed);
      queries.load(q_planes, first, last);
      loaded = std::max(loaded, needed);
      with_kernel<V>(p, [&](auto kernel) {
        for (Index h = first; h < last; ++h) {
          const Span rows = window_of(p, h, p.height);
          for (Index w = 0; w < p.out_width; ++w) {
            run_pixel<decltype(kernel)>(rows, columns[w], queries.at(h, w), results.at(h, w), *shifts.at(h, w),
                                        *totals.at(h, w));
          }
        }
      });
      results.store(y_planes, first, last);
      if (p.softmax) store_statistics(block, first, last);
    }
  }

 private:
  // Rows of x in the windows of `step` rows of y.
  Index input_rows() const { return (step - 1) * p.stride + p.kernel; }

  void store_statistics(const Block<A>& block, Index first, Index last) const {
    shifts.store(Planes<A>(t.shift, block, 1, 1, p.groups), first, last);
    totals.store(Planes<A>(t.total, block, 1, 1, p.groups), first, last);
    if (t.wide_y.data != nullptr)
      results.store(Planes<A>(t.wide_y, block, channels, p.shared, p.channels), first, last);
  }

  template <class Kernel>
  void run_pixel(const Span& rows, const Span& columns, const V* query, V* result, V& shift, V& total) const {
    constexpr bool kBounded = Kernel::Phi::kBounded;
    const bool softmax = Kernel::softmax(p);
    // Zero as an upper bound saves the search for the largest logit. Lanes that underflow with it use the largest logit
    // instead; above this total, underflow loses less than 2^-24 of it.
    const V least = broadcast(std::numeric_limits<A>::min() * A(1 << 30));
    if (kBounded || !softmax) {
      shift = V{};
      total = aggregate<Kernel, true>(rows, columns, query, shift, result);
      if (softmax && !all_at_least<A>(total, least)) {
        shift = total >= least ? shift : largest_logit<Kernel>(rows, columns, query);
        total = aggregate<Kernel, false>(rows, columns, query, shift, result);
      }
    } else {
      shift = largest_logit<Kernel>(rows, columns, query);
      total = aggregate<Kernel, false>(rows, columns, query, shift, result);
    }
    const V scale = softmax ? A(1) / total : broadcast<A>(1);
    for (Index c = Kernel::M; c < channels; c += Kernel::M) {
      aggregate_more<Kernel::M>(rows, columns, c, scale, result + c);
    }
  }

  template <class Kernel>
  V largest_logit(const Span& rows, const Span& columns, const V* query) const {
    V largest = broadcast(-std::numeric_limits<A>::infinity());
    for (Index i = 0; i < rows.count; ++i) {
      const V* key = keys.at(rows.first + i, columns.first);
      const V* term = prior + (rows.tap + i) * p.kernel + columns.tap;
      for (Index j = 0; j < columns.count; ++j, key += Kernel::components(p)) {
        largest = larger<A>(Kernel::logit(p, term[j], query, key), largest);
      }
    }
    return largest;
  }

  // Averages the first M channels of x with weights exp(logit - shift), and returns the sum of these; without softmax,
  // sums with the logits as weights. Keeps the weights if there are more channels. If the shift `kIsZero`, that saves
  // work, and the total is NaN where a logit is -inf.
  template <class Kernel, bool kIsZero>
  V aggregate(const Span& rows, const Span& columns, const V* query, V shift, V* result) const {
    constexpr int M = Kernel::M;
    const Index channels = Kernel::channels(p);
    const bool more = channels > M;
    V sums[M] = {}, total = {};
    V* weight = weights;
    for (Index i = 0; i < rows.count; ++i) {
      const V* key = keys.at(rows.first + i, columns.first);
      const V* value = values.at(rows.first + i, columns.first);
      const V* term = prior + (rows.tap + i) * p.kernel + columns.tap;
      V row_total = {};  // row by row, so that rounding errors stay small
      for (Index j = 0; j < columns.count; ++j, key += Kernel::components(p), value += channels) {
        V w = Kernel::logit(p, term[j], query, key);
        if (Kernel::softmax(p)) row_total += w = exponential<A, kIsZero>(kIsZero ? w : w - shift);
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

  // Does the same for M more channels, with the weights that were kept.
  template <int M>
  void aggregate_more(const Span& rows, const Span& columns, Index channel, V scale, V* result) const {
    V sums[M] = {};
    const V* weight = weights;
    for (Index i = 0; i < rows.count; ++i) {
      const V* value = values.at(rows.first + i, columns.first) + channel;
      for (Index j = 0; j < columns.count; ++j, value += channels) {
        const V w = *weight++;
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) sums[m] += w * value[m];
      }
    }
    for (int m = 0; m < M; ++m) result[m] = sums[m] * scale;
  }

  const ForwardTensors<A, X>& t;
  const Problem p;
  const Index channels;                            // of a group in lanes
  const Index step;                                // rows of y at once
  const Rows<A> values, keys;                      // by input pixel
  const Rows<A> queries, results, shifts, totals;  // by output pixel
  V *const prior, *const weights;                  // by tap
  Span* const columns;
};

}  // namespace robust_lr::cpu
