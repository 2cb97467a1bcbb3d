// SIGTERM and SIGINT as calls on a thread, instead of the end of the process.
#pragma once

#include <functional>
#include <thread>

namespace thinwire {

// One at a time in a process. Its destructor gives the signals their old meaning back.
class StopSignals {
 public:
  // `on_signal` is called for each signal, on a thread of its own, with how many came so far.
  explicit StopSignals(std::function<void(int count)> on_signal);
  ~StopSignals();

  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;

 private:
  void Listen();

  const std::function<void(int count)> on_signal_;
  int pipe_[2] = {-1, -1};
  std::thread thread_;
};

// For ranks that end when their leader does.
void IgnoreStopSignals();

}  // namespace thinwire
