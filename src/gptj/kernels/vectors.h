// Floats by the vector, from whatever they are kept as, and work divided among threads.

#ifndef GPTJ_VECTORS_H_
#define GPTJ_VECTORS_H_

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#ifdef __AVX2__
#include <immintrin.h>
#endif

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

#ifdef __AVX512F__
constexpr int64_t kLanes = 16;  // floats of a vector
#else
constexpr int64_t kLanes = 8;
#endif

typedef float Vector __attribute__((vector_size(4 * kLanes)));
typedef float Floats __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes), aligned(2), may_alias));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));
typedef uint32_t LooseWords __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

struct BFloat16 { uint16_t bits; };

// Sums and factors have names of their own: in an array, gcc would keep them in memory.
#define EACH_OF_FOUR(DO) DO(0) DO(1) DO(2) DO(3)
#define EACH_SPAN(DO, m) DO(m, 0) DO(m, 1) DO(m, 2) DO(m, 3)

#define INLINE inline __attribute__((always_inline))

// Keeps a vector in its register, where gcc would rather load it again for each use.
#ifdef __AVX__
#define HOLD(vector) asm("" : "+x"(vector))
#else
#define HOLD(vector)
#endif

INLINE Vector load(const float* at) { return *reinterpret_cast<const Floats*>(at); }
INLINE Vector load(const BFloat16* at) {
  Words wide = __builtin_convertvector(*reinterpret_cast<const Halves*>(at), Words) << 16;
  return reinterpret_cast<Vector>(wide);
}
#ifdef __AVX2__  // gcc would take the bytes apart one by one
INLINE Ints wide(const int8_t* at) {
#ifdef __AVX512F__
  return (Ints)_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
#else
  return (Ints)_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(at)));
#endif
}
INLINE Ints wide(const uint8_t* at) {
#ifdef __AVX512F__
  return (Ints)_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
#else
  return (Ints)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(at)));
#endif
}
#else
typedef int8_t Bytes __attribute__((vector_size(kLanes), aligned(1), may_alias));
typedef uint8_t Pairs __attribute__((vector_size(kLanes), aligned(1), may_alias));

INLINE Ints wide(const int8_t* at) {
  return __builtin_convertvector(*reinterpret_cast<const Bytes*>(at), Ints);
}
INLINE Ints wide(const uint8_t* at) {
  return __builtin_convertvector(*reinterpret_cast<const Pairs*>(at), Ints);
}
#endif
INLINE Vector floats(Ints x) { return __builtin_convertvector(x, Vector); }
INLINE Vector load(const int8_t* at) { return floats(wide(at)); }
INLINE void store(float* at, Vector value) { *reinterpret_cast<Floats*>(at) = value; }
INLINE void store(uint32_t* at, Words value) { *reinterpret_cast<LooseWords*>(at) = value; }
INLINE float single(const float* at) { return *at; }
INLINE float single(const BFloat16* at) {
  uint32_t wide = static_cast<uint32_t>(at->bits) << 16;
  float value;
  __builtin_memcpy(&value, &wide, 4);
  return value;
}
INLINE float single(const int8_t* at) { return *at; }

// Rounded to the nearest, of two as near to the even one.
INLINE void store(BFloat16* at, Vector value) {
  const Words bits = reinterpret_cast<Words>(value);
  const Words rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  *reinterpret_cast<Halves*>(at) = __builtin_convertvector(rounded, Halves);
}

// Each number changes places with its neighbour.
INLINE Vector swapped(Vector x) {
#ifdef __AVX512F__
  return __builtin_shuffle(x, Ints{1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14});
#else
  return __builtin_shuffle(x, Ints{1, 0, 3, 2, 5, 4, 7, 6});
#endif
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

// Memory of the thread's own: two pieces, each as large as it was ever wanted, on lines of the cache.
float* scratch(int which, int64_t size) {
  constexpr uintptr_t line = 64;
  static thread_local std::vector<float> held[2];
  const size_t wanted = size + line / sizeof(float);
  if (held[which].size() < wanted) held[which].resize(wanted);
  const auto at = reinterpret_cast<uintptr_t>(held[which].data());
  return reinterpret_cast<float*>((at + line - 1) / line * line);
}

}  // namespace

#endif  // GPTJ_VECTORS_H_
