// Instructions that all threads of a warp execute together. Each of the two schedulers of fibers includes this header
// once, in the file that defines `own_operation` and `wait_for_warp`.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>

#include "cuda_bf16.h"

namespace shim {

// What a thread offers to the others of its warp, and takes from them.
struct WarpOperation {
  enum class Kind { shuffle_xor, shuffle_from, product } kind;
  int lanes;   // of shuffle_xor, the same in all threads
  int source;  // of shuffle_from
  std::uint32_t offered, received;
  float sums[4];  // of a product
  unsigned left[4], right[2];
};

// One of the two matrix elements in a word.
inline float element(unsigned word, int which) {
  __nv_bfloat16 value;
  value.bits = std::uint16_t(word >> (16 * which));
  return __bfloat162float(value);
}

// The product of csrc/cuda/common/products.h. A tensor core's own rounding is not known; sums here are in double.
inline void multiply_warp(WarpOperation* const (&warp)[32]) {
  float left[16][16], right[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const int line = lane / 4, pair = lane % 4;
    for (int word = 0; word < 4; ++word)
      for (int i = 0; i < 2; ++i)
        left[line + 8 * (word % 2)][2 * pair + 8 * (word / 2) + i] = element(warp[lane]->left[word], i);
    for (int word = 0; word < 2; ++word)
      for (int i = 0; i < 2; ++i) right[2 * pair + 8 * word + i][line] = element(warp[lane]->right[word], i);
  }
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
      double sum = warp[lane]->sums[i];
      for (int k = 0; k < 16; ++k) sum += double(left[row][k]) * right[k][column];
      warp[lane]->sums[i] = float(sum);
    }
  }
}

// Executes the instruction that all threads of a warp wait for; returns false if they wait for different ones.
inline bool perform(WarpOperation* const (&warp)[32]) {
  for (const WarpOperation* each : warp)
    if (each->kind != warp[0]->kind || each->lanes != warp[0]->lanes) return false;
  if (warp[0]->kind == WarpOperation::Kind::shuffle_xor) {
    for (int t = 0; t < 32; ++t) warp[t]->received = warp[t ^ warp[0]->lanes]->offered;
  } else if (warp[0]->kind == WarpOperation::Kind::shuffle_from) {
    for (int t = 0; t < 32; ++t) warp[t]->received = warp[warp[t]->source % 32]->offered;
  } else {
    multiply_warp(warp);
  }
  return true;
}

WarpOperation& own_operation();  // of the running thread
void wait_for_warp();            // until the running thread's warp has executed its operation

static std::uint32_t shuffle(WarpOperation::Kind kind, std::uint32_t value, int lanes, int source) {
  WarpOperation& own = own_operation();
  own.kind = kind, own.lanes = lanes, own.source = source, own.offered = value;
  wait_for_warp();
  return own.received;
}

float shuffle_xor(float value, int lanes) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  return std::bit_cast<float>(shuffle(WarpOperation::Kind::shuffle_xor, bits, lanes, 0));
}

unsigned shuffle_from(unsigned value, int lane) { return shuffle(WarpOperation::Kind::shuffle_from, value, 0, lane); }

void multiply(float (&sums)[4], const unsigned (&left)[4], const unsigned (&right)[2]) {
  WarpOperation& own = own_operation();
  own.kind = WarpOperation::Kind::product, own.lanes = 0;
  std::copy_n(sums, 4, own.sums), std::copy_n(left, 4, own.left), std::copy_n(right, 2, own.right);
  wait_for_warp();
  std::copy_n(own.sums, 4, sums);
}

}  // namespace shim
