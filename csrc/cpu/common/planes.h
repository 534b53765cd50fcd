// Moves image planes between a tensor (NCHW or channels-last) and the lanes of vectors.
//
// In the CPU kernels, each lane of a vector holds a different plane: one group of one image. All lanes then perform the
// same operations at the same pixel. Windows are clipped exactly, short rows leave no lane idle, strides need no
// special case, and a result cannot depend on the position of its image in the batch.
#pragma once

#include "../../problem.h"
#include "elements.h"

namespace robust_lr::cpu {

template <class A>
class Planes;

// A tensor [N, C, pixels] with its strides in elements, of type A, or of bfloat16 if it is narrow.
template <class A>
struct Image {
  using Planes = robust_lr::cpu::Planes<A>;
  void* data;
  Index batch_stride, channel_stride, pixel_stride;
  bool narrow;
};

// The images and groups of kLanes planes. Lanes after the last plane repeat it, and are not stored.
template <class A>
struct Block {
  // Lanes with neighboring groups of one image.
  struct Neighbors {
    int first, count;
  };

  int used, neighbor_count = 0;
  Index image[kLanes<A>], group[kLanes<A>];
  Neighbors neighbors[kLanes<A>];
  Index last_group = 0;  // of all lanes

  // Block `number` of all planes; plane n * groups + g is group g of image n.
  Block(const Problem& p, Index number)
      : Block(int(std::min<Index>(kLanes<A>, p.batch * p.groups - number * kLanes<A>)), number * kLanes<A> / p.groups,
              number * kLanes<A> % p.groups, 0, p.groups) {}

  // `used` planes from group `g` of image `n` on, of the groups from `first` to `end` of each image.
  Block(int used, Index n, Index g, Index first, Index end) : used(used) {
    for (int lane = 0; lane < kLanes<A>; ++lane) {
      image[lane] = n;
      group[lane] = g;
      if (lane >= used) continue;
      if (lane == 0 || g == first) neighbors[neighbor_count++] = {lane, 0};
      ++neighbors[neighbor_count - 1].count;
      last_group = std::max(last_group, g);
      if (lane + 1 < used && ++g == end) ++n, g = first;
    }
  }

  static Index count(const Problem& p) { return (p.batch * p.groups + kLanes<A> - 1) / kLanes<A>; }

  // Number of channels of the plane in a lane, where groups have `pitch` of `total` channels, the last one fewer.
  Index channels(int lane, Index pitch, Index total) const { return std::min(pitch, total - group[lane] * pitch); }
};

// The planes of one block in one tensor. Each has `pitch` of the `total` channels of an image, fewer in a ragged last
// group. In lanes a plane has `channels` channels, at least `pitch`.
template <class A>
class Planes {
  static constexpr int L = kLanes<A>, R = kRun<A>;

 public:
  // `block` must outlive the planes.
  Planes(const Image<A>& image, const Block<A>& block, Index channels, Index pitch, Index total)
      : channels_(channels),
        pitch_(pitch),
        total_(total),
        channel_stride_(image.channel_stride),
        pixel_stride_(image.pixel_stride),
        narrow_(image.narrow),
        least_(std::min(pitch, total - block.last_group * pitch)),
        block_(block) {
    const Index bytes = narrow_ ? sizeof(BFloat16) : sizeof(A), step = pitch * image.channel_stride * bytes;
    for (int n = 0; n < block.neighbor_count; ++n) {
      const int first = block.neighbors[n].first, end = first + block.neighbors[n].count;
      char* place =
          static_cast<char*>(image.data) + block.image[first] * image.batch_stride * bytes + block.group[first] * step;
      for (int lane = first; lane < end; ++lane, place += step) lane_[lane] = place;
    }
    for (int lane = block.used; lane < L; ++lane) lane_[lane] = lane_[block.used - 1];
  }

  // Reads pixels [first, first + count) into lanes [count][channels]; missing channels become zero.
  void load(Index first, Index count, Vec<A>* lanes) const { move<false>(first, count, lanes); }

  // Writes pixels from lanes.
  void store(Index first, Index count, Vec<A>* lanes) const { move<true>(first, count, lanes); }

 private:
  template <bool kStore>
  void move(Index first, Index count, Vec<A>* lanes) const {
    if constexpr (std::is_same_v<A, float>) {
      if (narrow_) return move<BFloat16, kStore>(first, count, lanes);
    }
    move<A, kStore>(first, count, lanes);
  }

