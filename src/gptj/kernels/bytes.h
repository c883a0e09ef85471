// A matrix in 8 or 4 bits times rows that are rounded to bytes: processors multiply bytes by fours
// and add them in 32 bits (AVX512-VNNI).
//
// A row is rounded in chunks, each by a scale of its own, from its largest number; where the matrix
// has groups, in those. Where that would
// lose more than kLost of a chunk's norm, what is lost is rounded once more, and multiplied as a
// row of its own. So what becomes of a row depends on nothing but itself.

#ifndef GPTJ_BYTES_H_
#define GPTJ_BYTES_H_

#include <cmath>

#include "pairs.h"

#if defined(__AVX512VNNI__) && defined(__AVX512BF16__) && !defined(__AMX_BF16__)  // tiles are faster
#define GPTJ_BYTES

namespace {

constexpr int64_t kChunk = 256;       // the most rows of a block of the matrix
constexpr float kLost = 0.015f;       // of a chunk's norm
constexpr float kMost = 127.0f;       // the largest byte
constexpr float kNone = 1e-30f;       // a chunk of no larger numbers counts as zeros
constexpr int32_t kShift = 128;       // what makes a matrix's byte one without a sign
constexpr int64_t kFours = kChunk / 4;
constexpr int64_t kSeveral = 16;      // rows for which reading the matrix is what takes the time
constexpr int64_t kFar = 8 * kSpan;   // columns are asked for no sooner than so far from them
constexpr int64_t kAlone = 1 << 16;   // so many numbers a thread rounds sooner than it finds help

// A row's chunk in bytes, or what was lost of it.
struct alignas(64) Rounded {
  int8_t bytes[kChunk];
  float scale;
  int32_t sum;  // of the bytes
  int64_t row;
};

// Rows in chunks; of each chunk those to be multiplied, in fours. Its memory is used again.
struct ByteRows {
  int64_t rows, chunk, chunks;
  std::vector<Rounded> parts;                      // of a chunk first all rows, then what they lost
  std::vector<std::vector<const Rounded*>> taken;  // those of a chunk

  Rounded& part(int64_t number, int64_t level, int64_t row) {
    return parts[(2 * number + level) * rows + row];
  }
};

INLINE int64_t chunk_of(const Plain<int8_t>&) { return kChunk; }
INLINE int64_t chunk_of(const Int4& w) { return w.group; }

// Whether a matrix can be multiplied so.
INLINE bool in_fours(const Plain<int8_t>&) { return true; }
INLINE bool in_fours(const Int4& w) { return w.group <= kChunk && w.group % kLanes == 0; }

// Rounds `numbers` and leaves in them what is lost, of which it returns the sum of squares.
INLINE float round_to_bytes(float* numbers, int64_t chunk, float largest, int64_t row,
                            Rounded& to) {
  const float scale = largest / kMost;
  const __m512 times = _mm512_set1_ps(largest > kNone ? kMost / largest : 0.0f);
  const __m512 limit = _mm512_set1_ps(kMost);
  __m512i sum = _mm512_setzero_si512();
  __m512 squares = _mm512_setzero_ps();
  for (int64_t k = 0; k < chunk; k += kLanes) {
    const __m512 x = _mm512_loadu_ps(numbers + k);
    const __m512i rounded = _mm512_cvtps_epi32(_mm512_min_ps(_mm512_mul_ps(x, times), limit));
    _mm_store_si128(reinterpret_cast<__m128i*>(to.bytes + k), _mm512_cvtsepi32_epi8(rounded));
    sum = _mm512_add_epi32(sum, rounded);
    const __m512 kept = _mm512_mul_ps(_mm512_cvtepi32_ps(rounded), _mm512_set1_ps(scale));
    const __m512 lost = _mm512_sub_ps(x, kept);
    _mm512_storeu_ps(numbers + k, lost);
    squares = _mm512_fmadd_ps(lost, lost, squares);
  }
  to.scale = scale;
  to.sum = _mm512_reduce_add_epi32(sum);
  to.row = row;
  return _mm512_reduce_add_ps(squares);
}

// A chunk's numbers in the order in which the matrix's rows are read.
template <typename X>
INLINE void ordered(const Plain<int8_t>&, const X* x, int64_t count, float* to) {
  const int64_t whole = count / kLanes * kLanes;
  for (int64_t k = 0; k < whole; k += kLanes) store(to + k, load(x + k));
  for (int64_t k = whole; k < count; ++k) to[k] = single(x + k);
}
template <typename X>
INLINE void ordered(const Int4& w, const X* x, int64_t count, float* to) {
  const int64_t half = count / 2, whole = half / kLanes * kLanes;  // they are a group
  const __m512i first = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(kLanes / 2));
  for (int64_t k = 0; k < whole; k += kLanes) {
    const auto low = (__m512)load(x + k), high = (__m512)load(x + half + k);
    store(to + 2 * k, (Vector)_mm512_permutex2var_ps(low, first, high));
    store(to + 2 * k + kLanes, (Vector)_mm512_permutex2var_ps(low, second, high));
  }
  for (int64_t k = whole; k < half; ++k) {
    to[2 * k] = single(x + k);
    to[2 * k + 1] = single(x + half + k);
  }
}

