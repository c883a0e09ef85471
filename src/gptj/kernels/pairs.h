// Blocks of a matrix times rows of bfloat16 numbers, which processors multiply in pairs and add in
// float32: tiles of them (AMX), or vectors (AVX512-BF16). The numbers of a bfloat16, an int8 or a
// 4-bit matrix are exact in bfloat16.

#ifndef GPTJ_PAIRS_H_
#define GPTJ_PAIRS_H_

#include "stored.h"

#ifdef __AVX512BF16__
#ifdef __AMX_BF16__
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

#ifdef __AMX_BF16__
// Whether the system lets this process use tiles: on Linux it is asked once.
bool tiles() {
  static const bool allowed = syscall(SYS_arch_prctl, 0x1023, 18) == 0;
  return allowed;
}
#else
constexpr bool tiles() { return false; }
#endif

constexpr int64_t kTile = 16;  // rows of a tile of x, or pairs of rows of one of the matrix

// Rows of x, each as long as tiles want it, and a line apart from the next: rows a power of two
// apart would be slow. Of those held the last may be zeros.
struct PairRows {
  static constexpr int64_t kDepth = 4 * kTile;  // rows of a block of the matrix
  int64_t rows, held, pitch;
  uint16_t* numbers;
  float* sums;
};

template <typename M>
PairRows arranged_in_pairs(const M& w, const BFloat16* x, int64_t rows) {
  const int64_t step = rows == 1 && !tiles() ? 1 : rows < kTile ? 4 : kTile;
  const int64_t held = (rows + step - 1) / step * step;
  const int64_t pitch = (w.inner + 2 * kTile - 1) / (2 * kTile) * 2 * kTile + 2 * kTile;
  float* room = scratch(1, held * pitch / 2 + rows * (w.inner / w.group));
  auto* numbers = reinterpret_cast<uint16_t*>(room);
  const PairRows left{rows, held, pitch, numbers, room + held * pitch / 2};
  std::fill(numbers, numbers + held * pitch, uint16_t{0});
  for (int64_t m = 0; m < rows; ++m) {
    for (int64_t k = 0; k < w.inner; ++k) {
      numbers[m * pitch + place(k, w.group)] = x[m * w.inner + k].bits;
    }
  }
  add_up(w, x, rows, left.sums);
  return left;
}

// Two vectors of numbers that are exact in bfloat16, each of one with its fellow of the other.
INLINE Words paired(Vector first, Vector second) {
  return reinterpret_cast<Words>(first) >> 16 | (reinterpret_cast<Words>(second) & 0xffff0000u);
}
INLINE uint32_t paired(float first, float second) {
  return paired(Vector{first}, Vector{second})[0];
}

// kSpan columns in pairs, as four vectors.
struct Span {
  __m512i at[4];
};

// Columns 16 j + 4 l and after in lane l of vector j, from bytes whose lane l has them as its dword
// j: the low and the high bytes of a row's bfloat16 numbers, and of the next row's.
INLINE Span interleaved(__m512i low, __m512i high, __m512i next_low, __m512i next_high) {
  const __m512i a = _mm512_unpacklo_epi8(low, high), b = _mm512_unpackhi_epi8(low, high);
  const __m512i c = _mm512_unpacklo_epi8(next_low, next_high);
  const __m512i d = _mm512_unpackhi_epi8(next_low, next_high);
  return {{_mm512_unpacklo_epi16(a, c), _mm512_unpackhi_epi16(a, c), _mm512_unpacklo_epi16(b, d),
           _mm512_unpackhi_epi16(b, d)}};
}

// kSpan bytes, dwords ordered as `interleaved` wants them.
INLINE __m512i spread(const void* at) {
  const __m512i order =
      _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm512_permutexvar_epi32(order, _mm512_loadu_si512(at));
}

// The bytes of the bfloat16 numbers from 0: the low ones, or the high ones.
struct Bytes128 {
  alignas(64) uint8_t low[128], high[128];
  Bytes128() {
    for (int n = 0; n < 128; ++n) {
      const float value = static_cast<float>(n);
      uint32_t bits;
      __builtin_memcpy(&bits, &value, 4);
      low[n] = static_cast<uint8_t>(bits >> 16);
      high[n] = static_cast<uint8_t>(bits >> 24);
    }
  }
};
const Bytes128 kBytes;

#ifdef __AVX512VBMI__
INLINE __m512i looked_up(const uint8_t* table, __m512i number) {
  return _mm512_permutex2var_epi8(_mm512_load_si512(table), number, _mm512_load_si512(table + 64));
}

