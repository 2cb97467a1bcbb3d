#include "runtime/checkpoint/vptq_tensors.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/core/status_macros.h"
#include "nlohmann/json.hpp"
#include "runtime/checkpoint/model_config.h"
#include "runtime/json/json_file.h"
#include "tests/support/safetensors_writer.h"

namespace thinwire {
namespace {

using ::testing::HasSubstr;

// Folders that tests/support/vptq_folders.py wrote.
class VptqTensorsTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    written_ = new TestFolder;
    const std::string command =
        absl::StrCat(THINWIRE_PYTHON, " -B ", THINWIRE_VPTQ_FOLDERS, " ", written_->path());
    ASSERT_EQ(std::system(command.c_str()), 0) << command;
  }
  static void TearDownTestSuite() { delete written_; }

  static std::vector<std::string> Folders(absl::string_view prefix) {
    std::vector<std::string> found;
    for (const auto& entry : std::filesystem::directory_iterator(written_->path())) {
      if (absl::StartsWith(entry.path().filename().string(), prefix)) {
        found.push_back(entry.path().string());
      }
    }
    std::sort(found.begin(), found.end());
    return found;
  }

  static TestFolder* written_;
};

TestFolder* VptqTensorsTest::written_ = nullptr;

struct Case {
  nlohmann::json json;
  std::string module;
  int64_t out = 0, in = 0;
};

Case ReadCase(const std::string& folder) {
  Case c;
  c.json = ReadJsonFile(folder + "/case.json").value();
  c.module = c.json["module"].get<std::string>();
  c.out = c.json["out"].get<int64_t>();
  c.in = c.json["in"].get<int64_t>();
  return c;
}

absl::StatusOr<VptqWeights> ReadBlock(const std::string& folder, const Case& c, Range rows,
                                      Range columns) {
  TW_ASSIGN_OR_RETURN(const ModelConfig config, LoadModelConfig(folder));
  TW_ASSIGN_OR_RETURN(const Checkpoint checkpoint, Checkpoint::Open(folder));
  const VptqLayerConfig* layer = config.vptq->Find(c.module);
  if (layer == nullptr) return absl::NotFoundError(c.module);
  TW_ASSIGN_OR_RETURN(const VptqLinear linear,
                      VptqLinear::Open(&checkpoint, c.module, c.out, c.in, *layer));
  return linear.ReadBlock(rows, columns);
}

void ExpectBlock(const std::string& folder, const Case& c, const std::vector<float>& expected,
                 Range rows, Range columns) {
  const absl::StatusOr<VptqWeights> block = ReadBlock(folder, c, rows, columns);
  ASSERT_TRUE(block.ok()) << block.status();
  ASSERT_EQ(block->out_features(), rows.size());
  ASSERT_EQ(block->in_features(), columns.size());
  std::vector<float> row(static_cast<size_t>(columns.size()));
  for (int64_t o = 0; o < rows.size(); ++o) {
    block->DequantizeRow(o, absl::MakeSpan(row));
    const float* want = expected.data() + (rows.begin + o) * c.in + columns.begin;
    ASSERT_TRUE(row.empty() || std::memcmp(row.data(), want, row.size() * sizeof(float)) == 0)
        << "output " << rows.begin + o << " of [" << rows.begin << ", " << rows.end
        << "), inputs from " << columns.begin;
  }
}

TEST_F(VptqTensorsTest, EveryCombinationIsBitForBitWhatTheFormatMeans) {
  const std::vector<std::string> folders = Folders("good-");
  ASSERT_EQ(folders.size(), 288u);
  std::mt19937 random(1);
  for (const std::string& folder : folders) {
    const Case c = ReadCase(folder);
    SCOPED_TRACE(folder + ": " + c.json["spec"].get<std::string>());
    const std::string bytes = written_->Read(
        absl::StrCat(std::filesystem::path(folder).filename().string(), "/expected.bin"));
    std::vector<float> expected(static_cast<size_t>(c.out * c.in));
    ASSERT_EQ(bytes.size(), expected.size() * sizeof(float));
    std::memcpy(expected.data(), bytes.data(), bytes.size());
    ASSERT_NO_FATAL_FAILURE(ExpectBlock(folder, c, expected, {0, c.out}, {0, c.in}));
    // As ranks cut it: vectors straddle the ends.
    ASSERT_NO_FATAL_FAILURE(ExpectBlock(folder, c, expected, {c.out / 2, c.out}, {0, c.in}));
    ASSERT_NO_FATAL_FAILURE(ExpectBlock(folder, c, expected, {0, c.out}, {c.in / 2, c.in}));
    const auto some = [&](int64_t size) {
      const auto begin = static_cast<int64_t>(random() % size);
      return Range{begin, begin + 1 + static_cast<int64_t>(random() % (size - begin))};
    };
    ASSERT_NO_FATAL_FAILURE(ExpectBlock(folder, c, expected, some(c.out), some(c.in)));
  }
}

TEST_F(VptqTensorsTest, WhatIsWrongIsNamedWhenItIsLoaded) {
  const std::vector<std::string> folders = Folders("bad-");
  ASSERT_EQ(folders.size(), 22u);
  for (const std::string& folder : folders) {
    const Case c = ReadCase(folder);
    const absl::Status status = ReadBlock(folder, c, {0, c.out}, {0, c.in}).status();
    EXPECT_FALSE(status.ok()) << folder;
    EXPECT_THAT(absl::StrReplaceAll(status.message(), {{"\"", ""}}),
                HasSubstr(absl::StrReplaceAll(c.json["error"].get<std::string>(),
                                              {{"\"", ""}, {"\\", ""}})))
        << folder;
    EXPECT_THAT(std::string(status.message()), HasSubstr(folder)) << "no file named";
  }
}

TEST_F(VptqTensorsTest, ARankHoldsItsShareOfTheIndices) {
  for (const std::string& folder : Folders("good-")) {
    const Case c = ReadCase(folder);
    const VptqWeights whole = ReadBlock(folder, c, {0, c.out}, {0, c.in}).value();
    const VptqWeights half = ReadBlock(folder, c, {0, c.out}, {0, c.in / 2}).value();
    const auto bytes = [](const VptqWeights& weights) {
      int64_t sum = 0;
      for (const VptqPart& part : weights.parts()) {
        for (const VptqGroup& group : part.groups) sum += group.codes.size_bytes();
      }
      return sum;
    };
    // Rows of each group are padded to words, and end in some slack: twice as many ends.
    int64_t ends = 0;
    for (const VptqPart& part : half.parts()) {
      ends += static_cast<int64_t>(part.groups.size()) * (part.num_vectors(c.out) * 4 + 8);
    }
    EXPECT_LE(bytes(half), bytes(whole) / 2 + ends + c.out * 4) << folder;
  }
}

}  // namespace
}  // namespace thinwire
