// Ends a text before the first of some strings, while the text is being generated.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace thinwire {

// The pieces that Push and Flush return make up the text up to, and without, the first occurrence
// of a stop string. What could be the beginning of one is held back until it is known not to be. Of
// two stop strings that end at the same byte, the longer one counts.
class StopText {
 public:
  // Stop strings are not empty.
  explicit StopText(std::vector<std::string> stops);

  // The next piece of text. Returns what is final now: nothing once stopped().
  std::string Push(absl::string_view piece);

  // No text follows: what was held back.
  std::string Flush();

  bool stopped() const { return stopped_; }

 private:
  std::vector<std::string> stops_;
  std::string held_;
  bool stopped_ = false;
};

}  // namespace thinwire
