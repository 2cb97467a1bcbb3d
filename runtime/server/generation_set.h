// Several generations that are read by one thread.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "runtime/server/generation.h"

namespace thinwire {

// Thread-compatible.
class GenerationSet {
 public:
  explicit GenerationSet(std::vector<std::shared_ptr<Generation>> generations);

  size_t size() const { return generations_.size(); }
  const std::vector<std::shared_ptr<Generation>>& generations() const { return generations_; }

  // What came next of any of them, with its index; nothing by `until`. Not when all have ended.
  std::optional<std::pair<size_t, GenerationDelta>> Next(ServingClock::time_point until);

  bool ended() const { return num_ended_ == generations_.size(); }

 private:
  struct Ready;

  void Arm(size_t index);

  std::vector<std::shared_ptr<Generation>> generations_;
  std::shared_ptr<Ready> ready_;  // shared with wake-ups that may come late
  size_t num_ended_ = 0;
};

}  // namespace thinwire
