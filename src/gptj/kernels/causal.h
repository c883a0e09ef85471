// Causal attention of whole rows, and its gradient, for training. A row's head goes to a thread,
// which holds the scores of some queries at a time and nothing else that is quadratic.

#ifndef GPTJ_CAUSAL_H_
#define GPTJ_CAUSAL_H_

#include "attention.h"

namespace {

constexpr int64_t kQueries = 32;  // whose scores are held at a time; of 4, and in kSide or of it

// What attention is of: rows x length x heads x dims. A head's are held as floats in whole blocks,
// from one row to the next an odd number of lines, which else would fall on one another in a cache.
struct Whole {
  int64_t rows, length, heads, dims;

  int64_t room() const { return (length + kSide - 1) / kSide * kSide; }
  int64_t width() const { return (dims + kSide - 1) / kSide * kSide; }
  int64_t by_key() const { return width() + kOdd; }
  int64_t by_dim() const { return room() + kOdd; }

  static constexpr int64_t kOdd = 16;
};

// A matrix of floats, of which `a(i, t)` lies at i * row + t * term.
struct Left {
  const float* at;
  int64_t row, term;
};

// to[i][n] += the sum of a(i, t) * b[t][n]: rows by four, columns by kSide.
#define BEGIN_AT(m, j) Vector a##m##j = load(to + m * stride + j * kLanes);
#define LOAD_RIGHT(j) const Vector k##j = load(right + j * kLanes);
#define ADD_RIGHT(m, j) a##m##j += left[m * a.row] * k##j;
#define ADD_RIGHT_TO(m) EACH_SPAN(ADD_RIGHT, m)
#define PUT_BACK(m, j) store(to + m * stride + j * kLanes, a##m##j);
INLINE void add_tile(float* to, int64_t stride, const Left& a, const float* b, int64_t b_stride,
                     int64_t terms) {
  EACH_SPAN(BEGIN_AT, 0) EACH_SPAN(BEGIN_AT, 1) EACH_SPAN(BEGIN_AT, 2) EACH_SPAN(BEGIN_AT, 3)
  for (int64_t t = 0; t < terms; ++t) {
    const float *left = a.at + t * a.term, *right = b + t * b_stride;
    EACH_OF_FOUR(LOAD_RIGHT)
    EACH_OF_FOUR(ADD_RIGHT_TO)
  }
  EACH_SPAN(PUT_BACK, 0) EACH_SPAN(PUT_BACK, 1) EACH_SPAN(PUT_BACK, 2) EACH_SPAN(PUT_BACK, 3)
}

void add_product(float* to, int64_t stride, const Left& a, const float* b, int64_t b_stride,
                 int64_t rows, int64_t terms, int64_t columns) {
  for (int64_t n = 0; n < columns; n += kSide) {
    for (int64_t i = 0; i < rows; i += 4) {
      const Left own{a.at + i * a.row, a.row, a.term};
      add_tile(to + i * stride + n, stride, own, b + n, b_stride, terms);
    }
  }
}

// A head's numbers as rows of floats, the rooms' rest zeros; and back.
template <typename T>
void as_floats(const T* from, const Whole& of, float* to) {
  std::fill(to, to + of.room() * of.by_key(), 0.0f);
  for (int64_t n = 0; n < of.length; ++n, from += of.heads * of.dims, to += of.by_key()) {
    for (int64_t d = 0; d < of.dims; d += kLanes) store(to + d, load(from + d));
  }
}

template <typename T>
void put_back(const float* from, const Whole& of, int64_t begin, int64_t end, T* to) {
  to += begin * of.heads * of.dims;
  for (int64_t n = begin; n < end; ++n, from += of.by_key(), to += of.heads * of.dims) {
    for (int64_t d = 0; d < of.dims; d += kLanes) store(to + d, load(from + d));
  }
}

// Rows made columns.
void turn(const float* from, const Whole& of, float* to) {
  for (int64_t begin = 0; begin < of.room(); begin += kLanes) {
    for (int64_t d = 0; d < of.dims; ++d) {
      for (int64_t n = begin; n < begin + kLanes; ++n) {
        to[d * of.by_dim() + n] = from[n * of.by_key() + d];
      }
    }
  }
}

// What is held of one head, laid out one after the other in a thread's own memory.
struct Held {
  float *query, *key, *value, *key_turned, *until, *scores, *of_query;
  // for the gradient alone
  float *pull, *value_turned, *pulled, *of_key, *of_value;

