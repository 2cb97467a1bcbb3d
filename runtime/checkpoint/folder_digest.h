// Short digests by which ranks find out that their model folders differ.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace thinwire {

struct FileDigest {
  std::string name;    // in the folder
  std::string digest;  // 16 hex digits
};

// One for each config.json, thinwire.json, *.index.json and *.safetensors file of the folder, by
// name. A digest is of the file's size, its first 256 KiB and 16 blocks of 4 KiB evenly spaced to
// its end: another model, scheme or version differs, and a folder of any size takes milliseconds;
// single values that were changed by hand may go unseen. NotFound, PermissionDenied or DataLoss
// name the file. Of a synthetic model: one digest of its config and tensors.
absl::StatusOr<std::vector<FileDigest>> DigestFolder(const std::string& dir);

}  // namespace thinwire
