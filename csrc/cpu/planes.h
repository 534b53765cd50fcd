// Moves image planes between a tensor, NCHW or channels-last, and lanes.
//
// The CPU kernels give each lane of a vector a plane of its own: one group of one image. All lanes then do the same at
// the same pixel: windows are clipped exactly, no lane idles in a short row, a stride is nothing special, and a result
// cannot depend on the place of its image in the batch.
#pragma once

#include <algorithm>

#include "../local_relation.h"
#include "vec.h"

namespace robust_lr {

struct BFloat16 {
  std::uint16_t bits;
};

// The type that elements of type T are computed in.
template <class T>
struct Wide {
  using Type = T;
};
template <>
struct Wide<BFloat16> {
  using Type = float;
};
template <class T>
using WideOf = typename Wide<T>::Type;

inline float widen(float v) { return v; }
inline double widen(double v) { return v; }
inline float widen(BFloat16 v) {
  const std::uint32_t bits = std::uint32_t(v.bits) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}

inline void narrow(float v, float* to) { *to = v; }
inline void narrow(double v, double* to) { *to = v; }
inline void narrow(float v, BFloat16* to) {  // to nearest, ties to even
  std::uint32_t bits;
  std::memcpy(&bits, &v, sizeof bits);
  to->bits = v == v ? (bits + 0x7fff + (bits >> 16 & 1)) >> 16 : 0x7fc0;
}

// kLanes elements of T in memory order, as a vector.
template <class T>
Vec<WideOf<T>> read_row(const T* from) {
  if constexpr (sizeof(T) == sizeof(WideOf<T>)) {
    return load_unaligned(from);
  } else {
    typedef std::uint16_t Half __attribute__((vector_size(kVectorBytes / 2)));
    Half half;
    std::memcpy(&half, from, sizeof half);
    return (Vec<float>)(__builtin_convertvector(half, Vec<std::uint32_t>) << 16);
  }
}

template <class T>
void write_row(Vec<WideOf<T>> v, T* to) {
  if constexpr (sizeof(T) == sizeof(WideOf<T>)) {
    std::memcpy(to, &v, sizeof v);
  } else {
    typedef std::uint16_t Half __attribute__((vector_size(kVectorBytes / 2)));
    const auto bits = (Vec<std::uint32_t>)v;
    const auto rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // to nearest, ties to even
    const auto kept = v == v ? rounded : (rounded & 0) + 0x7fc0;      // NaN
    const Half half = __builtin_convertvector(kept, Half);
    std::memcpy(to, &half, sizeof half);
  }
}

// The same from kLanes / N places `stride` apart, N elements each.
template <int N, class T>
Vec<WideOf<T>> read_pieces(const T* from, Index stride) {
  constexpr int L = kLanes<WideOf<T>>;
  if constexpr (N == L) {
    return read_row(from);
  } else {
    T row[L];
    for (int piece = 0; piece < L / N; ++piece) std::memcpy(row + piece * N, from + piece * stride, N * sizeof(T));
    return read_row(row);
  }
}

// A tensor [N, C, pixels] with its strides in elements.
template <class T>
struct Image {
  T* data;
  Index batch_stride, channel_stride, pixel_stride;
};

// The images and groups of kLanes consecutive planes; plane n * groups + g is group g of image n. Lanes past the last
// plane repeat it, and what they hold is not stored.
template <class A>
struct Block {
  Index first_group;
  int used;
  Index image[kLanes<A>], group[kLanes<A>];

  Block(const Problem& p, Index number) {
    const Index first = number * kLanes<A>;
    Index n = first / p.groups, g = first % p.groups;
    first_group = g;
    used = int(std::min<Index>(kLanes<A>, p.batch * p.groups - first));
    for (int lane = 0; lane < kLanes<A>; ++lane) {
      image[lane] = n;
      group[lane] = g;
      if (lane + 1 < used && ++g == p.groups) ++n, g = 0;
    }
  }
};

// The planes of one block in one tensor, with `channels` in each; the last group of an image may have fewer.
template <class T>
class Planes {
  using A = WideOf<T>;
  static constexpr int L = kLanes<A>;

 public:
  Planes(const Image<T>& image, const Block<A>& block, Index channels, Index total)
      : channels_(channels), channel_stride_(image.channel_stride), pixel_stride_(image.pixel_stride), used_(block.used) {
    for (int lane = 0; lane < L; ++lane) {
      const Index first = block.group[lane] * channels;
      lane_[lane] = image.data + block.image[lane] * image.batch_stride + first * image.channel_stride;
      present_[lane] = std::min(channels, total - first);
    }
  }

