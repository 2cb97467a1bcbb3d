#include "runtime/server/request_ids.h"

#include <random>

#include "absl/strings/str_cat.h"

namespace thinwire {

RequestIds::RequestIds()
    : server_((uint64_t{std::random_device()()} << 32) | std::random_device()()) {}

std::string RequestIds::Next(const std::string& prefix) {
  return absl::StrCat(prefix, "-", absl::Hex(server_, absl::kZeroPad16),
                      absl::Hex(next_++, absl::kZeroPad8));
}

}  // namespace thinwire
