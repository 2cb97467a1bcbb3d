#include "parallel/wire/strategy_table.h"

#include <algorithm>
#include <random>
#include <utility>

#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "kernels/convert/convert.h"
#include "kernels/core/check.h"
#include "kernels/core/status_macros.h"
#include "kernels/core/tensor.h"
#include "parallel/wire/reduce_values.h"
#include "parallel/wire/strategy_timing.h"
#include "parallel/wire/wire.h"

namespace thinwire {
namespace {

// Of fp16's time. Two seconds of measuring err by some hundredths: a near tie is fp16's, which has
// no codec to pay for.
constexpr double kMinGain = 0.9;

WireOptions Fixed(const WireOptions& options, const WireStrategy& strategy) {
  WireOptions fixed = options;
  fixed.strategy = strategy;
  fixed.automatic = false;
  return fixed;
}

// The slowest rank's time: every rank goes by the same.
absl::StatusOr<double> Slowest(Communicator& tp, absl::Duration mine, Stream& stream) {
  auto us = static_cast<float>(absl::ToDoubleMicroseconds(mine));
  TW_RETURN_IF_ERROR(ReduceValues(tp, absl::MakeSpan(&us, 1), ReduceOp::kMax, stream));
  return us;
}

// Calls in graphs, as decoding makes them.
absl::StatusOr<double> MeasureOnGpu(Communicator& tp, const WireOptions& options, int64_t n,
                                    int64_t width, DType dtype, Stream& stream) {
  constexpr int kSamples = 5;
  TW_ASSIGN_OR_RETURN(StrategyTimer timer,
                      StrategyTimer::Create(tp, options, n, width, dtype, stream));
  for (int i = 0; i < kSamples; ++i) TW_RETURN_IF_ERROR(timer.Sample());
  return timer.Timing().p50_us;
}

// As often as a fair share of the budget allows.
absl::StatusOr<double> MeasureOnCpu(Communicator& tp, const WireOptions& options, int64_t n,
                                    int64_t width, DType dtype, double budget_us, Stream& stream) {
  std::minstd_rand engine(static_cast<unsigned>(tp.rank()) + 1);
  std::normal_distribution<float> normal;
  std::vector<float> values(n * width);
  for (float& value : values) value = normal(engine);
  const ConstTensorView partial(values.data(), DType::kF32, {n, width});
  TW_ASSIGN_OR_RETURN(Tensor rows, Tensor::Allocate(dtype, {n, width}, stream.device()));
  const TensorView x = rows.mutable_view();
  Ledger ledger;
  Wire wire(&tp, &tp, options, &ledger);
  // The time of `repeats` calls, each of fresh partial sums.
  const auto run = [&](int repeats) -> absl::StatusOr<double> {
    absl::Duration taken;
    for (int i = 0; i < repeats; ++i) {
      TW_RETURN_IF_ERROR(Convert(partial, x, stream));
      TW_RETURN_IF_ERROR(tp.Barrier(stream));
      const absl::Time begin = absl::Now();
      TW_RETURN_IF_ERROR(wire.Reduce(Site::kMlpOut, x, stream));
      if (!wire.keeps_all_rows(n)) {
        TW_RETURN_IF_ERROR(wire.Share(Site::kMlpOut, Wire::ShareAs::kCodes, x, stream));
      }
      taken += absl::Now() - begin;
    }
    return Slowest(tp, taken / repeats, stream);
  };
  TW_ASSIGN_OR_RETURN(const double first, run(1));
  return run(std::clamp(static_cast<int>(budget_us / 24.0 / std::max(first, 1.0)), 1, 50));
}

}  // namespace

std::vector<WireStrategy> AutoStrategies() {
  return {{WireStrategy::Kind::kFp16, 16},
          {WireStrategy::Kind::kOneShot, 5},
          {WireStrategy::Kind::kTokenOwner, 5}};
}

WireStrategy StrategyTable::Pick(int64_t num_rows) const {
  TW_CHECK(!times.empty());
  size_t nearest = 0;
  // In integers: ranks on different processors must not differ by the last bit of a logarithm.
  while (nearest + 1 < times.size() &&
         num_rows * num_rows >= times[nearest].num_rows * times[nearest + 1].num_rows) {
    ++nearest;
  }
  const std::vector<double>& us = times[nearest].us;
  const auto fastest = std::min_element(us.begin(), us.end());
  const bool worth = *fastest <= kMinGain * us.front();
  return AutoStrategies()[worth ? fastest - us.begin() : 0];
}

std::string StrategyTable::DebugString() const {
  std::string text = absl::StrFormat("%8s", "rows");
  for (const WireStrategy& strategy : AutoStrategies()) {
    absl::StrAppendFormat(&text, "  %16s", WireStrategyName(strategy));
  }
  text += "  picked\n";
  for (const StrategyTimes& entry : times) {
    absl::StrAppendFormat(&text, "%8d", entry.num_rows);
    for (const double us : entry.us) absl::StrAppendFormat(&text, "  %13.1f us", us);
    absl::StrAppendFormat(&text, "  %s\n", WireStrategyName(Pick(entry.num_rows)));
  }
  return text;
}

absl::StatusOr<StrategyTable> MeasureStrategies(Communicator& tp, const WireOptions& options,
                                                int64_t width, int64_t max_rows, DType dtype,
                                                absl::Duration budget, Stream& stream) {
  TW_CHECK(tp.size() > 1);
  const absl::Time start = absl::Now();
  const double budget_us = absl::ToDoubleMicroseconds(budget);
  const bool on_gpu = stream.device().kind != DeviceKind::kCpu;
  StrategyTable table;
  table.width = width;
  double used = 0.0;
  for (int64_t n = 1;; n = std::min(4 * n, max_rows)) {
    StrategyTimes times = {.num_rows = n, .us = {}};
    for (const WireStrategy& strategy : AutoStrategies()) {
      const WireOptions fixed = Fixed(options, strategy);
      TW_ASSIGN_OR_RETURN(const double us,
                          on_gpu ? MeasureOnGpu(tp, fixed, n, width, dtype, stream)
                                 : MeasureOnCpu(tp, fixed, n, width, dtype, budget_us, stream));
      times.us.push_back(us);
    }
    table.times.push_back(std::move(times));
    const double used_before = used;
    TW_ASSIGN_OR_RETURN(used, Slowest(tp, absl::Now() - start, stream));
    if (n == max_rows || used + 4.0 * (used - used_before) > budget_us) return table;
  }
}

}  // namespace thinwire
