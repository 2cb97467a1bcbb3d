#include "runtime/model/layer_runner.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "kernels/activation/activation.h"
#include "kernels/attention/coded_attention.h"
#include "kernels/coded_linear/coded_linear.h"
#include "kernels/coded_linear/integer_linear_in_order.h"
#include "kernels/codes/codes.h"
#include "kernels/convert/convert.h"
#include "kernels/convert/gather.h"
#include "kernels/core/check.h"
#include "kernels/core/copy.h"
#include "kernels/core/status_macros.h"
#include "kernels/linear/linear.h"
#include "kernels/norm/norm.h"
#include "kernels/vptq_linear/vptq_linear.h"
#include "runtime/model/rope_frequencies.h"

namespace thinwire {

absl::StatusOr<LayerRunner> LayerRunner::Create(const ModelConfig& config, const ShardPlan& plan,
                                                DType dtype, int64_t max_tokens, Stream& stream) {
  TW_CHECK(IsFloat(dtype));
  const Device device = stream.device();
  LayerRunner runner;
  runner.config_ = config;
  runner.spec_ = DecoderSpecFor(config);
  runner.plan_ = plan;
  const int64_t q_width = plan.heads().size() * config.head_dim;
  const int64_t kv_width = plan.kv_heads().size() * config.head_dim;
  const int64_t ffn = plan.ffn().size();
  const int64_t out_width = plan.out_heads().size() * config.head_dim;
  const int64_t down_width = plan.down_ffn().size();
  const int64_t up_width = ffn * (runner.spec_.layer.gate.empty() ? 1 : 2);
  const auto allocate = [&](Tensor& tensor, int64_t width) -> absl::Status {
    TW_ASSIGN_OR_RETURN(tensor, Tensor::Allocate(dtype, {max_tokens, width}, device));
    return absl::OkStatus();
  };
  TW_RETURN_IF_ERROR(allocate(runner.normed_, config.hidden));
  TW_RETURN_IF_ERROR(allocate(runner.delta_, config.hidden));
  TW_RETURN_IF_ERROR(allocate(runner.qkv_, q_width + 2 * kv_width));
  TW_RETURN_IF_ERROR(allocate(runner.attended_, q_width));
  TW_RETURN_IF_ERROR(allocate(runner.mlp_, up_width));
  // Touched, and so counted, only where activations are coded.
  TW_ASSIGN_OR_RETURN(
      runner.codes_,
      Tensor::Allocate(DType::kU8, {max_tokens, std::max({config.hidden, q_width, ffn})}, device));
  TW_ASSIGN_OR_RETURN(runner.gains_, Tensor::Allocate(DType::kF32, {max_tokens}, device));
  if (out_width > q_width || down_width > ffn) {
    const int64_t bytes = DTypeBytes(dtype, std::max(out_width, down_width));
    TW_ASSIGN_OR_RETURN(runner.whole_, Tensor::Allocate(DType::kU8, {max_tokens, bytes}, device));
    TW_RETURN_IF_ERROR(allocate(runner.packed_, ffn));
  }
  const auto upload = [&](const ConstTensorView& here, Tensor& there) -> absl::Status {
    TW_ASSIGN_OR_RETURN(there, Tensor::Allocate(here.dtype(), {here.dim(0)}, device));
    TW_RETURN_IF_ERROR(Copy(here, there.mutable_view(), stream));
    return stream.Synchronize();
  };
  if (device != Device::Cpu()) {
    const std::vector<int64_t> none(plan.layers().size(), kNoWrongValue);
    TW_RETURN_IF_ERROR(
        upload({none.data(), DType::kI64, {plan.layers().size()}}, runner.first_wrong_));
  }
  if (runner.spec_.rope) {
    const std::vector<float> inv_freq = RopeFrequencies(config.rope, config.head_dim);
    const auto count = static_cast<int64_t>(inv_freq.size());
    TW_RETURN_IF_ERROR(upload({inv_freq.data(), DType::kF32, {count}}, runner.inv_freq_));
  }
  return runner;
}

absl::Status LayerRunner::KvStoredStatus(const LayerWeights& layer, int64_t first_wrong) const {
  if (!layer.k_codes.has_value()) return absl::OkStatus();
  const int64_t kv_width = plan_.kv_heads().size() * config_.head_dim;
  const ConstTensorView k = qkv_.view().Columns(plan_.heads().size() * config_.head_dim, kv_width);
  return CodedKvWriteError({.k = k, .v = k, .k_codes = &*layer.k_codes}, first_wrong);
}

int64_t LayerRunner::size_bytes() const {
  int64_t bytes = 0;
  for (const Tensor* tensor :
       {&normed_, &delta_, &qkv_, &attended_, &mlp_, &codes_, &gains_, &whole_, &packed_}) {
    bytes += tensor->size_bytes();
  }
  return bytes;
}

absl::Status LayerRunner::FinishSum(Residual& residual, Wire& wire, Stream& stream) {
  if (!residual.lacks_sum) return absl::OkStatus();
  residual.lacks_sum = false;
  return wire.Reduce(residual.last_sum, delta_.mutable_view().Rows(0, residual.x.dim(0)), stream);
}

absl::Status LayerRunner::NormWithDelta(NormArgs args, Residual& residual, Wire& wire,
                                        Stream& stream) {
  const Range rows = residual.rows;
  const TensorView delta = delta_.mutable_view().Rows(rows.begin, rows.size());
  const bool lacks_sum = std::exchange(residual.lacks_sum, false);
  const bool lacks_delta = std::exchange(residual.lacks_delta, false);
  if (lacks_sum) return wire.ReduceAndNorm(residual.last_sum, delta, args, stream);
  if (lacks_delta) args.delta = delta;
  return Norm(args, stream);
}

absl::Status LayerRunner::ApplyNorm(const NormWeights& weights, TensorView x, TensorView out,
                                    Stream& stream) const {
  return Norm({.kind = spec_.norm,
               .x = x,
               .weight = weights.weight.view(),
               .bias = weights.bias.view(),
               .out = out,
               .epsilon = static_cast<float>(config_.norm_epsilon)},
              stream);
}

absl::StatusOr<LayerRunner::Input> LayerRunner::NormSite(const NormWeights& weights,
                                                         const SiteCoding& coding, QuantSite site,
                                                         Residual& residual, Wire& wire,
                                                         Stream& stream, SiteHook* hook) {
  const int64_t num_tokens = residual.x.dim(0);
  const Range rows = residual.rows;
  const TensorView x = residual.x.Rows(rows.begin, rows.size());
  if (coding.coded() && !coding.round_only) {
    TW_RETURN_IF_ERROR(FinishSum(residual, wire, stream));
    ConstTensorView delta;
    if (residual.lacks_delta) delta = delta_.view().Rows(rows.begin, rows.size());
    residual.lacks_delta = false;
    const TensorView codes = CodesView(num_tokens, config_.hidden);
    TW_RETURN_IF_ERROR(NormCodes({.kind = spec_.norm,
                                  .x = x,
                                  .delta = delta,
                                  .order = coding.order.view(),
                                  .weight = weights.weight.view(),
                                  .bias = weights.bias.view(),
                                  .max_code = coding.max_code.view(),
                                  .codes = codes.Rows(rows.begin, rows.size()),
                                  .epsilon = static_cast<float>(config_.norm_epsilon)},
                                 stream));
    if (!residual.whole) {
      TW_RETURN_IF_ERROR(wire.Share(residual.last_sum, Wire::ShareAs::kRaw, codes, stream));
    }
    return Input{.codes = codes};
  }
  const TensorView normed = normed_.mutable_view().Rows(0, num_tokens);
  // Where the rows are coded on their way, the weights, which would make some channels loud and
  // drown the others, come after it.
  const bool coded_on_way = !residual.whole && !wire.exact();
  const ConstTensorView weight = weights.weight.view();
  const ConstTensorView bias = weights.bias.view();
  TW_RETURN_IF_ERROR(NormWithDelta({.kind = spec_.norm,
                                    .x = x,
                                    .weight = coded_on_way ? ConstTensorView() : weight,
                                    .bias = coded_on_way ? ConstTensorView() : bias,
                                    .out = normed.Rows(rows.begin, rows.size()),
                                    .epsilon = static_cast<float>(config_.norm_epsilon),
                                    .order = coding.order.view()},
                                   residual, wire, stream));
  TW_RETURN_IF_ERROR(Look(hook, site, normed));
  if (!residual.whole) {
    TW_RETURN_IF_ERROR(wire.Share(residual.last_sum, Wire::ShareAs::kCodes, normed, stream));
  }
  if (coded_on_way) TW_RETURN_IF_ERROR(ScaleInPlace(normed, weight, bias, stream));
  // The rows are whole on every rank: nothing is sent.
  return CodeSite(coding, normed, Site::kControl, wire, stream);
}

absl::StatusOr<LayerRunner::Input> LayerRunner::ResidualSite(const SiteCoding& coding,
                                                             QuantSite site,
                                                             const Residual& residual, Wire& wire,
                                                             Stream& stream, SiteHook* hook) {
  if (hook == nullptr && !coding.round_only && residual.whole) {
    return CodeSite(coding, residual.x, Site::kControl, wire, stream);
  }
  // The residual is what enters: codes and a hook's changes are of a copy.
  const Range rows = residual.rows;
  const TensorView copy = normed_.mutable_view().Rows(0, residual.x.dim(0));
  TW_RETURN_IF_ERROR(Convert(residual.x.Rows(rows.begin, rows.size()),
                             copy.Rows(rows.begin, rows.size()), stream));
  TW_RETURN_IF_ERROR(Look(hook, site, copy));
  if (!residual.whole) {
    TW_RETURN_IF_ERROR(wire.Share(residual.last_sum, Wire::ShareAs::kCodes, copy, stream));
  }
  return CodeSite(coding, copy, Site::kControl, wire, stream);
}

absl::Status LayerRunner::NormResidual(const NormWeights& weights, Residual& residual, Wire& wire,
                                       Stream& stream) {
  const TensorView x = residual.x.Rows(residual.rows.begin, residual.rows.size());
  return NormWithDelta({.kind = spec_.norm,
                        .x = x,
                        .weight = weights.weight.view(),
                        .bias = weights.bias.view(),
                        .out = x,
                        .epsilon = static_cast<float>(config_.norm_epsilon)},
                       residual, wire, stream);
}

absl::StatusOr<LayerRunner::Input> LayerRunner::GatherInputs(Site site, const Input& input,
                                                             Wire& wire, Stream& stream) {
  const ConstTensorView part = input.codes.empty() ? input.x : input.codes;
  const int64_t num_tokens = part.dim(0);
  const int64_t width = part.dim(1) * wire.tp().size();
  const TensorView whole(whole_.mutable_view().mutable_raw(), part.dtype(), {num_tokens, width},
                         part.device());
  if (part.contiguous()) {
    TW_RETURN_IF_ERROR(wire.GatherColumns(site, part, whole, stream));
  } else {
    // What a gate has left in the first half of the rows of mlp_.
    const TensorView packed = packed_.mutable_view().Rows(0, num_tokens);
    TW_RETURN_IF_ERROR(Convert(part, packed, stream));
    TW_RETURN_IF_ERROR(wire.GatherColumns(site, packed, whole, stream));
  }
  if (input.codes.empty()) return Input{.x = whole};
  return Input{.codes = whole, .gains = input.gains};
}

absl::Status LayerRunner::AddUp(Site site, const std::vector<LinearWeights>& linears,
                                const Input& input, Residual& residual, Wire& wire,
                                Stream& stream) {
  const int64_t num_tokens = residual.x.dim(0);
  const TensorView delta = delta_.mutable_view().Rows(0, num_tokens);
  if (wire.exact() && wire.tp().size() > 1) {
    TW_ASSIGN_OR_RETURN(const Input whole, GatherInputs(site, input, wire, stream));
    const int64_t width = plan_.ResidualChannels(config_.hidden).size();
    const TensorView part(normed_.mutable_view().mutable_raw(), delta.dtype(), {num_tokens, width},
                          delta.device());
    TW_RETURN_IF_ERROR(ApplyLinears(linears, whole, part, wire, stream));
    TW_RETURN_IF_ERROR(wire.CollectRows(site, part, delta, stream));
  } else {
    TW_RETURN_IF_ERROR(ApplyLinears(linears, input, delta, wire, stream));
    // Where ranks keep all rows, the norm that comes next can take the sum with it.
    residual.lacks_sum = !wire.exact() && wire.keeps_all_rows(num_tokens);
    if (!wire.exact() && !residual.lacks_sum) {
      TW_RETURN_IF_ERROR(wire.Reduce(site, delta, stream));
    }
  }
  residual.rows = wire.OwnRows(num_tokens);
  residual.whole = wire.keeps_all_rows(num_tokens);
  residual.lacks_delta = true;
  residual.last_sum = site;
  return absl::OkStatus();
}

absl::Status LayerRunner::Round(const SiteCoding& coding, TensorView x, Stream& stream) {
  return RoundToCodes({.x = x,
                       .step = coding.step.view(),
                       .inverse_step = coding.inverse_step.view(),
                       .zero = coding.zero.view(),
                       .max_code = coding.max_code.view()},
                      stream);
}

absl::StatusOr<LayerRunner::Input> LayerRunner::CodeSite(const SiteCoding& coding, TensorView x,
                                                         Site site, Wire& wire, Stream& stream) {
  if (!coding.coded()) return Input{.x = x};
  if (coding.round_only) {
    TW_RETURN_IF_ERROR(Round(coding, x, stream));
    return Input{.x = x};
  }
  const int64_t num_tokens = x.dim(0);
  const TensorView codes = CodesView(num_tokens, x.dim(1));
  const TensorView gains =
      coding.gain == GainKind::kNone ? TensorView() : gains_.mutable_view().Rows(0, num_tokens);
  GainKind gain = coding.gain;
  if (gain == GainKind::kRms && plan_.mesh().tp_size > 1) {
    return absl::UnimplementedError("rms gains with several tensor-parallel ranks");
  }
  if (gain == GainKind::kMax && plan_.mesh().tp_size > 1) {
    TW_RETURN_IF_ERROR(MaxGains(x, coding.inverse_step.view(), gains, stream));
    TW_RETURN_IF_ERROR(wire.AllReduceMax(site, gains, stream));
    gain = GainKind::kGiven;
  }
  TW_RETURN_IF_ERROR(Quantize({.x = x,
                               .inverse_step = coding.inverse_step.view(),
                               .zero = coding.zero.view(),
                               .max_code = coding.max_code.view(),
                               .snap = coding.snap.view(),
                               .gain = gain,
                               .codes = codes,
                               .gains = gains},
                              stream));
  return Input{.codes = codes, .gains = gains};
}

absl::StatusOr<ConstTensorView> LayerRunner::GatherInput(ConstTensorView order, ConstTensorView x,
                                                         Stream& stream) {
  const int64_t width = std::max(
      {config_.hidden, plan_.out_heads().size() * config_.head_dim, plan_.down_ffn().size()});
  if (gathered_.empty()) {
    TW_ASSIGN_OR_RETURN(gathered_,
                        Tensor::Allocate(x.dtype(), {normed_.view().dim(0), width}, x.device()));
  }
  const TensorView out = gathered_.mutable_view().Rows(0, x.dim(0)).Columns(0, x.dim(1));
  TW_RETURN_IF_ERROR(GatherColumns(x, order, out, stream));
  return out;
}

absl::Status LayerRunner::ApplyLinears(const std::vector<LinearWeights>& linears,
                                       const Input& input, TensorView y, const Wire& wire,
                                       Stream& stream, std::optional<ActivationKind> gate) {
  int64_t first = 0;
  for (const LinearWeights& linear : linears) {
    const int64_t width = gate.has_value() ? linear.out_features() / 2 : linear.out_features();
    const TensorView part = y.Columns(first, width);
    first += width;
    ConstTensorView x = input.x;
    if (!linear.input_order.empty()) {
      TW_ASSIGN_OR_RETURN(x, GatherInput(linear.input_order.view(), x, stream));
    }
    if (!input.codes.empty()) {
      TW_RETURN_IF_ERROR((wire.exact() ? IntegerLinearInOrder : IntegerLinear)(
          {.codes = input.codes,
           .gains = input.gains,
           .segment_offsets = linear.segment_offsets,
           .segment_step = linear.segment_step,
           .weights = &*linear.codes,
           .offset = linear.offset.view(),
           .bias = linear.bias.view(),
           .y = part,
           .gate = gate},
          stream));
    } else if (linear.vptq.has_value()) {
      TW_RETURN_IF_ERROR(VptqLinear({.x = x,
                                     .weights = &*linear.vptq,
                                     .bias = linear.bias.view(),
                                     .y = part,
                                     .batch_invariant = wire.exact()},
                                    stream));
    } else if (linear.codes.has_value()) {
      TW_RETURN_IF_ERROR(CodedLinear({.x = x,
                                      .weights = &*linear.codes,
                                      .bias = linear.bias.view(),
                                      .y = part,
                                      .batch_invariant = wire.exact(),
                                      .gate = gate},
                                     stream));
    } else {
      TW_RETURN_IF_ERROR(Linear({.x = x,
                                 .weight = linear.weight.view(),
                                 .bias = linear.bias.view(),
                                 .y = part,
                                 .batch_invariant = wire.exact()},
                                stream));
    }
  }
  TW_CHECK_EQ(first, y.dim(1));
  return absl::OkStatus();
}

absl::Status LayerRunner::MlpHalf(const LayerWeights& layer, const Input& input, Residual& residual,
                                  Wire& wire, Stream& stream, SiteHook* hook) {
  const int64_t num_tokens = residual.x.dim(0);
  const int64_t ffn = plan_.ffn().size();
  const TensorView mlp = mlp_.mutable_view().Rows(0, num_tokens);
  const TensorView activated = mlp.Columns(0, ffn);
  const bool gates = !spec_.layer.gate.empty() && layer.up.size() == 1 &&
                     layer.up[0].codes.has_value() && HasGates(*layer.up[0].codes, num_tokens);
  if (gates) {
    TW_RETURN_IF_ERROR(ApplyLinears(layer.up, input, activated, wire, stream, config_.activation));
  } else {
    TW_RETURN_IF_ERROR(ApplyLinears(layer.up, input, mlp, wire, stream));
    if (spec_.layer.gate.empty()) {
      TW_RETURN_IF_ERROR(Activate(config_.activation, activated, stream));
    } else {
      TW_RETURN_IF_ERROR(GatedActivation({.kind = config_.activation,
                                          .gate = activated,
                                          .up = mlp.Columns(ffn, ffn),
                                          .out = activated},
                                         stream));
    }
  }
  TW_RETURN_IF_ERROR(Look(hook, QuantSite::kDownIn, activated));
  TW_ASSIGN_OR_RETURN(const Input down_in,
                      CodeSite(layer.down_in, activated, Site::kMlpOut, wire, stream));
  return AddUp(Site::kMlpOut, layer.down, down_in, residual, wire, stream);
}

absl::Status LayerRunner::Run(const LayerWeights& layer, int64_t cache_layer, Residual& residual,
                              const StepBatch& batch, PagedKvCache& cache, Wire& wire,
                              Stream& stream, SiteHook* hook) {
  // A hook sees rows as they are made: all of them, on one rank.
  TW_CHECK(hook == nullptr || wire.tp().size() == 1);
  if (config_.norm_before) {
    TW_ASSIGN_OR_RETURN(const Input attention_in,
                        NormSite(layer.attention_norm, layer.qkv_in, QuantSite::kQkvIn, residual,
                                 wire, stream, hook));
    TW_RETURN_IF_ERROR(AttentionHalf(layer, cache_layer, attention_in, residual, batch, cache, wire,
                                     stream, hook));
    TW_ASSIGN_OR_RETURN(
        const Input mlp_in,
        NormSite(layer.mlp_norm, layer.mlp_in, QuantSite::kMlpIn, residual, wire, stream, hook));
    return MlpHalf(layer, mlp_in, residual, wire, stream, hook);
  }
  TW_CHECK(!residual.lacks_delta);
  TW_ASSIGN_OR_RETURN(const Input attention_in,
                      ResidualSite(layer.qkv_in, QuantSite::kQkvIn, residual, wire, stream, hook));
  TW_RETURN_IF_ERROR(
      AttentionHalf(layer, cache_layer, attention_in, residual, batch, cache, wire, stream, hook));
  TW_RETURN_IF_ERROR(NormResidual(layer.attention_norm, residual, wire, stream));
  TW_ASSIGN_OR_RETURN(const Input mlp_in,
                      ResidualSite(layer.mlp_in, QuantSite::kMlpIn, residual, wire, stream, hook));
  TW_RETURN_IF_ERROR(MlpHalf(layer, mlp_in, residual, wire, stream, hook));
  return NormResidual(layer.mlp_norm, residual, wire, stream);
}

}  // namespace thinwire
