#include "runtime/checkpoint/safetensors.h"

#include <algorithm>
#include <array>
#include <limits>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/core/check.h"
#include "kernels/core/status_macros.h"
#include "nlohmann/json.hpp"
#include "runtime/json/json_file.h"

namespace thinwire {
namespace {

using nlohmann::json;

constexpr int64_t kLengthBytes = 8;
constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the format's own limit

struct StoredDType {
  absl::string_view name;
  int bits;
  bool loadable;
  DType dtype;
};

constexpr std::array<StoredDType, 22> kStoredDTypes = {{
    {"F32", 32, true, DType::kF32},   {"F16", 16, true, DType::kF16},
    {"BF16", 16, true, DType::kBF16}, {"I8", 8, true, DType::kI8},
    {"U8", 8, true, DType::kU8},      {"I16", 16, true, DType::kI16},
    {"U16", 16, true, DType::kU16},   {"I32", 32, true, DType::kI32},
    {"I64", 64, true, DType::kI64},   {"F64", 64, false, {}},
    {"U32", 32, false, {}},           {"U64", 64, false, {}},
    {"BOOL", 8, false, {}},           {"C64", 64, false, {}},
    {"F8_E4M3", 8, false, {}},        {"F8_E5M2", 8, false, {}},
    {"F8_E8M0", 8, false, {}},        {"F8_E4M3FNUZ", 8, false, {}},
    {"F8_E5M2FNUZ", 8, false, {}},    {"F6_E2M3", 6, false, {}},
    {"F6_E3M2", 6, false, {}},        {"F4", 4, false, {}},
}};

// Builds the list of tensors while the JSON parser walks the header. A document tree would keep
// only the last of two equal keys. Handlers return false to stop, with the reason in status().
class HeaderReader : public nlohmann::json_sax<json> {
 public:
  HeaderReader(absl::string_view path, int64_t data_begin, int64_t file_size)
      : path_(path), data_begin_(data_begin), file_size_(file_size) {}

  const absl::Status& status() const { return status_; }
  std::vector<TensorInfo> TakeTensors() { return std::move(tensors_); }
  std::map<std::string, std::string> TakeMetadata() { return std::move(metadata_); }

  bool null() override { return Unexpected("null"); }
  bool boolean(bool value) override { return Unexpected(value ? "true" : "false"); }
  bool number_integer(number_integer_t value) override { return Unexpected(absl::StrCat(value)); }
  bool number_float(number_float_t, const string_t& text) override { return Unexpected(text); }
  bool binary(binary_t&) override { return Unexpected("binary data"); }

  bool number_unsigned(number_unsigned_t value) override {
    if (value > uint64_t{std::numeric_limits<int64_t>::max()}) {
      return Unexpected(absl::StrCat(value));
    }
    if (state_ == State::kShape) {
      tensor_.shape.push_back(static_cast<int64_t>(value));
    } else if (state_ == State::kOffsets && num_offsets_ < 2) {
      offsets_[num_offsets_++] = static_cast<int64_t>(value);
    } else {
      return Unexpected(absl::StrCat(value));
    }
    return true;
  }

  bool string(string_t& value) override {
    if (state_ == State::kMetadataValue) {
      metadata_entry_->second = value;
      state_ = State::kMetadata;
      return true;
    }
    if (state_ != State::kDType) return Unexpected(QuotedForMessage(value));
    tensor_.stored_dtype = value;
    state_ = State::kFields;
    return true;
  }

  bool start_object(size_t) override {
    switch (state_) {
      case State::kFile:
        state_ = State::kNames;
        return true;
      case State::kTensor:
        state_ = State::kFields;
        return true;
      case State::kMetadataMap:
        state_ = State::kMetadata;
        return true;
      default:
        return Unexpected("an object");
    }
  }

  bool key(string_t& name) override {
    if (state_ == State::kNames) {
      if (!names_.insert(name).second) {
        return Fail(absl::StrCat("tensor ", QuotedForMessage(name),
                                 ": expected once in the header, found twice"));
      }
      seen_ = {};
      num_offsets_ = 0;
      tensor_ = TensorInfo();
      tensor_.name = name;
      state_ = name == "__metadata__" ? State::kMetadataMap : State::kTensor;
      return true;
    }
    if (state_ == State::kMetadata) {
      const auto [entry, inserted] = metadata_.try_emplace(name);
      metadata_entry_ = entry;
      if (!inserted) {
        return Fail(absl::StrCat("\"__metadata__\": expected each key once, found ",
                                 QuotedForMessage(name), " twice"));
      }
      state_ = State::kMetadataValue;
      return true;
    }
    for (size_t i = 0; i < kFields.size(); ++i) {
      if (name != kFields[i].name) continue;
      if (seen_[i]) return FailTensor(absl::StrCat("expected one \"", name, "\", found two"));
      seen_[i] = true;
      state_ = kFields[i].value;
      return true;
    }
    return FailTensor(absl::StrCat("expected \"dtype\", \"shape\" and \"data_offsets\", found ",
                                   QuotedForMessage(name)));
  }

