// What turns ids back into text one by one: the state behind Tokenizer::Decode and StreamDecoder.
#pragma once

#include <cstdint>
#include <string>

namespace thinwire {

// Single use: Push for every id, then Finish once. Text is appended as soon as no later id can
// change it, and only in whole characters.
class Detokenizer {
 public:
  virtual ~Detokenizer() = default;

  virtual void Push(int32_t id, std::string* text) = 0;
  virtual void Finish(std::string* text) = 0;
};

}  // namespace thinwire
