// Memory for lanes during a computation: scratch memory, and ring buffers of image rows in it.
#pragma once

#include <cstdlib>
#include <new>
#include <vector>

#include "planes.h"

namespace robust_lr::cpu {

// Memory of one thread that is kept between calls, so that the next call causes no page faults.
class Scratch {
 public:
  // Returns this thread's scratch memory, and releases everything taken from it before.
  static Scratch& fresh() {
    static thread_local Scratch scratch;
    scratch.release();
    return scratch;
  }
  ~Scratch() {
    for (const Piece& piece : pieces_) std::free(piece.data);
  }

  void release() { piece_ = used_ = 0; }

  template <class V>
  V* take(Index count) {
    const std::size_t bytes = (count * sizeof(V) + kVectorBytes - 1) / kVectorBytes * kVectorBytes;
    for (; piece_ < pieces_.size() && used_ + bytes > pieces_[piece_].bytes; ++piece_) used_ = 0;
    if (piece_ == pieces_.size()) {
      const std::size_t size = std::max<std::size_t>(bytes, 1 << 20);
      char* data = static_cast<char*>(std::aligned_alloc(kVectorBytes, size));
      if (data == nullptr) throw std::bad_alloc();
      pieces_.push_back({data, size});
      used_ = 0;
    }
    V* taken = reinterpret_cast<V*>(pieces_[piece_].data + used_);
    used_ += bytes;
    return taken;
  }

 private:
  struct Piece {
    char* data;
    std::size_t bytes;
  };
  std::vector<Piece> pieces_;
  std::size_t piece_ = 0, used_ = 0;
};

// Number of rows to move at once: a power of two, so that even short rows fill whole squares of lanes.
template <class A>
Index rows_at_once(Index width) {
  Index rows = 1;
  while (2 * rows * width <= 8 * kLanes<A>) rows *= 2;
  return rows;
}

// Consecutive rows of an image in lanes, [row][column][channel], with a margin of zeros around the image. Row r of the
// padded image is in slot r modulo the number of slots, a power of two.
template <class A>
class Rows {
 public:
  Rows(Scratch& scratch, Index rows, Index height, Index width, Index channels, Index margin = 0)
      : height_(height), width_(width), channels_(channels), margin_(margin) {
    rows = std::min(rows, height + 2 * margin);
    Index slots = 1;
    while (slots < rows) slots *= 2;
    mask_ = slots - 1;
    data_ = scratch.take<Vec<A>>(slots * (width + 2 * margin) * channels);
  }

  Vec<A>* at(Index row, Index column = 0) const {
    return data_ + ((row & mask_) * (width_ + 2 * margin_) + column) * channels_;
  }

  template <class P>
  void load(const P& planes, Index first, Index last) const {
    if (margin_ > 0) clear(first, last);
    each_piece(first, last, [&](Index pixel, Index count, Vec<A>* lanes) { planes.load(pixel, count, lanes); });
  }

  template <class P>
  void store(const P& planes, Index first, Index last) const {
    each_piece(first, last, [&](Index pixel, Index count, Vec<A>* lanes) { planes.store(pixel, count, lanes); });
  }

  void clear(Index first, Index last) const {
    for (Index row = first; row < last; ++row) std::fill(at(row), at(row, width_ + 2 * margin_), Vec<A>{});
  }

  // Calls f(first pixel, count, lanes) for each run of pixels in rows [first, last) that is contiguous in lanes.
  template <class F>
  void each_piece(Index first, Index last, F f) const {
    while (first < last) {
      const Index rows = margin_ > 0 ? 1 : std::min(last - first, mask_ + 1 - (first & mask_));
      const Index row = first - margin_;
      if (row >= 0 && row < height_) f(row * width_, rows * width_, at(first, margin_));
      first += rows;
    }
  }

 private:
  Index height_, width_, channels_, margin_, mask_;
  Vec<A>* data_;
};

}  // namespace robust_lr::cpu
