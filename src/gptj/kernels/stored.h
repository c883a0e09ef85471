// A matrix as it is stored, in floats or in fewer bits, and the order in which its rows are read.

#ifndef GPTJ_STORED_H_
#define GPTJ_STORED_H_

#include "vectors.h"

namespace {

constexpr int64_t kSpan = 64;  // columns that are unpacked together: in bytes, a line of the cache
constexpr int64_t kLine = 64;  // bytes of a line of the cache, and of a tile's row
constexpr int kNear = 2;       // the cache into which numbers are asked for: the second
constexpr int64_t kAhead = 2 * kSpan;  // columns from these to those that are asked for already

// A matrix whose columns have a scale each, or none.
template <typename W>
struct Plain {
  const W* numbers;
  const float* scale;
  int64_t inner, columns;

  static constexpr int64_t group = 1;
  int64_t depth(int64_t most) const { return most; }
  const W* row(int64_t k, int64_t column) const { return numbers + k * columns + column; }
};

// A matrix low[n] + scale[n] * q[k][n], q in 4 bits, whose scales and low ends are those of a group
// of rows. Of a byte the low bits belong to the first half of a group's rows, the others to the
// second. Rows are counted in the order in which they are read: the first of one half, the first of
// the other, the second of one.
struct Int4 {
  const uint8_t* pairs;
  const float *scale, *low;
  int64_t inner, columns, group;

  int64_t depth(int64_t most) const { return std::min(most, group); }
  const uint8_t* row(int64_t k, int64_t column) const { return pairs + k / 2 * columns + column; }
};

// A matrix, and where its product with x goes.
template <typename M>
struct Factor {
  M w;
  float* out;
};

// Where the row k of a matrix comes among those read.
INLINE int64_t place(int64_t k, int64_t group) {
  const int64_t half = group / 2, in = k % group;
  return half ? k - in + (in < half ? 2 * in : 2 * (in - half) + 1) : k;
}

// The sum in vectors, and then of what is left, one after the other.
template <typename X>
INLINE float sum(const X* x, int64_t count) {
  Vector sums = {};
  int64_t k = 0;
  for (; k + kLanes <= count; k += kLanes) sums += load(x + k);
  float total = added(sums);
  for (; k < count; ++k) total += single(x + k);
  return total;
}

// For each row of x the sum of each group of its numbers, where a matrix has such.
template <typename M, typename X>
void add_up(const M& w, const X* x, int64_t rows, float* sums) {
  if (w.group == 1) return;
  for (int64_t k = 0; k < rows * w.inner; k += w.group) sums[k / w.group] = sum(x + k, w.group);
}

}  // namespace

#endif  // GPTJ_STORED_H_
