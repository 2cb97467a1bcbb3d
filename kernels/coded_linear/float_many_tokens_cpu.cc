// Many tokens: the time goes into multiplying. Blocks of weights become floats in memory and are
// multiplied by BLAS.
#include <algorithm>
#include <cstddef>

#include "kernels/coded_linear/coded_linear_cpu.h"
#include "kernels/convert/convert.h"
#include "kernels/core/status_macros.h"
#include "kernels/linear/blas.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/coded_linear/float_many_tokens_cpu.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "hwy/highway.h"
#include "kernels/coded_linear/floats_inl.h"

HWY_BEFORE_NAMESPACE();
namespace thinwire {
namespace HWY_NAMESPACE {

template <int kBits>
void DequantizePanelOf(const CodedWeights& weights, int64_t panel, float* HWY_RESTRICT to,
                       int64_t stride) {
  const DF32 df32;
  const Decoder<kBits> decoder;
  for (int v = 0; v < kPanelVectors; ++v) {
    float* HWY_RESTRICT column = to + v * kLanes;
    for (int64_t g = 0; g < weights.num_groups(); ++g) {
      const VF32 scale =
          LoadFloats(df32, weights.panel_scales(panel) + g * kPanelRows + v * kLanes);
      const VF32 zero = decoder.Zeros(weights.panel_zeros(panel) + g * kPanelRows, v);
      const VF32 shift = hn::Mul(zero, scale);
      const uint8_t* block =
          weights.panel_codes(panel) + weights.block_offsets()[g] * BlockBytes(kBits);
      int64_t left = weights.group_offsets()[g + 1] - weights.group_offsets()[g];
      while (left > 0) {
        Quads quads[kQuads<kBits>];
        decoder.Load(block, v, quads);
#pragma GCC unroll 16
        for (int c = 0; c < kQuads<kBits> * 4; ++c) {
          if (c >= left) break;
          // Exact: 9 by 11 bits, and the same less that many.
          const VF32 w = hn::MulSub(decoder.Column(quads[c / 4], c % 4), scale, shift);
          hn::StoreU(w, df32, column);
          column += stride;
        }
        left -= BlockColumns(kBits);
        block += BlockBytes(kBits);
      }
    }
  }
}

// to[i * stride + r] = w[panel's row r, i]
void DequantizePanel(const CodedWeights& weights, int64_t panel, float* HWY_RESTRICT to,
                     int64_t stride) {
  switch (weights.bits()) {
    case 3:
      return DequantizePanelOf<3>(weights, panel, to, stride);
    case 4:
      return DequantizePanelOf<4>(weights, panel, to, stride);
    default:
      return DequantizePanelOf<8>(weights, panel, to, stride);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace thinwire
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace thinwire {
namespace {

HWY_EXPORT(DequantizePanel);

// Weights of a block as floats: with enough rows to amortise BLAS packing x again for each block.
constexpr int64_t kBlockWeights = 1 << 20;
constexpr int64_t kMinBlockPanels = 16;
constexpr int64_t kMaxBlockTokens = 512;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

absl::Status CodedLinearManyTokens(const CodedLinearArgs& args, Stream& stream) {
  const CodedWeights& weights = *args.weights;
  const int64_t num_tokens = args.x.dim(0);
  const int64_t in_features = weights.in_features();
  const int64_t out_features = weights.out_features();
  ThreadPool& pool = stream.pool();
  const bool direct = args.x.dtype() == DType::kF32;
  const int64_t num_panels = CeilDiv(out_features, kPanelRows);
  const int64_t block_panels =
      std::min(CeilDiv(num_panels, pool.num_threads()),
               std::max(kMinBlockPanels, kBlockWeights / (in_features * kPanelRows)));
  const int64_t block_rows = block_panels * kPanelRows;
  const int64_t block_tokens = std::min(num_tokens, kMaxBlockTokens);
  const int64_t x_floats = direct ? 0 : CeilDiv(num_tokens * in_features, 16) * 16;
  const int64_t y_floats = direct ? 0 : block_tokens * block_rows;
  const int64_t thread_floats = block_rows * in_features + y_floats;
  TW_ASSIGN_OR_RETURN(std::byte * bytes,
                      stream.Scratch((x_floats + pool.num_threads() * thread_floats) *
                                     static_cast<int64_t>(sizeof(float))));
  auto* const scratch = reinterpret_cast<float*>(bytes);
  const float* x = scratch;
  int64_t x_stride = in_features;
  if (direct) {
    x = args.x.data<float>();
    x_stride = args.x.row_stride();
  } else {
    pool.ParallelFor(num_tokens, CeilDiv(4096, in_features), [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        ConvertToFloat(args.x.Rows(t, 1).raw(), args.x.dtype(), scratch + t * in_features,
                       in_features);
      }
    });
  }
  const float* bias = args.bias.empty() ? nullptr : args.bias.data<float>();
  pool.ParallelForDynamic(CeilDiv(num_panels, block_panels), [&](int64_t block) {
    const int64_t panel = block * block_panels;
    const int64_t o = panel * kPanelRows;
    const int64_t rows = std::min(block_rows, out_features - o);
    float* const w = scratch + x_floats + ThreadPool::CurrentThread() * thread_floats;
    float* const y_block = w + block_rows * in_features;
    for (int64_t p = 0; p < CeilDiv(rows, kPanelRows); ++p) {
      HWY_DYNAMIC_DISPATCH(DequantizePanel)(weights, panel + p, w + p * kPanelRows, block_rows);
    }
    const int64_t step = direct ? num_tokens : block_tokens;
    for (int64_t t = 0; t < num_tokens; t += step) {
      const int64_t tokens = std::min(step, num_tokens - t);
      const TensorView y = args.y.Rows(t, tokens).Columns(o, rows);
      float* const c = direct ? y.mutable_data<float>() : y_block;
      const int64_t c_stride = direct ? y.row_stride() : rows;
      if (bias != nullptr) {
        // Sums that begin with the bias save a pass over y.
        for (int64_t i = 0; i < tokens; ++i) std::copy(bias + o, bias + o + rows, c + i * c_stride);
      }
      SgemmNN(tokens, rows, in_features, x + t * x_stride, x_stride, w, block_rows,
              bias == nullptr ? 0.0f : 1.0f, c, c_stride);
      if (direct) continue;
      for (int64_t i = 0; i < tokens; ++i) {
        ConvertFromFloat(c + i * c_stride, y.Rows(i, 1).mutable_raw(), y.dtype(), rows);
      }
    }
  });
  return absl::OkStatus();
}

}  // namespace thinwire
#endif  // HWY_ONCE