  bool end_object() override {
    if (state_ == State::kFields) {
      state_ = State::kNames;
      return FinishTensor();
    }
    state_ = state_ == State::kMetadata ? State::kNames : State::kEnd;
    return true;
  }

  bool start_array(size_t) override {
    if (state_ == State::kShapeArray) {
      state_ = State::kShape;
    } else if (state_ == State::kOffsetsArray) {
      state_ = State::kOffsets;
    } else {
      return Unexpected("an array");
    }
    return true;
  }

  bool end_array() override {
    if (state_ == State::kOffsets && num_offsets_ != 2) {
      return Unexpected(absl::StrCat(num_offsets_, " of them"));
    }
    state_ = State::kFields;
    return true;
  }

  bool parse_error(size_t position, const std::string&, const json::exception&) override {
    return Fail(absl::StrCat("the header is not valid JSON at its byte ", position));
  }

 private:
  // What the next event must be, or, for objects and arrays, in which we are.
  enum class State {
    kFile,
    kNames,
    kTensor,
    kFields,
    kDType,
    kShapeArray,
    kShape,
    kOffsetsArray,
    kOffsets,
    kMetadataMap,
    kMetadata,
    kMetadataValue,
    kEnd,
  };

  struct Field {
    const char* name;
    State value;
  };
  static constexpr std::array<Field, 3> kFields = {{
      {"dtype", State::kDType},
      {"shape", State::kShapeArray},
      {"data_offsets", State::kOffsetsArray},
  }};

  bool Fail(absl::string_view text) {
    status_ = absl::InvalidArgumentError(absl::StrCat(path_, ": ", text));
    return false;
  }

  bool FailTensor(absl::string_view text) {
    return Fail(absl::StrCat("tensor ", QuotedForMessage(tensor_.name), ": ", text));
  }

  bool Unexpected(absl::string_view found) {
    switch (state_) {
      case State::kTensor:
        return FailTensor(absl::StrCat("expected an object, found ", found));
      case State::kDType:
        return FailTensor(absl::StrCat("\"dtype\": expected a string, found ", found));
      case State::kShapeArray:
      case State::kShape:
        return FailTensor(
            absl::StrCat("\"shape\": expected an array of integers >= 0, found ", found));
      case State::kOffsetsArray:
      case State::kOffsets:
        return FailTensor(absl::StrCat(
            "\"data_offsets\": expected an array of two integers >= 0, found ", found));
      case State::kMetadataMap:
      case State::kMetadataValue:
        return Fail(absl::StrCat("\"__metadata__\": expected an object of strings, found ", found));
      default:
        return Fail(absl::StrCat("the header: expected an object of tensors, found ", found));
    }
  }

  // Sets size_bytes from dtype and shape. False on overflow and on parts of bytes.
  bool ComputeSize(int bits) {
    int64_t total = bits;
    for (const int64_t size : tensor_.shape) {
      if (__builtin_mul_overflow(total, size, &total)) return false;
    }
    tensor_.size_bytes = total / 8;
    return total % 8 == 0;
  }

  bool FinishTensor() {
    for (size_t i = 0; i < kFields.size(); ++i) {
      if (!seen_[i])
        return FailTensor(absl::StrCat("expected \"", kFields[i].name, "\", found none"));
    }
    const auto* stored =
        std::find_if(kStoredDTypes.begin(), kStoredDTypes.end(),
                     [&](const StoredDType& known) { return known.name == tensor_.stored_dtype; });
    if (stored == kStoredDTypes.end()) {
      return FailTensor(absl::StrCat("\"dtype\": expected one of ",
                                     absl::StrJoin(kStoredDTypes, ", ",
                                                   [](std::string* out, const StoredDType& known) {
                                                     absl::StrAppend(out, known.name);
                                                   }),
                                     ", found ", QuotedForMessage(tensor_.stored_dtype)));
    }
    tensor_.loadable = stored->loadable;
    tensor_.dtype = stored->dtype;
    const std::string offsets = absl::StrCat("[", offsets_[0], ", ", offsets_[1], "]");
    if (!ComputeSize(stored->bits)) {
      return FailTensor(absl::StrCat("expected a shape of whole bytes that fit an int64, found ",
                                     tensor_.DebugString()));
    }
    if (offsets_[0] > offsets_[1]) {
      return FailTensor(absl::StrCat("\"data_offsets\": expected begin <= end, found ", offsets));
    }
    if (offsets_[1] - offsets_[0] != tensor_.size_bytes) {
      return FailTensor(absl::StrCat("expected ", tensor_.size_bytes, " bytes for ",
                                     tensor_.DebugString(), ", found data_offsets ", offsets));
    }
    if (offsets_[1] > file_size_ - data_begin_) {
      status_ = absl::DataLossError(absl::StrCat(
          path_, ": tensor ", QuotedForMessage(tensor_.name), ": expected data_offsets within the ",
          file_size_ - data_begin_, " bytes after the header, found ", offsets));
      return false;
    }
    tensor_.offset = data_begin_ + offsets_[0];
    tensors_.push_back(std::move(tensor_));
    return true;
  }

