#include "runtime/checkpoint/vptq_tensors.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/convert/convert.h"
#include "kernels/core/status_macros.h"
#include "kernels/vptq_linear/vptq_codes.h"
#include "runtime/json/json_file.h"

namespace thinwire {
namespace {

constexpr int64_t kScratchBytes = int64_t{4} << 20;

std::string Context(const Checkpoint& checkpoint, absl::string_view tensor) {
  return absl::StrCat(checkpoint.PathOf(tensor), ": tensor ", QuotedForMessage(tensor));
}

// 16 bits that are an unsigned index, whatever they are called.
bool IsIndex16(DType dtype) {
  return dtype == DType::kI16 || dtype == DType::kU16 || dtype == DType::kF16;
}

enum class Kind { kPacked, kIndex16, kFloat };

absl::Status CheckTensor(const Checkpoint& checkpoint, const std::string& tensor, bool wanted,
                         Kind kind, const std::vector<int64_t>& shape) {
  const TensorInfo* info = checkpoint.Find(tensor);
  if (!wanted) {
    if (info == nullptr) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat(Context(checkpoint, tensor),
                                                   ": expected none, as config.json says, found ",
                                                   info->DebugString()));
  }
  if (info == nullptr) {
    return absl::NotFoundError(absl::StrCat(checkpoint.dir(), ": expected tensor ",
                                            QuotedForMessage(tensor), " ", ShapeString(shape),
                                            ", found none"));
  }
  const bool right = info->loadable && info->shape == shape &&
                     (kind == Kind::kPacked    ? info->dtype == DType::kI32
                      : kind == Kind::kIndex16 ? IsIndex16(info->dtype)
                                               : IsFloat(info->dtype));
  if (right) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(Context(checkpoint, tensor), ": expected ",
                   kind == Kind::kPacked    ? "I32 "
                   : kind == Kind::kIndex16 ? "I16 "
                                            : "floats ",
                   ShapeString(shape), ", as config.json says, found ", info->DebugString()));
}

absl::Status ReadFloats(const Checkpoint& checkpoint, const std::string& tensor, int64_t size,
                        std::vector<float>& values) {
  values.resize(static_cast<size_t>(size));
  TW_RETURN_IF_ERROR(
      checkpoint.Read(tensor, {size}, {}, TensorView(values.data(), DType::kF32, {size})));
  for (int64_t i = 0; i < size; ++i) {
    if (std::isfinite(values[i])) continue;
    return absl::InvalidArgumentError(absl::StrCat(Context(checkpoint, tensor),
                                                   ": expected finite numbers, found ", values[i],
                                                   " of input ", i));
  }
  return absl::OkStatus();
}

}  // namespace

struct VptqLinear::Source {
  std::string indices;
  std::string residuals;  // where indices are not packed and there is one
  int64_t num_groups = 1;
  int64_t group = 0;
  int64_t num_vectors = 0;  // of the whole layer
  int64_t size = 0;         // columns of the group
  int64_t first = 0;        // position of the first
  bool packed = false;
  int index_bits = 0;
  int residual_bits = 0;
};

std::string VptqLinear::TensorName(absl::string_view part) const {
  return absl::StrCat(name_, ".", part);
}

absl::StatusOr<VptqLinear> VptqLinear::Open(const Checkpoint* checkpoint, absl::string_view name,
                                            int64_t out_features, int64_t in_features,
                                            const VptqLayerConfig& config) {
  VptqLinear linear;
  linear.checkpoint_ = checkpoint;
  linear.name_ = std::string(name);
  linear.config_ = config;
  linear.out_features_ = out_features;
  linear.in_features_ = in_features;
  const int64_t rest = in_features - config.outlier_size;
  const bool sizes = (config.in_features == 0 || config.in_features == in_features) &&
                     (config.out_features == 0 || config.out_features == out_features);
  if (!sizes || rest < 0 || rest % config.num_groups != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        checkpoint->dir(), "/config.json: \"quantization_config\": ", QuotedForMessage(name),
        ": expected ", in_features, " inputs in ", config.num_groups, " equal groups and ",
        config.outlier_size, " outliers, and ", out_features, " outputs, found in_features ",
        config.in_features, ", out_features ", config.out_features));
  }
  linear.group_size_ = rest / config.num_groups;
  if (std::max(config.length, config.outlier_length) > kMaxVptqLength) {
    return absl::UnimplementedError(absl::StrCat(
        checkpoint->dir(), "/config.json: \"quantization_config\": ", QuotedForMessage(name),
        ": vectors of at most ", kMaxVptqLength, " are supported, found ",
        std::max(config.length, config.outlier_length)));
  }
  TW_RETURN_IF_ERROR(linear.CheckTensors());
  TW_RETURN_IF_ERROR(linear.ReadColumns());
  return linear;
}