// An int8 is looked up by its size, which is below 128, and gets its sign.
INLINE Span span_of(const Plain<int8_t>& w, int64_t k, bool both, int64_t begin) {
  const __m512i sign = _mm512_set1_epi8(static_cast<char>(0x80)), none = _mm512_setzero_si512();
  const __m512i a = spread(w.row(k, begin)), b = both ? spread(w.row(k + 1, begin)) : none;
  const __m512i size_a = _mm512_abs_epi8(a), size_b = _mm512_abs_epi8(b);
  // high | a & sign
  const __m512i high_a = _mm512_ternarylogic_epi32(looked_up(kBytes.high, size_a), a, sign, 0xf8);
  const __m512i high_b = _mm512_ternarylogic_epi32(looked_up(kBytes.high, size_b), b, sign, 0xf8);
  return interleaved(looked_up(kBytes.low, size_a), high_a, looked_up(kBytes.low, size_b), high_b);
}
#endif

INLINE Span span_of(const Int4& w, int64_t k, bool, int64_t begin) {
  const __m512i low = _mm512_broadcast_i32x4(_mm_load_si128((const __m128i*)kBytes.low));
  const __m512i high = _mm512_broadcast_i32x4(_mm_load_si128((const __m128i*)kBytes.high));
  const __m512i pairs = spread(w.row(k, begin)), nibble = _mm512_set1_epi8(15);
  const __m512i a = _mm512_and_si512(pairs, nibble);
  const __m512i b = _mm512_and_si512(_mm512_srli_epi16(pairs, 4), nibble);
  return interleaved(_mm512_shuffle_epi8(low, a), _mm512_shuffle_epi8(high, a),
                     _mm512_shuffle_epi8(low, b), _mm512_shuffle_epi8(high, b));
}

INLINE Span span_of(const Plain<BFloat16>& w, int64_t k, bool both, int64_t begin) {
  const __m512i order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7), none = _mm512_setzero_si512();
  const auto half = [&](int64_t row, int64_t column) {
    return _mm512_permutexvar_epi64(order, _mm512_loadu_si512(w.row(row, column)));
  };
  const __m512i a = half(k, begin), b = half(k, begin + 32);
  const __m512i c = both ? half(k + 1, begin) : none, d = both ? half(k + 1, begin + 32) : none;
  return {{_mm512_unpacklo_epi16(a, c), _mm512_unpackhi_epi16(a, c), _mm512_unpacklo_epi16(b, d),
           _mm512_unpackhi_epi16(b, d)}};
}

template <typename M>
constexpr bool in_spans() {
#ifdef __AVX512VBMI__
  return true;
#else
  return !std::is_same_v<M, Plain<int8_t>>;
#endif
}

// How far from `column` of a block's `width` those are that come soon: at its end they are the first
// of the next block, which lies `depth` rows below.
template <typename M>
INLINE int64_t ahead(const M& w, int64_t depth, int64_t column, int64_t width,
                     int64_t far = kAhead) {
  return column + far < width ? far : w.row(depth, far) - w.row(0, width);
}

// Asks for columns that come soon.
template <typename M>
INLINE void ask_for(const M& w, int64_t k, bool both, int64_t begin, int64_t soon) {
  const auto *at = w.row(k, begin), *next = w.row(k + both, begin);
  constexpr int64_t line = kLine / sizeof(*at);
  for (int64_t n = 0; n < kSpan; n += line) {
    __builtin_prefetch(at + soon + n, 0, kNear);
    if (next != at) __builtin_prefetch(next + soon + n, 0, kNear);
  }
}

// kSpan columns of the matrix's row k with those of the one after, or of zeros where that is not
// `both`. Beyond the matrix's columns they may be anything.
template <typename W>
INLINE void pair_up(const Plain<W>& w, int64_t k, bool both, int64_t begin, int64_t width,
                    uint32_t* to) {
  const W *at = w.row(k, begin), *next = w.row(k + both, begin);
  const int64_t whole = width / kLanes * kLanes;
  for (int64_t n = 0; n < whole; n += kLanes) {
    store(to + n, paired(load(at + n), both ? load(next + n) : Vector{}));
  }
  for (int64_t n = whole; n < width; ++n) {
    to[n] = paired(single(at + n), both ? single(next + n) : 0.0f);
  }
}
INLINE void pair_up(const Int4& w, int64_t k, bool, int64_t begin, int64_t width, uint32_t* to) {
  const uint8_t* at = w.row(k, begin);
  const int64_t whole = width / kLanes * kLanes;
  for (int64_t n = 0; n < whole; n += kLanes) {
    const Ints pair = wide(at + n);
    store(to + n, paired(floats(pair & 15), floats(pair >> 4)));
  }
  for (int64_t n = whole; n < width; ++n) to[n] = paired(at[n] & 15, at[n] >> 4);
}

