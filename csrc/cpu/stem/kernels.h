// The stem's kernels that the operators call: the local relation of x = relu(transform * image + bias), with queries
// and keys that are channel transforms of x.
#pragma once

#include "../local_relation/kernels.h"
#include "projection.h"

namespace robust_lr::cpu {

template <class A>
void run_stem_forward(const ForwardTensors<A, Stem<A>>& tensors, const Projection<A>& query, const Projection<A>& key) {
  const Problem& p = tensors.p;
  const Projector<A> projector(tensors.x, p);
  parallel_for(p.batch * p.height, [&](Index begin, Index end) {
    for (Index row = begin; row < end; ++row) {
      projector.run(query, row / p.height, row % p.height);
      projector.run(key, row / p.height, row % p.height);
    }
  });
  const WholeImages<A> whole(p);
  each_band(p, whole.count(p) * whole.in_turn, [&](Index rows) {
    return [&, task = ForwardTask<A, Stem<A>>(tensors, rows)](Index number, Index first, Index last) mutable {
      task.run(whole.block(p, number / whole.in_turn, number % whole.in_turn), first, last);
    };
  });
}

// The contribution of some rows of an image, through queries and keys, to the gradients of the transform
// [channels, inputs + 1], of the query weights and of the key weights [channels, padded], stored in this order.
template <class A>
struct StemParts {
  static constexpr Index kRows = 16;
  Index transform, query, key;  // number of values of each
  Index bands;                  // parts of an image

  StemParts(const Problem& p, const Stem<A>& stem, const Projection<A>& query, const Projection<A>& key)
      : transform(p.channels * (stem.inputs + 1)),
        query(p.channels * query.padded()),
        key(p.channels * key.padded()),
        bands((p.height + kRows - 1) / kRows) {}

  Index size() const { return transform + query + key; }
};

// `gradients` [N * bands, size] is null if they are not needed.
template <class A>
void run_stem_backward(const BackwardTensors<A, Stem<A>>& tensors, const Projection<A>& query, const Projection<A>& key,
                       A* gradients) {
  using V = Vec<A>;
  const Problem& p = tensors.p;
  const WholeImages<A> whole(p);
  parallel_for(whole.count(p), [&](Index begin, Index end) {
    BackwardTask<A, Stem<A>> task(tensors);
    for (Index number = begin; number < end; ++number)
      for (Index turn = 0; turn < whole.in_turn; ++turn) task.run(whole.block(p, number, turn));
  });
  const Projector<A> projector(tensors.dx, p);
  const StemParts<A> parts(p, tensors.dx, query, key);
  parallel_for(p.batch * parts.bands, [&](Index begin, Index end) {
    for (Index part = begin; part < end; ++part) {
      Scratch& scratch = Scratch::fresh();
      V* const dout = scratch.take<V>(std::max(query.padded(), key.padded()) * Projector<A>::kVectors);
      V *sums = nullptr, *dquery = nullptr, *dkey = nullptr;
      if (gradients != nullptr) {
        sums = scratch.take<V>(parts.size());
        std::fill(sums, sums + parts.size(), V{});
        dquery = sums + parts.transform, dkey = dquery + parts.query;
      }
      const Index n = part / parts.bands, first = part % parts.bands * parts.kRows;
      for (Index h = first; h < std::min(first + parts.kRows, p.height); ++h) {
        projector.run_backward(query, n, h, sums, dquery, dout);
        projector.run_backward(key, n, h, sums, dkey, dout);
      }
      if (gradients == nullptr) continue;
      for (Index i = 0; i < parts.size(); ++i) {
        A total = 0;
        for (int lane = 0; lane < kLanes<A>; ++lane) total += sums[i][lane];
        gradients[part * parts.size() + i] = total;
      }
    }
  });
}

#define ROBUST_LR_STEM_KERNELS(prefix, A)                                                          \
  prefix template void run_stem_forward(const ForwardTensors<A, Stem<A>>&, const Projection<A>&,   \
                                        const Projection<A>&);                                     \
  prefix template void run_stem_backward(const BackwardTensors<A, Stem<A>>&, const Projection<A>&, \
                                         const Projection<A>&, A*)

ROBUST_LR_STEM_KERNELS(extern, float);
ROBUST_LR_STEM_KERNELS(extern, double);

}  // namespace robust_lr::cpu
