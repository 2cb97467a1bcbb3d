// An ordered queue of work on one device.
#pragma once

#include <cstddef>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/core/buffer.h"
#include "kernels/core/device.h"
#include "kernels/core/thread_pool.h"

namespace thinwire {

// Base of what Stream::State keeps.
class StreamState {
 public:
  virtual ~StreamState() = default;
};

// Operators take a Stream and enqueue on it. On the CPU they run at once, on the calling thread and
// on the stream's pool, and have finished when they return. Move-only; thread-compatible: one
// caller thread at a time.
class Stream {
 public:
  // A CPU stream borrows `pool`, which must outlive it.
  static Stream Cpu(ThreadPool* pool);

  // A CUDA stream owns a cudaStream_t of `device`. Unimplemented in a build without CUDA.
  static absl::StatusOr<Stream> Cuda(Device device, ThreadPool* pool);

  Stream(Stream&&) noexcept;
  Stream& operator=(Stream&&) noexcept;
  ~Stream();

  Device device() const { return device_; }

  // Threads for host work: CPU kernels, packing, loading.
  ThreadPool& pool() const { return *pool_; }

  // Blocks until all enqueued work is done and returns its first error. Immediate on the CPU.
  absl::Status Synchronize();

  // Scratch memory of at least `bytes`, 64-byte aligned, on the stream's device. The contents are
  // undefined, and the next call invalidates it: one operator at a time uses it, for its own
  // duration.
  absl::StatusOr<std::byte*> Scratch(int64_t bytes);

  // What operators keep from call to call on this stream, such as a library's handle and plans: one
  // T, from StreamState, for each type, made as T(stream.device()) by the first call and destroyed
  // with the stream.
  template <typename T>
  T& State();

  // The cudaStream_t, for *_cuda.* files; null on the CPU.
  void* native() const { return native_; }

 private:
  Stream(Device device, ThreadPool* pool, void* native);

  Device device_;
  ThreadPool* pool_;
  void* native_;
  Buffer scratch_;
  std::vector<std::pair<const void*, std::unique_ptr<StreamState>>> states_;
};

template <typename T>
T& Stream::State() {
  static constexpr char kType = 0;  // its address stands for T
  for (auto& [type, state] : states_) {
    if (type == &kType) return static_cast<T&>(*state);
  }
  states_.emplace_back(&kType, std::make_unique<T>(device_));
  return static_cast<T&>(*states_.back().second);
}

}  // namespace thinwire
