// A progress bar on standard error, where that is a terminal.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace thinwire {

// "loading  [#########......]  12/32  0:03 left". Redraws at most ten times a second. Move-free.
class Progress {
 public:
  // Shows nothing unless `wanted` and standard error is a terminal.
  Progress(std::string label, bool wanted);
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  ~Progress() { Finish(); }

  // total 0: unknown; only the count is shown.
  void Update(int64_t done, int64_t total);

  // So many are done that took no time worth counting: what is left is reckoned from those after.
  void Skip(int64_t done);

  // Wipes the bar, until the next Update.
  void Finish();

 private:
  using Clock = std::chrono::steady_clock;

  const std::string label_;
  const bool visible_;
  Clock::time_point start_ = Clock::now();
  int64_t skipped_ = 0;
  Clock::time_point last_draw_ = {};
  bool drawn_ = false;
};

}  // namespace thinwire
