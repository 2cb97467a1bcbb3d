#include "runtime/checkpoint/thinwire_file.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/support/safetensors_writer.h"

namespace thinwire {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr char kSha256[] = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

ThinwireFile Sample() {
  return {.scheme = {.weight_bits = 4, .act_bits = 16, .kv_bits = 3},
          .algorithm = "reference",
          .group_size = -1,
          .act_order = false,
          .first_token_exact = false,
          .calibration = {.source = "a \"b\".txt", .sha256 = kSha256, .nsamples = 8, .seqlen = 64},
          .seed = 7,
          .tp = 4,
          .tool_version = "0.1.0"};
}

json SampleJson() {
  return {{"format_version", 1},
          {"tool_version", "0.1.0"},
          {"scheme", "w4a3kv"},
          {"weight_bits", 4},
          {"act_bits", 16},
          {"kv_bits", 3},
          {"group_size", 128},
          {"algorithm", "default"},
          {"tp", 0},
          {"seed", 0}};
}

void ExpectError(const json& value, absl::StatusCode code, const std::string& text) {
  const TestFolder folder;
  const std::string path = folder.Write("thinwire.json", value.dump());
  const absl::Status status = ReadThinwireFile(folder.path()).status();
  EXPECT_EQ(status.code(), code) << status;
  EXPECT_THAT(std::string(status.message()),
              AllOf(::testing::StartsWith(path + ": "), HasSubstr(text)));
}

json With(const char* key, const json& value) {
  json object = SampleJson();
  object[key] = value;
  return object;
}

TEST(ThinwireFileTest, ReadsBackWhatItWrote) {
  const TestFolder folder;
  ASSERT_TRUE(WriteThinwireFile(folder.path(), Sample()).ok());
  EXPECT_EQ(ReadThinwireFile(folder.path()).value(), Sample());
  const ThinwireFile plain = {.tool_version = "x"};
  ASSERT_TRUE(WriteThinwireFile(folder.path(), plain).ok());
  EXPECT_EQ(ReadThinwireFile(folder.path()).value(), plain);
}

TEST(ThinwireFileTest, FormatVersionOneIsPinned) {
  const TestFolder folder;
  ASSERT_TRUE(WriteThinwireFile(folder.path(), Sample()).ok());
  EXPECT_EQ(folder.Read("thinwire.json"), std::string(R"({
  "format_version": 1,
  "tool_version": "0.1.0",
  "scheme": "w4a3kv",
  "weight_bits": 4,
  "act_bits": 16,
  "kv_bits": 3,
  "group_size": -1,
  "algorithm": "reference",
  "act_order": false,
  "first_token_exact": false,
  "tp": 4,
  "seed": 7,
  "calibration": {
    "source": "a \"b\".txt",
    "sha256": ")") + kSha256 + R"(",
    "nsamples": 8,
    "seqlen": 64
  }
}
)");
}

TEST(ThinwireFileTest, LeavesUnknownFieldsAloneAndFillsInDefaults) {
  const TestFolder folder;
  folder.Write("thinwire.json", With("colour", "red").dump());
  const ThinwireFile file = ReadThinwireFile(folder.path()).value();
  EXPECT_TRUE(file.act_order);
  EXPECT_TRUE(file.first_token_exact);
  EXPECT_EQ(file.calibration, CalibrationInfo());
}

TEST(ThinwireFileTest, NewerVersionsAreNotImplemented) {
  ExpectError(With("format_version", 2), absl::StatusCode::kUnimplemented,
              "\"format_version\": expected at most 1, found 2");
  ExpectError(
      With("algorithm", "magic"), absl::StatusCode::kUnimplemented,
      "expected \"default\", \"reference\", \"per-tensor\" or one of vptq's, found \"magic\"");
}

TEST(ThinwireFileTest, BadFieldsAreNamed) {
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  ExpectError(With("format_version", 0), kInvalid, "\"format_version\": expected a positive");
  ExpectError(With("scheme", "w5"), kInvalid, "\"scheme\": expected a scheme such as");
  ExpectError(With("kv_bits", 4), kInvalid,
              "\"kv_bits\": expected 3, as \"scheme\" (w4a3kv) says, found 4");
  ExpectError(With("weight_bits", nullptr), kInvalid, "\"weight_bits\"");
  ExpectError(With("group_size", 0), kInvalid, "\"group_size\": expected a positive integer or -1");
  ExpectError(With("group_size", -2), kInvalid, "\"group_size\"");
  ExpectError(With("tp", -1), kInvalid, "\"tp\": expected an integer of at least 0, found -1");
  ExpectError(With("seed", -1), kInvalid, "\"seed\"");
  ExpectError(With("tool_version", 3), kInvalid, "\"tool_version\": expected a string, found 3");
  ExpectError(With("act_order", 1), kInvalid, "\"act_order\"");
  ExpectError(With("first_token_exact", 1), kInvalid, "\"first_token_exact\"");
  ExpectError(With("calibration", 1), kInvalid, "\"calibration\": expected an object, found 1");
  const json calibration = {{"source", "x"}, {"sha256", "12"}, {"nsamples", 1}, {"seqlen", 1}};
  ExpectError(With("calibration", calibration), kInvalid,
              "\"calibration\": \"sha256\": expected 64 hex digits, found \"12\"");
  ExpectError(json::array(), kInvalid, "expected an object, found an array");
}

TEST(ThinwireFileTest, MissingFilesAndFoldersAreNamed) {
  const TestFolder folder;
  const absl::Status missing = ReadThinwireFile(folder.path()).status();
  EXPECT_EQ(missing.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(missing.message()), HasSubstr(folder.Path("thinwire.json")));
  const absl::Status status = WriteThinwireFile(folder.Path("none"), Sample());
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr(folder.Path("none")));
}

TEST(ThinwireFileTest, TpMustDivideTheBlocks) {
  ThinwireFile file = {.tp = 4};
  for (const int tp : {1, 2, 4}) EXPECT_TRUE(CheckTpAllowed(file, tp, "m").ok());
  const absl::Status status = CheckTpAllowed(file, 8, "m");
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("m: --tp: expected one of 1, 2, 4,"), HasSubstr("found 8")));
  EXPECT_FALSE(CheckTpAllowed(file, 3, "m").ok());
  file.tp = 0;
  for (const int tp : {1, 3, 8}) EXPECT_TRUE(CheckTpAllowed(file, tp, "m").ok());
}

}  // namespace
}  // namespace thinwire
