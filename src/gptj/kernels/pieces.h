// One rounded row times a large matrix, which is read as it lies in memory: pieces of the matrix's
// rows go to threads, which take some rows at a time from the first column to the last. Memory gives
// a fifth more so than by panels of columns (bytes.h); several rows would be slower.
//
// A piece leaves sums in 32 bits, which are exact however the rows of a chunk are shared out. They
// are scaled and added afterwards, in the order of the chunks: to the same bits as by panels.

#ifndef GPTJ_PIECES_H_
#define GPTJ_PIECES_H_

#include "bytes.h"

#ifdef GPTJ_BYTES

namespace {

constexpr int64_t kWide = 16384;  // the most columns of a piece, whose sums stay near
constexpr int64_t kSoon = 2048;   // columns from those that are read to those that are asked for
constexpr int64_t kDepth = 8;     // rows that are read at a time
constexpr int64_t kEnough = 12;   // pieces for each thread, so that all end at about a time
constexpr int64_t kParts = 4;     // the most of a chunk, where there would be too few pieces
constexpr int64_t kAdded = 1024;  // columns whose sums are added at a time

// One of the matrices, how it is cut, and where the sums of its pieces go: of each part of a chunk
// those of what is taken of it, at most `taken`, `room` apart.
struct Cut {
  Plain<int8_t> w;
  float* out;
  int64_t chunks, parts, taken, room;
  int32_t* sums;

