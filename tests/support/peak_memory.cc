#include "tests/support/peak_memory.h"

#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <string>

namespace thinwire {
namespace {

// The most memory that this process ever had resident, since the last reset; -1 if the system does
// not say.
int64_t PeakResidentBytes() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind("VmHWM:", 0) == 0) return std::atoll(line.c_str() + 6) * 1024;
  }
  return -1;
}

}  // namespace

const char* WhyMemoryIsNotMeasurable() {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  return "shadow memory of the sanitizer counts as resident";
#else
  return PeakResidentBytes() < 0 ? "/proc/self/status has no VmHWM" : nullptr;
#endif
}

PeakMemory MeasurePeakMemory(absl::FunctionRef<int64_t()> work) {
  constexpr PeakMemory kFailed = {.result = -1, .growth_bytes = -1};
  int ends[2];
  if (pipe(ends) != 0) return kFailed;
  const pid_t child = fork();
  if (child == 0) {
    std::ofstream("/proc/self/clear_refs") << "5";  // sets the peak to what is resident now
    const int64_t before = PeakResidentBytes();
    PeakMemory measured;
    measured.result = work();
    measured.growth_bytes = before < 0 ? -1 : PeakResidentBytes() - before;
    _exit(write(ends[1], &measured, sizeof(measured)) == sizeof(measured) ? 0 : 1);
  }
  close(ends[1]);
  PeakMemory measured;
  if (child < 0 || read(ends[0], &measured, sizeof(measured)) != sizeof(measured)) {
    measured = kFailed;
  }
  close(ends[0]);
  if (child > 0) waitpid(child, nullptr, 0);
  return measured;
}

}  // namespace thinwire
