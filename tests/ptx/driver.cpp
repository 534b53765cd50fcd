// Runs the kernels that nvcc compiled to PTX on random problems, every byte of their memory watched, and compares their
// results with those of the same kernels from the C++ compiler, which other tests compare with the oracle.
//
//   driver COUNT [SEED]
//   driver layer CHANNELS SIZE STRIDE
//
// Prints the instructions that each kernel's threads executed, by kind. A layer is one of a network: channels-last,
// with a prior and the gradients of all.
#include <dlfcn.h>

#include "../cuda_checks/problems.h"
#include "memory.h"

namespace robust_lr::cuda {
namespace {

// What compilers mangle alike: not the types of parameters.
std::string without_parameters(const std::string& name) { return name.substr(0, name.find("EEv")); }

shim::Translation translation_of(const void* kernel) {
  Dl_info found{};
  if (dladdr(kernel, &found) == 0 || found.dli_sname == nullptr) ptx::fail("a kernel without a name");
  for (const ptx::Kernel& each : ptx::kernels)
    if (without_parameters(each.name) == without_parameters(found.dli_sname)) return each.run;
  std::fprintf(stderr, "PTX: no %s\n", found.dli_sname);
  std::_Exit(1);
}

Problem usual_problem(Index channels, Index height, Index width, Index stride, bool zeros) {
  Problem p;
  p.batch = 1, p.channels = channels, p.height = height, p.width = width;
  p.shared = std::min<Index>(8, channels), p.groups = (channels + 7) / 8, p.components = 1;
  p.kernel = 7, p.stride = stride;
  p.out_height = (height + stride - 1) / stride, p.out_width = (width + stride - 1) / stride;
  p.composability = Composability::squared_difference, p.softmax = true, p.padding = zeros ? 3 : 0;
  return p;
}

// Relative to the result, or to a part of the greatest result: gradients may cancel.
void compare(const std::vector<Result>& found, const std::vector<Result>& wanted) {
  auto norm = [](const std::vector<double>& values) {
    double sum = 0;
    for (const double v : values) sum += v * v;
    return std::sqrt(sum);
  };
  double greatest = 0;
  for (const Result& each : wanted) greatest = std::max(greatest, norm(each.values));
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    std::vector<double> difference = found[i].values;
    for (std::size_t j = 0; j < difference.size(); ++j) difference[j] -= wanted[i].values[j];
    if (norm(difference) <= 5e-3 * std::max(norm(wanted[i].values), 0.01 * greatest)) continue;
    std::fprintf(stderr, "%s differs: %g of %g\n", wanted[i].name, norm(difference), norm(wanted[i].values));
    std::_Exit(1);
  }
}

// Both ways, with the same random numbers.
template <class Run>
void run_both(Run run) {
  const std::mt19937 start = generator;
  auto record = [&](bool translated) {
    generator = start;
    shim::find_translation = translated ? translation_of : nullptr;
    detector::set_watching(translated);
    results.clear();
    run();
    detector::free_all();
    return results;
  };
  const std::vector<Result> wanted = record(false);
  compare(record(true), wanted);
}

}  // namespace
}  // namespace robust_lr::cuda

int main(int count_arguments, char** arguments) {
  using namespace robust_lr::cuda;
  auto number = [&](int i, int otherwise) { return i < count_arguments ? std::atoi(arguments[i]) : otherwise; };
  if (std::string(arguments[1]) == "layer") {
    const auto p = usual_problem(number(2, 0), number(3, 0), number(3, 0), number(4, 0), false);
    run_both([&] { run_relation<BFloat16>(p, true); });
  } else {
    generator.seed(number(2, 0));
    for (int i = 0; i < number(1, 10); ++i) {
      const bool stem = i % 3 == 0;
      const auto p = usual_problem(stem ? draw({8, 20, 64}) : draw({1, 5, 8, 20, 32}), draw({1, 3, 7, 13}),
                                   draw({1, 4, 7, 18}), stem ? 2 : draw({1, 2}), draw({0, 0, 1}));
      run_both([&] { stem ? run_stem<BFloat16>(p) : run_relation<BFloat16>(p); });
    }
  }
  for (std::size_t i = 0; i < ptx::kernels.size(); ++i) {
    std::printf("%s", ptx::kernels[i].name.c_str());
    for (const std::uint64_t count : ptx::counts[i]) std::printf(" %llu", static_cast<unsigned long long>(count));
    std::printf("\n");
  }
}
