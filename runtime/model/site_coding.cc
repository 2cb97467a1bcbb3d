#include "runtime/model/site_coding.h"

#include <algorithm>
#include <array>
#include <numeric>
#include <utility>

#include "kernels/core/check.h"
#include "kernels/core/status_macros.h"
#include "runtime/quant/level_table.h"

namespace thinwire {
namespace {

template <typename T>
absl::StatusOr<Tensor> TensorOf(DType dtype, const std::vector<T>& values) {
  TW_ASSIGN_OR_RETURN(
      Tensor tensor, Tensor::Allocate(dtype, {static_cast<int64_t>(values.size())}, Device::Cpu()));
  std::copy(values.begin(), values.end(), tensor.mutable_view().mutable_data<T>());
  return tensor;
}

}  // namespace

std::vector<int32_t> ChannelsOf(const SiteCodes& codes, Range part) {
  std::vector<int32_t> channels(part.size());
  if (codes.empty()) {
    std::iota(channels.begin(), channels.end(), static_cast<int32_t>(part.begin));
  } else {
    std::copy(codes.order.begin() + part.begin, codes.order.begin() + part.end, channels.begin());
  }
  return channels;
}

std::vector<uint8_t> BitsOf(const SiteCodes& codes, Range part) {
  std::vector<uint8_t> bits;
  bits.reserve(part.size());
  for (int64_t c = 0; c < codes.num_clusters(); ++c) {
    const int64_t begin = std::max<int64_t>(codes.offsets[c], part.begin);
    const int64_t end = std::min<int64_t>(codes.offsets[c + 1], part.end);
    if (end > begin) bits.insert(bits.end(), end - begin, codes.bits[c]);
  }
  return bits;
}

absl::StatusOr<SiteCoding> MakeSiteCoding(const SiteCodes& codes, Range part, bool by_channel) {
  SiteCoding coding;
  if (!codes.coded()) return coding;
  const int64_t width = part.size();
  const std::vector<int32_t> channels = ChannelsOf(codes, part);
  const std::vector<uint8_t> bits = BitsOf(codes, part);
  std::vector<float> step(width), inverse_step(width), zero(width);
  std::vector<uint8_t> max_code(width);
  for (int64_t j = 0; j < width; ++j) {
    const int64_t to = by_channel ? channels[j] - part.begin : j;
    step[to] = codes.step[part.begin + j];
    inverse_step[to] = 1.0f / step[to];
    zero[to] = codes.zero[part.begin + j];
    max_code[to] = codes.levels.empty() ? static_cast<uint8_t>((1 << bits[j]) - 1) : uint8_t{255};
  }
  TW_ASSIGN_OR_RETURN(coding.step, TensorOf(DType::kF32, step));
  TW_ASSIGN_OR_RETURN(coding.inverse_step, TensorOf(DType::kF32, inverse_step));
  TW_ASSIGN_OR_RETURN(coding.zero, TensorOf(DType::kF32, zero));
  TW_ASSIGN_OR_RETURN(coding.max_code, TensorOf(DType::kU8, max_code));
  if (!codes.levels.empty()) {
    const std::array<uint8_t, 256> snap = SnapTable(codes.levels);
    TW_ASSIGN_OR_RETURN(coding.snap,
                        TensorOf(DType::kU8, std::vector<uint8_t>(snap.begin(), snap.end())));
  }
  if (codes.gain == "rms") coding.gain = GainKind::kRms;
  if (codes.gain == "max") coding.gain = GainKind::kMax;
  return coding;
}

absl::StatusOr<KvCodes> MakeKvCodes(const SiteCodes& codes, Range heads, int64_t head_dim,
                                    const std::vector<int32_t>& stored) {
  TW_CHECK(codes.coded());
  const int64_t first = heads.begin * head_dim;
  // place[c]: where channel c lies in its head's rows.
  std::vector<int32_t> place(heads.size() * head_dim);
  for (int64_t i = 0; i < static_cast<int64_t>(place.size()); ++i) {
    const int64_t channel = stored.empty() ? i : stored[i] - first;
    place[channel] = static_cast<int32_t>(i % head_dim);
  }
  std::vector<KvHeadCodes> parts;
  for (int64_t h = heads.begin; h < heads.end; ++h) {
    const Range positions = {h * head_dim, (h + 1) * head_dim};
    KvHeadCodes head;
    for (const int32_t channel : ChannelsOf(codes, positions)) {
      head.order.push_back(place[channel - first]);
    }
    const std::vector<uint8_t> bits = BitsOf(codes, positions);
    for (int64_t j = 0; j + kKvUnit <= head_dim; j += kKvUnit) head.bits.push_back(bits[j]);
    head.step.assign(codes.step.begin() + positions.begin, codes.step.begin() + positions.end);
    head.zero.assign(codes.zero.begin() + positions.begin, codes.zero.begin() + positions.end);
    parts.push_back(std::move(head));
  }
  return KvCodes::Create(head_dim, std::move(parts), Device::Cpu());
}

}  // namespace thinwire
