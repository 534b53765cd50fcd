// Elements in memory (float, double, bfloat16) as lanes of a vector, and back.
#pragma once

#include <type_traits>

#include "vec.h"

namespace robust_lr {

using BFloat16 = std::uint16_t;  // its bits: the upper half of a float

inline float widen(float v) { return v; }
inline double widen(double v) { return v; }
inline float widen(BFloat16 v) {
  const std::uint32_t bits = std::uint32_t(v) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}

inline void narrow(float v, float* to) { *to = v; }
inline void narrow(double v, double* to) { *to = v; }
inline void narrow(float v, BFloat16* to) {  // to nearest, ties to even
  std::uint32_t bits;
  std::memcpy(&bits, &v, sizeof bits);
  *to = v == v ? (bits + 0x7fff + (bits >> 16 & 1)) >> 16 : 0x7fc0;
}

namespace detail {

template <class T, int N>
struct Piece {
  typedef T Type __attribute__((vector_size(N * sizeof(T))));
};

template <class T, int N, int... I>
inline auto join(typename Piece<T, N>::Type low, typename Piece<T, N>::Type high, std::integer_sequence<int, I...>) {
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(low, high, I...);
#else
  typename Piece<T, 2 * N>::Type both;
  std::memcpy(&both, &low, sizeof low);
  std::memcpy(reinterpret_cast<char*>(&both) + sizeof low, &high, sizeof high);
  return both;
#endif
}

// `Size` elements from Size / N places, `stride` apart.
template <int N, int Size, class T>
inline typename Piece<T, Size>::Type read(const T* from, std::int64_t stride) {
  typename Piece<T, Size>::Type v;
  if constexpr (Size == N) {
    std::memcpy(&v, from, sizeof v);
  } else {
    constexpr int half = Size / 2;
    v = join<T, half>(read<N, half>(from, stride), read<N, half>(from + half / N * stride, stride),
                      std::make_integer_sequence<int, Size>());
  }
  return v;
}

}  // namespace detail

// kLanes elements: N consecutive ones from each of kLanes / N places, `stride` apart.
template <class A, int N, class T>
inline Vec<A> read_pieces(const T* from, std::int64_t stride) {
  const auto v = detail::read<N, kLanes<A>>(from, stride);
  if constexpr (sizeof(T) == sizeof(A)) {
    return v;
  } else {
    return (Vec<A>)(__builtin_convertvector(v, Vec<std::uint32_t>) << 16);
  }
}

template <class A, int N, class T>
inline void write_pieces(Vec<A> v, T* to, std::int64_t stride) {
  T row[kLanes<A>];
  if constexpr (sizeof(T) == sizeof(A)) {
    std::memcpy(row, &v, sizeof v);
  } else {
    const auto bits = (Vec<std::uint32_t>)v;
    const auto rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const auto kept = __builtin_convertvector(v == v ? rounded : (rounded & 0) + 0x7fc0,
                                              typename detail::Piece<T, kLanes<A>>::Type);
    std::memcpy(row, &kept, sizeof kept);
  }
  for (int piece = 0; piece < kLanes<A> / N; ++piece) std::memcpy(to + piece * stride, row + piece * N, N * sizeof(T));
}

}  // namespace robust_lr
