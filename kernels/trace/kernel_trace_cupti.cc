#include <cupti.h>

#include <array>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"
#include "kernels/trace/kernel_trace.h"

namespace thinwire {
namespace {

#if CUPTI_API_VERSION >= 130000
using KernelRecord = CUpti_ActivityKernel10;
#else
using KernelRecord = CUpti_ActivityKernel9;
#endif

constexpr size_t kBufferBytes = size_t{1} << 20;
constexpr size_t kBufferAlignment = 64;
constexpr CUpti_ActivityKind kKinds[] = {CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL,
                                         CUPTI_ACTIVITY_KIND_MEMCPY, CUPTI_ACTIVITY_KIND_MEMSET};

absl::Status ToStatus(CUptiResult result, absl::string_view call) {
  if (result == CUPTI_SUCCESS) return absl::OkStatus();
  const char* text = nullptr;
  cuptiGetResultString(result, &text);
  return absl::UnavailableError(absl::StrCat(call, ": ", text == nullptr ? "unknown" : text));
}

// CUPTI calls back without saying for whom, so the process has one place where runs go.
struct Recording {
  std::mutex mutex;
  bool on = false;
  std::vector<KernelRun> runs;
};

Recording& TheRecording() {
  static Recording recording;
  return recording;
}

void CUPTIAPI OnBufferRequested(uint8_t** buffer, size_t* size, size_t* max_records) {
  *buffer = static_cast<uint8_t*>(std::aligned_alloc(kBufferAlignment, kBufferBytes));
  *size = *buffer == nullptr ? 0 : kBufferBytes;
  *max_records = 0;  // as many as fit
}

template <typename Record>
void Add(const CUpti_Activity* record, std::string name, std::vector<KernelRun>& runs,
         std::array<int32_t, 3> grid = {}) {
  const auto* run = reinterpret_cast<const Record*>(record);
  if (run->start == 0 || run->end < run->start) return;  // has not ended
  runs.push_back({std::move(name), run->start, run->end, grid});
}

void CUPTIAPI OnBufferCompleted(CUcontext, uint32_t, uint8_t* buffer, size_t, size_t valid_size) {
  Recording& recording = TheRecording();
  const std::lock_guard<std::mutex> lock(recording.mutex);
  CUpti_Activity* record = nullptr;
  while (cuptiActivityGetNextRecord(buffer, valid_size, &record) == CUPTI_SUCCESS) {
    if (!recording.on) continue;
    if (record->kind == CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL) {
      const auto* kernel = reinterpret_cast<const KernelRecord*>(record);
      Add<KernelRecord>(record, kernel->name, recording.runs,
                        {kernel->gridX, kernel->gridY, kernel->gridZ});
    } else if (record->kind == CUPTI_ACTIVITY_KIND_MEMCPY) {
      Add<CUpti_ActivityMemcpy6>(record, "[copy]", recording.runs);
    } else if (record->kind == CUPTI_ACTIVITY_KIND_MEMSET) {
      Add<CUpti_ActivityMemset4>(record, "[set]", recording.runs);
    }
  }
  std::free(buffer);
}

class CuptiTrace final : public KernelTrace {
 public:
  ~CuptiTrace() override {
    if (on_) End().IgnoreError();
  }

  absl::Status Begin() {
    on_ = true;
    TW_RETURN_IF_ERROR(
        ToStatus(cuptiActivityRegisterCallbacks(OnBufferRequested, OnBufferCompleted),
                 "cuptiActivityRegisterCallbacks"));
    for (const CUpti_ActivityKind kind : kKinds) {
      TW_RETURN_IF_ERROR(ToStatus(cuptiActivityEnable(kind), "cuptiActivityEnable"));
    }
    return absl::OkStatus();
  }

  absl::StatusOr<KernelTimes> Stop() override {
    TW_RETURN_IF_ERROR(End());
    return SumKernelRuns(runs_);
  }

 private:
  absl::Status End() {
    on_ = false;
    const absl::Status flushed =
        ToStatus(cuptiActivityFlushAll(CUPTI_ACTIVITY_FLAG_FLUSH_FORCED), "cuptiActivityFlushAll");
    for (const CUpti_ActivityKind kind : kKinds) cuptiActivityDisable(kind);
    Recording& recording = TheRecording();
    const std::lock_guard<std::mutex> lock(recording.mutex);
    runs_ = std::exchange(recording.runs, {});
    recording.on = false;
    return flushed;
  }

  bool on_ = false;
  std::vector<KernelRun> runs_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<KernelTrace>> KernelTrace::Start() {
  {
    Recording& recording = TheRecording();
    const std::lock_guard<std::mutex> lock(recording.mutex);
    if (recording.on) return absl::FailedPreconditionError("another trace of kernels is on");
    recording.on = true;
    recording.runs.clear();
  }
  auto trace = std::make_unique<CuptiTrace>();
  TW_RETURN_IF_ERROR(trace->Begin());
  return trace;
}

}  // namespace thinwire
