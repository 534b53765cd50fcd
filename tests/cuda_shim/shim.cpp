// Runs kernels on fibers, and registers the CUDA operators for CPU tensors under a name of their own.
#include <dlfcn.h>
#include <torch/csrc/stable/library.h>
#include <ucontext.h>

#include <bit>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "../../csrc/cuda/operators.h"
#include "../../csrc/schema.h"
#include "cuda_runtime.h"
#include "device.h"
#include "warp.h"

namespace robust_lr::cuda {
constexpr std::size_t kSharedMemory = 96 << 10;
float4 shared_memory[kSharedMemory / sizeof(float4)];
}  // namespace robust_lr::cuda

namespace shim {
namespace {

using robust_lr::cuda::kSharedMemory;
using robust_lr::cuda::shared_memory;

enum class State { ready, at_barrier, in_warp, ended };

struct Fiber {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(1 << 16);
  State state;
  shim::WarpOperation operation;
};

std::vector<std::unique_ptr<Fiber>> fibers;
ucontext_t scheduler;
Fiber* current;
bool turned;  // whether blocks and threads run in the opposite order
const std::function<void()>* body;

std::map<const void*, std::size_t> allowed;  // shared memory that kernels asked for

void enter() {
  (*body)();
  current->state = State::ended;
}

void wait(State state) {
  current->state = state;
  swapcontext(&current->context, &scheduler);
}

[[noreturn]] void fail(const char* what) {
  // Not an exception: it would have to cross fibers.
  std::fprintf(stderr, "CUDA shim: %s\n", what);
  std::abort();
}

// Resumes the threads that wait for one another; returns false if all have ended. A barrier waits for all threads that
// have not ended, an instruction of a warp for all 32 of its threads.
bool release(int count) {
  bool alive = false;
  for (int warp = 0; warp < count; warp += 32) {
    int waiting = 0;
    for (int t = warp; t < std::min(warp + 32, count); ++t) waiting += fibers[t]->state == State::in_warp;
    if (waiting == 0) continue;
    if (waiting != 32) fail("an instruction of a warp that not all of its threads reach");
    shim::WarpOperation* operations[32];
    for (int t = 0; t < 32; ++t) operations[t] = &fibers[warp + t]->operation;
    if (!shim::perform(operations)) fail("threads of a warp at different instructions");
    for (int t = warp; t < warp + 32; ++t) fibers[t]->state = State::ready;
    alive = true;
  }
  if (alive) return true;
  for (int t = 0; t < count; ++t) {
    if (fibers[t]->state != State::at_barrier) continue;
    fibers[t]->state = State::ready;
    alive = true;
  }
  return alive;
}

}  // namespace

void synchronize_block(const char*, int) { wait(State::at_barrier); }

// Plants the fault that CUDA_SHIM_FAULT names, so that tests can check that they would notice it.
static void misplace_fragments(WarpOperation& own) {
  const char* const fault = std::getenv("CUDA_SHIM_FAULT");
  if (fault == nullptr) return;
  const std::string name = fault;
  if (name == "left") std::swap(own.left[1], own.left[2]);
  if (name == "right") std::swap(own.right[0], own.right[1]);
  if (name == "elements") own.right[0] = own.right[0] << 16 | own.right[0] >> 16;
}

WarpOperation& own_operation() { return current->operation; }

void wait_for_warp() {
  if (current->operation.kind == WarpOperation::Kind::product) misplace_fragments(current->operation);
  wait(State::in_warp);
}

void log_launch(const void* kernel) {
  const char* const path = std::getenv("CUDA_SHIM_LOG");
  if (path == nullptr) return;
  Dl_info found;
  if (dladdr(kernel, &found) == 0 || found.dli_sname == nullptr) fail("a kernel without a name");
  std::FILE* const file = std::fopen(path, "a");
  if (file == nullptr) fail("CUDA_SHIM_LOG cannot be written");
  std::fprintf(file, "%s\n", found.dli_sname);
  std::fclose(file);
}

// Like the driver: a kernel may take 48 KiB of shared memory, or as much as was asked for. It must run on the current
// stream of the device that is current at the time (bindings.cpp).
void allow_shared_memory(const void* kernel, int bytes) { allowed[kernel] = bytes; }

bool can_launch(const void* kernel, std::size_t shared_bytes, const void* stream) {
  const auto found = allowed.find(kernel);
  const std::size_t most = found == allowed.end() ? 48 << 10 : found->second;
  return shared_bytes <= most && stream == current_stream;
}

void turn_order(bool opposite) { turned = opposite; }

void run(dim3 grid, dim3 block, std::size_t shared_bytes, const std::function<void()>& thread) {
  static const std::vector<char> untouched(kSharedMemory, char(0xff));  // NaN in every type
  if (shared_bytes > kSharedMemory) fail("more shared memory than a block can have");
  const int count = int(block.x);
  while (int(fibers.size()) < count) fibers.push_back(std::make_unique<Fiber>());
  body = &thread;
  blockDim = block;
  for (unsigned b = 0; b < grid.x; ++b) {
    blockIdx.x = turned ? grid.x - 1 - b : b;
    std::memcpy(shared_memory, untouched.data(), kSharedMemory);
    for (int t = 0; t < count; ++t) {
      Fiber& fiber = *fibers[t];
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.data();
      fiber.context.uc_stack.ss_size = fiber.stack.size();
      fiber.context.uc_link = &scheduler;
      makecontext(&fiber.context, enter, 0);
      fiber.state = State::ready;
    }
    do {
      for (int i = 0; i < count; ++i) {
        const int t = turned ? count - 1 - i : i;
        if (fibers[t]->state != State::ready) continue;
        current = fibers[t].get();
        threadIdx.x = t;
        swapcontext(&scheduler, &current->context);
      }
    } while (release(count));
    const char* const memory = reinterpret_cast<const char*>(shared_memory);
    if (std::memcmp(memory + shared_bytes, untouched.data() + shared_bytes, kSharedMemory - shared_bytes) != 0)
      fail("shared memory was written beyond its end");
  }
}

}  // namespace shim

