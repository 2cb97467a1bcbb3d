#include "runtime/cache/page_allocator.h"

#include "kernels/core/check.h"

namespace thinwire {

PageAllocator::PageAllocator(int64_t num_pages) : held_(num_pages, false) {
  free_.reserve(num_pages);
  for (int64_t page = num_pages - 1; page >= 0; --page) free_.push_back(static_cast<int32_t>(page));
}

std::optional<int32_t> PageAllocator::Allocate() {
  if (free_.empty()) return std::nullopt;
  const int32_t page = free_.back();
  free_.pop_back();
  held_[page] = true;
  return page;
}

void PageAllocator::Free(int32_t page) {
  TW_CHECK(page >= 0 && page < num_pages() && held_[page]);
  held_[page] = false;
  free_.push_back(page);
}

}  // namespace thinwire
