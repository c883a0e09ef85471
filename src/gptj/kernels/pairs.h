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

constexpr int64_t kTile = 16;  // rows of a tile of x, or pairs of rows of one of the matrix
constexpr int64_t kLine = 64;  // bytes of a tile's row
constexpr int kNear = 2;       // the cache into which numbers are asked for: the second

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
  const int64_t step = rows < kTile ? 4 : kTile, held = (rows + step - 1) / step * step;
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

// kSpan columns of the matrix's row k with those of the one after, or of zeros where that is not
// `both`. Beyond the matrix's columns they may be anything.
template <typename W>
INLINE void pair_up(const Plain<W>& w, int64_t k, bool both, int64_t begin, int64_t width,
                    uint32_t* to) {
  const W *at = w.row(k, begin), *next = w.row(k + both, begin);
  constexpr int64_t line = kLine / sizeof(W);
  for (int64_t n = 0; n < kSpan; n += line) {
    __builtin_prefetch(at + kAhead + n, 0, kNear);
    __builtin_prefetch(next + kAhead + n, 0, kNear);
  }
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
  __builtin_prefetch(at + kAhead, 0, kNear);
  const int64_t whole = width / kLanes * kLanes;
  for (int64_t n = 0; n < whole; n += kLanes) {
    const Ints pair = wide(at + n);
    store(to + n, paired(floats(pair & 15), floats(pair >> 4)));
  }
  for (int64_t n = whole; n < width; ++n) to[n] = paired(at[n] & 15, at[n] >> 4);
}

// sums[m][n] += sum over k of x[m][k] * part[k][n], for four rows m and kSpan columns n.
#define LOAD_PAIR(m) auto a##m = (__m512)load(sums + m * room + n);
#define TAKE_PAIRS(m)                                                                             \
  {                                                                                               \
    int32_t both;                                                                                 \
    __builtin_memcpy(&both, x + m * pitch + 2 * k, 4);                                            \
    a##m = _mm512_dpbf16_ps(a##m, (__m512bh)_mm512_set1_epi32(both), w);                          \
  }
#define STORE_PAIR(m) store(sums + m * room + n, (Vector)a##m);
INLINE void add_vectors(const uint16_t* x, int64_t pitch, const uint32_t* part, int64_t pairs,
                        float* sums, int64_t room) {
  for (int64_t n = 0; n < kSpan; n += kLanes) {
    LOAD_PAIR(0) LOAD_PAIR(1) LOAD_PAIR(2) LOAD_PAIR(3)
    for (int64_t k = 0; k < pairs; ++k) {
      const auto w = (__m512bh)_mm512_loadu_si512(part + k * kSpan + n);
      TAKE_PAIRS(0) TAKE_PAIRS(1) TAKE_PAIRS(2) TAKE_PAIRS(3)
    }
    STORE_PAIR(0) STORE_PAIR(1) STORE_PAIR(2) STORE_PAIR(3)
  }
}

#ifdef __AMX_BF16__

// Whether the system lets this process use tiles: on Linux it is asked once.
bool tiles() {
  static const bool allowed = syscall(SYS_arch_prctl, 0x1023, 18) == 0;
  return allowed;
}

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

// The same for as many rows as a tile has, and for pairs filled up with zeros to whole tiles. Other
// work is done meanwhile, in small pieces: tiles take long, and few instructions.
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

constexpr bool tiles() { return false; }
struct Tiles {
  explicit Tiles(int64_t) {}
};
template <typename Work>
INLINE void add_tiles(const uint16_t*, int64_t, const uint32_t*, int64_t, float*, int64_t, Work) {}

#endif

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
    pair_up(w, first + 2 * pair, both, begin + column, some, part + pair * kSpan);
  };
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
      } else {
        add_vectors(x, left.pitch, parts[turn], pairs, at, room);
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
