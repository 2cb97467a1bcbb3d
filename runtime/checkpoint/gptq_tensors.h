// Linear layers in the GPTQ format that AutoGPTQ and GPTQModel write (Frantar et al., arXiv
// 2210.17323):
//   w[o, i] = scale[g, o] * (code[o, i] - zero[g, o]),   g = g_idx[i]
//
// The bytes, for B bits, `in` and `out` features, G groups; W(n) = ceil(n * B / 32):
//   NAME.qweight  I32 [W(in), out]   code of input i begins at bit i * B of column o, downwards
//   NAME.qzeros   I32 [G, W(out)]    zero of output o begins at bit o * B of row g
//   NAME.scales   F16 [G, out]
//   NAME.g_idx    I32 [in]           may be absent where it is i / group_size
// A run of words is a string of bits, least significant first: codes of 3 bits cross from one word
// to the next, 32 of them in 3 words. Bits behind the last code are 0.
//
// Zeros are stored less one, modulo 2^B ("gptq", version 1), or as they are ("gptq_v2"). Readers
// disagree on version 1 where a zero is 0 and so the stored one 2^B - 1: some take it for 2^B, and
// those that add one to all zeros of a word at once carry into the next. Here it is 0. Whoever
// chooses zeros of at least 1 is understood by all. Other readers also want in and out to be
// multiples of 32.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "kernels/core/tensor_view.h"
#include "parallel/plan/shard_plan.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/checkpoint/gptq_config.h"
#include "runtime/checkpoint/safetensors_writer.h"

namespace thinwire {

// Whether the checkpoint has the linear layer `name` ("model.layers.0.mlp.up_proj") in this format.
bool HasGptqLinear(const Checkpoint& checkpoint, absl::string_view name);

// One such layer of a checkpoint, which it borrows. Const methods may be called from several
// threads. Every error names file, tensor, expected and found.
class GptqLinear {
 public:
  // Checks shapes and dtypes, and reads g_idx. NotFound: a tensor is missing. InvalidArgument:
  // another shape or dtype, or a g_idx outside [0, groups) or (without desc_act) not i /
  // group_size. With desc_act there may be any number of groups, else ceil(in / group_size). Scales
  // may be of any float dtype.
  static absl::StatusOr<GptqLinear> Open(const Checkpoint* checkpoint, absl::string_view name,
                                         int64_t out_features, int64_t in_features,
                                         const GptqConfig& config);

  int64_t out_features() const { return out_features_; }
  int64_t in_features() const { return in_features_; }
  int bits() const { return config_.bits; }
  int64_t num_groups() const { return num_groups_; }
  absl::Span<const int32_t> g_idx() const { return g_idx_; }  // [in_features]

  // Copies a block of the codes. codes: uint8 [rows.size(), columns.size()] in host memory, rows
  // may be strided. Any ranges of outputs (rows) and inputs (columns). Touches the words of the
  // block and, besides the output, needs bits / 8 bytes a code: call it for some MB at a time; few
  // columns and many rows lie better in the file than the other way round.
  absl::Status ReadCodes(Range rows, Range columns, TensorView codes) const;

  // Copies scales and zeros of outputs `rows`. scales: fp32 [rows.size(), num_groups], zeros: uint8
  // of this shape; host memory, contiguous. InvalidArgument: a scale that is not finite, or a zero
  // that is not 2^(bits - 1) where the config says `sym` (files whose zeros are stored otherwise
  // than their checkpoint_format says).
  absl::Status ReadScales(Range rows, TensorView scales, TensorView zeros) const;

 private:
  GptqLinear() = default;

  const Checkpoint* checkpoint_ = nullptr;
  std::string name_;
  GptqConfig config_;
  int64_t out_features_ = 0;
  int64_t in_features_ = 0;
  int64_t num_groups_ = 0;
  std::vector<int32_t> g_idx_;
};

// The four tensors of a layer, in the order in which AppendGptqLinear writes them.
std::vector<TensorSpec> GptqTensorSpecs(absl::string_view name, int64_t out_features,
                                        int64_t in_features, int64_t num_groups, int bits);

// Packs a layer and appends its tensors to `writer`, for which they were declared. codes: uint8
// [out, in]; scales: fp32 [out, groups], rounded to fp16; zeros: uint8 [out, groups]; g_idx: [in];
// all in host memory, rows may be strided. Needs little memory besides. Codes and zeros must be
// below 2^bits and g_idx below groups (checked). InvalidArgument: a scale that is not finite in
// fp16 (naming output and group). Else as SafetensorsWriter::Append.
absl::Status AppendGptqLinear(SafetensorsWriter& writer, absl::string_view name,
                              const GptqConfig& config, ConstTensorView codes,
                              ConstTensorView scales, ConstTensorView zeros,
                              absl::Span<const int32_t> g_idx);

}  // namespace thinwire