  Held(const Whole& of, bool gradient) {
    const int64_t rows = of.room() * of.by_key(), turned = of.dims * of.by_dim();
    const int64_t some = kQueries * of.by_dim(), block = kQueries * of.by_key();
    const int64_t few = 3 * rows + turned + some + block + of.room();
    float* at = scratch(0, gradient ? few + 3 * rows + turned + some : few);
    const auto take = [&at](int64_t size) { return (at += size) - size; };
    query = take(rows), key = take(rows), value = take(rows), key_turned = take(turned);
    until = take(of.room()), scores = take(some), of_query = take(block);
    if (!gradient) return;
    pull = take(rows), value_turned = take(turned), of_key = take(rows), of_value = take(rows);
    pulled = take(some);
  }
};

// Scores of the queries from `begin` on with the keys that one of them may see; of those that a
// query does not see none remains.
INLINE void score(const Held& held, const Whole& of, int64_t begin, int64_t seen) {
  const int64_t room = of.by_dim(), width = of.by_key();
  const float scale = 1.0f / std::sqrt(static_cast<float>(of.dims));
  std::fill(held.scores, held.scores + kQueries * room, 0.0f);
  add_product(held.scores, room, {held.query + begin * width, width, 1}, held.key_turned, room,
              kQueries, of.dims, seen);
  for (int64_t i = 0; i < kQueries; ++i) {
    float *scores = held.scores + i * room, query = begin + i;
    for (int64_t k = 0; k < seen; k += kLanes) {
      const Vector own = load(scores + k) * scale;
      store(scores + k, load(held.until + k) > query ? own : Vector{} - INFINITY);
    }
    std::fill(scores + std::min(begin + i + 1, seen), scores + seen, -INFINITY);
  }
}

// exp(score - level), exactly nothing where there is no score; their sum.
INLINE float weigh(float* scores, int64_t seen, float level) {
  Vector total = {};
  for (int64_t k = 0; k < seen; k += kLanes) {
    const Vector own = load(scores + k);
    const Vector weight = own < -1e30f ? Vector{} : exponential(own - level);  // NaN stays
    store(scores + k, weight);
    total += weight;
  }
  return added(total);
}

// Keys that the queries from `begin` on may see, in whole blocks.
INLINE int64_t seen_from(int64_t begin) {
  return (begin + kQueries + kSide - 1) / kSide * kSide;
}

template <typename T>
void hold(const T* query, const T* key, const T* value, const int32_t* ends, const Whole& of,
          const Held& held) {
  as_floats(query, of, held.query), as_floats(key, of, held.key), as_floats(value, of, held.value);
  turn(held.key, of, held.key_turned);
  std::fill(held.until, held.until + of.room(), 0.0f);
  for (int64_t k = 0; k < of.length; ++k) held.until[k] = ends[k];
}

// One head of one row. `levels` are the logarithms of what each query's weights add up to.
template <typename T>
void attend_causally(const T* query, const T* key, const T* value, const int32_t* ends, T* out,
                     float* levels, const Whole& of) {
  const Held held(of, false);
  const int64_t room = of.by_dim(), width = of.by_key();
  hold(query, key, value, ends, of, held);
  for (int64_t begin = 0; begin < of.length; begin += kQueries) {
    const int64_t seen = seen_from(begin), end = std::min(begin + kQueries, of.length);
    score(held, of, begin, seen);
    for (int64_t q = begin; q < end; ++q) {
      float* scores = held.scores + (q - begin) * room;
      const float largest = largest_of(scores, seen), total = weigh(scores, seen, largest);
      levels[q] = largest + std::log(total);
      for (int64_t k = 0; k < seen; k += kLanes) store(scores + k, load(scores + k) / total);
    }
    std::fill(held.of_query, held.of_query + kQueries * width, 0.0f);
    add_product(held.of_query, width, {held.scores, room, 1}, held.value, width, kQueries, seen,
                of.width());
    put_back(held.of_query, of, begin, end, out);
  }
}

// The gradients of a head's queries, keys and values, `pull` that of what came out. The scores are
// made again ("FlashAttention", arXiv:2205.14135).
template <typename T>
void pull_causally(const T* query, const T* key, const T* value, const int32_t* ends,
                   const float* levels, const T* pull, T* of_query, T* of_key, T* of_value,
                   const Whole& of) {
  const Held held(of, true);
  const int64_t room = of.by_dim(), width = of.by_key();
  const float scale = 1.0f / std::sqrt(static_cast<float>(of.dims));
  hold(query, key, value, ends, of, held);
  as_floats(pull, of, held.pull);
  turn(held.value, of, held.value_turned);
  std::fill(held.of_key, held.of_key + of.room() * width, 0.0f);
  std::fill(held.of_value, held.of_value + of.room() * width, 0.0f);
  for (int64_t begin = 0; begin < of.length; begin += kQueries) {
    const int64_t seen = seen_from(begin), end = std::min(begin + kQueries, of.length);
    const float *queries = held.query + begin * width, *pulls = held.pull + begin * width;
    score(held, of, begin, seen);
    std::fill(held.pulled, held.pulled + kQueries * room, 0.0f);
    add_product(held.pulled, room, {pulls, width, 1}, held.value_turned, room, kQueries, of.dims,
                seen);
    for (int64_t i = 0; i < kQueries; ++i) {
      float *weights = held.scores + i * room, *pulled = held.pulled + i * room;
      weigh(weights, seen, begin + i < end ? levels[begin + i] : INFINITY);
      Vector both = {};
      for (int64_t k = 0; k < seen; k += kLanes) both += load(weights + k) * load(pulled + k);
      const float mean = added(both);
      for (int64_t k = 0; k < seen; k += kLanes) {
        store(pulled + k, load(weights + k) * (load(pulled + k) - mean) * scale);
      }
    }
    add_product(held.of_value, width, {held.scores, 1, room}, pulls, width, seen, kQueries,
                of.width());
    add_product(held.of_key, width, {held.pulled, 1, room}, queries, width, seen, kQueries,
                of.width());
    std::fill(held.of_query, held.of_query + kQueries * width, 0.0f);
    add_product(held.of_query, width, {held.pulled, room, 1}, held.key, width, kQueries, seen,
                of.width());
    put_back(held.of_query, of, begin, end, of_query);
  }
  put_back(held.of_key, of, 0, of.length, of_key);
  put_back(held.of_value, of, 0, of.length, of_value);
}

// `work` with where each row's head begins in its numbers and its levels.
template <typename Work>
void each_head(ffi::ThreadPool& pool, const Whole& of, const Work& work) {
  each(pool, of.rows * of.heads, [&](int64_t part) {
    const int64_t row = part / of.heads, head = part % of.heads;
    work(row, (row * of.length * of.heads + head) * of.dims, part * of.length);
  });
}

template <typename Run, typename... Others>
ffi::Error of_floats(const Run& run, const ffi::AnyBuffer& x, const Others&... others) {
  const auto is_other = [&x](const ffi::AnyBuffer& other) {
    const auto mine = x.dimensions(), its = other.dimensions();
    return other.element_type() != x.element_type() ||
           !std::equal(mine.begin(), mine.end(), its.begin(), its.end());
  };
  if ((is_other(others) || ...)) {
    return ffi::Error::InvalidArgument("queries, keys and values are alike");
  }
  if (x.dimensions()[3] % kLanes) {
    return ffi::Error::InvalidArgument("a head's dims are a multiple of 16");
  }
  if (x.element_type() == ffi::F32) return run(float{}), ffi::Error::Success();
  if (x.element_type() == ffi::BF16) return run(BFloat16{}), ffi::Error::Success();
  return ffi::Error::InvalidArgument("attention is of float32 or bfloat16");
}

Whole whole(const ffi::AnyBuffer& x) {
  const auto dims = x.dimensions();
  return {dims[0], dims[1], dims[2], dims[3]};
}

ffi::Error CausalAttention(ffi::ThreadPool pool, ffi::AnyBuffer query, ffi::AnyBuffer key,
                           ffi::AnyBuffer value, ffi::Buffer<ffi::S32> ends,
                           ffi::Result<ffi::AnyBuffer> out,
                           ffi::ResultBuffer<ffi::F32> levels) {
  const auto run = [&](auto number) {
    using T = decltype(number);
    const Whole of = whole(query);
    const auto in = [](ffi::AnyBuffer& x) { return static_cast<const T*>(x.untyped_data()); };
    each_head(pool, of, [&](int64_t row, int64_t at, int64_t level) {
      attend_causally(in(query) + at, in(key) + at, in(value) + at,
                      ends.typed_data() + row * of.length,
                      static_cast<T*>(out->untyped_data()) + at, levels->typed_data() + level, of);
    });
  };
  return of_floats(run, query, key, value);
}

ffi::Error CausalGradient(ffi::ThreadPool pool, ffi::AnyBuffer query, ffi::AnyBuffer key,
                          ffi::AnyBuffer value, ffi::Buffer<ffi::S32> ends,
                          ffi::Buffer<ffi::F32> levels, ffi::AnyBuffer pull,
                          ffi::Result<ffi::AnyBuffer> of_query,
                          ffi::Result<ffi::AnyBuffer> of_key,
                          ffi::Result<ffi::AnyBuffer> of_value) {
  const auto run = [&](auto number) {
    using T = decltype(number);
    const Whole of = whole(query);
    const auto in = [](ffi::AnyBuffer& x) { return static_cast<const T*>(x.untyped_data()); };
    const auto to = [](auto& x) { return static_cast<T*>(x->untyped_data()); };
    each_head(pool, of, [&](int64_t row, int64_t at, int64_t level) {
      pull_causally(in(query) + at, in(key) + at, in(value) + at,
                    ends.typed_data() + row * of.length, levels.typed_data() + level,
                    in(pull) + at, to(of_query) + at, to(of_key) + at, to(of_value) + at, of);
    });
  };
  return of_floats(run, query, key, value, pull);
}

}  // namespace

#endif  // GPTJ_CAUSAL_H_
