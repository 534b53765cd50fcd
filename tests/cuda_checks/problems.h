// Random problems for the CUDA kernels, each tensor in memory of its own whose every byte is watched.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "../../csrc/cuda/local_relation/run_backward.h"
#include "../../csrc/cuda/local_relation/run_forward.h"
#include "../../csrc/cuda/stem/run_projection.h"
//
#include "../../csrc/cuda/common/sum.cu"
#include "detector.h"

namespace robust_lr::cuda {
namespace {

std::mt19937 generator;

Index draw(std::initializer_list<Index> values) { return values.begin()[generator() % values.size()]; }

void fill(float& v, float value) { v = value; }
void fill(BFloat16& v, float value) { v = BFloat16(value); }

// Memory for `count` elements: filled with normally distributed values if `given`, otherwise uninitialized.
template <class T>
T* owned(Index count, bool given) {
  if (count == 0) return nullptr;
  T* const memory = static_cast<T*>(detector::allocate(count * sizeof(T)));
  if (!given) return memory;
  std::normal_distribution<float> normal;
  for (Index i = 0; i < count; ++i) fill(memory[i], normal(generator));
  detector::initialize(memory, count * sizeof(T));
  return memory;
}

// A tensor [N, C, H, W], channels-last or not; `spare` channels or columns lie between its rows and belong to others.
// Image::bytes is found as for tensors (csrc/cuda/common/tensors.h).
template <class T>
Image<T> tensor(Index n, Index c, Index h, Index w, bool last, Index spare, bool given, Index shared) {
  using Element = std::remove_const_t<T>;
  const Index pitch = last ? c + spare : w + spare;
  const Index count = last ? n * h * w * pitch : n * c * h * pitch;
  Element* const memory = owned<Element>(count, given);
  Image<T> image{memory,
                 last ? h * w * pitch : c * h * pitch,
                 last ? 1 : h * pitch,
                 last ? w * pitch : pitch,
                 last ? pitch : 1,
                 int(sizeof(Element))};
  if (count > 0 && spare > 0)
    for (Index i = 0; i < count / pitch; ++i)
      detector::forbid(memory + i * pitch + (last ? c : w), spare * sizeof(Element));
  for (const Index bytes : {8, 16}) {
    const Index elements = bytes / Index(sizeof(Element));
    bool aligned = image.channel == 1 && reinterpret_cast<std::uintptr_t>(memory) % bytes == 0;
    for (const Index each : {image.batch, image.row, image.column, shared, c})
      aligned = aligned && each % elements == 0;
    if (elements > 1 && aligned) image.bytes = int(bytes);
  }
  return image;
}

template <class T>
Image<const T> constant(const Image<T>& image) {
  return {image.data, image.batch, image.channel, image.row, image.column, image.bytes};
}

void check_written(bool written, const char* what) {
  if (written) return;
  std::fprintf(stderr, "%s was not written as a whole\n", what);
  std::exit(1);
}

// The results of a problem, which tests/ptx/driver.cpp compares.
struct Result {
  const char* name;
  std::vector<double> values;
};
std::vector<Result> results;

template <class A>
void check_written(const A* memory, Index count, const char* what) {
  check_written(memory == nullptr || detector::is_initialized(memory, count * sizeof(A)), what);
  Result result{what, {}};
  for (Index i = 0; memory != nullptr && i < count; ++i) result.values.push_back(widen(memory[i]));
  results.push_back(std::move(result));
}

template <class T>
void check_written(const Image<T>& t, Index n, Index c, Index h, Index w, const char* what) {
  for (Index i = 0; i < n; ++i)
    for (Index j = 0; j < c; ++j)
      for (Index k = 0; k < h; ++k)
        for (Index l = 0; l < w; ++l)
          check_written(
              detector::is_initialized(t.data + i * t.batch + j * t.channel + k * t.row + l * t.column, sizeof(T)),
              what);
  Result result{what, {}};
  for (Index i = 0; i < n; ++i)
    for (Index j = 0; j < c; ++j)
      for (Index k = 0; k < h; ++k)
        for (Index l = 0; l < w; ++l)
          result.values.push_back(widen(t.data[i * t.batch + j * t.channel + k * t.row + l * t.column]));
  results.push_back(std::move(result));
}

Problem random_problem(bool stem) {
  Problem p;
  p.batch = draw({0, 1, 1, 2});
  p.channels = stem ? draw({8, 20, 64}) : draw({1, 5, 8, 20, 32});
  p.shared = std::min(draw({1, 3, 4, 8, 8, 8, 16}), p.channels);
  p.height = draw({1, 3, 7, 9}), p.width = draw({1, 4, 7, 12});
  if (stem && draw({0, 0, 1})) p.height = 13, p.width = 11;  // more pixels than a block has threads
  p.groups = (p.channels + p.shared - 1) / p.shared, p.components = draw({1, 1, 1, 2});
  p.kernel = draw({1, 3, 5, 7, 7}), p.stride = draw({1, 1, 2, 3});
  p.out_height = (p.height + p.stride - 1) / p.stride, p.out_width = (p.width + p.stride - 1) / p.stride;
  p.composability = static_cast<Composability>(draw({0, 0, 1, 2}));
  p.softmax = draw({0, 1, 1}), p.padding = p.softmax && draw({0, 1}) ? p.kernel / 2 : 0;
  return p;
}

Index windows(const Problem& p) { return p.batch * p.groups * p.out_height * p.out_width; }

template <class A>
Query<A>* queries(const Problem& p) {
  return reinterpret_cast<Query<A>*>(owned<A>(windows(p) * Index(sizeof(Query<A>) / sizeof(A)), false));
}

// `usual` problems are like those of networks: channels-last, without gaps, and with a prior.
template <class T>
void run_relation(const Problem& p, bool usual = false) {
  const Index transforms = p.groups * p.components, statistics = p.softmax ? windows(p) : 0;
  const bool last = draw({0, 1, 1}) || usual, has_prior = draw({0, 1, 1}) || usual;
  auto spare = [&] { return usual ? 0 : draw({0, 0, 1, 8}); };
  auto values = [&](Index h, Index w, bool given) {
    return tensor<T>(p.batch, p.channels, h, w, last, given ? spare() : 0, given, p.shared);
  };
  auto scalars = [&](Index h, Index w, bool given) {
    return tensor<T>(p.batch, transforms, h, w, last, given ? spare() : 0, given, 1);
  };
  const Image<T> x = values(p.height, p.width, true), dy = values(p.out_height, p.out_width, true);
  const Image<T> q = scalars(p.out_height, p.out_width, true), k = scalars(p.height, p.width, true);
  const float* const geo = has_prior ? owned<float>(p.groups * p.taps(), true) : nullptr;
  const Image<T> y = values(p.out_height, p.out_width, false);
  float* const lse = owned<float>(statistics, false);
  run_forward(ForwardArguments<T>{p, constant(x), constant(q), constant(k), geo, y, lse}, nullptr);
  check_written(y, p.batch, p.channels, p.out_height, p.out_width, "y");
  check_written(lse, statistics, "lse");

  const Image<T> dx = values(p.height, p.width, false);
  const Image<T> dq = scalars(p.out_height, p.out_width, false), dk = scalars(p.height, p.width, false);
  float* const dgeo = has_prior ? owned<float>(p.groups * p.taps(), false) : nullptr;
  BackwardArguments<T> a{p,   constant(dy), constant(x), constant(q), constant(k), constant(y),       geo,
                         lse, dx,           dq,          dk,          dgeo,        queries<float>(p), nullptr};
  if (dgeo != nullptr) a.dgeo_partial = owned<float>(parts_of(a).pixels * p.groups * p.taps(), false);
  run_backward(a, nullptr);
  check_written(dx, p.batch, p.channels, p.height, p.width, "dx");
  check_written(dq, p.batch, transforms, p.out_height, p.out_width, "dq");
  check_written(dk, p.batch, transforms, p.height, p.width, "dk");
  if (p.batch > 0) check_written(dgeo, p.groups * p.taps(), "dgeo");
}

// Follows csrc/cuda/stem/stem_relation.cpp, for all gradients or, as in an attack, only for that of the image.
template <class T>
void run_stem(const Problem& p) {
  const bool wants_weights = draw({0, 1, 1});
  using A = WideOf<T>;
  const Index inputs = draw({1, 2, 3, 4}), rows = p.groups * p.components, statistics = p.softmax ? windows(p) : 0;
  const bool has_prior = draw({0, 1, 1});
  const Stem<A> x{owned<A>(p.batch * inputs * p.height * p.width, true), owned<A>(p.channels * (inputs + 1), true),
                  int(inputs)};
  const T *const query = owned<T>(rows * p.channels, true), *const key = owned<T>(rows * p.channels, true);
  auto scalars = [&](Index h, Index w) { return tensor<A>(p.batch, rows, h, w, true, 0, false, rows); };
  auto projection = [&](const T* weights, Index stride, const Image<A>& out, Index h, Index w) {
    return Projection<T>{p, x, weights, out, {}, int(rows), int(stride), int(h), int(w)};
  };
  const Image<A> q = scalars(p.out_height, p.out_width), k = scalars(p.height, p.width);
  run_projection(projection(query, p.stride, q, p.out_height, p.out_width), nullptr);
  run_projection(projection(key, 1, k, p.height, p.width), nullptr);
  const A* const geo = has_prior ? owned<A>(p.groups * p.taps(), true) : nullptr;
  const Image<T> y = tensor<T>(p.batch, p.channels, p.out_height, p.out_width, true, 0, false, p.shared);
  A* const lse = owned<A>(statistics, false);
  run_forward(ForwardArguments<T, Stem<A>>{p, x, constant(q), constant(k), geo, y, lse}, nullptr);
  check_written(y, p.batch, p.channels, p.out_height, p.out_width, "y of the stem");

  const Image<T> dy = tensor<T>(p.batch, p.channels, p.out_height, p.out_width, draw({0, 1}), 0, true, p.shared);
  const Image<A> dq = scalars(p.out_height, p.out_width);
  A* const dgeo = has_prior && wants_weights ? owned<A>(p.groups * p.taps(), false) : nullptr;
  BackwardArguments<T, Stem<A>> a{p,   constant(dy), x,  constant(q), constant(k), constant(y),   geo,
                                  lse, {},           dq, {},          dgeo,        queries<A>(p), nullptr};
  Projection<T> from_query = projection(query, p.stride, dq, p.out_height, p.out_width);
  a.dx.key_weights = wants_weights ? nullptr : key;
  const Parts parts = parts_of(a);
  if (!parts.keys) a.dk = scalars(p.height, p.width);
  Projection<T> from_key = projection(key, 1, a.dk, p.height, p.width);
  const Index values = parts.groups == 0 ? p.batch : 0, relation = values > 0 || !wants_weights ? 0 : parts.pixels;
  const Index queries = pixel_parts(from_query), keys = pixel_parts(from_key), entries = p.channels * (inputs + 1);
  const Index transforms = relation + (queries + keys) * row_parts(from_key), weights = rows * p.channels;
  A* const dtransforms = owned<A>(transforms * entries, false);
  A* const dimages = owned<A>(parts.groups * p.batch * inputs * p.height * p.width, false);
  const Index pixels = p.batch * inputs * p.height * p.width;
  A* const dimage = owned<A>(pixels, false);
  if (values > 0) a.dx.values = from_key.dx = tensor<A>(values, p.channels, p.height, p.width, true, 0, false, 1);
  a.dx.image = parts.keys ? dimage : dimages;
  a.dx.transform = relation > 0 ? dtransforms : nullptr;
  if (dgeo != nullptr) a.dgeo_partial = owned<A>(parts.pixels * p.groups * p.taps(), false);
  run_backward(a, nullptr);
  if (!parts.keys) run_image_gradient(from_key, dimages, parts.groups, dimage, nullptr);
  run_image_gradient(from_query, dimage, 1, dimage, nullptr);
  check_written(dimage, pixels, "dimage");
  if (!wants_weights) return;
  A *const dqueries = owned<A>(queries * weights, false), *const dkeys = owned<A>(keys * weights, false);
  A* const of_queries = dtransforms + relation * entries;
  run_weights_gradient(from_query, dqueries, of_queries, nullptr);
  run_weights_gradient(from_key, dkeys, of_queries + queries * row_parts(from_query) * entries, nullptr);
  A *const dtransform = owned<A>(entries, false), *const dquery = owned<A>(weights, false);
  A* const dkey = owned<A>(weights, false);
  run_sum(dtransforms, transforms, entries, dtransform, nullptr);
  run_sum(dqueries, queries, weights, dquery, nullptr);
  run_sum(dkeys, keys, weights, dkey, nullptr);
  if (p.batch == 0) return;
  check_written(dtransform, entries, "dtransform");
  check_written(dquery, weights, "dquery");
  check_written(dkey, weights, "dkey");
}

// Many parts, which take several launches.
void run_sums() {
  const Index count = draw({1, 255, 256, 257, 700}), entries = draw({1, 31, 33});
  float* const sums = owned<float>(entries, false);
  run_sum(owned<float>(count * entries, true), count, entries, sums, nullptr);
  check_written(sums, entries, "sums");
}

}  // namespace
}  // namespace robust_lr::cuda
