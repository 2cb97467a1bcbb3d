#include "parallel/wire/strategy_timing.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "absl/time/clock.h"
#include "kernels/convert/convert.h"
#include "kernels/core/check.h"
#include "kernels/core/status_macros.h"
#include "kernels/core/tensor.h"
#include "parallel/wire/wire.h"

namespace thinwire {
namespace {

constexpr int64_t kMinCalls = 5;
constexpr int64_t kMaxCalls = 10000;

std::vector<float> PartialSums(int rank, int64_t num_rows, int64_t width) {
  std::minstd_rand engine(static_cast<unsigned>(rank) + 1);
  std::normal_distribution<float> normal;
  std::vector<float> values(num_rows * width);
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = normal(engine) * (static_cast<int64_t>(i) % width % 61 == 0 ? 20.0f : 1.0f);
  }
  return values;
}

}  // namespace

absl::StatusOr<StrategyTiming> TimeStrategy(Communicator& tp, const WireOptions& options,
                                            int64_t num_rows, int64_t width, DType dtype,
                                            absl::Duration duration, Stream& stream) {
  TW_CHECK(tp.size() > 1);
  Ledger ledger;
  Wire wire(&tp, &tp, options, &ledger);
  const std::vector<float> mine = PartialSums(tp.rank(), num_rows, width);
  const ConstTensorView partial(mine.data(), DType::kF32, {num_rows, width});
  TW_ASSIGN_OR_RETURN(Tensor rows, Tensor::Allocate(dtype, {num_rows, width}, stream.device()));
  const TensorView x = rows.mutable_view();
  const auto reduce = [&] { return wire.Reduce(Site::kMlpOut, x, stream); };
  const auto share = [&]() -> absl::Status {
    if (wire.keeps_all_rows(num_rows)) return absl::OkStatus();
    return wire.Share(Site::kMlpOut, Wire::ShareAs::kCodes, x, stream);
  };

  // The error of the rows that this rank keeps, against sums in fp32.
  StrategyTiming timing;
  TW_RETURN_IF_ERROR(Convert(partial, x, stream));
  std::vector<float> exact = mine;
  TW_RETURN_IF_ERROR(tp.AllReduce(TensorView(exact.data(), DType::kF32, {num_rows, width}),
                                  ReduceOp::kSum, stream));
  TW_RETURN_IF_ERROR(reduce());
  std::vector<float> found(num_rows * width);
  TW_RETURN_IF_ERROR(Convert(x, TensorView(found.data(), DType::kF32, {num_rows, width}), stream));
  const Range own = wire.OwnRows(num_rows);
  double errors = 0.0;
  double values = 0.0;
  for (int64_t i = own.begin * width; i < own.end * width; ++i) {
    errors += std::pow(double{found[i]} - double{exact[i]}, 2);
    values += std::pow(double{exact[i]}, 2);
  }
  float squares[2] = {static_cast<float>(errors), static_cast<float>(values)};
  TW_RETURN_IF_ERROR(tp.AllReduce(TensorView(squares, DType::kF32, {2}), ReduceOp::kSum, stream));
  timing.error = std::sqrt(squares[0] / squares[1]);
  TW_RETURN_IF_ERROR(share());

  // Bytes of one call.
  ledger.Clear();
  TW_RETURN_IF_ERROR(reduce());
  TW_RETURN_IF_ERROR(share());
  const LedgerEntry entry = ledger.Total();
  int64_t bytes[2] = {entry.logical_bytes, entry.payload_bytes + entry.metadata_bytes};
  TW_RETURN_IF_ERROR(tp.AllReduce(TensorView(bytes, DType::kI64, {2}), ReduceOp::kSum, stream));
  timing.logical_bytes = bytes[0];
  timing.wire_bytes = bytes[1];

  std::vector<float> us;
  float more = 1.0f;
  const absl::Time start = absl::Now();
  while (more > 0.0f) {
    // In batches, so that the agreement on going on does not sit between two calls.
    for (int64_t i = 0; i < kMinCalls; ++i) {
      TW_RETURN_IF_ERROR(Convert(partial, x, stream));
      TW_RETURN_IF_ERROR(tp.Barrier(stream));
      const absl::Time begin = absl::Now();
      TW_RETURN_IF_ERROR(reduce());
      TW_RETURN_IF_ERROR(share());
      us.push_back(static_cast<float>(absl::ToDoubleMicroseconds(absl::Now() - begin)));
    }
    more =
        absl::Now() - start < duration && static_cast<int64_t>(us.size()) < kMaxCalls ? 1.0f : 0.0f;
    TW_RETURN_IF_ERROR(tp.AllReduce(TensorView(&more, DType::kF32, {1}), ReduceOp::kMax, stream));
  }
  timing.calls = static_cast<int64_t>(us.size());
  TW_RETURN_IF_ERROR(
      tp.AllReduce(TensorView(us.data(), DType::kF32, {timing.calls}), ReduceOp::kMax, stream));
  std::sort(us.begin(), us.end());
  timing.p50_us = us[us.size() / 2];
  timing.p99_us = us[std::min(us.size() - 1, us.size() * 99 / 100)];
  return timing;
}

}  // namespace thinwire