absl::Status VptqLinear::CheckTensors() const {
  const VptqLayerConfig& c = config_;
  const int64_t groups = c.num_groups;
  const int64_t rows = (out_features_ + c.length - 1) / c.length;
  const int64_t words = c.packed ? (group_size_ * c.code_bits() + 31) / 32 : group_size_;
  const auto check = [&](absl::string_view part, bool wanted, Kind kind,
                         const std::vector<int64_t>& shape) {
    return CheckTensor(*checkpoint_, TensorName(part), wanted, kind, shape);
  };
  const auto book = [](int bits, int64_t length) { return (int64_t{1} << bits) * length; };
  TW_RETURN_IF_ERROR(
      check("indices", true, c.packed ? Kind::kPacked : Kind::kIndex16, {groups, rows, words}));
  TW_RETURN_IF_ERROR(
      check("res_indices", c.residual && !c.packed, Kind::kIndex16, {groups, rows, words}));
  TW_RETURN_IF_ERROR(
      check("centroids.weight", true, Kind::kFloat, {groups, book(c.index_bits, c.length)}));
  TW_RETURN_IF_ERROR(check("res_centroids.weight", c.residual, Kind::kFloat,
                           {groups, book(c.residual_bits, c.length)}));
  TW_RETURN_IF_ERROR(check("weight_scale", c.norm, Kind::kFloat, {in_features_}));
  TW_RETURN_IF_ERROR(check("weight_bias", c.norm, Kind::kFloat, {in_features_}));
  const bool outliers = c.outlier_size > 0;
  const int64_t outlier_rows =
      outliers ? (out_features_ + c.outlier_length - 1) / c.outlier_length : 0;
  TW_RETURN_IF_ERROR(
      check("outlier_indices", outliers, Kind::kIndex16, {1, outlier_rows, c.outlier_size}));
  TW_RETURN_IF_ERROR(check("outlier_centroids.weight", outliers, Kind::kFloat,
                           {1, book(c.outlier_bits, c.outlier_length)}));
  const DType dtype = checkpoint_->Find(TensorName("centroids.weight"))->dtype;
  for (const char* part : {"res_centroids.weight", "outlier_centroids.weight"}) {
    const TensorInfo* other = checkpoint_->Find(TensorName(part));
    if (other == nullptr || other->dtype == dtype) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(Context(*checkpoint_, TensorName(part)), ": expected ", StoredDTypeName(dtype),
                     " as the other centroids, found ", other->DebugString()));
  }
  return absl::OkStatus();
}

absl::Status VptqLinear::ReadColumns() {
  const int64_t in = in_features_;
  if (config_.norm) {
    TW_RETURN_IF_ERROR(ReadFloats(*checkpoint_, TensorName("weight_scale"), in, scale_));
    TW_RETURN_IF_ERROR(ReadFloats(*checkpoint_, TensorName("weight_bias"), in, offset_));
  }
  perm_.resize(static_cast<size_t>(in));
  std::iota(perm_.begin(), perm_.end(), 0);
  const std::string tensor = TensorName("perm");
  const TensorInfo* info = checkpoint_->Find(tensor);
  if (!config_.perm) return CheckTensor(*checkpoint_, tensor, false, Kind::kIndex16, {in});
  if (info != nullptr && info->loadable && info->dtype == DType::kI64) {
    std::vector<int64_t> wide(static_cast<size_t>(in));
    TW_RETURN_IF_ERROR(
        checkpoint_->Read(tensor, {in}, {}, TensorView(wide.data(), DType::kI64, {in})));
    for (int64_t p = 0; p < in; ++p) {
      perm_[p] = static_cast<int32_t>(std::clamp<int64_t>(wide[p], -1, in));
    }
  } else {
    TW_RETURN_IF_ERROR(CheckTensor(*checkpoint_, tensor, true, Kind::kIndex16, {in}));
    std::vector<uint16_t> narrow(static_cast<size_t>(in));
    TW_RETURN_IF_ERROR(
        checkpoint_->Read(tensor, {in}, {}, TensorView(narrow.data(), info->dtype, {in})));
    std::copy(narrow.begin(), narrow.end(), perm_.begin());
  }
  std::vector<bool> seen(static_cast<size_t>(in), false);
  for (int64_t p = 0; p < in; ++p) {
    if (perm_[p] < 0 || perm_[p] >= in || seen[perm_[p]]) {
      return absl::InvalidArgumentError(
          absl::StrCat(Context(*checkpoint_, tensor), ": expected each input of [0, ", in,
                       ") once, found ", perm_[p], " at position ", p));
    }
    seen[perm_[p]] = true;
  }
  return absl::OkStatus();
}

