#include "kernels/core/check.h"
#include "parallel/wire/captured_calls.h"

namespace thinwire {

absl::StatusOr<CapturedCalls> CapturedCalls::Capture(absl::FunctionRef<absl::Status()>, Stream&) {
  return absl::UnimplementedError("this build has no CUDA to capture calls with");
}

// None is ever made.
CapturedCalls::CapturedCalls(CapturedCalls&& other) noexcept = default;
CapturedCalls& CapturedCalls::operator=(CapturedCalls&& other) noexcept = default;
CapturedCalls::~CapturedCalls() = default;

absl::StatusOr<double> CapturedCalls::Run(Communicator&, Stream&) {
  TW_CHECK(begin_ == nullptr && end_ == nullptr && graph_ == nullptr);
  return absl::UnimplementedError("this build has no CUDA to run captured calls with");
}

}  // namespace thinwire