  // Runs of pixels, or of channels of a group, that are contiguous in memory are transposed in registers; the remaining
  // elements are moved one by one.
  template <class T, bool kStore>
  void move(Index first, Index count, Vec<A>* lanes) const {
    if (pixel_stride_ == 1 && count >= R) {
      for (Index c = 0; c < channels_; ++c) {
        with_whole<kStore>(c, [&](auto whole) { move_pixels<T, kStore, whole>(first, c, count, lanes + c); });
      }
    } else if (channel_stride_ == 1 && channels_ % R == 0) {
      for (Index c = 0; c < channels_; c += R) {
        with_whole<kStore>(c + R - 1, [&](auto whole) { move_channels<T, kStore, whole>(first, c, count, lanes + c); });
      }
    } else if (channels_ == 1 && pitch_ == 1 && channel_stride_ == 1) {
      move_neighbors<T, kStore>(first, count, lanes);
    } else {
      for (Index i = 0; i < count; ++i) {
        Vec<A>* const pixel = lanes + i * channels_;
        for (Index c = 0; c < channels_; ++c) move_element<T, kStore>(offset(first + i, c), c, pixel[c]);
      }
    }
  }

  // Calls f with true (as a constant) if no lane is idle and every plane has this channel, else with false.
  template <bool kStore, class F>
  void with_whole(Index channel, F f) const {
    channel < least_ && (!kStore || block_.used == L) ? f(std::true_type()) : f(std::false_type());
  }

  // Both loops are functions that are not inlined, so that surrounding code does not occupy their registers.
  template <class T, bool kStore, bool kWhole>
  __attribute__((noinline)) void move_pixels(Index first, Index channel, Index count, Vec<A>* lanes) const {
    for (Index i = 0; i < count; i += R) {
      const Index start = std::min(i, count - R);  // the last run overlaps the one before
      const Index at = offset(first + start, channel);
      if (i % (4 * R) == 0) prefetch<T, kStore>(at + count);
      move_runs<T, kStore, 1, kWhole>(at, channel, lanes + start * channels_, channels_);
    }
  }

  template <class T, bool kStore, bool kWhole>
  __attribute__((noinline)) void move_channels(Index first, Index channel, Index count, Vec<A>* lanes) const {
    Index at = offset(first, channel);
    for (Index i = 0; i < count; ++i, at += pixel_stride_) {
      if (channel == 0) prefetch<T, kStore>(at + count * pixel_stride_);
      move_runs<T, kStore, R, kWhole>(at, channel, lanes + i * channels_, 1);
    }
  }

  // Planes of one channel each, such as queries and keys: those of one image are contiguous in memory.
  template <class T, bool kStore>
  __attribute__((noinline)) void move_neighbors(Index first, Index count, Vec<A>* lanes) const {
    if constexpr (std::is_same_v<T, A>) {
      if (block_.neighbors[0].count == L) return move_runs_of<kStore, L>(first, count, lanes);
      if (block_.neighbor_count == 2 && block_.neighbors[0].count == L / 2 && block_.neighbors[1].count == L / 2)
        return move_runs_of<kStore, L / 2>(first, count, lanes);
    }
    for (Index i = 0; i < count; ++i) {
      const Index at = offset(first + i, 0);
#if defined(__AVX512F__)
      if constexpr (std::is_same_v<A, float>) {
        __m512 v = kStore ? (__m512)lanes[i] : _mm512_setzero_ps();
        for (int n = 0; n < block_.neighbor_count; ++n) {
          const auto& some = block_.neighbors[n];
          const __mmask16 mask = __mmask16(((1u << some.count) - 1) << some.first);
          T* const place = pointer<T>(some.first) + at - some.first;
          if constexpr (std::is_same_v<T, float>) {
            if constexpr (kStore)
              _mm512_mask_storeu_ps(place, mask, v);
            else
              v = _mm512_mask_loadu_ps(v, mask, place);
          } else if constexpr (kStore) {
            store_bfloat16(v, place, mask);
          } else {
            v = _mm512_or_ps(v, load_bfloat16(place, mask));
          }
        }
        if constexpr (!kStore) lanes[i] = (Vec<A>)v;
        continue;
      }
#endif
      if constexpr (!kStore) lanes[i] = Vec<A>{};
      for (int n = 0; n < block_.neighbor_count; ++n) {
        const int begin = block_.neighbors[n].first, end = begin + block_.neighbors[n].count;
        T* const place = pointer<T>(begin) + at;
        for (int lane = begin; lane < end; ++lane) {
          if constexpr (kStore)
            narrow(lanes[i][lane], place + lane - begin);
          else
            lanes[i][lane] = widen(place[lane - begin]);
        }
      }
    }
  }

