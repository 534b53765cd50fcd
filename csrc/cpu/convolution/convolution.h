// Convolution, bias, addition of a shortcut and ReLU in one pass over channels-last images, and the gradient with
// respect to the input. The weights are packed in advance, because an attack makes many passes with the same weights.
//
// This is an indirect convolution (Dukhan 2019): every output pixel is a product of the weights and the input pixels
// under the taps, which are given by pointers; outside the image these point to zeros. The order of summation for a
// pixel does not depend on the batch.
#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

#include "../common/parallel.h"
#include "products.h"

namespace robust_lr::cpu {

template <class A>
struct Pixels {  // [N, height, width, channels]
  A* data;
  Index batch, height, width, channels;

  A* at(Index n, Index h, Index w) const { return data + ((n * height + h) * width + w) * channels; }
};

struct Window {
  Index size, stride, padding;
  Index taps() const { return size * size; }
  bool fits(Index height, Index width) const { return std::min(height, width) + 2 * padding >= size; }
  // The height (or width) of the result for an image of this height (or width).
  Index size_after(Index before) const { return (before + 2 * padding - size) / stride + 1; }
};

// Pixels are computed in blocks of this many.
inline constexpr int kPixelsAtOnce = 8;

// Pixels of a block whose sums are in registers at the same time, for a panel of `width` vectors. Eight sums hide the
// latency of a multiply-add; sixteen registers, as processors without AVX-512 have, leave room for twelve.
constexpr int pixels_in_registers(int width) { return kVectorBytes == 64 || width == 1 ? kPixelsAtOnce : 4; }

// Images with at most this many results are computed kPixelsAtOnce at a time, position by position, without the taps
// outside the image. In larger images such taps are few, and the pixels of different images are too far apart.
inline constexpr Index kSmallImage = 256;

// Weights [taps, inputs, outputs] in panels of at most kWide vectors of outputs, one after the other.
template <class A>
class Panels {
 public:
  static constexpr int L = kLanes<A>, kWide = 3;

  explicit Panels(Index outputs) : vectors((outputs + L - 1) / L), count((vectors + kWide - 1) / kWide) {}

  Index first(Index panel) const { return vectors * panel / count; }  // vector
  Index width(Index panel) const { return first(panel + 1) - first(panel); }
  // Returns true if half a vector is enough for the last outputs of the panel.
  bool ends_in_half(Index panel, Index outputs) const {
    return panel + 1 == count && outputs % L != 0 && outputs % L <= L / 2;
  }

  const Index vectors, count;
};

// Products take `kStep` inputs at a time, so the inputs are padded with zeros to a multiple of it.
template <class P>
Index whole_steps(Index inputs) {
  return (inputs + P::kStep - 1) / P::kStep * P::kStep;
}

template <class P>
Index packed_size(Index inputs, Index outputs, Index taps) {
  using Sum = typename P::Sum;
  return Panels<Sum>(outputs).vectors * kLanes<Sum> * whole_steps<P>(inputs) * taps;
}

// Packs `weight` [outputs, inputs, taps], or its transpose for the gradient, into Panels with the inputs of a product
// side by side.
template <class P>
void pack(const typename P::Sum* weight, Index outputs, Index inputs, Index taps, bool transposed,
          typename P::Element* to) {
  using A = typename P::Sum;
  const Index rows = transposed ? outputs : inputs, columns = transposed ? inputs : outputs;
  const Panels<A> panels(columns);
  constexpr int L = Panels<A>::L;
  for (Index panel = 0; panel < panels.count; ++panel)
    for (Index tap = 0; tap < taps; ++tap)
      for (Index r = 0; r < rows; r += P::kStep)
        for (Index c = panels.first(panel) * L; c < panels.first(panel + 1) * L; ++c)
          for (Index s = r; s < r + P::kStep; ++s)
            narrow(c < columns && s < rows ? weight[(transposed ? s * inputs + c : c * inputs + s) * taps + tap] : A(0),
                   to++);
}

// Operations on the sums before they are stored.
template <class P>
struct Finish {
  const typename P::Sum* bias = nullptr;          // [channels], or null
  const typename P::Element* shortcut = nullptr;  // like the result, or null
  bool relu = false;
  const typename P::Element* mask = nullptr;  // like the result, or null: where it is not above zero, the result is 0
};

// Results at every `place`-th pixel from (top, left) on. Each is a sum over taps of the source at `step` times the
// index of its row (or column) plus an offset.
struct Grid {
  struct Tap {
    Index number, down, across;
  };
  Index place, top, left, step;
  std::vector<Tap> taps;
};

template <class P>
class Convolution {
  using A = typename P::Sum;
  using T = typename P::Element;
  static constexpr int L = kLanes<A>, kRows = kPixelsAtOnce;
  using V = Vec<A>;

