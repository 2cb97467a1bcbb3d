#include "runtime/engine/page_keys.h"

#include <cstring>

#include "kernels/core/check.h"
#include "runtime/checkpoint/sha256.h"

namespace thinwire {
namespace {

// Begins what is hashed: no salt is the start of a page.
constexpr std::byte kSalt{1};
constexpr std::byte kPage{2};

}  // namespace

PageKeyChain::PageKeyChain(absl::string_view salt, int64_t page_size) : page_size_(page_size) {
  TW_CHECK_GE(page_size, 1);
  Sha256 hash;
  hash.Update({&kSalt, 1});
  hash.Update({reinterpret_cast<const std::byte*>(salt.data()), salt.size()});
  digest_ = hash.Digest();
}

void PageKeyChain::Extend(absl::Span<const int32_t> tokens) {
  const auto num_full = static_cast<int64_t>(tokens.size()) / page_size_;
  for (auto page = static_cast<int64_t>(keys_.size()); page < num_full; ++page) {
    const absl::Span<const int32_t> part = tokens.subspan(page * page_size_, page_size_);
    Sha256 hash;
    hash.Update({&kPage, 1});
    hash.Update(digest_);
    hash.Update({reinterpret_cast<const std::byte*>(part.data()), part.size() * sizeof(int32_t)});
    digest_ = hash.Digest();
    PageKey key;
    std::memcpy(&key, digest_.data(), sizeof(key));
    keys_.push_back(key);
  }
}

}  // namespace thinwire
