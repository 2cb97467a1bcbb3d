#include "runtime/checkpoint/gptq_tensors.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "kernels/core/check.h"
#include "kernels/core/float16.h"
#include "kernels/core/status_macros.h"
#include "kernels/core/tensor.h"
#include "runtime/checkpoint/packed_codes.h"
#include "runtime/json/json_file.h"

namespace thinwire {
namespace {

constexpr int64_t kUnit = kCodesPerUnit;

constexpr int64_t kScratchBytes = int64_t{4} << 20;

int64_t NumWords(int64_t num_codes, int bits) { return (num_codes * bits + 31) / 32; }

std::string TensorName(absl::string_view name, absl::string_view part) {
  return absl::StrCat(name, ".", part);
}

// Words [first, first + num_words) of `num_rows` strings of bits, those of one index side by side.
struct WordBlock {
  const int32_t* words = nullptr;  // [num_words, num_rows]
  int64_t first = 0;
  int64_t num_words = 0;
  int64_t num_rows = 0;

  // The words of a row's unit; those outside the block are 0.
  template <int kBits>
  std::array<uint32_t, kBits> Unit(int64_t row, int64_t unit) const {
    std::array<uint32_t, kBits> found;
    for (int w = 0; w < kBits; ++w) {
      const int64_t at = unit * kBits + w - first;
      found[w] = at >= 0 && at < num_words ? static_cast<uint32_t>(words[at * num_rows + row]) : 0;
    }
    return found;
  }
};

// Codes [begin, end) of every row, of one unit. codes: [num_rows, end - begin].
template <int kBits>
void UnpackPart(const WordBlock& from, int64_t begin, int64_t end, uint8_t* codes,
                int64_t row_stride) {
  const int64_t unit = begin / kUnit;
  for (int64_t r = 0; r < from.num_rows; ++r) {
    std::array<uint8_t, kUnit> all;
    UnpackUnit<kBits>(from.Unit<kBits>(r, unit).data(), all.data());
    std::copy(all.begin() + (begin - unit * kUnit), all.begin() + (end - unit * kUnit),
              codes + r * row_stride);
  }
}

// Whole units [begin, end) of every row. Tiles of a few cache lines of many rows keep both sides in
// the first-level cache, since the words of a row are far apart.
template <int kBits>
void UnpackUnits(const WordBlock& from, int64_t begin, int64_t end, uint8_t* codes,
                 int64_t row_stride) {
  constexpr int64_t kTileRows = 64;
  constexpr int64_t kTileUnits = 4;
  for (int64_t tile = begin; tile < end; tile += kTileUnits) {
    const int64_t tile_end = std::min(end, tile + kTileUnits);
    for (int64_t row = 0; row < from.num_rows; row += kTileRows) {
      const int64_t row_end = std::min(from.num_rows, row + kTileRows);
      for (int64_t unit = tile; unit < tile_end; ++unit) {
        for (int64_t r = row; r < row_end; ++r) {
          UnpackUnit<kBits>(from.Unit<kBits>(r, unit).data(),
                            codes + r * row_stride + (unit - begin) * kUnit);
        }
      }
    }
  }
}

// Codes `columns` of every row, whose words are all there. codes: [num_rows, columns.size()].
void UnpackBlock(const WordBlock& from, int bits, Range columns, uint8_t* codes,
                 int64_t row_stride) {
  WithBits(bits, [&]<int kBits>() {
    // Units that lie wholly inside, and what is left of them and right of them.
    const int64_t begin = std::min(columns.end, (columns.begin + kUnit - 1) / kUnit * kUnit);
    const int64_t end = std::max(begin, columns.end / kUnit * kUnit);
    if (columns.begin < begin) {
      UnpackPart<kBits>(from, columns.begin, begin, codes, row_stride);
    }
    UnpackUnits<kBits>(from, begin / kUnit, end / kUnit, codes + (begin - columns.begin),
                       row_stride);
    if (end < columns.end) {
      UnpackPart<kBits>(from, end, columns.end, codes + (end - columns.begin), row_stride);
    }
  });
}

// 32 codes to `bits` words.
void PackUnit(const uint8_t* codes, int bits, uint32_t* words) {
  WithBits(bits, [&]<int kBits>() { thinwire::PackUnit<kBits>(codes, words); });
}

// What begins the messages about a tensor.
std::string Context(const Checkpoint& checkpoint, absl::string_view tensor) {
  return absl::StrCat(checkpoint.PathOf(tensor), ": tensor ", QuotedForMessage(tensor));
}

// The tensor if it is there with this dtype and shape; dims of -1 may be anything.
absl::StatusOr<const TensorInfo*> FindTensor(const Checkpoint& checkpoint,
                                             const std::string& tensor, DType dtype,
                                             std::initializer_list<int64_t> shape) {
  const TensorInfo* info = checkpoint.Find(tensor);
  if (info == nullptr) {
    return absl::NotFoundError(absl::StrCat(checkpoint.dir(), ": expected tensor ",
                                            QuotedForMessage(tensor), ", found none"));
  }
  const bool same_dtype =
      info->loadable && (info->dtype == dtype || (IsFloat(info->dtype) && IsFloat(dtype)));
  const bool same_shape =
      std::equal(shape.begin(), shape.end(), info->shape.begin(), info->shape.end(),
                 [](int64_t expected, int64_t found) { return expected < 0 || expected == found; });
  if (!same_dtype || !same_shape) {
    return absl::InvalidArgumentError(absl::StrCat(
        Context(checkpoint, tensor), ": expected ", StoredDTypeName(dtype), " ",
        absl::StrReplaceAll(ShapeString(shape), {{"-1", "any"}}), ", found ", info->DebugString()));
  }
  return info;
}

absl::Status CheckGroups(const Checkpoint& checkpoint, const std::string& tensor,
                         absl::Span<const int32_t> g_idx, int64_t num_groups, int64_t group_size,
                         bool desc_act) {
  for (size_t i = 0; i < g_idx.size(); ++i) {
    if (g_idx[i] < 0 || g_idx[i] >= num_groups) {
      return absl::InvalidArgumentError(absl::StrCat(Context(checkpoint, tensor),
                                                     ": expected groups within [0, ", num_groups,
                                                     "), found ", g_idx[i], " of input ", i));
    }
    const int64_t plain = static_cast<int64_t>(i) / group_size;
    if (!desc_act && g_idx[i] != plain) {
      return absl::InvalidArgumentError(absl::StrCat(
          Context(checkpoint, tensor), ": expected group ", plain, " of input ", i,
          ", as \"group_size\" ", group_size, " without \"desc_act\" says, found ", g_idx[i]));
    }
  }
  return absl::OkStatus();
}

// Whether a code is 2^bits or more.
bool AnyAbove(const uint8_t* codes, int64_t n, int bits) {
  uint8_t all = 0;
  for (int64_t i = 0; i < n; ++i) all |= codes[i];
  return (all >> bits) != 0;
}

absl::Status AppendCodes(SafetensorsWriter& writer, const std::string& tensor, int bits,
                         ConstTensorView codes) {
  const int64_t out_features = codes.dim(0);
  const int64_t in_features = codes.dim(1);
  const int64_t units_per_step =
      std::max<int64_t>(1, kScratchBytes / (out_features * bits * int64_t{sizeof(int32_t)}));
  std::vector<uint32_t> words;
  for (int64_t begin = 0; begin < in_features; begin += units_per_step * kUnit) {
    const int64_t end = std::min(in_features, begin + units_per_step * kUnit);
    const int64_t num_words = NumWords(end - begin, bits);
    words.assign(num_words * out_features, 0);
    for (int64_t o = 0; o < out_features; ++o) {
      const uint8_t* row = codes.data<uint8_t>() + o * codes.row_stride();
      TW_CHECK(!AnyAbove(row + begin, end - begin, bits));
      for (int64_t at = begin; at < end; at += kUnit) {
        std::array<uint8_t, kUnit> unit = {};
        std::copy_n(row + at, std::min(kUnit, end - at), unit.data());
        std::array<uint32_t, kMaxCodeBits> packed;
        PackUnit(unit.data(), bits, packed.data());
        const int64_t first = (at - begin) / kUnit * bits;
        for (int64_t w = 0; w < std::min<int64_t>(bits, num_words - first); ++w) {
          words[(first + w) * out_features + o] = packed[w];
        }
      }
    }
    TW_RETURN_IF_ERROR(writer.AppendValues(tensor, absl::MakeConstSpan(words)));
  }
  return absl::OkStatus();
}

absl::Status AppendZeros(SafetensorsWriter& writer, const std::string& tensor,
                         const GptqConfig& config, ConstTensorView zeros) {
  const int64_t out_features = zeros.dim(0);
  const int max_code = (1 << config.bits) - 1;
  const int64_t num_units = (out_features + kUnit - 1) / kUnit;
  std::vector<uint8_t> stored(num_units * kUnit, 0);
  std::vector<uint32_t> words(num_units * config.bits);
  for (int64_t g = 0; g < zeros.dim(1); ++g) {
    for (int64_t o = 0; o < out_features; ++o) {
      const int zero = zeros.data<uint8_t>()[o * zeros.row_stride() + g];
      TW_CHECK_LE(zero, max_code);
      stored[o] = static_cast<uint8_t>((config.zeros_as_they_are ? zero : zero - 1) & max_code);
    }
    for (int64_t unit = 0; unit < num_units; ++unit) {
      PackUnit(stored.data() + unit * kUnit, config.bits, words.data() + unit * config.bits);
    }
    TW_RETURN_IF_ERROR(writer.AppendValues(
        tensor, absl::MakeConstSpan(words.data(), NumWords(out_features, config.bits))));
  }
  return absl::OkStatus();
}

absl::Status AppendScales(SafetensorsWriter& writer, const std::string& tensor,
                          ConstTensorView scales) {
  std::vector<Half> row(scales.dim(0));
  for (int64_t g = 0; g < scales.dim(1); ++g) {
    for (int64_t o = 0; o < scales.dim(0); ++o) {
      const float scale = scales.data<float>()[o * scales.row_stride() + g];
      row[o] = ToHalf(scale);
      if (!std::isfinite(ToFloat(row[o]))) {
        return absl::InvalidArgumentError(
            absl::StrCat("tensor ", QuotedForMessage(tensor),
                         ": expected scales that are finite in fp16, found ", scale, " of output ",
                         o, ", group ", g));
      }
    }
    TW_RETURN_IF_ERROR(writer.AppendValues(tensor, absl::MakeConstSpan(row)));
  }
  return absl::OkStatus();
}

}  // namespace

bool HasGptqLinear(const Checkpoint& checkpoint, absl::string_view name) {
  return checkpoint.Find(TensorName(name, "qweight")) != nullptr;
}

absl::StatusOr<GptqLinear> GptqLinear::Open(const Checkpoint* checkpoint, absl::string_view name,
                                            int64_t out_features, int64_t in_features,
                                            const GptqConfig& config) {
  TW_CHECK(out_features > 0 && in_features > 0);
  GptqLinear linear;
  linear.checkpoint_ = checkpoint;
  linear.name_ = std::string(name);
  linear.config_ = config;
  linear.out_features_ = out_features;
  linear.in_features_ = in_features;
  const int64_t group_size = config.group_size < 0 ? in_features : config.group_size;
  const int64_t expected_groups =
      config.desc_act ? -1 : (in_features + group_size - 1) / group_size;

  TW_RETURN_IF_ERROR(FindTensor(*checkpoint, TensorName(name, "qweight"), DType::kI32,
                                {NumWords(in_features, config.bits), out_features})
                         .status());
  TW_ASSIGN_OR_RETURN(const TensorInfo* scales,
                      FindTensor(*checkpoint, TensorName(name, "scales"), DType::kF16,
                                 {expected_groups, out_features}));
  linear.num_groups_ = scales->shape[0];
  TW_RETURN_IF_ERROR(FindTensor(*checkpoint, TensorName(name, "qzeros"), DType::kI32,
                                {linear.num_groups_, NumWords(out_features, config.bits)})
                         .status());

  linear.g_idx_.resize(in_features);
  const std::string g_idx = TensorName(name, "g_idx");
  if (!config.desc_act && checkpoint->Find(g_idx) == nullptr) {
    for (int64_t i = 0; i < in_features; ++i) {
      linear.g_idx_[i] = static_cast<int32_t>(i / group_size);
    }
    return linear;
  }
  TW_RETURN_IF_ERROR(FindTensor(*checkpoint, g_idx, DType::kI32, {in_features}).status());
  TW_RETURN_IF_ERROR(checkpoint->Read(
      g_idx, {in_features}, {}, TensorView(linear.g_idx_.data(), DType::kI32, {in_features})));
  TW_RETURN_IF_ERROR(CheckGroups(*checkpoint, g_idx, linear.g_idx_, linear.num_groups_, group_size,
                                 config.desc_act));
  return linear;
}

absl::Status GptqLinear::ReadCodes(Range rows, Range columns, TensorView codes) const {
  TW_CHECK(rows.begin >= 0 && rows.begin <= rows.end && rows.end <= out_features_);
  TW_CHECK(columns.begin >= 0 && columns.begin <= columns.end && columns.end <= in_features_);
  TW_CHECK(codes.rank() == 2 && codes.dim(0) == rows.size() && codes.dim(1) == columns.size());
  if (rows.size() == 0 || columns.size() == 0) return absl::OkStatus();
  const int bits = config_.bits;
  const int64_t all_words = NumWords(in_features_, bits);
  const int64_t units_per_step =
      std::max<int64_t>(1, kScratchBytes / (rows.size() * bits * int64_t{sizeof(int32_t)}));
  auto* out = codes.mutable_data<uint8_t>();
  for (int64_t begin = columns.begin; begin < columns.end;) {
    const int64_t first_unit = begin / kUnit;
    const int64_t end = std::min(columns.end, (first_unit + units_per_step) * kUnit);
    const Range words = {begin * bits / 32, NumWords(end, bits)};
    TW_ASSIGN_OR_RETURN(Tensor packed,
                        Tensor::Allocate(DType::kI32, {words.size(), rows.size()}, Device::Cpu()));
    TW_RETURN_IF_ERROR(checkpoint_->Read(TensorName(name_, "qweight"), {all_words, out_features_},
                                         {.rows = words, .columns = rows}, packed.mutable_view()));
    UnpackBlock({.words = packed.view().data<int32_t>(),
                 .first = words.begin,
                 .num_words = words.size(),
                 .num_rows = rows.size()},
                bits, {begin, end}, out + (begin - columns.begin), codes.row_stride());
    begin = end;
  }
  return absl::OkStatus();
}

absl::Status GptqLinear::ReadScales(Range rows, TensorView scales, TensorView zeros) const {
  TW_CHECK(rows.begin >= 0 && rows.begin <= rows.end && rows.end <= out_features_);
  for (const TensorView& view : {scales, zeros}) {
    TW_CHECK(view.rank() == 2 && view.contiguous());
    TW_CHECK(view.dim(0) == rows.size() && view.dim(1) == num_groups_);
  }
  if (rows.size() == 0) return absl::OkStatus();
  const int bits = config_.bits;
  const Range words = {rows.begin * bits / 32, NumWords(rows.end, bits)};
  const std::string scales_name = TensorName(name_, "scales");
  const std::string zeros_name = TensorName(name_, "qzeros");
  TW_ASSIGN_OR_RETURN(Tensor by_group,
                      Tensor::Allocate(DType::kF32, {num_groups_, rows.size()}, Device::Cpu()));
  TW_ASSIGN_OR_RETURN(Tensor packed,
                      Tensor::Allocate(DType::kI32, {num_groups_, words.size()}, Device::Cpu()));
  TW_RETURN_IF_ERROR(checkpoint_->Read(scales_name, {num_groups_, out_features_}, {.columns = rows},
                                       by_group.mutable_view()));
  TW_RETURN_IF_ERROR(checkpoint_->Read(zeros_name, {num_groups_, NumWords(out_features_, bits)},
                                       {.columns = words}, packed.mutable_view()));
  const int max_code = (1 << bits) - 1;
  const int symmetric = 1 << (bits - 1);
  std::vector<uint8_t> stored(rows.size());
  for (int64_t g = 0; g < num_groups_; ++g) {
    UnpackBlock({.words = packed.view().data<int32_t>() + g * words.size(),
                 .first = words.begin,
                 .num_words = words.size(),
                 .num_rows = 1},
                bits, rows, stored.data(), 0);
    for (int64_t r = 0; r < rows.size(); ++r) {
      const float scale = by_group.view().data<float>()[g * rows.size() + r];
      if (!std::isfinite(scale)) {
        return absl::InvalidArgumentError(
            absl::StrCat(Context(*checkpoint_, scales_name), ": expected finite scales, found ",
                         scale, " of output ", rows.begin + r, ", group ", g));
      }
      const int zero = (stored[r] + (config_.zeros_as_they_are ? 0 : 1)) & max_code;
      if (config_.sym && zero != symmetric) {
        return absl::InvalidArgumentError(absl::StrCat(
            Context(*checkpoint_, zeros_name), ": expected zeros of ", symmetric,
            ", as \"sym\" says, found ", zero, " of output ", rows.begin + r, ", group ", g,
            ": is \"checkpoint_format\" the one that it was written in?"));
      }
      scales.mutable_data<float>()[r * num_groups_ + g] = scale;
      zeros.mutable_data<uint8_t>()[r * num_groups_ + g] = static_cast<uint8_t>(zero);
    }
  }
  return absl::OkStatus();
}

std::vector<TensorSpec> GptqTensorSpecs(absl::string_view name, int64_t out_features,
                                        int64_t in_features, int64_t num_groups, int bits) {
  return {
      {TensorName(name, "qweight"), DType::kI32, {NumWords(in_features, bits), out_features}},
      {TensorName(name, "qzeros"), DType::kI32, {num_groups, NumWords(out_features, bits)}},
      {TensorName(name, "scales"), DType::kF16, {num_groups, out_features}},
      {TensorName(name, "g_idx"), DType::kI32, {in_features}},
  };
}

absl::Status AppendGptqLinear(SafetensorsWriter& writer, absl::string_view name,
                              const GptqConfig& config, ConstTensorView codes,
                              ConstTensorView scales, ConstTensorView zeros,
                              absl::Span<const int32_t> g_idx) {
  TW_CHECK(scales.dim(0) == codes.dim(0) && zeros.dim(0) == codes.dim(0));
  TW_CHECK(scales.dim(1) == zeros.dim(1));
  TW_CHECK_EQ(static_cast<int64_t>(g_idx.size()), codes.dim(1));
  for (const int32_t group : g_idx) TW_CHECK(group >= 0 && group < scales.dim(1));
  TW_RETURN_IF_ERROR(AppendCodes(writer, TensorName(name, "qweight"), config.bits, codes));
  TW_RETURN_IF_ERROR(AppendZeros(writer, TensorName(name, "qzeros"), config, zeros));
  TW_RETURN_IF_ERROR(AppendScales(writer, TensorName(name, "scales"), scales));
  return writer.AppendValues(TensorName(name, "g_idx"), g_idx);
}

}  // namespace thinwire