  // A tap, and the offset of the pixel under it.
  struct Used {
    Index number, offset;
  };

  // Pixels at equal distances, a multiple of kRows, and the taps to sum.
  struct Line {
    const T* origin;
    Index step, place, place_step;
    const Used* taps;
    Index tap_count, count;

    // Both return a function of i, which gives the address (or the place in the result) of pixel `begin` + i.
    auto pixels_under(Index tap, Index begin) const {
      return [step = step, first = origin + taps[tap].offset + begin * step](int i) { return first + i * step; };
    }
    auto places_from(Index begin) const {
      return [step = place_step, first = place + begin * place_step](int i) { return first + i * step; };
    }
  };

  // At most kRows pixels at arbitrary addresses, tap by tap. Fewer are filled up with copies of the last.
  struct Scattered {
    const T* const* pixels;
    const Index* places;
    const Used* taps;
    Index tap_count, count;

    auto pixels_under(Index tap, Index begin) const {
      return [first = pixels + tap * kRows + begin](int i) { return first[i]; };
    }
    auto places_from(Index begin) const {
      return [first = places + begin](int i) { return first[i]; };
    }
  };

 public:
  Convolution(const Grid& grid, Index taps, Pixels<const T> from, const T* weights, Pixels<T> to,
              const Finish<P>& finish)
      : grid(grid),
        taps(taps),
        from(from),
        weights(weights),
        to(to),
        finish(finish),
        panels(to.channels),
        height(std::max<Index>(0, (to.height - grid.top + grid.place - 1) / grid.place)),
        width(std::max<Index>(0, (to.width - grid.left + grid.place - 1) / grid.place)),
        zeros(from.channels) {
    for (const Grid::Tap& tap : grid.taps)
      used_.push_back({tap.number, (tap.down * from.width + tap.across) * from.channels});
  }

  void run() const {
    const Index lined = is_pointwise() ? pixels() / kRows : is_small() ? to.batch / kRows * height * width : 0;
    run_lines(lined);
    run_scattered(lined * kRows, pixels());
  }

 private:
  Index pixels() const { return to.batch * height * width; }

  // Number of pixels in a task, small enough that their inputs stay in the cache for all panels.
  Index of_task(Index count) const {
    const Index tasks = 4 * thread_count(), share = (count + tasks - 1) / tasks;
    return std::clamp<Index>((share + kRows - 1) / kRows * kRows, kRows, 64);
  }

  // Returns true if every result depends only on the source pixel with the same index.
  bool is_pointwise() const {
    return grid.taps.size() == 1 && grid.place == 1 && grid.step == 1 && grid.taps[0].down == 0 &&
           grid.taps[0].across == 0 && from.height == to.height && from.width == to.width;
  }

  bool is_small() const { return height * width <= kSmallImage; }

  // Computes the first `blocks` blocks: of pixels in memory order, or of one position in kRows images.
  void run_lines(Index blocks) const {
    const Index each = of_task(blocks * kRows) / kRows;
    parallel_for((blocks + each - 1) / each, [&](Index begin, Index end) {
      std::vector<Line> lines(each);
      std::vector<Used> inside(each * used_.size());
      for (Index task = begin; task < end; ++task) {
        const Index first = task * each, count = std::min(each, blocks - first);
        const Index line_count = is_pointwise() ? 1 : count;
        for (Index i = 0; i < line_count; ++i)
          lines[i] = is_pointwise() ? consecutive(first, count) : across(first + i, inside.data() + i * used_.size());
        for (Index panel = 0; panel < panels.count; ++panel)
          for (Index i = 0; i < line_count; ++i) add_panel(lines[i], panel);
      }
    });
  }

  // Pixels in memory order: `count` blocks.
  Line consecutive(Index block, Index count) const {
    return {from.data + block * kRows * from.channels,
            from.channels,
            block * kRows * to.channels,
            to.channels,
            used_.data(),
            1,
            count * kRows};
  }

  // Computes one position in kRows images; `inside` receives the taps that are inside the image there.
  Line across(Index block, Used* inside) const {
    const Index n = block / (height * width) * kRows, h = block / width % height, w = block % width;
    const Index top = h * grid.step, left = w * grid.step;
    Index count = 0;
    for (std::size_t t = 0; t < used_.size(); ++t)
      if (is_inside(top + grid.taps[t].down, left + grid.taps[t].across)) inside[count++] = used_[t];
    return {from.at(n, top, left),
            from.height * from.width * from.channels,
            to.at(n, grid.top + h * grid.place, grid.left + w * grid.place) - to.data,
            to.height * to.width * to.channels,
            inside,
            count,
            kRows};
  }

  bool is_inside(Index row, Index column) const {
    return row >= 0 && row < from.height && column >= 0 && column < from.width;
  }

