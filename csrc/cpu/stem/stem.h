// The values of LR-Net's stem, x = relu(transform * image + bias), computed from an image of few channels when they are
// needed. At full resolution x would be many times larger than the image, so it is never stored.
#pragma once

#include <vector>

#include "../common/rows.h"

namespace robust_lr::cpu {

template <class A>
class StemPlanes;

template <class A>
struct Stem {
  using Planes = StemPlanes<A>;

  Image<A> image;  // [N, inputs, pixels], neighbors in memory
  Index inputs;
  const A* transform;  // [channels, inputs + 1], the bias last
  // Gradients; no data if they are not needed.
  Image<A> dimage;
  A* dtransform;  // of each image, [N, channels, inputs + 1]; kernels add to it
};

// Calls f with the number of inputs as a constant.
template <class F>
void with_inputs(Index inputs, F f) {
  switch (inputs) {
    case 1: return f(std::integral_constant<int, 1>());
    case 2: return f(std::integral_constant<int, 2>());
    case 3: return f(std::integral_constant<int, 3>());
    default: return f(std::integral_constant<int, kMaxInputs>());
  }
}

// `weights` are those of one channel, the bias last.
template <int kInputs, class V, class W>
inline V before_relu(const V* pixel, const W* weights) {
  V z = weights[kInputs] - V{};
  for (int j = 0; j < kInputs; ++j) z += weights[j] * pixel[j];
  return z;
}

// Both propagate NaN, as in PyTorch.
template <class V>
inline V relu(V z) {
  return z < 0 ? V{} : z;
}
template <class V>
inline V relu_gradient(V z, V dx) {
  return z <= 0 ? V{} : dx;
}

// Blocks of planes that contain all groups of their images or, if there are more groups than lanes, some groups of one
// image. The gradient of an image, to which all its groups add, therefore has a single owner.
template <class A>
struct WholeImages {
  Index groups, images;  // in a block
  Index in_turn;         // number of blocks that share their images

  explicit WholeImages(const Problem& p)
      : groups(std::min<Index>(p.groups, kLanes<A>)),
        images(kLanes<A> / groups),
        in_turn((p.groups + groups - 1) / groups) {}

  Index count(const Problem& p) const { return (p.batch + images - 1) / images; }

  Block<A> block(const Problem& p, Index number, Index turn) const {
    const Index first = number * images, present = std::min(images, p.batch - first);
    const Index first_group = turn * groups, end = std::min(first_group + groups, p.groups);
    return Block<A>(int(present * (end - first_group)), first, first_group, first_group, end);
  }
};

// The stem's planes of one block: loading computes them; storing propagates the gradient of x to image and transform.
template <class A>
class StemPlanes {
  static constexpr int L = kLanes<A>;
  using V = Vec<A>;

 public:
  // `block` must outlive the planes.
  StemPlanes(const Stem<A>& stem, const Block<A>& block, Index channels, Index pitch, Index total)
      : stem_(stem),
        block_(block),
        images_(without_groups(block)),
        channels_(channels),
        pitch_(pitch),
        total_(total),
        image_(stem.image, images_, stem.inputs, stem.inputs, stem.inputs),
        weights_(channels * (stem.inputs + 1)) {
    for (int lane = 0; lane < L; ++lane)
      for (Index m = 0; m < present(lane); ++m)
        for (Index j = 0; j <= stem.inputs; ++j)
          weights_[m * (stem.inputs + 1) + j][lane] = stem.transform[row(lane, m) + j];
  }

  void load(Index first, Index count, V* lanes) const {
    with_inputs(stem_.inputs, [&](auto inputs) {
      constexpr int kInputs = decltype(inputs)::value;
      each_square<kInputs>(first, count, [&](Index begin, Index pixels, const V* image) {
        V* const values = lanes + (begin - first) * channels_;
        for (Index i = 0; i < pixels; ++i)
          for (Index m = 0; m < channels_; ++m)
            values[i * channels_ + m] = relu(before_relu<kInputs>(image + i * kInputs, &weights_[m * (kInputs + 1)]));
      });
    });
  }

