#include "parallel/wire/wire.h"

#include <functional>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "parallel/comm/local_communicator.h"

namespace thinwire {
namespace {

using ::testing::HasSubstr;

// Runs body(rank, wire, ledger, stream) on `size` threads whose tensor-parallel group is everybody.
void OnRanks(int size, WireFormat format,
             const std::function<void(int, Wire&, Ledger&, Stream&)>& body) {
  auto tp = CreateLocalCommunicators(size);
  auto world = CreateLocalCommunicators(size);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) {
    threads.emplace_back([&, rank] {
      ThreadPool pool(1);
      Stream stream = Stream::Cpu(&pool);
      Ledger ledger;
      Wire wire(tp[rank].get(), world[rank].get(), format, &ledger);
      body(rank, wire, ledger, stream);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TensorView View(std::vector<float>& data) {
  return TensorView(data.data(), DType::kF32, {static_cast<int64_t>(data.size())});
}

TEST(WireTest, NativeSumsAreExactAndCountTwiceTheFp16Baseline) {
  for (const int size : {2, 3, 4}) {
    const int64_t n = 1000;
    std::vector<Ledger> ledgers(size);
    OnRanks(size, WireFormat::kNative, [&](int rank, Wire& wire, Ledger& ledger, Stream& stream) {
      std::vector<float> x(n, static_cast<float>(rank + 1));
      ASSERT_TRUE(wire.AllReduce(Site::kMlpOut, View(x), stream).ok());
      EXPECT_EQ(x, std::vector<float>(n, size * (size + 1) / 2.0f));
      ledgers[rank] = ledger;
    });
    Ledger sum;
    for (const Ledger& ledger : ledgers) sum += ledger;
    // A ring moves 2 (p-1) n elements among all ranks.
    EXPECT_EQ(sum.at(Site::kMlpOut).logical_bytes, 2 * 2 * (size - 1) * n);
    EXPECT_GE(sum.at(Site::kMlpOut).payload_bytes, 4 * 2 * (size - 1) * n);
    EXPECT_EQ(sum.at(Site::kMlpOut).calls, size);
    EXPECT_EQ(sum.Total().payload_bytes, sum.at(Site::kMlpOut).payload_bytes);
  }
}

TEST(WireTest, Fp16HalvesThePayloadAndRoundsOncePerSide) {
  OnRanks(2, WireFormat::kFp16, [&](int rank, Wire& wire, Ledger& ledger, Stream& stream) {
    std::vector<float> x(500, rank == 0 ? 1.0f : 0x1p-12f);
    ASSERT_TRUE(wire.AllReduce(Site::kAttentionOut, View(x), stream).ok());
    EXPECT_EQ(x, std::vector<float>(500, 1.0f));  // 1 + 2^-12 rounds to 1 in fp16
    EXPECT_EQ(ledger.at(Site::kAttentionOut).payload_bytes, 2 * 500);
    EXPECT_EQ(ledger.at(Site::kAttentionOut).logical_bytes, 2 * 500);
  });
}

TEST(WireTest, HopsAndMessagesArriveInOrderAndAreCountedByTheSender) {
  OnRanks(2, WireFormat::kNative, [&](int rank, Wire& wire, Ledger& ledger, Stream& stream) {
    std::vector<float> x = {1, 2, 3, 4};
    const TensorView view(x.data(), DType::kF32, {2, 2});
    if (rank == 0) {
      ASSERT_TRUE(wire.SendHop(view, 1, stream).ok());
      ASSERT_TRUE(wire.SendBytes("plan", 1, stream).ok());
      ASSERT_TRUE(wire.SendBytes("", 1, stream).ok());
      EXPECT_EQ(ledger.at(Site::kStageHop).payload_bytes, 16);
      EXPECT_EQ(ledger.at(Site::kStageHop).logical_bytes, 8);
      EXPECT_EQ(ledger.at(Site::kControl).payload_bytes, 4);
      EXPECT_EQ(ledger.at(Site::kControl).metadata_bytes, 16);
    } else {
      x.assign(4, 0.0f);
      ASSERT_TRUE(wire.RecvHop(view, 0, stream).ok());
      EXPECT_EQ(x, std::vector<float>({1, 2, 3, 4}));
      EXPECT_EQ(wire.RecvBytes(0, stream).value(), "plan");
      EXPECT_EQ(wire.RecvBytes(0, stream).value(), "");
      EXPECT_EQ(ledger.Total().payload_bytes, 0);
      EXPECT_EQ(ledger.Total().calls, 0);
    }
  });
}

TEST(WireTest, OneRankSendsNothing) {
  OnRanks(1, WireFormat::kFp16, [&](int, Wire& wire, Ledger& ledger, Stream& stream) {
    std::vector<float> x = {0.1f};
    ASSERT_TRUE(wire.AllReduce(Site::kEmbedding, View(x), stream).ok());
    EXPECT_EQ(x[0], 0.1f);
    EXPECT_EQ(ledger.Total().calls, 0);
  });
}

TEST(WireTest, FormatsParseAndMissingOnesSaySo) {
  EXPECT_EQ(ParseWireFormat("auto").value(), WireFormat::kNative);
  EXPECT_EQ(ParseWireFormat("fp16").value(), WireFormat::kFp16);
  for (const char* name : {"one-shot-q8", "token-owner-q4", "exact"}) {
    EXPECT_EQ(ParseWireFormat(name).status().code(), absl::StatusCode::kUnimplemented) << name;
  }
  for (const char* name : {"", "fp8", "one-shot-q7", "token-owner-q"}) {
    const absl::Status status = ParseWireFormat(name).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << name;
    EXPECT_THAT(std::string(status.message()), HasSubstr("auto, fp16"));
  }
}

TEST(LedgerTest, SurvivesSerialisation) {
  Ledger ledger;
  ledger.Record(Site::kLogits, {1, 2, 3, 4, 5});
  const Ledger copy = Ledger::Parse(ledger.Serialize()).value();
  EXPECT_EQ(copy.at(Site::kLogits).metadata_bytes, 3);
  EXPECT_EQ(copy.Total().transfer_us, 5);
  EXPECT_EQ(Ledger::Parse("short").status().code(), absl::StatusCode::kInternal);
}

}  // namespace
}  // namespace thinwire
