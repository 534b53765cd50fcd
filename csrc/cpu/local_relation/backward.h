// The gradients of x, q, k and the prior from that of y, in one pass over key pixels.
//
// For each key pixel, and each output pixel whose window holds it, the weight is computed again. The gradients of x and
// k gather in registers; that of q adds up in lanes that one thread owns, in a fixed order. There are no atomics, so
// the result is the same every time.
//
//     dlogit = weight * (dot(dy, x) - dot(dy, y))   with softmax, dot over the channels of the group
//     dlogit = dot(dy, x)                           without
#pragma once

#include "phi.h"
#include "window.h"

namespace robust_lr::cpu {

// X is what x comes from and its gradient goes to.
template <class A, class X = Image<A>>
struct BackwardTensors {
  Problem p;
  X x, dx;
  Image<A> dy, q, k, y, dq, dk;
  Image<A> prior;         // no data where there is none; its batch stride is 0
  Image<A> shift, total;  // from forward, unused without softmax
  Image<A> dprior;        // of each image, [N, groups, K * K]; no data where it is not needed
};

// Computes the gradients block by block, in the same scratch memory.
template <class A, class X = Image<A>>
class BackwardTask {
  using V = Vec<A>;

  // The planes of the tensors that `load_queries` reads.
  struct QueryPlanes {
    const Planes<A> q, dy, y, shift, total;

    QueryPlanes(const BackwardTensors<A, X>& t, const Block<A>& block, Index channels)
        : q(t.q, block, t.p.components, t.p.components, t.p.groups * t.p.components),
          dy(t.dy, block, channels, t.p.shared, t.p.channels),
          y(t.y, block, channels, t.p.shared, t.p.channels),
          shift(t.shift, block, 1, 1, t.p.groups),
          total(t.total, block, 1, 1, t.p.groups) {}
  };

  // A row of output pixels in whose windows a row of key pixels lies, from its first column on, and the prior of the
  // window's row that meets it, with its gradient.
  struct ViewerRow {
    const V *query, *shift, *dot, *dresult;
    V* dquery;
    const V* prior;
    V* dprior;
  };

 public:
  BackwardTask(const BackwardTensors<A, X>& tensors, Scratch& scratch = Scratch::fresh())
      : t(tensors),
        p(t.p),
        channels(lane_channels(p)),
        needs_dprior(t.dprior.data != nullptr),
        step(std::min(rows_at_once<A>(p.width), p.height + 2 * p.padding)),
        values(scratch, step, p.height, p.width, channels, p.padding),
        dvalues(scratch, step, p.height, p.width, channels, p.padding),
        keys(scratch, step, p.height, p.width, p.components, p.padding),
        dkeys(scratch, step, p.height, p.width, p.components, p.padding),
        queries(scratch, query_rows(), p.out_height, p.out_width, p.components),
        dqueries(scratch, query_rows(), p.out_height, p.out_width, p.components),
        dresults(scratch, query_rows(), p.out_height, p.out_width, channels),
        results(scratch, query_rows(), p.out_height, p.out_width, channels),
        shifts(scratch, query_rows(), p.out_height, p.out_width, 1),
        dots(scratch, query_rows(), p.out_height, p.out_width, 1),
        prior(scratch.take<V>(p.taps())),
        dprior(scratch.take<V>(p.taps())),
        row_dprior(scratch.take<V>(p.taps())),
        weights(scratch.take<V>(p.taps())),
        products(scratch.take<V>(p.taps())),
        columns(scratch.take<Span>(p.width + 2 * p.padding)),
        viewers(scratch.take<ViewerRow>((p.kernel - 1) / p.stride + 1)) {
    for (Index j = 0; j < p.width + 2 * p.padding; ++j) columns[j] = viewers_of(p, j, p.out_width);
  }

