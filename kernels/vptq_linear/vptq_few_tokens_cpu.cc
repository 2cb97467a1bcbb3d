// A vector row at a time: each code is read once for a few tokens, its centroid is loaded as one or
// two registers, and these times x are summed up.
//
// An output's order of summation depends on the columns only: even and odd ones of each group.
#include <algorithm>
#include <cstddef>

#include "kernels/convert/convert.h"
#include "kernels/core/status_macros.h"
#include "kernels/vptq_linear/vptq_codes.h"
#include "kernels/vptq_linear/vptq_linear_cpu.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/vptq_linear/vptq_few_tokens_cpu.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "hwy/highway.h"
#include "kernels/convert/convert_inl.h"

#ifndef THINWIRE_KERNELS_VPTQ_LINEAR_FEW_TOKENS_
#define THINWIRE_KERNELS_VPTQ_LINEAR_FEW_TOKENS_
namespace thinwire {
namespace {

constexpr int kTileTokens = 4;

struct VptqCall {
  const VptqWeights* weights;
  const float* x;  // [num_tokens, x_stride] by position
  int64_t x_stride;
  int64_t num_tokens;
  float* y;  // [num_tokens, out_features]: sums are added to it
};

}  // namespace
}  // namespace thinwire
#endif  // THINWIRE_KERNELS_VPTQ_LINEAR_FEW_TOKENS_

HWY_BEFORE_NAMESPACE();
namespace thinwire {
namespace HWY_NAMESPACE {

template <int kStride>
using Tag = hn::CappedTag<float, kStride>;

// The products of one vector row with tokens [token, token + kTokens), positions from
// `first_position` on. sums: [kTokens, kStride].
template <typename T, int kStride, int kTokens, bool kResidual>
HWY_INLINE void VectorRow(const VptqCall& call, const VptqPart& part, int64_t row,
                          int64_t first_position, int64_t token, float* HWY_RESTRICT sums) {
  const Tag<kStride> d;
  constexpr int kLanes = static_cast<int>(hn::MaxLanes(d));
  constexpr int kVectors = kStride / kLanes;
  using V = hn::Vec<Tag<kStride>>;
  V parts[kTokens][2][kVectors];
  for (int t = 0; t < kTokens; ++t) {
    for (int h = 0; h < 2; ++h) {
      for (int v = 0; v < kVectors; ++v) parts[t][h][v] = hn::Zero(d);
    }
  }
  const float* HWY_RESTRICT x = call.x + token * call.x_stride + first_position;
  const int index_bits = part.index_bits;
  const int residual_bits = part.residual_bits;
  const int bits = index_bits + (kResidual ? residual_bits : 0);
  for (const VptqGroup& group : part.groups) {
    const T* const centroids = static_cast<const T*>(group.centroids.view().raw());
    const T* const residual = static_cast<const T*>(group.residual.view().raw());
    const int64_t n = group.num_columns;
    const uint8_t* const codes =
        static_cast<const uint8_t*>(group.codes.view().raw()) + row * VptqRowBytes(n, bits);
    const auto column = [&](int64_t c, int half) HWY_ATTR {
      const uint64_t code = VptqCodeAt(codes, c * bits);
      const T* const from = centroids + VptqField(code, 0, index_bits) * kStride;
      const T* const more =
          kResidual ? residual + VptqField(code, index_bits, residual_bits) * kStride : nullptr;
      for (int v = 0; v < kVectors; ++v) {
        V w = LoadFloats(d, from + v * kLanes);
        if constexpr (kResidual) w = hn::Add(w, LoadFloats(d, more + v * kLanes));
        for (int t = 0; t < kTokens; ++t) {
          const V factor = hn::Set(d, x[t * call.x_stride + c]);
          parts[t][half][v] = hn::MulAdd(w, factor, parts[t][half][v]);
        }
      }
    };
    int64_t c = 0;
    for (; c + 2 <= n; c += 2) {
      column(c, 0);
      column(c + 1, 1);
    }
    if (c < n) column(c, 0);
    x += n;
  }
  for (int t = 0; t < kTokens; ++t) {
    for (int v = 0; v < kVectors; ++v) {
      hn::StoreU(hn::Add(parts[t][0][v], parts[t][1][v]), d, sums + t * kStride + v * kLanes);
    }
  }
}

template <typename T, int kStride, int kTokens>
HWY_NOINLINE void AddRow(const VptqCall& call, const VptqPart& part, int64_t row,
                         int64_t first_position, int64_t token) {
  HWY_ALIGN float sums[kTokens * kStride];
  if (!part.groups.empty() && !part.groups[0].residual.empty()) {
    VectorRow<T, kStride, kTokens, true>(call, part, row, first_position, token, sums);
  } else {
    VectorRow<T, kStride, kTokens, false>(call, part, row, first_position, token, sums);
  }
  const int64_t out = call.weights->out_features();
  const int64_t from = row * part.length - part.skip;
  const int64_t begin = std::max<int64_t>(from, 0);
  const int64_t end = std::min(from + part.length, out);
  for (int t = 0; t < kTokens; ++t) {
    float* const y = call.y + (token + t) * out;
    for (int64_t o = begin; o < end; ++o) y[o] += sums[t * kStride + (o - from)];
  }
}

template <typename T, int kStride>
void AddRows(const VptqCall& call, const VptqPart& part, int64_t begin, int64_t end,
             int64_t first_position) {
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t t = 0; t < call.num_tokens; t += kTileTokens) {
      switch (std::min<int64_t>(kTileTokens, call.num_tokens - t)) {
        case 1:
          AddRow<T, kStride, 1>(call, part, row, first_position, t);
          break;
        case 2:
          AddRow<T, kStride, 2>(call, part, row, first_position, t);
          break;
        case 3:
          AddRow<T, kStride, 3>(call, part, row, first_position, t);
          break;
        default:
          AddRow<T, kStride, kTileTokens>(call, part, row, first_position, t);
      }
    }
  }
}