// sums[m][n] += sum over k of x[m][k] * part[k][n], for four rows m and kSpan columns n. Other work
// is done meanwhile, in small pieces: a processor shuffles while it multiplies.
// Sixteen sums at a time: with fewer each would wait for the one before.
#define LOAD_SUM(m, j) auto a##m##j = (__m512)load(sums + m * room + j * kLanes);
#define STORE_SUM(m, j) store(sums + m * room + j * kLanes, (Vector)a##m##j);
#define LOAD_COLUMNS(j) const auto w##j = (__m512bh)_mm512_load_si512(part + j * kLanes);
#define TAKE_SUM(m, j) a##m##j = _mm512_dpbf16_ps(a##m##j, x##m, w##j);
#define TAKE_PAIR_OF(m)                                                                           \
  {                                                                                               \
    int32_t both;                                                                                 \
    __builtin_memcpy(&both, x + m * pitch, 4);                                                    \
    const auto x##m = (__m512bh)_mm512_set1_epi32(both);                                          \
    EACH_SPAN(TAKE_SUM, m)                                                                        \
  }
template <typename Work>
INLINE void add_vectors(const uint16_t* x, int64_t pitch, const uint32_t* part, int64_t pairs,
                        float* sums, int64_t room, const Work& meanwhile) {
  EACH_SPAN(LOAD_SUM, 0) EACH_SPAN(LOAD_SUM, 1) EACH_SPAN(LOAD_SUM, 2) EACH_SPAN(LOAD_SUM, 3)
  for (int64_t k = 0; k < pairs; ++k, part += kSpan, x += 2) {
    EACH_OF_FOUR(LOAD_COLUMNS)
    EACH_OF_FOUR(TAKE_PAIR_OF)
    meanwhile();
  }
  EACH_SPAN(STORE_SUM, 0) EACH_SPAN(STORE_SUM, 1) EACH_SPAN(STORE_SUM, 2) EACH_SPAN(STORE_SUM, 3)
}

// The same for one row.
#define LOAD_SPAN(j) auto a##j = (__m512)load(sums + j * kLanes);
#define STORE_SPAN(j) store(sums + j * kLanes, (Vector)a##j);
#define TAKE_COLUMNS(j)                                                                           \
  a##j = _mm512_dpbf16_ps(a##j, both, (__m512bh)_mm512_load_si512(part + j * kLanes));
INLINE void add_vector(const uint16_t* x, const uint32_t* part, int64_t pairs, float* sums) {
  EACH_OF_FOUR(LOAD_SPAN)
  for (int64_t k = 0; k < pairs; ++k, part += kSpan, x += 2) {
    int32_t pair;
    __builtin_memcpy(&pair, x, 4);
    const auto both = (__m512bh)_mm512_set1_epi32(pair);
    EACH_OF_FOUR(TAKE_COLUMNS)
  }
  EACH_OF_FOUR(STORE_SPAN)
}

#ifdef __AMX_BF16__

