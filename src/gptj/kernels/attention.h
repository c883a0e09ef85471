// Attention of some queries a row over the row's own part of a cache.

#ifndef GPTJ_ATTENTION_H_
#define GPTJ_ATTENTION_H_

#include <cmath>

#include "vectors.h"

namespace {

// One head's keys or values in a cache. Those in int8 have a scale each.
template <typename C>
struct Kept {
  const C* rows;
  const float* scale;

  INLINE float scaled(float value, int64_t k) const { return scale ? value * scale[k] : value; }
};

INLINE Vector exponential(Vector x) {
  x = x < -87.0f ? Vector{} - 87.0f : x;
  const Vector shifted = x * 1.44269504f + 12582912.0f;  // rounds to a whole number
  const Vector n = shifted - 12582912.0f;
  const Vector r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Vector p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const Ints power = (__builtin_convertvector(n, Ints) + 127) << 23;
  return p * reinterpret_cast<Vector>(power);
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

// What attention is of: `query` and `out` are rows x queries x heads x dims, and the cache's arrays
// rows x heads x positions x dims.
struct Shape {
  int64_t rows, queries, heads, positions, dims;
};

// Each query over the keys 0 .. last_seen of its row. A row's head goes to a thread, which finds
// the cache's numbers near for all queries but the first.
template <typename C>
void attention(ffi::ThreadPool& pool, const float* query, const Kept<C>& keys,
               const Kept<C>& values, const int32_t* last_seen, float* out, const Shape& of) {
  const float scale = 1.0f / std::sqrt(static_cast<float>(of.dims));
  each(pool, of.rows * of.heads, [&](int64_t part) {
    const int64_t row = part / of.heads, head = part % of.heads, at = part * of.positions;
    const auto own = [&](const Kept<C>& all) {
      return Kept<C>{all.rows + at * of.dims, all.scale ? all.scale + at : nullptr};
    };
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
