#include "parallel/comm/rank_order_reduce.h"

#include <algorithm>
#include <bit>
#include <type_traits>

#include "absl/strings/str_cat.h"
#include "kernels/core/check.h"
#include "kernels/core/float16.h"

namespace thinwire {
namespace {

// Elements whose accumulators stay in the first-level cache while all parts are added to them.
constexpr int64_t kBlock = 1024;

// Fewer elements than this are not worth a second thread.
constexpr int64_t kGrain = 32 * 1024;

// A selection that compilers leave one: they turn ?: around arithmetic into branches.
uint32_t Select(bool condition, uint32_t yes, uint32_t no) {
  const uint32_t mask = 0u - static_cast<uint32_t>(condition);
  return (yes & mask) | (no & ~mask);
}

// The conversions of float16.h with selections in place of branches, so that compilers vectorise
// the loops around them for any x86-64; the test compares the two for all inputs.
float Widen(Half h) {
  const uint32_t sign = static_cast<uint32_t>(h.bits & 0x8000u) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(h.bits & 0x7fffu) << 13;
  const uint32_t normal = magnitude + 0x38000000u;
  const uint32_t special = magnitude | 0x7f800000u;
  // Below 2^-14: 0.5 + mantissa * 2^-24 has the mantissa in its low bits; subtracting 0.5
  // normalises it.
  const float tiny = std::bit_cast<float>((magnitude >> 13) + 0x3f000000u) - 0.5f;
  const auto compared = static_cast<int32_t>(magnitude);
  uint32_t bits = Select(compared >= 0x0f800000, special, normal);
  bits = Select(compared < 0x00800000, std::bit_cast<uint32_t>(tiny), bits);
  return std::bit_cast<float>(bits | sign);
}

float Widen(BFloat16 b) { return ToFloat(b); }
float Widen(float f) { return f; }

void Narrow(float value, Half& out) {
  const uint32_t in = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (in >> 16) & 0x8000u;
  const uint32_t magnitude = in & 0x7fffffffu;
  const uint32_t rounded = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - 0x38000000u) >> 13;
  const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
  const uint32_t tiny = std::bit_cast<uint32_t>(shifted) - 0x3f000000u;
  const uint32_t nan = 0x7e00u | ((magnitude >> 13) & 0x3ffu);
  // Magnitudes are below 2^31: signed comparisons, which SSE2 has.
  const auto compared = static_cast<int32_t>(magnitude);
  uint32_t bits = Select(compared < 0x38800000, tiny, rounded);
  bits = Select(compared >= 0x477ff000, 0x7c00u, bits);
  bits = Select(compared > 0x7f800000, nan, bits);
  out.bits = static_cast<uint16_t>(bits | sign);
}

void Narrow(float value, BFloat16& out) {
  const uint32_t in = std::bit_cast<uint32_t>(value);
  const uint32_t rounded = (in + 0x7fffu + ((in >> 16) & 1u)) >> 16;
  const uint32_t nan = (in >> 16) | 0x40u;
  const bool is_nan = static_cast<int32_t>(in & 0x7fffffffu) > 0x7f800000;
  out.bits = static_cast<uint16_t>(Select(is_nan, nan, rounded));
}

void Narrow(float value, float& out) { out = value; }

int32_t Widen(int32_t v) { return v; }
int64_t Widen(int64_t v) { return v; }
void Narrow(int32_t value, int32_t& out) { out = value; }
void Narrow(int64_t value, int64_t& out) { out = value; }

struct Sum {
  template <typename T>
  static T Apply(T a, T b) {
    if constexpr (std::is_integral_v<T>) {
      using Unsigned = std::make_unsigned_t<T>;
      return static_cast<T>(static_cast<Unsigned>(a) + static_cast<Unsigned>(b));
    } else {
      return a + b;
    }
  }
};

struct Max {
  template <typename T>
  static T Apply(T a, T b) {
    return ((a < b) | (b != b)) ? b : a;
  }
};

template <typename T, typename Op>
void ReduceRange(absl::Span<const void* const> parts, int64_t begin, int64_t end, T* out) {
  using Accumulator = decltype(Widen(T()));
  alignas(64) Accumulator sums[kBlock];
  for (int64_t block = begin; block < end; block += kBlock) {
    const int64_t count = std::min(kBlock, end - block);
    const auto part = [&](size_t r) { return static_cast<const T*>(parts[r]) + block; };
    const T* const first = part(0);
    if (parts.size() == 1) {
      for (int64_t i = 0; i < count; ++i) sums[i] = Widen(first[i]);
    } else {
      const T* const second = part(1);
      for (int64_t i = 0; i < count; ++i) sums[i] = Op::Apply(Widen(first[i]), Widen(second[i]));
    }
    for (size_t r = 2; r < parts.size(); ++r) {
      const T* const next = part(r);
      for (int64_t i = 0; i < count; ++i) sums[i] = Op::Apply(sums[i], Widen(next[i]));
    }
    T* const to = out + block;
    for (int64_t i = 0; i < count; ++i) Narrow(sums[i], to[i]);
  }
}

template <typename T>
void Reduce(ReduceOp op, absl::Span<const void* const> parts, int64_t n, void* out,
            ThreadPool& pool) {
  pool.ParallelFor(n, kGrain, [&](int64_t begin, int64_t end) {
    if (op == ReduceOp::kSum) {
      ReduceRange<T, Sum>(parts, begin, end, static_cast<T*>(out));
    } else {
      ReduceRange<T, Max>(parts, begin, end, static_cast<T*>(out));
    }
  });
}

}  // namespace

bool CanReduce(DType dtype) {
  return IsFloat(dtype) || dtype == DType::kI32 || dtype == DType::kI64;
}

void ReduceInRankOrder(DType dtype, ReduceOp op, absl::Span<const void* const> parts, int64_t n,
                       void* out, ThreadPool& pool) {
  TW_CHECK(!parts.empty());
  if (n == 0) return;
  switch (dtype) {
    case DType::kF32:
      return Reduce<float>(op, parts, n, out, pool);
    case DType::kF16:
      return Reduce<Half>(op, parts, n, out, pool);
    case DType::kBF16:
      return Reduce<BFloat16>(op, parts, n, out, pool);
    case DType::kI32:
      return Reduce<int32_t>(op, parts, n, out, pool);
    case DType::kI64:
      return Reduce<int64_t>(op, parts, n, out, pool);
    default:
      internal::CheckFailed(__FILE__, __LINE__, absl::StrCat("cannot reduce ", DTypeName(dtype)));
  }
}

}  // namespace thinwire
