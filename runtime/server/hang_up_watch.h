// Tells, without anyone asking, that the client of a request that is being answered has left.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"

namespace thinwire {

// One thread that sleeps until a connection ends. Thread-safe.
class HangUpWatch {
 public:
  // ResourceExhausted: no descriptors are left.
  static absl::StatusOr<std::unique_ptr<HangUpWatch>> Start();
  ~HangUpWatch();

  // Calls `gone` once, on the watching thread, when the other end of `socket` closes it or has
  // closed it already, not later than Forget returns. `gone` calls nothing here. The socket is open
  // until Forget, and watched once at a time. Returns what Forget wants.
  int64_t Watch(int socket, std::function<void()> gone);
  void Forget(int64_t watch);

 private:
  struct Watched {
    int socket = -1;
    std::function<void()> gone;
  };

  HangUpWatch(int poll, int wake);
  void Run();

  const int poll_;
  const int wake_;    // an event of it ends the thread
  std::mutex mutex_;  // guards what follows; held while `gone` is called
  absl::flat_hash_map<int64_t, Watched> watched_;
  int64_t next_ = 1;
  std::thread thread_;
};

}  // namespace thinwire
