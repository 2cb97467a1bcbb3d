#include "parallel/wire/strategy_table.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "kernels/core/check.h"
#include "kernels/core/status_macros.h"
#include "kernels/core/tensor.h"
#include "parallel/wire/wire.h"

namespace thinwire {
namespace {

constexpr double kMinGain = 0.97;  // of fp16's time

}  // namespace

std::vector<WireStrategy> AutoStrategies() {
  return {{WireStrategy::Kind::kFp16, 16},
          {WireStrategy::Kind::kOneShot, 5},
          {WireStrategy::Kind::kTokenOwner, 5}};
}

WireStrategy StrategyTable::Pick(int64_t num_rows) const {
  TW_CHECK(!times.empty());
  const auto distance = [&](const StrategyTimes& entry) {
    return std::abs(std::log(static_cast<double>(entry.num_rows)) -
                    std::log(static_cast<double>(std::max<int64_t>(num_rows, 1))));
  };
  const auto nearest = std::min_element(
      times.begin(), times.end(),
      [&](const StrategyTimes& a, const StrategyTimes& b) { return distance(a) < distance(b); });
  const auto fastest = std::min_element(nearest->us.begin(), nearest->us.end());
  const bool worth = *fastest <= kMinGain * nearest->us.front();
  return AutoStrategies()[worth ? fastest - nearest->us.begin() : 0];
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

absl::StatusOr<StrategyTable> MeasureStrategies(Communicator& tp, int64_t width, int64_t max_rows,
                                                DType dtype, absl::Duration budget,
                                                Stream& stream) {
  TW_CHECK(tp.size() > 1);
  const absl::Time start = absl::Now();
  const std::vector<WireStrategy> strategies = AutoStrategies();
  TW_ASSIGN_OR_RETURN(Tensor rows, Tensor::Allocate(dtype, {max_rows, width}, stream.device()));
  std::memset(rows.mutable_view().mutable_raw(), 0, static_cast<size_t>(rows.size_bytes()));
  // The slowest rank's time: every rank goes by the same.
  const auto slowest = [&](absl::Duration mine) -> absl::StatusOr<double> {
    auto us = static_cast<float>(absl::ToDoubleMicroseconds(mine));
    TW_RETURN_IF_ERROR(tp.AllReduce(TensorView(&us, DType::kF32, {1}), ReduceOp::kMax, stream));
    return us;
  };
  StrategyTable table;
  table.width = width;
  Ledger ledger;
  for (int64_t n = 1;; n = std::min(4 * n, max_rows)) {
    const TensorView x = rows.mutable_view().Rows(0, n);
    StrategyTimes times = {.num_rows = n, .us = {}};
    for (const WireStrategy& strategy : strategies) {
      Wire wire(&tp, &tp, {.strategy = strategy, .hop = {}}, &ledger);
      const auto run = [&]() -> absl::Status {
        TW_RETURN_IF_ERROR(wire.Reduce(Site::kMlpOut, x, stream));
        if (wire.keeps_all_rows(n)) return absl::OkStatus();
        return wire.Share(Site::kMlpOut, Wire::ShareAs::kCodes, x, stream);
      };
      TW_RETURN_IF_ERROR(tp.Barrier(stream));
      absl::Time begin = absl::Now();
      TW_RETURN_IF_ERROR(run());
      TW_ASSIGN_OR_RETURN(const double first, slowest(absl::Now() - begin));
      // As often as a fair share of the budget allows, the first call having been slower than most.
      const double share = absl::ToDoubleMicroseconds(budget) / 24.0;
      const int repeats = std::clamp(static_cast<int>(share / std::max(first, 1.0)), 1, 50);
      TW_RETURN_IF_ERROR(tp.Barrier(stream));
      begin = absl::Now();
      for (int i = 0; i < repeats; ++i) TW_RETURN_IF_ERROR(run());
      TW_ASSIGN_OR_RETURN(const double us, slowest((absl::Now() - begin) / repeats));
      times.us.push_back(us);
    }
    table.times.push_back(std::move(times));
    TW_ASSIGN_OR_RETURN(const double used, slowest(absl::Now() - start));
    if (n == max_rows || used > 0.6 * absl::ToDoubleMicroseconds(budget)) return table;
  }
}

}  // namespace thinwire
