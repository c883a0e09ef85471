// What a decode step spends its time on, for CPUs: a few rows times a large matrix, and attention
// of one query a row over its own part of a cache. XLA copies the matrix, or the cache, to do it.
//
// Each number of a result is a sum in one fixed order, whatever the other rows are and however the
// work is divided: a row has the same bits in any company.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

#ifdef __AVX512F__
constexpr int64_t kLanes = 16;  // floats of a vector
#else
constexpr int64_t kLanes = 8;
#endif
constexpr int64_t kPanel = 512;   // columns of a matrix that one thread goes down at a time
constexpr int64_t kDepth = 64;    // rows of the matrix that go by before the sums are put away

typedef float Vector __attribute__((vector_size(4 * kLanes)));
typedef float Floats __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes), aligned(2), may_alias));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));
typedef int8_t Bytes __attribute__((vector_size(kLanes), aligned(1), may_alias));

struct BFloat16 { uint16_t bits; };

#define INLINE inline __attribute__((always_inline))

INLINE Vector load(const float* at) { return *reinterpret_cast<const Floats*>(at); }
INLINE Vector load(const BFloat16* at) {
  Words wide = __builtin_convertvector(*reinterpret_cast<const Halves*>(at), Words) << 16;
  return reinterpret_cast<Vector>(wide);
}
INLINE Vector load(const int8_t* at) {
  return __builtin_convertvector(*reinterpret_cast<const Bytes*>(at), Vector);
}
INLINE void store(float* at, Vector value) { *reinterpret_cast<Floats*>(at) = value; }
INLINE float single(const float* at) { return *at; }
INLINE float single(const BFloat16* at) {
  uint32_t wide = static_cast<uint32_t>(at->bits) << 16;
  float value;
  __builtin_memcpy(&value, &wide, 4);
  return value;
}
INLINE float single(const int8_t* at) { return *at; }

// Runs work(0), ..., work(count - 1) on the pool's threads and this one.
template <typename Work>
void each(ffi::ThreadPool& pool, int64_t count, const Work& work) {
  struct Shared {
    std::atomic<int64_t> next{0}, done{0};
  };
  auto shared = std::make_shared<Shared>();
  const Work* todo = &work;  // valid while a part is not done: only then is it looked at
  auto run = [shared, todo, count] {
    for (int64_t part; (part = shared->next.fetch_add(1)) < count;) {
      (*todo)(part);
      shared->done.fetch_add(1, std::memory_order_release);
    }
  };
  int64_t helpers = std::min<int64_t>(pool.num_threads(), count) - 1;
  for (int64_t i = 0; i < helpers; ++i) pool.Schedule([run] { run(); });
  run();
  while (shared->done.load(std::memory_order_acquire) < count) std::this_thread::yield();
}

// tile[m][n] += sum over k of x[m][k] * w[k][n], for six, two rows or one and two vectors of columns.
// Each sum has a name of its own: in an array, gcc would keep them in memory.
#define EACH_OF_SIX(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5)
#define EACH_OF_TWO(DO) DO(0) DO(1)
#define EACH_OF_ONE(DO) DO(0)
#define TAKE(m) Vector a##m = load(tile + m * kPanel), b##m = load(tile + m * kPanel + kLanes);
#define ADD(m) a##m += x[m * inner + k] * w0, b##m += x[m * inner + k] * w1;
#define PUT(m) store(tile + m * kPanel, a##m), store(tile + m * kPanel + kLanes, b##m);
#define BLOCK(NAME, EACH)                                                                         \
  template <typename W>                                                                           \
  INLINE void NAME(const float* x, const W* w, float* tile, int64_t inner, int64_t columns,       \
                   int64_t depth, bool fetch) {                                                   \
    EACH(TAKE)                                                                                    \
    for (int64_t k = 0; k < depth; ++k) {                                                         \
      const W* at = w + k * columns;                                                              \
      if (fetch) __builtin_prefetch(at + kDepth * columns);                                       \
      const Vector w0 = load(at), w1 = load(at + kLanes);                                         \
      EACH(ADD)                                                                                   \
    }                                                                                             \
    EACH(PUT)                                                                                     \
  }
BLOCK(six_rows, EACH_OF_SIX)
BLOCK(two_rows, EACH_OF_TWO)
BLOCK(one_row, EACH_OF_ONE)