  void store(Index first, Index count, const V* lanes) const {
    with_inputs(stem_.inputs, [&](auto inputs) {
      constexpr int kInputs = decltype(inputs)::value;
      std::vector<V> sums(stem_.dtransform != nullptr ? weights_.size() : 0);
      each_square<kInputs>(first, count, [&](Index begin, Index pixels, const V* image) {
        const V* gradient = lanes + (begin - first) * channels_;
        V squares[kInputs][L] = {};
        for (Index i = 0; i < pixels; ++i, image += kInputs, gradient += channels_) {
          for (Index m = 0; m < channels_; ++m) {
            const V* const weights = &weights_[m * (kInputs + 1)];
            const V dz = relu_gradient(before_relu<kInputs>(image, weights), gradient[m]);
            for (int j = 0; j < kInputs; ++j) squares[j][i] += weights[j] * dz;
            if (stem_.dtransform == nullptr) continue;
            V* const sum = &sums[m * (kInputs + 1)];
            for (int j = 0; j < kInputs; ++j) sum[j] += dz * image[j];
            sum[kInputs] += dz;
          }
        }
        if (stem_.dimage.data == nullptr) return;
        for (int j = 0; j < kInputs; ++j) {
          transpose<A>(squares[j]);
          add_to_images(j, begin, pixels, squares[j]);
        }
      });
      if (stem_.dtransform != nullptr) add_to_transform(sums);
    });
  }

 private:
  // The same images, each as a whole.
  static Block<A> without_groups(Block<A> block) {
    block.neighbor_count = block.used;
    for (int lane = 0; lane < L; ++lane) {
      block.group[lane] = 0;
      block.neighbors[lane] = {lane, 1};
    }
    block.last_group = 0;
    return block;
  }

  Index present(int lane) const { return block_.channels(lane, pitch_, total_); }

  // Index in [channels, inputs + 1] at which channel m of a lane begins.
  Index row(int lane, Index m) const { return (block_.group[lane] * pitch_ + m) * (stem_.inputs + 1); }

  // Calls f(first pixel, count, [count][inputs] lanes of the image) for at most L pixels at a time.
  template <int kInputs, class F>
  void each_square(Index first, Index count, F f) const {
    V image[L * kInputs];
    for (Index i = 0; i < count; i += L) {
      const Index pixels = std::min<Index>(L, count - i);
      image_.load(first + i, pixels, image);
      f(first + i, pixels, image);
    }
  }

  // After the transposition, rows are lanes and lanes are pixels. The first group of an image sets its gradient; the
  // other groups add to it.
  void add_to_images(int j, Index first, Index count, const V* rows) const {
    const Image<A>& d = stem_.dimage;
    for (int lane = 0; lane < block_.used;) {
      const Index n = block_.image[lane];
      const bool set = block_.group[lane] == 0;
      V sum = {};
      for (; lane < block_.used && block_.image[lane] == n; ++lane) sum += rows[lane];
      A* const to = static_cast<A*>(d.data) + n * d.batch_stride + j * d.channel_stride + first;
      for (Index i = 0; i < count; ++i) to[i] = set ? sum[i] : to[i] + sum[i];
    }
  }

  void add_to_transform(const std::vector<V>& sums) const {
    const Index image = total_ * (stem_.inputs + 1);
    for (int lane = 0; lane < block_.used; ++lane)
      for (Index m = 0; m < present(lane); ++m)
        for (Index j = 0; j <= stem_.inputs; ++j)
          stem_.dtransform[block_.image[lane] * image + row(lane, m) + j] += sums[m * (stem_.inputs + 1) + j][lane];
  }

  const Stem<A> stem_;
  const Block<A>& block_;
  const Block<A> images_;
  const Index channels_, pitch_, total_;
  const Planes<A> image_;
  std::vector<V> weights_;  // [channels][inputs + 1], in lanes
};

}  // namespace robust_lr::cpu
