#include <cuda_runtime_api.h>
#include <unistd.h>

#include <cstring>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/core/cuda_status.h"
#include "parallel/comm/agreement.h"
#include "parallel/comm/host_identity.h"
#include "parallel/comm/peer_memory.h"

namespace thinwire {
namespace {

// Of all ranks and both parities; the rest are rooms. Nearly all through the host, where signals
// wait for busy links. Two ranks fit into the 64 MiB that containers have of the host's shared
// memory if not told otherwise.
constexpr int64_t kDeviceMailboxes = int64_t{8} << 20;
constexpr int64_t kHostMailboxes = int64_t{24} << 20;
static_assert(PeerView::kSignals + 8 * kMostPeerRanks * kMostPeerBlocks <= PeerView::kMailboxes);

int64_t Share(int64_t bytes, int size) { return bytes / (2 * (size - 1)) / 4096 * 4096; }

}  // namespace

// What ranks tell each other.
struct PeerMemory::Introduction {
  char host[96];
  char bus[32];
  cudaIpcMemHandle_t handle;  // of memory of the GPU
  char segment[64];           // or the host's
  int32_t num_multiprocessors;
  int32_t willing;
};

absl::StatusOr<std::unique_ptr<PeerMemory>> PeerMemory::Create(Communicator& control, Stream& host,
                                                               Device device) {
  if (control.size() < 2 || control.size() > kMostPeerRanks) {
    return absl::FailedPreconditionError(
        absl::StrCat("peer memory is for 2 to ", kMostPeerRanks, " ranks, not ", control.size()));
  }
  absl::Status why;
  for (const bool through_host : {false, true}) {
    std::unique_ptr<PeerMemory> made(new PeerMemory(control, device, through_host));
    const absl::Status joined = AgreeOnStatus(made->Join(host), control, host);
    for (SharedSegment& segment : made->segments_) segment.Unlink();
    if (joined.ok()) return made;
    if (!absl::IsFailedPrecondition(joined)) return joined;
    why = why.ok() ? joined
                   : absl::FailedPreconditionError(
                         absl::StrCat(why.message(), "; through the host: ", joined.message()));
  }
  return why;
}

absl::StatusOr<std::byte*> PeerMemory::Register(const SharedSegment& segment) {
  void* address = nullptr;
  TW_RETURN_IF_CUDA_ERROR(
      cudaHostRegister(segment.data(), static_cast<size_t>(segment.size_bytes()),
                       cudaHostRegisterPortable | cudaHostRegisterMapped),
      device_);
  const cudaError_t found = cudaHostGetDevicePointer(&address, segment.data(), 0);
  if (found != cudaSuccess) {
    LogCudaFailure(cudaHostUnregister(segment.data()), "cudaHostUnregister", device_);
    return CudaStatus(found, "cudaHostGetDevicePointer", device_);
  }
  return static_cast<std::byte*>(address);
}

absl::Status PeerMemory::Offer(Introduction& mine) {
  const int me = view_.rank;
  const char* const off = view_.through_host ? "NCCL_SHM_DISABLE" : "NCCL_P2P_DISABLE";
  if (IsSetInEnvironment(off))
    return absl::FailedPreconditionError(absl::StrCat("switched off by ", off));
  TW_RETURN_IF_CUDA_ERROR(cudaSetDevice(device_.index), device_);
  const std::string host_name = HostName();
  std::strncpy(mine.host, host_name.c_str(), sizeof(mine.host) - 1);
  TW_RETURN_IF_CUDA_ERROR(cudaDeviceGetPCIBusId(mine.bus, sizeof(mine.bus), device_.index),
                          device_);
  TW_RETURN_IF_CUDA_ERROR(cudaDeviceGetAttribute(&mine.num_multiprocessors,
                                                 cudaDevAttrMultiProcessorCount, device_.index),
                          device_);
  TW_ASSIGN_OR_RETURN(words_, PinnedBuffer::Allocate(64, device_));
  std::memset(words_.data(), 0, 64);
  view_.host_words = reinterpret_cast<uint32_t*>(words_.data());
  TW_ASSIGN_OR_RETURN(counters_, Buffer::Allocate(PeerView::kSignals, device_));
  view_.counters = counters_.data();
  TW_RETURN_IF_CUDA_ERROR(cudaMemset(view_.counters, 0, PeerView::kSignals), device_);
  if (view_.through_host) {
    absl::StatusOr<SharedSegment> segment = SharedSegment::Create(kHostBytes);
    if (!segment.ok()) return absl::FailedPreconditionError(segment.status().message());
    segments_[me] = *std::move(segment);
    TW_ASSIGN_OR_RETURN(view_.base[me], Register(segments_[me]));
    std::strncpy(mine.segment, segments_[me].name().c_str(), sizeof(mine.segment) - 1);
  } else {
    void* memory = nullptr;
    TW_RETURN_IF_CUDA_ERROR(cudaMalloc(&memory, kDeviceBytes), device_);
    view_.base[me] = static_cast<std::byte*>(memory);
    TW_RETURN_IF_CUDA_ERROR(cudaMemset(memory, 0, kDeviceBytes), device_);
    TW_RETURN_IF_CUDA_ERROR(cudaIpcGetMemHandle(&mine.handle, memory), device_);
  }
  TW_RETURN_IF_CUDA_ERROR(cudaDeviceSynchronize(), device_);
  mine.willing = 1;
  return absl::OkStatus();
}

absl::Status PeerMemory::Map(int r, const Introduction& mine, const Introduction& theirs) {
  const int me = view_.rank;
  if (std::strcmp(theirs.host, mine.host) != 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("ranks ", me, " and ", r, " are on different hosts"));
  }
  if (std::strcmp(theirs.bus, mine.bus) == 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("ranks ", me, " and ", r, " share the GPU ", mine.bus));
  }
  if (view_.through_host) {
    absl::StatusOr<SharedSegment> segment = SharedSegment::Open(theirs.segment, kHostBytes);
    if (!segment.ok()) {
      return absl::FailedPreconditionError(
          absl::StrCat("of rank ", r, " on rank ", me, ": ", segment.status().message()));
    }
    segments_[r] = *std::move(segment);
    TW_ASSIGN_OR_RETURN(view_.base[r], Register(segments_[r]));
    return absl::OkStatus();
  }
  int index = -1;
  int can = 0;
  if (cudaDeviceGetByPCIBusId(&index, theirs.bus) == cudaSuccess) {
    TW_RETURN_IF_CUDA_ERROR(cudaDeviceCanAccessPeer(&can, device_.index, index), device_);
    if (can == 0) {
      return absl::FailedPreconditionError(absl::StrCat(
          "the GPU ", mine.bus, " of rank ", me, " cannot access ", theirs.bus, " of rank ", r));
    }
  } else {
    (void)cudaGetLastError();  // not visible to this process: opening it will tell
  }
  void* memory = nullptr;
  const cudaError_t opened =
      cudaIpcOpenMemHandle(&memory, theirs.handle, cudaIpcMemLazyEnablePeerAccess);
  if (opened != cudaSuccess) {
    (void)cudaGetLastError();
    return absl::FailedPreconditionError(
        absl::StrCat("memory of rank ", r, " on rank ", me, ": ", cudaGetErrorString(opened)));
  }
  view_.base[r] = static_cast<std::byte*>(memory);
  return absl::OkStatus();
}

