// IntegerLinear in one order of sums for any number of tokens, on a GPU, too.
#pragma once

#include "absl/status/status.h"
#include "kernels/coded_linear/coded_linear.h"

namespace thinwire {

// As IntegerLinear. An element of y has the same bits beside any other tokens, in any subset of the
// output rows. On a GPU more than 64 tokens take a multiple of the time where segments are not
// whole chunks of 128 columns.
absl::Status IntegerLinearInOrder(const IntegerLinearArgs& args, Stream& stream);

}  // namespace thinwire
