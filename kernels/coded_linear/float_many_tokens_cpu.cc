// Many tokens: the time goes into multiplying. Blocks of weights become floats in memory and are
// multiplied by BLAS.
#include <algorithm>
#include <cstddef>
#include <vector>

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
void DequantizePanelOf(const CodedWeights& weights, int64_t panel, int64_t begin, int64_t end,
                       float* HWY_RESTRICT to, int64_t stride) {
  const DF32 df32;
  const Decoder<kBits> decoder;
  const uint8_t* const codes = weights.panel_codes(panel);
  const uint8_t* const zeros = weights.panel_zeros(panel);
  const Half* const scales = weights.panel_scales(panel);
  for (int64_t g = begin; g < end; ++g) {
    const int64_t columns = weights.group_offsets()[g + 1] - weights.group_offsets()[g];
    for (int v = 0; v < kPanelVectors; ++v) {
      const VF32 scale = LoadFloats(df32, scales + g * kPanelRows + v * kLanes);
      const VF32 shift = hn::Mul(decoder.Zeros(zeros + g * kPanelRows, v), scale);
      const uint8_t* block = codes + weights.block_offsets()[g] * BlockBytes(kBits);
      float* HWY_RESTRICT column = to + v * kLanes;
      // Exact: 9 by 11 bits, and the same less that many.
      const auto store = [&](Quads quads, int k) HWY_ATTR {
        hn::StoreU(hn::MulSub(decoder.Column(quads, k), scale, shift), df32, column);
        column += stride;
      };
      int64_t left = columns;
      for (; left >= BlockColumns(kBits); left -= BlockColumns(kBits)) {
        Quads quads[kQuads<kBits>];
        decoder.Load(block, v, quads);
#pragma GCC unroll 16
        for (int j = 0; j < kQuads<kBits>; ++j) {
#pragma GCC unroll 16
          for (int k = 0; k < 4; ++k) store(quads[j], k);
        }
        block += BlockBytes(kBits);
      }
      if (left > 0) {
        Quads quads[kQuads<kBits>];
        decoder.Load(block, v, quads);
        for (int j = 0; j < kQuads<kBits>; ++j) {
          for (int k = 0; k < 4 && 4 * j + k < left; ++k) store(quads[j], k);
        }
      }
    }
    to += columns * stride;
  }
}

// to[i * stride + r] = w[panel's row r, i], i from the first column of groups [begin, end) on.
void DequantizePanel(const CodedWeights& weights, int64_t panel, int64_t begin, int64_t end,
                     float* HWY_RESTRICT to, int64_t stride) {
  switch (weights.bits()) {
    case 3:
      return DequantizePanelOf<3>(weights, panel, begin, end, to, stride);
    case 4:
      return DequantizePanelOf<4>(weights, panel, begin, end, to, stride);
    default:
      return DequantizePanelOf<8>(weights, panel, begin, end, to, stride);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace thinwire
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace thinwire {
namespace {

HWY_EXPORT(DequantizePanel);

// A block of weights as floats: it stays in the second-level cache until BLAS has packed it, and
// has enough rows to amortise BLAS packing x again for each block.
constexpr int64_t kBlockRows = 512;
constexpr int64_t kBlockColumns = 512;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Ends of runs of whole groups, of at most kBlockColumns unless one group has more.
std::vector<int64_t> PlanGroups(absl::Span<const int32_t> offsets) {
  std::vector<int64_t> ends = {0};
  for (int64_t g = 1; g < static_cast<int64_t>(offsets.size()); ++g) {
    if (g + 1 == static_cast<int64_t>(offsets.size()) ||
        offsets[g + 1] - offsets[ends.back()] > kBlockColumns) {
      ends.push_back(g);
    }
  }
  return ends;
}

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
      std::min(CeilDiv(num_panels, pool.num_threads()), kBlockRows / kPanelRows);
  const int64_t block_rows = block_panels * kPanelRows;
  // Not a power of two, lest all columns fall into a few sets of the first-level cache.
  const int64_t w_stride = block_rows + kPanelRows;
  const std::vector<int64_t> groups = PlanGroups(weights.group_offsets());
  int64_t block_columns = 0;
  for (size_t i = 1; i < groups.size(); ++i) {
    block_columns = std::max<int64_t>(
        block_columns, weights.group_offsets()[groups[i]] - weights.group_offsets()[groups[i - 1]]);
  }
  const int64_t x_floats = direct ? 0 : CeilDiv(num_tokens * in_features, 16) * 16;
  const int64_t w_floats = block_columns * w_stride;
  const int64_t thread_floats = w_floats + (direct ? 0 : num_tokens * block_rows);
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
    const TensorView y = args.y.Columns(o, rows);
    float* const c = direct ? y.mutable_data<float>() : w + w_floats;
    const int64_t c_stride = direct ? y.row_stride() : rows;
    if (bias != nullptr) {
      // Sums that begin with the bias save a pass over y.
      for (int64_t t = 0; t < num_tokens; ++t) {
        std::copy(bias + o, bias + o + rows, c + t * c_stride);
      }
    }
    for (size_t i = 1; i < groups.size(); ++i) {
      const int64_t column = weights.group_offsets()[groups[i - 1]];
      const int64_t columns = weights.group_offsets()[groups[i]] - column;
      for (int64_t p = 0; p < CeilDiv(rows, kPanelRows); ++p) {
        HWY_DYNAMIC_DISPATCH(DequantizePanel)
        (weights, panel + p, groups[i - 1], groups[i], w + p * kPanelRows, w_stride);
      }
      SgemmNN(num_tokens, rows, columns, x + column, x_stride, w, w_stride,
              bias == nullptr && i == 1 ? 0.0f : 1.0f, c, c_stride);
    }
    if (direct) return;
    for (int64_t t = 0; t < num_tokens; ++t) {
      ConvertFromFloat(c + t * c_stride, y.Rows(t, 1).mutable_raw(), y.dtype(), rows);
    }
  });
  return absl::OkStatus();
}

}  // namespace thinwire
#endif  // HWY_ONCE