  int64_t pieces() const { return chunks * parts * ((w.columns + kWide - 1) / kWide); }
  int64_t size() const { return chunks * parts * taken * room; }
  int32_t* at(int64_t chunk, int64_t part, int64_t number) const {
    return sums + ((chunk * parts + part) * taken + number) * room;
  }
};

// Where in a piece the columns lie that are asked for: so many rows below those that are read.
struct Soon {
  int64_t width, below, column;
  explicit Soon(int64_t width)
      : width(width), below(kDepth * (kSoon / width)), column(kSoon % width / kSpan * kSpan) {}
  INLINE void step() {
    column += kSpan;
    if (column < width) return;
    column = 0;
    below += kDepth;
  }
};

// Adds what kDepth rows from k give to the sums of one or four of those taken, for the columns
// from `from` to `to` of a piece that begins at `begin`.
template <bool whole, bool alone>
void add_columns(const Plain<int8_t>& w, const std::vector<const Rounded*>& taken, int64_t k,
                 int64_t begin, int64_t from, int64_t to, Soon soon, int32_t* kept,
                 int64_t room) {
  const Block block{k % kChunk / 4, kDepth / 4, false, false};
  for (int64_t column = from; column < to; column += kSpan, soon.step()) {
    const int64_t ahead = w.row(soon.below, soon.column) - w.row(0, column);
    const int64_t some = std::min(kSpan, to - column);
    const auto read = [&](int64_t four) __attribute__((always_inline)) {
      return fours_of<whole>(w, k + 4 * four, begin + column, some, ahead);
    };
    if constexpr (alone) {
      add_bytes_of_one(taken.data(), block, NoEnds{}, kept + column, nullptr, room, read);
    } else {
      add_bytes_of_four(taken.data(), block, NoEnds{}, kept + column, nullptr, room, read);
    }
  }
}

// The sums of one piece.
void sum_piece(const Cut& cut, const ByteRows& left, int64_t number) {
  const Plain<int8_t>& w = cut.w;
  const int64_t of_panel = cut.chunks * cut.parts, part = number % cut.parts;
  const int64_t chunk = number % of_panel / cut.parts, begin = number / of_panel * kWide;
  const int64_t width = std::min(kWide, w.columns - begin), rows = kChunk / cut.parts;
  const auto& taken = left.taken[chunk];
  int32_t* kept = cut.at(chunk, part, 0) + begin;
  for (size_t m = 0; m < taken.size(); ++m) {
    const __m512i shift = part ? _mm512_setzero_si512() : start(NoEnds{}, *taken[m]);
    for (int64_t n = 0; n < width; n += kLanes) _mm512_store_si512(kept + m * cut.room + n, shift);
  }
  const auto add = [&](auto whole, int64_t k, int64_t from, int64_t to) {
    constexpr bool wholly = decltype(whole)::value;
    const auto of = taken.size() == 1 ? add_columns<wholly, true> : add_columns<wholly, false>;
    of(w, taken, k, begin, from, to, Soon(width), kept, cut.room);
  };
  const int64_t first = chunk * kChunk + part * rows, last = std::min(first + rows, w.inner);
  for (int64_t k = first; k < last; k += kDepth) {
    const int64_t whole = k + kDepth <= w.inner ? width / kSpan * kSpan : 0;
    if (whole > 0) add(std::true_type{}, k, 0, whole);
    if (whole < width) add(std::false_type{}, k, whole, width);
  }
}

// Columns [begin, begin + width) of the product, of the sums of all pieces.
void add_pieces(const Cut& cut, const ByteRows& left, int64_t begin, int64_t width) {
  const int64_t room = kAdded + kSpan;
  float* sums = scratch(0, left.rows * room);
  std::fill(sums, sums + left.rows * room, 0.0f);
  const auto sum_of = [&](int64_t chunk, size_t m, int64_t n) {
    __m512i sum = _mm512_load_si512(cut.at(chunk, 0, m) + begin + n);
    for (int64_t part = 1; part < cut.parts; ++part) {
      sum = _mm512_add_epi32(sum, _mm512_load_si512(cut.at(chunk, part, m) + begin + n));
    }
    return sum;
  };
  for (int64_t chunk = 0; chunk < cut.chunks; ++chunk) {
    const auto& taken = left.taken[chunk];
    for (size_t m = 0; m < taken.size(); ++m) {
      if (taken[m]->row < 0) continue;
      float* to = sums + taken[m]->row * room;
      for (int64_t n = 0; n < width; n += kLanes) {
        const auto before = (__m512)load(to + n);
        store(to + n, (Vector)scaled(NoEnds{}, *taken[m], sum_of(chunk, m, n), 0, before));
      }
    }
  }
  put(cut.w, left.rows, begin, width, sums, room, cut.out);
}

// The most that is taken of a chunk: the row, or what it lost as well.
INLINE int64_t most_taken(const ByteRows& left) {
  size_t most = 0;
  for (int64_t n = 0; n < left.chunks; ++n) most = std::max(most, left.taken[n].size());
  return most;
}

// Runs work(cut, number) for each of so many parts of each matrix.
template <typename Count, typename Work>
void each_of(ffi::ThreadPool& pool, const std::vector<Cut>& cuts, const Count& count,
             const Work& work) {
  int64_t all = 0;
  for (const Cut& cut : cuts) all += count(cut);
  each(pool, all, [&](int64_t number) {
    const Cut* cut = cuts.data();
    for (; number >= count(*cut); ++cut) number -= count(*cut);
    work(*cut, number);
  });
}

// The products of one rounded row with matrices that have as many rows.
template <typename Factors>
void multiply_in_pieces(ffi::ThreadPool& pool, const Factors& factors, const ByteRows& left) {
  std::vector<Cut> cuts;
  int64_t pieces = 0, size = 0;
  for (const auto& factor : factors) {
    const int64_t room = (factor.w.columns + kSpan - 1) / kSpan * kSpan + kSpan;
    cuts.push_back({factor.w, factor.out, left.chunks, 1, most_taken(left), room, nullptr});
    pieces += cuts.back().pieces();
  }
  int64_t parts = 1;
  while (parts < kParts && parts * pieces < kEnough * pool.num_threads()) parts *= 2;
  for (Cut& cut : cuts) {
    cut.parts = parts;
    size += cut.size();
  }
  auto* sums = reinterpret_cast<int32_t*>(scratch(1, size));
  for (Cut& cut : cuts) {
    cut.sums = sums;
    sums += cut.size();
  }
  each_of(pool, cuts, [](const Cut& cut) { return cut.pieces(); },
          [&](const Cut& cut, int64_t number) { sum_piece(cut, left, number); });
  each_of(pool, cuts, [](const Cut& cut) { return (cut.w.columns + kAdded - 1) / kAdded; },
          [&](const Cut& cut, int64_t number) {
            const int64_t begin = number * kAdded;
            add_pieces(cut, left, begin, std::min(kAdded, cut.w.columns - begin));
          });
}

}  // namespace

#endif  // GPTJ_BYTES
#endif  // GPTJ_PIECES_H_
