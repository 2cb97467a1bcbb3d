// Which KV pages are free: bookkeeping with integers, without memory behind it.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

namespace thinwire {

// Pages 0 .. num_pages - 1, each free or held by one owner. Thread-compatible.
class PageAllocator {
 public:
  explicit PageAllocator(int64_t num_pages);

  // The most recently freed page (its memory is the likeliest to be cached), or nothing when all
  // are held.
  std::optional<int32_t> Allocate();

  // `page` must be held.
  void Free(int32_t page);

  int64_t num_pages() const { return static_cast<int64_t>(held_.size()); }
  int64_t num_free() const { return static_cast<int64_t>(free_.size()); }

 private:
  std::vector<int32_t> free_;
  std::vector<bool> held_;
};

}  // namespace thinwire
