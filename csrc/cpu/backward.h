// The gradients of x, q, k and the prior from that of y, in one pass over key pixels.
//
// For each key pixel, and each output pixel whose window holds it, the weight is computed again. The gradients of x and
// k gather in registers; that of q adds up in lanes that one thread owns, in a fixed order. There are no atomics, so the
// result is the same every time.
//
//     dlogit = weight * (dot(dy, x) - dot(dy, y))   with softmax, dot over the channels of the group
//     dlogit = dot(dy, x)                           without
#pragma once

#include "window.h"

namespace robust_lr {

template <class T>
struct BackwardTensors {
  Problem p;
  Image<T> dy, x, q, k;
  Image<WideOf<T>> y;
  Image<T> dx, dq, dk;
  const WideOf<T>* geo;           // [groups, K, K], or null
  Image<WideOf<T>> shift, total;  // from forward, unused without softmax: weight = exp(logit - shift) / total
  WideOf<T>* dgeo;                // [N, groups, K, K], the prior's gradient from each image, or null
};

// The planes of one block.
template <class T>
class BackwardTask {
  using A = WideOf<T>;
  using V = Vec<A>;
  static constexpr int kRun = kVectorRegisters >= 32 ? 8 : 4;  // channels that fit into registers twice

 public:
  BackwardTask(const BackwardTensors<T>& t, Index block_number, Scratch& scratch = Scratch::fresh())
      : p(t.p),
        block(p, block_number),
        dy_planes(t.dy, block, p.shared, p.channels),
        x_planes(t.x, block, p.shared, p.channels),
        dx_planes(t.dx, block, p.shared, p.channels),
        q_planes(t.q, block, p.components, p.groups * p.components),
        k_planes(t.k, block, p.components, p.groups * p.components),
        dq_planes(t.dq, block, p.components, p.groups * p.components),
        dk_planes(t.dk, block, p.components, p.groups * p.components),
        y_planes(t.y, block, p.shared, p.channels),
        shift_planes(t.shift, block, 1, p.groups),
        total_planes(t.total, block, 1, p.groups),
        dgeo_planes({t.dgeo, p.groups * p.taps(), p.taps(), 1}, block, 1, p.groups),
        needs_dgeo(t.dgeo != nullptr),
        step(std::min(rows_at_once<A>(p.width), p.height + 2 * p.padding)),
        values(scratch, step, p.height, p.width, p.shared, p.padding),
        dvalues(scratch, step, p.height, p.width, p.shared, p.padding),
        keys(scratch, step, p.height, p.width, p.components, p.padding),
        dkeys(scratch, step, p.height, p.width, p.components, p.padding),
        queries(scratch, query_rows(), p.out_height, p.out_width, p.components),
        dqueries(scratch, query_rows(), p.out_height, p.out_width, p.components),
        dresults(scratch, query_rows(), p.out_height, p.out_width, p.shared),
        results(scratch, query_rows(), p.out_height, p.out_width, p.shared),
        shifts(scratch, query_rows(), p.out_height, p.out_width, 1),
        dots(scratch, query_rows(), p.out_height, p.out_width, 1),
        prior(load_prior(scratch, t.geo, p, block)),
        dprior(scratch.take<V>(p.taps())),
        row_dprior(scratch.take<V>(p.taps())),
        weights(scratch.take<V>(p.taps())),
        products(scratch.take<V>(p.taps())) {}

  void run() {
    const Index height = p.height + 2 * p.padding;
    std::fill(dprior, dprior + p.taps(), V{});
    Index loaded = 0, stored = 0;
    for (Index first = 0; first < height; first += step) {
      const Index last = std::min(first + step, height);
      const Index needed = p.last_query(last - 1, p.out_height) + 1;
      load_queries(loaded, needed);
      loaded = std::max(loaded, needed);
      values.load(x_planes, first, last);
      keys.load(k_planes, first, last);
      with_composability<V>(p, [&](auto phi, auto d) {
        for (Index i = first; i < last; ++i) run_row<decltype(phi), d>(i);
      });
      dvalues.store(dx_planes, first, last);
      dkeys.store(dk_planes, first, last);
      const Index done = last == height ? p.out_height : p.first_query(last);
      dqueries.store(dq_planes, stored, done);
      stored = std::max(stored, done);
    }
    if (needs_dgeo) dgeo_planes.store(0, p.taps(), dprior);
  }

 private:
  // Rows of output pixels whose windows hold any of `step` rows of key pixels.
  Index query_rows() const { return (step + p.kernel - 2) / p.stride + 1; }

