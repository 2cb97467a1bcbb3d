// What the tests of this folder share.
#pragma once

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "gtest/gtest.h"

namespace thinwire {

// A folder that is removed with its files.
class TempFolder {
 public:
  TempFolder() {
    path_ = (std::filesystem::temp_directory_path() /
             absl::StrCat("thinwire_tokenizer.", getpid(), ".", reinterpret_cast<uintptr_t>(this)))
                .string();
    std::filesystem::create_directories(path_);
  }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;
  ~TempFolder() { std::filesystem::remove_all(path_); }

  const std::string& path() const { return path_; }

  void Write(absl::string_view name, absl::string_view bytes) const {
    std::ofstream file(absl::StrCat(path_, "/", name), std::ios::binary);
    file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    ASSERT_TRUE(file.good());
  }

 private:
  std::string path_;
};

inline std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file.good()) << path;
  return std::string(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
}

}  // namespace thinwire