template <typename T>
void AddRowsOf(const VptqCall& call, const VptqPart& part, int64_t begin, int64_t end,
               int64_t first_position) {
  switch (VptqStride(part.length)) {
    case 4:
      return AddRows<T, 4>(call, part, begin, end, first_position);
    case 8:
      return AddRows<T, 8>(call, part, begin, end, first_position);
    default:
      return AddRows<T, 16>(call, part, begin, end, first_position);
  }
}

// Adds vector rows [begin, end) of a part whose first column is at `first_position`.
void VptqRows(const VptqCall& call, const VptqPart& part, int64_t begin, int64_t end,
              int64_t first_position) {
  switch (part.groups[0].centroids.view().dtype()) {
    case DType::kF16:
      return AddRowsOf<Half>(call, part, begin, end, first_position);
    case DType::kBF16:
      return AddRowsOf<BFloat16>(call, part, begin, end, first_position);
    default:
      return AddRowsOf<float>(call, part, begin, end, first_position);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace thinwire
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace thinwire {
namespace {

HWY_EXPORT(VptqRows);

// Look-ups that occupy a thread for some microseconds: less is not worth waking one.
constexpr int64_t kLookUpsPerThread = 4096;

}  // namespace

absl::Status VptqLinearFewTokens(const VptqLinearArgs& args, Stream& stream) {
  const VptqWeights& weights = *args.weights;
  const int64_t num_tokens = args.x.dim(0);
  const int64_t out = weights.out_features();
  TW_ASSIGN_OR_RETURN(const VptqInput input, PrepareVptqInput(args, num_tokens * out, stream));
  float* const y = input.rest;
  const VptqCall call = {&weights, input.x, weights.in_features(), num_tokens, y};
  const float* bias = args.bias.empty() ? nullptr : args.bias.data<float>();
  for (int64_t t = 0; t < num_tokens; ++t) {
    for (int64_t o = 0; o < out; ++o) y[t * out + o] = 0.0f;
  }
  int64_t position = 0;
  for (const VptqPart& part : weights.parts()) {
    const int64_t columns = part.num_columns();
    if (columns == 0) continue;
    const int64_t tiles = (num_tokens + kTileTokens - 1) / kTileTokens;
    const int64_t grain = std::max<int64_t>(1, kLookUpsPerThread / (columns * tiles));
    stream.pool().ParallelFor(part.num_vectors(out), grain, [&](int64_t begin, int64_t end) {
      HWY_DYNAMIC_DISPATCH(VptqRows)(call, part, begin, end, position);
    });
    position += columns;
  }
  for (int64_t t = 0; t < num_tokens; ++t) {
    float* const row = y + t * out;
    for (int64_t o = 0; o < out; ++o) {
      row[o] = (row[o] + input.sums[t]) + (bias == nullptr ? 0.0f : bias[o]);
    }
    ConvertFromFloat(row, args.y.Rows(t, 1).mutable_raw(), args.y.dtype(), out);
  }
  return absl::OkStatus();
}

}  // namespace thinwire
#endif  // HWY_ONCE
