// Runs the CUDA kernels on random problems, each tensor in memory of its own whose every byte is watched.
//
//   driver COUNT [SEED]
#include "problems.h"

int main(int count_arguments, char** arguments) {
  using namespace robust_lr::cuda;
  const int count = count_arguments > 1 ? std::atoi(arguments[1]) : 100;
  generator.seed(count_arguments > 2 ? std::atoi(arguments[2]) : 0);
  for (int i = 0; i < count; ++i) {
    if (i % 3 == 0) {
      i % 2 ? run_stem<float>(random_problem(true)) : run_stem<BFloat16>(random_problem(true));
    } else {
      i % 2 ? run_relation<BFloat16>(random_problem(false)) : run_relation<float>(random_problem(false));
    }
    if (i % 10 == 0) run_sums();
    results.clear();
    detector::free_all();
  }
  detector::print_barriers();
  std::printf("%d problems\n", count);
}
