// Blocks of a matrix times rows of floats. With one or two rows a block is multiplied as it is
// read; with more it is unpacked to floats first, which stay near for all of them.

#ifndef GPTJ_FLOATS_H_
#define GPTJ_FLOATS_H_

#include "stored.h"

namespace {

constexpr int64_t kTogether = 4;  // rows of x that an unpacked block is multiplied with
constexpr int64_t kFew = 2;       // rows of x for which it is not unpacked
constexpr int64_t kStep = 2 * kLanes;
constexpr int64_t kStreams = 8;  // rows of the matrix that are read together, for one of x

#define EACH_OF_EIGHT(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7)
#define EACH_OF_ONE(DO) DO(0)

// Rows of x, the numbers for a row of the matrix together. Of those held the last may be zeros.
struct FloatRows {
  static constexpr int64_t kDepth = 16;  // rows of a block of the matrix
  int64_t rows, held;
  float *numbers, *sums;
};

template <typename M, typename X>
FloatRows arranged(const M& w, const X* x, int64_t rows) {
  const int64_t held = rows <= kFew ? rows : (rows + kTogether - 1) / kTogether * kTogether;
  float* numbers = scratch(1, w.inner * held + rows * (w.inner / w.group));
  const FloatRows left{rows, held, numbers, numbers + w.inner * held};
  std::fill(numbers, left.sums, 0.0f);
  for (int64_t m = 0; m < rows; ++m) {
    for (int64_t k = 0; k < w.inner; ++k) {
      numbers[place(k, w.group) * held + m] = single(x + m * w.inner + k);
    }
  }
  add_up(w, x, rows, left.sums);
  return left;
}

// sums[n] += sum over k of x[k][0] * w[k][n], for the rows k of a block and `width` columns n.
#define TAKE(j) const float x##j = x[(k + j) * pitch];
#define ADD(j)                                                                                    \
  if (n % line == 0) __builtin_prefetch(at + (j + kStreams) * columns + n, 0, kNear);              \
  a += x##j * load(at + j * columns + n);
#define ADD_SINGLE(j) sums[n] = __builtin_fmaf(x##j, single(at + j * columns + n), sums[n]);
#define ADD_ROWS(COUNT, EACH)                                                                     \
  for (; k + COUNT <= depth; k += COUNT) {                                                        \
    const auto* at = w.row(first + k, begin);                                                     \
    EACH(TAKE)                                                                                    \
    for (int64_t n = 0; n < whole; n += kLanes) {                                                 \
      Vector a = load(sums + n);                                                                  \
      EACH(ADD)                                                                                   \
      store(sums + n, a);                                                                         \
    }                                                                                             \
    for (int64_t n = whole; n < width; ++n) {                                                     \
      EACH(ADD_SINGLE)                                                                            \
    }                                                                                             \
  }
template <typename W>
INLINE void add_row(const Plain<W>& w, const float* x, int64_t pitch, int64_t first, int64_t depth,
                    int64_t begin, int64_t width, float* sums) {
  const int64_t whole = width / kLanes * kLanes, columns = w.columns;
  constexpr int64_t line = kLine / sizeof(W);
  int64_t k = 0;
  ADD_ROWS(kStreams, EACH_OF_EIGHT)
  ADD_ROWS(1, EACH_OF_ONE)
}

// The same of a matrix in 4 bits, of its q alone.
#define TAKE_PAIR(j) const float x##j = x[(k + 2 * j) * pitch], y##j = x[(k + 2 * j + 1) * pitch];
#define ADD_PAIR(j)                                                                               \
  {                                                                                               \
    const Ints pair = wide(at + j * columns + n);                                               \
    a += x##j * floats(pair & 15);                                                                \
    a += y##j * floats(pair >> 4);                                                                \
  }
#define ADD_SINGLE_PAIR(j)                                                                        \
  sums[n] = __builtin_fmaf(x##j, at[j * columns + n] & 15, sums[n]);                            \
  sums[n] = __builtin_fmaf(y##j, at[j * columns + n] >> 4, sums[n]);
#define ADD_PAIRS(COUNT, EACH)                                                                    \
  for (; k + 2 * COUNT <= depth; k += 2 * COUNT) {                                                \
    const uint8_t* at = w.row(first + k, begin);                                                  \
    EACH(TAKE_PAIR)                                                                               \
    for (int64_t n = 0; n < whole; n += kLanes) {                                                 \
      Vector a = load(sums + n);                                                                  \
      EACH(ADD_PAIR)                                                                              \
      store(sums + n, a);                                                                         \
    }                                                                                             \
    for (int64_t n = whole; n < width; ++n) {                                                     \
      EACH(ADD_SINGLE_PAIR)                                                                       \
    }                                                                                             \
  }
INLINE void add_row(const Int4& w, const float* x, int64_t pitch, int64_t first, int64_t depth,
                    int64_t begin, int64_t width, float* sums) {
  const int64_t whole = width / kLanes * kLanes, columns = w.columns;
  int64_t k = 0;
  ADD_PAIRS(4, EACH_OF_FOUR)
  ADD_PAIRS(1, EACH_OF_ONE)
}

// Part of a block as floats, kSpan columns of each row. Beyond the matrix they may be anything.
template <typename W>
INLINE void unpack(const Plain<W>& w, int64_t first, int64_t depth, int64_t begin, int64_t width,
                   float* part) {
  const int64_t whole = width / kLanes * kLanes;
  constexpr int64_t line = kSpan / sizeof(W);
  for (int64_t k = 0; k < depth; ++k, part += kSpan) {
    const W* at = w.row(first + k, begin);
    for (int64_t n = 0; n < kSpan; n += line) __builtin_prefetch(at + kAhead + n);
    for (int64_t n = 0; n < whole; n += kLanes) store(part + n, load(at + n));
    for (int64_t n = whole; n < width; ++n) part[n] = single(at + n);
  }
}
INLINE void unpack(const Int4& w, int64_t first, int64_t depth, int64_t begin, int64_t width,
                   float* part) {
  const int64_t whole = width / kLanes * kLanes;
  for (int64_t k = 0; k < depth; k += 2, part += 2 * kSpan) {
    const uint8_t* at = w.row(first + k, begin);
    __builtin_prefetch(at + kAhead);
    for (int64_t n = 0; n < whole; n += kLanes) {
      const Ints pair = wide(at + n);
      store(part + n, floats(pair & 15));
      store(part + kSpan + n, floats(pair >> 4));
    }
    for (int64_t n = whole; n < width; ++n) part[n] = at[n] & 15, part[kSpan + n] = at[n] >> 4;
  }
}

// sums[m][n] += sum over k of x[k][m] * part[k][n], for kTogether rows m and kStep columns n.
#define LOAD(m) Vector a##m = load(sums + m * width), b##m = load(sums + m * width + kLanes);
#define ADD_PART(m) a##m += x[k * pitch + m] * w0, b##m += x[k * pitch + m] * w1;
#define STORE(m) store(sums + m * width, a##m), store(sums + m * width + kLanes, b##m);
INLINE void add_part(const float* x, int64_t pitch, const float* part, int64_t depth, float* sums,
                     int64_t width) {
  EACH_OF_FOUR(LOAD)
  for (int64_t k = 0; k < depth; ++k) {
    Vector w0 = load(part + k * kSpan), w1 = load(part + k * kSpan + kLanes);
    HOLD(w0);
    HOLD(w1);
    EACH_OF_FOUR(ADD_PART)
  }
  EACH_OF_FOUR(STORE)
}

// Adds what a block gives to the sums of all rows, which are `room` apart.
template <typename M>
INLINE void add(const M& w, const FloatRows& left, int64_t first, int64_t begin, int64_t width,
                float* sums, int64_t room) {
  const int64_t depth = std::min(w.depth(left.kDepth), w.inner - first);
  const float* x = left.numbers + first * left.held;
  if (left.rows <= kFew) {
    for (int64_t m = 0; m < left.rows; ++m) {
      add_row(w, x + m, left.held, first, depth, begin, width, sums + m * room);
    }
    return;
  }
  for (int64_t column = 0; column < width; column += kSpan) {
    alignas(64) float part[FloatRows::kDepth * kSpan];
    const int64_t some = std::min(kSpan, width - column);
    unpack(w, first, depth, begin + column, some, part);
    for (int64_t n = 0; n < some; n += kStep) {
      for (int64_t m = 0; m < left.held; m += kTogether) {
        add_part(x + m, left.held, part + n, depth, sums + m * room + column + n, room);
      }
    }
  }
}

}  // namespace

#endif  // GPTJ_FLOATS_H_
