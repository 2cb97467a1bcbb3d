#include "runtime/quantizer/calibration_set.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
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

}  // namespace thinwire
