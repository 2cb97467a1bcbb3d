// Token ids as decimal numbers: what a model without a vocabulary reads and writes.
#pragma once

#include <cstdint>
#include <memory>

#include "runtime/tokenizer/tokenizer.h"

namespace thinwire {

// Text is ids in [0, vocab_size), with white space between them ("17 4 901"); Decode puts a space
// after each. There are no special tokens. Encode: InvalidArgument names what is no such id.
std::unique_ptr<Tokenizer> MakeNumberTokenizer(int64_t vocab_size);

}  // namespace thinwire
