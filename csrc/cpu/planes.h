// Moves image planes between a tensor, NCHW or channels-last, and lanes.
//
// The CPU kernels give each lane of a vector a plane of its own: one group of one image. All lanes then do the same at
// the same pixel: windows are clipped exactly, no lane idles in a short row, a stride is nothing special, and a result
// cannot depend on the place of its image in the batch.
#pragma once

#include "../local_relation.h"
#include "elements.h"

namespace robust_lr {

template <class A>
class Planes;

// A tensor [N, C, pixels] with its strides in elements, of type A, or of bfloat16 where it is narrow.
template <class A>
struct Image {
  using Planes = robust_lr::Planes<A>;
  void* data;
  Index batch_stride, channel_stride, pixel_stride;
  bool narrow;
};

// The images and groups of kLanes consecutive planes; plane n * groups + g is group g of image n. Lanes past the last
// plane repeat it, and what they hold is not stored.
template <class A>
struct Block {
  int used;
  Index image[kLanes<A>], group[kLanes<A>];

  Block() = default;

  Block(const Problem& p, Index number) {
    const Index first = number * kLanes<A>;
    Index n = first / p.groups, g = first % p.groups;
    used = int(std::min<Index>(kLanes<A>, p.batch * p.groups - first));
    for (int lane = 0; lane < kLanes<A>; ++lane) {
      image[lane] = n;
      group[lane] = g;
      if (lane + 1 < used && ++g == p.groups) ++n, g = 0;
    }
  }

  static Index count(const Problem& p) { return (p.batch * p.groups + kLanes<A> - 1) / kLanes<A>; }
};

// The planes of one block in one tensor: `pitch` channels in each, fewer in a ragged last group, out of `total` in an
// image. In lanes they take `channels`, at least `pitch`.
template <class A>
class Planes {
  static constexpr int L = kLanes<A>;

 public:
  Planes(const Image<A>& image, const Block<A>& block, Index channels, Index pitch, Index total)
      : channels_(channels),
        channel_stride_(image.channel_stride),
        pixel_stride_(image.pixel_stride),
        narrow_(image.narrow),
        used_(block.used),
        least_(pitch) {
    const Index bytes = narrow_ ? sizeof(BFloat16) : sizeof(A);
    for (int lane = 0; lane < L; ++lane) {
      const Index first = block.group[lane] * pitch;
      const Index offset = block.image[lane] * image.batch_stride + first * image.channel_stride;
      lane_[lane] = static_cast<char*>(image.data) + offset * bytes;
      present_[lane] = std::min(pitch, total - first);
      least_ = std::min(least_, present_[lane]);
    }
  }

  // Reads pixels [first, first + count) into lanes [count][channels]; channels that a plane lacks become zero.
  void load(Index first, Index count, Vec<A>* lanes) const { move<false>(first, count, lanes); }

  // Writes them from lanes.
  void store(Index first, Index count, Vec<A>* lanes) const { move<true>(first, count, lanes); }

 private:
  template <bool kStore>
  void move(Index first, Index count, Vec<A>* lanes) const {
    if constexpr (std::is_same_v<A, float>) {
      if (narrow_) return move<BFloat16, kStore>(first, count, lanes);
    }
    move<A, kStore>(first, count, lanes);
  }

  static constexpr int kMany = std::min(8, L), kFew = std::min(4, L);

  // Squares of kLanes x kLanes elements are transposed in registers where pixels, or the channels of a group, are
  // neighbors in memory; what remains goes element by element.
  template <class T, bool kStore>
  void move(Index first, Index count, Vec<A>* lanes) const {
    if (pixel_stride_ == 1 && count >= L) {
      for (Index c = 0; c < channels_; ++c) move_squares<T, kStore, 1>(first, c, count, lanes + c);
    } else if (channel_stride_ == 1 && channels_ % L == 0) {
      for (Index c = 0; c < channels_; c += L) move_squares<T, kStore, L>(first, c, count, lanes + c);
    } else if (channel_stride_ == 1 && channels_ == kMany && count >= L / kMany) {
      move_squares<T, kStore, kMany>(first, 0, count, lanes);
    } else if (channel_stride_ == 1 && channels_ == kFew && count >= L / kFew) {
      move_squares<T, kStore, kFew>(first, 0, count, lanes);
    } else {
      for (Index i = 0; i < count; ++i) {
        Vec<A>* const pixel = lanes + i * channels_;
        for (Index c = 0; c < channels_; ++c) move_element<T, kStore>(offset(first + i, c), c, pixel[c]);
      }
    }
  }

