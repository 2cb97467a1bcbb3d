#include "runtime/engine/kv_hand_off.h"

#include <map>
#include <set>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "parallel/comm/local_communicator.h"

namespace thinwire {
namespace {

using ::testing::HasSubstr;

DecoderShape Shape(int64_t num_kv_heads) {
  return {.num_layers = 5, .num_heads = 8, .num_kv_heads = num_kv_heads, .ffn = 64, .vocab = 100};
}

TEST(KvHandOffTest, EveryRankGetsEachOfItsLayersAndHeadsOnceFromOneThatHasIt) {
  for (const int64_t num_kv_heads : {8, 2, 1}) {
    for (const auto& [prefill, decode, pp] :
         {std::tuple(1, 1, 1), std::tuple(4, 1, 1), std::tuple(1, 4, 1), std::tuple(8, 2, 2),
          std::tuple(2, 8, 2), std::tuple(3, 6, 3)}) {
      const DecoderShape shape = Shape(num_kv_heads);
      const RankLayout layout =
          RankLayout::PrefillAndDecode(prefill, decode, pp, prefill + decode).value();
      std::map<int, std::set<std::pair<int64_t, int64_t>>> received;
      const std::vector<KvTransfer> transfers = PlanKvTransfers(shape, layout).value();
      for (const KvTransfer& transfer : transfers) {
        const ShardPlan from = ShardPlan::Create(shape, layout.mesh(0), transfer.from).value();
        EXPECT_LE(from.layers().begin, transfer.layers.begin);
        EXPECT_GE(from.layers().end, transfer.layers.end);
        EXPECT_LE(from.kv_heads().begin, transfer.kv_heads.begin);
        EXPECT_GE(from.kv_heads().end, transfer.kv_heads.end);
        for (int64_t layer = transfer.layers.begin; layer < transfer.layers.end; ++layer) {
          for (int64_t h = transfer.kv_heads.begin; h < transfer.kv_heads.end; ++h) {
            EXPECT_TRUE(received[transfer.to].insert({layer, h}).second);
          }
        }
      }
      for (int rank = 0; rank < decode; ++rank) {
        const ShardPlan to = ShardPlan::Create(shape, layout.mesh(1), rank).value();
        const Range layers = to.layers(), heads = to.kv_heads();
        const auto& got = received[prefill + rank];
        EXPECT_EQ(static_cast<int64_t>(got.size()), layers.size() * heads.size());
        EXPECT_EQ(*got.begin(), std::pair(layers.begin, heads.begin));
        EXPECT_EQ(*got.rbegin(), std::pair(layers.end - 1, heads.end - 1));
      }
    }
  }
}

TEST(KvHandOffTest, ReceiversOfOneHeadAreSpreadOverThoseThatHoldIt) {
  const RankLayout layout = RankLayout::PrefillAndDecode(4, 2, 1, 6).value();
  std::set<int> senders;
  const std::vector<KvTransfer> transfers = PlanKvTransfers(Shape(1), layout).value();
  for (const KvTransfer& transfer : transfers) {
    EXPECT_TRUE(senders.insert(transfer.from).second);
  }
  EXPECT_EQ(senders.size(), 2u);
}

TEST(KvHandOffTest, RowsThatLieOtherwiseOnSomeRankAreRefusedOnAll) {
  for (const bool alike : {true, false}) {
    auto world = CreateLocalCommunicators(3);
    std::vector<std::thread> ranks;
    for (int rank = 0; rank < 3; ++rank) {
      ranks.emplace_back([&, rank] {
        ThreadPool pool(1);
        Stream stream = Stream::Cpu(&pool);
        // Two stages that prefill and one that decodes.
        const Range layers = rank == 2 ? Range{0, 2} : Range{rank, rank + 1};
        KvCacheShape shape;
        for (int64_t layer = layers.begin; layer < layers.end; ++layer) {
          shape.in_planes.push_back({true, layer == 1 && (alike || rank == 2)});
        }
        const absl::Status status = CheckRowsAlike(shape, layers, 2, *world[rank], stream);
        if (alike) {
          EXPECT_TRUE(status.ok()) << status;
          return;
        }
        EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
        EXPECT_THAT(std::string(status.message()), HasSubstr("layer 1: codes of V"));
      });
    }
    for (std::thread& rank : ranks) rank.join();
  }
}

TEST(KvHandOffTest, AnotherSequenceThanExpectedIsAnError) {
  const DecoderShape shape = Shape(2);
  const RankLayout layout = RankLayout::PrefillAndDecode(1, 1, 1, 2).value();
  const std::vector<KvTransfer> transfers = PlanKvTransfers(shape, layout).value();
  auto world = CreateLocalCommunicators(2);
  std::vector<Ledger> ledgers(2);
  std::vector<std::thread> ranks;
  for (int rank = 0; rank < 2; ++rank) {
    ranks.emplace_back([&, rank] {
      ThreadPool pool(1);
      Stream stream = Stream::Cpu(&pool);
      const ShardPlan plan = ShardPlan::Create(shape, layout.mesh(rank), 0).value();
      const KvCacheShape cache_shape = {
          .num_layers = 5, .num_kv_heads = 2, .head_dim = 16, .page_size = 4, .dtype = DType::kF32};
      PagedKvCache cache = PagedKvCache::Allocate(cache_shape, 3, 1, Device::Cpu()).value();
      auto* first = cache.k_pages(0).mutable_data<float>();
      KvHandOff hand_off(transfers, plan, &cache, world[rank].get(), &ledgers[rank], &stream);
      const std::vector<int32_t> pages = {static_cast<int32_t>(rank), 2};
      const KvPlace place = {pages, /*num_tokens=*/5, /*exact_row=*/0};
      if (rank == 0) {
        first[0] = 1.5f;
        EXPECT_TRUE(hand_off.Send(7, place).ok());
        EXPECT_TRUE(hand_off.Send(8, place).ok());
        return;
      }
      EXPECT_TRUE(hand_off.Receive(7, place).ok());
      EXPECT_EQ(first[2 * 4 * 16], 1.5f);  // page 1
      const absl::Status status = hand_off.Receive(9, place);
      EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
      EXPECT_THAT(std::string(status.message()), HasSubstr("from rank 0"));
    });
  }
  for (std::thread& rank : ranks) rank.join();
  const LedgerEntry& sent = ledgers[0].at(Site::kKvHandOff);
  EXPECT_EQ(sent.logical_bytes, 2 * 5 * 2 * 5 * 2 * 16 * 2);
  EXPECT_EQ(sent.payload_bytes, 2 * sent.logical_bytes);
  EXPECT_EQ(sent.calls, 2);
}

}  // namespace
}  // namespace thinwire
