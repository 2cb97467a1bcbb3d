// The wire's codec on a GPU. Arguments: bits, num_rows, parts (0: encode; else: decode and add so
// many). Rows of 8192 channels, fp16.
#include <cstdint>
#include <vector>

#include "benchmark/benchmark.h"
#include "kernels/group_codes/group_codes.h"
#include "kernels/testing/gpu_rates.h"
#include "kernels/testing/rounded.h"

namespace thinwire {
namespace {

constexpr int64_t kWidth = 8192;

void BM_GroupCodesCuda(benchmark::State& state) {
  const std::unique_ptr<Gpu> gpu = Gpu::Open(state);
  if (gpu == nullptr) return;
  Stream& stream = gpu->stream;
  const GroupCodesFormat format{static_cast<int>(state.range(0)), kWidth};
  const int64_t rows = state.range(1), num_parts = state.range(2);
  const int64_t code_bytes = rows * format.row_bytes();
  const int64_t bytes = 2 * rows * kWidth + std::max<int64_t>(1, num_parts) * code_bytes;
  const int64_t sets = NumSets(stream.device(), bytes);
  const Tensor values = NormalTensor(DType::kF16, rows, kWidth);
  std::vector<Tensor> x = Copies(values.view(), sets, stream);
  std::vector<std::vector<Tensor>> codes(static_cast<size_t>(sets));
  for (size_t i = 0; i < codes.size(); ++i) {
    for (int64_t p = 0; p < std::max<int64_t>(1, num_parts); ++p) {
      codes[i].push_back(
          Tensor::Allocate(DType::kU8, {rows, format.row_bytes()}, stream.device()).value());
      TW_CHECK(EncodeGroups({format, x[i].view(), codes[i].back().mutable_view()}, stream).ok());
    }
  }
  RunBesideGpuCopy(state, bytes, sets, stream, [&](int64_t set) {
    const auto i = static_cast<size_t>(set);
    if (num_parts == 0) {
      TW_CHECK(EncodeGroups({format, x[i].view(), codes[i][0].mutable_view()}, stream).ok());
      return;
    }
    std::vector<ConstTensorView> parts;
    for (const Tensor& part : codes[i]) parts.push_back(part.view());
    TW_CHECK(DecodeGroups({format, parts, x[i].mutable_view()}, stream).ok());
  });
}
BENCHMARK(BM_GroupCodesCuda)
    ->ArgsProduct({{8, 6, 5, 4}, {16, 2048}, {0, 1, 2}})
    ->UseManualTime()
    ->Iterations(1);

}  // namespace
}  // namespace thinwire