  // Read pixels [first, first + count) into lanes [count][channels]; channels that a plane lacks become zero.
  void load(Index first, Index count, Vec<A>* lanes) const { move<false>(first, count, lanes); }
  // Write them from lanes.
  void store(Index first, Index count, Vec<A>* lanes) const { move<true>(first, count, lanes); }

 private:
  // Squares of kLanes x kLanes elements are transposed in registers where pixels, or the channels of a group, are
  // neighbors in memory; what remains goes element by element.
  template <bool kStore>
  void move(Index first, Index count, Vec<A>* lanes) const {
    if (pixel_stride_ == 1 && count >= L) {
      for (Index c = 0; c < channels_; ++c) move_squares<kStore, 1>(first, c, count, lanes + c);
    } else if (channel_stride_ == 1 && channels_ == 8 && 8 <= L && count >= L / 8) {
      move_squares<kStore, 8>(first, 0, count, lanes);
    } else if (channel_stride_ == 1 && channels_ == 4 && 4 <= L && count >= L / 4) {
      move_squares<kStore, 4>(first, 0, count, lanes);
    } else {
      for (Index i = 0; i < count; ++i)
        for (Index c = 0; c < channels_; ++c) move_element<kStore>(offset(first + i, c), c, lanes[i * channels_ + c]);
    }
  }

  // A row of a square holds `Channels` channels (the whole group, or one) of consecutive pixels.
  template <bool kStore, int Channels>
  void move_squares(Index first, Index channel, Index count, Vec<A>* lanes) const {
    constexpr int pixels = L / Channels;
    const Index step = Channels == 1 ? channels_ : 1;
    for (Index i = 0; i < count; i += pixels) {
      const Index start = std::min(i, count - pixels);  // the last square overlaps the one before
      const Index at = offset(first + start, channel);
      Vec<A>* const square = lanes + start * channels_;
      Vec<A> rows[L];
      if constexpr (kStore) {
        for (int r = 0; r < L; ++r) rows[r] = square[r * step];
        transpose<A>(rows);
        for (int lane = 0; lane < used_; ++lane) write<Channels>(rows[lane], lane_[lane] + at, present_[lane] - channel);
      } else {
        for (int lane = 0; lane < L; ++lane) rows[lane] = read<Channels>(lane_[lane] + at, present_[lane] - channel);
        transpose<A>(rows);
        for (int r = 0; r < L; ++r) square[r * step] = rows[r];
      }
    }
  }

  template <int Channels>
  Vec<A> read(const T* from, Index present) const {
    if constexpr (Channels == 1) {
      return present > 0 ? read_row(from) : Vec<A>{};
    } else if (present >= Channels) {
      return read_pieces<Channels>(from, pixel_stride_);
    } else {
      T row[L] = {};
      for (int pixel = 0; pixel < L / Channels; ++pixel)
        for (Index c = 0; c < present; ++c) row[pixel * Channels + c] = from[pixel * pixel_stride_ + c];
      return read_row(row);
    }
  }

  template <int Channels>
  void write(Vec<A> v, T* to, Index present) const {
    if constexpr (Channels == 1) {
      if (present > 0) write_row(v, to);
    } else {
      T row[L];
      write_row(v, row);
      for (int pixel = 0; pixel < L / Channels; ++pixel) {
        if (present >= Channels) {
          std::memcpy(to + pixel * pixel_stride_, row + pixel * Channels, Channels * sizeof(T));
        } else {
          for (Index c = 0; c < present; ++c) to[pixel * pixel_stride_ + c] = row[pixel * Channels + c];
        }
      }
    }
  }

  template <bool kStore>
  void move_element(Index at, Index channel, Vec<A>& v) const {
    for (int lane = 0; lane < L; ++lane) {
      if constexpr (kStore) {
        if (lane < used_ && channel < present_[lane]) narrow(v[lane], lane_[lane] + at);
      } else {
        v[lane] = channel < present_[lane] ? widen(lane_[lane][at]) : A(0);
      }
    }
  }

  Index offset(Index pixel, Index channel) const { return pixel * pixel_stride_ + channel * channel_stride_; }

  Index channels_, channel_stride_, pixel_stride_;
  int used_;
  T* lane_[L];
  Index present_[L];
};

}  // namespace robust_lr