  // Computes pixels [begin, end).
  void run_scattered(Index begin, Index end) const {
    const Index each = of_task(end - begin);
    parallel_for((end - begin + each - 1) / each, [&](Index first_task, Index last_task) {
      std::vector<const T*> sources(each * grid.taps.size());
      std::vector<Index> places(each);
      for (Index task = first_task; task < last_task; ++task) {
        const Index first = begin + task * each, last = std::min(first + each, end);
        locate(first, last, sources.data(), places.data());
        for (Index panel = 0; panel < panels.count; ++panel)
          for (Index block = 0; block < last - first; block += kRows)
            add_panel(Scattered{sources.data() + block * grid.taps.size(), places.data() + block, used_.data(),
                                Index(used_.size()), std::min<Index>(kRows, last - first - block)},
                      panel);
      }
    });
  }

  // Finds the positions of pixels [first, last) in the result and, for each kRows of them, their source pixels by tap.
  void locate(Index first, Index last, const T** sources, Index* places) const {
    const Index count = grid.taps.size();
    Index n = first / (height * width), h = first / width % height, w = first % width;
    for (Index i = 0; i < (last - first + kRows - 1) / kRows * kRows; ++i) {
      places[i] = to.at(n, grid.top + h * grid.place, grid.left + w * grid.place) - to.data;
      const Index top = h * grid.step, left = w * grid.step;
      const T* const pixel = from.at(n, top, left);
      const T** const place = sources + i / kRows * kRows * count + i % kRows;
      for (Index t = 0; t < count; ++t) {
        const bool inside = is_inside(top + grid.taps[t].down, left + grid.taps[t].across);
        place[t * kRows] = inside ? pixel + used_[t].offset : zeros.data();
      }
      if (first + i + 1 >= last) continue;  // the last stands in for those that are not there
      if (++w == width) w = 0, ++h;
      if (h == height) h = 0, ++n;
    }
  }

  template <class Block>
  void add_panel(const Block& block, Index panel) const {
    if constexpr (P::kHalves) {
      if (panels.ends_in_half(panel, to.channels)) {
        switch (panels.width(panel)) {
          case 1: return add<0, true>(block, panel);
          case 2: return add<1, true>(block, panel);
          default: return add<2, true>(block, panel);
        }
      }
    }
    switch (panels.width(panel)) {
      case 1: return add<1, false>(block, panel);
      case 2: return add<2, false>(block, panel);
      default: return add<3, false>(block, panel);
    }
  }

  // Computes the outputs of a panel, `Width` vectors and half a vector if `Half`.
  template <int Width, bool Half, class Block>
  void add(const Block& given, Index panel) const {
    constexpr int kPixels = pixels_in_registers(Width), stride = (Width + Half) * L;
    using H = std::conditional_t<Half, HalfVec<A>, V>;
    const Index inputs = whole_steps<P>(from.channels), first = panels.first(panel) * L, lanes = to.channels - first;
    const T* const packed = weights + first * taps * inputs;
    // Copies that stores cannot change, so that they stay in registers.
    const Block block = given;
    const Finish<P> finish = this->finish;
    const Index channels = from.channels;
    T* const to = this->to.data;
    const auto bias = [&](auto zero, Index lane) {
      using Some = decltype(zero);
      return finish.bias != nullptr ? Products<A>::template read<Some>(finish.bias + first + lane, lanes - lane) : zero;
    };
    [[maybe_unused]] V biases[Width + !Width];
    [[maybe_unused]] H half_bias;
    for (int v = 0; v < Width; ++v) biases[v] = bias(V{}, v * L);
    if constexpr (Half) half_bias = bias(H{}, Width * L);
    for (Index begin = 0; begin < block.count; begin += kPixels) {
      [[maybe_unused]] V sums[kPixels][Width + !Width];
      [[maybe_unused]] H halves[kPixels];
#pragma GCC unroll 8
      for (int i = 0; i < kPixels; ++i) {
#pragma GCC unroll 3
        for (int v = 0; v < Width; ++v) sums[i][v] = biases[v];
        if constexpr (Half) halves[i] = half_bias;
      }
      for (Index t = 0; t < block.tap_count; ++t) {
        const auto pixels = block.pixels_under(t, begin);
        const T* tap = packed + block.taps[t].number * inputs * stride;
        const auto multiply = [&](Index c, auto pixel) {
          [[maybe_unused]] V weight[Width + !Width];
          [[maybe_unused]] H half;
#pragma GCC unroll 3
          for (int v = 0; v < Width; ++v) weight[v] = in_register(P::weights(tap + v * L * P::kStep));
          if constexpr (Half) half = load_half<A>(tap + Width * L);
#pragma GCC unroll 8
          for (int i = 0; i < kPixels; ++i) {
            if constexpr (Width == 0) {
              halves[i] += (pixels(i)[c] - H{}) * half;
            } else {
              const V x = pixel(pixels(i) + c);
#pragma GCC unroll 3
              for (int v = 0; v < Width; ++v) sums[i][v] = P::add(sums[i][v], x, weight[v]);
              if constexpr (Half) halves[i] += lower_half<A>(x) * half;
            }
          }
          tap += stride * P::kStep;
        };
        Index c = 0;
        for (; c + P::kStep <= channels; c += P::kStep) multiply(c, [](const T* from) { return P::pixel(from); });
        if (c < channels) multiply(c, [&](const T* last) { return P::last_pixel(last, channels - c); });
      }
      // Every step is applied to all sums before the next step, with constant indices, so that the sums stay in
      // registers.
      const auto places = block.places_from(begin);
      const auto each_sum = [&](auto f) {
#pragma GCC unroll 8
        for (int i = 0; i < kPixels; ++i) {
          const Index place = places(i) + first;
#pragma GCC unroll 3
          for (int v = 0; v < Width; ++v) f(sums[i][v], i, place + v * L, lanes - v * L);
          if constexpr (Half) f(halves[i], i, place + Width * L, lanes - Width * L);
        }
      };
      if (finish.shortcut != nullptr) {
        each_sum([&](auto& y, int, Index place, Index lanes) {
          y += P::template read<std::remove_cvref_t<decltype(y)>>(finish.shortcut + place, lanes);
        });
      }
      if (finish.relu) each_sum([](auto& y, int, Index, Index) { y = rectify(y); });
      if (finish.mask != nullptr) {
        each_sum([&](auto& y, int, Index place, Index lanes) {
          using Some = std::remove_cvref_t<decltype(y)>;
          y = P::template read<Some>(finish.mask + place, lanes) > 0 ? y : Some{};
        });
      }
      each_sum([&](auto& y, int i, Index place, Index lanes) {
        if (begin + i < block.count) P::write(y, to + place, lanes);
      });
    }
  }