absl::StatusOr<Tensor> VptqLinear::ReadBook(absl::string_view part, int64_t group,
                                            int64_t num_groups, int bits, int length) const {
  const std::string tensor = TensorName(part);
  const DType dtype = checkpoint_->Find(tensor)->dtype;
  const int64_t count = int64_t{1} << bits;
  const int64_t stride = VptqStride(length);
  std::vector<float> flat(static_cast<size_t>(count * length));
  TW_RETURN_IF_ERROR(checkpoint_->Read(tensor, {num_groups, count * length},
                                       {.rows = Range{group, group + 1}},
                                       TensorView(flat.data(), DType::kF32, {1, count * length})));
  TW_ASSIGN_OR_RETURN(Tensor book, Tensor::Allocate(dtype, {count, stride}, Device::Cpu()));
  std::vector<float> padded(static_cast<size_t>(stride), 0.0f);
  for (int64_t c = 0; c < count; ++c) {
    for (int i = 0; i < length; ++i) {
      padded[i] = flat[c * length + i];
      if (!std::isfinite(padded[i])) {
        return absl::InvalidArgumentError(
            absl::StrCat(Context(*checkpoint_, tensor), ": expected finite centroids, found ",
                         padded[i], " in centroid ", c, " of group ", group));
      }
    }
    ConvertFromFloat(padded.data(), book.mutable_view().Rows(c, 1).mutable_raw(), dtype, stride);
  }
  return book;
}