// One chunk of a row, rounded; and again, where too much of it is lost.
template <typename M, typename X>
void round_chunk(const M& w, const X* x, int64_t count, int64_t row, Rounded& first,
                 Rounded& second) {
  const int64_t chunk = chunk_of(w);
  alignas(64) float numbers[kChunk] = {};
  ordered(w, x, count, numbers);
  __m512 most = _mm512_setzero_ps(), squares = most;
  for (int64_t k = 0; k < chunk; k += kLanes) {
    const __m512 value = _mm512_load_ps(numbers + k);
    most = _mm512_max_ps(most, _mm512_abs_ps(value));
    squares = _mm512_fmadd_ps(value, value, squares);
  }
  const float largest = _mm512_reduce_max_ps(most), norm = _mm512_reduce_add_ps(squares);
  const float lost = round_to_bytes(numbers, chunk, largest, row, first);
  second.row = -1;
  if (norm != norm || largest == INFINITY) {
    first.scale = NAN;  // no number is the sum with one that is none
  } else if (lost > kLost * kLost * norm) {
    round_to_bytes(numbers, chunk, largest / kMost / 2, row, second);
  }
}

const Rounded kNothing = {{}, 0.0f, 0, -1};

template <typename M, typename X>
const ByteRows& arranged_in_bytes(ffi::ThreadPool& pool, const M& w, const X* x, int64_t rows) {
  static thread_local ByteRows held;
  ByteRows& left = held;  // of this thread, whichever looks at it
  const int64_t size = chunk_of(w), chunks = (w.inner + size - 1) / size;
  left.rows = rows;
  left.chunk = size;
  left.chunks = chunks;
  if (left.parts.size() < size_t(2 * chunks * rows)) left.parts.resize(2 * chunks * rows);
  const auto round_row = [&](int64_t row) {
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const int64_t k = chunk * size, count = std::min(size, w.inner - k);
      round_chunk(w, x + row * w.inner + k, count, row, left.part(chunk, 0, row),
                  left.part(chunk, 1, row));
    }
  };
  if (rows * w.inner > kAlone) {
    each(pool, rows, round_row);
  } else {
    for (int64_t row = 0; row < rows; ++row) round_row(row);
  }
  if (left.taken.size() < size_t(chunks)) left.taken.resize(chunks);
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    auto& taken = left.taken[chunk];
    taken.clear();
    for (int64_t n = 0; n < 2 * rows; ++n) {
      const Rounded& part = left.part(chunk, 0, n);
      if (part.row >= 0) taken.push_back(&part);
    }
    while (taken.size() > 1 && taken.size() % 4) taken.push_back(&kNothing);
  }
  return left;
}

