#include "kernels/trace/kernel_trace.h"

#include <cxxabi.h>

#include <algorithm>
#include <cstdlib>
#include <map>

namespace thinwire {
namespace {

// "void thinwire::(anonymous namespace)::Fused<4, true>(Args)" -> "Fused".
std::string ShortName(const std::string& mangled) {
  int status = 0;
  char* const demangled = abi::__cxa_demangle(mangled.c_str(), nullptr, nullptr, &status);
  std::string name = status == 0 ? demangled : mangled;
  std::free(demangled);
  constexpr char kAnonymous[] = "(anonymous namespace)::";
  for (size_t at = name.find(kAnonymous); at != std::string::npos; at = name.find(kAnonymous)) {
    name.erase(at, sizeof(kAnonymous) - 1);
  }
  name.resize(std::min(name.find_first_of("<("), name.size()));
  const size_t type = name.rfind(' ');  // of a template's result
  if (type != std::string::npos) name.erase(0, type + 1);
  const size_t scope = name.rfind("::");
  if (scope != std::string::npos) name.erase(0, scope + 2);
  return name;
}

}  // namespace

KernelTimes SumKernelRuns(absl::Span<const KernelRun> runs) {
  KernelTimes times;
  std::map<std::string, KernelTimes::Kernel> by_name;
  std::vector<std::pair<uint64_t, uint64_t>> intervals;
  for (const KernelRun& run : runs) {
    const std::string name = ShortName(run.name);
    KernelTimes::Kernel& kernel = by_name[name];
    kernel.name = name;
    ++kernel.calls;
    kernel.seconds += static_cast<double>(run.end_ns - run.begin_ns) * 1e-9;
    intervals.emplace_back(run.begin_ns, run.end_ns);
  }
  for (auto& [name, kernel] : by_name) times.kernels.push_back(std::move(kernel));
  std::stable_sort(times.kernels.begin(), times.kernels.end(),
                   [](const auto& a, const auto& b) { return a.seconds > b.seconds; });
  std::sort(intervals.begin(), intervals.end());
  uint64_t busy = 0, covered = intervals.empty() ? 0 : intervals.front().first;
  const uint64_t first = covered;
  for (const auto& [begin, end] : intervals) {
    if (end <= covered) continue;
    busy += end - std::max(begin, covered);
    covered = end;
  }
  times.busy_seconds = static_cast<double>(busy) * 1e-9;
  times.span_seconds = static_cast<double>(covered - first) * 1e-9;
  return times;
}

}  // namespace thinwire
