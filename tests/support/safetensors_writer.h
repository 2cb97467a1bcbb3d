// Model folders for tests: a temporary folder, and safetensors files in it.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace thinwire {

// A tensor to write. `dtype` as safetensors spells it ("F16"); `bytes` little-endian, row-major.
struct TestTensor {
  std::string name;
  std::string dtype;
  std::vector<int64_t> shape;
  std::string bytes;
};

// The memory of `values`, as TestTensor::bytes takes it.
template <typename T>
std::string BytesOf(const std::vector<T>& values) {
  std::string bytes(values.size() * sizeof(T), '\0');
  if (!values.empty()) std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

// A safetensors file with any text as its header: the length, the header, the data.
std::string SafetensorsBytes(absl::string_view header, absl::string_view data);

// A safetensors file of `tensors` in this order, one after the other.
std::string SafetensorsBytes(absl::Span<const TestTensor> tensors);

// A temporary folder, empty at first and removed with everything in it. Aborts when the system
// refuses.
class TestFolder {
 public:
  TestFolder();
  TestFolder(const TestFolder&) = delete;
  TestFolder& operator=(const TestFolder&) = delete;
  ~TestFolder();

  const std::string& path() const { return path_; }
  std::string Path(absl::string_view name) const;

  // Creates or replaces the file and returns its path.
  std::string Write(absl::string_view name, absl::string_view bytes) const;

  // The bytes of a file that is there.
  std::string Read(absl::string_view name) const;

 private:
  std::string path_;
};

}  // namespace thinwire
