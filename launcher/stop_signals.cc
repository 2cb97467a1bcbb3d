#include "launcher/stop_signals.h"

#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <utility>

#include "kernels/core/check.h"

namespace thinwire {
namespace {

// A signal handler reaches nothing else.
std::atomic<int> signal_pipe = -1;

void OnSignal(int) {
  const int saved = errno;
  const char byte = 's';
  const ssize_t written = write(signal_pipe.load(), &byte, 1);
  static_cast<void>(written);  // a full pipe has enough of them
  errno = saved;
}

void Handle(void (*handler)(int)) {
  struct sigaction action = {};
  action.sa_handler = handler;
  action.sa_flags = SA_RESTART;
  for (const int number : {SIGTERM, SIGINT}) sigaction(number, &action, nullptr);
}

}  // namespace

StopSignals::StopSignals(std::function<void(int count)> on_signal)
    : on_signal_(std::move(on_signal)) {
  TW_CHECK(pipe2(pipe_, O_CLOEXEC) == 0);
  fcntl(pipe_[1], F_SETFL, O_NONBLOCK);
  signal_pipe = pipe_[1];
  thread_ = std::thread([this] { Listen(); });
  Handle(OnSignal);
}

StopSignals::~StopSignals() {
  Handle(SIG_DFL);
  const char byte = 'q';
  const ssize_t written = write(pipe_[1], &byte, 1);
  static_cast<void>(written);
  thread_.join();
  signal_pipe = -1;
  for (const int end : pipe_) close(end);
}

void StopSignals::Listen() {
  int count = 0;
  char byte = 0;
  while (true) {
    const ssize_t got = read(pipe_[0], &byte, 1);
    if (got < 0 && errno == EINTR) continue;
    if (got != 1 || byte == 'q') return;
    on_signal_(++count);
  }
}

void IgnoreStopSignals() { Handle(SIG_IGN); }

}  // namespace thinwire