  // Computes the gradients of the planes of a block.
  void run(const Block<A>& block) {
    const typename X::Planes x_planes(t.x, block, channels, p.shared, p.channels);
    const typename X::Planes dx_planes(t.dx, block, channels, p.shared, p.channels);
    const QueryPlanes query_planes(t, block, channels);
    const Planes<A> k_planes(t.k, block, p.components, p.components, p.groups * p.components);
    const Planes<A> dq_planes(t.dq, block, p.components, p.components, p.groups * p.components);
    const Planes<A> dk_planes(t.dk, block, p.components, p.components, p.groups * p.components);
    load_prior(t.prior, p, block, prior);
    const Index height = p.height + 2 * p.padding;
    std::fill(dprior, dprior + p.taps(), V{});
    Index loaded = 0, stored = 0;
    for (Index first = 0; first < height; first += step) {
      const Index last = std::min(first + step, height);
      const Index needed = p.last_query(last - 1, p.out_height) + 1;
      load_queries(query_planes, loaded, needed);
      loaded = std::max(loaded, needed);
      values.load(x_planes, first, last);
      keys.load(k_planes, first, last);
      with_kernel<V>(p, [&](auto kernel) {
        for (Index i = first; i < last; ++i) run_row<decltype(kernel)>(i);
      });
      dvalues.store(dx_planes, first, last);
      dkeys.store(dk_planes, first, last);
      const Index done = last == height ? p.out_height : p.first_query(last);
      dqueries.store(dq_planes, stored, done);
      stored = std::max(stored, done);
    }
    if (needs_dprior) Planes<A>(t.dprior, block, 1, 1, p.groups).store(0, p.taps(), dprior);
  }

 private:
  // Rows of output pixels whose windows hold any of `step` rows of key pixels.
  Index query_rows() const { return (step + p.kernel - 2) / p.stride + 1; }

  // Reads rows [first, last) of output pixels. Their gradients, and the dot products of these with y, are divided by
  // the softmax's total here, once, instead of at each weight.
  void load_queries(const QueryPlanes& planes, Index first, Index last) {
    queries.load(planes.q, first, last);
    dqueries.clear(first, last);
    dresults.load(planes.dy, first, last);
    if (!p.softmax) return;
    results.load(planes.y, first, last);
    shifts.load(planes.shift, first, last);
    dots.load(planes.total, first, last);
    for (Index h = first; h < last; ++h)
      for (Index w = 0; w < p.out_width; ++w) {
        V *dy = dresults.at(h, w), *y = results.at(h, w), *dot = dots.at(h, w);
        const V scale = A(1) / *dot;
        for (Index c = 0; c < channels; ++c) dy[c] *= scale;
        // In the order in which `gather` multiplies, so that where one weight is 1 the difference is 0.
        V sum = {};
        for (Index c = kChannels; c < channels; ++c) sum += dy[c] * y[c];
        for (Index c = 0; c < std::min<Index>(kChannels, channels); ++c) sum += dy[c] * y[c];
        *dot = sum;
      }
  }

  template <class Kernel>
  void run_row(Index i) {
    constexpr int M = Kernel::M;
    const Span rows = viewers_of(p, i, p.out_height);
    for (Index r = 0; r < rows.count; ++r) {
      const Index h = rows.first + r, tap = (rows.tap - r * p.stride) * p.kernel;
      viewers[r] = {queries.at(h),  shifts.at(h), dots.at(h),      dresults.at(h),
                    dqueries.at(h), prior + tap,  row_dprior + tap};
    }
    std::fill(row_dprior, row_dprior + p.taps(), V{});
    for (Index j = 0; j < p.width + 2 * p.padding; ++j) {
      const V *value = values.at(i, j), *key = keys.at(i, j);
      V *dvalue = dvalues.at(i, j), *dkey = dkeys.at(i, j);
      if (channels > M) std::fill(products, products + rows.count * columns[j].count, V{});
      for (Index c = M; c < channels; c += M) multiply_more<M>(rows, columns[j], value + c, c);
      gather<Kernel>(rows, columns[j], value, key, dvalue, dkey);
      for (Index c = M; c < channels; c += M) gather_more<M>(rows, columns[j], dvalue + c, c);
    }
    // Row by row, so that rounding errors stay small.
    if (needs_dprior) {
      for (Index t = 0; t < p.taps(); ++t) dprior[t] += row_dprior[t];
    }
  }