  template <class Some>
  static Some rectify(Some y) {
    if constexpr (sizeof y == kVectorBytes)
      return larger<A>(Some{}, y);
    else
      return larger_half<A>(Some{}, y);
  }

  const Grid& grid;
  const Index taps;
  const Pixels<const T> from;
  const T* const weights;
  const Pixels<T> to;
  const Finish<P> finish;
  const Panels<A> panels;
  const Index height, width;
  const std::vector<T> zeros;
  std::vector<Used> used_;
};

template <class P, class T = typename P::Element>
void run_convolution(const Window& window, Pixels<const T> x, const T* weights, Pixels<T> y, const Finish<P>& finish) {
  Grid grid{1, 0, 0, window.stride, {}};
  for (Index tap = 0; tap < window.taps(); ++tap)
    grid.taps.push_back({tap, tap / window.size - window.padding, tap % window.size - window.padding});
  Convolution<P>(grid, window.taps(), x, weights, y, finish).run();
}

// Pixels of the input with the same position modulo the stride have the same taps.
template <class P, class T = typename P::Element>
void run_convolution_gradient(const Window& window, Pixels<const T> dy, const T* weights, Pixels<T> dx,
                              const Finish<P>& finish) {
  for (Index top = 0; top < window.stride; ++top)
    for (Index left = 0; left < window.stride; ++left) {
      Grid grid{window.stride, top, left, 1, {}};
      for (Index tap = 0; tap < window.taps(); ++tap) {
        const Index down = top + window.padding - tap / window.size, across = left + window.padding - tap % window.size;
        if (down % window.stride == 0 && across % window.stride == 0)
          grid.taps.push_back({tap, down / window.stride, across / window.stride});
      }
      Convolution<P>(grid, window.taps(), dy, weights, dx, finish).run();
    }
}

// Both functions are compiled in kernels.cpp.
#define ROBUST_LR_CONVOLUTION(prefix, P)                                                                       \
  prefix template void run_convolution<P>(const Window&, Pixels<const P::Element>, const P::Element*,          \
                                          Pixels<P::Element>, const Finish<P>&);                               \
  prefix template void run_convolution_gradient<P>(const Window&, Pixels<const P::Element>, const P::Element*, \
                                                   Pixels<P::Element>, const Finish<P>&)
#if defined(__AVX512F__)
#define ROBUST_LR_CONVOLUTIONS(prefix)             \
  ROBUST_LR_CONVOLUTION(prefix, Products<float>);  \
  ROBUST_LR_CONVOLUTION(prefix, Products<double>); \
  ROBUST_LR_CONVOLUTION(prefix, NarrowProducts)
#else
#define ROBUST_LR_CONVOLUTIONS(prefix)            \
  ROBUST_LR_CONVOLUTION(prefix, Products<float>); \
  ROBUST_LR_CONVOLUTION(prefix, Products<double>)
#endif

ROBUST_LR_CONVOLUTIONS(extern);

}  // namespace robust_lr::cpu
