// A matrix of bytes times rows that are rounded to bytes as well: processors multiply bytes by fours
// and add them in 32 bits (AVX512-VNNI).
//
// A row is rounded in chunks, each by a scale of its own, from its largest number. Where that would
// lose more than kLost of a chunk's norm, what is lost is rounded once more, and multiplied as a
// row of its own. So what becomes of a row depends on nothing but itself.

#ifndef GPTJ_BYTES_H_
#define GPTJ_BYTES_H_

#include <cmath>

#include "pairs.h"

#if defined(__AVX512VNNI__) && defined(__AVX512BF16__) && !defined(__AMX_BF16__)  // tiles are faster
#define GPTJ_BYTES

namespace {

constexpr int64_t kChunk = 256;       // rows of a block of the matrix
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
  int32_t shifted;  // what kShift adds to its products
  int64_t row;
};

// Rows in chunks; of each chunk those to be multiplied, in fours. Its memory is used again.
struct ByteRows {
  int64_t rows, chunks;
  std::vector<Rounded> parts;                      // of a chunk first all rows, then what they lost
  std::vector<std::vector<const Rounded*>> taken;  // those of a chunk

  Rounded& part(int64_t chunk, int64_t level, int64_t row) {
    return parts[(2 * chunk + level) * rows + row];
  }
};

