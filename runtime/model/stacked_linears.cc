#include "runtime/model/stacked_linears.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "kernels/core/status_macros.h"

namespace thinwire {
namespace {

bool SameBytes(const Tensor& a, const Tensor& b) {
  return a.size_bytes() == b.size_bytes() &&
         (a.empty() ||
          std::memcmp(a.view().raw(), b.view().raw(), static_cast<size_t>(a.size_bytes())) == 0);
}

bool DifferInRowsAlone(const LinearWeights& a, const LinearWeights& b) {
  return a.codes.has_value() && b.codes.has_value() && a.codes->bits() == b.codes->bits() &&
         a.codes->group_offsets() == b.codes->group_offsets() &&
         a.segment_offsets == b.segment_offsets && a.segment_step == b.segment_step &&
         SameBytes(a.input_order, b.input_order) && a.bias.empty() == b.bias.empty() &&
         a.offset.empty() == b.offset.empty();
}

absl::StatusOr<Tensor> Joined(const std::vector<LinearWeights>& linears,
                              Tensor LinearWeights::*member) {
  int64_t size = 0;
  for (const LinearWeights& linear : linears) size += (linear.*member).view().num_elements();
  if ((linears.front().*member).empty()) return Tensor();
  TW_ASSIGN_OR_RETURN(Tensor joined, Tensor::Allocate(DType::kF32, {size}, Device::Cpu()));
  auto* to = joined.mutable_view().mutable_data<float>();
  for (const LinearWeights& linear : linears) {
    const ConstTensorView part = (linear.*member).view();
    to = std::copy_n(part.data<float>(), part.num_elements(), to);
  }
  return joined;
}

}  // namespace

absl::Status StackLinears(std::vector<LinearWeights>& linears) {
  if (linears.size() < 2) return absl::OkStatus();
  std::vector<const CodedWeights*> parts;
  int64_t rows = 0;
  for (const LinearWeights& linear : linears) {
    // Blocks of rows begin with a part.
    if (!DifferInRowsAlone(linears.front(), linear) || rows % 16 != 0) return absl::OkStatus();
    rows += linear.codes->out_features();
    parts.push_back(&*linear.codes);
  }
  LinearWeights stacked;
  TW_ASSIGN_OR_RETURN(stacked.codes, CodedWeights::Stack(parts));
  TW_ASSIGN_OR_RETURN(stacked.bias, Joined(linears, &LinearWeights::bias));
  TW_ASSIGN_OR_RETURN(stacked.offset, Joined(linears, &LinearWeights::offset));
  stacked.segment_offsets = std::move(linears.front().segment_offsets);
  stacked.segment_step = std::move(linears.front().segment_step);
  stacked.input_order = std::move(linears.front().input_order);
  linears.clear();
  linears.push_back(std::move(stacked));
  return absl::OkStatus();
}

}  // namespace thinwire
