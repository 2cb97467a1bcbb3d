#include "kernels/trace/kernel_trace.h"

#include <cxxabi.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <tuple>
#include <utility>

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
  if (runs.empty()) return times;
  std::vector<const KernelRun*> by_end;
  uint64_t first = runs.front().begin_ns;
  for (const KernelRun& run : runs) {
    by_end.push_back(&run);
    first = std::min(first, run.begin_ns);
  }
  std::stable_sort(by_end.begin(), by_end.end(), [](const KernelRun* a, const KernelRun* b) {
    return std::tie(a->end_ns, a->begin_ns) < std::tie(b->end_ns, b->begin_ns);
  });
  std::map<std::pair<std::string, std::array<int32_t, 3>>, KernelTimes::Kernel> by_name;
  uint64_t last_end = first;
  for (const KernelRun* run : by_end) {
    const std::string name = ShortName(run->name);
    KernelTimes::Kernel& kernel = by_name[{name, run->grid}];
    kernel.name = name;
    kernel.grid = run->grid;
    ++kernel.calls;
    kernel.seconds += static_cast<double>(run->end_ns - run->begin_ns) * 1e-9;
    kernel.added_seconds += static_cast<double>(run->end_ns - last_end) * 1e-9;
    last_end = run->end_ns;
  }
  for (auto& [key, kernel] : by_name) times.kernels.push_back(std::move(kernel));
  std::stable_sort(times.kernels.begin(), times.kernels.end(),
                   [](const auto& a, const auto& b) { return a.added_seconds > b.added_seconds; });
  // From the last to end: time that no later one has covered.
  uint64_t busy = 0, covered = last_end;
  for (auto run = by_end.rbegin(); run != by_end.rend(); ++run) {
    const uint64_t end = std::min((*run)->end_ns, covered);
    if ((*run)->begin_ns >= end) continue;
    busy += end - (*run)->begin_ns;
    covered = (*run)->begin_ns;
  }
  times.busy_seconds = static_cast<double>(busy) * 1e-9;
  times.span_seconds = static_cast<double>(last_end - first) * 1e-9;
  return times;
}

}  // namespace thinwire
