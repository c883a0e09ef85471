// What a decode step spends its time on, for CPUs: a few rows times a large matrix, and attention
// of a few queries a row over its own part of a cache. XLA copies the matrix, or the cache, for it.
// And of a training step attention, of which XLA writes all scores out.
//
// Each number of a result is a sum in one fixed order, whatever the other rows are and however the
// work is divided: a row has the same bits in any company.

#include <cstring>

#include "attention.h"
#include "causal.h"
#include "products.h"
#include "vectors.h"

namespace {

using Args = ffi::RemainingArgs;
using Rets = ffi::RemainingRets;

// Products of x with several matrices; `matrix(n)` is the n-th, of so many columns. They may be of
// x rounded as the matrix is.
template <typename M, typename Matrix>
ffi::Error products(ffi::ThreadPool& pool, ffi::AnyBuffer& x, Rets& outs, const Matrix& matrix,
                    bool rounded = false) {
  const int64_t rows = x.dimensions()[0];
  std::vector<Factor<M>> factors;
  for (size_t n = 0; n < outs.size(); ++n) {
    auto out = *outs.get<ffi::Buffer<ffi::F32>>(n);
    factors.push_back({matrix(n, out->dimensions()[1]), out->typed_data()});
  }
  const auto multiplied = [&](auto* numbers) {
    if constexpr (std::is_same_v<M, Plain<int8_t>> || std::is_same_v<M, Int4>) {
      if (rounded) return rounded_products(pool, factors, numbers, rows);
    }
    products(pool, factors, numbers, rows);
  };
  if (x.element_type() == ffi::F32) {
    multiplied(static_cast<const float*>(x.untyped_data()));
  } else if (x.element_type() == ffi::BF16) {
    multiplied(static_cast<const BFloat16*>(x.untyped_data()));
  } else {
    return ffi::Error::InvalidArgument("what a matrix is multiplied by is float32 or bfloat16");
  }
  return ffi::Error::Success();
}

// The numbers of an argument: `parts` belong to each matrix, of which this is the `part`-th.
template <typename T>
const T* numbers(Args& args, size_t n, size_t parts, size_t part) {
  return static_cast<const T*>(args.get<ffi::AnyBuffer>(n * parts + part)->untyped_data());
}

ffi::Error Products(ffi::ThreadPool pool, ffi::AnyBuffer x, Args args, Rets outs) {
  const int64_t inner = x.dimensions()[1];
  const auto plain = [&](auto number) {
    using W = decltype(number);
    return products<Plain<W>>(pool, x, outs, [&](size_t n, int64_t columns) {
      return Plain<W>{numbers<W>(args, n, 1, 0), nullptr, inner, columns};
    });
  };
  const ffi::DataType kind = args.get<ffi::AnyBuffer>(0)->element_type();
  if (kind == ffi::F32) return plain(float{});
  if (kind == ffi::BF16) return plain(BFloat16{});
  return ffi::Error::InvalidArgument("a matrix without scales is float32 or bfloat16");
}

ffi::Error ProductsInt8(ffi::ThreadPool pool, ffi::AnyBuffer x, Args args, Rets outs,
                        bool rounded) {
  const int64_t inner = x.dimensions()[1];
  const auto matrix = [&](size_t n, int64_t columns) {
    return Plain<int8_t>{numbers<int8_t>(args, n, 2, 0), numbers<float>(args, n, 2, 1), inner,
                         columns};
  };
  return products<Plain<int8_t>>(pool, x, outs, matrix, rounded);
}

ffi::Error ProductsInt4(ffi::ThreadPool pool, ffi::AnyBuffer x, Args args, Rets outs,
                        bool rounded) {
  const int64_t inner = x.dimensions()[1];
  const int64_t groups = args.get<ffi::AnyBuffer>(1)->dimensions()[0];
  const auto matrix = [&](size_t n, int64_t columns) {
    return Int4{numbers<uint8_t>(args, n, 3, 0), numbers<float>(args, n, 3, 1),
                numbers<float>(args, n, 3, 2), inner, columns, inner / groups};
  };
  return products<Int4>(pool, x, outs, matrix, rounded);
}

template <typename C>
void attention(ffi::ThreadPool& pool, ffi::Buffer<ffi::F32>& query, ffi::AnyBuffer& keys,
               ffi::AnyBuffer& values, const float* key_scale, const float* value_scale,
               ffi::Buffer<ffi::S32>& last_seen, ffi::Buffer<ffi::S32>& slots,
               ffi::ResultBuffer<ffi::F32>& out) {
  const auto asked = query.dimensions(), kept = keys.dimensions();
  const Shape of{asked[0], asked[1], asked[2], kept[0], kept[2], asked[3]};
  const Kept<C> kept_keys{static_cast<const C*>(keys.untyped_data()), key_scale};
  const Kept<C> kept_values{static_cast<const C*>(values.untyped_data()), value_scale};
  attention(pool, query.typed_data(), kept_keys, kept_values, last_seen.typed_data(),
            slots.typed_data(), out->typed_data(), of);
}

ffi::Error Attention(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> query, ffi::AnyBuffer keys,
                     ffi::AnyBuffer values, ffi::Buffer<ffi::S32> last_seen,
                     ffi::Buffer<ffi::S32> slots, ffi::ResultBuffer<ffi::F32> out) {
  if (query.dimensions()[3] % kLanes) {
    return ffi::Error::InvalidArgument("a head's dims are a multiple of 16");
  }
  if (keys.element_type() == ffi::F32) {
    attention<float>(pool, query, keys, values, nullptr, nullptr, last_seen, slots, out);
  } else if (keys.element_type() == ffi::BF16 || keys.element_type() == ffi::U16) {
    attention<BFloat16>(pool, query, keys, values, nullptr, nullptr, last_seen, slots, out);
  } else {
    return ffi::Error::InvalidArgument("a cache without scales is float32 or bfloat16");
  }
  return ffi::Error::Success();
}

ffi::Error AttentionInt8(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> query, ffi::AnyBuffer keys,
                         ffi::Buffer<ffi::F32> key_scale, ffi::AnyBuffer values,
                         ffi::Buffer<ffi::F32> value_scale, ffi::Buffer<ffi::S32> last_seen,
                         ffi::Buffer<ffi::S32> slots, ffi::ResultBuffer<ffi::F32> out) {
  if (query.dimensions()[3] % kLanes || keys.element_type() != ffi::S8) {
    return ffi::Error::InvalidArgument("a head's dims are a multiple of 16, in int8");
  }
  attention<int8_t>(pool, query, keys, values, key_scale.typed_data(), value_scale.typed_data(),
                    last_seen, slots, out);
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

ffi::Error Rows(ffi::AnyBuffer table, ffi::Buffer<ffi::S32> numbers,
                ffi::Result<ffi::AnyBuffer> out) {
  const int64_t count = table.dimensions()[0];
  const size_t size = out->size_bytes() / std::max<int64_t>(numbers.element_count(), 1);
  const char* from = static_cast<const char*>(table.untyped_data());
  char* to = static_cast<char*>(out->untyped_data());
  for (size_t n = 0; n < numbers.element_count(); ++n, to += size) {
    const int64_t row = std::clamp<int64_t>(numbers.typed_data()[n], 0, count - 1);
    std::memcpy(to, from + row * size, size);
  }
  return ffi::Error::Success();
}

// Tokens' heads put into a slot of a cache from a position on; the cache is also what comes out.
ffi::Error Put(ffi::AnyBuffer, ffi::AnyBuffer tokens, ffi::Buffer<ffi::S32> slot,
               ffi::Buffer<ffi::S32> at, ffi::Result<ffi::AnyBuffer> cache) {
  const auto from = tokens.dimensions(), to = cache->dimensions();
  const int64_t count = from[1], heads = from[2], positions = to[2];
  const size_t size = tokens.size_bytes() / (count * heads);  // of one head of a token
  const int64_t own = std::clamp<int64_t>(*slot.typed_data(), 0, to[0] - 1) * heads;
  const int64_t begin = std::clamp<int64_t>(*at.typed_data(), 0, positions - count);
  const char* read = static_cast<const char*>(tokens.untyped_data());
  char* write = static_cast<char*>(cache->untyped_data());
  for (int64_t n = 0; n < count; ++n) {
    for (int64_t head = 0; head < heads; ++head, read += size) {
      std::memcpy(write + ((own + head) * positions + begin + n) * size, read, size);
    }
  }
  return ffi::Error::Success();
}

// GELU in its form with tanh(u), as GPT-J has it, is x / (1 + exp(-2 u)).
INLINE Vector gelu(Vector x) {
  x = x < -15.0f ? Vector{} - 15.0f : x;  // of which nothing is left
  const Vector twice = -1.5957691216f * (x + 0.044715f * x * x * x);
  return x / (1.0f + exponential(twice > 87.0f ? Vector{} + 87.0f : twice));
}

// GELU of each number of a row and the bias of its column.
template <typename T>
void gelu(ffi::ThreadPool& pool, const T* x, const float* bias, T* out, int64_t rows,
          int64_t columns) {
  each(pool, rows, [&](int64_t row) {
    const T* from = x + row * columns;
    T* to = out + row * columns;
    int64_t n = 0;
    for (; n + kLanes <= columns; n += kLanes) store(to + n, gelu(load(from + n) + load(bias + n)));
    for (; n < columns; ++n) {
      alignas(64) T one[kLanes];
      store(one, gelu(Vector{} + (single(from + n) + bias[n])));
      to[n] = one[0];
    }
  });
}

ffi::Error Gelu(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::Buffer<ffi::F32> bias,
                ffi::Result<ffi::AnyBuffer> out) {
  const int64_t rows = x.dimensions()[0], columns = x.dimensions()[1];
  const auto run = [&](auto number) {
    using T = decltype(number);
    gelu(pool, static_cast<const T*>(x.untyped_data()), bias.typed_data(),
         static_cast<T*>(out->untyped_data()), rows, columns);
    return ffi::Error::Success();
  };
  if (x.element_type() == ffi::F32) return run(float{});
  if (x.element_type() == ffi::BF16) return run(BFloat16{});
  return ffi::Error::InvalidArgument("what GELU is of is float32 or bfloat16");
}

// The first `turned` dims of each token's heads: each times a number of its place, plus its
// neighbour times another. The other dims as they are.
template <typename T>
void rotary(ffi::ThreadPool& pool, const T* x, const float* straight, const float* across, T* out,
            int64_t tokens, int64_t heads, int64_t dims, int64_t turned) {
  constexpr int64_t kTokens = 8;  // a thread's at a time
  const auto turn = [&](int64_t token) {
    const float *own = straight + token * turned, *other = across + token * turned;
    for (int64_t begin = token * heads * dims; begin < (token + 1) * heads * dims; begin += dims) {
      const T* from = x + begin;
      T* to = out + begin;
      for (int64_t d = 0; d < turned; d += kLanes) {
        const Vector numbers = load(from + d);
        store(to + d, numbers * load(own + d) + swapped(numbers) * load(other + d));
      }
      std::memcpy(to + turned, from + turned, (dims - turned) * sizeof(T));
    }
  };
  each(pool, (tokens + kTokens - 1) / kTokens, [&](int64_t part) {
    const int64_t end = std::min(tokens, (part + 1) * kTokens);
    for (int64_t token = part * kTokens; token < end; ++token) turn(token);
  });
}

ffi::Error Rotary(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::Buffer<ffi::F32> straight,
                  ffi::Buffer<ffi::F32> across, ffi::Result<ffi::AnyBuffer> out) {
  const auto shape = x.dimensions();
  const int64_t turned = straight.dimensions()[1];
  if (turned % kLanes || turned > shape[2] || straight.dimensions()[0] != shape[0]) {
    return ffi::Error::InvalidArgument("of each token's heads a multiple of 16 dims is turned");
  }
  const auto run = [&](auto number) {
    using T = decltype(number);
    rotary(pool, static_cast<const T*>(x.untyped_data()), straight.typed_data(),
           across.typed_data(), static_cast<T*>(out->untyped_data()), shape[0], shape[1], shape[2],
           turned);
    return ffi::Error::Success();
  };
  if (x.element_type() == ffi::F32) return run(float{});
  if (x.element_type() == ffi::BF16) return run(BFloat16{});
  return ffi::Error::InvalidArgument("what is turned is float32 or bfloat16");
}

}  // namespace

// Whether products of bfloat16 numbers go in pairs.
extern "C" int GptjPairs() {
#ifdef __AVX512BF16__
  return 1;
#else
  return 0;
#endif
}
extern "C" int GptjApiMajor() { return XLA_FFI_API_MAJOR; }
extern "C" int GptjApiMinor() { return XLA_FFI_API_MINOR; }

#define PRODUCTS                                                                               \
  ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<ffi::AnyBuffer>().RemainingArgs().RemainingRets()
XLA_FFI_DEFINE_HANDLER_SYMBOL(GptjProducts, Products, PRODUCTS);
XLA_FFI_DEFINE_HANDLER_SYMBOL(GptjProductsInt8, ProductsInt8, PRODUCTS.Attr<bool>("rounded"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(GptjProductsInt4, ProductsInt4, PRODUCTS.Attr<bool>("rounded"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(GptjAttention, Attention,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(GptjAttentionInt8, AttentionInt8,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(GptjCausalAttention, CausalAttention,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<ffi::Buffer<ffi::F32>>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(GptjCausalGradient, CausalGradient,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(GptjTopK, TopK,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::S32>>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(GptjRows, Rows,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::AnyBuffer>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(GptjGelu, Gelu,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::AnyBuffer>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(GptjRotary, Rotary,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::AnyBuffer>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(GptjPut, Put,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::AnyBuffer>());
