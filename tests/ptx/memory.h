// What the C++ of translate.py needs: the memory of a GPU, watched by tests/cuda_checks/detector.cpp, and instructions
// that C++ has no operator for.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "../cuda_checks/detector.h"
#include "../cuda_shim/cuda_bf16.h"
#include "../cuda_shim/cuda_runtime.h"

namespace robust_lr::cuda {
extern float4 shared_memory[];
}

namespace ptx {

using Counts = std::array<std::uint64_t, 7>;  // KINDS of translate.py

struct Kernel {
  std::string name;
  void (*run)(const void* const* parameters);  // one thread
};
extern const std::vector<Kernel> kernels;
inline Counts counts[64];  // instructions that each kernel's threads executed, by kind

template <class To, class From>
To as(From v) {
  if constexpr (sizeof(To) == sizeof(From) && !std::is_same_v<To, bool>) {
    return std::bit_cast<To>(v);
  } else if constexpr (std::is_floating_point_v<From> || std::is_floating_point_v<To>) {
    static_assert(sizeof(To) == 0, "a float in a register of another size");
  } else {
    return To(v);
  }
}

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "PTX: %s\n", what);
  std::_Exit(1);
}

template <class E, int N>
std::array<E, N> read(const void* memory, bool watched) {
  if (std::uintptr_t(memory) % (sizeof(E) * N) != 0) fail("a load that is not aligned");
  if (watched) detector::watch(memory, sizeof(E) * N, false);
  std::array<E, N> found;
  std::memcpy(found.data(), memory, sizeof found);
  return found;
}
template <class E, int N>
void write(void* memory, const std::array<E, N>& values) {
  if (std::uintptr_t(memory) % (sizeof(E) * N) != 0) fail("a store that is not aligned");
  detector::watch(memory, sizeof(E) * N, true);
  std::memcpy(memory, values.data(), sizeof values);
}

inline char* shared(std::uint64_t offset) { return reinterpret_cast<char*>(robust_lr::cuda::shared_memory) + offset; }

template <class E, int N>
std::array<E, N> param_load(std::uint64_t at) {
  return read<E, N>(reinterpret_cast<const void*>(at), false);
}
template <class E, int N>
std::array<E, N> global_load(std::uint64_t at) {
  return read<E, N>(reinterpret_cast<const void*>(at), true);
}
template <class E, int N>
std::array<E, N> shared_load(std::uint64_t at) {
  return read<E, N>(shared(at), true);
}
template <class E, int N>
void global_store(std::uint64_t at, const std::array<E, N>& values) {
  write<E, N>(reinterpret_cast<void*>(at), values);
}
template <class E, int N>
void shared_store(std::uint64_t at, const std::array<E, N>& values) {
  write<E, N>(shared(at), values);
}

inline std::uint32_t shuffle(std::uint32_t v, std::uint32_t lanes) {
  return as<std::uint32_t>(shim::shuffle_xor(as<float>(v), int(lanes)));
}

inline std::uint32_t shuffle_from(std::uint32_t v, std::uint32_t lane) { return shim::shuffle_from(v, int(lane)); }

// A warp's product of matrices of bfloat16, which adds to `sums`.
inline std::array<float, 4> multiply(std::array<float, 4> sums, const std::array<std::uint32_t, 4>& left,
                                     const std::array<std::uint32_t, 2>& right) {
  float found[4];
  unsigned a[4], b[2];
  std::copy(sums.begin(), sums.end(), found);
  std::copy(left.begin(), left.end(), a);
  std::copy(right.begin(), right.end(), b);
  shim::multiply(found, a, b);
  std::copy(found, found + 4, sums.begin());
  return sums;
}

// `u` comparisons are true where an operand is NaN.
inline bool compare_f(float a, float b, bool result, bool unordered) {
  return std::isnan(a) || std::isnan(b) ? unordered : result;
}

template <class A>
A smaller(A a, A b) {
  if constexpr (std::is_same_v<A, float>) return std::fmin(a, b);
  return a < b ? a : b;
}
template <class A>
A larger(A a, A b) {
  if constexpr (std::is_same_v<A, float>) return std::fmax(a, b);
  return a > b ? a : b;
}
inline float larger_or_nan(float a, float b) {
  return std::isnan(a) || std::isnan(b) ? std::numeric_limits<float>::quiet_NaN() : std::fmax(a, b);
}
template <class A>
A quotient(A a, A b) {
  if (b == 0) fail("a division by zero");
  return a / b;
}
template <class A>
A remainder(A a, A b) {
  if (b == 0) fail("a division by zero");
  return a % b;
}
// Shifts by more than the size of a register have what all its bits leave, as on a GPU.
template <class A>
A shift_left(A v, std::uint32_t by) {
  return by >= 8 * sizeof(A) ? A(0) : A(v << by);
}
template <class A>
A shift_right(A v, std::uint32_t by) {
  if (by >= 8 * sizeof(A)) return std::is_signed_v<A> && v < 0 ? A(-1) : A(0);
  return A(v >> by);
}

// `to` with the lowest `count` bits of `from` at bit `first`.
inline std::uint32_t insert_bits(std::uint32_t from, std::uint32_t to, std::uint32_t first, std::uint32_t count) {
  const std::uint32_t mask = shift_left(shift_left(std::uint32_t(1), count) - 1, first);
  return (to & ~mask) | (shift_left(from, first) & mask);
}

// Makes denormal operands and results zero. The instruction errs by 2 units in the last place; this does not.
inline float exponential(float v) {
  if (std::fpclassify(v) == FP_SUBNORMAL) v = 0;
  const float found = std::exp2(v);
  return std::fpclassify(found) == FP_SUBNORMAL ? 0.f : found;
}

// The bytes of b:a that the digits of `which` name.
inline std::uint32_t permute(std::uint32_t a, std::uint32_t b, std::uint32_t which) {
  const std::uint64_t both = std::uint64_t(b) << 32 | a;
  std::uint32_t found = 0;
  for (int i = 0; i < 4; ++i) {
    const std::uint32_t digit = which >> (4 * i) & 15;
    std::uint32_t byte = std::uint32_t(both >> (8 * (digit & 7))) & 255;
    if (digit & 8) byte = byte & 128 ? 255 : 0;
    found |= byte << (8 * i);
  }
  return found;
}

inline std::uint16_t to_bfloat16(float v) { return __float2bfloat16_rn(v).bits; }
inline float from_bfloat16(std::uint16_t bits) { return as<float>(std::uint32_t(bits) << 16); }
inline std::uint32_t pair(float high, float low) { return std::uint32_t(to_bfloat16(high)) << 16 | to_bfloat16(low); }
inline std::uint32_t relu_pair(float high, float low) {
  return std::uint32_t(to_bfloat16(larger_or_nan(high, 0))) << 16 | to_bfloat16(larger_or_nan(low, 0));
}

}  // namespace ptx
