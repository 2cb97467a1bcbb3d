// What full pages of a sequence are found by: a chain of SHA-256 over their tokens and a salt.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "runtime/cache/shared_pages.h"

namespace thinwire {

// Sequences with the same salt and the same tokens up to a page's end have the same key for it; who
// does not know a salt can neither guess keys of it nor make another text have them.
class PageKeyChain {
 public:
  PageKeyChain(absl::string_view salt, int64_t page_size);

  // `tokens`: those of the last call and any that follow. Takes on the pages that are full now.
  void Extend(absl::Span<const int32_t> tokens);

  const std::vector<PageKey>& keys() const { return keys_; }

 private:
  int64_t page_size_;
  std::array<std::byte, 32> digest_;  // of all so far
  std::vector<PageKey> keys_;
};

}  // namespace thinwire
