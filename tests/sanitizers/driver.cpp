// Runs the CPU kernels on problems of many shapes, each tensor in memory of just its size, for sanitizers to watch.
#include <cstdio>
#include <random>

#include "../../csrc/cpu/convolution/convolution.h"
#include "../../csrc/cpu/convolution/image_gradient.h"
#include "../../csrc/cpu/stem/kernels.h"

namespace robust_lr::cpu {

void parallel_for(Index count, const std::function<void(Index, Index)>& f) {
  for (Index i = 0; i < count; ++i) f(i, i + 1);
}
Index thread_count() { return 2; }

namespace {

std::mt19937 generator(0);

Index draw(std::initializer_list<Index> values) { return values.begin()[generator() % values.size()]; }

// A tensor [N, C, pixels] with memory of its own; of bfloat16 where it is narrow.
struct Owned {
  std::vector<float> wide;
  std::vector<BFloat16> narrow;
  Image<float> image;

  Owned(Index n, Index c, Index pixels, bool is_narrow = false, bool channels_last = false)
      : wide(is_narrow ? 0 : n * c * pixels), narrow(is_narrow ? n * c * pixels : 0) {
    std::normal_distribution<float> normal;
    for (float& v : wide) v = normal(generator);
    for (BFloat16& v : narrow) cpu::narrow(normal(generator), &v);
    void* const data = is_narrow ? static_cast<void*>(narrow.data()) : wide.data();
    image = {data, c * pixels, channels_last ? 1 : pixels, channels_last ? c : 1, is_narrow};
  }
};

Problem random_problem() {
  Problem p;
  p.batch = draw({0, 1, 2, 3}), p.channels = draw({1, 5, 8, 20, 64}),
  p.shared = std::min(draw({1, 3, 4, 8, 16}), p.channels);
  p.height = draw({1, 3, 8, 17}), p.width = draw({1, 4, 8, 19, 33});
  p.groups = (p.channels + p.shared - 1) / p.shared, p.components = draw({1, 1, 2});
  p.kernel = draw({1, 3, 7}), p.stride = draw({1, 2, 3});
  p.out_height = (p.height + p.stride - 1) / p.stride, p.out_width = (p.width + p.stride - 1) / p.stride;
  p.composability = static_cast<Composability>(draw({0, 1, 2}));
  p.softmax = draw({0, 1, 1}), p.padding = p.softmax && draw({0, 1}) ? p.kernel / 2 : 0;
  return p;
}

void run(const Problem& p) {
  const Index pixels = p.height * p.width, out = p.out_height * p.out_width, transforms = p.groups * p.components;
  const bool narrow = draw({0, 0, 1}), last = draw({0, 1}), has_prior = draw({0, 1, 1});
  Owned prior(1, p.groups, p.taps()), dprior(p.batch, p.groups, p.taps());
  Owned shift(p.batch, p.groups, out), total(p.batch, p.groups, out), wide_y(p.batch, p.channels, out);
  Owned y(p.batch, p.channels, out, narrow, last), dy(p.batch, p.channels, out, narrow, last);
  prior.image.batch_stride = 0;
  const Image<float> prior_image = has_prior ? prior.image : Image<float>{};
  const Image<float> wide_image = narrow && p.softmax ? wide_y.image : Image<float>{};
  {
    Owned x(p.batch, p.channels, pixels, narrow, last), q(p.batch, transforms, out, narrow, last);
    Owned k(p.batch, transforms, pixels, narrow, last);
    run_forward<float>({p, x.image, q.image, k.image, y.image, prior_image, shift.image, total.image, wide_image});
    Owned dx = x, dq = q, dk = k;
    for (Owned* t : {&dx, &dq, &dk}) t->image.data = narrow ? static_cast<void*>(t->narrow.data()) : t->wide.data();
    run_backward<float>({p, x.image, dx.image, dy.image, q.image, k.image, wide_image.data ? wide_y.image : y.image,
                         dq.image, dk.image, prior_image, shift.image, total.image, dprior.image});
  }
  Owned stem_y(p.batch, p.channels, out, false, true), stem_dy(p.batch, p.channels, out, false, last);
  const Index inputs = draw({1, 2, 3, 4});
  Owned image(p.batch, inputs, pixels), dimage(p.batch, inputs, pixels), transform(1, p.channels, inputs + 1);
  Owned q(p.batch, transforms, out), k(p.batch, transforms, pixels), dq = q, dk = k;
  dq.image.data = dq.wide.data(), dk.image.data = dk.wide.data();
  Projection<float> query{transforms, p.stride, nullptr, q.image}, key{transforms, 1, nullptr, k.image};
  Owned weights(1, p.channels, query.padded());
  query.weights = key.weights = weights.wide.data();
  const Stem<float> stem{image.image, inputs, transform.wide.data(), {}, nullptr};
  run_stem_forward<float>({p, stem, q.image, k.image, stem_y.image, prior_image, shift.image, total.image, {}}, query,
                          key);
  std::vector<float> dtransform(p.batch * p.channels * (inputs + 1));
  const Stem<float> taking{image.image, inputs, transform.wide.data(), dimage.image, dtransform.data()};
  query.out = dq.image, key.out = dk.image;
  const StemParts<float> parts(p, stem, query, key);
  std::vector<float> gradients(p.batch * parts.bands * parts.size());
  run_stem_backward<float>({p, taking, taking, stem_dy.image, q.image, k.image, stem_y.image, dq.image, dk.image,
                            prior_image, shift.image, total.image, dprior.image},
                           query, key, gradients.data());
}

void run_gradient() {
  ImageConvolution<float> c{draw({0, 1, 3}), draw({1, 3}), draw({1, 8, 17}), draw({1, 5, 33}), draw({1, 6, 16})};
  c.kernel = draw({3, 7}), c.stride = draw({1, 2, 5}), c.padding = c.kernel / 2;
  c.out_height = (c.height + c.stride - 1) / c.stride, c.out_width = (c.width + c.stride - 1) / c.stride;
  const Owned dy(c.batch, c.outputs, c.out_height * c.out_width), weights(c.outputs, c.channels, c.kernel * c.kernel);
  Owned dimage(c.batch, c.channels, c.height * c.width);
  c.dy = dy.wide.data(), c.weights = weights.wide.data(), c.dimage = dimage.wide.data();
  run_image_gradient(c);
}

template <class P>
std::vector<typename P::Element> drawn(Index size) {
  std::normal_distribution<float> normal;
  std::vector<typename P::Element> values(size);
  for (auto& v : values) cpu::narrow(normal(generator), &v);
  return values;
}

template <class P>
void run_products() {
  using T = typename P::Element;
  const Window window{draw({1, 3}), draw({1, 2}), draw({0, 1})};
  const Index n = draw({0, 1, 3}), inputs = draw({1, 5, 40}), outputs = draw({1, 16, 50, 100});
  const Index height = draw({3, 8}), width = draw({4, 9}), reach = 2 * window.padding - window.size;
  const Index down = (height + reach) / window.stride + 1, across = (width + reach) / window.stride + 1;
  std::vector<T> x = drawn<P>(n * inputs * height * width), y = drawn<P>(n * outputs * down * across);
  const std::vector<T> shortcut = y, sum = x, mask = x;
  const Owned bias(1, outputs, 1), weight(outputs, inputs, window.taps());
  for (const bool transposed : {false, true}) {
    const Index rows = transposed ? outputs : inputs, columns = transposed ? inputs : outputs;
    std::vector<T> packed(packed_size<P>(rows, columns, window.taps()));
    pack<P>(weight.wide.data(), outputs, inputs, window.taps(), transposed, packed.data());
    if (transposed)
      run_convolution_gradient<P>(window, {y.data(), n, down, across, outputs}, packed.data(),
                                  {x.data(), n, height, width, inputs}, {nullptr, sum.data(), false, mask.data()});
    else
      run_convolution<P>(window, {x.data(), n, height, width, inputs}, packed.data(),
                         {y.data(), n, down, across, outputs}, {bias.wide.data(), shortcut.data(), true});
  }
}

}  // namespace
}  // namespace robust_lr::cpu

int main() {
  using namespace robust_lr::cpu;
  for (int i = 0; i < 400; ++i) {
    run(random_problem());
    run_gradient();
    run_products<Products<float>>();
#if defined(__AVX512F__)
    if (supports_bfloat16()) run_products<NarrowProducts>();
#endif
  }
  std::puts("400 problems");
}