absl::Status VptqLinear::ReadCodes(const Source& source, Range vectors,
                                   const std::vector<int64_t>& positions, Tensor& codes) const {
  const auto count = static_cast<int64_t>(positions.size());
  const int bits = source.index_bits + source.residual_bits;
  const int64_t row_bytes = VptqRowBytes(count, bits);
  const int64_t bytes = VptqCodeBytes(vectors.size(), count, bits);
  TW_ASSIGN_OR_RETURN(codes, Tensor::Allocate(DType::kU8, {bytes}, Device::Cpu()));
  auto* const out = codes.mutable_view().mutable_data<uint8_t>();
  std::memset(out, 0, static_cast<size_t>(bytes));
  // Of each row, words from the first to the last that is needed.
  const int unit_bits = source.packed ? 32 : 16;
  const int step = source.packed ? bits : 16;
  const auto ends = std::minmax_element(positions.begin(), positions.end());
  const Range units = {*ends.first * step / unit_bits,
                       ((*ends.second + 1) * step + unit_bits - 1) / unit_bits};
  const int64_t all_units = (source.size * step + unit_bits - 1) / unit_bits;
  const int64_t raw_bytes = units.size() * unit_bits / 8;
  const int64_t block = std::max<int64_t>(1, kScratchBytes / std::max<int64_t>(1, raw_bytes));
  std::vector<uint8_t> raw(
      static_cast<size_t>(std::min(block, vectors.size()) * raw_bytes + kVptqCodeSlack));
  std::vector<uint8_t> more(source.residuals.empty() ? 0 : raw.size());
  const auto read = [&](const std::string& tensor, Range rows, std::vector<uint8_t>& to) {
    const DType dtype = checkpoint_->Find(tensor)->dtype;
    return checkpoint_->ReadPlane(tensor, {source.num_groups, source.num_vectors, all_units},
                                  source.group, {.rows = rows, .columns = units},
                                  TensorView(to.data(), dtype, {rows.size(), units.size()}));
  };
  const auto check = [&](const std::string& tensor, int64_t index, int of_bits, int64_t row,
                         int64_t position) -> absl::Status {
    if (index < int64_t{1} << of_bits) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat(
        Context(*checkpoint_, tensor), ": expected indices below ", int64_t{1} << of_bits,
        ", the number of centroids, found ", index, " in row ", row, ", position ", position));
  };
  // Columns side by side whose first begins at a byte: rows are copied as they are.
  const int64_t first_bit = *ends.first * step - units.begin * unit_bits;
  const bool copied =
      source.packed && *ends.second - *ends.first + 1 == count && first_bit % 8 == 0;
  const int64_t last_bits = count * bits % 8;  // of the last byte, where it is not whole
  for (int64_t first = vectors.begin; first < vectors.end; first += block) {
    const Range rows = {first, std::min(vectors.end, first + block)};
    TW_RETURN_IF_ERROR(read(source.indices, rows, raw));
    if (!source.residuals.empty()) TW_RETURN_IF_ERROR(read(source.residuals, rows, more));
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      const uint8_t* const from = raw.data() + (row - rows.begin) * raw_bytes;
      const uint8_t* const from_more = more.data() + (row - rows.begin) * raw_bytes;
      uint8_t* const to = out + (row - vectors.begin) * row_bytes;
      if (copied) {
        const int64_t copy_bytes = (count * bits + 7) / 8;
        std::memcpy(to, from + first_bit / 8, static_cast<size_t>(copy_bytes));
        if (last_bits > 0) to[copy_bytes - 1] &= static_cast<uint8_t>((1 << last_bits) - 1);
        continue;
      }
      for (int64_t j = 0; j < count; ++j) {
        const int64_t at = positions[j] * step - units.begin * unit_bits;
        int64_t code = VptqField(VptqCodeAt(from, at), 0, step);
        if (!source.packed) {
          TW_RETURN_IF_ERROR(check(source.indices, code, source.index_bits, row, positions[j]));
          if (!source.residuals.empty()) {
            const int64_t residual = VptqField(VptqCodeAt(from_more, at), 0, step);
            TW_RETURN_IF_ERROR(
                check(source.residuals, residual, source.residual_bits, row, positions[j]));
            code |= residual << source.index_bits;
          }
        }
        SetVptqCode(to, j * bits, static_cast<uint64_t>(code));
      }
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<VptqWeights> VptqLinear::ReadBlock(Range rows, Range columns) const {
  TW_CHECK(rows.begin >= 0 && rows.begin <= rows.end && rows.end <= out_features_);
  TW_CHECK(columns.begin >= 0 && columns.begin <= columns.end && columns.end <= in_features_);
  std::vector<VptqPart> parts;
  std::vector<int32_t> order;
  std::vector<float> scale, offset;
  const auto add_part = [&](int length, int bits, int residual_bits) -> VptqPart& {
    VptqPart& part = parts.emplace_back();
    part.length = length;
    part.skip = static_cast<int>(rows.begin % length);
    part.index_bits = bits;
    part.residual_bits = residual_bits;
    return part;
  };
  // Adds the columns of a group that are the rank's; true if there are any.
  const auto add_group = [&](VptqPart& part, const Source& source) -> absl::StatusOr<bool> {
    std::vector<int64_t> positions;
    for (int64_t j = 0; j < source.size; ++j) {
      const int32_t column = perm_[source.first + j];
      if (column < columns.begin || column >= columns.end) continue;
      positions.push_back(j);
      order.push_back(static_cast<int32_t>(column - columns.begin));
      if (!scale_.empty()) scale.push_back(scale_[column]);
      if (!offset_.empty()) offset.push_back(offset_[column]);
    }
    if (positions.empty()) return false;
    const int64_t first = rows.begin / part.length;
    VptqGroup& group = part.groups.emplace_back();
    group.num_columns = static_cast<int64_t>(positions.size());
    TW_RETURN_IF_ERROR(
        ReadCodes(source, {first, first + part.num_vectors(rows.size())}, positions, group.codes));
    return true;
  };
  if (config_.outlier_size > 0) {
    const int length = config_.outlier_length;
    VptqPart& part = add_part(length, config_.outlier_bits, 0);
    TW_ASSIGN_OR_RETURN(const bool any,
                        add_group(part, {.indices = TensorName("outlier_indices"),
                                         .num_vectors = (out_features_ + length - 1) / length,
                                         .size = config_.outlier_size,
                                         .index_bits = config_.outlier_bits}));
    if (any) {
      TW_ASSIGN_OR_RETURN(part.groups.back().centroids,
                          ReadBook("outlier_centroids.weight", 0, 1, config_.outlier_bits, length));
    }
  }
  const int length = config_.length;
  VptqPart& part = add_part(length, config_.index_bits, config_.residual_bits);
  for (int64_t g = 0; g < config_.num_groups; ++g) {
    const bool apart = config_.residual && !config_.packed;
    TW_ASSIGN_OR_RETURN(const bool any,
                        add_group(part, {.indices = TensorName("indices"),
                                         .residuals = apart ? TensorName("res_indices") : "",
                                         .num_groups = config_.num_groups,
                                         .group = g,
                                         .num_vectors = (out_features_ + length - 1) / length,
                                         .size = group_size_,
                                         .first = config_.outlier_size + g * group_size_,
                                         .packed = config_.packed,
                                         .index_bits = config_.index_bits,
                                         .residual_bits = config_.residual_bits}));
    if (!any) continue;
    VptqGroup& group = part.groups.back();
    TW_ASSIGN_OR_RETURN(group.centroids, ReadBook("centroids.weight", g, config_.num_groups,
                                                  config_.index_bits, length));
    if (!config_.residual) continue;
    TW_ASSIGN_OR_RETURN(group.residual, ReadBook("res_centroids.weight", g, config_.num_groups,
                                                 config_.residual_bits, length));
  }
  absl::StatusOr<VptqWeights> weights = VptqWeights::Create(
      rows.size(), std::move(parts), std::move(order), std::move(scale), std::move(offset));
  if (!weights.ok())
    return Annotate(weights.status(), absl::StrCat(checkpoint_->dir(), ": ", name_));
  return weights;
}

}  // namespace thinwire
