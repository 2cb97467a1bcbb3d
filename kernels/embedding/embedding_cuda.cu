#include "kernels/core/cuda_status.h"
#include "kernels/core/vectors.cuh"
#include "kernels/embedding/embedding_internal.h"

namespace thinwire {
namespace {

constexpr int kThreads = 256;

struct EmbeddingParams {
  const int32_t* ids;
  const int32_t* late_ids;
  int64_t num_late;
  const void* table;
  void* out;
  int64_t table_stride, out_stride;
  int64_t num_tokens, num_rows, width, first_id;
  bool accumulate;
};

template <typename From, typename To, int kCount>
__global__ void LookUp(EmbeddingParams p) {
  const int64_t at = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kCount;
  if (at >= p.width) return;
  for (int64_t token = blockIdx.y; token < p.num_tokens; token += gridDim.y) {
    int64_t id = p.ids[token];
    if (id < 0 && -1 - id < p.num_late) id = p.late_ids[-1 - id];
    const int64_t row = id - p.first_id;
    const bool here = row >= 0 && row < p.num_rows;
    if (!here && p.accumulate) continue;
    To* const to = static_cast<To*>(p.out) + token * p.out_stride + at;
    Pack<From, kCount> from = {};
    if (here) {
      from = LoadPack<kCount>(static_cast<const From*>(p.table) + row * p.table_stride + at);
    }
    Pack<To, kCount> out;
    if constexpr (std::is_same_v<From, To>) {
      if (!p.accumulate) {  // the same bits, NaNs included
        StorePack(from, to);
        continue;
      }
    }
    if (p.accumulate) out = LoadPack<kCount>(to);
#pragma unroll
    for (int e = 0; e < kCount; ++e) {
      float value = AsFloat(from.values[e]);
      if (p.accumulate) value += AsFloat(out.values[e]);
      out.values[e] = FromFloat<To>(value);
    }
    StorePack(out, to);
  }
}

}  // namespace

absl::Status EmbeddingCuda(const EmbeddingArgs& args, Stream& stream) {
  const cudaStream_t native = CudaStream(stream);
  EmbeddingParams p = {};
  p.ids = args.ids.data<int32_t>();
  if (!args.late_ids.empty()) {
    p.late_ids = args.late_ids.data<int32_t>();
    p.num_late = args.late_ids.dim(0);
  }
  p.table = args.table.raw();
  p.out = args.out.mutable_raw();
  p.table_stride = args.table.row_stride();
  p.out_stride = args.out.row_stride();
  p.num_tokens = args.out.dim(0);
  p.num_rows = args.table.dim(0);
  p.width = args.out.dim(1);
  p.first_id = args.first_id;
  p.accumulate = args.accumulate;
  WithFloatType(args.table.dtype(), [&](auto from) {
    WithFloatType(args.out.dtype(), [&](auto to) {
      constexpr int kCount = 8;
      const auto aligned = [](const ConstTensorView& view) {
        return RowsAlign(view, 16) && view.dim(1) % kCount == 0;
      };
      if (aligned(args.table) && aligned(args.out)) {
        LookUp<decltype(from), decltype(to), kCount>
            <<<RowGrid(p.num_tokens, p.width, kThreads * kCount), kThreads, 0, native>>>(p);
      } else {
        LookUp<decltype(from), decltype(to), 1>
            <<<RowGrid(p.num_tokens, p.width, kThreads), kThreads, 0, native>>>(p);
      }
    });
  });
  return CudaLaunchStatus("embedding", stream);
}

}  // namespace thinwire
