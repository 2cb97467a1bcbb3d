#include "runtime/engine/rank_layout.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace thinwire {
namespace {

using ::testing::HasSubstr;

TEST(RankLayoutTest, TheDecodeGroupFollowsThePrefillGroup) {
  const RankLayout layout = RankLayout::PrefillAndDecode(4, 2, 2, 6).value();
  EXPECT_TRUE(layout.split());
  EXPECT_EQ(layout.mesh(0).tp_size, 2);
  EXPECT_EQ(layout.mesh(1).tp_size, 1);
  EXPECT_EQ(layout.mesh(1).pp_size, 2);
  EXPECT_EQ(layout.world_size(), 6);
  EXPECT_EQ(layout.GroupOf(3), 0);
  EXPECT_EQ(layout.GroupOf(4), 1);
  EXPECT_EQ(layout.RankInGroup(5), 1);
  EXPECT_EQ(layout.Description(), "prefill tp 2 x pp 2, decode tp 1 x pp 2");
}

TEST(RankLayoutTest, OneMeshIsOneGroup) {
  const RankLayout layout = RankLayout::OneMesh({.tp_size = 2, .pp_size = 3});
  EXPECT_FALSE(layout.split());
  EXPECT_EQ(layout.world_size(), 6);
  EXPECT_EQ(layout.RankInGroup(5), 5);
  EXPECT_EQ(layout.Description(), "tp 2 x pp 3");
}

TEST(RankLayoutTest, NumbersThatDoNotFitAreNamed) {
  const auto why = [](int prefill, int decode, int pp, int world) {
    return std::string(RankLayout::PrefillAndDecode(prefill, decode, pp, world).status().message());
  };
  EXPECT_THAT(why(2, 1, 1, 4), HasSubstr("--prefill-ranks 2 --decode-ranks 1 needs 3 ranks, "
                                         "found 4; start it with: mpirun -np 3"));
  EXPECT_THAT(why(4, 3, 2, 7), HasSubstr("--decode-ranks 3 --pp 2: both groups have so many"));
  EXPECT_THAT(why(0, 3, 1, 3), HasSubstr("--prefill-ranks 0"));
}

}  // namespace
}  // namespace thinwire
