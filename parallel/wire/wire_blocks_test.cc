#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "parallel/comm/local_communicator.h"
#include "parallel/wire/wire.h"

namespace thinwire {
namespace {

using ::testing::HasSubstr;

void OnTwoRanks(const std::function<void(int, Wire&, Ledger&, Stream&)>& body) {
  auto world = CreateLocalCommunicators(2);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < 2; ++rank) {
    threads.emplace_back([&, rank] {
      ThreadPool pool(1);
      Stream stream = Stream::Cpu(&pool);
      Ledger ledger;
      Wire wire(world[rank].get(), world[rank].get(), WireOptions(), &ledger);
      body(rank, wire, ledger, stream);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(WireBlockTest, BlocksArriveAsTheyAreAndAreToldApart) {
  const auto block = [](absl::string_view head) {
    return Wire::Block{Site::kKvHandOff, std::string(head), /*payload_bytes=*/5,
                       /*logical_bytes=*/20};
  };
  std::vector<Ledger> ledgers(2);
  OnTwoRanks([&](int rank, Wire& wire, Ledger& ledger, Stream& stream) {
    if (rank == 0) {
      for (int i = 0; i < 2; ++i) {
        const auto write = [&](TensorView payload) {
          for (int j = 0; j < 5; ++j) payload.mutable_data<uint8_t>()[j] = static_cast<uint8_t>(j);
          return absl::OkStatus();
        };
        ASSERT_TRUE(wire.SendBlock(block("one"), write, 1, stream).ok());
      }
    } else {
      const auto read = [](ConstTensorView payload) {
        for (int j = 0; j < 5; ++j) EXPECT_EQ(payload.data<uint8_t>()[j], j);
        return absl::OkStatus();
      };
      ASSERT_TRUE(wire.RecvBlock(block("one"), read, 0, stream).ok());
      const absl::Status status = wire.RecvBlock(block("two"), read, 0, stream);
      EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
      EXPECT_THAT(std::string(status.message()),
                  HasSubstr("kv_handoff: message of 10 bytes from rank 0"));
    }
    ledgers[rank] = ledger;
  });
  const LedgerEntry& sent = ledgers[0].at(Site::kKvHandOff);
  EXPECT_EQ(sent.logical_bytes, 40);
  EXPECT_EQ(sent.payload_bytes, 10);
  EXPECT_EQ(sent.metadata_bytes, 2 * (3 + MessageKey::kCheckBytes));
  EXPECT_EQ(sent.calls, 2);
  EXPECT_EQ(ledgers[1].at(Site::kKvHandOff).payload_bytes, 0);
}

TEST(WireBlockTest, APayloadThatCannotBeWrittenIsNotSent) {
  OnTwoRanks([](int rank, Wire& wire, Ledger&, Stream& stream) {
    if (rank == 1) return;
    const auto fail = [](TensorView) { return absl::ResourceExhaustedError("no room"); };
    const Wire::Block block = {Site::kKvHandOff, "head", /*payload_bytes=*/9, 18};
    const absl::Status status = wire.SendBlock(block, fail, 1, stream);
    EXPECT_EQ(status, absl::ResourceExhaustedError("kv_handoff: no room"));
    EXPECT_EQ(wire.world().bytes_sent(), 0);
  });
}

TEST(WireBlockTest, AnotherSizeThanExpectedIsAnErrorWithTheSite) {
  OnTwoRanks([](int rank, Wire& wire, Ledger&, Stream& stream) {
    const Wire::Block block = {Site::kKvHandOff, "head", /*payload_bytes=*/9 + rank, 18};
    const auto nothing = [](ConstTensorView) { return absl::OkStatus(); };
    if (rank == 0) {
      ASSERT_TRUE(wire.SendBlock(block, nothing, 1, stream).ok());
    } else {
      const absl::Status status = wire.RecvBlock(block, nothing, 0, stream);
      EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
      EXPECT_THAT(std::string(status.message()),
                  ::testing::AllOf(HasSubstr("kv_handoff: "), HasSubstr("15"), HasSubstr("16"),
                                   HasSubstr("rank 0")));
    }
  });
}

}  // namespace
}  // namespace thinwire
