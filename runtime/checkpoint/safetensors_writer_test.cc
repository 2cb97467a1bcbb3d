#include "runtime/checkpoint/safetensors_writer.h"

#include <sys/resource.h>

#include <csignal>
#include <filesystem>
#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/checkpoint/safetensors.h"
#include "tests/support/safetensors_writer.h"

namespace thinwire {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

template <typename T>
absl::Span<const T> Values(const std::vector<T>& values) {
  return absl::MakeConstSpan(values);
}

int NumFiles(const TestFolder& folder) {
  const std::filesystem::directory_iterator files(folder.path());
  return static_cast<int>(std::distance(begin(files), end(files)));
}

TEST(SafetensorsWriterTest, BytesAreThoseOfTheFormat) {
  const TestFolder folder;
  SafetensorsWriter writer =
      SafetensorsWriter::Create(folder.Path("m.safetensors"),
                                {{"a", DType::kI32, {2}}, {"b", DType::kU8, {1, 3}}},
                                {{"format", "pt"}})
          .value();
  ASSERT_TRUE(writer.AppendValues("a", Values<int32_t>({1, -2})).ok());
  ASSERT_TRUE(writer.AppendValues("b", Values<uint8_t>({7, 8, 9})).ok());
  EXPECT_FALSE(std::filesystem::exists(folder.Path("m.safetensors")));
  ASSERT_TRUE(writer.Commit().ok());
  std::string header =
      R"({"__metadata__":{"format":"pt"},"a":{"dtype":"I32","shape":[2],"data_offsets":[0,8]},)"
      R"("b":{"dtype":"U8","shape":[1,3],"data_offsets":[8,11]}})";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  const std::string data("\1\0\0\0\xfe\xff\xff\xff\7\10\11", 11);
  EXPECT_EQ(folder.Read("m.safetensors"), SafetensorsBytes(header, data));
  EXPECT_EQ(NumFiles(folder), 1);
}

TEST(SafetensorsWriterTest, TakesTensorsInPiecesAndSkipsEmptyOnes) {
  const TestFolder folder;
  const std::string path = folder.Path("m.safetensors");
  SafetensorsWriter writer = SafetensorsWriter::Create(path, {{"none", DType::kF16, {0, 4}},
                                                              {"x \"y\"\n", DType::kF32, {3}},
                                                              {"also none", DType::kU8, {0}},
                                                              {"z", DType::kI64, {}}})
                                 .value();
  ASSERT_TRUE(writer.AppendValues("x \"y\"\n", Values<float>({1, 2})).ok());
  ASSERT_TRUE(writer.AppendValues("x \"y\"\n", Values<float>({})).ok());
  ASSERT_TRUE(writer.AppendValues("x \"y\"\n", Values<float>({3})).ok());
  ASSERT_TRUE(writer.AppendValues("z", Values<int64_t>({-1})).ok());
  ASSERT_TRUE(writer.Commit().ok());
  const SafetensorsFile file = SafetensorsFile::Open(path).value();
  EXPECT_TRUE(file.metadata().empty());
  ASSERT_EQ(file.tensors().size(), 4u);
  const TensorInfo& x = file.tensors()[1];
  EXPECT_EQ(x.name, "x \"y\"\n");
  EXPECT_EQ(x.offset % 8, 0);
  std::vector<float> values(3);
  std::memcpy(values.data(), file.file().bytes().data() + x.offset, x.size_bytes);
  EXPECT_THAT(values, ElementsAre(1, 2, 3));
}

TEST(SafetensorsWriterTest, MetadataReadsBack) {
  const TestFolder folder;
  const std::map<std::string, std::string> metadata = {{"a", "1"}, {"b \"c\"", "\\ \n \xc3\xa9"}};
  SafetensorsWriter writer =
      SafetensorsWriter::Create(folder.Path("m.safetensors"), {}, metadata).value();
  ASSERT_TRUE(writer.Commit().ok());
  EXPECT_EQ(SafetensorsFile::Open(folder.Path("m.safetensors"))->metadata(), metadata);
}

TEST(SafetensorsWriterTest, WithoutCommitTheOldFileStays) {
  const TestFolder folder;
  const std::string path = folder.Write("m.safetensors", "old");
  {
    SafetensorsWriter writer = SafetensorsWriter::Create(path, {{"a", DType::kI32, {2}}}).value();
    ASSERT_TRUE(writer.AppendValues("a", Values<int32_t>({1})).ok());
  }
  EXPECT_EQ(folder.Read("m.safetensors"), "old");
  EXPECT_EQ(NumFiles(folder), 1);
}

TEST(SafetensorsWriterTest, RefusesATensorTwiceAndNamesTheFolder) {
  const TestFolder folder;
  const std::string path = folder.Path("m.safetensors");
  const absl::Status twice =
      SafetensorsWriter::Create(path, {{"a", DType::kI32, {2}}, {"a", DType::kI32, {2}}}).status();
  EXPECT_EQ(twice.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(twice.message()), AllOf(HasSubstr(path), HasSubstr("found \"a\"")));
  EXPECT_FALSE(SafetensorsWriter::Create(path, {{"__metadata__", DType::kI32, {2}}}).ok());
  const absl::Status missing =
      SafetensorsWriter::Create(folder.Path("none/m.safetensors"), {}).status();
  EXPECT_EQ(missing.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(missing.message()), HasSubstr("none/m.safetensors"));
  EXPECT_EQ(NumFiles(folder), 0);
}

TEST(SafetensorsWriterTest, AFullDiskNamesFileAndTensor) {
  if (!std::filesystem::exists("/dev/full")) GTEST_SKIP() << "no /dev/full";
  const absl::Status status = SafetensorsWriter::Create("/dev/full", {}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("/dev/full"));

  // A file that may not grow: the write fails in the middle of the tensor.
  const TestFolder folder;
  const std::string path = folder.Path("m.safetensors");
  struct rlimit old_limit;
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &old_limit), 0);
  const auto old_handler = signal(SIGXFSZ, SIG_IGN);
  const struct rlimit limit = {4096, old_limit.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
  absl::Status written;
  {
    SafetensorsWriter writer =
        SafetensorsWriter::Create(path, {{"a", DType::kU8, {10000}}}).value();
    written = writer.AppendValues("a", Values(std::vector<uint8_t>(10000)));
  }
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &old_limit), 0);
  signal(SIGXFSZ, old_handler);
  EXPECT_FALSE(written.ok());
  EXPECT_THAT(std::string(written.message()), AllOf(HasSubstr(path), HasSubstr("tensor \"a\"")));
  EXPECT_EQ(NumFiles(folder), 0);
}

TEST(SafetensorsWriterDeathTest, ChecksOrderAndSizeOfTensors) {
  const TestFolder folder;
  const std::string path = folder.Path("m.safetensors");
  const std::vector<TensorSpec> specs = {{"a", DType::kU8, {2}}, {"b", DType::kU8, {2}}};
  SafetensorsWriter writer = SafetensorsWriter::Create(path, specs).value();
  const std::vector<uint8_t> three(3);
  EXPECT_DEATH((void)writer.AppendValues("b", Values(three)), "check failed");
  EXPECT_DEATH((void)writer.AppendValues("a", Values(three)), "check failed");
  EXPECT_DEATH((void)writer.Commit(), "check failed");
}

}  // namespace
}  // namespace thinwire
