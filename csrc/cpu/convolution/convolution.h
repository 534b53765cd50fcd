// Convolution, bias, sum with a shortcut and ReLU in one pass over channels-last images, and its gradient by the input.
// The weights are packed beforehand: for networks that are attacked, which have many passes with the same weights.
//
// An indirect convolution (Dukhan 2019): every output pixel is a product of the weights and of the input pixels
// under the taps, which pointers name; outside the image they name zeros. Each pixel's sums run in one order, whatever
// the batch.
#pragma once

#include <algorithm>
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
};

// Weights [taps, inputs, outputs] in panels of at most kWide vectors of outputs, one after the other.
template <class A>
class Panels {
 public:
  static constexpr int L = kLanes<A>, kWide = 3;

  explicit Panels(Index outputs) : vectors((outputs + L - 1) / L), count((vectors + kWide - 1) / kWide) {}

  Index first(Index panel) const { return vectors * panel / count; }  // vector
  Index width(Index panel) const { return first(panel + 1) - first(panel); }

  const Index vectors, count;
};

// Products take `kStep` inputs at a time: so many there are with zeros behind the last.
template <class P>
Index whole_steps(Index inputs) {
  return (inputs + P::kStep - 1) / P::kStep * P::kStep;
}

template <class P>
Index packed_size(Index inputs, Index outputs, Index taps) {
  using Sum = typename P::Sum;
  return Panels<Sum>(outputs).vectors * kLanes<Sum> * whole_steps<P>(inputs) * taps;
}

// `weight` [outputs, inputs, taps] as Panels have it, the inputs of a product next to each other; of its transpose for
// the gradient.
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

// Results at every `place`-th pixel from (top, left) on: sums over taps of the source at `step` times the number of the
// row (or column) plus an offset.
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
  static constexpr int L = kLanes<A>, kRows = kVectorBytes == 64 ? 8 : 4;
  using V = Vec<A>;

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
        height((to.height - grid.top + grid.place - 1) / grid.place),
        width((to.width - grid.left + grid.place - 1) / grid.place),
        zeros(from.channels) {
    for (const Grid::Tap& tap : grid.taps) offsets_.push_back((tap.down * from.width + tap.across) * from.channels);
  }

  Index pixels() const { return to.batch * std::max<Index>(0, height) * std::max<Index>(0, width); }

  // Pixels in a task: few enough that what they read stays in the cache while all panels go over it.
  Index of_task() const {
    const Index tasks = 4 * thread_count(), share = (pixels() + tasks - 1) / tasks;
    return std::clamp<Index>((share + kRows - 1) / kRows * kRows, kRows, 64);
  }

  void run() const {
    const Index each = of_task(), count = pixels();
    parallel_for((count + each - 1) / each, [&](Index begin, Index end) {
      std::vector<const T*> sources(each * grid.taps.size());
      std::vector<Index> places(each);
      for (Index task = begin; task < end; ++task) {
        const Index first = task * each, last = std::min(first + each, count);
        locate(first, last, sources.data(), places.data());
        for (Index panel = 0; panel < panels.count; ++panel)
          for (Index block = 0; block < last - first; block += kRows) {
            const T* const* const rows = sources.data() + block * grid.taps.size();
            const Index many = std::min<Index>(kRows, last - first - block);
            switch (panels.width(panel)) {
              case 1: add<1>(rows, panel, places.data() + block, many); break;
              case 2: add<2>(rows, panel, places.data() + block, many); break;
              default: add<3>(rows, panel, places.data() + block, many);
            }
          }
      }
    });
  }

 private:
  // Where pixels [first, last) are in the result, and for each kRows of them, tap by tap, what they are made from.
  void locate(Index first, Index last, const T** sources, Index* places) const {
    const Index count = grid.taps.size();
    Index n = first / (height * width), h = first / width % height, w = first % width;
    for (Index i = 0; i < (last - first + kRows - 1) / kRows * kRows; ++i) {
      places[i] = to.at(n, grid.top + h * grid.place, grid.left + w * grid.place) - to.data;
      const Index top = h * grid.step, left = w * grid.step;
      const T* const pixel = from.at(n, top, left);
      const T** const place = sources + i / kRows * kRows * count + i % kRows;
      for (Index t = 0; t < count; ++t) {
        const Index row = top + grid.taps[t].down, column = left + grid.taps[t].across;
        const bool inside = row >= 0 && row < from.height && column >= 0 && column < from.width;
        place[t * kRows] = inside ? pixel + offsets_[t] : zeros.data();
      }
      if (first + i + 1 >= last) continue;  // the last stands in for those that are not there
      if (++w == width) w = 0, ++h;
      if (h == height) h = 0, ++n;
    }
  }

  template <int Width>
  void add(const T* const* sources, Index panel, const Index* places, Index count) const {
    const Index inputs = whole_steps<P>(from.channels);
    const T* const begin = weights + panels.first(panel) * L * taps * inputs;
    V sums[kRows][Width];
    for (int v = 0; v < Width; ++v) {
      const Index channel = (panels.first(panel) + v) * L;
      const V bias = finish.bias != nullptr ? Products<A>::read(finish.bias + channel, to.channels - channel) : V{};
      for (int i = 0; i < kRows; ++i) sums[i][v] = bias;
    }
    for (std::size_t t = 0; t < grid.taps.size(); ++t) {
      const T* rows[kRows];
      for (int i = 0; i < kRows; ++i) rows[i] = sources[t * kRows + i];
      const T* tap = begin + grid.taps[t].number * inputs * Width * L;
      const auto multiply = [&](auto pixel) {
        V weight[Width];
#pragma GCC unroll 3
        for (int v = 0; v < Width; ++v) weight[v] = P::weights(tap + v * L * P::kStep);
#pragma GCC unroll 8
        for (int i = 0; i < kRows; ++i) {
          const V x = pixel(rows[i]);
#pragma GCC unroll 3
          for (int v = 0; v < Width; ++v) sums[i][v] = P::add(sums[i][v], x, weight[v]);
        }
        tap += Width * L * P::kStep;
      };
      Index c = 0;
      for (; c + P::kStep <= from.channels; c += P::kStep) multiply([&](const T* row) { return P::pixel(row + c); });
      if (c < from.channels) multiply([&](const T* row) { return P::last_pixel(row + c, from.channels - c); });
    }
    for (int v = 0; v < Width; ++v) {
      const Index channel = (panels.first(panel) + v) * L, lanes = to.channels - channel;
      for (Index i = 0; i < count; ++i) {
        V y = sums[i][v];
        if (finish.shortcut != nullptr) y += P::read(finish.shortcut + places[i] + channel, lanes);
        if (finish.relu) y = larger<A>(V{}, y);
        if (finish.mask != nullptr) y = P::read(finish.mask + places[i] + channel, lanes) > 0 ? y : V{};
        P::write(y, to.data + places[i] + channel, lanes);
      }
    }
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
  std::vector<Index> offsets_;
};

template <class P, class T = typename P::Element>
void run_convolution(const Window& window, Pixels<const T> x, const T* weights, Pixels<T> y, const Finish<P>& finish) {
  Grid grid{1, 0, 0, window.stride, {}};
  for (Index tap = 0; tap < window.taps(); ++tap)
    grid.taps.push_back({tap, tap / window.size - window.padding, tap % window.size - window.padding});
  Convolution<P>(grid, window.taps(), x, weights, y, finish).run();
}

// Pixels of the input with the same place within the stride have the same taps.
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

}  // namespace robust_lr::cpu
