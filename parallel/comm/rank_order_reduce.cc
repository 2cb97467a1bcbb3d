#include "parallel/comm/rank_order_reduce.h"

#include <algorithm>
#include <type_traits>

#include "absl/strings/str_cat.h"
#include "kernels/convert/convert.h"
#include "kernels/core/check.h"
#include "kernels/core/float16.h"

namespace thinwire {
namespace {

// Elements whose accumulators stay in the first-level cache while all parts are added to them.
constexpr int64_t kBlock = 1024;

// Fewer elements than this are not worth a second thread.
constexpr int64_t kGrain = 32 * 1024;

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

// Elements [0, count) of a part as accumulators: `from` itself, or `scratch` with them widened.
template <typename T>
const T* Widened(const T* from, T* /*scratch*/, int64_t /*count*/) {
  return from;
}
const float* Widened(const Half* from, float* scratch, int64_t count) {
  ConvertToFloat(from, DType::kF16, scratch, count);
  return scratch;
}
const float* Widened(const BFloat16* from, float* scratch, int64_t count) {
  ConvertToFloat(from, DType::kBF16, scratch, count);
  return scratch;
}

template <typename T>
void Narrow(const T* from, int64_t count, T* to) {
  std::copy_n(from, count, to);
}
void Narrow(const float* from, int64_t count, Half* to) {
  ConvertFromFloat(from, to, DType::kF16, count);
}
void Narrow(const float* from, int64_t count, BFloat16* to) {
  ConvertFromFloat(from, to, DType::kBF16, count);
}

template <typename T>
using Accumulator =
    std::conditional_t<std::is_same_v<T, Half> || std::is_same_v<T, BFloat16>, float, T>;

template <typename T, typename Op>
void ReduceRange(absl::Span<const void* const> parts, int64_t begin, int64_t end, T* out) {
  alignas(64) Accumulator<T> sums[kBlock];
  alignas(64) Accumulator<T> first_scratch[kBlock];
  alignas(64) Accumulator<T> scratch[kBlock];
  for (int64_t block = begin; block < end; block += kBlock) {
    const int64_t count = std::min(kBlock, end - block);
    const auto part = [&](size_t r, Accumulator<T>* room) {
      return Widened(static_cast<const T*>(parts[r]) + block, room, count);
    };
    const Accumulator<T>* const first = part(0, first_scratch);
    if (parts.size() == 1) {
      std::copy_n(first, count, sums);
    } else {
      const Accumulator<T>* const second = part(1, scratch);
      for (int64_t i = 0; i < count; ++i) sums[i] = Op::Apply(first[i], second[i]);
    }
    for (size_t r = 2; r < parts.size(); ++r) {
      const Accumulator<T>* const next = part(r, scratch);
      for (int64_t i = 0; i < count; ++i) sums[i] = Op::Apply(sums[i], next[i]);
    }
    Narrow(static_cast<const Accumulator<T>*>(sums), count, out + block);
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

absl::Status CheckReducible(DType dtype) {
  if (CanReduce(dtype)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("reductions take fp32, fp16, bf16, int32 or int64, not ", DTypeName(dtype)));
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
