#include "runtime/model/device_weights.h"

#include <optional>
#include <utility>
#include <vector>

#include "kernels/core/copy.h"
#include "kernels/core/status_macros.h"
#include "runtime/model/stacked_linears.h"

namespace thinwire {
namespace {

absl::Status Move(Tensor& tensor, Stream& stream) {
  if (tensor.empty()) return absl::OkStatus();
  const ConstTensorView from = tensor.view();
  Tensor moved;
  if (from.rank() == 1) {
    TW_ASSIGN_OR_RETURN(moved, Tensor::Allocate(from.dtype(), {from.dim(0)}, stream.device()));
  } else {
    TW_ASSIGN_OR_RETURN(
        moved, Tensor::Allocate(from.dtype(), {from.dim(0), from.dim(1)}, stream.device()));
  }
  if (from.num_elements() > 0) TW_RETURN_IF_ERROR(Copy(from, moved.mutable_view(), stream));
  TW_RETURN_IF_ERROR(stream.Synchronize());
  tensor = std::move(moved);
  return absl::OkStatus();
}

absl::Status Move(NormWeights& norm, Stream& stream) {
  TW_RETURN_IF_ERROR(Move(norm.weight, stream));
  return Move(norm.bias, stream);
}

absl::Status Move(LinearWeights& linear, Stream& stream, int64_t usual_tokens) {
  for (Tensor* tensor : {&linear.weight, &linear.bias, &linear.offset, &linear.input_order}) {
    TW_RETURN_IF_ERROR(Move(*tensor, stream));
  }
  if (linear.codes.has_value()) {
    TW_ASSIGN_OR_RETURN(linear.codes, linear.codes->CopyTo(stream.device()));
  }
  if (linear.vptq.has_value()) {
    TW_ASSIGN_OR_RETURN(linear.vptq, linear.vptq->CopyTo(stream.device(), usual_tokens));
  }
  return absl::OkStatus();
}

absl::Status Move(std::vector<LinearWeights>& linears, Stream& stream, int64_t usual_tokens) {
  TW_RETURN_IF_ERROR(StackLinears(linears));
  for (LinearWeights& linear : linears) TW_RETURN_IF_ERROR(Move(linear, stream, usual_tokens));
  return absl::OkStatus();
}

absl::Status Move(SiteCoding& coding, Stream& stream) {
  for (Tensor* tensor : {&coding.order, &coding.step, &coding.inverse_step, &coding.zero,
                         &coding.max_code, &coding.snap}) {
    TW_RETURN_IF_ERROR(Move(*tensor, stream));
  }
  return absl::OkStatus();
}

absl::Status Move(std::optional<KvCodes>& codes, Stream& stream) {
  if (!codes.has_value()) return absl::OkStatus();
  std::vector<KvHeadCodes> heads;
  for (int64_t h = 0; h < codes->num_heads(); ++h) heads.push_back(codes->head(h));
  TW_ASSIGN_OR_RETURN(codes, KvCodes::Create(codes->head_dim(), std::move(heads), stream.device()));
  return absl::OkStatus();
}

}  // namespace

absl::Status MoveToDevice(LayerWeights& weights, Stream& stream, int64_t usual_tokens) {
  if (stream.device() == Device::Cpu()) return absl::OkStatus();
  for (NormWeights* norm : {&weights.attention_norm, &weights.mlp_norm}) {
    TW_RETURN_IF_ERROR(Move(*norm, stream));
  }
  for (auto* linears : {&weights.qkv, &weights.out, &weights.up, &weights.down}) {
    TW_RETURN_IF_ERROR(Move(*linears, stream, usual_tokens));
  }
  for (SiteCoding* coding :
       {&weights.qkv_in, &weights.q, &weights.out_in, &weights.mlp_in, &weights.down_in}) {
    TW_RETURN_IF_ERROR(Move(*coding, stream));
  }
  TW_RETURN_IF_ERROR(Move(weights.k_codes, stream));
  return Move(weights.v_codes, stream);
}

absl::Status MoveEndsToDevice(DecoderWeights& weights, Stream& stream) {
  if (stream.device() == Device::Cpu()) return absl::OkStatus();
  for (Tensor* tensor : {&weights.token_embedding, &weights.position_embedding, &weights.head}) {
    TW_RETURN_IF_ERROR(Move(*tensor, stream));
  }
  TW_RETURN_IF_ERROR(Move(weights.final_norm, stream));
  TW_RETURN_IF_ERROR(Move(weights.project_in, stream, /*usual_tokens=*/1));
  return Move(weights.project_out, stream, /*usual_tokens=*/1);
}

}  // namespace thinwire
