// A detector of races, accesses out of bounds and reads of uninitialized memory in CUDA kernels, on the CPU.
//
// The kernels are compiled with `-fsanitize=thread`, which calls a function before every access to memory, and linked
// with the functions below instead of the sanitizer's own. One logical thread stands for each CUDA thread. Two accesses
// of different threads to one byte, one of them a write, race unless they are of one block with a barrier in between;
// shuffles order nothing. So a race on an executed path is found whatever order the threads run in.
//
// DETECTOR_SKIP names a barrier, FILE:LINE, to leave out: tests check that the detector reports each missing barrier.
#include "detector.h"

#include <ucontext.h>

#include <bit>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "../cuda_shim/cuda_runtime.h"
#include "../cuda_shim/warp.h"

namespace robust_lr::cuda {
constexpr std::size_t kSharedMemory = 96 << 10;
float4 shared_memory[kSharedMemory / sizeof(float4)];
}  // namespace robust_lr::cuda

namespace detector {
namespace {

using Address = std::uintptr_t;

// State of one byte during a launch. Threads count from 1; 0 is nobody.
struct Byte {
  bool allowed : 1 = true, initialized : 1 = false;
  bool several_readers : 1 = false, several_blocks : 1 = false;
  std::int16_t writer = 0, reader = 0, write_epoch = 0, read_epoch = 0;  // the latest
  std::int32_t write_block = -1, read_block = -1;
};

struct Region {
  std::vector<char> memory;  // with red zones
  std::vector<Byte> bytes;
};

constexpr std::size_t kRedZone = 64;
std::map<Address, std::unique_ptr<Region>> regions;  // by the first address of their memory
std::vector<Byte> shared_bytes;
std::size_t shared_size;
int block, thread, epoch;
bool running;
bool watching;  // whether the kernels are compiled to call the functions at the end of this file

[[noreturn]] void fail(const std::string& what) {
  std::fprintf(stderr, "%s (block %d, thread %d)\n", what.c_str(), block, thread);
  std::fflush(stderr);
  std::_Exit(1);
}

void forget_accesses(std::vector<Byte>& bytes) {
  for (Byte& b : bytes) b = {b.allowed, b.initialized};
}

Region* region_of(Address address) {
  auto next = regions.upper_bound(address);
  if (next == regions.begin()) return nullptr;
  Region* const region = std::prev(next)->second.get();
  const Address start = std::prev(next)->first;
  return address < start + region->memory.size() ? region : nullptr;
}

enum class Kind { read, write };

void touch(Byte& b, Kind kind, const char* where) {
  if (!b.allowed) fail(std::string("access out of bounds in ") + where);
  const bool reads = kind == Kind::read;
  if (reads && !b.initialized) fail(std::string("read of uninitialized ") + where);
  const bool after_write = b.writer != 0 && b.writer != thread + 1;
  if (b.writer != 0 && (b.write_block != block || (after_write && b.write_epoch == epoch)))
    fail(std::string("race with a write in ") + where);
  if (!reads && b.reader != 0) {
    const bool by_others = b.several_readers || b.reader != thread + 1;
    if (b.several_blocks || b.read_block != block || (by_others && b.read_epoch == epoch))
      fail(std::string("race with a read in ") + where);
  }
  if (reads) {
    b.several_blocks = b.several_blocks || (b.reader != 0 && b.read_block != block);
    b.several_readers = b.reader != 0 && b.read_block == block && b.read_epoch == epoch &&
                        (b.several_readers || b.reader != thread + 1);
    b.reader = thread + 1, b.read_block = block, b.read_epoch = epoch;
  } else {
    b.writer = thread + 1, b.write_block = block, b.write_epoch = epoch;
    b.initialized = true;
  }
}

// Calls f(byte, where) for the bytes of an access that are neither on a stack nor constants of the program.
template <class F>
void each_byte(Address address, std::size_t size, F f) {
  const Address shared = reinterpret_cast<Address>(robust_lr::cuda::shared_memory);
  if (address >= shared && address < shared + robust_lr::cuda::kSharedMemory) {
    if (address + size > shared + shared_size) fail("access beyond the shared memory that was asked for");
    for (std::size_t i = 0; i < size; ++i) f(shared_bytes[address - shared + i], "shared memory");
  } else if (Region* const region = region_of(address)) {
    const Address start = reinterpret_cast<Address>(region->memory.data());
    if (address + size > start + region->memory.size()) fail("access out of bounds in global memory");
    for (std::size_t i = 0; i < size; ++i) f(region->bytes[address - start + i], "global memory");
  }
}

void access(const void* memory, std::size_t size, Kind kind) {
  if (!running) return;
  const Address address = reinterpret_cast<Address>(memory);
  each_byte(address, size, [&](Byte& b, const char* where) { touch(b, kind, where); });
}

// Fibers, as in the shim.
enum class State { ready, at_barrier, in_warp, ended };

struct Fiber {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(1 << 17);
  State state;
  std::string site;  // of the barrier that it waits at
  shim::WarpOperation operation;
};

std::vector<std::unique_ptr<Fiber>> fibers;
ucontext_t scheduler;
Fiber* current;
const std::function<void()>* body;
std::set<std::string> sites;
const char* const skipped = std::getenv("DETECTOR_SKIP");

void enter() {
  running = true;
  (*body)();
  running = false;
  current->state = State::ended;
}

void wait(State state) {
  running = false;
  current->state = state;
  swapcontext(&current->context, &scheduler);
  running = true;
}

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
  std::set<std::string> waiting;
  for (int t = 0; t < count; ++t) {
    if (fibers[t]->state != State::at_barrier) continue;
    waiting.insert(fibers[t]->site);
    fibers[t]->state = State::ready;
    alive = true;
  }
  if (waiting.size() > 1) fail("threads of a block wait at different barriers");
  ++epoch;
  return alive;
}

}  // namespace

