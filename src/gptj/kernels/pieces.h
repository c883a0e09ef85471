// One rounded row times a large matrix, which is read as it lies in memory: pieces of the matrix's
// rows go to threads, which take some rows at a time from the first column to the last. Memory gives
// a fifth more so than by panels of columns (bytes.h); several rows would be slower.
//
// A piece leaves sums in 32 bits, which are exact however the rows of a chunk are shared out. They
// are scaled and added in the order of the chunks, each as soon as those before it are: to the same
// bits as by panels.

#ifndef GPTJ_PIECES_H_
#define GPTJ_PIECES_H_

#include <deque>

#include "bytes.h"

#ifdef GPTJ_BYTES

namespace {

constexpr int64_t kWide = 16384;  // the most columns of a piece, whose sums stay near
constexpr int64_t kSoon = 2048;   // columns from those that are read to those that are asked for
constexpr int64_t kShallow = 32;  // chunks of fewer rows go by panels: of each, sums are kept
constexpr int64_t kEnough = 6;    // pieces for each thread, so that all end at about a time
constexpr int64_t kParts = 4;     // the most of a chunk, where there would be too few pieces

// How many rows are read at a time: eight lines of the cache for a span of columns.
template <typename M>
constexpr int64_t kDepth = std::is_same_v<M, Int4> ? 16 : 8;

// Columns of one of the matrices, how their rows are cut, and where the sums of the pieces go: of
// each part of a chunk those of what is taken of it, `room` apart.
template <typename M>
struct Cut {
  M w;
  float* out;
  int64_t begin, width, chunks, taken, parts = 1;
  int32_t* sums = nullptr;
  // How many parts of each chunk are summed, how many chunks are added, and whether somebody adds.
  std::vector<std::atomic<int64_t>> summed;
  std::atomic<int64_t> added{0};
  std::atomic<bool> adding{false};

