#include "parallel/wire/strategy_timing.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <random>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "kernels/convert/convert.h"
#include "kernels/core/check.h"
#include "kernels/core/copy.h"
#include "kernels/core/has_cuda.h"
#include "kernels/core/status_macros.h"
#include "kernels/core/tensor.h"
#include "parallel/wire/captured_calls.h"
#include "parallel/wire/reduce_values.h"
#include "parallel/wire/wire.h"

namespace thinwire {
namespace {

constexpr int64_t kCallsPerSample = 5;
constexpr int64_t kMaxCalls = 10000;
// On a GPU.
constexpr int64_t kMostCaptured = 20;
constexpr int64_t kMostRowBytes = int64_t{256} << 20;
constexpr int64_t kMostErrorRows = 256;

std::vector<float> PartialSums(int rank, int64_t num_rows, int64_t width) {
  std::minstd_rand engine(static_cast<unsigned>(rank) + 1);
  std::normal_distribution<float> normal;
  std::vector<float> values(num_rows * width);
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = normal(engine) * (static_cast<int64_t>(i) % width % 61 == 0 ? 20.0f : 1.0f);
  }
  return values;
}

ConstTensorView Rows(const std::vector<float>& values, int64_t width) {
  return ConstTensorView(values.data(), DType::kF32,
                         {static_cast<int64_t>(values.size()) / width, width});
}

}  // namespace

class StrategyTimer::State {
 public:
  State(Communicator& tp, const WireOptions& options, int64_t num_rows, int64_t width, DType dtype,
        Stream& stream)
      : tp_(tp),
        stream_(stream),
        num_rows_(num_rows),
        width_(width),
        dtype_(dtype),
        on_gpu_(stream.device().kind != DeviceKind::kCpu),
        known_rows_(on_gpu_ ? std::min(num_rows, kMostErrorRows) : num_rows),
        mine_(PartialSums(tp.rank(), known_rows_, width)),
        wire_(&tp, &tp, options, &ledger_) {}

  absl::Status Prepare() {
    const int64_t row_bytes = DTypeBytes(dtype_, num_rows_ * width_);
    const int64_t copies =
        on_gpu_ ? std::clamp<int64_t>(kMostRowBytes / row_bytes, 1, kMostCaptured) : 1;
    for (int64_t i = 0; i < copies; ++i) {
      TW_ASSIGN_OR_RETURN(Tensor rows,
                          Tensor::Allocate(dtype_, {num_rows_, width_}, stream_.device()));
      rows_.push_back(std::move(rows));
    }
    if (on_gpu_) {
      // The first rows again and again: they only have to look like sums.
      TW_ASSIGN_OR_RETURN(fresh_, Tensor::Allocate(dtype_, {num_rows_, width_}, stream_.device()));
      TW_ASSIGN_OR_RETURN(Tensor known, Tensor::Allocate(dtype_, {known_rows_, width_}, {}));
      Stream host = Stream::Cpu(&stream_.pool());
      TW_RETURN_IF_ERROR(Convert(Rows(mine_, width_), known.mutable_view(), host));
      for (int64_t i = 0; i < num_rows_; i += known_rows_) {
        const int64_t count = std::min(known_rows_, num_rows_ - i);
        TW_RETURN_IF_ERROR(
            Copy(known.view().Rows(0, count), fresh_.mutable_view().Rows(i, count), stream_));
      }
      TW_RETURN_IF_ERROR(tp_.Wait(stream_));
    }
    TW_RETURN_IF_ERROR(FindError());
    TW_RETURN_IF_ERROR(CountBytes());
    return absl::OkStatus();
  }