// Rounds `numbers` and leaves in them what is lost, of which it returns the sum of squares.
INLINE float round_to_bytes(float* numbers, float largest, int64_t row, Rounded& to) {
  const float scale = largest / kMost;
  const __m512 times = _mm512_set1_ps(largest > kNone ? kMost / largest : 0.0f);
  const __m512 limit = _mm512_set1_ps(kMost);
  __m512i sum = _mm512_setzero_si512();
  __m512 squares = _mm512_setzero_ps();
  for (int64_t k = 0; k < kChunk; k += 16) {
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
  to.shifted = -kShift * _mm512_reduce_add_epi32(sum);
  to.row = row;
  return _mm512_reduce_add_ps(squares);
}

// One chunk of a row, rounded; and again, where too much of it is lost.
template <typename X>
void round_chunk(const X* x, int64_t count, int64_t row, Rounded& first, Rounded& second) {
  alignas(64) float numbers[kChunk] = {};
  __m512 most = _mm512_setzero_ps(), squares = most;
  int64_t whole = count / kLanes * kLanes;
  for (int64_t k = 0; k < whole; k += kLanes) store(numbers + k, load(x + k));
  for (int64_t k = whole; k < count; ++k) numbers[k] = single(x + k);
  for (int64_t k = 0; k < kChunk; k += 16) {
    const __m512 value = _mm512_load_ps(numbers + k);
    most = _mm512_max_ps(most, _mm512_abs_ps(value));
    squares = _mm512_fmadd_ps(value, value, squares);
  }
  const float largest = _mm512_reduce_max_ps(most), norm = _mm512_reduce_add_ps(squares);
  const float lost = round_to_bytes(numbers, largest, row, first);
  second.row = -1;
  if (norm != norm || largest == INFINITY) {
    first.scale = NAN;  // no number is the sum with one that is none
  } else if (lost > kLost * kLost * norm) {
    round_to_bytes(numbers, largest / kMost / 2, row, second);
  }
}

const Rounded kNothing = {{}, 0.0f, 0, -1};

template <typename X>
const ByteRows& arranged_in_bytes(ffi::ThreadPool& pool, const Plain<int8_t>& w, const X* x,
                                  int64_t rows) {
  static thread_local ByteRows held;
  ByteRows& left = held;  // of this thread, whichever looks at it
  const int64_t chunks = (w.inner + kChunk - 1) / kChunk;
  left.rows = rows;
  left.chunks = chunks;
  if (left.parts.size() < size_t(2 * chunks * rows)) left.parts.resize(2 * chunks * rows);
  const auto round_row = [&](int64_t row) {
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const int64_t k = chunk * kChunk, count = std::min(kChunk, w.inner - k);
      round_chunk(x + row * w.inner + k, count, row, left.part(chunk, 0, row),
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

// Where a block of some fours lies in a chunk: the sums in 32 bits of a chunk that begins with it
// begin at what shifts them, and those of a chunk that ends with it are scaled and added.
struct Block {
  int64_t first, fours;
  bool begins() const { return first == 0; }
  bool ends() const { return first + fours == kFours; }
};

// sums[row][n] += scale * sum over k of bytes[k] * w[k][n], for one or four of those taken; `fours`
// is asked for kSpan columns of each four rows of a block, one after the other. Between blocks the
// sums of a chunk are kept, `room` apart as well. Of the intrinsic for TAKE_FOUR gcc 12 makes a
// move and more for each sum.
#define START(m)                                                                                  \
  const int8_t* bytes##m = taken[m]->bytes + 4 * block.first;                                     \
  EACH_SPAN(LOAD_SHIFT, m)
#define LOAD_SHIFT(m, j)                                                                          \
  auto a##m##j = block.begins() ? _mm512_set1_epi32(taken[m]->shifted)                            \
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
  store(at##m + j * kLanes, (Vector)_mm512_fmadd_ps(_mm512_cvtepi32_ps(a##m##j), scale##m,        \
                                                    (__m512)load(at##m + j * kLanes)));
#define ADD_TAKEN(m)                                                                              \
  if (taken[m]->row >= 0) {                                                                       \
    const __m512 scale##m = _mm512_set1_ps(taken[m]->scale);                                      \
    float* at##m = sums + taken[m]->row * room;                                                   \
    EACH_SPAN(ADD_SCALED, m)                                                                      \
  }
template <typename Fours>
INLINE void add_bytes_of_four(const Rounded* const* taken, const Block& block, int32_t* kept,
                              float* sums, int64_t room, const Fours& fours) {
  EACH_OF_FOUR(START)
  for (int64_t k = 0; k < block.fours; ++k) {
    const Span span = fours(k);
    EACH_OF_FOUR(TAKE_FOURS_OF)
  }
  if (block.ends()) {
    EACH_OF_FOUR(ADD_TAKEN)
  } else {
    EACH_SPAN(KEEP_SUM, 0) EACH_SPAN(KEEP_SUM, 1) EACH_SPAN(KEEP_SUM, 2) EACH_SPAN(KEEP_SUM, 3)
  }
}
template <typename Fours>
INLINE void add_bytes_of_one(const Rounded* const* taken, const Block& block, int32_t* kept,
                             float* sums, int64_t room, const Fours& fours) {
  START(0)
  for (int64_t k = 0; k < block.fours; ++k) {
    const Span span = fours(k);
    TAKE_FOURS_OF(0)
  }
  if (block.ends()) {
    ADD_TAKEN(0)
  } else {
    EACH_SPAN(KEEP_SUM, 0)
  }
}

// Adds what a block of kSpan columns gives to the sums of those taken, of which `read(k)` reads
// fours.
template <typename Read>
INLINE void add_block(const std::vector<const Rounded*>& taken, const Block& block, int32_t* kept,
                      float* sums, int64_t room, const Read& read) {
  const int64_t count = taken.size();
  if (count == 1) return add_bytes_of_one(taken.data(), block, kept, sums, room, read);
  if (count == 4) return add_bytes_of_four(taken.data(), block, kept, sums, room, read);
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
  add_bytes_of_four(taken.data(), block, kept, sums, room, read_and_put);
  for (int64_t m = 4; m < count; m += 4) {
    add_bytes_of_four(taken.data() + m, block, kept + m * room, sums, room, again);
  }
}

// Adds what a block of all columns from `begin` gives.
INLINE void add(const Plain<int8_t>& w, const std::vector<const Rounded*>& taken, int64_t chunk,
                const Block& block, int64_t begin, int64_t width, int32_t* kept, float* sums,
                int64_t room) {
  const int64_t first = chunk * kChunk + 4 * block.first, depth = 4 * block.fours;
  const int64_t far = std::clamp(width / 4 / kSpan * kSpan, kSpan, kFar);
  for (int64_t column = 0; column < width; column += kSpan) {
    const int64_t some = std::min(kSpan, width - column);
    const int64_t soon = ahead(w, depth, column, width, far);
    const auto add_read = [&](auto whole) {
      add_block(taken, block, kept + column, sums + column, room, [&](int64_t k) {
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

// Columns [begin, begin + width) of out = x @ w. The sums of a row of x are `room` apart.
void multiply(const Plain<int8_t>& w, const ByteRows& left, int64_t begin, int64_t width,
              float* out, float* sums, int64_t room) {
  std::fill(sums, sums + left.rows * room, 0.0f);
  for (int64_t chunk = 0; chunk < left.chunks; ++chunk) {
    const auto& taken = left.taken[chunk];
    const int64_t count = taken.size(), fours = count > kSeveral ? kFours : kFours / 4;
    auto* kept = reinterpret_cast<int32_t*>(scratch(1, fours < kFours ? count * room : 0));
    for (int64_t first = 0; first < kFours; first += fours) {
      add(w, taken, chunk, Block{first, fours}, begin, width, kept, sums, room);
    }
  }
  for (int64_t m = 0; m < left.rows; ++m) {
    const float* from = sums + m * room;
    float* to = out + m * w.columns + begin;
    for (int64_t n = 0; n < width; ++n) to[n] = from[n] * w.scale[begin + n];
  }
}

}  // namespace

#endif  // GPTJ_BYTES
#endif  // GPTJ_BYTES_H_
