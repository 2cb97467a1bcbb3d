#include "parallel/wire/wire.h"

#include <cmath>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "parallel/comm/local_communicator.h"

namespace thinwire {
namespace {

using ::testing::HasSubstr;

WireOptions Options(absl::string_view strategy, absl::string_view hop = "auto",
                    absl::string_view norm_codes = "auto") {
  return ParseWireOptions(strategy, hop, norm_codes).value();
}

// Runs body(rank, wire, ledger, stream) on `size` threads whose tensor-parallel group is everybody.
void OnRanks(int size, const WireOptions& options,
             const std::function<void(int, Wire&, Ledger&, Stream&)>& body) {
  auto tp = CreateLocalCommunicators(size);
  auto world = CreateLocalCommunicators(size);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) {
    threads.emplace_back([&, rank] {
      ThreadPool pool(1);
      Stream stream = Stream::Cpu(&pool);
      Ledger ledger;
      Wire wire(tp[rank].get(), world[rank].get(), options, &ledger);
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
    OnRanks(size, Options("native"), [&](int rank, Wire& wire, Ledger& ledger, Stream& stream) {
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
  OnRanks(2, Options("fp16"), [&](int rank, Wire& wire, Ledger& ledger, Stream& stream) {
    std::vector<float> x(500, rank == 0 ? 1.0f : 0x1p-12f);
    ASSERT_TRUE(wire.AllReduce(Site::kAttentionOut, View(x), stream).ok());
    EXPECT_EQ(x, std::vector<float>(500, 1.0f));  // 1 + 2^-12 rounds to 1 in fp16
    EXPECT_EQ(ledger.at(Site::kAttentionOut).payload_bytes, 2 * 500);
    EXPECT_EQ(ledger.at(Site::kAttentionOut).logical_bytes, 2 * 500);
  });
}

TEST(WireTest, MessagesArriveInOrderAndAreCountedByTheSender) {
  OnRanks(2, Options("native"), [&](int rank, Wire& wire, Ledger& ledger, Stream& stream) {
    if (rank == 0) {
      ASSERT_TRUE(wire.SendBytes("plan", 1, stream).ok());
      ASSERT_TRUE(wire.SendBytes("", 1, stream).ok());
      ASSERT_TRUE(wire.SendBytes(std::string(5000, 'x') + "end", 1, stream).ok());
      EXPECT_EQ(ledger.at(Site::kControl).payload_bytes, 4 + 5003);
      EXPECT_EQ(ledger.at(Site::kControl).metadata_bytes, 24);
    } else {
      EXPECT_EQ(wire.RecvBytes(0, stream).value(), "plan");
      EXPECT_EQ(wire.RecvBytes(0, stream).value(), "");
      EXPECT_EQ(wire.RecvBytes(0, stream).value(), std::string(5000, 'x') + "end");
      EXPECT_EQ(ledger.Total().payload_bytes, 0);
      EXPECT_EQ(ledger.Total().calls, 0);
    }
  });
}

TEST(WireTest, RowsWithinTheGroupAreHalvesUnlessWholeValuesAreWanted) {
  for (const char* name : {"native", "exact", "fp16", "one-shot-q4"}) {
    const bool whole = name[0] == 'n' || name[0] == 'e';
    OnRanks(2, Options(name), [&](int rank, Wire& wire, Ledger& ledger, Stream& stream) {
      std::vector<float> x(6, rank == 0 ? 1.0f + 0x1p-12f : 0.0f);
      if (rank == 0) {
        ASSERT_TRUE(wire.SendInGroup(Site::kLogits, View(x), 1, stream).ok());
        EXPECT_EQ(ledger.at(Site::kLogits).payload_bytes, whole ? 24 : 12);
        EXPECT_EQ(ledger.at(Site::kLogits).logical_bytes, 12);
      } else {
        ASSERT_TRUE(wire.RecvInGroup(Site::kLogits, View(x), 0, stream).ok());
        EXPECT_EQ(x, std::vector<float>(6, whole ? 1.0f + 0x1p-12f : 1.0f));
      }
    });
  }
}

TEST(WireTest, OneRankSendsNothing) {
  OnRanks(1, Options("fp16"), [&](int, Wire& wire, Ledger& ledger, Stream& stream) {
    std::vector<float> x = {0.1f};
    ASSERT_TRUE(wire.AllReduce(Site::kEmbedding, View(x), stream).ok());
    EXPECT_EQ(x[0], 0.1f);
    EXPECT_EQ(ledger.Total().calls, 0);
  });
}

constexpr char kCoded[][16] = {"one-shot-q8",    "one-shot-q6",    "one-shot-q5",
                               "one-shot-q4",    "token-owner-q8", "token-owner-q6",
                               "token-owner-q5", "token-owner-q4"};

// Normal variates, another row of them for each (seed, rank).
std::vector<float> Normal(int rank, int64_t n, unsigned seed) {
  std::mt19937 engine(seed * 64 + static_cast<unsigned>(rank));
  std::normal_distribution<float> normal;
  std::vector<float> values(n);
  for (float& value : values) value = normal(engine);
  return values;
}

TensorView Matrix(std::vector<float>& data, int64_t width) {
  return TensorView(data.data(), DType::kF32, {static_cast<int64_t>(data.size()) / width, width});
}

// The mean squared error of one uniform quantiser of 2^bits levels over +- the largest of a group,
// at most 4 sigma: (8 / 2^bits)^2 / 12; that of 4 bits with its own levels is less. With a margin
// of 1.5 for the rounding of scales, of each part; parts add up.
double SquaredErrorBound(int bits, int parts) {
  return 1.5 * parts * std::pow(8.0 / (1 << bits), 2) / 12.0;
}

TEST(WireTest, CodedSumsAreCloseAndEqualOnAllRanksThatKeepThem) {
  for (const char* name : kCoded) {
    for (const int size : {2, 3, 4}) {
      for (const int64_t n : {1, 2, 7, 64}) {
        SCOPED_TRACE(absl::StrCat(name, ", ", size, " ranks, ", n, " rows"));
        const int64_t width = 192;
        const WireOptions options = Options(name);
        std::vector<double> expected(n * width);
        for (int r = 0; r < size; ++r) {
          const std::vector<float> part = Normal(r, n * width, 7);
          for (size_t i = 0; i < part.size(); ++i) expected[i] += part[i];
        }
        std::vector<std::vector<float>> results(size);
        std::vector<Range> kept(size);
        OnRanks(size, options, [&](int rank, Wire& wire, Ledger&, Stream& stream) {
          std::vector<float> x = Normal(rank, n * width, 7);
          ASSERT_TRUE(wire.Reduce(Site::kMlpOut, Matrix(x, width), stream).ok());
          kept[rank] = wire.OwnRows(n);
          results[rank] = x;
        });
        int64_t next = 0;
        for (int r = 0; r < size; ++r) {
          double squared_error = 0.0;
          for (int64_t i = kept[r].begin * width; i < kept[r].end * width; ++i) {
            squared_error += std::pow(results[r][i] - expected[i], 2);
            if (options.strategy.kind == WireStrategy::Kind::kOneShot) {
              EXPECT_EQ(results[r][i], results[0][i]);
            }
          }
          EXPECT_LE(squared_error, SquaredErrorBound(options.strategy.bits, size) *
                                       static_cast<double>(kept[r].size() * width));
          EXPECT_EQ(kept[r].begin, next);
          next = options.strategy.kind == WireStrategy::Kind::kOneShot ? 0 : kept[r].end;
        }
      }
    }
  }
}

TEST(WireTest, SharedRowsAreTheSameBitsOnAllRanks) {
  using As = Wire::ShareAs;
  for (const As as : {As::kRaw, As::kFp16, As::kCodes}) {
    for (const int size : {2, 3}) {
      for (const int64_t n : {1, 5, 32}) {
        const int64_t width = 96;
        const std::vector<float> expected = Normal(0, n * width, 3);
        std::vector<std::vector<float>> results(size);
        OnRanks(size, Options("token-owner-q8"),
                [&](int rank, Wire& wire, Ledger&, Stream& stream) {
                  std::vector<float> x(n * width, -1e9f);
                  const Range own = wire.OwnRows(n);
                  std::copy(expected.begin() + own.begin * width,
                            expected.begin() + own.end * width, x.begin() + own.begin * width);
                  ASSERT_TRUE(wire.Share(Site::kMlpOut, as, Matrix(x, width), stream).ok());
                  results[rank] = x;
                });
        for (int r = 0; r < size; ++r) {
          EXPECT_EQ(results[r], results[0]);
          for (size_t i = 0; i < expected.size(); ++i) {
            EXPECT_NEAR(results[r][i], expected[i], as == As::kRaw ? 0.0 : 0.05);
          }
        }
      }
    }
  }
}

TEST(WireTest, ExactBringsColumnsToAllAndRowsToTheirOwnersAsTheyAre) {
  for (const int size : {2, 3, 4}) {
    for (const int64_t n : {1, 2, 7}) {
      const int64_t part = 24, width = 3 + 10 * size;  // width is cut unevenly
      const std::vector<float> wide = Normal(0, n * size * part, 5);
      const std::vector<float> rows = Normal(1, n * width, 5);
      std::vector<Ledger> ledgers(size);
      OnRanks(size, Options("exact"), [&](int rank, Wire& wire, Ledger& ledger, Stream& stream) {
        std::vector<float> mine;
        for (int64_t t = 0; t < n; ++t) {
          const auto* from = wide.data() + (t * size + rank) * part;
          mine.insert(mine.end(), from, from + part);
        }
        std::vector<float> whole(n * size * part);
        ASSERT_TRUE(wire.GatherColumns(Site::kMlpOut, Matrix(mine, part),
                                       Matrix(whole, size * part), stream)
                        .ok());
        EXPECT_EQ(whole, wide);

        const int64_t begin = width * rank / size, end = width * (rank + 1) / size;
        mine.clear();
        for (int64_t t = 0; t < n; ++t) {
          mine.insert(mine.end(), rows.begin() + t * width + begin, rows.begin() + t * width + end);
        }
        std::vector<float> collected(n * width, -1.0f);
        ASSERT_TRUE(wire.CollectRows(Site::kMlpOut, Matrix(mine, end - begin),
                                     Matrix(collected, width), stream)
                        .ok());
        const Range own = wire.OwnRows(n);
        for (int64_t i = 0; i < n * width; ++i) {
          const bool kept = i >= own.begin * width && i < own.end * width;
          EXPECT_EQ(collected[i], kept ? rows[i] : -1.0f);
        }
        // What would be rounded otherwise is not.
        std::vector<float> shared = collected;
        ASSERT_TRUE(
            wire.Share(Site::kMlpOut, Wire::ShareAs::kCodes, Matrix(shared, width), stream).ok());
        EXPECT_EQ(shared, rows);
        ledgers[rank] = ledger;
      });
      LedgerEntry sum;
      for (const Ledger& ledger : ledgers) sum += ledger.at(Site::kMlpOut);
      const int64_t others = size - 1;
      int64_t collected = 0;
      for (int r = 0; r < size; ++r) {
        const int64_t own = n * (r + 1) / size - n * r / size;
        collected += own * (width - (width * (r + 1) / size - width * r / size));
      }
      EXPECT_EQ(sum.payload_bytes, 4 * (others * n * (size * part + width) + collected));
      EXPECT_EQ(sum.logical_bytes, 2 * 2 * others * n * width);
    }
  }
}

TEST(WireTest, PickedRowsAreSharedByTheirOwners) {
  OnRanks(3, Options("token-owner-q4"), [&](int rank, Wire& wire, Ledger&, Stream& stream) {
    const std::vector<int32_t> picked = {0, 1, 5, 8};  // of 9 rows: 3 for each rank
    const std::vector<int64_t> offsets = wire.OffsetsOf(picked, 9);
    EXPECT_EQ(offsets, std::vector<int64_t>({0, 2, 3, 4}));
    std::vector<float> x(4 * 8, 0.0f);
    for (int64_t row = offsets[rank]; row < offsets[rank + 1]; ++row) x[row * 8] = 1.0f + row;
    ASSERT_TRUE(
        wire.Share(Site::kFinalNorm, Wire::ShareAs::kFp16, Matrix(x, 8), offsets, stream).ok());
    for (int64_t row = 0; row < 4; ++row) EXPECT_EQ(x[row * 8], 1.0f + row);
  });
}

// Per decoder layer: two sums and two norms, as a share of the fp16 all-reduce.
TEST(WireTest, BytesOfALayerAreTheShareOfFp16ThatTheStrategyPromises) {
  struct Case {
    const char* name;
    Wire::ShareAs as;
    const char* norms;
    double bound;
  };
  constexpr auto kRaw = Wire::ShareAs::kRaw;  // norms in codes of 8 bits, as sites with codes are
  constexpr auto kCodes = Wire::ShareAs::kCodes;
  for (const Case& c :
       {Case{"one-shot-q8", kCodes, "auto", 0.51}, Case{"one-shot-q6", kCodes, "auto", 0.39},
        Case{"one-shot-q4", kCodes, "auto", 0.29}, Case{"token-owner-q8", kRaw, "auto", 0.51},
        Case{"token-owner-q6", kRaw, "auto", 0.45}, Case{"token-owner-q4", kRaw, "auto", 0.385},
        Case{"token-owner-q4", kCodes, "6", 0.34}, Case{"token-owner-q4", kCodes, "4", 0.29}}) {
    for (const int size : {2, 4, 8}) {
      const bool one_shot = absl::string_view(c.name).substr(0, 3) == "one";
      if (one_shot && size > 2) continue;
      for (const int64_t n : {1, 16, 100}) {
        for (const int64_t width : {256, 1024}) {
          SCOPED_TRACE(absl::StrCat(c.name, ", ", size, " ranks, ", n, " x ", width));
          std::vector<Ledger> ledgers(size);
          OnRanks(size, Options(c.name, "auto", c.norms),
                  [&](int rank, Wire& wire, Ledger& ledger, Stream& stream) {
                    std::vector<float> x = Normal(rank, n * width, 1);
                    std::vector<uint8_t> codes(n * width);
                    ASSERT_TRUE(wire.Reduce(Site::kMlpOut, Matrix(x, width), stream).ok());
                    const TensorView rows = c.as == kRaw
                                                ? TensorView(codes.data(), DType::kU8, {n, width})
                                                : Matrix(x, width);
                    if (!one_shot) {
                      ASSERT_TRUE(wire.Share(Site::kMlpOut, c.as, rows, stream).ok());
                    }
                    ledgers[rank] = ledger;
                  });
          LedgerEntry sum;
          for (const Ledger& ledger : ledgers) sum += ledger.at(Site::kMlpOut);
          const double share = static_cast<double>(sum.payload_bytes + sum.metadata_bytes) /
                               static_cast<double>(sum.logical_bytes);
          EXPECT_LE(share, c.bound);
        }
      }
    }
  }
}

TEST(WireTest, HopsCrossOnceAndAreSharedWhereRanksKeepAllRows) {
  // Two stages of two ranks: ranks 0 and 1 send, 2 and 3 receive.
  for (const char* name : {"native", "fp16", "one-shot-q8", "token-owner-q8"}) {
    const WireOptions options = Options(name);
    const int64_t n = 5, width = 64;
    const std::vector<float> expected = Normal(0, n * width, 11);
    auto world = CreateLocalCommunicators(4);
    auto first = CreateLocalCommunicators(2), second = CreateLocalCommunicators(2);
    std::vector<std::thread> threads;
    std::vector<std::vector<float>> results(4);
    std::vector<Ledger> ledgers(4);
    for (int rank = 0; rank < 4; ++rank) {
      threads.emplace_back([&, rank] {
        ThreadPool pool(1);
        Stream stream = Stream::Cpu(&pool);
        Communicator* tp = rank < 2 ? first[rank].get() : second[rank - 2].get();
        Wire wire(tp, world[rank].get(), options, &ledgers[rank]);
        if (rank < 2) {
          std::vector<float> x = expected;
          ASSERT_TRUE(wire.SendHop(Matrix(x, width), rank + 2, stream).ok());
          return;
        }
        std::vector<float> x(n * width);
        ASSERT_TRUE(wire.RecvHop(Matrix(x, width), rank - 2, stream).ok());
        const Range rows = wire.OwnRows(n);
        results[rank].assign(x.begin() + rows.begin * width, x.begin() + rows.end * width);
        for (int64_t i = rows.begin * width; i < rows.end * width; ++i) {
          EXPECT_NEAR(x[i], expected[i], name[0] == 'n' ? 0.0 : 0.05);
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    const int64_t crossed = ledgers[0].Total().payload_bytes + ledgers[0].Total().metadata_bytes +
                            ledgers[1].Total().payload_bytes + ledgers[1].Total().metadata_bytes;
    EXPECT_EQ(crossed, n * options.hop.RowBytes(width, DType::kF32) + 4);
    if (options.strategy.kind != WireStrategy::Kind::kTokenOwner) {
      EXPECT_EQ(results[2], results[3]);
    }
  }
}

// Flips a bit of everything that comes in.
class DamagingCommunicator final : public Communicator {
 public:
  explicit DamagingCommunicator(Communicator* inner) : inner_(inner) {}

  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  bool Supports(Device device) const override { return inner_->Supports(device); }
  absl::Duration timeout() const override { return inner_->timeout(); }
  void set_timeout(absl::Duration timeout) override { inner_->set_timeout(timeout); }
  absl::Status AllReduce(TensorView inout, ReduceOp op, Stream& stream) override {
    return inner_->AllReduce(inout, op, stream);
  }
  absl::Status AllGather(ConstTensorView in, TensorView out, Stream& stream) override {
    const absl::Status status = inner_->AllGather(in, out, stream);
    const int64_t part = out.size_bytes() / size();
    for (int r = 0; r < size(); ++r) {
      if (r != rank()) Damage(out.Rows(r * part, part));
    }
    return status;
  }
  absl::Status ReduceScatter(ConstTensorView in, TensorView out, ReduceOp op,
                             Stream& stream) override {
    return inner_->ReduceScatter(in, out, op, stream);
  }
  absl::Status Broadcast(TensorView inout, int root, Stream& stream) override {
    return inner_->Broadcast(inout, root, stream);
  }
  absl::Status Exchange(absl::Span<const ConstTensorView> out, absl::Span<const TensorView> in,
                        Stream& stream) override {
    const absl::Status status = inner_->Exchange(out, in, stream);
    for (const TensorView& view : in) Damage(view);
    return status;
  }
  absl::Status Send(ConstTensorView in, int peer, Stream& stream) override {
    return inner_->Send(in, peer, stream);
  }
  absl::Status Recv(TensorView out, int peer, Stream& stream) override {
    const absl::Status status = inner_->Recv(out, peer, stream);
    Damage(out);
    return status;
  }
  absl::Status Wait(Stream& stream) override { return inner_->Wait(stream); }
  absl::Status status() override { return inner_->status(); }
  absl::Status Barrier(Stream& stream) override { return inner_->Barrier(stream); }
  absl::StatusOr<std::unique_ptr<Communicator>> Split(int color, int key) override {
    return inner_->Split(color, key);
  }
  void Abort(const absl::Status& why) override { inner_->Abort(why); }
  int64_t bytes_sent() const override { return inner_->bytes_sent(); }

 private:
  static void Damage(const TensorView& view) {
    if (view.num_elements() > 0) static_cast<uint8_t*>(view.mutable_raw())[3] ^= 16;
  }

  Communicator* inner_;
};

TEST(WireTest, WhatWasDamagedOnTheWayIsAnErrorAndNoSum) {
  for (const char* name : {"one-shot-q4", "token-owner-q8"}) {
    auto tp = CreateLocalCommunicators(2), world = CreateLocalCommunicators(2);
    std::vector<std::thread> threads;
    for (int rank = 0; rank < 2; ++rank) {
      threads.emplace_back([&, rank] {
        ThreadPool pool(1);
        Stream stream = Stream::Cpu(&pool);
        Ledger ledger;
        DamagingCommunicator damaging(tp[rank].get()), damaging_world(world[rank].get());
        Wire wire(&damaging, &damaging_world, Options(name), &ledger);
        const auto expect = [&](const absl::Status& status, absl::string_view site) {
          EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
          EXPECT_THAT(std::string(status.message()),
                      HasSubstr(absl::StrCat(site, ": message of ")));
          EXPECT_THAT(std::string(status.message()),
                      HasSubstr(absl::StrCat("from rank ", 1 - rank)));
        };
        std::vector<float> x = Normal(rank, 4 * 64, 5);
        expect(wire.Reduce(Site::kAttentionOut, Matrix(x, 64), stream), "attention_out");
        if (!wire.keeps_all_rows(4)) {
          expect(wire.Share(Site::kMlpOut, Wire::ShareAs::kCodes, Matrix(x, 64), stream),
                 "mlp_out");
        }
        ASSERT_TRUE(wire.SendHop(Matrix(x, 64), 1 - rank, stream).ok());
        expect(wire.RecvHop(Matrix(x, 64), 1 - rank, stream), "stage_hop");
        const Wire::Block block = {Site::kKvHandOff, "head", /*payload_bytes=*/9, 18};
        const auto fill = [](TensorView) { return absl::OkStatus(); };
        ASSERT_TRUE(wire.SendBlock(block, fill, 1 - rank, stream).ok());
        const auto never = [](ConstTensorView) { return absl::InternalError("read it"); };
        expect(wire.RecvBlock(block, never, 1 - rank, stream), "kv_handoff");
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
}

TEST(MessageTest, DamageAnotherSenderAndAnotherMeaningAreSeen) {
  std::vector<uint8_t> bytes(3 * 5 + MessageKey::kCheckBytes);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<uint8_t>(i * 37);
  const TensorView message(bytes.data(), DType::kU8, {static_cast<int64_t>(bytes.size())});
  const MessageKey key = {.site = Site::kMlpOut,
                          .codec = {RowCodec::Kind::kCodes, 4},
                          .sender = 1,
                          .num_rows = 3,
                          .row_bytes = 5};
  SealMessage(key, message);
  EXPECT_TRUE(CheckMessage(key, message).ok());
  MessageKey other = key;
  other.sender = 2;
  EXPECT_EQ(CheckMessage(other, message).code(), absl::StatusCode::kDataLoss);
  other = key;
  other.codec.bits = 5;
  EXPECT_EQ(CheckMessage(other, message).code(), absl::StatusCode::kDataLoss);
  bytes[7] ^= 1;
  const absl::Status status = CheckMessage(key, message);
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("message of 17 bytes (3 rows of 5 bytes, q4) from rank 1"));
}

TEST(LedgerTest, SurvivesSerialisation) {
  Ledger ledger;
  ledger.Record(Site::kLogits, {1, 2, 3, 4, 5, 6});
  const Ledger copy = Ledger::Parse(ledger.Serialize()).value();
  EXPECT_EQ(copy.at(Site::kLogits).metadata_bytes, 3);
  EXPECT_EQ(copy.Total().transfer_ns, 6);
  EXPECT_EQ(Ledger::Parse("short").status().code(), absl::StatusCode::kInternal);
}

}  // namespace
}  // namespace thinwire
