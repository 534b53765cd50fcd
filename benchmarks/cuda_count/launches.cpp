// Prints the launches of LR-Net-26's local relation layers, one JSON object a line: nothing runs, and no GPU is needed.
// Sums of parts (common/sum.cu), which take next to nothing, are not among them.
//
//   launches BATCH SIZE
//   launches BATCH SIZE CHANNELS STRIDE    one layer
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>

#include <cstring>

#include "../../csrc/cuda/common/launch.h"
#include "../../csrc/cuda/local_relation/backward_keys.h"
#include "../../csrc/cuda/local_relation/backward_queries.h"
#include "../../csrc/cuda/local_relation/forward.h"
#include "../../csrc/cuda/stem/projection_arguments.h"

namespace robust_lr::cuda {
float4 shared_memory[1];

const char *layer, *pass;

// The rows of a strip, and how many strips a thread has.
struct Strips {
  int rows, count;
};
template <int Stride>
Strips strips(const char* kernel, bool weights) {
  using O = Options<SquaredDifference, true, 7, Stride>;
  using X = Image<const BFloat16>;
  if (std::strstr(kernel, "forward_strips")) return {kForwardStrip<O>, 1};
  if (std::strstr(kernel, "backward_queries")) return {kQueryStrip<O>, 1};
  return weights ? Strips{kKeyStrip<X, O, true>, kKeyRounds<O, true>}
                 : Strips{kKeyStrip<X, O, false>, kKeyRounds<O, false>};
}

template <class F, class Print>
cudaError_t print(const cudaLaunchConfig_t& config, F* kernel, Print rest) {
  Dl_info found{};
  if (dladdr(reinterpret_cast<const void*>(kernel), &found) == 0 || found.dli_sname == nullptr) std::abort();
  std::printf(R"({"layer": "%s", "part": "%s", "kernel": "%s", "blocks": %u, "threads": %u, "shared": %zu)", layer,
              pass, found.dli_sname, config.gridDim.x, config.blockDim.x, config.dynamicSmemBytes);
  rest(found.dli_sname);
  std::printf("}\n");
  return cudaSuccess;
}

// More specialized than the shim's templates, and found by argument-dependent lookup.
template <class... P, class Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(P...), const Arguments& a,
                               const Blocking& b) {
  bool has_prior = false;
  if constexpr (requires { a.dgeo; }) has_prior = a.dgeo != nullptr;
  return print(*config, kernel, [&](const char* name) {
    const Strips s = a.p.stride == 1 ? strips<1>(name, has_prior) : strips<2>(name, has_prior);
    std::printf(R"(, "groups": %d, "columns": %d, "strips": %d, "runs": %d, "strip": %d, "rounds": %d)", b.groups,
                b.columns, b.strips, b.tile.runs(), s.rows, s.count);
    std::printf(R"(, "stride": %d, "channels": %d, "height": %d, "out_height": %d, "dgeo": %d)", int(a.p.stride),
                int(a.p.channels), int(a.p.height), int(a.p.out_height), has_prior);
  });
}
template <class... P, class T, class... Others>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(P...), const Projection<T>& f,
                               const Others&...) {
  return print(*config, kernel, [&](const char*) {
    std::printf(R"(, "rows": %d, "channels": %d, "stride": %d, "pixels": %d)", f.rows, int(f.p.channels), f.stride,
                f.height * f.width);
  });
}
}  // namespace robust_lr::cuda

#include "../../csrc/cuda/common/sum.cu"
#include "../../csrc/cuda/local_relation/run_backward.h"
#include "../../csrc/cuda/local_relation/run_forward.h"
#include "../../csrc/cuda/stem/run_projection.h"

namespace shim {
void synchronize_block(const char*, int) {}
float shuffle_xor(float value, int) { return value; }
unsigned shuffle_from(unsigned value, int) { return value; }
void multiply(float (&)[4], const unsigned (&)[4], const unsigned (&)[2]) {}
void log_launch(const void*) {}
void allow_shared_memory(const void*, int) {}
bool can_launch(const void*, std::size_t, const void*) { return true; }
void run(dim3, dim3, std::size_t, const std::function<void()>&) {}
}  // namespace shim