// kSpan columns of four rows of the matrix from k, by fours and without signs. Where they are not
// `whole`, zeros below the matrix's end and beyond the width. Asks for those that come `soon`.
template <bool whole>
INLINE Span fours_of(const Plain<int8_t>& w, int64_t k, int64_t begin, int64_t width,
                     int64_t soon) {
  const __m512i sign = _mm512_set1_epi8(static_cast<char>(kShift));
  const auto read = [&](int64_t row) {
    if (!whole && row >= w.inner) return _mm512_setzero_si512();
    const int8_t* at = w.row(row, begin);
    __builtin_prefetch(at + soon, 0, kNear);
    if (whole) return _mm512_xor_si512(spread(at), sign);
    alignas(64) int8_t some[kSpan] = {};
    __builtin_memcpy(some, at, width);
    return _mm512_xor_si512(spread(some), sign);
  };
  // Bytes of two rows, then of two and two: as two halves of a number would be.
  return interleaved(read(k), read(k + 1), read(k + 2), read(k + 3));
}

// The same of a matrix in 4 bits, which have no signs; its rows come whole.
template <bool whole>
INLINE Span fours_of(const Int4& w, int64_t k, int64_t begin, int64_t width, int64_t soon) {
  const __m512i nibble = _mm512_set1_epi8(15);
  const auto read = [&](int64_t row) {
    const uint8_t* at = w.row(row, begin);
    __builtin_prefetch(at + soon, 0, kNear);
    if (whole) return spread(at);
    alignas(64) uint8_t some[kSpan] = {};
    __builtin_memcpy(some, at, width);
    return spread(some);
  };
  const auto low = [&](__m512i pairs) { return _mm512_and_si512(pairs, nibble); };
  const auto high = [&](__m512i pairs) { return low(_mm512_srli_epi16(pairs, 4)); };
  const __m512i one = read(k), next = read(k + 2);
  return interleaved(low(one), high(one), low(next), high(next));
}

// What the sums of a chunk are multiplied by, and what is added to them, for kSpan columns.
struct Ends {
  const float *scale, *low;  // of a matrix in 4 bits
  alignas(64) float some[2][kSpan];

  template <bool whole>
  INLINE void read(const Int4& w, int64_t chunk, int64_t begin, int64_t width) {
    const int64_t at = chunk * w.columns + begin;
    scale = w.scale + at;
    low = w.low + at;
    if (whole) {  // they are wanted at the block's end
      for (int64_t n = 0; n < kSpan; n += kLanes) {
        __builtin_prefetch(scale + n, 0, kNear);
        __builtin_prefetch(low + n, 0, kNear);
      }
      return;
    }
    __builtin_memcpy(some[0], scale, width * 4);
    __builtin_memcpy(some[1], low, width * 4);
    scale = some[0];
    low = some[1];
  }
};
struct NoEnds {
  template <bool whole>
  INLINE void read(const Plain<int8_t>&, int64_t, int64_t, int64_t) {}
};
template <typename M>
using EndsOf = std::conditional_t<std::is_same_v<M, Int4>, Ends, NoEnds>;

// Where the sums of a row's chunk begin.
INLINE __m512i start(const NoEnds&, const Rounded& of) {
  return _mm512_set1_epi32(-kShift * of.sum);
}
INLINE __m512i start(const Ends&, const Rounded&) { return _mm512_setzero_si512(); }

// What they come to, added to the sums of the chunks before.
INLINE __m512 scaled(const NoEnds&, const Rounded& of, __m512i sum, int, __m512 before) {
  return _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_set1_ps(of.scale), before);
}
INLINE __m512 scaled(const Ends& ends, const Rounded& of, __m512i sum, int j, __m512 before) {
  const __m512 low = _mm512_loadu_ps(ends.low + j * kLanes);
  const __m512 all = _mm512_fmadd_ps(low, _mm512_set1_ps(of.scale * of.sum), before);
  const __m512 own = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_set1_ps(of.scale));
  return _mm512_fmadd_ps(own, _mm512_loadu_ps(ends.scale + j * kLanes), all);
}

