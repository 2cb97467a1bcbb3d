#include "runtime/model/coded_layer.h"

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/model/coded_layer_testing.h"
#include "runtime/model/decoder_weights.h"

namespace thinwire {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

std::vector<Kind> PublishedKinds() {
  std::vector<Kind> kinds;
  for (const bool llama : {false, true}) {
    for (const int bits : {4, 3, 2}) {
      for (const int64_t group_size : {-1, 32, 128}) {
        for (const bool desc_act : {false, true}) {
          for (const bool bias : {false, true}) {
            kinds.push_back({llama, bits, group_size, desc_act, bias});
          }
        }
      }
    }
  }
  return kinds;
}

// Every projection, whole or summed over ranks, on rows in the model's order.
void ExpectComputesWhatItStandsFor(TestLayer& layer, int tp) {
  const Checkpoint checkpoint = layer.Write(/*dense=*/false);
  const ModelConfig& config = layer.config();
  const LayerTensorNames& names = layer.names();
  Ops ops;
  std::map<std::string, std::vector<float>> inputs, sums;
  for (const std::string& name : {names.q, names.out, names.down}) {
    inputs[name] = layer.Uniform(kTokens * layer.at(name).in, -2.0f, 2.0f);
  }
  for (const std::string& name : {names.k, names.v, names.gate, names.up}) {
    inputs[name] = inputs[names.q];
  }
  for (int rank = 0; rank < tp; ++rank) {
    const ShardPlan plan = layer.PlanOf(tp, rank);
    const LayerWeights weights = LoadDecoderLayer(checkpoint, config, plan, 0).value();
    const Range heads = Times(plan.heads(), config.head_dim);
    const Range kv_heads = Times(plan.kv_heads(), config.head_dim);
    for (const auto& [name, linear] : Linears(layer, weights)) {
      const Projection& projection = layer.at(name);
      const std::vector<float>& x = inputs[name];
      if (name == names.out || name == names.down) {
        AddTo(sums[name],
              ops.Float(*linear, Columns(x, Sequence(name == names.out ? heads : plan.ffn()))));
        continue;
      }
      const Range rows = name == names.q                      ? heads
                         : name == names.k || name == names.v ? kv_heads
                                                              : plan.ffn();
      ExpectOutputs(Expected(projection, Doubles(x), Absolute(x)), ops.Float(*linear, x),
                    Sequence(rows), name);
    }
  }
  for (const std::string& name : {names.out, names.down}) {
    ExpectOutputs(Expected(layer.at(name), Doubles(inputs[name]), Absolute(inputs[name])),
                  sums[name], Sequence({0, config.hidden}), name);
  }
}

TEST(CodedLayerTest, PublishedFoldersComputeWhatTheirWeightsStandFor) {
  for (const Kind& kind : PublishedKinds()) {
    for (const int tp : {1, 2}) {
      SCOPED_TRACE(absl::StrCat(kind.DebugString(), ", tp ", tp));
      TestLayer layer(kind);
      ExpectComputesWhatItStandsFor(layer, tp);
    }
  }
}

int NumGathers(const TestLayer& layer, const LayerWeights& weights) {
  int count = 0;
  for (const auto& [name, linear] : Linears(layer, weights)) {
    if (!linear->input_order.empty()) ++count;
  }
  return count;
}

TEST(CodedLayerTest, OnlyActOrderOfOthersIsGatheredAtRunTime) {
  for (const bool llama : {false, true}) {
    const int num_linears = llama ? 7 : 6;
    for (const int tp : {1, 2}) {
      for (int rank = 0; rank < tp; ++rank) {
        const auto load = [&](TestLayer& layer) {
          const Checkpoint checkpoint = layer.Write(/*dense=*/false);
          return LoadDecoderLayer(checkpoint, layer.config(), layer.PlanOf(tp, rank), 0).value();
        };
        TestLayer act_order({.llama = llama, .desc_act = true});
        EXPECT_EQ(NumGathers(act_order, load(act_order)), num_linears);
        TestLayer in_sequence({.llama = llama});
        EXPECT_EQ(NumGathers(in_sequence, load(in_sequence)), 0);
        TestLayer one_group({.llama = llama, .group_size = -1, .desc_act = true});
        EXPECT_EQ(NumGathers(one_group, load(one_group)), 0);
        for (const bool coded : {false, true}) {
          TestLayer ours({.llama = llama, .desc_act = true});
          ours.Reorder(coded, /*aligned=*/true);
          const LayerWeights weights = load(ours);
          EXPECT_EQ(NumGathers(ours, weights), 0);
          // And no group is in pieces, but at both ends of a rank's part of ffn.
          for (const auto& [name, linear] : Linears(ours, weights)) {
            EXPECT_LE(linear->codes->num_groups(), linear->codes->in_features() / 32 + 2) << name;
          }
        }
      }
    }
  }
}

TEST(CodedLayerTest, ASchemeThatTheSitesDoNotHaveIsRefused) {
  TestLayer layer({.desc_act = true});
  layer.Reorder(/*coded=*/false, /*aligned=*/true);
  const Checkpoint checkpoint = layer.Write(/*dense=*/false);
  const ThinwireFile made = {.scheme = {.weight_bits = 4, .act_bits = 8, .kv_bits = 8},
                             .group_size = 32,
                             .tp = 2,
                             .tool_version = "0.1.0"};
  ASSERT_TRUE(WriteThinwireFile(layer.folder().path(), made).ok());
  const absl::Status status =
      LoadDecoderLayer(checkpoint, layer.config(), layer.PlanOf(1, 0), 0).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr(layer.folder().Path(kThinwireFileName)), HasSubstr("w4a8"),
                    HasSubstr(layer.folder().Path(kRptqFileName)),
                    HasSubstr("does not code layers.0.qkv_in")));
}

}  // namespace
}  // namespace thinwire
