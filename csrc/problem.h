// The sizes and options of one call of the local relation operator, for every backend.
#pragma once

#include <algorithm>
#include <cstdint>

namespace robust_lr {

using Index = std::int64_t;

// In the order of `Composability` in robust_lr/ops/reference.py.
enum class Composability : Index { squared_difference, absolute_difference, product };

// Channels of the image that the stem's kernels take, at most; MAX_INPUTS in robust_lr/ops/stem_relation.py.
inline constexpr int kMaxInputs = 4;

// Channels of a group that a kernel works on at a time.
inline constexpr int kChannels = 8;

inline constexpr double kLog2e = 1.4426950408889634;

struct Problem {
  Index batch, channels, height, width;  // of x
  Index groups, components;              // q and k have groups * components channels
  Index out_height, out_width;           // of q and y
  Index kernel, stride;
  Index shared;   // channels in a full group
  Index padding;  // rows and columns of zeros around the image that take part: none unless the border is "zero"
  Composability composability;
  bool softmax;

  Index taps() const { return kernel * kernel; }

  // Rows (and columns) below are those of the padded image. The first in the window of output row `h`, often negative:
  Index window_start(Index h) const { return h * stride + padding - kernel / 2; }

  // The first and last output rows whose windows hold row `i`; none where the first is greater.
  Index first_query(Index i) const { return (std::max<Index>(0, i - padding - kernel / 2) + stride - 1) / stride; }
  Index last_query(Index i, Index count) const { return std::min(count - 1, (i - padding + kernel / 2) / stride); }
};

}  // namespace robust_lr
