#include "launcher/report/run_record.h"

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "absl/status/statusor.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "launcher/report/run_label.h"

namespace thinwire {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

class RunRecordTest : public ::testing::Test {
 protected:
  ~RunRecordTest() override { std::filesystem::remove(path_); }

  absl::StatusOr<Recordings> Read(const std::string& text) {
    std::ofstream(path_, std::ios::binary) << text;
    Recordings recordings;
    const absl::Status status = ReadRecording(path_, recordings);
    if (!status.ok()) return status;
    return recordings;
  }

  void ExpectError(const std::string& text, const std::string& words) {
    const absl::Status status = Read(text).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr(path_ + ": "), HasSubstr(words), Not(HasSubstr("\n"))));
  }

  const std::string path_ =
      (std::filesystem::temp_directory_path() / ("recording." + std::to_string(getpid()))).string();
};

constexpr char kOldReport[] = R"({"model": "models/a/", "tp": 2, "pp": 1, "dtype": "fp32",
    "wire_format": "native", "prompt_tokens": 3, "generated_tokens": 7, "seconds": 0.5,
    "wire": {"total": {}, "sites": {
      "zzz": {"logical_bytes": 1, "payload_bytes": 1},
      "control": {"logical_bytes": 9, "payload_bytes": 8, "metadata_bytes": 1, "calls": 4},
      "logits": {"logical_bytes": 30, "payload_bytes": 60, "metadata_bytes": 0, "calls": 2,
                 "transfer_us": 250000}}}})";

TEST_F(RunRecordTest, AnOldReportLacksWhatCameLater) {
  const Recordings recordings = Read(kOldReport).value();
  ASSERT_EQ(recordings.runs.size(), 1u);
  const RunRecord& run = recordings.runs[0];
  EXPECT_FALSE(run.num_layers.has_value());
  EXPECT_EQ(run.step_us, 500000.0);  // seconds
  EXPECT_EQ(run.tokens_per_second, 14.0);
  std::vector<std::string> sites;
  for (const SiteTraffic& site : run.sites) sites.push_back(site.site);
  EXPECT_THAT(sites, ElementsAre("logits", "control", "zzz"));
  const SiteTraffic total = run.Total();
  EXPECT_EQ(total.logical_bytes, 40);
  EXPECT_EQ(total.sent_bytes(), 70);
  EXPECT_EQ(total.calls, 6);
  EXPECT_FALSE(total.codec_us.has_value());
  EXPECT_EQ(run.PerToken(total.sent_bytes()), 7.0);
  EXPECT_EQ(run.Shares().transfer, 0.25);  // of 2 ranks' 0.5 s
  EXPECT_EQ(run.Find("mlp_out"), nullptr);
}

TEST_F(RunRecordTest, ANewReportKnowsCodecsAndSteps) {
  const Recordings recordings = Read(R"({"tp": 2, "pp": 2, "num_layers": 4, "step_us": 100000,
      "wire_format": "one-shot-q4", "scheme": "w4a4kv", "prompt_tokens": 3, "generated_tokens": 7,
      "seconds": 0.5, "wire": {"sites": {
        "mlp_out": {"logical_bytes": 4, "payload_bytes": 1, "transfer_us": 100000,
                    "codec_us": 40000},
        "control": {"logical_bytes": 1, "payload_bytes": 1, "transfer_us": 0}}}})")
                                    .value();
  const RunRecord& run = recordings.runs[0];
  EXPECT_EQ(run.num_layers, 4);
  EXPECT_EQ(run.Total().codec_us, 40000.0);
  EXPECT_EQ(run.Shares().transfer, 0.25);
  EXPECT_EQ(run.Shares().codec, 0.1);
}

TEST_F(RunRecordTest, ASplitJobHasTheRanksOfBothGroups) {
  const std::string start =
      R"({"tp": 2, "pp": 2, "prompt_tokens": 3, "generated_tokens": 7, "seconds": 0.5,
          "wire": {"sites": {}}, "groups": )";
  const Recordings recordings = Read(start + R"([{"tp": 2}, {"tp": 1}]})").value();
  EXPECT_EQ(recordings.runs[0].num_ranks(), 6);
  EXPECT_EQ(MeshName(recordings.runs[0]), "tp 2 + 1 × pp 2");
  ExpectError(start + "[]}", "groups");
  ExpectError(start + R"([{"tp": 2}, {"tp": 0}]})", "tp");
}