// What tiles hold while this lives: 0 to 3 sums, 4 numbers of x, 5 of the matrix.
class Tiles {
 public:
  explicit Tiles(int64_t rows) {
    struct {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    for (int tile = 0; tile < 6; ++tile) {
      config.bytes[tile] = kLine;
      config.rows[tile] = static_cast<uint8_t>(tile < 5 ? std::min(rows, kTile) : kTile);
    }
    asm volatile("" : : "r"(&config) : "memory");
    _tile_loadconfig(&config);
  }
  ~Tiles() { _tile_release(); }
};

// The same for as many rows as a tile has, and for pairs filled up with zeros to whole tiles.
#define LOAD_TILE(n) _tile_loadd(n, sums + n * kTile, room * 4);
#define ADD_TILE(n)                                                                               \
  _tile_loadd(5, part + k * kSpan + n * kTile, kSpan * 4);                                        \
  _tile_dpbf16ps(n, 4, 5);                                                                        \
  meanwhile();
#define STORE_TILE(n) _tile_stored(n, sums + n * kTile, room * 4);
template <typename Work>
INLINE void add_tiles(const uint16_t* x, int64_t pitch, const uint32_t* part, int64_t pairs,
                      float* sums, int64_t room, const Work& meanwhile) {
  asm volatile("" : : : "memory");  // what tiles load is in memory: gcc does not know that they do
  LOAD_TILE(0) LOAD_TILE(1) LOAD_TILE(2) LOAD_TILE(3)
  for (int64_t k = 0; k < pairs; k += kTile) {
    _tile_loadd(4, x + 2 * k, pitch * 2);
    ADD_TILE(0) ADD_TILE(1) ADD_TILE(2) ADD_TILE(3)
  }
  STORE_TILE(0) STORE_TILE(1) STORE_TILE(2) STORE_TILE(3)
}

#else

struct Tiles {
  explicit Tiles(int64_t) {}
};
template <typename Work>
INLINE void add_tiles(const uint16_t*, int64_t, const uint32_t*, int64_t, float*, int64_t, Work) {}

#endif

// The same for one row and a whole span, which is multiplied as it is read.
#define TAKE_SPAN(j) a##j = _mm512_dpbf16_ps(a##j, x, (__m512bh)span.at[j]);
template <typename M>
INLINE void add_row(const M& w, const uint16_t* numbers, int64_t first, int64_t depth,
                    int64_t begin, int64_t soon, float* sums) {
  EACH_OF_FOUR(LOAD_SPAN)
  for (int64_t k = 0; k < depth; k += 2) {
    const bool both = k + 1 < depth;
    ask_for(w, first + k, both, begin, soon);
    const Span span = span_of(w, first + k, both, begin);
    int32_t pair;
    __builtin_memcpy(&pair, numbers + first + k, 4);
    const auto x = (__m512bh)_mm512_set1_epi32(pair);
    EACH_OF_FOUR(TAKE_SPAN)
  }
  EACH_OF_FOUR(STORE_SPAN)
}

// Adds what a block gives to the sums of all rows, which are `room` apart. Some columns of it are
// multiplied while those after them are put in pairs.
template <typename M>
INLINE void add(const M& w, const PairRows& left, int64_t first, int64_t begin, int64_t width,
                float* sums, int64_t room) {
  const int64_t depth = std::min(w.depth(left.kDepth), w.inner - first);
  const int64_t pairs = (depth + 1) / 2, padded = (pairs + kTile - 1) / kTile * kTile;
  alignas(64) uint32_t parts[2][PairRows::kDepth / 2 * kSpan];
  const auto put = [&](int64_t column, int64_t pair, uint32_t* part) {
    const int64_t some = std::min(kSpan, width - column);
    const bool both = 2 * pair + 1 < depth;
    const int64_t k = first + 2 * pair;
    uint32_t* to = part + pair * kSpan;
    ask_for(w, k, both, begin + column, ahead(w, depth, column, width));
    if constexpr (in_spans<M>()) {
      if (some == kSpan) {
        const Span span = span_of(w, k, both, begin + column);
        for (int j = 0; j < 4; ++j) _mm512_store_si512(to + j * kLanes, span.at[j]);
        return;
      }
    }
    pair_up(w, k, both, begin + column, some, to);
  };
  if constexpr (in_spans<M>()) {
    if (left.held == 1) {
      const int64_t whole = width / kSpan * kSpan;
      for (int64_t n = 0; n < whole; n += kSpan) {
        add_row(w, left.numbers, first, depth, begin + n, ahead(w, depth, n, width), sums + n);
      }
      if (width == whole) return;
      begin += whole, width -= whole, sums += whole;
    }
  }
  for (auto& part : parts) std::fill(part + pairs * kSpan, part + padded * kSpan, 0u);
  for (int64_t pair = 0; pair < pairs; ++pair) put(0, pair, parts[0]);
  for (int64_t column = 0, turn = 0; column < width; column += kSpan, turn = 1 - turn) {
    const int64_t next = column + kSpan;
    int64_t pair = next < width ? 0 : pairs;
    const auto go_on = [&](int64_t count) {
      for (const int64_t end = std::min(pair + count, pairs); pair < end; ++pair) {
        put(next, pair, parts[1 - turn]);
      }
    };
    for (int64_t m = 0; m < left.held; m += tiles() ? kTile : 4) {
      const uint16_t* x = left.numbers + m * left.pitch + first;
      float* at = sums + m * room + column;
      if (tiles()) {
        add_tiles(x, left.pitch, parts[turn], padded, at, room, [&] { go_on(4); });
      } else if (left.held == 1) {
        add_vector(x, parts[turn], pairs, at);
      } else {
        add_vectors(x, left.pitch, parts[turn], pairs, at, room, [&] { go_on(1); });
      }
    }
    go_on(pairs);
  }
}

}  // namespace

#else

namespace {
constexpr bool tiles() { return false; }
}  // namespace

#endif  // __AVX512BF16__
#endif  // GPTJ_PAIRS_H_
