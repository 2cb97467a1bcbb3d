#include "parallel/wire/strategy.h"

#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "parallel/comm/local_communicator.h"
#include "parallel/wire/strategy_table.h"
#include "parallel/wire/strategy_timing.h"

namespace thinwire {
namespace {

using ::testing::HasSubstr;

WireOptions Options(absl::string_view strategy, absl::string_view hop = "auto",
                    absl::string_view norm_codes = "auto") {
  return ParseWireOptions(strategy, hop, norm_codes).value();
}

TEST(WireOptionsTest, TheyParseAndMissingOnesSaySo) {
  for (const char* name : {"native", "fp16", "one-shot-q8", "one-shot-q6", "one-shot-q5",
                           "one-shot-q4", "token-owner-q8", "token-owner-q4", "exact"}) {
    EXPECT_EQ(WireStrategyName(Options(name).strategy), name);
  }
  EXPECT_EQ(RowCodecName(Options("native").hop), "native");
  EXPECT_EQ(RowCodecName(Options("fp16").hop), "fp16");
  EXPECT_EQ(RowCodecName(Options("token-owner-q5").hop), "q8");
  EXPECT_EQ(RowCodecName(Options("token-owner-q5", "fp16").hop), "fp16");
  EXPECT_EQ(RowCodecName(Options("exact").hop), "native");
  EXPECT_THAT(std::string(ParseWireOptions("exact", "q8").status().message()),
              HasSubstr("--wire exact rounds nothing"));
  EXPECT_THAT(std::string(ParseWireOptions("exact", "auto", "8").status().message()),
              HasSubstr("--norm-codes 8"));
  EXPECT_EQ(WireName(Options("auto")), "auto");
  EXPECT_TRUE(Options("auto").automatic);
  for (const char* name : {"", "fp8", "one-shot-q7", "token-owner-q"}) {
    const absl::Status status = ParseWireOptions(name, "auto").status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << name;
    EXPECT_THAT(std::string(status.message()), HasSubstr("auto, native, fp16, one-shot-q8"));
  }
  EXPECT_THAT(std::string(ParseWireOptions("fp16", "q4").status().message()),
              HasSubstr("--hop q4: expected"));
  EXPECT_THAT(std::string(ParseWireOptions("fp16", "auto", "7").status().message()),
              HasSubstr("--norm-codes 7: expected"));
  EXPECT_EQ(NormBits(Options("token-owner-q4")), 8);
  EXPECT_EQ(NormBits(Options("auto", "auto", "5")), 5);
}

TEST(StrategyTableTest, AllRanksMeasureTheSameAndPickTheNearest) {
  std::vector<StrategyTable> tables(3);
  auto communicators = CreateLocalCommunicators(3);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < 3; ++rank) {
    threads.emplace_back([&, rank] {
      ThreadPool pool(1);
      Stream stream = Stream::Cpu(&pool);
      tables[rank] = MeasureStrategies(*communicators[rank], Options("auto"), 64, 9, DType::kF32,
                                       absl::Milliseconds(200), stream)
                         .value();
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const StrategyTable& table : tables) {
    EXPECT_EQ(table.DebugString(), tables[0].DebugString());
    EXPECT_EQ(table.times.front().num_rows, 1);
  }
  const StrategyTable table = {
      .width = 64,
      .times = {{1, {10.0, 20.0, 30.0}}, {16, {10.0, 9.2, 30.0}}, {64, {10.0, 9.0, 8.0}}}};
  EXPECT_EQ(table.Pick(0).kind, WireStrategy::Kind::kFp16);
  EXPECT_EQ(table.Pick(3).kind, WireStrategy::Kind::kFp16);
  EXPECT_EQ(table.Pick(16).kind, WireStrategy::Kind::kFp16);  // 8 % are not worth a codec
  EXPECT_EQ(table.Pick(31).kind, WireStrategy::Kind::kFp16);
  EXPECT_EQ(table.Pick(32).kind, WireStrategy::Kind::kTokenOwner);  // as near to 16 as to 64
  EXPECT_EQ(table.Pick(5000).kind, WireStrategy::Kind::kTokenOwner);
}

TEST(StrategyTimingTest, BytesAndErrorsAreThoseOfTheStrategy) {
  auto communicators = CreateLocalCommunicators(2);
  std::vector<std::thread> threads;
  std::vector<std::vector<StrategyTiming>> timings(2);
  for (int rank = 0; rank < 2; ++rank) {
    threads.emplace_back([&, rank] {
      ThreadPool pool(1);
      Stream stream = Stream::Cpu(&pool);
      for (const char* name : {"native", "fp16", "one-shot-q8", "token-owner-q4"}) {
        timings[rank].push_back(TimeStrategy(*communicators[rank], Options(name), 8, 256,
                                             DType::kF32, absl::Milliseconds(1), stream)
                                    .value());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  const std::vector<StrategyTiming>& found = timings[0];
  for (size_t i = 0; i < found.size(); ++i) {
    EXPECT_GE(found[i].calls, 5);
    EXPECT_LE(found[i].p50_us, found[i].p99_us);
    EXPECT_EQ(found[i].logical_bytes, 2 * 2 * 8 * 256);
    EXPECT_EQ(found[i].error, timings[1][i].error);
  }
  EXPECT_EQ(found[0].wire_bytes, 2 * found[0].logical_bytes);
  EXPECT_EQ(found[0].error, 0.0);
  EXPECT_EQ(found[1].wire_bytes, found[1].logical_bytes);
  EXPECT_LT(found[1].error, 1e-3);
  EXPECT_LT(found[2].error, 0.02);
  EXPECT_GT(found[3].error, found[2].error);
  EXPECT_LT(found[3].error, 0.15);
}

}  // namespace
}  // namespace thinwire
