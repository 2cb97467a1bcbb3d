#include "tests/support/safetensors_writer.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/core/check.h"

namespace thinwire {

std::string SafetensorsBytes(absl::string_view header, absl::string_view data) {
  std::string length(8, '\0');
  for (int i = 0; i < 8; ++i) length[i] = static_cast<char>(uint64_t{header.size()} >> (8 * i));
  return absl::StrCat(length, header, data);
}

std::string SafetensorsBytes(absl::Span<const TestTensor> tensors) {
  std::string header = "{";
  std::string data;
  for (const TestTensor& tensor : tensors) {
    absl::StrAppend(&header, header.size() > 1 ? "," : "", "\"", tensor.name, "\":{\"dtype\":\"",
                    tensor.dtype, "\",\"shape\":[", absl::StrJoin(tensor.shape, ","),
                    "],\"data_offsets\":[", data.size(), ",", data.size() + tensor.bytes.size(),
                    "]}");
    data += tensor.bytes;
  }
  header += "}";
  return SafetensorsBytes(header, data);
}

TestFolder::TestFolder() {
  path_ = (std::filesystem::temp_directory_path() / "thinwire_test.XXXXXX").string();
  TW_CHECK(mkdtemp(path_.data()) != nullptr);
}

TestFolder::~TestFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

std::string TestFolder::Path(absl::string_view name) const {
  return absl::StrCat(path_, "/", name);
}

std::string TestFolder::Write(absl::string_view name, absl::string_view bytes) const {
  const std::string path = Path(name);
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  file.close();
  TW_CHECK(!file.fail());
  return path;
}

std::string TestFolder::Read(absl::string_view name) const {
  std::ifstream file(Path(name), std::ios::binary);
  TW_CHECK(file.good());
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

}  // namespace thinwire