  absl::Status Sample() {
    if constexpr (kHasCuda) {
      if (on_gpu_) return SampleOnGpu();
    }
    std::vector<float> us;
    // In batches, so that the agreement on going on does not sit between two calls.
    for (int64_t i = 0; i < kCallsPerSample; ++i) {
      TW_RETURN_IF_ERROR(Refill(0));
      TW_RETURN_IF_ERROR(tp_.Barrier(stream_));
      const absl::Time begin = absl::Now();
      TW_RETURN_IF_ERROR(Call(0));
      us.push_back(static_cast<float>(absl::ToDoubleMicroseconds(absl::Now() - begin)));
    }
    return Add(us, kCallsPerSample);
  }

  StrategyTiming Timing() const {
    std::vector<float> us = us_;
    std::sort(us.begin(), us.end());
    StrategyTiming timing = timing_;
    timing.p50_us = us[us.size() / 2];
    timing.p99_us = us[std::min(us.size() - 1, us.size() * 99 / 100)];
    return timing;
  }

 private:
  absl::Status Reduce(TensorView x) { return wire_.Reduce(Site::kMlpOut, x, stream_); }

  // What a layer half does with partial sums number i.
  absl::Status Call(int64_t i) {
    const TensorView x = rows_[i].mutable_view();
    TW_RETURN_IF_ERROR(Reduce(x));
    if (wire_.keeps_all_rows(num_rows_)) return absl::OkStatus();
    return wire_.Share(Site::kMlpOut, Wire::ShareAs::kCodes, x, stream_);
  }

  absl::Status Refill(int64_t i) {
    if (on_gpu_) return Copy(fresh_.view(), rows_[i].mutable_view(), stream_);
    return Convert(Rows(mine_, width_), rows_[i].mutable_view(), stream_);
  }

  // The error of the rows that this rank keeps, against sums in fp32.
  absl::Status FindError() {
    const TensorView x = rows_[0].mutable_view().Rows(0, known_rows_);
    std::vector<float> exact = mine_;
    TW_RETURN_IF_ERROR(ReduceValues(tp_, absl::MakeSpan(exact), ReduceOp::kSum, stream_));
    TW_RETURN_IF_ERROR(Refill(0));
    TW_RETURN_IF_ERROR(Reduce(x));
    TW_RETURN_IF_ERROR(tp_.Wait(stream_));
    TW_ASSIGN_OR_RETURN(Tensor here, Tensor::Allocate(dtype_, {known_rows_, width_}, {}));
    TW_RETURN_IF_ERROR(Copy(x, here.mutable_view(), stream_));
    TW_RETURN_IF_ERROR(tp_.Wait(stream_));
    std::vector<float> found(exact.size());
    Stream host = Stream::Cpu(&stream_.pool());
    TW_RETURN_IF_ERROR(
        Convert(here.view(), TensorView(found.data(), DType::kF32, {known_rows_, width_}), host));
    const Range own = wire_.OwnRows(known_rows_);
    double errors = 0.0;
    double values = 0.0;
    for (int64_t i = own.begin * width_; i < own.end * width_; ++i) {
      errors += std::pow(double{found[i]} - double{exact[i]}, 2);
      values += std::pow(double{exact[i]}, 2);
    }
    float squares[2] = {static_cast<float>(errors), static_cast<float>(values)};
    TW_RETURN_IF_ERROR(ReduceValues(tp_, absl::MakeSpan(squares), ReduceOp::kSum, stream_));
    timing_.error = std::sqrt(squares[0] / squares[1]);
    return absl::OkStatus();
  }

  // Of one call, which has all buffers made that calls need: they can be captured then.
  absl::Status CountBytes() {
    TW_RETURN_IF_ERROR(Refill(0));
    ledger_.Clear();
    TW_RETURN_IF_ERROR(Call(0));
    const LedgerEntry entry = ledger_.Total();
    int64_t bytes[2] = {entry.logical_bytes, entry.payload_bytes + entry.metadata_bytes};
    TW_RETURN_IF_ERROR(ReduceValues(tp_, absl::MakeSpan(bytes), ReduceOp::kSum, stream_));
    timing_.logical_bytes = bytes[0];
    timing_.wire_bytes = bytes[1];
    return absl::OkStatus();
  }

