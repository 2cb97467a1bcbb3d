// Little-endian encoding of plain values and arrays: the control messages between ranks of one job,
// which run the same binary. Not a file format.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace thinwire {

static_assert(std::endian::native == std::endian::little);

class ByteWriter {
 public:
  template <typename T>
  void Put(const T& value) {
    static_assert(std::is_trivially_copyable_v<T>);
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof(T));
  }

  // A count as int64, then the elements.
  template <typename T>
  void PutArray(const std::vector<T>& values) {
    static_assert(std::is_trivially_copyable_v<T>);
    Put(static_cast<int64_t>(values.size()));
    bytes_.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
  }

  void PutString(absl::string_view value) {
    Put(static_cast<int64_t>(value.size()));
    bytes_.append(value.data(), value.size());
  }

  std::string Take() { return std::move(bytes_); }

 private:
  std::string bytes_;
};

// Reads what ByteWriter wrote. A read past the end yields zeros and makes status() an error;
// callers read everything and look once.
class ByteReader {
 public:
  explicit ByteReader(absl::string_view bytes) : bytes_(bytes) {}

  template <typename T>
  T Get() {
    static_assert(std::is_trivially_copyable_v<T>);
    T value = {};
    if (Take(sizeof(T))) std::memcpy(&value, bytes_.data() + offset_ - sizeof(T), sizeof(T));
    return value;
  }

  template <typename T>
  std::vector<T> GetArray() {
    const int64_t count = Get<int64_t>();
    const auto left = static_cast<int64_t>((bytes_.size() - offset_) / sizeof(T));
    if (count < 0 || count > left) {
      failed_ = true;
      return {};
    }
    std::vector<T> values(count);
    if (count > 0) std::memcpy(values.data(), bytes_.data() + offset_, count * sizeof(T));
    offset_ += count * sizeof(T);
    return values;
  }

  std::string GetString() {
    const std::vector<char> chars = GetArray<char>();
    return std::string(chars.begin(), chars.end());
  }

  // OK when all reads fitted and nothing is left.
  absl::Status status() const {
    if (!failed_ && offset_ == bytes_.size()) return absl::OkStatus();
    return absl::InternalError(absl::StrCat("malformed control message of ", bytes_.size(),
                                            " bytes (read ", offset_, ")"));
  }

 private:
  bool Take(size_t size) {
    if (failed_ || bytes_.size() - offset_ < size) {
      failed_ = true;
      return false;
    }
    offset_ += size;
    return true;
  }

  absl::string_view bytes_;
  size_t offset_ = 0;
  bool failed_ = false;
};

}  // namespace thinwire
