// Names for requests that come without one.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>

namespace thinwire {

// "PREFIX-" and 24 hexadecimal digits; no two alike, and no other server's. Thread-safe.
class RequestIds {
 public:
  RequestIds();

  std::string Next(const std::string& prefix);

 private:
  const uint64_t server_;
  std::atomic<uint32_t> next_ = 0;
};

}  // namespace thinwire