  // All gradients by one key pixel, that of x for the first M channels. If there are more, their share of the products
  // is there already, and the weights are kept.
  template <class Kernel>
  void gather(const Span& rows, const Span& columns, const V* value, const V* key, V* dvalue, V* dkey) const {
    constexpr int M = Kernel::M;
    const Index channels = Kernel::channels(p);
    const bool more = channels > M;
    V x[M], dx[M] = {};
    for (int m = 0; m < M; ++m) x[m] = value[m];
    std::fill(dkey, dkey + Kernel::components(p), V{});
    V dk = {};  // of the first component, in a register
    const Index components = Kernel::components(p), stride = p.stride;
    V *weight = weights, *product = products;
    for (const ViewerRow* row = viewers; row < viewers + rows.count; ++row) {
      const V *query = row->query + columns.first * components, *shift = row->shift + columns.first,
              *dot = row->dot + columns.first, *dy = row->dresult + columns.first * channels,
              *term = row->prior + columns.tap;
      V *dquery = row->dquery + columns.first * components, *dterm = row->dprior + columns.tap;
      for (Index c = 0; c < columns.count; ++c, term -= stride, dterm -= stride, dy += channels) {
        V e = Kernel::logit(p, *term, query, key);
        if (Kernel::softmax(p)) e = exponential<A>(e - shift[c]);
        V dlogit = {};
        if (more) {
          *weight++ = e;
          dlogit = *product++;
        }
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
          dlogit += dy[m] * x[m];
          dx[m] += e * dy[m];
        }
        if (Kernel::softmax(p)) dlogit = e * (dlogit - dot[c]);
        Kernel::Phi::add_gradient(dlogit, query[0], key[0], dquery[0], dk);
        for (Index n = 1; n < components; ++n) {
          Kernel::Phi::add_gradient(dlogit, query[n], key[n], dquery[n], dkey[n]);
        }
        query += components;
        dquery += components;
        if (needs_dprior) *dterm += dlogit;
      }
    }
    for (int m = 0; m < M; ++m) dvalue[m] = dx[m];
    dkey[0] = dk;
  }

  // Adds the dot products of M more channels, ahead of `gather`.
  template <int M>
  void multiply_more(const Span& rows, const Span& columns, const V* value, Index channel) const {
    V* product = products;
    for (Index r = 0; r < rows.count; ++r) {
      const V* dy = dresults.at(rows.first + r, columns.first) + channel;
      for (Index c = 0; c < columns.count; ++c, ++product, dy += channels) {
        for (int m = 0; m < M; ++m) *product += dy[m] * value[m];
      }
    }
  }

  // The gradient of x for M more channels, after `gather`.
  template <int M>
  void gather_more(const Span& rows, const Span& columns, V* dvalue, Index channel) const {
    V dx[M] = {};
    const V* weight = weights;
    for (Index r = 0; r < rows.count; ++r) {
      const V* dy = dresults.at(rows.first + r, columns.first) + channel;
      for (Index c = 0; c < columns.count; ++c, dy += channels) {
        const V e = *weight++;
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) dx[m] += e * dy[m];
      }
    }
    for (int m = 0; m < M; ++m) dvalue[m] = dx[m];
  }

  const BackwardTensors<A, X>& t;
  const Problem p;
  const Index channels;  // of a group in lanes
  const bool needs_dprior;
  const Index step;                                                                   // rows of key pixels at once
  const Rows<A> values, dvalues, keys, dkeys;                                         // by key pixel
  const Rows<A> queries, dqueries, dresults, results, shifts, dots;                   // by output pixel
  V *const prior, *const dprior, *const row_dprior, *const weights, *const products;  // by tap
  Span* const columns;
  ViewerRow* const viewers;  // those of the row of key pixels at hand
};

}  // namespace robust_lr::cpu