// Columns [begin, end) of out = x @ w, for `rows` rows of x. The matrix goes by in blocks of kDepth
// rows by kPanel columns, which stay in the cache while all rows of x are multiplied with them.
template <typename W>
INLINE void product_panel(const float* x, const W* w, float* out, int64_t rows, int64_t inner,
                          int64_t columns, int64_t begin, int64_t end, float* tile) {
  constexpr int64_t kStep = 2 * kLanes;
  const int64_t width = end - begin, whole = width / kStep * kStep;
  std::fill(tile, tile + rows * kPanel, 0.0f);
  for (int64_t k = 0; k < inner; k += kDepth) {
    const int64_t depth = std::min(kDepth, inner - k);
    const bool more = k + 2 * kDepth <= inner;
    for (int64_t n = 0; n < whole; n += kStep) {
      const W* at = w + k * columns + begin + n;
      int64_t m = 0;
      for (; m + 6 <= rows; m += 6) {
        six_rows(x + m * inner + k, at, tile + m * kPanel + n, inner, columns, depth, more && !m);
      }
      for (; m + 2 <= rows; m += 2) {
        two_rows(x + m * inner + k, at, tile + m * kPanel + n, inner, columns, depth, more && !m);
      }
      for (; m < rows; ++m) {
        one_row(x + m * inner + k, at, tile + m * kPanel + n, inner, columns, depth, more && !m);
      }
    }
  }
  for (int64_t m = 0; m < rows; ++m) {
    for (int64_t n = whole; n < width; ++n) {
      float total = 0;
      for (int64_t k = 0; k < inner; ++k) {
        total = __builtin_fmaf(x[m * inner + k], single(w + k * columns + begin + n), total);
      }
      tile[m * kPanel + n] = total;
    }
    std::copy(tile + m * kPanel, tile + m * kPanel + width, out + m * columns + begin);
  }
}

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

INLINE float added(Vector x) {
  float total = 0;
  for (int64_t i = 0; i < kLanes; ++i) total += x[i];
  return total;
}

// One head of one row: its query over keys 0 .. count - 1. `scores` has room for whole vectors.
template <typename C>
INLINE void attend(const float* query, const C* keys, const C* values, float* out, int64_t count,
                   int64_t dims, float scale, float* scores) {
  float largest = -INFINITY;
  for (int64_t k = 0; k < count; ++k) {
    const C* key = keys + k * dims;
    Vector sum = {};
    for (int64_t d = 0; d < dims; d += kLanes) sum += load(query + d) * load(key + d);
    scores[k] = added(sum) * scale;
    largest = std::max(largest, scores[k]);
  }
  const int64_t padded = (count + kLanes - 1) / kLanes * kLanes;
  std::fill(scores + count, scores + padded, -INFINITY);
  Vector totals = {};
  for (int64_t k = 0; k < padded; k += kLanes) {
    const Vector exp = exponential(load(scores + k) - largest);
    store(scores + k, exp);
  }
  for (int64_t k = count; k < padded; ++k) scores[k] = 0;
  for (int64_t k = 0; k < padded; k += kLanes) totals += load(scores + k);
  const float total = added(totals);
  for (int64_t d = 0; d < dims; d += kLanes) {
    Vector sum = {};
    for (int64_t k = 0; k < count; ++k) sum += scores[k] * load(values + k * dims + d);
    store(out + d, sum / total);
  }
}

float* scratch(int64_t size) {
  static thread_local std::vector<float> held;
  if (static_cast<int64_t>(held.size()) < size) held.resize(size);
  return held.data();
}

template <typename W>
void product(ffi::ThreadPool& pool, const float* x, const W* w, float* out, int64_t rows,
             int64_t inner, int64_t columns) {
  each(pool, (columns + kPanel - 1) / kPanel, [&](int64_t panel) {
    const int64_t begin = panel * kPanel, end = std::min(begin + kPanel, columns);
    float* tile = scratch(rows * kPanel);
    product_panel(x, w, out, rows, inner, columns, begin, end, tile);
  });
}

ffi::Error Product(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x, ffi::AnyBuffer w,
                   ffi::ResultBuffer<ffi::F32> out) {
  const int64_t rows = x.dimensions()[0], inner = x.dimensions()[1];
  const int64_t columns = w.dimensions()[1];
  const float* from = x.typed_data();
  float* to = out->typed_data();
  switch (w.element_type()) {
    case ffi::F32:
      product(pool, from, static_cast<const float*>(w.untyped_data()), to, rows, inner, columns);
      break;
    case ffi::BF16:
      product(pool, from, static_cast<const BFloat16*>(w.untyped_data()), to, rows, inner, columns);
      break;
    case ffi::S8:
      product(pool, from, static_cast<const int8_t*>(w.untyped_data()), to, rows, inner, columns);
      break;
    default:
      return ffi::Error::InvalidArgument("a matrix is float32, bfloat16 or int8");
  }
  return ffi::Error::Success();
}

