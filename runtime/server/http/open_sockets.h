// The connections of an HTTP listener by their clients' addresses: the library that parses requests
// passes those on, and not the sockets.
#pragma once

#include <mutex>
#include <string>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"

namespace thinwire {

// Thread-safe.
class OpenSockets {
 public:
  void Add(const std::string& host, int port, int socket) {
    const std::lock_guard lock(mutex_);
    sockets_[absl::StrCat(host, " ", port)] = socket;
  }
  void Remove(const std::string& host, int port) {
    const std::lock_guard lock(mutex_);
    sockets_.erase(absl::StrCat(host, " ", port));
  }
  // -1: there is none.
  int Find(const std::string& host, int port) const {
    const std::lock_guard lock(mutex_);
    const auto it = sockets_.find(absl::StrCat(host, " ", port));
    return it == sockets_.end() ? -1 : it->second;
  }

 private:
  mutable std::mutex mutex_;
  absl::flat_hash_map<std::string, int> sockets_;
};

}  // namespace thinwire