absl::Status PeerMemory::Join(Stream& host) {
  const int p = control_->size();
  const int me = control_->rank();
  const int64_t all_bytes = (view_.through_host ? kHostBytes : kDeviceBytes) - PeerView::kMailboxes;
  const int64_t mailboxes = view_.through_host ? kHostMailboxes : kDeviceMailboxes;
  view_.rank = me;
  view_.size = p;
  view_.mailbox_bytes = Share(mailboxes, p);
  view_.room_bytes = Share(all_bytes - mailboxes, p);
  segments_.resize(p);
  // Whatever fails, this rank introduces itself: the others wait for that.
  Introduction mine = {};
  const absl::Status offered = Offer(mine);
  std::vector<Introduction> all(p);
  TW_RETURN_IF_ERROR(control_->AllGather(
      ConstTensorView(&mine, DType::kU8, {static_cast<int64_t>(sizeof(mine))}),
      TensorView(all.data(), DType::kU8, {static_cast<int64_t>(p * sizeof(mine))}), host));
  TW_RETURN_IF_ERROR(offered);
  num_multiprocessors_ = mine.num_multiprocessors;
  for (int r = 0; r < p; ++r) {
    if (r == me) continue;
    if (all[r].willing == 0) {
      return absl::FailedPreconditionError(absl::StrCat("rank ", r, " has no memory to offer"));
    }
    TW_RETURN_IF_ERROR(Map(r, mine, all[r]));
    num_multiprocessors_ = std::min(num_multiprocessors_, int{all[r].num_multiprocessors});
  }
  return absl::OkStatus();
}

PeerMemory::~PeerMemory() {
  (void)cudaSetDevice(device_.index);
  const int me = view_.rank;
  if (view_.through_host) {
    // Each process has mappings of its own: nobody need wait for anybody.
    for (int r = 0; r < view_.size; ++r) {
      if (view_.base[r] == nullptr) continue;
      LogCudaFailure(cudaHostUnregister(segments_[r].data()), "cudaHostUnregister", device_);
    }
    return;
  }
  for (int r = 0; r < view_.size; ++r) {
    if (r == me || view_.base[r] == nullptr) continue;
    LogCudaFailure(cudaIpcCloseMemHandle(view_.base[r]), "cudaIpcCloseMemHandle", device_);
  }
  // Freed once nobody has it open, also where only some have opened it. What a lost rank may still
  // write to is left to the driver, which frees it with the process.
  ThreadPool pool(1);
  Stream host = Stream::Cpu(&pool);
  if (!control_->Barrier(host).ok() || view_.base[me] == nullptr) return;
  LogCudaFailure(cudaFree(view_.base[me]), "cudaFree", device_);
}

PeerView PeerMemory::view() const {
  PeerView view = view_;
  const absl::Duration timeout =
      std::clamp(control_->timeout(), absl::Milliseconds(1), absl::Hours(24 * 365));
  view.timeout_ns = static_cast<uint64_t>(absl::ToInt64Nanoseconds(timeout));
  return view;
}

absl::Status PeerMemory::status() const {
  const uint32_t silent = *static_cast<volatile uint32_t*>(view_.host_words);
  if (silent == 0) return absl::OkStatus();
  return absl::DeadlineExceededError(absl::StrCat("rank ", view_.rank, ": a kernel on ",
                                                  DeviceName(device_), " waited in vain for rank ",
                                                  silent - 1, " to write to its memory"));
}

void PeerMemory::Stop() { *static_cast<volatile uint32_t*>(view_.host_words + 1) = 1; }

}  // namespace thinwire
