// Linear layers in the format that the VPTQ package writes. Vectors run along outputs (kernels/
// vptq_linear says what they mean). With v, k and k_r from the layer's config, b = log2 k, r = log2
// k_r, S outlier columns and G groups of `size` = (in - S) / G columns:
//   NAME.indices                   I32 [G, ceil(out/v), ceil(size * (b+r) / 32)], packed: a string
//                                  of bits, least significant first, index below residual index; or
//                                  16-bit [G, ceil(out/v), size]
//   NAME.res_indices               16-bit, the same shape, only where indices are not packed
//   NAME.centroids.weight          [G, k * v] of any float dtype
//   NAME.res_centroids.weight      [G, k_r * v], with a residual
//   NAME.weight_scale, weight_bias [in], by column, with norm
//   NAME.perm                      I16 (unsigned) or I64 [in], the column stored at each position;
//                                  without, or absorbed, positions are columns
//   NAME.outlier_indices           16-bit (unsigned) [1, ceil(out/v0), S], with outliers
//   NAME.outlier_centroids.weight  [1, k0 * v0]
// The rows of the last vector that are beyond `out` are padding.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kernels/vptq_linear/vptq_weights.h"
#include "parallel/plan/shard_plan.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/checkpoint/vptq_config.h"

namespace thinwire {

// One such layer of a checkpoint, which it borrows. Const methods may be called from several
// threads. Every error names file, tensor, expected and found.
class VptqLinear {
 public:
  // Checks names, shapes and dtypes against the config, and reads what is small. NotFound: a tensor
  // is missing. InvalidArgument: another shape or dtype, a tensor that the config denies, sizes
  // that the config says otherwise, a perm that is none, scales that are not finite.
  static absl::StatusOr<VptqLinear> Open(const Checkpoint* checkpoint, absl::string_view name,
                                         int64_t out_features, int64_t in_features,
                                         const VptqLayerConfig& config);

  int64_t out_features() const { return out_features_; }
  int64_t in_features() const { return in_features_; }

  // A rank's block: any outputs, any inputs. Vectors that straddle its ends are kept whole, columns
  // in their stored order. Reads the bytes of these rows, and of a row those of the columns where
  // they are side by side. InvalidArgument: indices beyond the codebook, centroids that are not
  // finite.
  absl::StatusOr<VptqWeights> ReadBlock(Range rows, Range columns) const;

 private:
  // Where the codes of a group or of the outliers are.
  struct Source;

  VptqLinear() = default;

  std::string TensorName(absl::string_view part) const;
  absl::Status CheckTensors() const;
  absl::Status ReadColumns();
  absl::StatusOr<Tensor> ReadBook(absl::string_view part, int64_t group, int64_t num_groups,
                                  int bits, int length) const;
  absl::Status ReadCodes(const Source& source, Range vectors, const std::vector<int64_t>& positions,
                         Tensor& codes) const;

  const Checkpoint* checkpoint_ = nullptr;
  std::string name_;
  VptqLayerConfig config_;
  int64_t out_features_ = 0;
  int64_t in_features_ = 0;
  int64_t group_size_ = 0;
  std::vector<int32_t> perm_;          // [in], column of a position
  std::vector<float> scale_, offset_;  // [in], by column, or empty
};

}  // namespace thinwire
