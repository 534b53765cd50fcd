// Which pixels are in each other's windows, and the prior of a window's taps.
#pragma once

#include "../common/rows.h"

namespace robust_lr::cpu {

// The rows (or columns) of an image that share a window with a given row (or column), clipped to the image.
struct Span {
  Index first, count;
  Index tap;  // the row (or column) of the window at which the first of them lies
};

// The rows of the padded image in the windows of output row `out`; each next one is a tap further.
inline Span window_of(const Problem& p, Index out, Index size) {
  const Index start = p.window_start(out), first = std::max<Index>(0, start);
  return {first, std::min(size + 2 * p.padding, start + p.kernel) - first, first - start};
}

// The output rows in whose windows row `i` of the padded image lies; each next one is `stride` taps back.
inline Span viewers_of(const Problem& p, Index i, Index out_size) {
  const Index first = p.first_query(i);
  return {first, p.last_query(i, out_size) - first + 1, i - p.window_start(first)};
}

// Fills lanes [K * K] with the prior [groups, K * K] of a block's planes; with zeros if there is none. Before a
// softmax, which this does not change, the largest is subtracted: then zero is an upper bound of logits whose Phi is
// `kBounded`.
template <class A>
void load_prior(const Image<A>& prior, const Problem& p, const Block<A>& block, Vec<A>* lanes) {
  if (prior.data == nullptr) {
    std::fill(lanes, lanes + p.taps(), Vec<A>{});
    return;
  }
  Planes<A>(prior, block, 1, 1, p.groups).load(0, p.taps(), lanes);
  if (!p.softmax) return;
  Vec<A> largest = broadcast(-std::numeric_limits<A>::infinity());
  for (Index tap = 0; tap < p.taps(); ++tap) largest = larger<A>(lanes[tap], largest);
  for (Index tap = 0; tap < p.taps(); ++tap) lanes[tap] -= largest;
}

}  // namespace robust_lr::cpu
