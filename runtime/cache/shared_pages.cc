#include "runtime/cache/shared_pages.h"

#include "kernels/core/check.h"

namespace thinwire {

SharedPages::SharedPages(int64_t num_pages)
    : allocator_(num_pages), holders_(num_pages), keys_(num_pages), idle_since_(num_pages) {}

std::optional<int32_t> SharedPages::Allocate() {
  std::optional<int32_t> page = allocator_.Allocate();
  if (!page.has_value()) {
    if (idle_.empty()) return std::nullopt;
    page = idle_.begin()->second;
    idle_.erase(idle_.begin());
    by_key_.erase(*keys_[*page]);
    keys_[*page].reset();
  }
  holders_[*page] = 1;
  return page;
}

void SharedPages::Name(int32_t page, const PageKey& key) {
  TW_CHECK_GE(holders_[page], 1);
  if (keys_[page].has_value() || !by_key_.emplace(key, page).second) return;
  keys_[page] = key;
}

std::vector<int32_t> SharedPages::Find(absl::Span<const PageKey> keys) const {
  std::vector<int32_t> pages;
  for (const PageKey& key : keys) {
    const auto it = by_key_.find(key);
    if (it == by_key_.end()) break;
    pages.push_back(it->second);
  }
  return pages;
}

void SharedPages::Hold(int32_t page) {
  TW_CHECK(keys_[page].has_value());
  if (holders_[page]++ == 0) idle_.erase(idle_since_[page]);
}

void SharedPages::Touch(const PageKey& key) {
  const auto it = by_key_.find(key);
  if (it == by_key_.end() || !idle(it->second)) return;
  idle_.erase(idle_since_[it->second]);
  idle_since_[it->second] = time_++;
  idle_.emplace(idle_since_[it->second], it->second);
}

void SharedPages::Release(int32_t page) {
  TW_CHECK_GE(holders_[page], 1);
  if (--holders_[page] > 0) return;
  if (keys_[page].has_value()) {
    idle_since_[page] = time_++;
    idle_.emplace(idle_since_[page], page);
  } else {
    allocator_.Free(page);
  }
}

}  // namespace thinwire
