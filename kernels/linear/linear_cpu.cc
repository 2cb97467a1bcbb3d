#include "kernels/linear/linear_cpu.h"

#include <algorithm>
#include <cstddef>

#include "kernels/convert/convert.h"
#include "kernels/core/status_macros.h"
#include "kernels/linear/blas.h"

namespace thinwire {
namespace {

// Blocks of the product begin at multiples of this, a multiple of every register tile of the
// library.
constexpr int64_t kAlign = 64;

// One call's tokens, when y goes through fp32 scratch.
constexpr int64_t kMaxBlockTokens = 512;

// The fp32 copy of a block of weight rows: small enough to stay in cache between the copy and its
// use, yet with enough rows to amortise packing x again for each block.
constexpr int64_t kUsualBlockWeights = 1 << 20;
constexpr int64_t kMaxBlockWeights = 2 << 20;
constexpr int64_t kWantedBlockFeatures = 512;
constexpr int64_t kMaxBlockFeatures = 4096;

// Products that occupy a thread for some ten microseconds.
constexpr int64_t kProductsPerThread = 1 << 20;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t RoundUp(int64_t a, int64_t b) { return CeilDiv(a, b) * b; }

// y in parts of at most `tokens` x `features`, one for each thread.
struct Partition {
  int64_t tokens;
  int64_t features;
};

// Each part packs its rows of x and of the weight, so the parts are as square as the thread count
// allows.
Partition ChoosePartition(int64_t num_tokens, int64_t out_features, int64_t in_features,
                          int num_threads) {
  const int64_t products = num_tokens * out_features * in_features;
  const int64_t num_parts = std::clamp<int64_t>(products / kProductsPerThread, 1, num_threads);
  Partition best = {};
  int64_t best_cost = 0;
  for (int64_t across = 1; across <= num_parts; ++across) {
    const Partition part = {
        std::min(num_tokens, RoundUp(CeilDiv(num_tokens, num_parts / across), kAlign)),
        std::min(out_features, RoundUp(CeilDiv(out_features, across), kAlign))};
    // The time of the slowest thread: products, and packing at roughly 64 products an element.
    const int64_t cost = part.tokens * part.features * in_features +
                         64 * (part.tokens + part.features) * in_features;
    if (best.tokens == 0 || cost < best_cost) {
      best = part;
      best_cost = cost;
    }
  }
  return best;
}

int64_t BlockFeatures(int64_t in_features) {
  const int64_t features = std::max(kUsualBlockWeights / in_features,
                                    std::min(kWantedBlockFeatures, kMaxBlockWeights / in_features));
  return std::clamp(features / kAlign * kAlign, kAlign, kMaxBlockFeatures);
}

}  // namespace

absl::Status LinearManyTokens(const LinearArgs& args, Stream& stream) {
  const int64_t num_tokens = args.x.dim(0);
  const int64_t in_features = args.x.dim(1);
  const int64_t out_features = args.weight.dim(0);
  ThreadPool& pool = stream.pool();
  const Partition part = ChoosePartition(num_tokens, out_features, in_features, pool.num_threads());
  const int64_t parts_down = CeilDiv(num_tokens, part.tokens);
  const int64_t parts_across = CeilDiv(out_features, part.features);

  const bool x_is_fp32 = args.x.dtype() == DType::kF32;
  const bool weight_is_fp32 = args.weight.dtype() == DType::kF32;
  const int64_t block_tokens = x_is_fp32 ? part.tokens : std::min(part.tokens, kMaxBlockTokens);
  const int64_t block_features = weight_is_fp32 && x_is_fp32
                                     ? part.features
                                     : std::min(part.features, BlockFeatures(in_features));
  const int64_t x_floats = x_is_fp32 ? 0 : RoundUp(num_tokens * in_features, kAlign);
  const int64_t weight_floats = weight_is_fp32 ? 0 : RoundUp(block_features * in_features, kAlign);
  const int64_t y_floats = x_is_fp32 ? 0 : RoundUp(block_tokens * block_features, kAlign);
  const int64_t num_floats = x_floats + pool.num_threads() * (weight_floats + y_floats);
  TW_ASSIGN_OR_RETURN(std::byte * bytes,
                      stream.Scratch(num_floats * static_cast<int64_t>(sizeof(float))));
  auto* const scratch = reinterpret_cast<float*>(bytes);

  const float* x = scratch;
  int64_t x_stride = in_features;
  if (x_is_fp32) {
    x = args.x.data<float>();
    x_stride = args.x.row_stride();
  } else {
    pool.ParallelFor(num_tokens, CeilDiv(kAlign * kAlign, in_features),
                     [&](int64_t begin, int64_t end) {
                       for (int64_t t = begin; t < end; ++t) {
                         ConvertToFloat(args.x.Rows(t, 1).raw(), args.x.dtype(),
                                        scratch + t * in_features, in_features);
                       }
                     });
  }
  const float* bias = args.bias.empty() ? nullptr : args.bias.data<float>();

  const auto run_part = [&](int64_t index) {
    const int64_t token_begin = index / parts_across * part.tokens;
    const int64_t token_end = std::min(num_tokens, token_begin + part.tokens);
    const int64_t feature_begin = index % parts_across * part.features;
    const int64_t feature_end = std::min(out_features, feature_begin + part.features);
    float* const weight_block =
        scratch + x_floats + ThreadPool::CurrentThread() * (weight_floats + y_floats);
    float* const y_block = weight_block + weight_floats;
    for (int64_t o = feature_begin; o < feature_end; o += block_features) {
      const int64_t features = std::min(block_features, feature_end - o);
      const ConstTensorView weight = args.weight.Rows(o, features);
      if (!weight_is_fp32) {
        ConvertToFloat(weight.raw(), weight.dtype(), weight_block, features * in_features);
      }
      const float* w = weight_is_fp32 ? weight.data<float>() : weight_block;
      for (int64_t t = token_begin; t < token_end; t += block_tokens) {
        const int64_t tokens = std::min(block_tokens, token_end - t);
        const TensorView y = args.y.Rows(t, tokens).Columns(o, features);
        float* c = x_is_fp32 ? y.mutable_data<float>() : y_block;
        const int64_t c_stride = x_is_fp32 ? y.row_stride() : features;
        if (bias != nullptr) {
          // Sums that begin with the bias save a pass over y.
          for (int64_t i = 0; i < tokens; ++i) {
            std::copy(bias + o, bias + o + features, c + i * c_stride);
          }
        }
        SgemmNT(tokens, features, in_features, x + t * x_stride, x_stride, w, in_features,
                bias == nullptr ? 0.0f : 1.0f, c, c_stride);
        if (x_is_fp32) continue;
        for (int64_t i = 0; i < tokens; ++i) {
          ConvertFromFloat(c + i * c_stride, y.Rows(i, 1).mutable_raw(), y.dtype(), features);
        }
      }
    }
  };
  pool.ParallelFor(parts_down * parts_across, 1, [&](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) run_part(index);
  });
  return absl::OkStatus();
}

absl::Status LinearCpu(const LinearArgs& args, Stream& stream) {
  return args.batch_invariant || args.x.dim(0) <= FewTokens(args.weight.dtype())
             ? LinearFewTokens(args, stream)
             : LinearManyTokens(args, stream);
}

}  // namespace thinwire
