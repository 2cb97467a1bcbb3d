#include "runtime/engine/memory_report.h"

#include <fstream>
#include <string>

namespace thinwire {
namespace {

// The value of "name: N kB" in a /proc file, in bytes; 0 when it is not there.
int64_t ReadProcKilobytes(const std::string& path, const std::string& name) {
  std::ifstream file(path);
  std::string line;
  while (std::getline(file, line)) {
    if (line.compare(0, name.size(), name) == 0 && line[name.size()] == ':') {
      return std::stoll(line.substr(name.size() + 1)) * 1024;
    }
  }
  return 0;
}

}  // namespace

int64_t PeakResidentBytes() { return ReadProcKilobytes("/proc/self/status", "VmHWM"); }

int64_t AvailableHostBytes() { return ReadProcKilobytes("/proc/meminfo", "MemAvailable"); }

}  // namespace thinwire