void* allocate(std::size_t size) {
  auto region = std::make_unique<Region>();
  region->memory.resize(size + 2 * kRedZone);
  region->bytes.resize(size + 2 * kRedZone);
  for (std::size_t i = 0; i < kRedZone; ++i)
    region->bytes[i].allowed = region->bytes[size + kRedZone + i].allowed = false;
  char* const memory = region->memory.data();
  regions[reinterpret_cast<Address>(memory)] = std::move(region);
  return memory + kRedZone;
}

static Byte* bytes_of(const void* memory) {
  Region* const region = region_of(reinterpret_cast<Address>(memory));
  return region->bytes.data() + (static_cast<const char*>(memory) - region->memory.data());
}

void forbid(void* memory, std::size_t size) {
  for (Byte* b = bytes_of(memory); size > 0; ++b, --size) b->allowed = false;
}

void initialize(void* memory, std::size_t size) {
  for (Byte* b = bytes_of(memory); size > 0; ++b, --size) b->initialized = true;
}

bool is_initialized(const void* memory, std::size_t size) {
  if (!watching) return true;
  for (const Byte* b = bytes_of(memory); size > 0; ++b, --size)
    if (!b->initialized) return false;
  return true;
}

void watch(const void* memory, std::size_t size, bool writes) {
  access(memory, size, writes ? Kind::write : Kind::read);
}

void set_watching(bool value) { watching = value; }

void free_all() { regions.clear(); }

void print_barriers() {
  for (const std::string& site : sites) std::printf("barrier %s\n", site.c_str());
}

}  // namespace detector

namespace shim {

using namespace detector;

void synchronize_block(const char* file, int line) {
  const char* const name = std::strrchr(file, '/');
  const std::string site = std::string(name ? name + 1 : file) + ":" + std::to_string(line);
  const bool was_running = running;
  running = false;
  sites.insert(site);
  if (skipped != nullptr && site == skipped) {
    running = was_running;
    return;
  }
  current->site = site;
  wait(State::at_barrier);
}

WarpOperation& own_operation() { return current->operation; }
void wait_for_warp() { wait(State::in_warp); }

void log_launch(const void*) {}
void allow_shared_memory(const void*, int) {}
bool can_launch(const void*, std::size_t, const void*) { return true; }

void run(dim3 grid, dim3 threads, std::size_t bytes, const std::function<void()>& kernel) {
  if (bytes > robust_lr::cuda::kSharedMemory) fail("more shared memory than a block can have");
  const int count = int(threads.x);
  while (int(fibers.size()) < count) fibers.push_back(std::make_unique<Fiber>());
  body = &kernel;
  blockDim = threads;
  shared_size = bytes;
  for (auto& [_, region] : regions) forget_accesses(region->bytes);
  for (block = 0; block < int(grid.x); ++block) {
    blockIdx.x = block;
    shared_bytes.assign(bytes, {});
    epoch = 0;
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
      for (int t = 0; t < count; ++t) {
        if (fibers[t]->state != State::ready) continue;
        current = fibers[t].get();
        threadIdx.x = thread = t;
        swapcontext(&scheduler, &current->context);
      }
    } while (release(count));
  }
}

}  // namespace shim

// Functions that instrumented code calls before each access.
extern "C" {
#define ACCESS(size)                                                                             \
  void __tsan_read##size(void* p) { detector::access(p, size, detector::Kind::read); }           \
  void __tsan_write##size(void* p) { detector::access(p, size, detector::Kind::write); }         \
  void __tsan_unaligned_read##size(void* p) { detector::access(p, size, detector::Kind::read); } \
  void __tsan_unaligned_write##size(void* p) { detector::access(p, size, detector::Kind::write); }
ACCESS(1) ACCESS(2) ACCESS(4) ACCESS(8) ACCESS(16) void __tsan_read_range(void* p, std::size_t size) {
  detector::access(p, size, detector::Kind::read);
}
void __tsan_write_range(void* p, std::size_t size) { detector::access(p, size, detector::Kind::write); }
void* __real_memcpy(void* to, const void* from, std::size_t size);
void* __wrap_memcpy(void* to, const void* from, std::size_t size) {
  detector::access(from, size, detector::Kind::read);
  detector::access(to, size, detector::Kind::write);
  return __real_memcpy(to, from, size);
}
void __tsan_vptr_update(void**, void*) {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() { detector::watching = true; }
}