  const absl::string_view path_;
  const int64_t data_begin_;
  const int64_t file_size_;
  absl::Status status_;
  State state_ = State::kFile;
  absl::flat_hash_set<std::string> names_;
  std::map<std::string, std::string> metadata_;
  std::map<std::string, std::string>::iterator metadata_entry_;  // the one being read
  std::vector<TensorInfo> tensors_;
  TensorInfo tensor_;                    // the one being read
  std::array<bool, 3> seen_ = {};        // which kFields it has
  std::array<int64_t, 2> offsets_ = {};  // from data_begin_
  int num_offsets_ = 0;
};

// Tensors sorted by offset must cover [begin, end) once.
absl::Status CheckCover(absl::Span<const TensorInfo> tensors, int64_t begin, int64_t end,
                        absl::string_view path) {
  int64_t covered = begin;
  const TensorInfo* previous = nullptr;
  for (const TensorInfo& tensor : tensors) {
    if (tensor.offset != covered) {
      return absl::InvalidArgumentError(absl::StrCat(
          path, ": tensor ", QuotedForMessage(tensor.name), ": expected to begin at offset ",
          covered - begin,
          previous == nullptr ? ""
                              : absl::StrCat(", where ", QuotedForMessage(previous->name), " ends"),
          ", found ", tensor.offset - begin, tensor.offset < covered ? " (overlap)" : " (gap)"));
    }
    covered = tensor.offset + tensor.size_bytes;
    previous = &tensor;
  }
  if (covered != end) {
    return absl::DataLossError(absl::StrCat(path, ": expected the file to end after ", covered,
                                            " bytes, with its last tensor, found ", end));
  }
  return absl::OkStatus();
}

}  // namespace

std::string ShapeString(absl::Span<const int64_t> shape) {
  constexpr size_t kMaxDims = 8;
  return absl::StrCat("[", absl::StrJoin(shape.subspan(0, kMaxDims), ", "),
                      shape.size() > kMaxDims ? ", ...]" : "]");
}

absl::string_view StoredDTypeName(DType dtype) {
  for (const StoredDType& known : kStoredDTypes) {
    if (known.loadable && known.dtype == dtype) return known.name;
  }
  TW_CHECK(false);
  return "";
}

std::string TensorInfo::DebugString() const {
  return absl::StrCat(stored_dtype, " ", ShapeString(shape));
}

absl::StatusOr<std::vector<TensorInfo>> ParseSafetensors(
    absl::Span<const std::byte> file, absl::string_view path,
    std::map<std::string, std::string>* metadata) {
  const auto file_size = static_cast<int64_t>(file.size());
  if (file_size < kLengthBytes) {
    return absl::DataLossError(absl::StrCat(path, ": expected at least ", kLengthBytes,
                                            " bytes, the header's length, found ", file_size));
  }
  uint64_t header_size = 0;
  for (int i = 0; i < kLengthBytes; ++i)
    header_size |= std::to_integer<uint64_t>(file[i]) << (8 * i);
  if (header_size == 0 || header_size > kMaxHeaderBytes) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": expected a header of 1 to ",
                                                   kMaxHeaderBytes, " bytes, found ", header_size));
  }
  const int64_t data_begin = kLengthBytes + static_cast<int64_t>(header_size);
  if (data_begin > file_size) {
    return absl::DataLossError(absl::StrCat(path, ": expected a header of ", header_size,
                                            " bytes, found ", file_size - kLengthBytes,
                                            " bytes after its length"));
  }
  const char* begin = reinterpret_cast<const char*>(file.data()) + kLengthBytes;
  const char* end = begin + header_size;
  // The parser skips a byte order mark, and takes a null byte for the end of its input.
  if (*begin != '{' || std::find(begin, end, '\0') != end) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ": expected a header of JSON that begins with '{', found ",
        *begin != '{' ? absl::StrCat("\"", absl::CHexEscape(absl::string_view(begin, 1)), "\"")
                      : "a null byte"));
  }
  HeaderReader reader(path, data_begin, file_size);
  if (!json::sax_parse(begin, end, &reader)) return reader.status();
  std::vector<TensorInfo> tensors = reader.TakeTensors();
  std::sort(tensors.begin(), tensors.end(), [](const TensorInfo& a, const TensorInfo& b) {
    return std::pair(a.offset, a.size_bytes) < std::pair(b.offset, b.size_bytes);
  });
  TW_RETURN_IF_ERROR(CheckCover(tensors, data_begin, file_size, path));
  if (metadata != nullptr) *metadata = reader.TakeMetadata();
  return tensors;
}

absl::StatusOr<SafetensorsFile> SafetensorsFile::Open(const std::string& path) {
  SafetensorsFile file;
  TW_ASSIGN_OR_RETURN(file.file_, MappedFile::Open(path));
  const absl::Span<const std::byte> bytes = file.file_.bytes();
  TW_ASSIGN_OR_RETURN(file.tensors_, ParseSafetensors(bytes, path, &file.metadata_));
  file.file_.DropPages(0, static_cast<int64_t>(bytes.size()));
  return file;
}

}  // namespace thinwire