  absl::Status SampleOnGpu() {
    const auto calls = static_cast<int64_t>(rows_.size());
    if (!captured_.has_value()) {
      const auto all_calls = [&]() -> absl::Status {
        for (int64_t i = 0; i < calls; ++i) TW_RETURN_IF_ERROR(Call(i));
        return absl::OkStatus();
      };
      TW_ASSIGN_OR_RETURN(captured_, CapturedCalls::Capture(all_calls, stream_));
      TW_RETURN_IF_ERROR(RunCaptured().status());  // the first run is slower
    }
    TW_ASSIGN_OR_RETURN(const double us, RunCaptured());
    std::vector<float> each = {static_cast<float>(us / static_cast<double>(calls))};
    return Add(each, calls);
  }

  absl::StatusOr<double> RunCaptured() {
    for (size_t i = 0; i < rows_.size(); ++i) {
      TW_RETURN_IF_ERROR(Refill(static_cast<int64_t>(i)));
    }
    TW_RETURN_IF_ERROR(tp_.Barrier(stream_));
    return captured_->Run(tp_, stream_);
  }

  absl::Status Add(std::vector<float>& us, int64_t calls) {
    TW_RETURN_IF_ERROR(ReduceValues(tp_, absl::MakeSpan(us), ReduceOp::kMax, stream_));
    us_.insert(us_.end(), us.begin(), us.end());
    timing_.calls += calls;
    return absl::OkStatus();
  }

  Communicator& tp_;
  Stream& stream_;
  const int64_t num_rows_;
  const int64_t width_;
  const DType dtype_;
  const bool on_gpu_;
  const int64_t known_rows_;
  const std::vector<float> mine_;
  Ledger ledger_;
  Wire wire_;
  Tensor fresh_;
  std::vector<Tensor> rows_;
  std::optional<CapturedCalls> captured_;
  std::vector<float> us_;
  StrategyTiming timing_;
};

StrategyTimer::StrategyTimer(std::unique_ptr<State> state) : state_(std::move(state)) {}
StrategyTimer::StrategyTimer(StrategyTimer&&) noexcept = default;
StrategyTimer& StrategyTimer::operator=(StrategyTimer&&) noexcept = default;
StrategyTimer::~StrategyTimer() = default;

absl::StatusOr<StrategyTimer> StrategyTimer::Create(Communicator& tp, const WireOptions& options,
                                                    int64_t num_rows, int64_t width, DType dtype,
                                                    Stream& stream) {
  TW_CHECK(tp.size() > 1);
  auto state = std::make_unique<State>(tp, options, num_rows, width, dtype, stream);
  TW_RETURN_IF_ERROR(state->Prepare());
  return StrategyTimer(std::move(state));
}

absl::Status StrategyTimer::Sample() { return state_->Sample(); }

StrategyTiming StrategyTimer::Timing() const { return state_->Timing(); }

absl::StatusOr<StrategyTiming> TimeStrategy(Communicator& tp, const WireOptions& options,
                                            int64_t num_rows, int64_t width, DType dtype,
                                            absl::Duration duration, Stream& stream) {
  TW_ASSIGN_OR_RETURN(StrategyTimer timer,
                      StrategyTimer::Create(tp, options, num_rows, width, dtype, stream));
  float more = 1.0f;
  const absl::Time start = absl::Now();
  while (more > 0.0f) {
    TW_RETURN_IF_ERROR(timer.Sample());
    more = absl::Now() - start < duration && timer.Timing().calls < kMaxCalls ? 1.0f : 0.0f;
    TW_RETURN_IF_ERROR(ReduceValues(tp, absl::MakeSpan(&more, 1), ReduceOp::kMax, stream));
  }
  return timer.Timing();
}

}  // namespace thinwire
