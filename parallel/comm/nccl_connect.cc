// How the NCCL backend's communicators come about, and how many there are.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kernels/core/cuda_status.h"
#include "parallel/comm/backoff.h"
#include "parallel/comm/host_identity.h"
#include "parallel/comm/nccl_internal.h"

namespace thinwire {
namespace {

// Over a network: four are slower than one at 1 MiB, and little faster than three beyond.
constexpr int kUsualStripes = 3;

// A trial's bytes of each rank, enough for what the host takes to enqueue to be of no account, and
// how much faster stripes have to be to stay.
constexpr int64_t kTrialBytes = int64_t{8} << 20;
constexpr double kMinGain = 0.9;

// A byte to and from every other rank: ways between pairs are made by the first message, which
// waits for the other side. `bytes`: 2 p bytes of the GPU.
ncclResult_t FirstMessages(ncclComm_t comm, int rank, int ranks, std::byte* bytes,
                           cudaStream_t stream) {
  const auto failed = [](ncclResult_t result) {
    return result != ncclSuccess && result != ncclInProgress;
  };
  ncclResult_t result = ncclGroupStart();
  for (int r = 0; r < ranks && !failed(result); ++r) {
    if (r == rank) continue;
    result = ncclSend(bytes + r, 1, ncclUint8, r, comm, stream);
    if (!failed(result)) result = ncclRecv(bytes + ranks + r, 1, ncclUint8, r, comm, stream);
  }
  const ncclResult_t ended = ncclGroupEnd();
  return failed(result) ? result : ended;
}

}  // namespace

absl::Status NcclCommunicator::ConnectInThread(const Ids& ids, int count) {
  // Owned by the thread, which may be left behind, and by this call.
  struct Start {
    std::atomic<bool> done = false;
    std::string call = "ncclCommInitRankConfig";
    ncclResult_t result = ncclSuccess;
    absl::Status status;  // of CUDA
    std::vector<ncclUniqueId> ids;
    std::vector<ncclComm_t> comms;
  };
  const auto start = std::make_shared<Start>();
  start->ids.assign(ids, ids + count);
  std::thread([start, device = device_, ranks = size(), rank = rank()] {
    const auto connect = [&]() -> absl::Status {
      TW_RETURN_IF_CUDA_ERROR(cudaSetDevice(device.index), device);
      ThreadPool pool(1);
      TW_ASSIGN_OR_RETURN(Stream stream, Stream::Cuda(device, &pool));
      TW_ASSIGN_OR_RETURN(const Buffer bytes, Buffer::Allocate(2 * ranks, device));
      for (const ncclUniqueId& id : start->ids) {
        ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
        config.blocking = 1;
        ncclComm_t comm = nullptr;
        start->call = "ncclCommInitRankConfig";
        start->result = ncclCommInitRankConfig(&comm, ranks, id, rank, &config);
        if (start->result != ncclSuccess) return absl::OkStatus();
        start->comms.push_back(comm);
        if (ranks == 1) continue;
        start->call = "NCCL's first messages";
        start->result = FirstMessages(comm, rank, ranks, bytes.data(), CudaStream(stream));
        if (start->result == ncclSuccess) {
          start->result = ncclAllGather(bytes.data() + rank, bytes.data(), 1, ncclUint8, comm,
                                        CudaStream(stream));
        }
        if (start->result != ncclSuccess) return absl::OkStatus();
        TW_RETURN_IF_ERROR(stream.Synchronize());
      }
      return absl::OkStatus();
    };
    start->status = connect();
    start->done.store(true, std::memory_order_release);
  }).detach();
  TW_RETURN_IF_ERROR(PollUntil("making ways to the other ranks", [&]() -> absl::StatusOr<bool> {
    return start->done.load(std::memory_order_acquire);
  }));
  comms_ = start->comms;
  if (!start->status.ok()) return Fail(start->status);
  if (start->result == ncclSuccess) return absl::OkStatus();
  return Fail(absl::UnavailableError(
      absl::StrCat(start->call, " on rank ", rank(), ", ", DeviceName(device_), ": ",
                   ncclGetErrorString(start->result), ": ", ncclGetLastError(nullptr))));
}

absl::Status NcclCommunicator::ConnectWithoutBlocking(const Ids& ids, int count) {
  TW_ASSIGN_OR_RETURN(Stream stream, Stream::Cuda(device_, &pool_));
  TW_ASSIGN_OR_RETURN(const Buffer bytes, Buffer::Allocate(2 * size(), device_));
  for (int i = 0; i < count; ++i) {
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    comms_.push_back(nullptr);
    TW_RETURN_IF_ERROR(Finish(i,
                              ncclCommInitRankConfig(&comms_[i], size(), ids[i], rank(), &config),
                              "ncclCommInitRankConfig"));
    if (size() == 1) continue;
    TW_RETURN_IF_ERROR(
        Finish(i, FirstMessages(comms_[i], rank(), size(), bytes.data(), CudaStream(stream)),
               "NCCL's first messages"));
  }
  return Wait(stream);
}

absl::StatusOr<bool> NcclCommunicator::CrossesNetwork() {
  struct Place {
    char host[96];
    char boot[64];
    char bus[32];
    int32_t no_peers;
    int32_t no_shared_memory;
  };
  Place mine = {};
  std::strncpy(mine.host, HostName().c_str(), sizeof(mine.host) - 1);
  std::strncpy(mine.boot, BootId().c_str(), sizeof(mine.boot) - 1);
  mine.no_peers = IsSetInEnvironment("NCCL_P2P_DISABLE") ? 1 : 0;
  mine.no_shared_memory = IsSetInEnvironment("NCCL_SHM_DISABLE") ? 1 : 0;
  (void)cudaDeviceGetPCIBusId(mine.bus, sizeof(mine.bus), device_.index);
  std::vector<Place> all(size());
  TW_RETURN_IF_ERROR(control_->AllGather(
      ConstTensorView(&mine, DType::kU8, {static_cast<int64_t>(sizeof(mine))}),
      TensorView(all.data(), DType::kU8, {static_cast<int64_t>(size() * sizeof(mine))}), host_));
  int32_t found[2] = {};  // a network, a shared GPU
  for (int r = 0; r < size(); ++r) {
    if (r == rank()) continue;
    const Place& theirs = all[r];
    if (std::strcmp(theirs.boot, mine.boot) == 0 && std::strcmp(theirs.bus, mine.bus) == 0) {
      found[1] = 1;
    }
    int index = -1;
    int can = 0;
    if (cudaDeviceGetByPCIBusId(&index, theirs.bus) != cudaSuccess ||
        cudaDeviceCanAccessPeer(&can, device_.index, index) != cudaSuccess) {
      (void)cudaGetLastError();  // not visible to this process
    }
    const bool peers = can != 0 && theirs.no_peers + mine.no_peers == 0;
    const bool shares = theirs.no_shared_memory + mine.no_shared_memory == 0;
    if (std::strcmp(theirs.host, mine.host) != 0 || !(peers || shares)) found[0] = 1;
  }
  TW_RETURN_IF_ERROR(
      control_->AllReduce(TensorView(found, DType::kI32, {2}), ReduceOp::kMax, host_));
  return found[0] != 0 && found[1] == 0;
}

absl::Status NcclCommunicator::PrepareStripes() {
  num_stripes_ = static_cast<int>(comms_.size());
  if (num_stripes_ == 1) return absl::OkStatus();
  TW_ASSIGN_OR_RETURN(forked_, Event::Create(device_, Event::Kind::kOrder));
  for (int i = 1; i < num_stripes_; ++i) {
    TW_ASSIGN_OR_RETURN(Stream stream, Stream::Cuda(device_, &pool_));
    TW_ASSIGN_OR_RETURN(Event done, Event::Create(device_, Event::Kind::kOrder));
    sides_.push_back({std::move(stream), std::move(done)});
  }
  TW_ASSIGN_OR_RETURN(staging_, Buffer::Allocate(num_stripes_ * kStagingBytes, device_));
  return absl::OkStatus();
}

absl::StatusOr<double> NcclCommunicator::TimeGather(Stream& stream) {
  constexpr int kCalls = 7;
  TW_ASSIGN_OR_RETURN(const Buffer bytes, Buffer::Allocate((size() + 1) * kTrialBytes, device_));
  const ConstTensorView in(bytes.data(), DType::kU8, {kTrialBytes}, device_);
  const TensorView out(bytes.data() + kTrialBytes, DType::kU8, {size() * kTrialBytes}, device_);
  std::vector<float> us;
  for (int i = -2; i < kCalls; ++i) {  // the first ones make connections
    TW_RETURN_IF_ERROR(Barrier(stream));
    const absl::Time begin = absl::Now();
    TW_RETURN_IF_ERROR(AllGather(in, out, stream));
    TW_RETURN_IF_ERROR(Wait(stream));
    if (i >= 0) us.push_back(static_cast<float>(absl::ToDoubleMicroseconds(absl::Now() - begin)));
  }
  TW_RETURN_IF_ERROR(
      control_->AllReduce(TensorView(us.data(), DType::kF32, {kCalls}), ReduceOp::kMax, host_));
  std::sort(us.begin(), us.end());
  return us[kCalls / 2];
}

absl::Status NcclCommunicator::KeepStripesIfFaster() {
  TW_ASSIGN_OR_RETURN(Stream stream, Stream::Cuda(device_, &pool_));
  const int all = std::exchange(num_stripes_, 1);
  TW_ASSIGN_OR_RETURN(const double alone, TimeGather(stream));
  num_stripes_ = all;
  TW_ASSIGN_OR_RETURN(const double together, TimeGather(stream));
  if (together <= kMinGain * alone) return absl::OkStatus();
  num_stripes_ = 1;
  TW_RETURN_IF_ERROR(Leave(1));
  sides_.clear();
  forked_.reset();
  staging_ = Buffer();
  return absl::OkStatus();
}

absl::Status NcclCommunicator::Connect() {
  TW_RETURN_IF_ERROR(CheckDeviceUsable(device_));
  TW_RETURN_IF_CUDA_ERROR(cudaSetDevice(device_.index), device_);
  if (options_.stripes < 0 || options_.stripes > kMostNcclStripes) {
    return absl::InvalidArgumentError(
        absl::StrCat(options_.stripes, " stripes: expected 0 to ", kMostNcclStripes));
  }
  int count = std::max(options_.stripes, 1);
  if (options_.stripes == 0 && size() > 1) {
    TW_ASSIGN_OR_RETURN(const bool crosses, CrossesNetwork());
    if (crosses) count = kUsualStripes;
  }
  struct Invitation {
    Ids ids;
    int64_t good;
  };
  Invitation invitation = {};
  ncclResult_t made = ncclSuccess;
  if (rank() == 0) {
    for (int i = 0; i < count && made == ncclSuccess; ++i) {
      made = ncclGetUniqueId(&invitation.ids[i]);
    }
    invitation.good = made == ncclSuccess ? 1 : 0;
  }
  TW_RETURN_IF_ERROR(control_->Broadcast(
      TensorView(&invitation, DType::kU8, {static_cast<int64_t>(sizeof(invitation))}), 0, host_));
  if (invitation.good == 0) {
    return Fail(absl::UnavailableError(
        absl::StrCat("rank 0 could not make an NCCL id: ", ncclGetErrorString(made))));
  }
  // Ways between ranks now, so that later calls only enqueue.
  TW_RETURN_IF_ERROR(options_.blocking ? ConnectInThread(invitation.ids, count)
                                       : ConnectWithoutBlocking(invitation.ids, count));
  const absl::Status prepared = PrepareStripes();
  if (!prepared.ok()) return Fail(prepared);
  if (options_.stripes == 0 && count > 1) TW_RETURN_IF_ERROR(KeepStripesIfFaster());
  bytes_sent_ = 0;
  return absl::OkStatus();
}

}  // namespace thinwire