  // Rows of a square hold `kChannels` channels of consecutive pixels.
  template <class T, bool kStore, int kChannels>
  void move_squares(Index first, Index channel, Index count, Vec<A>* lanes) const {
    if (channel + kChannels <= least_ && (!kStore || used_ == L)) {
      move_squares<T, kStore, kChannels, true>(first, channel, count, lanes);
    } else {
      move_squares<T, kStore, kChannels, false>(first, channel, count, lanes);
    }
  }

  // kWhole: no lane is idle and none lacks a channel.
  template <class T, bool kStore, int kChannels, bool kWhole>
  void move_squares(Index first, Index channel, Index count, Vec<A>* lanes) const {
    constexpr Index kPixels = L / kChannels;
    const Index stride = pixel_stride_, step = kChannels == 1 ? channels_ : 1;
    for (Index i = 0; i < count; i += kPixels) {
      const Index start = std::min(i, count - kPixels);  // the last square overlaps the one before
      const Index at = offset(first + start, channel);
      Vec<A>* const square = lanes + start * channels_;
      Vec<A> rows[L];
      if constexpr (kStore) {
        for (int r = 0; r < L; ++r) rows[r] = square[r * step];
        transpose<A>(rows);
        for (int lane = 0; lane < (kWhole ? L : used_); ++lane) {
          const Index present = kWhole ? kChannels : std::clamp<Index>(present_[lane] - channel, 0, kChannels);
          write<kChannels>(rows[lane], pointer<T>(lane) + at, stride, present);
        }
      } else {
        for (int lane = 0; lane < L; ++lane) {
          const Index present = kWhole ? kChannels : std::clamp<Index>(present_[lane] - channel, 0, kChannels);
          rows[lane] = read<kChannels>(pointer<T>(lane) + at, stride, present);
        }
        transpose<A>(rows);
        for (int r = 0; r < L; ++r) square[r * step] = rows[r];
      }
    }
  }

  // A row of a square: `present` of its channels at each of L / kChannels pixels, zero for the others.
  template <int kChannels, class T>
  static Vec<A> read(const T* from, Index stride, Index present) {
    if (present == kChannels) return read_pieces<A, kChannels == 1 ? L : kChannels>(from, stride);
    T row[L] = {};
    for (int pixel = 0; pixel < L / kChannels; ++pixel)
      for (Index c = 0; c < present; ++c) row[pixel * kChannels + c] = from[pixel * stride + c];
    return read_pieces<A, L>(row, 0);
  }

  template <int kChannels, class T>
  static void write(Vec<A> v, T* to, Index stride, Index present) {
    if (present == kChannels) return write_pieces<A, kChannels == 1 ? L : kChannels>(v, to, stride);
    T row[L];
    write_pieces<A, L>(v, row, 0);
    for (int pixel = 0; pixel < L / kChannels; ++pixel)
      for (Index c = 0; c < present; ++c) to[pixel * stride + c] = row[pixel * kChannels + c];
  }

  template <class T, bool kStore>
  void move_element(Index at, Index channel, Vec<A>& v) const {
    for (int lane = 0; lane < L; ++lane) {
      if constexpr (kStore) {
        if (lane < used_ && channel < present_[lane]) narrow(v[lane], pointer<T>(lane) + at);
      } else {
        v[lane] = channel < present_[lane] ? widen(pointer<T>(lane)[at]) : A(0);
      }
    }
  }

  template <class T>
  T* pointer(int lane) const {
    return reinterpret_cast<T*>(lane_[lane]);
  }

  Index offset(Index pixel, Index channel) const { return pixel * pixel_stride_ + channel * channel_stride_; }

  Index channels_, channel_stride_, pixel_stride_;
  bool narrow_;
  int used_;
  Index least_;  // channels that all planes have
  char* lane_[L];
  Index present_[L];
};

}  // namespace robust_lr
