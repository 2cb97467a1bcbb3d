#include "kernels/core/cuda_status.h"

#include <cstdio>

#include "absl/strings/str_cat.h"

namespace thinwire {

absl::Status CudaStatus(cudaError_t error, absl::string_view call, Device device) {
  if (error == cudaSuccess) return absl::OkStatus();
  const std::string message =
      absl::StrCat(call, " on ", DeviceName(device), ": ", cudaGetErrorString(error), " (",
                   cudaGetErrorName(error), ")");
  switch (error) {
    case cudaErrorMemoryAllocation:
      return absl::ResourceExhaustedError(message);
    case cudaErrorInsufficientDriver:
    case cudaErrorNoDevice:
    case cudaErrorStubLibrary:
    case cudaErrorSystemDriverMismatch:
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorUnsupportedPtxVersion:
      return absl::FailedPreconditionError(message);
    case cudaErrorDevicesUnavailable:
    case cudaErrorSystemNotReady:
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
      return absl::UnavailableError(message);
    default:
      return absl::InternalError(message);
  }
}

namespace {

// Errors after which every call on the GPU returns the same: who caused it was told so.
bool OutlastsItsCall(cudaError_t error) {
  switch (error) {
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchFailure:
    case cudaErrorLaunchTimeout:
    case cudaErrorAssert:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorContextIsDestroyed:
      return true;
    default:
      return false;
  }
}

}  // namespace

void LogCudaFailure(cudaError_t error, absl::string_view call, Device device) {
  // At the end of a process the driver may be gone before the last owner.
  if (error == cudaSuccess || error == cudaErrorCudartUnloading || OutlastsItsCall(error)) return;
  std::fprintf(stderr, "thinwire: %s\n", CudaStatus(error, call, device).ToString().c_str());
}

absl::Status CudaLaunchStatus(absl::string_view kernel, const Stream& stream) {
  const cudaError_t error = cudaGetLastError();
  if (error == cudaSuccess) [[likely]]
    return absl::OkStatus();
  return CudaStatus(error, absl::StrCat("launching ", kernel), stream.device());
}

cudaStream_t CudaStream(const Stream& stream) {
  // If this fails, so does the call or launch that follows, which is checked.
  (void)cudaSetDevice(stream.device().index);
  return static_cast<cudaStream_t>(stream.native());
}

}  // namespace thinwire
