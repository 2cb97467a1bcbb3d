// KV pages that several sequences may read, found by what is in them: bookkeeping with integers.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/types/span.h"
#include "runtime/cache/page_allocator.h"

namespace thinwire {

// Names a full page by its tokens, all before them, and whom they belong to: 128 bits of a hash
// that nobody finds two inputs for.
struct PageKey {
  uint64_t high = 0;
  uint64_t low = 0;

  friend bool operator==(const PageKey& a, const PageKey& b) = default;
  template <typename H>
  friend H AbslHashValue(H state, const PageKey& key) {
    return H::combine(std::move(state), key.high, key.low);
  }
};

// A page is free, held by one or more sequences, or idle: it has a key, nobody holds it, and its
// content stays until pages run short. Of idle pages the one that was let go of first is given up
// first. Thread-compatible.
class SharedPages {
 public:
  explicit SharedPages(int64_t num_pages);

  // A page for one holder, without a key; nothing when all are held.
  std::optional<int32_t> Allocate();

  // Gives a held page its key, unless it or another page has one already.
  void Name(int32_t page, const PageKey& key);

  // The pages of the longest prefix of `keys` that is here, in order. Nobody's until Hold.
  std::vector<int32_t> Find(absl::Span<const PageKey> keys) const;
  // One more holder of a page that Find has just returned.
  void Hold(int32_t page);

  // Counts the idle page of a key as let go of just now; of a held one or none does nothing.
  void Touch(const PageKey& key);

  // One holder less. Of a sequence's pages the last comes first, so that what is given up first is
  // what needs all the others.
  void Release(int32_t page);

  bool idle(int32_t page) const { return holders_[page] == 0; }
  int64_t num_pages() const { return allocator_.num_pages(); }
  int64_t num_free() const {  // to Allocate
    return allocator_.num_free() + static_cast<int64_t>(idle_.size());
  }

 private:
  PageAllocator allocator_;  // idle pages are held there
  std::vector<int32_t> holders_;
  std::vector<std::optional<PageKey>> keys_;      // by page
  std::vector<int64_t> idle_since_;               // by page; where idle
  absl::flat_hash_map<PageKey, int32_t> by_key_;  // pages that have one
  std::map<int64_t, int32_t> idle_;               // by time
  int64_t time_ = 0;
};

}  // namespace thinwire
