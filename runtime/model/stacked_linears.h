// Linear layers with one input as one, for devices where a call costs more than its host's time.
#pragma once

#include <vector>

#include "absl/status/status.h"
#include "runtime/model/decoder_weights.h"

namespace thinwire {

// Where all of `linears` are codes, in host memory, and differ in their rows alone (bits, groups,
// segments and order of the input are the same; all have a bias or none has, likewise the offset),
// leaves one with the rows of all, one after the other. Otherwise leaves them as they are.
// ResourceExhausted.
absl::Status StackLinears(std::vector<LinearWeights>& linears);

}  // namespace thinwire