  Cut(const M& w, float* out, int64_t begin, int64_t width, int64_t chunks, int64_t taken)
      : w(w), out(out), begin(begin), width(width), chunks(chunks), taken(taken), summed(chunks) {}
  int64_t pieces() const { return chunks * parts; }
  int64_t room() const { return (width + kSpan - 1) / kSpan * kSpan + kSpan; }
  int64_t size() const { return pieces() * taken * room(); }
  int32_t* at(int64_t chunk, int64_t part, int64_t number) const {
    return sums + ((chunk * parts + part) * taken + number) * room();
  }
};

// Where in a piece the columns lie that are asked for: so many rows below those that are read.
template <typename M>
struct Soon {
  int64_t width, below, column;
  explicit Soon(int64_t width)
      : width(width),
        below(kDepth<M> * (kSoon / width)),
        column(kSoon % width / kSpan * kSpan) {}
  INLINE void step() {
    column += kSpan;
    if (column < width) return;
    column = 0;
    below += kDepth<M>;
  }
};

// Adds what so many rows from k give to the sums of one or four of those taken, for the columns
// from `from` to `to` of a piece that begins at `begin`.
template <bool whole, bool alone, typename M>
void add_columns(const M& w, const std::vector<const Rounded*>& taken, int64_t k, int64_t begin,
                 int64_t from, int64_t to, Soon<M> soon, int32_t* kept, int64_t room) {
  const Block block{k % chunk_of(w) / 4, kDepth<M> / 4, false, false};
  const EndsOf<M> ends{};
  for (int64_t column = from; column < to; column += kSpan, soon.step()) {
    const int64_t ahead = w.row(soon.below, soon.column) - w.row(0, column);
    const int64_t some = std::min(kSpan, to - column);
    const auto read = [&](int64_t four) __attribute__((always_inline)) {
      return fours_of<whole>(w, k + 4 * four, begin + column, some, ahead);
    };
    if constexpr (alone) {
      add_bytes_of_one(taken.data(), block, ends, kept + column, nullptr, room, read);
    } else {
      add_bytes_of_four(taken.data(), block, ends, kept + column, nullptr, room, read);
    }
  }
}

// The sums of one piece.
template <typename M>
void sum_piece(const Cut<M>& cut, const ByteRows& left, int64_t chunk, int64_t part) {
  const M& w = cut.w;
  const int64_t width = cut.width, room = cut.room(), rows = chunk_of(w) / cut.parts;
  const auto& taken = left.taken[chunk];
  int32_t* kept = cut.at(chunk, part, 0);
  for (size_t m = 0; m < taken.size(); ++m) {
    const __m512i shift = part ? _mm512_setzero_si512() : start(EndsOf<M>{}, *taken[m]);
    for (int64_t n = 0; n < width; n += kLanes) _mm512_store_si512(kept + m * room + n, shift);
  }
  const auto add = [&](auto whole, int64_t k, int64_t from, int64_t to) {
    constexpr bool wholly = decltype(whole)::value;
    const bool alone = taken.size() == 1;
    const auto of = alone ? add_columns<wholly, true, M> : add_columns<wholly, false, M>;
    of(w, taken, k, cut.begin, from, to, Soon<M>(width), kept, room);
  };
  const int64_t first = chunk * chunk_of(w) + part * rows, last = std::min(first + rows, w.inner);
  for (int64_t k = first; k < last; k += kDepth<M>) {
    const int64_t whole = k + kDepth<M> <= w.inner ? width / kSpan * kSpan : 0;
    if (whole > 0) add(std::true_type{}, k, 0, whole);
    if (whole < width) add(std::false_type{}, k, whole, width);
  }
}

// What the sums of all chunks come to, for so many columns.
INLINE __m512 finished(const Plain<int8_t>& w, __m512 sum, int64_t column, __mmask16 here) {
  return _mm512_mul_ps(sum, _mm512_maskz_loadu_ps(here, w.scale + column));
}
INLINE __m512 finished(const Int4&, __m512 sum, int64_t, __mmask16) { return sum; }

// Adds a chunk's sums to those of the chunks before.
template <typename M>
void add_chunk(const Cut<M>& cut, const ByteRows& left, int64_t chunk) {
  const auto& taken = left.taken[chunk];
  EndsOf<M> ends;
  for (int64_t n = 0; n < cut.width; n += kLanes) {
    const int64_t column = cut.begin + n, some = std::min<int64_t>(cut.width - n, kLanes);
    const __mmask16 here = (1 << some) - 1;
    if (some == kLanes) {
      ends.template read<true>(cut.w, chunk, column, some);
    } else {
      ends.template read<false>(cut.w, chunk, column, some);
    }
    float* to = cut.out + column;
    __m512 sum = chunk ? _mm512_maskz_loadu_ps(here, to) : _mm512_setzero_ps();
    for (size_t m = 0; m < taken.size() && taken[m]->row >= 0; ++m) {
      __m512i own = _mm512_load_si512(cut.at(chunk, 0, m) + n);
      for (int64_t part = 1; part < cut.parts; ++part) {
        own = _mm512_add_epi32(own, _mm512_load_si512(cut.at(chunk, part, m) + n));
      }
      sum = scaled(ends, *taken[m], own, 0, sum);
    }
    const bool last = chunk + 1 == cut.chunks;
    _mm512_mask_storeu_ps(to, here, last ? finished(cut.w, sum, column, here) : sum);
  }
}

// A piece, and what can be added now: the chunks before it are, or are by somebody else, who looks
// again when he has done so.
template <typename M>
void take_piece(Cut<M>& cut, const ByteRows& left, int64_t number) {
  sum_piece(cut, left, number / cut.parts, number % cut.parts);
  cut.summed[number / cut.parts] += 1;
  const auto more = [&] {
    const int64_t next = cut.added;  // once: others go on meanwhile
    return next < cut.chunks && cut.summed[next] == cut.parts;
  };
  while (more() && !cut.adding.exchange(true)) {
    for (; more(); ++cut.added) add_chunk(cut, left, cut.added);
    cut.adding = false;
  }
}

// The most that is taken of a chunk: the row, or what it lost as well.
INLINE int64_t most_taken(const ByteRows& left) {
  size_t most = 0;
  for (int64_t n = 0; n < left.chunks; ++n) most = std::max(most, left.taken[n].size());
  return most;
}

// The products of one rounded row with matrices that have as many rows.
template <typename M>
void multiply_in_pieces(ffi::ThreadPool& pool, const std::vector<Factor<M>>& factors,
                        const ByteRows& left) {
  std::deque<Cut<M>> cuts;
  for (const auto& factor : factors) {
    for (int64_t begin = 0; begin < factor.w.columns; begin += kWide) {
      const int64_t width = std::min(kWide, factor.w.columns - begin);
      cuts.emplace_back(factor.w, factor.out, begin, width, left.chunks, most_taken(left));
    }
  }
  const int64_t chunks = left.chunks * cuts.size(), enough = kEnough * pool.num_threads();
  const auto divisible = [&](int64_t parts) { return left.chunk % (parts * kDepth<M>) == 0; };
  int64_t parts = 1, size = 0;
  while (parts < kParts && parts * chunks < enough && divisible(2 * parts)) parts *= 2;
  for (Cut<M>& cut : cuts) {
    cut.parts = parts;
    size += cut.size();
  }
  auto* sums = reinterpret_cast<int32_t*>(scratch(1, size));
  for (Cut<M>& cut : cuts) {
    cut.sums = sums;
    sums += cut.size();
  }
  each(pool, parts * chunks, [&](int64_t number) {
    const int64_t of_each = left.chunks * parts;
    take_piece(cuts[number / of_each], left, number % of_each);
  });
}

}  // namespace

#endif  // GPTJ_BYTES
#endif  // GPTJ_PIECES_H_
