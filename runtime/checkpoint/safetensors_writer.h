// Writes a safetensors file of any size from tensors that come one after the other.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "kernels/core/atomic_file.h"
#include "kernels/core/dtype.h"

namespace thinwire {

struct TensorSpec {
  std::string name;
  DType dtype = DType::kF32;  // not a packed one: safetensors has none of 4 or 3 bits
  std::vector<int64_t> shape;
};

// Bytes of the tensor.
int64_t TensorBytes(const TensorSpec& spec);

// Move-only. The file appears under its name with Commit(); without it nothing is left behind.
class SafetensorsWriter {
 public:
  // Writes the header: metadata by key, then `tensors` in this order, padded with spaces so that
  // the data begin at a multiple of 8. Tensors lie without gaps, so a reader that wants them
  // aligned needs those of larger elements first, or sizes that keep the next one aligned. Errors
  // name `path`: those of AtomicFile; InvalidArgument for a name twice or a header above the
  // format's 100 MB. Names must be UTF-8.
  static absl::StatusOr<SafetensorsWriter> Create(
      const std::string& path, std::vector<TensorSpec> tensors,
      const std::map<std::string, std::string>& metadata = {});

  // The next bytes of tensor `name`, little-endian and row-major: any part of what is left of it,
  // but tensors in the order in which they were declared. ResourceExhausted when the disk is full;
  // every error names path and tensor.
  absl::Status Append(absl::string_view name, absl::Span<const std::byte> bytes);

  // Bytes of a tensor in memory.
  template <typename T>
  absl::Status AppendValues(absl::string_view name, absl::Span<const T> values) {
    return Append(name, absl::MakeConstSpan(reinterpret_cast<const std::byte*>(values.data()),
                                            values.size() * sizeof(T)));
  }

  // All tensors must be complete. No call may follow.
  absl::Status Commit();

 private:
  SafetensorsWriter(AtomicFile file, std::string path, std::vector<TensorSpec> tensors);

  // Steps over tensors that have all their bytes.
  void SkipComplete();

  AtomicFile file_;
  std::string path_;
  std::vector<TensorSpec> tensors_;
  size_t next_ = 0;      // the tensor being written
  int64_t written_ = 0;  // bytes of it
};

}  // namespace thinwire
