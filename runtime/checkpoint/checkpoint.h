// The weights of a Hugging Face model folder, read by name and by block; or those of a synthetic
// model, made so.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "kernels/core/tensor_view.h"
#include "parallel/plan/shard_plan.h"
#include "runtime/checkpoint/safetensors.h"
#include "runtime/checkpoint/synthetic_tensor.h"

namespace thinwire {

// A block of a vector or matrix; what is not given is whole. A vector has rows only.
struct TensorSlice {
  std::optional<Range> rows = std::nullopt;     // of dim 0
  std::optional<Range> columns = std::nullopt;  // of dim 1
};

// The tensors of all safetensors files of a folder, or of a synthetic model. Move-only. Const
// methods may be called from several threads.
class Checkpoint {
 public:
  // Which files: those that model.safetensors.index.json names, else model.safetensors, else every
  // *.safetensors file but rptq.safetensors. Reads headers only. All tensors of these files count,
  // also those that an index leaves out. Errors, besides those of SafetensorsFile::Open and
  // ReadJsonFile:
  // - NotFound: the folder, its safetensors files, or a file that the index names. Where there are
  //   pickles instead (pytorch_model.bin), the message says how to convert them.
  // - FailedPrecondition: not a folder.
  // - InvalidArgument: a malformed index, or one whose file names are not names of files in the
  //   folder; a tensor in two files.
  // - DataLoss: a tensor that is not in the file which the index says.
  // A synthetic model (synthetic_model.h) has no files; errors are those of SyntheticTensors.
  static absl::StatusOr<Checkpoint> Open(const std::string& dir);

  // One file by itself. The same errors.
  static absl::StatusOr<Checkpoint> OpenFile(const std::string& path);

  const std::string& dir() const { return dir_; }

  // Null if there is none. The pointer stays valid as long as the checkpoint, also when that moves.
  const TensorInfo* Find(absl::string_view name) const;

  // The file that has tensor `name`, for messages; the folder if none has.
  const std::string& PathOf(absl::string_view name) const;

  // All names, sorted; they point into the checkpoint.
  std::vector<absl::string_view> Names() const;

  int num_files() const { return static_cast<int>(files_.size()); }

  // Bytes of all tensors as stored.
  int64_t total_bytes() const;

  // Copies a block of the vector or matrix `name` to `out`.
  // expected_shape: the whole tensor's. out: host memory in the block's shape, contiguous or with
  // strided rows. Between fp32, fp16 and bf16 it converts, rounding to nearest even (a bf16 beyond
  // 65504 becomes infinite in fp16); otherwise the dtypes must be equal. The mapped pages that it
  // touches are given back while it copies: at most some MB of the file are resident at any time,
  // also for a column block of a large matrix. Errors name file, tensor, expected and found.
  // NotFound: no such tensor. InvalidArgument: another shape, a block outside of it, an `out` of
  // another shape, dtypes that do not convert. Unimplemented: a dtype that is listed but not
  // loadable.
  absl::Status Read(absl::string_view name, absl::Span<const int64_t> expected_shape,
                    const TensorSlice& slice, TensorView out) const;

  // The same for matrix `plane` of a tensor of rank 3. out: of the block of that matrix.
  absl::Status ReadPlane(absl::string_view name, absl::Span<const int64_t> expected_shape,
                         int64_t plane, const TensorSlice& slice, TensorView out) const;

 private:
  struct Location {
    int file = 0;  // -1: synthetic
    int tensor = 0;
  };

  Checkpoint() = default;
  const TensorInfo& InfoAt(const Location& location) const;
  // The tensor, if it has the shape.
  absl::StatusOr<Location> Locate(absl::string_view name,
                                  absl::Span<const int64_t> expected_shape) const;
  // A block of `tensor`, a vector or matrix: what is at `location`, or a plane of that.
  absl::Status ReadBlock(const Location& location, const TensorInfo& tensor, int64_t plane,
                         const TensorSlice& slice, TensorView out) const;
  absl::Status AddFile(const std::string& path);
  absl::Status AddIndexedFiles(const std::string& index_path);

  std::string dir_;
  std::vector<SafetensorsFile> files_;
  std::vector<SyntheticTensor> synthetic_;
  // The names are those of the TensorInfos.
  absl::flat_hash_map<absl::string_view, Location> tensors_;
};

}  // namespace thinwire
