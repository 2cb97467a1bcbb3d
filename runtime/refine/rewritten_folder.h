// A model folder again, with other numbers in some of its tensors.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "runtime/refine/parameter.h"

namespace thinwire {

// Makes folder `to`, which may be there in part, from `from`: the same files, but for the tensors
// that are parameters, whose values are rounded to the dtype that they have in `from`. Each file
// appears whole. Errors name the file: those of reading and writing; FailedPrecondition for a value
// that is not finite in that dtype.
absl::Status WriteRewrittenFolder(const std::string& from, const std::string& to,
                                  const std::vector<Parameter*>& parameters);

}  // namespace thinwire