// Where a block of some fours lies in a chunk: the sums in 32 bits of a chunk that begins with it
// begin at what shifts them, and those of a chunk that ends with it are scaled and added.
struct Block {
  int64_t first, fours;
  bool begins, ends;
};

// sums[row][n] += scale * sum over k of bytes[k] * w[k][n], for one or four of those taken; `fours`
// is asked for kSpan columns of each four rows of a block, one after the other. Between blocks the
// sums of a chunk are kept, `room` apart as well. Of the intrinsic for TAKE_FOUR gcc 12 makes a
// move and more for each sum.
#define START(m)                                                                                  \
  const int8_t* bytes##m = taken[m]->bytes + 4 * block.first;                                     \
  EACH_SPAN(LOAD_SHIFT, m)
#define LOAD_SHIFT(m, j)                                                                          \
  auto a##m##j = block.begins ? start(ends, *taken[m])                                          \
                                : _mm512_load_si512(kept + m * room + j * kLanes);
#define TAKE_FOUR(m, j) asm("vpdpbusd %2, %1, %0" : "+v"(a##m##j) : "v"(span.at[j]), "v"(x##m));
#define TAKE_FOURS_OF(m)                                                                          \
  {                                                                                               \
    int32_t four;                                                                                 \
    __builtin_memcpy(&four, bytes##m + 4 * k, 4);                                                 \
    const __m512i x##m = _mm512_set1_epi32(four);                                                 \
    EACH_SPAN(TAKE_FOUR, m)                                                                       \
  }
#define KEEP_SUM(m, j) _mm512_store_si512(kept + m * room + j * kLanes, a##m##j);
#define ADD_SCALED(m, j)                                                                          \
  store(at##m + j * kLanes,                                                                       \
        (Vector)scaled(ends, *taken[m], a##m##j, j, (__m512)load(at##m + j * kLanes)));
#define ADD_TAKEN(m)                                                                              \
  if (taken[m]->row >= 0) {                                                                       \
    float* at##m = sums + taken[m]->row * room;                                                   \
    EACH_SPAN(ADD_SCALED, m)                                                                      \
  }
template <typename Ends, typename Fours>
INLINE void add_bytes_of_four(const Rounded* const* taken, const Block& block, const Ends& ends,
                              int32_t* kept, float* sums, int64_t room, const Fours& fours) {
  EACH_OF_FOUR(START)
  for (int64_t k = 0; k < block.fours; ++k) {
    const Span span = fours(k);
    EACH_OF_FOUR(TAKE_FOURS_OF)
  }
  if (block.ends) {
    EACH_OF_FOUR(ADD_TAKEN)
  } else {
    EACH_SPAN(KEEP_SUM, 0) EACH_SPAN(KEEP_SUM, 1) EACH_SPAN(KEEP_SUM, 2) EACH_SPAN(KEEP_SUM, 3)
  }
}
template <typename Ends, typename Fours>
INLINE void add_bytes_of_one(const Rounded* const* taken, const Block& block, const Ends& ends,
                             int32_t* kept, float* sums, int64_t room, const Fours& fours) {
  START(0)
  for (int64_t k = 0; k < block.fours; ++k) {
    const Span span = fours(k);
    TAKE_FOURS_OF(0)
  }
  if (block.ends) {
    ADD_TAKEN(0)
  } else {
    EACH_SPAN(KEEP_SUM, 0)
  }
}

// Adds what a block of kSpan columns gives to the sums of those taken, of which `read(k)` reads
// fours.
template <typename Ends, typename Read>
INLINE void add_block(const std::vector<const Rounded*>& taken, const Block& block,
                      const Ends& ends, int32_t* kept, float* sums, int64_t room,
                      const Read& read) {
  const int64_t count = taken.size();
  if (count == 1) return add_bytes_of_one(taken.data(), block, ends, kept, sums, room, read);
  if (count == 4) return add_bytes_of_four(taken.data(), block, ends, kept, sums, room, read);
  alignas(64) uint32_t part[kFours * kSpan];
  const auto read_and_put = [&](int64_t k) {
    const Span span = read(k);
    for (int j = 0; j < 4; ++j) _mm512_store_si512(part + k * kSpan + j * kLanes, span.at[j]);
    return span;
  };
  const auto again = [&](int64_t k) {
    const auto at = [&](int j) { return _mm512_load_si512(part + k * kSpan + j * kLanes); };
    return Span{{at(0), at(1), at(2), at(3)}};
  };
  add_bytes_of_four(taken.data(), block, ends, kept, sums, room, read_and_put);
  for (int64_t m = 4; m < count; m += 4) {
    add_bytes_of_four(taken.data() + m, block, ends, kept + m * room, sums, room, again);
  }
}

// Adds what a block of all columns from `begin` gives; `first` is its first row in the matrix.
template <typename M>
INLINE void add(const M& w, const std::vector<const Rounded*>& taken, int64_t chunk, int64_t first,
                const Block& block, int64_t begin, int64_t width, int32_t* kept, float* sums,
                int64_t room) {
  const int64_t depth = 4 * block.fours;
  EndsOf<M> ends;
  const int64_t far = std::clamp(width / 4 / kSpan * kSpan, kSpan, kFar);
  for (int64_t column = 0; column < width; column += kSpan) {
    const int64_t some = std::min(kSpan, width - column);
    const int64_t soon = ahead(w, depth, column, width, far);
    const auto add_read = [&](auto whole) {
      ends.template read<whole>(w, chunk, begin + column, some);
      add_block(taken, block, ends, kept + column, sums + column, room, [&](int64_t k) {
        return fours_of<whole>(w, first + 4 * k, begin + column, some, soon);
      });
    };
    if (some == kSpan && first + depth <= w.inner) {
      add_read(std::true_type{});
    } else {
      add_read(std::false_type{});
    }
  }
}

// The sums of rows, `room` apart, as columns [begin, begin + width) of the product.
INLINE void put(const Plain<int8_t>& w, int64_t rows, int64_t begin, int64_t width,
                const float* sums, int64_t room, float* out) {
  for (int64_t m = 0; m < rows; ++m) {
    const float* from = sums + m * room;
    float* to = out + m * w.columns + begin;
    for (int64_t n = 0; n < width; ++n) to[n] = from[n] * w.scale[begin + n];
  }
}
INLINE void put(const Int4& w, int64_t rows, int64_t begin, int64_t width, const float* sums,
                int64_t room, float* out) {
  for (int64_t m = 0; m < rows; ++m) {
    std::copy(sums + m * room, sums + m * room + width, out + m * w.columns + begin);
  }
}

// Columns [begin, begin + width) of out = x @ w. The sums of a row of x are `room` apart.
template <typename M>
void multiply_rounded(const M& w, const ByteRows& left, int64_t begin, int64_t width, float* out,
                      float* sums, int64_t room) {
  constexpr bool grouped = std::is_same_v<M, Int4>;
  const int64_t all = left.chunk / 4;
  std::fill(sums, sums + left.rows * room, 0.0f);
  for (int64_t chunk = 0; chunk < left.chunks; ++chunk) {
    const auto& taken = left.taken[chunk];
    const int64_t count = taken.size(), fours = grouped || count > kSeveral ? all : all / 4;
    auto* kept = reinterpret_cast<int32_t*>(scratch(1, fours < all ? count * room : 0));
    for (int64_t first = 0; first < all; first += fours) {
      const Block block{first, fours, first == 0, first + fours == all};
      add(w, taken, chunk, 4 * (chunk * all + first), block, begin, width, kept, sums, room);
    }
  }
  put(w, left.rows, begin, width, sums, room, out);
}

}  // namespace

#endif  // GPTJ_BYTES
#endif  // GPTJ_BYTES_H_
