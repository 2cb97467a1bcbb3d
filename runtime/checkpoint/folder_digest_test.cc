#include "runtime/checkpoint/folder_digest.h"

#include <filesystem>
#include <fstream>
#include <string>

#include "gtest/gtest.h"

namespace thinwire {
namespace {

class FolderDigestTest : public ::testing::Test {
 protected:
  FolderDigestTest() {
    dir_ = ::testing::TempDir() + "/digest_" +
           ::testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::remove_all(dir_);
    std::filesystem::create_directories(dir_);
  }
  ~FolderDigestTest() override { std::filesystem::remove_all(dir_); }

  void Write(const std::string& name, const std::string& content) {
    std::ofstream(dir_ + "/" + name, std::ios::binary) << content;
  }
  std::string DigestOf(const std::string& name) {
    const auto digests = DigestFolder(dir_).value();
    for (const FileDigest& digest : digests) {
      if (digest.name == name) return digest.digest;
    }
    return "";
  }

  std::string dir_;
};

TEST_F(FolderDigestTest, FilesOfTheModelAreDigestedByName) {
  for (const char* name : {"model.safetensors", "config.json", "tokenizer.json", "notes.txt"}) {
    Write(name, name);
  }
  const auto digests = DigestFolder(dir_).value();
  ASSERT_EQ(digests.size(), 2u);
  EXPECT_EQ(digests[0].name, "config.json");
  EXPECT_EQ(digests[1].name, "model.safetensors");
  EXPECT_EQ(digests[1].digest.size(), 16u);
  EXPECT_NE(digests[0].digest, digests[1].digest);
}

TEST_F(FolderDigestTest, SizeHeadAndTailCount) {
  const std::string name = "model.safetensors";
  std::string content(3 << 20, 'x');
  Write(name, content);
  const std::string before = DigestOf(name);
  EXPECT_EQ(DigestOf(name), before);
  for (const size_t changed : {size_t{0}, size_t{200000}, content.size() - 1}) {
    std::string other = content;
    other[changed] = 'y';
    Write(name, other);
    EXPECT_NE(DigestOf(name), before) << changed;
  }
  Write(name, content + "x");
  EXPECT_NE(DigestOf(name), before);
}

TEST_F(FolderDigestTest, AMissingFolderIsNamed) {
  const absl::Status status = DigestFolder(dir_ + "/none").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_NE(std::string(status.message()).find(dir_ + "/none"), std::string::npos);
}

}  // namespace
}  // namespace thinwire
