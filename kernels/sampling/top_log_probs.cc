#include "kernels/sampling/top_log_probs.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/core/copy.h"
#include "kernels/core/status_macros.h"
#include "kernels/sampling/sampling_internal.h"

namespace thinwire {
namespace {

absl::Status Check(const TopLogProbArgs& args, const Stream& stream) {
  const ConstTensorView& logits = args.logits;
  if (logits.rank() != 2 || logits.dtype() != DType::kF32 || logits.dim(1) < 1 ||
      logits.dim(1) > INT32_MAX) {
    return absl::InvalidArgumentError(absl::StrCat(
        "top log probs: expected logits fp32[num_rows, vocab], found ", logits.DebugString()));
  }
  if (logits.device() != stream.device()) {
    return absl::InvalidArgumentError(absl::StrCat("top log probs: logits are on ",
                                                   DeviceName(logits.device()), ", the stream on ",
                                                   DeviceName(stream.device())));
  }
  if (args.k < 1 || args.k > logits.dim(1)) {
    return absl::InvalidArgumentError(
        absl::StrCat("top log probs: expected k in [1, ", logits.dim(1), "], found ", args.k));
  }
  const int64_t count = logits.dim(0) * args.k;
  if (static_cast<int64_t>(args.out.size()) != count) {
    return absl::InvalidArgumentError(
        absl::StrCat("top log probs: expected out of ", count, " tokens, ", args.k,
                     " for each row of ", logits.DebugString(), ", found ", args.out.size()));
  }
  return absl::OkStatus();
}

// False: the row has no softmax.
bool TopOfRow(const float* logits, int64_t vocab, absl::Span<TokenLogProb> top) {
  const RowRange range = RangeOf(logits, vocab);
  if (!range.HasFiniteMax()) return false;
  // The best so far, sorted, with logits for now. Ids come in ascending order, so that a later one
  // goes behind its equals.
  size_t size = 0;
  for (int64_t id = 0; id < vocab; ++id) {
    const float logit = logits[id];
    if (size == top.size()) {
      if (!(logit > top.back().log_prob)) continue;
    } else {
      ++size;
    }
    size_t place = size - 1;
    for (; place > 0 && top[place - 1].log_prob < logit; --place) top[place] = top[place - 1];
    top[place] = {static_cast<int32_t>(id), logit};
  }
  const double log_sum = std::log(SumOfExps(logits, vocab, range.max));
  for (TokenLogProb& token : top) {
    token.log_prob = static_cast<float>(static_cast<double>(token.log_prob) - range.max - log_sum);
  }
  return true;
}

}  // namespace

absl::Status TopLogProbs(const TopLogProbArgs& args, Stream& stream) {
  TW_RETURN_IF_ERROR(Check(args, stream));
  const int64_t vocab = args.logits.dim(1);
  const bool on_host = stream.device().kind == DeviceKind::kCpu;
  std::vector<float> copy(on_host ? 0 : vocab);
  for (int64_t row = 0; row < args.logits.dim(0); ++row) {
    const ConstTensorView logits = args.logits.Rows(row, 1);
    if (!on_host) {
      TW_RETURN_IF_ERROR(Copy(logits, TensorView(copy.data(), DType::kF32, {1, vocab}), stream));
      TW_RETURN_IF_ERROR(stream.Synchronize());
    }
    const float* const values = on_host ? logits.data<float>() : copy.data();
    if (!TopOfRow(values, vocab, args.out.subspan(row * args.k, args.k))) {
      return NoSoftmax("top log probs", row, args.logits);
    }
  }
  return absl::OkStatus();
}

}  // namespace thinwire