namespace robust_lr::cuda {
namespace {

// Runs every operator twice, the second time with blocks and threads in the opposite order, so that races show up as
// different results.
template <class Run>
auto in_both_orders(Run run) {
  auto compare = [](const Tensor& a, const Tensor& b) {
    const std::size_t bytes = std::size_t(a.numel()) * a.element_size();
    STD_TORCH_CHECK(bytes == 0 || std::memcmp(a.const_data_ptr(), b.const_data_ptr(), bytes) == 0,
                    "CUDA shim: the result depends on the order of threads");
  };
  shim::turn_order(false);
  auto results = run();
  shim::turn_order(true);
  auto others = run();
  [&]<std::size_t... I>(std::index_sequence<I...>) {
    (compare(std::get<I>(results), std::get<I>(others)), ...);
  }(std::make_index_sequence<std::tuple_size_v<decltype(results)>>());
  return results;
}

std::tuple<Tensor, Tensor> forward(Tensor x, Tensor q, Tensor k, std::optional<Tensor> geo, Index kernel, Index stride,
                                   Index shared, Index composability, bool softmax, bool mask) {
  return in_both_orders(
      [&] { return local_relation(nullptr, x, q, k, geo, {kernel, stride, shared, composability, softmax, mask}); });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(Tensor dy, Tensor x, Tensor q, Tensor k, std::optional<Tensor> geo,
                                                    Tensor y, Tensor stats, Index kernel, Index stride, Index shared,
                                                    Index composability, bool softmax, bool mask, bool needs_geo) {
  return in_both_orders([&] {
    return local_relation_backward(nullptr, dy, x, q, k, geo, y, stats,
                                   {kernel, stride, shared, composability, softmax, mask}, needs_geo);
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> stem_forward(Tensor image, Tensor transform, Tensor query, Tensor key,
                                                        std::optional<Tensor> geo, Index kernel, Index stride,
                                                        Index shared, Index composability, bool softmax, bool mask) {
  return in_both_orders([&] {
    return stem_relation(nullptr, image, transform, query, key, geo,
                         {kernel, stride, shared, composability, softmax, mask});
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> stem_backward(Tensor dy, Tensor image, Tensor transform,
                                                                 Tensor query, Tensor key, std::optional<Tensor> geo,
                                                                 Tensor y, Tensor q, Tensor k, Tensor stats,
                                                                 Index kernel, Index stride, Index shared,
                                                                 Index composability, bool softmax, bool mask,
                                                                 bool needs_image, bool needs_weights) {
  return in_both_orders([&] {
    return stem_relation_backward(nullptr, dy, image, transform, query, key, geo, y, q, k, stats,
                                  {kernel, stride, shared, composability, softmax, mask}, needs_image, needs_weights);
  });
}

}  // namespace
}  // namespace robust_lr::cuda

// The same through bindings.cpp.
STABLE_TORCH_LIBRARY(robust_lr_bindings, m) {
  m.def(robust_lr::kForwardSchema);
  m.def(robust_lr::kBackwardSchema);
  m.def(robust_lr::kStemForwardSchema);
  m.def(robust_lr::kStemBackwardSchema);
}

STABLE_TORCH_LIBRARY(robust_lr_shim, m) {
  m.def(robust_lr::kForwardSchema);
  m.def(robust_lr::kBackwardSchema);
  m.def(robust_lr::kStemForwardSchema);
  m.def(robust_lr::kStemBackwardSchema);
}

STABLE_TORCH_LIBRARY_IMPL(robust_lr_shim, CPU, m) {
  m.impl("local_relation", TORCH_BOX(&robust_lr::cuda::forward));
  m.impl("local_relation_backward", TORCH_BOX(&robust_lr::cuda::backward));
  m.impl("stem_relation", TORCH_BOX(&robust_lr::cuda::stem_forward));
  m.impl("stem_relation_backward", TORCH_BOX(&robust_lr::cuda::stem_backward));
}
