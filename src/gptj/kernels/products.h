// A few rows times a large matrix, of floats or of fewer bits: what takes the time is to read the
// matrix, once, in long pieces.
//
// Panels of columns go to threads, which go down them in blocks of some rows of the matrix: as
// floats (floats.h), in pairs of bfloat16 numbers (pairs.h), or as bytes (bytes.h) where x is
// rounded to such. Each number is a sum in the order of the matrix's rows. A row alone meets bytes
// as they lie in memory, in pieces of the matrix's rows (pieces.h), whose sums are exact.

#ifndef GPTJ_PRODUCTS_H_
#define GPTJ_PRODUCTS_H_

#include <type_traits>

#include "bytes.h"
#include "floats.h"
#include "pairs.h"
#include "pieces.h"

namespace {

constexpr int64_t kSums = 1 << 15;  // numbers of a result that a thread works on

// Columns [begin, begin + width) of out = x @ w. The sums of a row of x are `room` apart.
template <typename W, typename Left>
void multiply(const Plain<W>& w, const Left& left, int64_t begin, int64_t width, float* out,
              float* sums, int64_t room) {
  std::fill(sums, sums + left.held * room, 0.0f);
  for (int64_t k = 0; k < w.inner; k += Left::kDepth) add(w, left, k, begin, width, sums, room);
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
template <typename Left>
void multiply(const Int4& w, const Left& left, int64_t begin, int64_t width, float* out,
              float* sums, int64_t room) {
  const int64_t groups = w.inner / w.group;
  for (int64_t group = 0; group < groups; ++group) {
    std::fill(sums, sums + left.held * room, 0.0f);
    for (int64_t k = 0; k < w.group; k += w.depth(Left::kDepth)) {
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
  return std::clamp<int64_t>(most / kSpan * kSpan, 128, 4096);
}

// Runs work(factor, begin, width, sums, room) for panels of columns of each of the matrices, with
// room for the sums of `held` rows.
template <typename M, typename Work>
void in_panels(ffi::ThreadPool& pool, int64_t held, const std::vector<Factor<M>>& factors,
               const Work& work) {
  int64_t columns = 0;
  for (const auto& factor : factors) columns += factor.w.columns;
  const int64_t panel = panel_width(held, columns, pool.num_threads());
  const int64_t room = panel + kSpan;  // rows of sums a power of two apart would be slow
  const auto panels = [panel](const M& w) { return (w.columns + panel - 1) / panel; };
  int64_t count = 0;
  for (const auto& factor : factors) count += panels(factor.w);
  each(pool, count, [&](int64_t number) {
    const Factor<M>* factor = factors.data();
    for (; number >= panels(factor->w); ++factor) number -= panels(factor->w);
    const int64_t begin = number * panel, width = std::min(panel, factor->w.columns - begin);
    work(*factor, begin, width, scratch(0, held * room), room);
  });
}

// The products of x with matrices that have as many rows, and are stored alike.
template <typename M, typename X>
void products(ffi::ThreadPool& pool, const std::vector<Factor<M>>& factors, const X* x,
              int64_t rows) {
  const M& first = factors[0].w;
#ifdef __AVX512BF16__
  constexpr bool exact = !std::is_same_v<M, Plain<float>>;
  if constexpr (exact && std::is_same_v<X, BFloat16>) {
    const PairRows left = arranged_in_pairs(first, x, rows);
    in_panels(pool, left.held, factors, [&](const Factor<M>& factor, int64_t begin, int64_t width,
                                            float* sums, int64_t room) {
      const Tiles held(rows);
      multiply(factor.w, left, begin, width, factor.out, sums, room);
    });
    return;
  }
#endif
  const FloatRows left = arranged(first, x, rows);
  in_panels(pool, left.held, factors, [&](const Factor<M>& factor, int64_t begin, int64_t width,
                                          float* sums, int64_t room) {
    multiply(factor.w, left, begin, width, factor.out, sums, room);
  });
}

// The same of 8 or 4 bits, x rounded to bytes where the processor multiplies such.
template <typename M, typename X>
void rounded_products(ffi::ThreadPool& pool, const std::vector<Factor<M>>& factors, const X* x,
                      int64_t rows) {
#ifdef GPTJ_BYTES
  if (in_fours(factors[0].w)) {
    const ByteRows& left = arranged_in_bytes(pool, factors[0].w, x, rows);
    if (rows == 1 && left.chunk >= kShallow) return multiply_in_pieces(pool, factors, left);
    in_panels(pool, rows, factors, [&](const Factor<M>& factor, int64_t begin, int64_t width,
                                       float* sums, int64_t room) {
      multiply_rounded(factor.w, left, begin, width, factor.out, sums, room);
    });
    return;
  }
#endif
  products(pool, factors, x, rows);
}

}  // namespace

#endif  // GPTJ_PRODUCTS_H_
