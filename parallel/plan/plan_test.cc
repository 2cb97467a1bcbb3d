#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "parallel/plan/mesh.h"
#include "parallel/plan/shard_plan.h"

namespace thinwire {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

const DecoderShape kLlama3_8b = {32, 32, 8, 14336, 128256};

TEST(MeshTest, RanksOfATensorParallelGroupAreNeighbours) {
  const Mesh mesh = Mesh::Create(4, 2, 8).value();
  EXPECT_EQ(mesh.pp_rank(5), 1);
  EXPECT_EQ(mesh.tp_rank(5), 1);
  for (int rank = 0; rank < 8; ++rank) {
    EXPECT_EQ(mesh.RankOf(mesh.pp_rank(rank), mesh.tp_rank(rank)), rank);
  }
}

TEST(MeshTest, WrongNumberOfRanksSaysHowManyToStart) {
  EXPECT_THAT(std::string(Mesh::Create(2, 2, 2).status().message()), HasSubstr("mpirun -np 4"));
  EXPECT_FALSE(Mesh::Create(1, 1, 2).ok());
  EXPECT_FALSE(Mesh::Create(0, 1, 1).ok());
  EXPECT_FALSE(Mesh::Create(65536, 65536, 1).ok());
}

TEST(ShardPlanTest, RanksTogetherHoldEverythingOnce) {
  const Mesh mesh = Mesh::Create(4, 3, 12).value();
  int64_t heads = 0, ffn = 0, vocab = 0, layers = 0;
  for (int tp = 0; tp < 4; ++tp) {
    const ShardPlan plan = ShardPlan::Create(kLlama3_8b, mesh, mesh.RankOf(0, tp)).value();
    EXPECT_EQ(plan.heads().begin, heads);
    EXPECT_EQ(plan.ffn().begin, ffn);
    EXPECT_EQ(plan.vocab().begin, vocab);
    heads = plan.heads().end;
    ffn = plan.ffn().end;
    vocab = plan.vocab().end;
  }
  EXPECT_EQ(heads, 32);
  EXPECT_EQ(ffn, 14336);
  EXPECT_EQ(vocab, 128256);
  for (int pp = 0; pp < 3; ++pp) {
    const ShardPlan plan = ShardPlan::Create(kLlama3_8b, mesh, mesh.RankOf(pp, 0)).value();
    EXPECT_EQ(plan.layers().begin, layers);
    EXPECT_LE(plan.layers().size(), 11);
    layers = plan.layers().end;
  }
  EXPECT_EQ(layers, 32);
}

TEST(ShardPlanTest, FewKvHeadsAreReplicatedBesideTheirQueryHeads) {
  const Mesh mesh = Mesh::Create(16, 1, 16).value();
  for (int rank = 0; rank < 16; ++rank) {
    const ShardPlan plan = ShardPlan::Create(kLlama3_8b, mesh, rank).value();
    EXPECT_EQ(plan.kv_heads().size(), 1);
    // Query head h belongs to KV head h / 4.
    EXPECT_EQ(plan.kv_heads().begin, plan.heads().begin / 4);
    EXPECT_EQ(plan.kv_heads().begin, (plan.heads().end - 1) / 4);
  }
}

TEST(ShardPlanTest, CutByOutputsRanksHaveWholeInputsAndTogetherAllChannels) {
  const Mesh mesh = Mesh::Create(4, 1, 4).value();
  int64_t next = 0;
  for (int rank = 0; rank < 4; ++rank) {
    const ShardPlan plan =
        ShardPlan::Create(kLlama3_8b, mesh, rank, ResidualCut::kByOutputs).value();
    EXPECT_EQ(plan.out_heads(), (Range{0, 32}));
    EXPECT_EQ(plan.down_ffn(), (Range{0, 14336}));
    EXPECT_EQ(plan.heads().size(), 8);
    EXPECT_EQ(plan.ResidualChannels(4098).begin, next);
    EXPECT_TRUE(plan.adds_residual_bias());
    next = plan.ResidualChannels(4098).end;

    const ShardPlan by_inputs = ShardPlan::Create(kLlama3_8b, mesh, rank).value();
    EXPECT_EQ(by_inputs.out_heads(), by_inputs.heads());
    EXPECT_EQ(by_inputs.down_ffn(), by_inputs.ffn());
    EXPECT_EQ(by_inputs.ResidualChannels(4098), (Range{0, 4098}));
    EXPECT_EQ(by_inputs.adds_residual_bias(), rank == 0);
  }
  EXPECT_EQ(next, 4098);
}

TEST(ShardPlanTest, AnOddVocabularyIsCutUnevenly) {
  const DecoderShape shape = {2, 4, 4, 64, 50257};
  const Mesh mesh = Mesh::Create(4, 1, 4).value();
  const ShardPlan plan = ShardPlan::Create(shape, mesh, 3).value();
  EXPECT_EQ(plan.vocab(), (Range{37695, 50257}));
  EXPECT_EQ(plan.VocabOf(0), (Range{0, 12565}));
}

TEST(ShardPlanTest, WhatDoesNotDivideNamesWhatDoes) {
  EXPECT_THAT(ShardPlan::UsableTpSizes({6, 8, 4, 704, 4096}), ElementsAre(1, 2, 4, 8));
  const Mesh mesh = Mesh::Create(3, 1, 3).value();
  const absl::Status status = ShardPlan::Create({6, 8, 4, 704, 4096}, mesh, 0).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("--tp 3 does not divide num_heads 8"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("1, 2, 4, 8"));
  EXPECT_THAT(std::string(ShardPlan::Create({2, 8, 8, 64, 100}, Mesh{1, 3}, 0).status().message()),
              HasSubstr("1 to 2"));
}

}  // namespace
}  // namespace thinwire
