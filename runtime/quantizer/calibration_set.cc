#include "runtime/quantizer/calibration_set.h"

#include <array>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"
#include "runtime/checkpoint/sha256.h"

namespace thinwire {

absl::StatusOr<CalibrationSet> CutCalibrationSet(const std::vector<int32_t>& ids,
                                                 int64_t num_samples, int64_t seqlen,
                                                 const std::string& source,
                                                 absl::Span<const std::byte> bytes) {
  const auto num_ids = static_cast<int64_t>(ids.size());
  const int64_t available = num_ids / seqlen;
  if (available < num_samples) {
    return absl::InvalidArgumentError(absl::StrCat(
        source, ": ", num_ids, " tokens are ", available, " windows of ", seqlen, ", expected ",
        num_samples, ": give more text, or a smaller --nsamples or --seqlen"));
  }
  CalibrationSet set;
  for (int64_t i = 0; i < num_samples; ++i) {
    const int64_t begin = i * available / num_samples * seqlen;
    set.windows.emplace_back(ids.begin() + begin, ids.begin() + begin + seqlen);
  }
  set.info = {
      .source = source, .sha256 = Sha256Hex(bytes), .nsamples = num_samples, .seqlen = seqlen};
  return set;
}

CalibrationSet MakeSelfCalibrationSet(std::vector<std::vector<int32_t>> windows) {
  Sha256 digest;
  for (const std::vector<int32_t>& window : windows) {
    for (const int32_t id : window) {
      const auto bits = static_cast<uint32_t>(id);
      const std::array<std::byte, 4> bytes = {std::byte(bits), std::byte(bits >> 8),
                                              std::byte(bits >> 16), std::byte(bits >> 24)};
      digest.Update(bytes);
    }
  }
  CalibrationSet set;
  set.info = {.source = "self",
              .sha256 = digest.HexDigest(),
              .nsamples = static_cast<int64_t>(windows.size()),
              .seqlen = static_cast<int64_t>(windows.front().size())};
  set.windows = std::move(windows);
  return set;
}

absl::Status BroadcastCalibrationSet(CalibrationSet& set, Communicator& world, Stream& stream) {
  if (world.size() == 1) return absl::OkStatus();
  const auto share = [&](TensorView view) { return world.Broadcast(view, /*root=*/0, stream); };
  int64_t sizes[] = {set.info.nsamples, set.info.seqlen,
                     static_cast<int64_t>(set.info.source.size()),
                     static_cast<int64_t>(set.info.sha256.size())};
  TW_RETURN_IF_ERROR(share(TensorView(sizes, DType::kI64, {4})));
  set.info.nsamples = sizes[0];
  set.info.seqlen = sizes[1];
  set.info.source.resize(sizes[2]);
  set.info.sha256.resize(sizes[3]);
  for (std::string* text : {&set.info.source, &set.info.sha256}) {
    TW_RETURN_IF_ERROR(
        share(TensorView(text->data(), DType::kU8, {static_cast<int64_t>(text->size())})));
  }
  set.windows.resize(set.info.nsamples);
  for (std::vector<int32_t>& window : set.windows) {
    window.resize(set.info.seqlen);
    TW_RETURN_IF_ERROR(share(TensorView(window.data(), DType::kI32, {set.info.seqlen})));
  }
  return absl::OkStatus();
}

}  // namespace thinwire