template <typename C>
void attention(ffi::ThreadPool& pool, const float* query, const C* keys, const C* values,
               const int32_t* last_seen, float* out, int64_t rows, int64_t heads, int64_t positions,
               int64_t dims) {
  const float scale = 1.0f / std::sqrt(static_cast<float>(dims));
  each(pool, rows * heads, [&](int64_t part) {
    const int64_t count = std::min<int64_t>(last_seen[part / heads] + 1, positions);
    const int64_t at = part * positions * dims;
    float* scores = scratch(positions + kLanes);
    attend(query + part * dims, keys + at, values + at, out + part * dims, count, dims, scale,
           scores);
  });
}

ffi::Error Attention(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> query, ffi::AnyBuffer keys,
                     ffi::AnyBuffer values, ffi::Buffer<ffi::S32> last_seen,
                     ffi::ResultBuffer<ffi::F32> out) {
  const auto shape = keys.dimensions();
  const int64_t rows = shape[0], heads = shape[1], positions = shape[2], dims = shape[3];
  if (dims % kLanes) return ffi::Error::InvalidArgument("a head's dims are a multiple of 16");
  const float* from = query.typed_data();
  float* to = out->typed_data();
  const int32_t* seen = last_seen.typed_data();
  if (keys.element_type() == ffi::F32) {
    attention(pool, from, static_cast<const float*>(keys.untyped_data()),
              static_cast<const float*>(values.untyped_data()), seen, to, rows, heads, positions,
              dims);
  } else if (keys.element_type() == ffi::BF16) {
    attention(pool, from, static_cast<const BFloat16*>(keys.untyped_data()),
              static_cast<const BFloat16*>(values.untyped_data()), seen, to, rows, heads, positions,
              dims);
  } else {
    return ffi::Error::InvalidArgument("a cache is float32 or bfloat16");
  }
  return ffi::Error::Success();
}

// Larger floats have larger keys; a NaN counts as the largest.
uint32_t key_of(float value) {
  value += 0.0f;  // minus zero is zero
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// The `count` largest of a row, falling; of equals the one that comes first.
void largest(const float* row, int64_t columns, int64_t count, float* values, int32_t* places) {
  constexpr int kBits = 12;
  std::vector<int32_t> held(size_t{1} << kBits), finer(size_t{1} << kBits);
  for (int64_t n = 0; n < columns; ++n) ++held[key_of(row[n]) >> (32 - kBits)];
  int64_t above = 0, bucket = (int64_t{1} << kBits) - 1;
  while (above + held[bucket] < count) above += held[bucket--];
  for (int64_t n = 0; n < columns; ++n) {
    const uint32_t key = key_of(row[n]);
    if (key >> (32 - kBits) == bucket) ++finer[key >> (32 - 2 * kBits) & ((1 << kBits) - 1)];
  }
  int64_t part = (int64_t{1} << kBits) - 1;
  while (above + finer[part] < count) above += finer[part--];
  const uint32_t least = static_cast<uint32_t>(bucket << kBits | part) << (32 - 2 * kBits);
  std::vector<int32_t> found;
  for (int64_t n = 0; n < columns; ++n) {
    if (key_of(row[n]) >= least) found.push_back(static_cast<int32_t>(n));
  }
  std::partial_sort(found.begin(), found.begin() + count, found.end(), [row](int32_t a, int32_t b) {
    const uint32_t left = key_of(row[a]), right = key_of(row[b]);
    return left != right ? left > right : a < b;
  });
  for (int64_t n = 0; n < count; ++n) {
    places[n] = found[n];
    values[n] = row[found[n]];
  }
}

ffi::Error TopK(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x, ffi::ResultBuffer<ffi::F32> values,
                ffi::ResultBuffer<ffi::S32> places) {
  const int64_t rows = x.dimensions()[0], columns = x.dimensions()[1];
  const int64_t count = values->dimensions()[1];
  const float* from = x.typed_data();
  float* to = values->typed_data();
  int32_t* at = places->typed_data();
  each(pool, rows, [&](int64_t row) {
    largest(from + row * columns, columns, count, to + row * count, at + row * count);
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(GptjProduct, Product,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::Buffer<ffi::F32>>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(GptjAttention, Attention,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(GptjTopK, TopK,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::S32>>());
