#include "launcher/progress.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace thinwire {
namespace {

constexpr int kWidth = 30;
constexpr char kWipe[] = "\r\033[K";  // ECMA-48: start of line, erase to its end

}  // namespace

Progress::Progress(std::string label, bool wanted)
    : label_(std::move(label)), visible_(wanted && isatty(STDERR_FILENO) != 0) {}

void Progress::Update(int64_t done, int64_t total) {
  if (!visible_) return;
  const Clock::time_point now = Clock::now();
  if (drawn_ && done != total && now - last_draw_ < std::chrono::milliseconds(100)) return;
  last_draw_ = now;
  drawn_ = true;
  std::string line = absl::StrFormat("%s%s ", kWipe, label_);
  if (total > 0) {
    const int filled = static_cast<int>(std::clamp<int64_t>(kWidth * done / total, 0, kWidth));
    absl::StrAppend(&line, "[", std::string(filled, '#'), std::string(kWidth - filled, '.'), "] ",
                    done, "/", total);
    const double elapsed = std::chrono::duration<double>(now - start_).count();
    if (done > skipped_ && elapsed > 1.0) {
      const auto left = static_cast<int64_t>(elapsed / (done - skipped_) * (total - done));
      line += absl::StrFormat("  %d:%02d left", left / 60, left % 60);
    }
  } else {
    line += absl::StrFormat("%d", done);
  }
  std::fputs(line.c_str(), stderr);
  std::fflush(stderr);
}

void Progress::Skip(int64_t done) {
  skipped_ = done;
  start_ = Clock::now();
}

void Progress::Finish() {
  if (!drawn_) return;
  drawn_ = false;
  std::fputs(kWipe, stderr);
  std::fflush(stderr);
}

}  // namespace thinwire
