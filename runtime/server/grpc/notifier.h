// A thread that tells transports that there is something to send, so that the engine's need not.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

namespace thinwire {

// Calls what is posted, in order, on its own thread. The destructor calls what is left.
// Thread-safe.
class Notifier {
 public:
  Notifier();
  ~Notifier();

  void Post(std::function<void()> call);

 private:
  void Run();

  std::mutex mutex_;  // guards the three below
  std::condition_variable changed_;
  std::deque<std::function<void()>> calls_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace thinwire