  // Reads rows [first, last) of output pixels. Their gradients, and the dot products of these with y, are divided by the
  // softmax's total here, once, instead of at each weight.
  void load_queries(Index first, Index last) {
    queries.load(q_planes, first, last);
    dqueries.clear(first, last);
    dresults.load(dy_planes, first, last);
    if (!p.softmax) return;
    results.load(y_planes, first, last);
    shifts.load(shift_planes, first, last);
    dots.load(total_planes, first, last);
    for (Index h = first; h < last; ++h)
      for (Index w = 0; w < p.out_width; ++w) {
        V *dy = dresults.at(h, w), *y = results.at(h, w), *dot = dots.at(h, w);
        const V scale = A(1) / *dot;
        V sum = {};
        for (Index c = 0; c < p.shared; ++c) {
          dy[c] *= scale;
          sum += dy[c] * y[c];
        }
        *dot = sum;
      }
  }

  // The output pixels whose windows hold one key pixel, row by row: f(first pixel's row and column, count, tap).
  struct Viewers {
    Index row, rows, column, columns, tap;
  };

  template <class Phi, Index D>
  void run_row(Index i) {
    const Index first_row = p.first_query(i), rows = p.last_query(i, p.out_height) - first_row + 1;
    std::fill(row_dprior, row_dprior + p.taps(), V{});
    for (Index j = 0; j < p.width + 2 * p.padding; ++j) {
      const Index first_column = p.first_query(j), columns = p.last_query(j, p.out_width) - first_column + 1;
      // A step to the next output pixel is `stride` taps back in its window.
      const Index tap = (i - p.window_start(first_row)) * p.kernel + j - p.window_start(first_column);
      auto each_row = [&](auto f) {
        for (Index r = 0; r < rows; ++r) f(first_row + r, tap - r * p.stride * p.kernel, r * columns);
      };

      const V* const key = keys.at(i, j);
      each_row([&](Index h, Index tap, Index t) {
        const V *query = queries.at(h, first_column), *shift = shifts.at(h, first_column);
        for (Index c = 0; c < columns; ++c) {
          const V l = logit<Phi, D>(prior[tap - c * p.stride], query + c * (D ? D : p.components), key, p.components);
          weights[t + c] = p.softmax ? exponential<A>(l, shift[c]) : l;
        }
      });

      V *const value = values.at(i, j), *const dvalue = dvalues.at(i, j);
      each_run<kRun>(p.shared, [&](Index first, auto length) {
        constexpr int M = length;
        V x[M], dx[M] = {};
        for (int m = 0; m < M; ++m) x[m] = value[first + m];
        each_row([&](Index h, Index, Index t) {
          const V* dy = dresults.at(h, first_column) + first;
          for (Index c = 0; c < columns; ++c, dy += p.shared) {
            V product = {};
            const V weight = weights[t + c];
#pragma GCC unroll 8
            for (int m = 0; m < M; ++m) {
              product += dy[m] * x[m];
              dx[m] += weight * dy[m];
            }
            products[t + c] = first == 0 ? product : products[t + c] + product;
          }
        });
        for (int m = 0; m < M; ++m) dvalue[first + m] = dx[m];
      });

      V* const dkey = dkeys.at(i, j);
      std::fill(dkey, dkey + p.components, V{});
      each_row([&](Index h, Index tap, Index t) {
        const V *query = queries.at(h, first_column), *dot = dots.at(h, first_column);
        V* dquery = dqueries.at(h, first_column);
        for (Index c = 0; c < columns; ++c) {
          const V dlogit = p.softmax ? weights[t + c] * (products[t + c] - dot[c]) : products[t + c];
          for (Index n = 0; n < (D ? D : p.components); ++n) {
            Phi::add_gradient(dlogit, *query++, key[n], *dquery++, dkey[n]);
          }
          if (needs_dgeo) row_dprior[tap - c * p.stride] += dlogit;
        }
      });
    }
    // Summed row by row, so that rounding errors stay small.
    if (needs_dgeo) {
      for (Index t = 0; t < p.taps(); ++t) dprior[t] += row_dprior[t];
    }
  }

  const Problem p;
  const Block<A> block;
  const Planes<T> dy_planes, x_planes, dx_planes, q_planes, k_planes, dq_planes, dk_planes;
  const Planes<A> y_planes, shift_planes, total_planes, dgeo_planes;
  const bool needs_dgeo;
  const Index step;  // rows of key pixels at once
  const Rows<A> values, dvalues, keys, dkeys;                             // by key pixel
  const Rows<A> queries, dqueries, dresults, results, shifts, dots;       // by output pixel
  const V* const prior;                                                   // by tap
  V *const dprior, *const row_dprior, *const weights, *const products;
};

}  // namespace robust_lr