namespace robust_lr::cuda {
namespace {

using T = BFloat16;

Problem problem(Index batch, Index channels, Index size, Index stride) {
  const Index out = (size + stride - 1) / stride;
  return {
      batch, channels, size, size, (channels + 7) / 8, 1, out, out, 7, stride, 8, 0, Composability::squared_difference,
      true};
}

// A channels-last tensor with a made-up address.
template <class E>
Image<E> tensor(Index c, Index h, Index w, int bytes) {
  return {reinterpret_cast<E*>(64), h * w * c, 1, w * c, c, bytes};
}
template <class E>
E* somewhere() {
  return reinterpret_cast<E*>(64);
}

void run_layer(const char* name, Index batch, Index channels, Index size, Index stride) {
  layer = name;
  const Problem p = problem(batch, channels, size, stride);
  const int bytes = channels % 8 == 0 ? 16 : 8;
  const Index out = p.out_height;
  const auto x = tensor<const T>(channels, size, size, bytes), dy = tensor<const T>(channels, out, out, bytes);
  const auto q = tensor<const T>(p.groups, out, out, 2), k = tensor<const T>(p.groups, size, size, 2);
  pass = "forward";
  run_forward(
      ForwardArguments<T>{p, x, q, k, somewhere<float>(), tensor<T>(channels, out, out, bytes), somewhere<float>()},
      nullptr);
  for (const bool training : {false, true}) {
    pass = training ? "training" : "attack";
    run_backward(BackwardArguments<T>{p, dy, x, q, k, dy, somewhere<float>(), somewhere<float>(),
                                      tensor<T>(channels, size, size, bytes), tensor<T>(p.groups, out, out, 2),
                                      tensor<T>(p.groups, size, size, 2), training ? somewhere<float>() : nullptr,
                                      somewhere<Query<float>>(), training ? somewhere<float>() : nullptr},
                 nullptr);
  }
}

// Follows csrc/cuda/stem/stem_relation.cpp, except for sums of parts.
void run_stem(Index batch, Index size) {
  layer = "stem";
  const Problem p = problem(batch, 64, size, 2);
  const Index out = p.out_height, rows = p.groups;
  const Stem<float> x{somewhere<float>(), somewhere<float>(), 3};
  const auto q = tensor<float>(rows, out, out, 16), k = tensor<float>(rows, size, size, 16);
  const auto constant = [](const Image<float>& i) {
    return Image<const float>{i.data, i.batch, i.channel, i.row, i.column, 4};
  };
  const auto y = tensor<T>(64, out, out, 16);
  const auto dy = tensor<const T>(64, out, out, 16);
  const Projection<T> query{p, x, somewhere<T>(), q, {}, int(rows), 2, int(out), int(out)};
  const Projection<T> key{p, x, somewhere<T>(), k, {}, int(rows), 1, int(size), int(size)};
  pass = "forward";
  run_projection(query, nullptr);
  run_projection(key, nullptr);
  run_forward(
      ForwardArguments<T, Stem<float>>{p, x, constant(q), constant(k), somewhere<float>(), y, somewhere<float>()},
      nullptr);
  for (const bool training : {false, true}) {
    pass = training ? "training" : "attack";
    BackwardArguments<T, Stem<float>> a{p,
                                        dy,
                                        x,
                                        constant(q),
                                        constant(k),
                                        dy,
                                        somewhere<float>(),
                                        somewhere<float>(),
                                        {},
                                        q,
                                        k,
                                        training ? somewhere<float>() : nullptr,
                                        somewhere<Query<float>>(),
                                        training ? somewhere<float>() : nullptr};
    a.dx.image = training ? nullptr : somewhere<float>();
    a.dx.transform = training ? somewhere<float>() : nullptr;
    a.dx.key_weights = training ? nullptr : somewhere<T>();
    run_backward(a, nullptr);
    if (!training) {
      const Parts parts = parts_of(a);
      if (!parts.keys) run_image_gradient(key, somewhere<float>(), parts.groups, somewhere<float>(), nullptr);
      run_image_gradient(query, somewhere<float>(), 1, somewhere<float>(), nullptr);
      continue;
    }
    run_weights_gradient(query, somewhere<float>(), somewhere<float>(), nullptr);
    run_weights_gradient(key, somewhere<float>(), somewhere<float>(), nullptr);
  }
}

}  // namespace
}  // namespace robust_lr::cuda

int main(int count, char** arguments) {
  using namespace robust_lr::cuda;
  const int batch = std::atoi(arguments[1]), size = std::atoi(arguments[2]), first = size / 4;
  if (count > 3) {
    run_layer("layer", batch, std::atoi(arguments[3]), size, std::atoi(arguments[4]));
    return 0;
  }
  run_stem(batch, size);
  run_layer("res2.0", batch, 100, first, 1);
  run_layer("res2.1", batch, 100, first, 1);
  run_layer("res3.0", batch, 200, first, 2);
  run_layer("res3.1", batch, 200, first / 2, 1);
  run_layer("res4.0", batch, 400, first / 2, 2);
  run_layer("res4.1", batch, 400, first / 4, 1);
  run_layer("res5.0", batch, 800, first / 4, 2);
  run_layer("res5.1", batch, 800, first / 8, 1);
}
