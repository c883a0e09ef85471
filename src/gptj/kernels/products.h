// A few rows times a large matrix, of floats or of fewer bits: what takes the time is to read the
// matrix, once, in long pieces.
//
// Panels of columns go to threads, which go down them in blocks of some rows of the matrix. With
// one or two rows of x a block is multiplied as it is read; with more it is unpacked to floats
// first, some columns at a time, which stay near for all of them. Either way each number is a sum
// in the order of the matrix's rows.

#ifndef GPTJ_PRODUCTS_H_
#define GPTJ_PRODUCTS_H_

#include "vectors.h"

namespace {

constexpr int64_t kDepth = 16;  // rows of a block
constexpr int64_t kSpan = 64;   // columns that are unpacked together: in bytes, a line of the cache
constexpr int64_t kAhead = 2 * kSpan;   // columns from these to those that are asked for already
constexpr int64_t kTogether = 4;        // rows of x that an unpacked block is multiplied with
constexpr int64_t kFew = 2;             // rows of x for which it is not unpacked
constexpr int64_t kSums = 1 << 15;      // numbers of a result that a thread works on
constexpr int64_t kStep = 2 * kLanes;

// Sums and factors have names of their own: in an array, gcc would keep them in memory.
#define EACH_OF_EIGHT(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7)
#define EACH_OF_FOUR(DO) DO(0) DO(1) DO(2) DO(3)
#define EACH_OF_ONE(DO) DO(0)

// A matrix whose columns have a scale each, or none.
template <typename W>
struct Plain {
  const W* numbers;
  const float* scale;
  int64_t inner, columns;

  static constexpr int64_t group = 1;
  int64_t depth() const { return kDepth; }
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

  int64_t depth() const { return std::min(kDepth, group); }
  const uint8_t* row(int64_t k, int64_t column) const { return pairs + k / 2 * columns + column; }
};

// Some rows of x as products want them: the numbers for a row of the matrix together, and of each
// group of these the sum, row by row of x. Beyond the rows there may be some of zeros.
struct Left {
  int64_t rows, pitch;
  float *numbers, *sums;
};

// The sum in vectors, and then of what is left, one after the other.
INLINE float sum(const float* x, int64_t count) {
  Vector sums = {};
  int64_t k = 0;
  for (; k + kLanes <= count; k += kLanes) sums += load(x + k);
  float total = added(sums);
  for (; k < count; ++k) total += x[k];
  return total;
}

template <typename M>
Left arranged(const M& w, const float* x, int64_t rows) {
  const int64_t pitch = rows <= kFew ? rows : (rows + kTogether - 1) / kTogether * kTogether;
  float* numbers = scratch(1, w.inner * pitch + rows * (w.inner / w.group));
  const Left left{rows, pitch, numbers, numbers + w.inner * pitch};
  const int64_t half = w.group / 2;
  std::fill(numbers, left.sums, 0.0f);
  for (int64_t m = 0; m < rows; ++m, x += w.inner) {
    for (int64_t k = 0; k < w.inner; ++k) {
      const int64_t in = k % w.group, at = in < half ? 2 * in : 2 * (in - half) + 1;
      numbers[(k - in + (half ? at : 0)) * pitch + m] = x[k];
    }
    for (int64_t k = 0; half && k < w.inner; k += w.group) {
      left.sums[(m * w.inner + k) / w.group] = sum(x + k, w.group);
    }
  }
  return left;
}

// sums[n] += sum over k of x[k][0] * w[k][n], for the rows k of a block and `width` columns n.
#define TAKE(j) const float x##j = x[(k + j) * pitch];
#define ADD(j) a += x##j * load(at + j * columns + n);
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
  int64_t k = 0;
  ADD_ROWS(8, EACH_OF_EIGHT)
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
INLINE void add(const M& w, const Left& left, int64_t first, int64_t begin, int64_t width,
                float* sums, int64_t room) {
  const int64_t depth = std::min(w.depth(), w.inner - first);
  const float* x = left.numbers + first * left.pitch;
  if (left.rows <= kFew) {
    for (int64_t m = 0; m < left.rows; ++m) {
      add_row(w, x + m, left.pitch, first, depth, begin, width, sums + m * room);
    }
    return;
  }
  for (int64_t column = 0; column < width; column += kSpan) {
    alignas(64) float part[kDepth * kSpan];
    const int64_t some = std::min(kSpan, width - column);
    unpack(w, first, depth, begin + column, some, part);
    for (int64_t n = 0; n < some; n += kStep) {
      for (int64_t m = 0; m < left.pitch; m += kTogether) {
        add_part(x + m, left.pitch, part + n, depth, sums + m * room + column + n, room);
      }
    }
  }
}

// Columns [begin, begin + width) of out = x @ w. The sums of a row of x are `room` apart.
template <typename W>
void multiply(const Plain<W>& w, const Left& left, int64_t begin, int64_t width, float* out,
              float* sums, int64_t room) {
  std::fill(sums, sums + left.pitch * room, 0.0f);
  for (int64_t k = 0; k < w.inner; k += kDepth) add(w, left, k, begin, width, sums, room);
  for (int64_t m = 0; m < left.rows; ++m) {
    const float* from = sums + m * room;
    float* to = out + m * w.columns + begin;
    if (w.scale) {
      for (int64_t n = 0; n < width; ++n) to[n] = from[n] * w.scale[begin + n];
    } else {
      std::copy(from, from + width, to);
    }
  }
}

// The same of a matrix in 4 bits: of a group it is scale * (x @ q) + low * (the sum of x).
void multiply(const Int4& w, const Left& left, int64_t begin, int64_t width, float* out,
              float* sums, int64_t room) {
  const int64_t groups = w.inner / w.group;
  for (int64_t group = 0; group < groups; ++group) {
    std::fill(sums, sums + left.pitch * room, 0.0f);
    for (int64_t k = 0; k < w.group; k += w.depth()) {
      add(w, left, group * w.group + k, begin, width, sums, room);
    }
    const float* scale = w.scale + group * w.columns + begin;
    const float* low = w.low + group * w.columns + begin;
    for (int64_t m = 0; m < left.rows; ++m) {
      const float total = left.sums[m * groups + group], *from = sums + m * room;
      float* to = out + m * w.columns + begin;
      for (int64_t n = 0; n < width; ++n) {
        const float before = group ? to[n] : 0.0f;
        to[n] = __builtin_fmaf(scale[n], from[n], __builtin_fmaf(low[n], total, before));
      }
    }
  }
}

// How many columns a thread takes at a time: long pieces of the matrix's rows, but no more numbers
// of the result than stay near, and work for all threads.
INLINE int64_t panel_width(int64_t rows, int64_t columns, int64_t threads) {
  const int64_t most = std::min(kSums / rows, columns / (2 * threads));
  return std::clamp<int64_t>(most / kSpan * kSpan, 256, 4096);
}

template <typename M>
void product(ffi::ThreadPool& pool, const M& w, const float* x, int64_t rows, float* out) {
  const Left left = arranged(w, x, rows);
  const int64_t panel = panel_width(rows, w.columns, pool.num_threads());
  const int64_t room = panel + kSpan;  // rows of sums a power of two apart would be slow
  each(pool, (w.columns + panel - 1) / panel, [&](int64_t number) {
    const int64_t begin = number * panel, width = std::min(panel, w.columns - begin);
    multiply(w, left, begin, width, out, scratch(0, left.pitch * room), room);
  });
}

}  // namespace

#endif  // GPTJ_PRODUCTS_H_
