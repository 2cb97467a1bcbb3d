#include "parallel/comm/host_identity.h"

#include <cstdlib>
#include <fstream>

#include "absl/strings/str_cat.h"

namespace thinwire {

std::string BootId() {
  std::string boot;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> boot;
  return boot;
}

std::string HostName() {
  const char* const told = std::getenv("NCCL_HOSTID");
  return absl::StrCat(BootId(), " ", told != nullptr ? told : "");
}

bool IsSetInEnvironment(const char* variable) {
  const char* const value = std::getenv(variable);
  return value != nullptr && std::atoi(value) != 0;
}

}  // namespace thinwire