TEST_F(RunRecordTest, SharesOfMoreTimeThanStepsTookAddUpToOne) {
  RunRecord run;
  run.step_us = 10;
  run.sites.push_back({.site = "control", .transfer_us = 30, .codec_us = 10});
  EXPECT_EQ(run.Shares().transfer, 0.75);
  EXPECT_EQ(run.Shares().codec, 0.25);
  run.sites.clear();
  run.step_us = 0;
  EXPECT_EQ(run.Shares().transfer, 0.0);
}

TEST_F(RunRecordTest, LinesOfCollectivesAreRead) {
  const Recordings recordings =
      Read(
          "\n{\"strategy\": \"fp16\", \"ranks\": 2, \"logical_bytes\": 4096, \"p50_us\": 30, "
          "\"error\": 0.0123456}"
          "\n\n{\"strategy\": \"exact\", \"ranks\": 4, \"logical_bytes\": 1, \"p50_us\": null, "
          "\"error\": \"no peer memory\"}\r\n")
          .value();
  ASSERT_EQ(recordings.comm.size(), 2u);
  EXPECT_TRUE(recordings.runs.empty());
  EXPECT_EQ(recordings.comm[0].p50_us, 30.0);
  EXPECT_FALSE(recordings.comm[0].p99_us.has_value());
  EXPECT_EQ(recordings.comm[0].error, "0.0123");
  EXPECT_EQ(recordings.comm[1].error, "no peer memory");
  EXPECT_THAT(SeriesLabels(recordings.comm), ElementsAre("fp16, 2 ranks", "exact, 4 ranks"));
}

TEST_F(RunRecordTest, WhatIsNoRecordingIsSaid) {
  ExpectError("", "the file is empty");
  ExpectError("{\"wire\": ", "not valid JSON: unexpected the end of the file");
  ExpectError("[1]", "expected what thinwire run --report writes");
  ExpectError("{\"model_type\": \"opt\"}", "found an object without \"wire\"");
  ExpectError("{\"wire\": 3, \"prompt_tokens\": 1, \"generated_tokens\": 1, \"seconds\": 1}",
              "\"wire\": expected an object, found 3");
  ExpectError("{\"wire\": {}, \"prompt_tokens\": 1, \"generated_tokens\": 1, \"seconds\": 1}",
              "\"wire\": \"sites\": expected an object, found nothing");
  ExpectError("{\"wire\": {\"sites\": {}}}", "\"prompt_tokens\": expected an integer");
  ExpectError(
      "{\"wire\": {\"sites\": {\"a\": {\"logical_bytes\": -1}}}, \"prompt_tokens\": 1, "
      "\"generated_tokens\": 1, \"seconds\": 1}",
      "\"wire\": \"sites\": \"a\": \"logical_bytes\": expected an integer of at least 0, "
      "found -1");
  ExpectError(
      "{\"wire\": {\"sites\": {}}, \"prompt_tokens\": 1, \"generated_tokens\": 1, "
      "\"seconds\": \"1\"}",
      "\"seconds\": expected a number of at least 0, found \"1\"");
  ExpectError("{\"strategy\": \"fp16\", \"ranks\": 2, \"logical_bytes\": 1, \"p50_us\": 3}\n{\"",
              "line 2: expected a JSON object");
  ExpectError("{\"strategy\": \"fp16\", \"ranks\": 2, \"logical_bytes\": 1}",
              "line 1: \"p50_us\": expected a number of at least 0, or an \"error\"");
}

TEST(RunLabelTest, RunsAreToldApartByWhatDiffers) {
  RunRecord a, b;
  a.wire = b.wire = "one-shot-q4";
  a.model = "models/opt/";
  b.model = "other/llama";
  a.dtype = b.dtype = "fp32";
  EXPECT_THAT(RunLabels({a, b}), ElementsAre("one-shot-q4, opt", "one-shot-q4, llama"));
  b.wire = "exact";
  EXPECT_THAT(RunLabels({a, b}), ElementsAre("one-shot-q4", "exact"));
  EXPECT_THAT(RunLabels({a, a}), ElementsAre("one-shot-q4", "one-shot-q4 (2)"));
  b = a;
  b.dtype = "fp16";
  b.tp = 2;
  EXPECT_THAT(RunLabels({a, b}), ElementsAre("one-shot-q4, fp32", "one-shot-q4, fp16"));
}

TEST(RunLabelTest, LongTextIsCutBetweenCharacters) {
  EXPECT_EQ(Shortened("äöü", 3), "äöü");
  EXPECT_EQ(Shortened("äöüß", 3), "äö…");
}

}  // namespace
}  // namespace thinwire
