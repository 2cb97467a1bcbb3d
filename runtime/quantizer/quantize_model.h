// Quantises a whole model folder into another.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "kernels/core/device.h"
#include "kernels/core/thread_pool.h"
#include "parallel/comm/communicator.h"
#include "runtime/quantizer/calibration_set.h"
#include "runtime/quantizer/layer_quantizer.h"

namespace thinwire {

struct QuantizeOptions {
  std::string model_dir;              // unquantised
  std::string out_dir;                // must not exist; appears when all is done
  std::string algorithm = "default";  // see ThinwireFile
  LayerQuantizerOptions layer;
  CalibrationSet calibration;
  int64_t seed = 0;
  std::string tool_version;
  // Where windows go through the layers and weights are quantised: the CPU or a GPU, of one kind on
  // all ranks. A GPU makes a result of its own, as good and the same every time, and holds the
  // residual of the rank's windows twice and one layer twice.
  Device device;
};

// Told of a layer that is done; `resumed`: by an earlier run.
struct LayerProgress {
  int64_t layer = 0;
  int64_t num_layers = 0;
  bool resumed = false;
  const LayerResult* result = nullptr;
};

// Rank 0's: makes folder `to` of the finished folder `from`, which stays.
using FolderRefiner = std::function<absl::Status(const std::string& from, const std::string& to)>;

// Collective. What can be known before there are calibration windows; of calibration only
// info.seqlen is looked at. Errors name flag, expected and found.
absl::Status CheckQuantizeOptions(const QuantizeOptions& options, Communicator& world,
                                  ThreadPool& pool);

// Collective over `world`: every rank takes a part of the calibration windows, rank 0 writes.
//
// Work lies in OUT.partial until it is done, one file a layer, and a run that finds such a folder
// made with the same options goes on where it ended: the result is the same, byte for byte. Holds
// the residual of the windows twice and one layer, never the model. All ranks see the folders of
// rank 0. A run that fails before its first layer is done leaves nothing.
// Errors: CheckQuantizeOptions'; InvalidArgument: token ids outside the vocabulary;
// FailedPrecondition: OUT.partial was made with other options or from another model (the message
// says which); those of loading, writing and quantising, naming layer and site; those of `refine`,
// whose folder, where it is given, becomes OUT (a run that is ended inside begins it again).
absl::Status QuantizeModel(const QuantizeOptions& options, Communicator& world, ThreadPool& pool,
                           const std::function<void(const LayerProgress&)>& on_layer = nullptr,
                           const FolderRefiner& refine = nullptr);

}  // namespace thinwire
