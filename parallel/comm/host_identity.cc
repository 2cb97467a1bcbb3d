#include "parallel/comm/host_identity.h"

#include <cstdlib>
#include <fstream>

#include "absl/strings/str_cat.h"

namespace thinwire {

std::string HostName() {
  std::string boot;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> boot;
  const char* const told = std::getenv("NCCL_HOSTID");
  return absl::StrCat(boot, " ", told != nullptr ? told : "");
}

bool IsSetInEnvironment(const char* variable) {
  const char* const value = std::getenv(variable);
  return value != nullptr && std::atoi(value) != 0;
}

}  // namespace thinwire
