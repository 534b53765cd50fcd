// Division of a number below 2^31 by a divisor known on the host: two instructions instead of twenty.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

#include "elements.h"

namespace robust_lr::cuda {

struct Divisor {
  unsigned divisor = 1, magic = 1u << 31;  // 2^shift / divisor, rounded up
  int shift = 31;

  Divisor() = default;
  explicit Divisor(int by) : divisor(unsigned(std::max(by, 1))), shift(31 + std::bit_width(divisor - 1)) {
    magic = unsigned(((std::uint64_t(1) << shift) + divisor - 1) / divisor);
  }
  __host__ __device__ int quotient(int of) const { return int(std::uint64_t(unsigned(of)) * magic >> shift); }
  // Replaces `of` by the quotient and returns the remainder.
  __host__ __device__ int divide(int& of) const {
    const int whole = of;
    of = quotient(whole);
    return whole - of * int(divisor);
  }
};

}  // namespace robust_lr::cuda
