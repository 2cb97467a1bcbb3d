// The folder that a quantisation makes: OUT.partial while it is in the making, OUT when it is done.
#pragma once

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "kernels/core/device.h"
#include "runtime/checkpoint/gptq_config.h"
#include "runtime/checkpoint/thinwire_file.h"
#include "runtime/checkpoint/vptq_config.h"

namespace thinwire {

// Rank 0's. OUT.partial holds thinwire.json from the start, so that a run which finds it knows
// whether it was begun alike, and a digest of the model, which goes when the folder is published.
class OutputFolder {
 public:
  // `out_dir` may end in slashes.
  // `device`: of what kind the quantising devices are; an earlier run on another kind is not gone
  // on with, for its numbers are a little different.
  OutputFolder(std::string model_dir, std::string out_dir, const ThinwireFile& made_by,
               DeviceKind device);

  const std::string& path() const { return out_; }
  const std::string& partial() const { return partial_; }

  // AlreadyExists: OUT is there.
  absl::Status CheckFree() const;

  // Begins, or finds what an earlier run left; files that it left half-written vanish. Errors:
  // CheckFree's; FailedPrecondition: begun with other options or from another model, the message
  // says which; those of the file system.
  absl::Status Open() const;

  // config.json, with a quantization_config of `vptq`, or of `gptq` if weights are its codes, and
  // the model's files beside it that are neither weights nor index.
  absl::Status WriteConfig(const GptqConfig& gptq, const std::optional<VptqConfig>& vptq) const;

  // Renames OUT.partial to OUT.
  absl::Status Publish() const;

  // A folder in OUT.partial for what is made of the finished one; renames that to OUT instead.
  std::string refined() const;
  absl::Status PublishRefined() const;

  // Removes OUT.partial where nothing but what Open wrote is in it: a run that failed before it did
  // anything leaves nothing.
  void RemoveIfEmpty() const;

 private:
  const std::string model_dir_;
  const std::string out_;
  const std::string partial_;
  const ThinwireFile made_by_;
  const DeviceKind device_;
};

}  // namespace thinwire
