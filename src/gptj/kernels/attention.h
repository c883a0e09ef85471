// Attention of some queries a row over the row's own part of a cache.

#ifndef GPTJ_ATTENTION_H_
#define GPTJ_ATTENTION_H_

#include <cmath>

#include "vectors.h"

namespace {

// With more queries of a row their keys are put side by side. It is `MOST_QUERIES` of the package.
constexpr int64_t kFewQueries = 16;

// One head's keys or values in a cache. Those in int8 have a scale each.
template <typename C>
struct Kept {
  const C* rows;
  const float* scale;

  INLINE float scaled(float value, int64_t k) const { return scale ? value * scale[k] : value; }
};

// The largest of some scores. There is room for whole vectors.
INLINE float largest_of(float* scores, int64_t count) {
  const int64_t padded = (count + kLanes - 1) / kLanes * kLanes;
  std::fill(scores + count, scores + padded, -INFINITY);
  Vector most = load(scores);
  for (int64_t k = kLanes; k < padded; k += kLanes) {
    const Vector next = load(scores + k);
    most = next > most ? next : most;
  }
  float largest = most[0];
  for (int64_t i = 1; i < kLanes; ++i) largest = std::max(largest, most[i]);
  return largest;
}

// Scores to what they weigh, in place; the sum of these. There is room for whole vectors.
INLINE float softmax(float* scores, int64_t count, float largest) {
  const int64_t padded = (count + kLanes - 1) / kLanes * kLanes;
  std::fill(scores + count, scores + padded, -INFINITY);
  for (int64_t k = 0; k < padded; k += kLanes) {
    store(scores + k, exponential(load(scores + k) - largest));
  }
  std::fill(scores + count, scores + padded, 0.0f);
  Vector totals = {};
  for (int64_t k = 0; k < padded; k += kLanes) totals += load(scores + k);
  return added(totals);
}

// One query of one head over keys 0 .. count - 1.
template <typename C>
INLINE void attend(const float* query, const Kept<C>& keys, const Kept<C>& values, float* out,
                   int64_t count, int64_t dims, float scale, float* scores) {
  float largest = -INFINITY;
  for (int64_t k = 0; k < count; ++k) {
    const C* key = keys.rows + k * dims;
    Vector sum = {};
    for (int64_t d = 0; d < dims; d += kLanes) sum += load(query + d) * load(key + d);
    scores[k] = keys.scaled(added(sum) * scale, k);
    largest = std::max(largest, scores[k]);
  }
  const float total = softmax(scores, count, largest);
  for (int64_t k = 0; k < count; ++k) scores[k] = values.scaled(scores[k], k);
  for (int64_t d = 0; d < dims; d += kLanes) {
    Vector sum = {};
    for (int64_t k = 0; k < count; ++k) sum += scores[k] * load(values.rows + k * dims + d);
    store(out + d, sum / total);
  }
}

// Keys as floats: for each dim some of them side by side, in blocks of kSide. Zeros follow the last.
constexpr int64_t kSide = 4 * kLanes;

template <typename C>
void put_side_by_side(const C* keys, int64_t count, int64_t dims, float* to) {
  for (int64_t k = 0; k < count; k += kSide, to += kSide * dims) {
    const int64_t some = std::min(kSide, count - k);
    if (some < kSide) std::fill(to, to + kSide * dims, 0.0f);
    for (int64_t n = 0; n < some; ++n) {
      for (int64_t d = 0; d < dims; ++d) to[d * kSide + n] = single(keys + (k + n) * dims + d);
    }
  }
}

// Four queries at a time, and what is found of them.
struct Four {
  const float* query[4];
  float *out[4], *scores[4];
  int64_t count[4];
};

// The products of four queries with kSide keys.
#define BEGIN_SUM(m, j) Vector a##m##j = {};
#define LOAD_KEYS(j) const Vector k##j = load(keys + j * kLanes);
#define ADD_KEYS(m, j) a##m##j += four.query[m][d] * k##j;
#define PUT_SCORES(m, j) store(four.scores[m] + at + j * kLanes, a##m##j * scale);
#define ADD_KEYS_TO(m) EACH_SPAN(ADD_KEYS, m)
INLINE void score(const Four& four, const float* keys, int64_t at, int64_t dims, float scale) {
  EACH_SPAN(BEGIN_SUM, 0) EACH_SPAN(BEGIN_SUM, 1) EACH_SPAN(BEGIN_SUM, 2) EACH_SPAN(BEGIN_SUM, 3)
  for (int64_t d = 0; d < dims; ++d, keys += kSide) {
    EACH_OF_FOUR(LOAD_KEYS)
    EACH_OF_FOUR(ADD_KEYS_TO)
  }
  EACH_SPAN(PUT_SCORES, 0) EACH_SPAN(PUT_SCORES, 1)
  EACH_SPAN(PUT_SCORES, 2) EACH_SPAN(PUT_SCORES, 3)
}

// kSide dims of values by the weights of four queries, over keys that all of them see.
#define LOAD_VALUES(j) const Vector v##j = load(values + j * kLanes);
#define ADD_VALUES(m, j) a##m##j += four.scores[m][k] * v##j;
#define PUT_VALUES(m, j) store(four.out[m] + d + j * kLanes, a##m##j);
#define ADD_VALUES_TO(m) EACH_SPAN(ADD_VALUES, m)
template <typename C>
INLINE void mix(const Four& four, const C* values, int64_t d, int64_t count, int64_t dims) {
  EACH_SPAN(BEGIN_SUM, 0) EACH_SPAN(BEGIN_SUM, 1) EACH_SPAN(BEGIN_SUM, 2) EACH_SPAN(BEGIN_SUM, 3)
  values += d;
  for (int64_t k = 0; k < count; ++k, values += dims) {
    EACH_OF_FOUR(LOAD_VALUES)
    EACH_OF_FOUR(ADD_VALUES_TO)
  }
  EACH_SPAN(PUT_VALUES, 0) EACH_SPAN(PUT_VALUES, 1)
  EACH_SPAN(PUT_VALUES, 2) EACH_SPAN(PUT_VALUES, 3)
}

// The same for one query, added to what is there.
template <typename C>
INLINE void mix_one(const float* scores, const C* values, int64_t begin, int64_t end, int64_t dims,
                    int64_t d, float* out) {
  Vector sum = load(out + d);
  for (int64_t k = begin; k < end; ++k) sum += scores[k] * load(values + k * dims + d);
  store(out + d, sum);
}

// Four queries of one head, `side` its keys side by side.
template <typename C>
INLINE void attend(const Four& four, const float* side, const Kept<C>& keys,
                   const Kept<C>& values, int64_t dims, float scale) {
  const int64_t most = *std::max_element(four.count, four.count + 4);
  const int64_t common = *std::min_element(four.count, four.count + 4);
  for (int64_t k = 0; k < most; k += kSide) score(four, side + k * dims, k, dims, scale);
  float total[4];
  for (int m = 0; m < 4; ++m) {
    float* scores = four.scores[m];
    const int64_t count = four.count[m];
    for (int64_t k = 0; k < count; ++k) scores[k] = keys.scaled(scores[k], k);
    total[m] = softmax(scores, count, largest_of(scores, count));
    for (int64_t k = 0; k < count; ++k) scores[k] = values.scaled(scores[k], k);
  }
  int64_t d = 0;
  for (; d + kSide <= dims; d += kSide) mix(four, values.rows, d, common, dims);
  for (int m = 0; m < 4; ++m) {
    std::fill(four.out[m] + d, four.out[m] + dims, 0.0f);
    for (int64_t n = 0; n < dims; n += kLanes) {
      const int64_t begin = n < d ? common : 0;
      mix_one(four.scores[m], values.rows, begin, four.count[m], dims, n, four.out[m]);
      store(four.out[m] + n, load(four.out[m] + n) / total[m]);
    }
  }
}

// What attention is of: `query` and `out` are rows x queries x heads x dims, and the cache's arrays
// slots x heads x positions x dims.
struct Shape {
  int64_t rows, queries, heads, slots, positions, dims;
};

// Many queries of a row, four at a time: its keys are put side by side once for all of them.
template <typename C>
void attend_all(const float* query, const Kept<C>& keys, const Kept<C>& values,
                const int32_t* last_seen, float* out, const Shape& of, float scale) {
  const int64_t seen = *std::max_element(last_seen, last_seen + of.queries) + 1;
  const int64_t count = std::min(seen, of.positions), room = (count / kSide + 1) * kSide;
  float *side = scratch(1, (room + 1) * of.dims), *scores = scratch(0, 4 * (room + kLanes));
  put_side_by_side(keys.rows, count, of.dims, side);
  for (int64_t q = 0; q < of.queries; q += 4) {
    Four four;
    for (int m = 0; m < 4; ++m) {
      const int64_t one = std::min(q + m, of.queries - 1);
      four.query[m] = query + one * of.heads * of.dims;
      four.out[m] = one == q + m ? out + one * of.heads * of.dims : side + room * of.dims;
      four.scores[m] = scores + m * (room + kLanes);
      four.count[m] = std::min<int64_t>(last_seen[one] + 1, of.positions);
    }
    attend(four, side, keys, values, of.dims, scale);
  }
}

// Each query over the keys 0 .. last_seen of its row's slot. A row's head goes to a thread, which finds
// the cache's numbers near for all queries but the first.
template <typename C>
void attention(ffi::ThreadPool& pool, const float* query, const Kept<C>& keys,
               const Kept<C>& values, const int32_t* last_seen, const int32_t* slots, float* out,
               const Shape& of) {
  const float scale = 1.0f / std::sqrt(static_cast<float>(of.dims));
  each(pool, of.rows * of.heads, [&](int64_t part) {
    const int64_t row = part / of.heads, head = part % of.heads;
    const int64_t slot = std::clamp<int64_t>(slots[row], 0, of.slots - 1);
    const int64_t at = (slot * of.heads + head) * of.positions;
    const auto own = [&](const Kept<C>& all) {
      return Kept<C>{all.rows + at * of.dims, all.scale ? all.scale + at : nullptr};
    };
    if (of.queries > kFewQueries) {
      const int64_t begin = (row * of.queries * of.heads + head) * of.dims;
      attend_all(query + begin, own(keys), own(values), last_seen + row * of.queries, out + begin,
                 of, scale);
      return;
    }
    float* scores = scratch(0, of.positions + kLanes);
    for (int64_t q = row * of.queries; q < (row + 1) * of.queries; ++q) {
      const int64_t count = std::min<int64_t>(last_seen[q] + 1, of.positions);
      const int64_t begin = (q * of.heads + head) * of.dims;
      attend(query + begin, own(keys), own(values), out + begin, count, of.dims, scale, scores);
    }
  });
}

}  // namespace

#endif  // GPTJ_ATTENTION_H_