  // Does the same where all neighbors come in runs of kCount lanes, without masks.
  template <bool kStore, int kCount>
  void move_runs_of(Index first, Index count, Vec<A>* lanes) const {
    const Index begin = offset(first, 0);
    for (Index i = 0; i < count; ++i) {
#pragma GCC unroll 2
      for (int lane = 0; lane < L; lane += kCount) {
        A* const place = pointer<A>(lane) + begin + i * pixel_stride_;
        A* const run = reinterpret_cast<A*>(lanes + i) + lane;
        kStore ? std::memcpy(place, run, kCount * sizeof(A)) : std::memcpy(run, place, kCount * sizeof(A));
      }
    }
  }

  // The next call will most likely move the next row.
  template <class T, bool kStore>
  void prefetch(Index at) const {
#pragma GCC unroll 16
    for (int lane = 0; lane < L; ++lane) __builtin_prefetch(pointer<T>(lane) + at, kStore);
  }

  // Moves one run of each lane: of pixels, or of kPerLane channels of one pixel. `lanes` are `step` apart.
  template <class T, bool kStore, int kPerLane, bool kWhole>
  void move_runs(Index at, Index channel, Vec<A>* lanes, Index step) const {
    constexpr auto places = std::make_integer_sequence<int, L / R>();
    Vec<A> rows[R];  // row r has the runs of lanes r, r + R, r + 2R, ...
    if constexpr (kStore) {
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) rows[r] = lanes[r * step];
      transpose_runs<A>(rows);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) write_row<T, kPerLane, kWhole>(rows[r], r, at, channel, places);
    } else {
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) rows[r] = read_row<T, kPerLane, kWhole>(r, at, channel, places);
      transpose_runs<A>(rows);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) lanes[r * step] = rows[r];
    }
  }

  template <class T, int kPerLane, bool kWhole, int... Place>
  Vec<A> read_row(int r, Index at, Index channel, std::integer_sequence<int, Place...>) const {
    Vec<A> row = {};
    ((row = put<A, Place>(row, read<T, kPerLane, kWhole>(Place * R + r, at, channel))), ...);
    return row;
  }

  template <class T, int kPerLane, bool kWhole, int... Place>
  void write_row(Vec<A> row, int r, Index at, Index channel, std::integer_sequence<int, Place...>) const {
    (write<T, kPerLane, kWhole>(take<A, Place>(row), Place * R + r, at, channel), ...);
  }

  // Number of elements of a run that belong to one lane.
  template <int kPerLane>
  int present(int lane, Index channel) const {
    return std::clamp<Index>(channels_of(lane) - channel, 0, kPerLane) * (R / kPerLane);
  }

  template <class T, int kPerLane, bool kWhole>
  Run<A> read(int lane, Index at, Index channel) const {
    const T* const from = pointer<T>(lane) + at;
    if (kWhole || present<kPerLane>(lane, channel) == R) return read_run<A>(from);
    T run[R] = {};
    for (int i = 0; i < present<kPerLane>(lane, channel); ++i) run[i] = from[i];
    return read_run<A>(run);
  }

  template <class T, int kPerLane, bool kWhole>
  void write(Run<A> v, int lane, Index at, Index channel) const {
    if (!kWhole && lane >= block_.used) return;
    T* const to = pointer<T>(lane) + at;
    if (kWhole || present<kPerLane>(lane, channel) == R) return write_run<A>(v, to);
    T run[R];
    write_run<A>(v, run);
    for (int i = 0; i < present<kPerLane>(lane, channel); ++i) to[i] = run[i];
  }

  template <class T, bool kStore>
  void move_element(Index at, Index channel, Vec<A>& v) const {
    for (int lane = 0; lane < L; ++lane) {
      if constexpr (kStore) {
        if (lane < block_.used && channel < channels_of(lane)) narrow(v[lane], pointer<T>(lane) + at);
      } else {
        v[lane] = channel < channels_of(lane) ? widen(pointer<T>(lane)[at]) : A(0);
      }
    }
  }

  template <class T>
  T* pointer(int lane) const {
    return reinterpret_cast<T*>(lane_[lane]);
  }

  Index offset(Index pixel, Index channel) const { return pixel * pixel_stride_ + channel * channel_stride_; }

  Index channels_of(int lane) const { return block_.channels(lane, pitch_, total_); }

  Index channels_, pitch_, total_, channel_stride_, pixel_stride_;
  bool narrow_;
  Index least_;  // channels that all planes have
  char* lane_[L];
  const Block<A>& block_;
};

}  // namespace robust_lr::cpu
